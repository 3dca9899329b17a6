"""A queue before one server that runs whole batches, simulated: a request's latency is its wait and its service."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Callable, Sequence
from math import inf


# --8<-- [start:queue]
def latencies(
    arrivals: Sequence[float], batch_seconds: Callable[[int], float], most: int = 1, window_seconds: float = 0
) -> list[float]:
    """Seconds from each request's arrival to its answer, at one server that runs whole batches.

    A free server takes those who wait, oldest first and at most `most`, as soon as there are so many or the oldest
    has waited `window_seconds`. Nobody joins or leaves a running batch. `arrivals` ascend.
    """
    taken: list[float] = []
    free = 0.0
    while len(taken) < len(arrivals):
        first = len(taken)
        full = arrivals[first + most - 1] if first + most <= len(arrivals) else inf
        start = max(free, min(full, arrivals[first] + window_seconds))
        batch = arrivals[first : min(first + most, bisect_right(arrivals, start))]
        free = start + batch_seconds(len(batch))
        taken += [free - arrival for arrival in batch]
    return taken


def poisson(per_second: float, count: int, seed: int) -> list[float]:
    """Arrival times of a seeded Poisson process."""
    draw, times = random.Random(seed), [0.0]
    while len(times) < count:
        times.append(times[-1] + draw.expovariate(per_second))
    return times


# --8<-- [end:queue]
