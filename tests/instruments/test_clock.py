"""Clock: known sleeps are read, known neighbours are noticed, one timer waits for another."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from contextlib import contextmanager

import pytest
import torch

from snippets.instruments import clock
from snippets.instruments import device as devices
from snippets.instruments.clock import (
    BeyondPeakError,
    Interleaved,
    interleave,
    measure_seconds,
    refuse_beyond_peak,
)

pytestmark = pytest.mark.timing
needs_proc = pytest.mark.skipif(not clock._STAT.exists(), reason="this system has no /proc/stat to read load from")


@pytest.fixture(autouse=True)
def lock_of_these_tests(tmp_path, monkeypatch):
    """A temporary folder of their own: no other timer of this machine waits for them, nor they for it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    clock._lock.cache_clear()
    yield
    clock._lock.cache_clear()


def run_python(code, **options):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, **options)


@contextmanager
def busy_neighbour():
    """A program that is not ours, busy on one processor: a grandchild, as any other program would be."""
    started = run_python(
        """
        import subprocess, sys
        busy = "import time; end = time.time() + 20\\nwhile time.time() < end: pass"
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # or our pipe stays open
        print(subprocess.Popen([sys.executable, "-c", busy], **quiet).pid)
        """,
        check=True,
    )
    try:
        yield
    finally:
        os.kill(int(started.stdout), signal.SIGKILL)


# One thing.


def test_a_known_sleep_is_measured():
    timing = measure_seconds(lambda: time.sleep(0.02), device="cpu", min_run_seconds=0.1)
    assert 0.02 <= timing.median_seconds < 0.2
    assert 0 < timing.iqr_seconds < 0.1  # sleeps differ by a little, and a range needs several samples
    assert timing.runs >= clock.FEWEST_SAMPLES
    assert timing.threads == torch.get_num_threads()


def test_runs_count_every_call_of_a_fast_function():
    calls = []
    timing = measure_seconds(lambda: calls.append(1), device="cpu", min_run_seconds=0.02)
    assert 1000 < timing.runs <= len(calls)
    assert timing.median_seconds < 1e-4


def test_threads_are_those_of_the_process():
    threads = torch.get_num_threads()
    seen = []
    try:
        torch.set_num_threads(1)
        timing = measure_seconds(lambda: seen.append(torch.get_num_threads()), device="cpu", min_run_seconds=0.01)
    finally:
        torch.set_num_threads(threads)
    assert timing.threads == 1
    assert set(seen) == {1}


def test_the_device_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(devices, "synchronize", waited.append)
    measure_seconds(lambda: None, device="cpu", min_run_seconds=0.001)
    assert waited and set(waited) == {torch.device("cpu")}


def test_time_once_returns_the_result_and_its_seconds():
    calls = []

    def slow():
        calls.append(1)
        time.sleep(0.03)
        return "done"

    result, seconds = clock.time_once(slow, device="cpu")
    assert (result, len(calls)) == ("done", 1)
    assert 0.03 <= seconds < 0.3


# Several things.


def test_a_known_ratio_is_found():
    taken = interleave(
        {"long": lambda: time.sleep(0.009), "short": lambda: time.sleep(0.003)},
        device="cpu", rounds=9, blocks=3, pause_seconds=0,
    )  # fmt: skip
    assert 1.5 < taken.ratio("long", "short") < 4  # each sleep runs over by a little
    assert taken.ratio("short", "long") == pytest.approx(1 / taken.ratio("long", "short"))
    assert 0.009 <= taken.seconds("long") < 0.1
    assert (taken.rounds, taken.blocks, taken.threads) == (9, 3, torch.get_num_threads())


def test_functions_take_turns():
    order = []
    slow = 1.5 * clock.SHORTEST_SAMPLE_SECONDS

    def noting(name):
        return lambda: (order.append(name), time.sleep(slow))

    interleave(
        {name: noting(name) for name in "abc"},
        device="cpu", rounds=4, blocks=2, pause_seconds=0, foreign_load_limit=1,
    )  # fmt: skip
    assert "".join(order) == "aabbcc" + "abc" * 4  # warmed up, then in turn


