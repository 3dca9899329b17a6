"""Predictions of a batch-invariant product's price, at its limits; which bits differ is not predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.throughput.determinism import predict
from snippets.throughput.determinism import Scale

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset({"fast-bf16"}), "a test")


def test_reading_a_weight_for_each_row_costs_as_many_reads() -> None:
    """Less a little: a batch moves its own rows as well."""
    rows = Scale().rows
    found: dict[str, Any] = predict(replace(ROUND, flops_per_second=dict.fromkeys(ROUND.flops_per_second, 1e30)))
    assert 0.9 * rows < found["rows_price_ratio"] < rows
    assert 1 < found["padded_price_ratio"] < 1.1


def test_where_operations_bind_rows_cost_nothing_more_and_padding_all_of_them() -> None:
    found: dict[str, Any] = predict(replace(ROUND, bytes_per_second=1e30))
    assert found["rows_price_ratio"] == pytest.approx(1)
    assert found["padded_price_ratio"] == pytest.approx(Scale().rows)


def test_counts_are_known_and_bits_are_not() -> None:
    found: dict[str, Any] = predict(ROUND)
    assert found["bf16_matrices_count"] == len(SMOLLM2_135M.linear_shapes) * SMOLLM2_135M.layers + 1
    assert isinstance(found["bf16_first_numbers_count"], str)
