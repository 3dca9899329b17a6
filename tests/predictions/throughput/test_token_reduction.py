"""Predictions of the first token by the length of a prompt, at their limits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.predictions.throughput.token_reduction import predict

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_where_operations_bind_a_token_saved_is_time_saved() -> None:
    """A little more than in proportion: attention sees pairs."""
    found: dict[str, Any] = predict(replace(ROUND, bytes_per_second=1e30))
    assert 4 < found["quarter_sooner_ratio"] < 4.2
    assert 2 < found["half_sooner_ratio"] < 2.1
    assert found["short_sooner_ratio"] == pytest.approx(2, abs=0.01)


@pytest.mark.parametrize("bound", [{"flops_per_second": {"float32": 1e30}}, {"launch_seconds": 1.0}])
def test_where_weights_or_launches_bind_shorter_is_no_sooner(bound: dict) -> None:
    found: dict[str, Any] = predict(replace(ROUND, **bound))
    for name in ("quarter_sooner_ratio", "half_sooner_ratio", "short_sooner_ratio"):
        assert found[name] == pytest.approx(1, abs=0.02)


def test_bf16_is_chosen_where_it_has_instructions() -> None:
    """Half of the bytes and a rate of its own: then a long prompt is bound by its operations less soon."""
    fast = replace(ROUND, capabilities=frozenset({"fast-bf16"}))
    wide, narrow = (float(predict(target)["quarter_sooner_ratio"]) for target in (ROUND, fast))
    assert narrow < wide
