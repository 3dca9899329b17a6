"""The simulated client against a queue by hand, what is prepared before each sample, and each trap shown wrong."""

from __future__ import annotations

import subprocess

import pytest
import torch

from snippets.instruments import clock
from snippets.instruments.clock import BeyondPeakError
from snippets.instruments.device import pick
from snippets.throughput import fair_benchmark as bench
from snippets.throughput.fair_benchmark import ERRORS, Scale
from tests.small import controlled, failing_small, measured_small

CPU = pick("cpu")
TINY = Scale(96, 2**20, 3, 3)


def waits(requests: int, service: int, stall: int) -> list[int]:
    """Latencies of users who come every other service time, request by request."""
    free, found = 0, []
    for n in range(requests):
        arrived = 2 * service * n
        free = max(free, arrived) + service + (stall if n == requests // 10 else 0)
        found.append(free - arrived)
    return found


@pytest.mark.parametrize(("requests", "service", "stall"), [(10, 3, 7), (100, 2, 50), (1000, 10, 1000), (30, 5, 0)])
def test_omission_is_that_of_a_queue_by_hand(requests: int, service: int, stall: int) -> None:
    values, found = bench.omission_values(requests, service, stall), waits(requests, service, stall)
    assert values["arriving_p99_ticks_count"] == bench.p99(found)
    assert values["slow_arriving_count"] == sum(ticks > 2 * service for ticks in found)
    assert values["slow_closed_count"] == (stall > service)
    assert values["closed_p99_ticks_count"] == (service if requests > 99 or not stall else service + stall)


@pytest.mark.parametrize(("samples", "wanted"), [([5], 5), (list(range(1, 101)), 99), (list(range(200, 0, -1)), 198)])
def test_p99_is_the_nearest_rank(samples: list[float], wanted: int) -> None:
    assert bench.p99(samples) == wanted


def test_trap_the_waiting_client_sees_one_slow_answer() -> None:
    values = bench.omission_values()
    assert values["slow_closed_count"] == 1 < values["slow_arriving_count"]
    assert values["closed_p99_ticks_count"] == values["service_ticks_count"]


def test_trap_an_unawaited_product_is_beyond_the_peak() -> None:
    x = torch.randn(512, 512)
    with pytest.raises(BeyondPeakError):
        clock.refuse_beyond_peak(1e-9, flops=2 * 512**3, device=CPU, dtype=x.dtype)
    values = bench.wait_values(Scale(512, rounds=5), CPU)
    assert values["unawaited_ratio"] > 2
    assert bench.wait_values(Scale(512, rounds=5), CPU, waits=True)["beyond_peak_ratio"] <= 1


def test_a_prediction_is_a_floor_over_a_launch() -> None:
    assert bench.predicted_unawaited_ratio() == pytest.approx(2 * 4096**3 / 989.4e12 / 4e-6)
    assert bench.predicted_unawaited_ratio(2) == 1  # too small: the launch is all


def test_neighbours_end_with_their_block() -> None:
    seen: list[subprocess.Popen[bytes]] = []
    real = subprocess.Popen

    def noting(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        seen.append(real(*args, **kwargs))  # type: ignore[call-overload]
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.subprocess, "Popen", noting)
        with bench.neighbours(1):
            assert seen and all(process.poll() is None for process in seen)
        with bench.neighbours(0):
            assert len(seen) == bench.cpu_count()
    assert all(process.poll() is not None for process in seen)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with bench.one_thread():
        assert torch.get_num_threads() == 1
    bench.thread_values(TINY)
    assert torch.get_num_threads() == before


def test_every_error_has_its_size() -> None:
    columns = bench.error_columns({name: float(n) for n, name in enumerate(ERRORS.values())})
    assert columns["error"] == list(ERRORS) and columns["off_ratio"] == [float(n) for n in range(len(ERRORS))]


@pytest.mark.timing
def test_in_turn_an_equal_candidate_stays_equal() -> None:
    values, without = measured_small("throughput/fair_benchmark"), controlled("throughput/fair_benchmark")
    assert 0.5 < values["turns_ratio"] < 2 and values["sequential_ratio"] > values["turns_ratio"]
    assert without["closed_p99_ticks_count"] == values["closed_p99_ticks_count"]


@pytest.mark.timing
def test_exact_claims_hold_at_small_scale() -> None:
    assert failing_small("throughput/fair_benchmark") == []
