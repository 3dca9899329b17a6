"""What is not awaited, and what a cache hides, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import TARGETS
from snippets.predictions.throughput.fair_benchmark import predict, unawaited_ratio
from snippets.throughput.fair_benchmark import predicted_unawaited_ratio

H100 = TARGETS["H100 SXM"]
ROUND = replace(H100, flops_per_second={"float32": 1e12}, bytes_per_second=1e9, launch_seconds=1e-6)


def test_an_h100_is_told_as_the_page_tells_it() -> None:
    assert unawaited_ratio(H100, 4096, "bfloat16") == pytest.approx(predicted_unawaited_ratio(4096))


def test_a_launch_in_place_of_a_product_by_hand() -> None:
    found = predict(replace(ROUND, bytes_per_second=1e30))
    assert found["unawaited_ratio"] == pytest.approx(2 * 1024**3 / 1e12 / 1e-6)
    assert found["beyond_peak_ratio"] == pytest.approx(found["unawaited_ratio"])  # done at the peak


def test_a_cache_hides_what_memory_takes() -> None:
    cold_bytes = 4 * (384 * 384 + 2 * 384)
    assert predict(ROUND)["cold_ratio"] == pytest.approx(cold_bytes / 1e9 / 1e-6)
    assert predict(replace(ROUND, launch_seconds=1))["cold_ratio"] == 1


def test_a_processor_without_a_queue_has_no_prediction_for_one() -> None:
    found = predict(replace(ROUND, capabilities=frozenset({"cpu"})))
    assert isinstance(found["unawaited_ratio"], str) and isinstance(found["beyond_peak_ratio"], str)
