"""Predictions of a check and of a draft by the first layers, at their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.throughput.early_exit import GAMMA, predict
from snippets.throughput.early_exit import EARLY, draft_read_ratio, price

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_where_bytes_bind_a_check_costs_the_heads_weights_in_layers() -> None:
    """A little more: it makes its map anew, and passes over the logits."""
    check: Any = predict(ROUND)["check_time_ratio"]
    assert price(SMOLLM2_135M) < check < 1.2 * price(SMOLLM2_135M)


def test_where_bytes_bind_a_draft_costs_what_it_reads() -> None:
    found: dict[str, Any] = predict(replace(ROUND, flops_per_second={"float32": 1e30}))
    read = draft_read_ratio(EARLY, GAMMA, 1, SMOLLM2_135M, price(SMOLLM2_135M))
    assert found["draft_time_ratio"] == pytest.approx(read)


def test_where_launches_bind_layers_count() -> None:
    found: dict[str, Any] = predict(replace(ROUND, launch_seconds=1.0))
    assert found["draft_time_ratio"] == pytest.approx(1 + (GAMMA - 1) * EARLY / SMOLLM2_135M.layers)
    assert found["check_time_ratio"] < 1  # fewer kernels than a layer
