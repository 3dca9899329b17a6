"""Predictions of scheduled steps at their limits: launches count steps, operations count tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.models.trained import GEOMETRIES
from snippets.predictions.layers import PAGED_LAUNCHES, PAGED_OVERHEAD
from snippets.predictions.throughput.continuous_batching import predict
from snippets.throughput.continuous_batching import Scale, timed_counts

ROUND = Target("round", {"float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_where_launches_bind_the_gain_is_that_of_the_steps() -> None:
    steps = timed_counts(Scale())
    found: dict[str, Any] = predict(replace(ROUND, launch_seconds=1.0))
    assert found["timed_speed_ratio"] == pytest.approx(
        steps["timed_static_steps_count"] / steps["timed_continuous_steps_count"]
    )
    assert found["pause_ratio"] == 1
    a_step = PAGED_LAUNCHES * GEOMETRIES["small"].layers + PAGED_OVERHEAD
    spent = steps["timed_static_steps_count"] * a_step
    assert found["static_speed_tokens_per_second"] * spent > Scale().timed  # an answer has more than one token


def test_where_operations_bind_a_prompt_is_paid_by_its_tokens() -> None:
    """More than their number, since attention is padded to a square, less than that square."""
    scale = Scale()
    found: dict[str, Any] = predict(replace(ROUND, bytes_per_second=1e30))
    tokens = scale.long_prompt / scale.chunk
    assert tokens / 2 < found["pause_ratio"] < tokens
    assert found["whole_pause_seconds"] > found["chunk_pause_seconds"]
