"""One layer's attention that stores its scores: what it holds at its peak, the same on every device.

An allocator's rounding is left out.
"""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M, Geometry

STEP_TOKENS = 256  # of the page's step
BF16_BYTES, FP32_BYTES = 2, 4
SCORES = 3  # matrices of them at once: the scores, their softmax, and that with rows that see nothing made zero


def unfused_bytes(geometry: Geometry, tokens: int) -> int:
    """Bytes of one sequence's step where attention runs in plain products, which widen BF16 to FP32.

    Hidden states before and after their norm wait in BF16. Keys and values are copied for every query head.
    """
    waiting = 2 * BF16_BYTES * tokens * geometry.hidden
    factors = 3 * FP32_BYTES * tokens * geometry.heads * geometry.head_dim
    mask = FP32_BYTES * tokens**2
    return waiting + factors + mask + SCORES * FP32_BYTES * geometry.heads * tokens**2


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    return {"unfused_step_bytes": float(unfused_bytes(SMOLLM2_135M, STEP_TOKENS))}
