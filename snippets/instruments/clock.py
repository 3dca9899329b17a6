"""Clock: how long a thing takes, and how many times as long as another, so that the number can be believed.

Two things are compared in one run, in turn (A B A B ...), by the median of the rounds' ratios: absolute
rates drift between windows, ratios within a round hardly do. One timer runs on a machine at a time; blocks
in which other programs kept the processors busy are measured again. Seconds everywhere; the device is
waited for; the threads are stated.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout
from torch.utils import benchmark

from snippets.instruments import device as devices

_T = TypeVar("_T")
Call = Callable[[], object]

SHORTEST_SAMPLE_SECONDS = 1e-3
"""A sample of the host's clock lasts at least this long; faster calls are repeated inside it."""

LOCK_HELD = "MEASURED_TIMING_LOCK_HELD"
"""Name of the environment variable by which a process hands its hold on the timing lock to a child."""

FREE_CORES = "MEASURED_TIME_ON_FREE_CORES"
"""Name of the environment variable that makes comparisons leave a core to each other program that keeps one busy.

On fewer threads a ratio is that of a smaller machine; on a core shared with another program it is none at all, since
threads wait for each other and one side of a comparison does so more often. For running claims again, never for
recording: the seconds are those of fewer threads.
"""

FEWEST_SAMPLES = 3
"""Samples that a median and a range of one function rest on, at the least."""

FOREIGN_LOAD_LIMIT = 0.1
"""Share of the processors that other programs may take in a block before it is discarded."""


class BeyondPeakError(ValueError):
    """A measured speed exceeds what the device is declared to do: the measurement is broken."""


# One timer at a time.


@functools.cache
def _lock() -> FileLock:
    """The lock that every process of this machine shares; threads of one process share one hold on it."""
    path = Path(tempfile.gettempdir()) / "measured-answers-timing.lock"
    return FileLock(path, thread_local=False, mode=0o666)


