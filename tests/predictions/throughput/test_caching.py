"""Predictions of a vector computed and looked up, at their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.models import minilm
from snippets.predictions.throughput.caching import predict

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_a_vector_reads_at_least_the_encoders_matrices() -> None:
    """And less than twice as much, since a question is short."""
    shape = minilm.config()
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    matrices = 4 * shape["num_hidden_layers"] * (4 * hidden * hidden + 2 * hidden * ffn)
    slow = replace(ROUND, flops_per_second={"float32": 1e30})
    found: dict[str, Any] = predict(slow)
    assert matrices / 1e12 < found["compute_seconds"] < 2 * matrices / 1e12


def test_where_launches_bind_the_ratio_counts_them() -> None:
    found: dict[str, Any] = predict(replace(ROUND, launch_seconds=1.0))
    assert found["lookup_seconds"] == 1
    assert found["lookup_ratio"] == found["compute_seconds"]
    assert found["compute_seconds"] == pytest.approx(round(found["compute_seconds"]))
    assert found["compute_seconds"] > 12 * minilm.config()["num_hidden_layers"]
