"""Predictions of the head, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.models.shapes import LLAMA_3_8B, parameters
from snippets.predictions.embeddings.matrix_share import ROWS, predict

READS = Target("reads", {"bfloat16": 1e30}, 1e9, 1e11, None, 0.0, frozenset(), "a test")
COUNTS = parameters(LLAMA_3_8B)


def test_one_row_is_a_read_of_the_matrix() -> None:
    found = predict(READS)
    assert found["head_seconds"] == pytest.approx(2 * COUNTS.head / 1e9, rel=0.001)
    assert found["head_over_layer_ratio"] == pytest.approx(COUNTS.head * LLAMA_3_8B.layers / COUNTS.linear, rel=0.001)


def test_rows_share_a_read_and_no_operation() -> None:
    assert predict(READS)["amortised_ratio"] == pytest.approx(ROWS, rel=0.05)
    computes = replace(READS, flops_per_second={"bfloat16": 1e9}, bytes_per_second=1e30)
    assert predict(computes)["amortised_ratio"] == pytest.approx(1)


def test_a_slow_queue_sees_seven_products() -> None:
    queue = replace(READS, bytes_per_second=1e30, launch_seconds=1.0)
    assert predict(queue)["head_over_layer_ratio"] == pytest.approx(1 / len(LLAMA_3_8B.linear_shapes))