def test_a_fast_function_is_repeated_until_a_sample_is_long_enough():
    calls = []
    taken = interleave(
        {"fast": lambda: calls.append(1)},
        device="cpu",
        rounds=6,
        blocks=2,
        pause_seconds=0,
        foreign_load_limit=1,
    )
    a_sample = (len(calls) - 2) / 6
    assert a_sample > 100
    assert taken.seconds("fast") < 1e-4  # of one call, not of one sample


def test_rounds_are_never_fewer_than_asked_for():
    taken = interleave({"a": lambda: None}, device="cpu", rounds=10, blocks=3, pause_seconds=0, foreign_load_limit=1)
    assert (taken.rounds, taken.blocks) == (12, 3)


def test_setup_runs_before_every_sample_and_is_not_timed():
    state = []

    def setup():
        state.clear()
        time.sleep(0.004)

    def once():
        assert not state, "called twice without a setup"
        state.append(1)

    taken = interleave(
        {"once": once, "free": lambda: None},
        setup={"once": setup}, device="cpu", rounds=4, blocks=2, pause_seconds=0, foreign_load_limit=1,
    )  # fmt: skip
    assert taken.seconds("once") < 0.003


def test_one_setup_may_serve_every_function():
    prepared = []
    interleave(
        {"a": lambda: None, "b": lambda: None},
        setup=lambda: prepared.append(1),
        device="cpu", rounds=4, blocks=2, pause_seconds=0, foreign_load_limit=1,
    )  # fmt: skip
    assert len(prepared) == 2 * (2 + 4)  # two to warm up, then one a round, for each


def test_blocks_are_separated_by_pauses(monkeypatch):
    pauses = []
    monkeypatch.setattr(clock.time, "sleep", pauses.append)
    interleave({"a": lambda: None}, device="cpu", rounds=6, blocks=3, pause_seconds=0.05, foreign_load_limit=1)
    assert pauses == [0.05] * 3


def test_no_garbage_is_collected_while_timing():
    seen = []
    interleave({"a": lambda: seen.append(gc.isenabled())}, device="cpu", rounds=2, blocks=1, pause_seconds=0)
    assert set(seen) == {False}
    assert gc.isenabled()


def test_a_device_with_its_own_queue_is_flushed_and_timed_call_by_call(monkeypatch):
    log = []
    monkeypatch.setattr(devices, "has_events", lambda device: True)
    monkeypatch.setattr(devices, "cache_flusher", lambda device: lambda: log.append("flush"))
    monkeypatch.setattr(
        devices, "elapsed_seconds", lambda fn, device, calls: (fn(), log.append(f"timed {calls}"), 0.5)[-1]
    )
    taken = interleave(
        {"a": lambda: log.append("a")},
        device="cpu",
        rounds=2,
        blocks=1,
        pause_seconds=0,
        foreign_load_limit=1,
    )
    assert log == ["flush", "a", "timed 1"] * 4
    assert taken.seconds("a") == 0.5
    log.clear()
    interleave({"a": lambda: None}, device="cpu", rounds=2, blocks=1, flush_cache=False, foreign_load_limit=1)
    assert "flush" not in log


def test_a_cpus_cache_is_flushed_on_demand(monkeypatch):
    flushed = []
    monkeypatch.setattr(devices, "cache_flusher", lambda device: lambda: flushed.append(1))
    interleave({"a": lambda: None}, device="cpu", rounds=2, blocks=1, pause_seconds=0, foreign_load_limit=1)
    assert flushed == []
    interleave(
        {"a": lambda: None},
        device="cpu",
        rounds=2,
        blocks=1,
        pause_seconds=0,
        flush_cache=True,
        foreign_load_limit=1,
    )
    assert len(flushed) == 4


