"""Roofline: the least time a device can take for given operations, bytes and launches. No torch.

One function serves two ends: the line that a measured curve is drawn against, and a prediction for a device that is
not at hand, from what its vendor declares (Williams, Waterman and Patterson, Roofline). It is a lower bound: no
kernel reaches it, and what a kernel does beside these operations and bytes it does not know.
"""

from __future__ import annotations

from snippets.instruments.datasheets import Peak

LAUNCH_SECONDS = 4e-6
"""An assumption, stated with each prediction: what it takes to queue one operation from Python on a GPU."""


def _terms(flops: float, moved_bytes: float, peak: Peak, launches: int, launch_seconds: float) -> dict[str, float]:
    if min(flops, moved_bytes, launches, launch_seconds) < 0:
        raise ValueError("operations, bytes and launches are not negative")
    return {
        "operations": flops / peak.flops_per_second,
        "bytes": moved_bytes / peak.bytes_per_second,
        "launches": launches * launch_seconds,
    }


def predict_seconds(
    *,
    flops: float,
    bytes: float,
    peak: Peak,
    launches: int = 1,
    launch_seconds: float = LAUNCH_SECONDS,
) -> float:
    """Least seconds of a queue of operations: the slowest of computing, moving and launching.

    Launches overlap with the work that is queued before them, so they bind only where they take longest. No
    launches are passed where they are of no interest, as on a CPU.

    Raises:
        ValueError: a negative amount.
    """
    return max(_terms(flops, bytes, peak, launches, launch_seconds).values())


def binding(
    *,
    flops: float,
    bytes: float,
    peak: Peak,
    launches: int = 1,
    launch_seconds: float = LAUNCH_SECONDS,
) -> str:
    """Which of "operations", "bytes" and "launches" that prediction is bound by."""
    terms = _terms(flops, bytes, peak, launches, launch_seconds)
    return max(terms, key=lambda name: terms[name])


def ridge_flops_per_byte(peak: Peak) -> float:
    """Operations for each byte above which the operations bind."""
    return peak.flops_per_second / peak.bytes_per_second
