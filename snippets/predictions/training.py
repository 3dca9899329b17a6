"""Work of a training step: forward and backward as dispatched, AdamW by formula."""

from __future__ import annotations

from snippets.predictions.counting import Work

ADAMW_BYTES = 7 * 4  # FP32 weight, gradient and two moments are read, all but the gradient are written
ADAMW_LAUNCHES = 2  # a fused optimizer's: the count of its steps, then all else in one kernel


def adamw(weights: int, optimizers: int = 1) -> Work:
    """One fused update of so many FP32 weights by so many optimizers. Its few operations hide behind its bytes."""
    return Work(other_bytes=ADAMW_BYTES * weights, launches=ADAMW_LAUNCHES * optimizers)
