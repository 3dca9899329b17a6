"""Predictions of a step with a cache and without, at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.kv_cache.speedup_over_recompute import LENGTHS
from snippets.models.shapes import SMOLLM2_135M, parameters
from snippets.predictions.kv_cache.speedup_over_recompute import columns, predict
from snippets.predictions.layers import LAUNCHES

ROUND = Target("round", {"bfloat16": 1e12}, 1e30, 1e11, None, 0.0, frozenset(), "a test")


def test_by_operations_a_token_is_repeated_as_often_as_there_are_tokens() -> None:
    """Almost: the head and attention to fewer tokens are not repeated."""
    ratio = predict(ROUND)["long_time_ratio"]
    assert LENGTHS[-1] / 2 < ratio < LENGTHS[-1]  # type: ignore[operator]


def test_where_reading_binds_recomputing_costs_no_more_than_the_cache() -> None:
    reads = replace(ROUND, flops_per_second={"bfloat16": 1e30}, bytes_per_second=1e9)
    found = columns(reads)
    assert found["time_ratio"] == pytest.approx([1] * len(LENGTHS))
    weights = parameters(SMOLLM2_135M)
    assert min(found["cached_seconds"]) > 2 * weights.linear / 1e9


def test_a_slow_queue_is_all_intercept() -> None:
    found = predict(replace(ROUND, launch_seconds=1.0))
    assert found["cached_intercept_seconds"] == pytest.approx(SMOLLM2_135M.layers * LAUNCHES)
    assert (found["short_time_ratio"], found["cached_intercept_share"]) == (1, pytest.approx(1))
