"""Counted are the products that the errors are made with: their operations, bytes and launches, one behind the other in
a queue. First calls, the host's allocator, its neighbours and its threads are left out."""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import ELEMENT_BYTES, product_seconds
from snippets.predictions.reasons import OWN_H100
from snippets.throughput import fair_benchmark as page

FIRST = "what a library does at a shape's first call, which operations and bytes do not tell"
PAGES = "page faults of the host's memory, which the device does not tell"
SCHEDULER = "how the host's scheduler shares its cores, which the device does not tell"
HANDOVER = "a thread's queue stands for the device's, and what a thread costs operations and bytes do not tell"
CACHED_WIDTH = 384
"""Of the square FP32 matrix that some cache holds."""


def unawaited_ratio(target: Target, width: int, number_format: str) -> float:
    """Seconds until a square product is done, over seconds until its call comes back: a launch."""
    return product_seconds(target, width, width, width, number_format) / target.launch_seconds


def cold_ratio(target: Target) -> float:
    """One row's product with the matrix from memory, over the same without a byte from there."""
    cold = product_seconds(target, 1, CACHED_WIDTH, CACHED_WIDTH, "float32")
    return cold / target.seconds("float32", flops=2 * CACHED_WIDTH**2)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale, queued = page.Scale(), not on_cpu(target)
    speed_unawaited = 2 * scale.width**3 / target.launch_seconds
    return {
        **dict.fromkeys(("first_call_ratio", "first_call_seconds"), FIRST),
        "cold_ratio": cold_ratio(target),
        "hot_bytes": CACHED_WIDTH**2 * ELEMENT_BYTES["float32"],
        "fresh_ratio": PAGES,
        "result_bytes": scale.result_bytes,
        "unawaited_ratio": unawaited_ratio(target, scale.width, "float32") if queued else HANDOVER,
        "beyond_peak_ratio": speed_unawaited / target.flops_per_second["float32"] if queued else HANDOVER,
        "sequential_ratio": SCHEDULER,
        "turns_ratio": 1.0,  # the same product twice, in turn
        **dict.fromkeys(("threads_ratio", "threads_count"), SCHEDULER),
        "h100_unawaited_ratio": OWN_H100,
    }
