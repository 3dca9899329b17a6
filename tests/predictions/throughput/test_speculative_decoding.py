"""Predictions of checking and of drafting, by hand where bytes bind and at the limit of operations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.models.shapes import parameters
from snippets.models.trained import GEOMETRIES
from snippets.predictions.throughput.speculative_decoding import COSTLY_GAMMA, RIGHT, predict
from snippets.throughput.speculative_decoding import Scale, formula_values, speedup

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset({"cpu"}), "a test")


def test_where_bytes_bind_a_check_is_a_step_and_right_proposals_are_free() -> None:
    looked = Scale().looked
    found: dict[str, Any] = predict(ROUND)
    assert found["check_ratio"] == pytest.approx(1, abs=0.01)
    assert found["copy_speed_ratio"] == pytest.approx((1 + RIGHT * (looked + 1)) / (1 + RIGHT))


def test_a_dear_draft_costs_what_the_textbook_says() -> None:
    """Its step over the target's by their weights, the head among them, where a check costs a step."""
    found: dict[str, Any] = predict(replace(ROUND, flops_per_second=dict.fromkeys(ROUND.flops_per_second, 1e30)))
    small, tiny = (parameters(GEOMETRIES[name]) for name in ("small", "tiny"))
    cost = (tiny.linear + tiny.embedding) / (small.linear + small.embedding)
    assert found["costly_share"] == pytest.approx(cost)
    alpha = formula_values()["alpha_share"]
    assert found["costly_ratio"] == pytest.approx(1 / speedup(alpha, COSTLY_GAMMA, cost))


def test_where_operations_bind_checking_gains_nothing() -> None:
    found: dict[str, Any] = predict(replace(ROUND, bytes_per_second=1e30))
    assert found["check_gain_ratio"] == pytest.approx(1, abs=0.01)
    assert found["copy_speed_ratio"] == pytest.approx(1, abs=0.01)


def test_what_runs_on_the_processor_is_predicted_for_it_alone() -> None:
    assert isinstance(predict(replace(ROUND, capabilities=frozenset()))["costly_ratio"], str)
