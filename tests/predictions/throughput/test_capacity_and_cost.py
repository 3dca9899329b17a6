"""Predictions of a small model's decode and prefill, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.layers import LAUNCHES
from snippets.predictions.throughput.capacity_and_cost import predict
from snippets.throughput.capacity_and_cost import Scale, model_bytes

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_a_lone_step_is_the_read_of_its_bytes() -> None:
    found: dict[str, Any] = predict(ROUND)
    read = model_bytes(SMOLLM2_135M, 1, Scale().context, element_bytes=2)
    assert found["decode_tokens_per_second"] == pytest.approx(1e12 / read)
    assert found["decode_tokens_per_second"] == pytest.approx(found["predicted_decode_tokens_per_second"])
    assert found["decode_mbu_share"] == pytest.approx(1)


def test_launches_take_a_small_model_far_from_its_roofline() -> None:
    found: dict[str, Any] = predict(replace(ROUND, launch_seconds=1e-3))
    assert found["decode_tokens_per_second"] == pytest.approx(1000 / (LAUNCHES * SMOLLM2_135M.layers))
    assert found["decode_mbu_share"] < 0.01
    assert found["decode_prefill_cost_ratio"] == pytest.approx(Scale().prompt)


def test_tokens_cost_alike_where_bytes_are_free() -> None:
    """But for the head, which a prompt passes once, and for attention, where a prompt's mean token sees half of it."""
    found: dict[str, Any] = predict(replace(ROUND, bytes_per_second=1e30))
    assert 1 < found["decode_prefill_cost_ratio"] < 1.5
