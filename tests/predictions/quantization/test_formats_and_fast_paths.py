"""Predictions of products by format, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.predictions.quantization.formats_and_fast_paths import predict

ROUND = Target("round", {"float32": 1e12, "bfloat16": 2e12, "int8": 8e12}, 1e30, 1e11, None, 0.0, frozenset(), "a test")


def test_operations_bind_where_reads_are_free() -> None:
    found = predict(ROUND)
    assert (found["bf16_speed_ratio"], found["int8_speed_ratio"]) == (pytest.approx(2), pytest.approx(8))


def test_bytes_bind_where_operations_are_free() -> None:
    free = replace(ROUND, flops_per_second=dict.fromkeys(ROUND.flops_per_second, 1e30), bytes_per_second=1e9)
    assert predict(free)["int8_speed_ratio"] == pytest.approx(4)


def test_a_slow_queue_hides_every_format() -> None:
    assert predict(replace(ROUND, launch_seconds=1.0))["bf16_speed_ratio"] == 1


def test_missing_units_are_named() -> None:
    assert predict(ROUND)["fp16_speed_ratio"] == "round has no units for float16"
    assert predict(ROUND)["e4m3_slower_ratio"] == "round has no units for float8"


def test_without_integer_units_the_product_is_fp32_s_with_conversions() -> None:
    bare = replace(ROUND, flops_per_second={"float32": 1e12})
    assert predict(bare)["int8_speed_ratio"] == pytest.approx(1)
    assert predict(replace(bare, launch_seconds=1.0))["int8_speed_ratio"] < 1  # type: ignore[operator]
