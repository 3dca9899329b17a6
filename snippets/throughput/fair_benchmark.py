"""How do you benchmark honestly?

Claim: the usual errors are not small. Each is made here on purpose, beside the same measurement done right.

Run: python -m snippets.throughput.fair_benchmark
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import ceil

import torch
import torch.nn.functional as F

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import (
    cache_flusher,
    cpu_count,
    declared_peak,
    elapsed_seconds,
    has_events,
    pick,
    synchronize,
)
from snippets.instruments.roofline import LAUNCH_SECONDS, predict_seconds
from snippets.instruments.threads import one_thread
from snippets.models.queueing import latencies

# isort: split
from measured.values import report

Call = Callable[[], object]


@dataclass(frozen=True)
class Scale:
    """How much is measured: width of the products, bytes of a large result, first calls tried, rounds of timing."""

    width: int = 1024
    result_bytes: int = 2**26
    first_calls: int = 9
    rounds: int = 9


SMALL = Scale(768, 2**25, 7, 7)


# --8<-- [start:first]
def first_call_values(scale: Scale, device: torch.device, warm_up: bool = False) -> dict[str, float]:
    """Seconds of a shape's first product over those of its next: a library picks, makes and keeps a kernel for each.

    Every pair has a shape of its own, or there would be one first call in a process.
    """
    ratios, firsts = [], []
    weight = torch.ones(256, 256, device=device, dtype=torch.bfloat16)
    with clock.timing_lock(), torch.inference_mode(), one_thread():
        F.linear(weight, weight)
        for rows in range(3, 3 + 2 * scale.first_calls, 2):
            call = partial(F.linear, torch.ones(rows, 256, device=device, dtype=torch.bfloat16), weight)
            if warm_up:
                call()
            first = elapsed_seconds(call, device)
            firsts.append(first)
            ratios.append(first / statistics.median(elapsed_seconds(call, device) for _ in range(5)))
    return {"first_call_ratio": statistics.median(ratios), "first_call_seconds": statistics.median(firsts)}


# --8<-- [end:first]


# --8<-- [start:cache]
def cache_values(scale: Scale, device: torch.device, flushed: bool = True) -> dict[str, float]:
    """A row times a matrix that some cache holds: again and again, and as a model meets it, after everything else."""
    width = 384
    weight, x = (torch.randn(n, width, device=device) for n in (width, 1))
    again = partial(F.linear, x, weight)
    before: dict[str, Call] = {"hot": again, "cold": cache_flusher(device) if flushed else again}
    with torch.inference_mode(), one_thread():
        calls = dict.fromkeys(before, again)
        taken = clock.interleave(calls, device=device, rounds=scale.rounds, setup=before, flush_cache=False)
    return {"cold_ratio": taken.ratio("cold", "hot"), "hot_bytes": weight.nbytes}


# --8<-- [end:cache]


# --8<-- [start:allocator]
def keep_large_blocks(kept: bool) -> bool:
    """Tell glibc to keep large blocks, or to map each afresh as it does by default; whether there is such a switch."""
    if kept:
        return clock.fix_allocator()
    try:
        library = ctypes.CDLL(None)
        mallopt, trim = library.mallopt, library.malloc_trim
    except (AttributeError, OSError, TypeError):
        return False
    trim_threshold, mmap_threshold = -1, -3  # names of <malloc.h>
    applied = all(mallopt(name, 2**17) == 1 for name in (trim_threshold, mmap_threshold))
    trim(0)  # what was kept goes back too, or it would be used again
    return applied


def allocator_values(scale: Scale, mapped: bool = True) -> dict[str, float]:
    """The same large sum into memory that is mapped and faulted in afresh, and into memory that was used before."""
    x = torch.ones(scale.result_bytes // 4)
    add = partial(torch.add, x, x)

    def prepared(kept: bool) -> None:
        keep_large_blocks(kept)
        if kept:
            add()

    before = {"fresh": partial(prepared, not mapped), "kept": partial(prepared, True)}
    try:
        with torch.inference_mode(), one_thread():
            taken = clock.interleave(dict.fromkeys(before, add), device="cpu", rounds=scale.rounds, setup=before)
    finally:
        keep_large_blocks(True)
    return {"fresh_ratio": taken.ratio("fresh", "kept"), "result_bytes": x.nbytes}


# --8<-- [end:allocator]


# --8<-- [start:wait]
def wait_values(scale: Scale, device: torch.device, waits: bool = False) -> dict[str, float]:
    """A product that runs in a queue: seconds until it is done, over seconds until the call came back.

    The queue is the device's own, or a thread's where a processor has none. `beyond_peak_ratio` is the speed that the
    second time would mean, over the device's declared peak.
    """
    x, done, back = torch.randn(scale.width, scale.width, device=device), [], []
    with ThreadPoolExecutor(1) as pool, clock.timing_lock(), torch.inference_mode(), one_thread():
        pool.submit(torch.set_num_threads, 1).result()
        for _ in range(scale.rounds + 1):
            began = time.perf_counter()
            running = None if has_events(device) else pool.submit(torch.matmul, x, x)
            if running is None:
                torch.matmul(x, x)
            returned = time.perf_counter()
            if running:
                running.result()
            synchronize(device)
            done.append(time.perf_counter() - began)
            back.append(done[-1] if waits else returned - began)
    done, back = done[1:], back[1:]  # the first one warms up
    peak = declared_peak(device, torch.float32)
    speed = 2 * scale.width**3 / statistics.median(back)
    return {
        "unawaited_ratio": statistics.median(a / b for a, b in zip(done, back, strict=True)),
        "beyond_peak_ratio": speed / peak.flops_per_second if peak else 0.0,
    }


# --8<-- [end:wait]


def predicted_unawaited_ratio(width: int = 4096) -> float:
    """The same on an H100, from its declared peak: a BF16 product's least time over an assumed launch."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    moved = 3 * 2 * width**2
    return predict_seconds(flops=2 * width**3, bytes=moved, peak=peak, launches=1) / LAUNCH_SECONDS


