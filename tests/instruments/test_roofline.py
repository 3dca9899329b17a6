"""The roofline agrees with sums done by hand, its terms bind where they should, and nonsense is refused."""

from __future__ import annotations

import pytest

from snippets.instruments.datasheets import Peak, gpu_peak
from snippets.instruments.roofline import LAUNCH_SECONDS, binding, predict_seconds, ridge_flops_per_byte

PEAK = Peak(flops_per_second=200.0, bytes_per_second=10.0, source="by hand")


@pytest.mark.parametrize(
    ("flops", "moved", "launches", "seconds", "bound"),
    [
        (1000, 10, 0, 5.0, "operations"),
        (1000, 70, 0, 7.0, "bytes"),
        (1000, 70, 3, 9.0, "launches"),
        (0, 0, 1, 3.0, "launches"),
    ],
)
def test_the_slowest_term_is_the_time(flops: int, moved: int, launches: int, seconds: float, bound: str) -> None:
    asked = {"flops": flops, "bytes": moved, "peak": PEAK, "launches": launches, "launch_seconds": 3.0}
    assert predict_seconds(**asked) == seconds  # type: ignore[arg-type]
    assert binding(**asked) == bound  # type: ignore[arg-type]


def test_without_launches_it_is_the_datasheets_roofline() -> None:
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    for flops, moved in ((0, 1), (10**12, 10**9), (10**9, 10**9), (7, 5)):
        assert predict_seconds(flops=flops, bytes=moved, peak=peak, launches=0) == peak.seconds(flops, moved)


def test_work_on_the_ridge_takes_equal_times_for_operations_and_bytes() -> None:
    ridge = ridge_flops_per_byte(PEAK)
    assert ridge == 20
    assert predict_seconds(flops=ridge * 3, bytes=3, peak=PEAK, launches=0) == pytest.approx(3 / 10)
    assert binding(flops=ridge * 3 * 1.01, bytes=3, peak=PEAK, launches=0) == "operations"
    assert binding(flops=ridge * 3 * 0.99, bytes=3, peak=PEAK, launches=0) == "bytes"


def test_tiny_work_on_a_fast_device_is_all_launch() -> None:
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    assert predict_seconds(flops=2, bytes=2, peak=peak, launches=5) == 5 * LAUNCH_SECONDS > 0


@pytest.mark.parametrize("wrong", ["flops", "bytes", "launches", "launch_seconds"])
def test_a_negative_amount_is_refused(wrong: str) -> None:
    asked = {"flops": 1, "bytes": 1, "launches": 1, "launch_seconds": 1.0, wrong: -1}
    with pytest.raises(ValueError, match="not negative"):
        predict_seconds(peak=PEAK, **asked)  # type: ignore[arg-type]
