"""Predictions of smaller models' speed, by hand where bytes bind and at the limit of launches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from snippets.instruments.targets import Target
from snippets.models.shapes import LLAMA_3_8B, parameters
from snippets.models.trained import GEOMETRIES
from snippets.predictions.throughput.distillation import predict
from snippets.throughput.distillation import LLAMA_3_2_1B, STUDENT, TEACHER

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_a_layer_is_the_read_of_its_matrices() -> None:
    """Norms and one row's numbers beside them are next to nothing."""
    read = 2 * parameters(LLAMA_3_8B).linear / LLAMA_3_8B.layers
    found: dict[str, Any] = predict(ROUND)
    assert found["large_layer_seconds"] == pytest.approx(read / 1e12, rel=0.02)
    weights = [parameters(geometry).linear for geometry in (LLAMA_3_8B, LLAMA_3_2_1B)]
    assert found["pair_speed_ratio"] == pytest.approx(weights[0] / weights[1], rel=0.02)


def test_where_launches_bind_depth_alone_counts() -> None:
    found: dict[str, Any] = predict(replace(ROUND, launch_seconds=1.0))
    assert found["pair_speed_ratio"] == pytest.approx(LLAMA_3_8B.layers / LLAMA_3_2_1B.layers)
    layers = [GEOMETRIES[name].layers for name in (TEACHER, STUDENT)]
    assert 1 < found["narrow_speed_ratio"] < layers[0] / layers[1]  # less: some are launched once a token