@contextmanager
def neighbours(each: int) -> Iterator[None]:
    """So many other programs on each core that never rest."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(each * cpu_count())]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
        for process in busy:
            process.wait()


# --8<-- [start:turns]
def turn_values(scale: Scale, each: int = 2) -> dict[str, float]:
    """The *same* product as two candidates, while a neighbour comes: one after the other, and in turn."""
    x = torch.randn(scale.width, scale.width)
    product = partial(torch.matmul, x, x)
    timed = partial(clock.interleave, device="cpu", rounds=scale.rounds, blocks=1, foreign_load_limit=1)
    with torch.inference_mode(), one_thread():
        first = timed({"A": product}).seconds("A")
        with neighbours(each):
            second = timed({"B": product}).seconds("B")
            turns = timed({"A": product, "B": product})
    return {"sequential_ratio": second / first, "turns_ratio": turns.ratio("B", "A")}


# --8<-- [end:turns]


def thread_values(scale: Scale) -> dict[str, float]:
    """The same call with one thread and with a thread for every core."""
    x, before = torch.randn(scale.width, scale.width), torch.get_num_threads()

    def on(threads: int) -> Call:
        def call() -> None:
            torch.set_num_threads(threads)
            torch.matmul(x, x)

        return call

    with torch.inference_mode():
        taken = clock.interleave({"one": on(1), "all": on(cpu_count())}, device="cpu", rounds=scale.rounds)
    torch.set_num_threads(before)
    return {"threads_ratio": taken.ratio("one", "all"), "threads_count": cpu_count()}


# --8<-- [start:omission]
def p99(ticks: Sequence[float]) -> int:
    """Nearest rank, in whole ticks."""
    return round(sorted(ticks)[ceil(0.99 * len(ticks)) - 1])


def omission_values(requests: int = 1000, service: int = 10, stall: int = 1000) -> dict[str, int]:
    """A server that hangs once. One client waits for each answer; others come every other service, as users do."""

    def served() -> Callable[[int], float]:
        number = count()
        return lambda batch: service + (stall if next(number) == requests // 10 else 0)

    one_by_one = served()
    closed = [one_by_one(1) for _ in range(requests)]  # the next one is sent when this one is answered
    arriving = latencies([2.0 * service * n for n in range(requests)], served())
    return {
        "requests_count": requests,
        "service_ticks_count": service,
        "stall_ticks_count": stall,
        "closed_p99_ticks_count": p99(closed),
        "arriving_p99_ticks_count": p99(arriving),
        "slow_closed_count": sum(ticks > 2 * service for ticks in closed),
        "slow_arriving_count": sum(ticks > 2 * service for ticks in arriving),
    }


# --8<-- [end:omission]

ERRORS = {  # what is left out of an honest measurement -> the value that says how far off it is
    "first call counted": "first_call_ratio",
    "cache hot, model's is cold": "cold_ratio",
    "memory mapped afresh": "fresh_ratio",
    "not awaited": "unawaited_ratio",
    "one after the other": "sequential_ratio",
    "in turn, same neighbour": "turns_ratio",
    "threads unsaid": "threads_ratio",
}


def error_columns(values: Mapping[str, float]) -> dict[str, list]:
    """A chart's columns: the error, and by what factor its number is off."""
    return {"error": list(ERRORS), "off_ratio": [values[name] for name in ERRORS.values()]}


def _measured(scale: Scale, device: torch.device, honest: bool) -> dict[str, float]:
    return {
        **first_call_values(scale, device, warm_up=honest),
        **cache_values(scale, device, flushed=not honest),
        **allocator_values(scale, mapped=not honest),
        **wait_values(scale, device, waits=honest),
        **turn_values(scale, each=0 if honest else 2),
        **thread_values(scale),
        **omission_values(),
        "h100_unawaited_ratio": predicted_unawaited_ratio(),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page: each error made on purpose. `dtype` is the page's own."""
    return _measured(SMALL if small else Scale(), pick(device), honest=False)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same without the errors: what is compared is then done right on either side."""
    return _measured(SMALL if small else Scale(), pick(device), honest=True)


if __name__ == "__main__":
    report("throughput/fair_benchmark", measure())
