"""Predictions of a prefill with a prefix found, at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.kv_cache.prefix_caching import BLOCK_TOKENS
from snippets.predictions.kv_cache.prefix_caching import SCALE, launches, predict

COMPUTES = Target("computes", {"bfloat16": 1e12}, 1e30, 1e11, None, 0.0, frozenset(), "a test")


def test_by_operations_it_saves_the_tokens_that_are_found() -> None:
    """A little less: what is computed still attends to them."""
    found = predict(COMPUTES)
    assert found["first_token_ratio"] == pytest.approx((SCALE.shared + SCALE.new) / SCALE.new, rel=0.05)
    assert found["block_first_token_ratio"] == pytest.approx((BLOCK_TOKENS + SCALE.new) / SCALE.new, rel=0.05)


def test_where_weights_are_read_anyway_it_saves_nothing() -> None:
    reads = replace(COMPUTES, flops_per_second={"bfloat16": 1e30}, bytes_per_second=1e9)
    assert predict(reads)["first_token_ratio"] == pytest.approx(1)


def test_a_slow_queue_sees_the_operations_of_each_alone() -> None:
    queue = predict(replace(COMPUTES, launch_seconds=1.0))
    ratio = launches(0, SCALE.shared + SCALE.new) / launches(SCALE.shared, SCALE.new)
    assert queue["first_token_ratio"] == pytest.approx(ratio) != 1
