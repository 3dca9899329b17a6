"""Counted are products, weights, launches, gathered caches and padded attention of each step of the paged cache, in
FP32, step by step as the scheduler forms them; the scheduler's own time on the host is left out."""

from __future__ import annotations

from collections import Counter

from snippets.instruments.targets import Target
from snippets.models.scheduler import Limits, simulate, trace
from snippets.models.shapes import SMOLLM2_135M
from snippets.models.trained import GEOMETRIES
from snippets.predictions.layers import paged_step_seconds
from snippets.predictions.reasons import LOGIT_GAP
from snippets.throughput.continuous_batching import Scale

WRITERS, WRITTEN = 3, 33
"""Those who write beside the newcomer, and the tokens that each has with the one it writes: see `interference`."""


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = Scale()
    whole, last = (_pause_seconds(target, scale.long_prompt, new) for new in (scale.long_prompt, scale.chunk))
    speed = {policy: _speed(target, scale, policy) for policy in ("static", "continuous")}
    return {
        "smollm2_smallest_gap_difference": LOGIT_GAP,
        "pause_ratio": whole / last,
        "whole_pause_seconds": whole,
        "chunk_pause_seconds": last,
        "timed_speed_ratio": speed["continuous"] / speed["static"],
        **{f"{policy}_speed_tokens_per_second": each for policy, each in speed.items()},
    }


def _pause_seconds(target: Target, prompt: int, new: int) -> float:
    return paged_step_seconds(target, SMOLLM2_135M, [1] * WRITERS + [new], [WRITTEN] * WRITERS + [prompt])


def _speed(target: Target, scale: Scale, policy: str) -> float:
    """Tokens/s of the page's timed trace."""
    requests = trace(scale.timed, 0, ("constant", 8), ("geometric", 8), seed=6)
    cached, seconds = Counter[int](), 0.0
    for step in simulate(requests, Limits(policy, scale.batch, 128)).steps:
        cached.update(step.counts)
        lengths = [cached[request] for request in step.counts]
        seconds += paged_step_seconds(target, GEOMETRIES["small"], list(step.counts.values()), lengths)
    return sum(request.answer for request in requests) / seconds