@contextmanager
def timing_lock() -> Iterator[None]:
    """Hold the machine's timing lock; re-entrant in a process. A second process waits, and says so once.

    A process that holds it and waits for a child that times hands it on: it sets `LOCK_HELD` in the child's
    environment, and the child takes no lock of its own.
    """
    if os.environ.get(LOCK_HELD):
        yield
        return
    lock = _lock()
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print("Waiting: another process of this machine is timing.", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def fix_allocator() -> bool:
    """Let glibc keep large blocks, so that a temporary is not mapped and faulted in afresh on every call.

    Lasts as long as the process. Returns whether it applied: False where the C library is another.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    mallopt.argtypes, mallopt.restype = [ctypes.c_int, ctypes.c_int], ctypes.c_int
    trim_threshold, mmap_threshold = -1, -3  # names of <malloc.h>
    return all(mallopt(name, 2**31 - 1) == 1 for name in (trim_threshold, mmap_threshold))


# One thing.


@dataclass(frozen=True)
class Timing:
    """Median and interquartile range of one call's seconds, over `runs` calls with `threads` threads."""

    median_seconds: float
    iqr_seconds: float
    runs: int
    threads: int


def _iqr(samples: Sequence[float]) -> float:
    low, _, high = statistics.quantiles(samples, n=4, method="inclusive")
    return high - low


def measure_seconds(fn: Call, *, device: torch.device | str | None = None, min_run_seconds: float = 0.2) -> Timing:
    """Seconds of one call of `fn` by torch.utils.benchmark.Timer: warmed up, caches as it leaves them."""
    target = devices.pick(device)

    def clock() -> float:
        devices.synchronize(target)
        return time.perf_counter()

    threads = torch.get_num_threads()
    timer = benchmark.Timer("fn()", globals={"fn": fn}, timer=clock, num_threads=threads)
    samples: list[float] = []
    runs = 0
    with timing_lock():
        fn()
        while len(samples) < FEWEST_SAMPLES:  # the timer may take a single block of many calls
            taken = timer.blocked_autorange(min_run_time=min_run_seconds)
            samples += taken.times
            runs += taken.number_per_run * len(taken.times)
    return Timing(statistics.median(samples), _iqr(samples), runs, threads)


def time_once(fn: Callable[[], _T], *, device: torch.device | str | None = None) -> tuple[_T, float]:
    """(result, seconds) of a single call, cold as it comes: for a whole run, never for a comparison."""
    target = devices.pick(device)
    kept: list[_T] = []
    with timing_lock():
        seconds = devices.elapsed_seconds(lambda: kept.append(fn()), target)
    return kept[0], seconds


# Several things, against each other.


@dataclass(frozen=True)
class Interleaved:
    """Seconds of one call of each function in every round; a round ran each of them in turn."""

    samples: Mapping[str, tuple[float, ...]]
    blocks: int
    discarded_blocks: int
    threads: int
    foreign_load_share: float | None
    """Share of the processors other programs took in the busiest block kept; None where nothing tells."""

    @property
    def rounds(self) -> int:
        """Rounds kept."""
        return len(next(iter(self.samples.values())))

    def seconds(self, name: str) -> float:
        """Median seconds of one call."""
        return statistics.median(self.samples[name])

    def iqr_seconds(self, name: str) -> float:
        """Interquartile range of the seconds of one call."""
        return _iqr(self.samples[name])

    def ratios(self, slower: str, faster: str) -> list[float]:
        """Seconds of the one over seconds of the other, round by round."""
        return [a / b for a, b in zip(self.samples[slower], self.samples[faster], strict=True)]

    def ratio(self, slower: str, faster: str) -> float:
        """Median over the rounds of the one's seconds over the other's: how many times longer it took."""
        return statistics.median(self.ratios(slower, faster))

    def log_spread(self, slower: str, faster: str) -> float:
        """Standard deviation of the logarithm of the rounds' ratios: while small, a relative spread."""
        return statistics.stdev(math.log(ratio) for ratio in self.ratios(slower, faster))


def interleave(
    functions: Mapping[str, Call],
    *,
    device: torch.device | str | None = None,
    rounds: int = 21,
    blocks: int = 3,
    pause_seconds: float = 0.05,
    setup: Call | Mapping[str, Call] | None = None,
    flush_cache: bool | None = None,
    foreign_load_limit: float = FOREIGN_LOAD_LIMIT,
) -> Interleaved:
    """Time the functions in turn, `rounds` times in `blocks` blocks with a pause before each.

    A sample is one call where the device times its own queue, where a cache is flushed or a `setup` runs
    before it (untimed; one for all, or one by name); otherwise as many calls as a sample needs to last
    `SHORTEST_SAMPLE_SECONDS`. Caches are flushed before each sample on such a device unless `flush_cache`
    says otherwise, and stay warm on a CPU. A block with more foreign load than the limit is repeated; after
    as many repeats as blocks the quietest ones are kept. Where `FREE_CORES` is set, cores that others keep busy
    from the start are left to them, and are no foreign load.

    Raises:
        ValueError: no function, fewer than two rounds, no block, or a setup of an unknown function.
    """
    if not functions or rounds < 2 or blocks < 1:
        raise ValueError("name at least one function, two rounds and one block")
    target = devices.pick(device)
    own_queue = devices.has_events(target)
    flush = devices.cache_flusher(target) if (own_queue if flush_cache is None else flush_cache) else None
    prepare = setup if isinstance(setup, Mapping) else dict.fromkeys(functions, setup)
    if unknown := set(prepare) - set(functions):
        raise ValueError(f"setup of no function: {', '.join(sorted(unknown))}")

    def sample(name: str, calls: int) -> float:
        if before := prepare.get(name):
            before()
        if flush:
            flush()
        return devices.elapsed_seconds(functions[name], target, calls) / calls

    with timing_lock(), _no_garbage_collection(), _free_threads(target) as left_share:
        calls = {}
        for name in functions:
            sample(name, 1)  # warm-up: compiles, allocates, faults pages in
            once = sample(name, 1)
            single = own_queue or flush or prepare.get(name)
            calls[name] = 1 if single else max(1, math.ceil(SHORTEST_SAMPLE_SECONDS / max(once, 1e-9)))
        rounds_a_block = math.ceil(rounds / blocks)
        kept: list[tuple[float, list[dict[str, float]]]] = []
        loaded: list[tuple[float, list[dict[str, float]]]] = []
        while len(kept) < blocks and len(kept) + len(loaded) < 2 * blocks:
            watch = _ForeignLoad()
            time.sleep(pause_seconds)
            block = [{name: sample(name, n) for name, n in calls.items()} for _ in range(rounds_a_block)]
            (loaded if watch.share() > foreign_load_limit + left_share else kept).append((watch.last_share, block))
        threads = torch.get_num_threads()
    tried = len(kept) + len(loaded)
    kept += sorted(loaded, key=lambda one: one[0])[: blocks - len(kept)]
    taken = [taken for _, block in kept for taken in block]
    return Interleaved(
        samples={name: tuple(one[name] for one in taken) for name in functions},
        blocks=len(kept),
        discarded_blocks=tried - len(kept),
        threads=threads,
        foreign_load_share=max(share for share, _ in kept) if watch.known else None,
    )


_LOOK_SECONDS = 0.1  # ten of the kernel's ticks


@contextmanager
def _free_threads(device: torch.device) -> Iterator[float]:
    """Compute on as many threads as there are cores that nobody keeps busy, where `FREE_CORES` asks for it.

    Yields the share of the processors that is left to others.
    """
    before, cores, left = torch.get_num_threads(), devices.cpu_count(), 0
    if os.environ.get(FREE_CORES) and not devices.has_events(device):
        watch = _ForeignLoad()
        time.sleep(_LOOK_SECONDS)
        left = min(round(watch.share() * cores), cores - 1)
    torch.set_num_threads(min(before, cores - left))
    try:
        yield left / cores
    finally:
        torch.set_num_threads(before)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


_STAT = Path("/proc/stat")
_TICKS_UNSEEN = 2  # the kernel counts ticks: a short block may see this many that belong to nobody


def _busy_ticks() -> int | None:
    """Ticks since start-up in which this process's processors were not idle; None without /proc/stat.

    Time stolen by a hypervisor's other guests counts as busy: it is foreign too.
    """
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    busy = 0
    for line in lines:
        name, *counts = line.split()
        if name in allowed:  # after these eight come guests, who stand in user already
            user, nice, system, _idle, _wait, irq, softirq, steal = (int(count) for count in counts[:8])
            busy += user + nice + system + irq + softirq + steal
    return busy


class _ForeignLoad:
    """What other programs take of this process's processors, from now on."""

    def __init__(self) -> None:
        self.busy = _busy_ticks()
        self.known = self.busy is not None
        self.own, self.wall = time.process_time(), time.perf_counter()
        self.last_share = 0.0

    def share(self) -> float:
        """Share of the processors' time since then; none where nothing tells."""
        now = _busy_ticks()
        if self.busy is None or now is None:
            return self.last_share
        own, wall = time.process_time() - self.own, time.perf_counter() - self.wall
        foreign = (now - self.busy - _TICKS_UNSEEN) / os.sysconf("SC_CLK_TCK") - own
        self.last_share = min(1.0, max(0.0, foreign / (wall * devices.cpu_count())))
        return self.last_share


def refuse_beyond_peak(
    seconds: float,
    *,
    flops: float = 0,
    bytes: float = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype,
) -> None:
    """Refuse a measurement that is faster than the device is declared to be; without a declaration, none is.

    Raises:
        BeyondPeakError: so much work or traffic in so little time is beyond the peak, or the time is no time.
    """
    if not seconds > 0:
        raise BeyondPeakError(f"{seconds} s is no duration")
    peak = devices.declared_peak(devices.pick(device), dtype)
    if peak is None:
        return
    limits = ((flops, peak.flops_per_second, "FLOP/s"), (bytes, peak.bytes_per_second, "B/s"))
    for amount, limit, unit in limits:
        if amount / seconds > limit:
            achieved = f"{amount / seconds:.4g} {unit}"
            raise BeyondPeakError(f"{achieved} is beyond the declared {limit:.4g} {unit} ({peak.source})")
