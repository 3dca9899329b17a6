"""Predictions of batching, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.predictions.throughput.batching import predict
from snippets.throughput.batching import LAYER, Scale, step_work

SCALE, MOST = Scale(), max(Scale().batches)
ROUND = Target("round", {"bfloat16": 1e15, "float32": 1e14}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_one_row_is_a_read_of_weights_and_cache() -> None:
    work = step_work(LAYER, 1, SCALE.context, element_bytes=2)
    assert predict(ROUND)["layer_single_seconds"] == pytest.approx((work.weight_bytes + work.cache_bytes) / 1e12)


def test_without_operations_only_caches_keep_a_batch_from_its_whole_gain() -> None:
    one, many = (step_work(LAYER, batch, SCALE.long_context, element_bytes=2) for batch in (1, MOST))
    reads = [work.weight_bytes + work.cache_bytes for work in (one, many)]
    free = replace(ROUND, flops_per_second=dict.fromkeys(ROUND.flops_per_second, 1e30))
    assert predict(free)["long_speed_ratio"] == pytest.approx(MOST * reads[0] / reads[1])


def test_a_slow_computer_gains_nothing_and_a_slow_launcher_everything() -> None:
    slow = replace(ROUND, bytes_per_second=1e30)
    assert predict(slow)["layer_speed_ratio"] == pytest.approx(1)
    assert predict(slow)["layer_knee_count"] == 1
    assert predict(replace(ROUND, launch_seconds=1.0))["model_speed_ratio"] == pytest.approx(MOST)
