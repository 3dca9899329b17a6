"""The page's method on a device that is nothing but a roofline, and what a launch does to it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import TARGETS
from snippets.predictions.throughput.hardware import predict
from snippets.throughput.hardware import SMOLLM2_135M

H100 = TARGETS["H100 SXM"]
PROCESSOR = replace(H100, capabilities=frozenset({"cpu", "fast-bf16"}))


def test_without_launches_the_method_is_nearly_right() -> None:
    """It takes an activation's bytes for the weights' at one row: less than a thousandth."""
    found = predict(replace(H100, launch_seconds=0))
    assert found["worst_ratio"] == pytest.approx(1, abs=2e-3)
    rows_that_operations_need = 989.4e12 / 3.35e12
    assert float(found["operations_worst_ratio"]) > rows_that_operations_need / 3


def test_launches_are_what_the_method_misses() -> None:
    found = predict(replace(H100, launch_seconds=1e-3))
    assert float(found["worst_ratio"]) > float(predict(H100)["worst_ratio"])


def test_newer_instructions_gain_their_rate_with_many_rows_and_nothing_with_one() -> None:
    found = predict(replace(PROCESSOR, bytes_per_second=1e30, launch_seconds=0))
    assert found["instructions_many_ratio"] == pytest.approx(989.4 / 66.9)
    reads = predict(replace(PROCESSOR, flops_per_second=dict.fromkeys(H100.flops_per_second, 1e30), launch_seconds=0))
    assert reads["instructions_one_ratio"] == pytest.approx(1)


def test_a_tiny_addition_is_its_launch() -> None:
    found = predict(PROCESSOR)
    assert found["tiny_seconds"] == PROCESSOR.launch_seconds
    bytes_moved = 3 * 2 * SMOLLM2_135M.hidden
    assert found["tiny_ratio"] == pytest.approx(PROCESSOR.launch_seconds * 3.35e12 / bytes_moved)
    assert isinstance(predict(H100)["tiny_ratio"], str)  # against the read rate of a processor that it does not tell


def test_a_cache_is_no_gain_where_operations_bind() -> None:
    assert predict(replace(H100, bytes_per_second=1e30, launch_seconds=0))["near_many_ratio"] == pytest.approx(1)
    slow = predict(replace(H100, bytes_per_second=1e9))
    flops_a_byte = 2 * 64 / 4
    assert slow["near_many_ratio"] == pytest.approx(66.9e12 / 1e9 / flops_a_byte, rel=0.05)  # and its inputs' bytes