def test_statistics_of_known_samples():
    taken = Interleaved(
        samples={"a": (2.0, 4.0, 6.0, 8.0, 40.0), "b": (1.0, 4.0, 2.0, 2.0, 10.0)},
        blocks=1, discarded_blocks=0, threads=2, foreign_load_share=None,
    )  # fmt: skip
    assert taken.ratios("a", "b") == [2, 1, 3, 4, 4]
    assert taken.ratio("a", "b") == 3  # of the rounds: the ratio of the medians is another number, 6 / 2
    assert (taken.seconds("a"), taken.seconds("b"), taken.iqr_seconds("a")) == (6, 2, 4)
    assert taken.log_spread("a", "b") == pytest.approx(0.58403, abs=1e-5)
    assert taken.rounds == 5


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"functions": {}}, "at least one function"),
        ({"rounds": 1}, "two rounds"),
        ({"blocks": 0}, "one block"),
        ({"setup": {"b": print}}, "setup of no function: b"),
    ],
)
def test_what_cannot_be_compared_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        interleave(**({"functions": {"a": lambda: None}} | wrong))


# Neighbours.


@needs_proc
def test_a_busy_neighbour_is_seen_and_its_blocks_discarded():
    with clock.timing_lock(), busy_neighbour():
        taken = interleave(
            {"a": lambda: time.sleep(0.01)}, device="cpu", rounds=15, blocks=3, pause_seconds=0.1,
            foreign_load_limit=0.5 / devices.cpu_count(),
        )  # fmt: skip
    # All six blocks were loaded: the quietest three are kept, and that is said.
    assert taken.discarded_blocks == 3
    assert taken.blocks == 3
    assert taken.foreign_load_share > 0.5 / devices.cpu_count()


def threads_used(monkeypatch, **options):
    """(threads of the process, threads inside a sample, what was taken)."""
    seen = []
    taken = interleave(
        {"a": lambda: seen.append(torch.get_num_threads())},
        device="cpu",
        rounds=3,
        blocks=1,
        pause_seconds=0,
        **options,
    )
    assert len(set(seen)) == 1
    return torch.get_num_threads(), seen[0], taken


@needs_proc
@pytest.mark.skipif(devices.cpu_count() < 2, reason="a neighbour can be left a core only where there are two")
def test_a_busy_core_is_left_to_the_neighbour_where_that_is_asked_for(monkeypatch):
    monkeypatch.setenv(clock.FREE_CORES, "1")
    before = torch.get_num_threads()
    with clock.timing_lock(), busy_neighbour():
        after, inside, taken = threads_used(monkeypatch)
    assert after == before
    assert inside == taken.threads == min(before, devices.cpu_count() - 1)


