"""Predictions of a training step and of updates, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snippets.instruments.targets import Target
from snippets.models.shapes import parameters
from snippets.predictions.quantization.training_memory_and_speed import BATCH, LENGTH, backward, predict
from snippets.quantization.training_memory_and_speed import BYTES, WIDE

RATES = {"float32": 1e12, "bfloat16": 4e12}
READS = Target("reads", dict.fromkeys(RATES, 1e30), 1e9, 1e11, None, 0.0, frozenset(), "a test")
COMPUTES = replace(READS, flops_per_second=RATES, bytes_per_second=1e30)
QUEUES = replace(READS, bytes_per_second=1e30, launch_seconds=1.0)


def test_products_alone_are_as_fast_as_their_format() -> None:
    assert predict(COMPUTES)["step_ratio"] == pytest.approx(4)


def test_operations_are_three_times_those_of_the_forward_pass() -> None:
    """Two products backward for each one forward; attention is counted unmasked, and the head as well."""
    length = LENGTH - 1
    attention = 4 * WIDE.heads * WIDE.head_dim * length
    weights = parameters(WIDE).linear + WIDE.vocabulary * WIDE.hidden
    assert backward(torch.float32).flops == 3 * BATCH * length * (2 * weights + attention)


def test_an_update_reads_and_writes_its_states() -> None:
    """Weight, gradient and two moments read, three written, in FP32."""
    found = predict(READS)
    assert found["fp32_update_seconds"] == pytest.approx(7 * 4 * parameters(BYTES).total / 1e9)
    assert found["update_ratio"] > 1  # type: ignore[operator]


def test_a_slow_queue_counts_operations() -> None:
    tensors = BYTES.layers * 9 + 2
    assert predict(QUEUES)["fp32_update_seconds"] == 2 * tensors
    assert predict(QUEUES)["step_ratio"] < 1  # type: ignore[operator]
