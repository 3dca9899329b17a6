"""Predictions of ways of attention, by hand where operations bind and at the limits of bytes and launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.predictions.throughput.efficient_attention import predict
from snippets.throughput.efficient_attention import HEADS, WIDTH, Scale, flop_values

SCALE = Scale()
ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_where_operations_bind_times_are_those_of_the_counted_products() -> None:
    flops = flop_values(SCALE)
    found: dict[str, Any] = predict(replace(ROUND, bytes_per_second=1e30))
    assert found["naive_ratio"] == pytest.approx(1)  # the same products
    assert found["long_fused_seconds"] == pytest.approx(flops["fused_flops"] / 1e13)
    assert found["linear_ratio"] == pytest.approx(flops["fused_flops"] / flops["linear_flops"])
    assert found["window_fused_ratio"] == pytest.approx(flops["fused_flops"] / flops["window_flops"])


def test_where_bytes_bind_naive_attention_pays_for_its_scores() -> None:
    """It goes through them nine times or so, and the kernel reads queries, keys and values and writes one result."""
    found: dict[str, Any] = predict(replace(ROUND, flops_per_second={"float32": 1e30}))
    passes = found["naive_ratio"] * 4 * WIDTH / SCALE.lengths[-1]
    assert 6 < passes < 12


def test_where_launches_bind_one_kernel_wins() -> None:
    found: dict[str, Any] = predict(replace(ROUND, launch_seconds=1.0))
    assert found["long_fused_seconds"] == 1
    assert found["naive_ratio"] > 1 > found["short_linear_ratio"] > found["linear_ratio"]


def test_the_peak_is_two_score_matrices() -> None:
    assert predict(ROUND)["naive_peak_bytes"] == 2 * 4 * HEADS * SCALE.held[-1] ** 2