@pytest.mark.parametrize(
    ("asked", "share", "left"), [("1", 0.0, 0), ("1", 0.9 / 8, 1), ("1", 0.5, 4), ("1", 1.0, 7), ("", 0.5, 0)]
)
def test_threads_are_those_that_nobody_keeps_busy(asked, share, left, monkeypatch):
    monkeypatch.setenv(clock.FREE_CORES, asked)
    monkeypatch.setattr(devices, "cpu_count", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    played_load(monkeypatch, ([share] if asked else []) + [share] * 2)
    taken = interleave({"a": lambda: None}, device="cpu", rounds=2, blocks=1, pause_seconds=0)
    assert chosen == [8 - left, 8]
    # What is left to others is no reason to discard a block; as much load without the room for it is.
    roomy = share <= left / 8 + clock.FOREIGN_LOAD_LIMIT
    assert taken.discarded_blocks == (0 if roomy else 1)


@needs_proc
def test_our_own_work_is_no_foreign_load():
    a, out = torch.ones(500, 500), torch.empty(500, 500)
    watch, own = clock._ForeignLoad(), time.process_time()
    while time.process_time() - own < 0.2:
        torch.mm(a, a, out=out)
    own = time.process_time() - own
    busy = (clock._busy_ticks() - watch.busy) / os.sysconf("SC_CLK_TCK")
    wall = time.perf_counter() - watch.wall
    assert watch.share() * wall * devices.cpu_count() < busy - 0.8 * own  # others may be at work: they remain


def played_load(monkeypatch, shares):
    """Let the blocks have these foreign loads, in order."""

    class Load:
        known = True

        def share(self):
            self.last_share = shares.pop(0)
            return self.last_share

    monkeypatch.setattr(clock, "_ForeignLoad", Load)


def test_quiet_blocks_are_kept_and_loaded_ones_repeated(monkeypatch):
    shares = [0.02, 0.5, 0.03, 0.01, 0.9]
    played_load(monkeypatch, shares)
    taken = interleave({"a": lambda: None}, device="cpu", rounds=6, blocks=3, pause_seconds=0)
    assert (taken.blocks, taken.discarded_blocks, taken.foreign_load_share) == (3, 1, 0.03)
    assert shares == [0.9]  # not asked for: three were quiet


def test_where_all_is_loaded_the_quietest_blocks_are_kept(monkeypatch):
    shares = [0.9, 0.3, 0.8, 0.05, 0.4, 0.7]
    played_load(monkeypatch, shares)
    count = iter(range(100))
    monkeypatch.setattr(devices, "elapsed_seconds", lambda fn, device, calls: calls * float(next(count)) + 1)
    taken = interleave({"a": lambda: None}, device="cpu", rounds=3, blocks=3, pause_seconds=0)
    assert (taken.blocks, taken.discarded_blocks, taken.foreign_load_share) == (3, 3, 0.4)
    assert taken.samples["a"] == (6.0, 4.0, 7.0)  # of the fourth, the second and the fifth block


def proc_stat(tmp_path, monkeypatch, busy, idle):
    path = tmp_path / "stat"
    lines = [f"cpu{n} {busy} 0 0 {idle} 7 0 0 {busy} 0 0" for n in sorted(os.sched_getaffinity(0))]
    path.write_text("\n".join(["cpu 1 2 3 4 5 6 7 8 9 10", *lines, "cpu9999 500 0 0 0 0 0 0 0 0 0", "intr 5"]))
    monkeypatch.setattr(clock, "_STAT", path)


@needs_proc
def test_load_is_read_of_our_processors_alone_with_stolen_time(tmp_path, monkeypatch):
    proc_stat(tmp_path, monkeypatch, busy=100, idle=1000)
    assert clock._busy_ticks() == 2 * 100 * devices.cpu_count()


@needs_proc
def test_foreign_load_is_the_share_of_all_our_processors(tmp_path, monkeypatch):
    ticks, processors = os.sysconf("SC_CLK_TCK"), devices.cpu_count()
    now = {"wall": 0.0, "own": 0.0}
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(clock.time, "process_time", lambda: now["own"])
    proc_stat(tmp_path, monkeypatch, busy=0, idle=0)
    watch = clock._ForeignLoad()
    now.update(wall=10.0, own=2.0 * processors)
    proc_stat(tmp_path, monkeypatch, busy=3 * ticks // 2, idle=0)  # as much stolen: 3 s a processor
    assert watch.known
    assert watch.share() == pytest.approx(0.1, abs=0.003)


def test_without_proc_stat_nothing_is_known_and_nothing_discarded(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "_STAT", tmp_path / "absent")
    taken = interleave({"a": lambda: None}, device="cpu", rounds=4, blocks=2, pause_seconds=0)
    assert taken.foreign_load_share is None
    assert (taken.rounds, taken.discarded_blocks) == (4, 0)


# The lock.

WAITER = """
    import time
    from snippets.instruments import clock
    print("ready", flush=True)
    input()
    began = time.perf_counter()
    seconds = clock.measure_seconds(lambda: None, device="cpu", min_run_seconds=0.001)
    print(time.perf_counter() - began)
"""


def test_a_second_process_waits_at_the_lock_and_says_so_once():
    waiter = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WAITER)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert waiter.stdout.readline().strip() == "ready"
    with clock.timing_lock():
        waiter.stdin.write("go\n")
        waiter.stdin.flush()
        time.sleep(0.7)
        assert waiter.poll() is None
    out, err = waiter.communicate(timeout=20)
    assert float(out) > 0.5
    assert err.count("another process of this machine is timing") == 1


@pytest.mark.parametrize("timed", ["interleave", "measure_seconds", "time_once"])
def test_everything_that_times_holds_the_lock(timed):
    def is_held():
        probe = """
            import sys
            from filelock import FileLock, Timeout
            try:
                FileLock(sys.argv[1]).acquire(timeout=0)
            except Timeout:
                print("held")
        """
        arguments = [sys.executable, "-c", textwrap.dedent(probe), clock._lock().lock_file]
        return subprocess.run(arguments, capture_output=True, text=True).stdout.strip() == "held"

    seen = []

    def fn():
        if len(seen) < 1:
            seen.append(is_held())

    with clock.timing_lock():
        {
            "interleave": lambda: interleave({"a": fn}, device="cpu", rounds=2, blocks=1, foreign_load_limit=1),
            "measure_seconds": lambda: measure_seconds(fn, device="cpu", min_run_seconds=0.001),
            "time_once": lambda: clock.time_once(fn, device="cpu"),
        }[timed]()
        assert is_held()  # re-entrant: what timed inside did not let go of ours
    assert seen == [True]
    assert not is_held()


def test_the_lock_is_let_go_when_what_is_timed_fails():
    with pytest.raises(ZeroDivisionError):
        interleave({"a": lambda: 1 / 0}, device="cpu")
    assert not clock._lock().is_locked
    assert gc.isenabled()


# The allocator.


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator alone has these thresholds")
def test_a_fixed_allocator_faults_in_no_temporary_twice():
    done = run_python(
        """
        import resource, torch
        from snippets.instruments import clock

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(4):
                torch.ones(9_000_000)  # beyond the threshold that glibc moves up to by itself
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        torch.ones(9_000_000)
        unfixed, applied = faults(), clock.fix_allocator()
        faults()
        print(unfixed, applied, faults())
        """,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
    )
    unfixed, applied, fixed = done.stdout.split()
    if applied == "False":
        pytest.skip("this C library is not glibc")
    assert int(unfixed) > 4 * 8
    assert int(fixed) < int(unfixed) / 4


def test_an_allocator_without_thresholds_is_left_alone(monkeypatch):
    def missing(name):
        raise OSError("no such library")

    monkeypatch.setattr(clock.ctypes, "CDLL", missing)
    assert clock.fix_allocator() is False


# The peak.


def test_a_speed_beyond_the_declared_peak_is_refused(monkeypatch):
    peak = devices.Peak(flops_per_second=100.0, bytes_per_second=10.0, source="made up")
    monkeypatch.setattr(devices, "declared_peak", lambda device, dtype: peak)
    with pytest.raises(BeyondPeakError, match=r"200 FLOP/s is beyond the declared 100 FLOP/s \(made up\)"):
        refuse_beyond_peak(2, flops=400, bytes=1, device="cpu", dtype=torch.float32)
    with pytest.raises(BeyondPeakError, match="20 B/s is beyond the declared 10 B/s"):
        refuse_beyond_peak(2, flops=1, bytes=40, device="cpu", dtype=torch.float32)
    refuse_beyond_peak(2, flops=200, bytes=20, device="cpu", dtype=torch.float32)


def test_an_honest_product_passes_and_a_missed_one_is_refused():
    size = 512
    a, out = torch.ones(size, size), torch.empty(size, size)
    work = {"flops": 2 * size**3, "bytes": 3 * 4 * size**2, "device": "cpu", "dtype": torch.float32}
    honest = measure_seconds(lambda: torch.mm(a, a, out=out), device="cpu", min_run_seconds=0.05)
    refuse_beyond_peak(honest.median_seconds, **work)
    # A clock that stopped too early:
    missed = measure_seconds(lambda: None, device="cpu", min_run_seconds=0.01)
    with pytest.raises(BeyondPeakError):
        refuse_beyond_peak(missed.median_seconds, **work)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_no_time_at_all_is_refused(seconds):
    with pytest.raises(BeyondPeakError, match="no duration"):
        refuse_beyond_peak(seconds, flops=1, device="cpu", dtype=torch.float32)


def test_a_device_without_a_declared_peak_refuses_nothing(monkeypatch):
    asked = []
    monkeypatch.setattr(devices, "declared_peak", lambda device, dtype: asked.append(dtype))
    refuse_beyond_peak(1e-12, flops=1e30, device="cpu", dtype=torch.int8)
    assert asked == [torch.int8]
