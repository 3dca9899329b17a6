"""Predictions of a training step with rounding in it, at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.models import trained
from snippets.models.shapes import parameters
from snippets.predictions.quantization.quantization_aware_training import GEOMETRY, predict, step

READS = Target("reads", {"float32": 1e30}, 1e9, 1e11, None, 0.0, frozenset(), "a test")


def test_rounding_adds_no_product() -> None:
    length = trained.LENGTH
    attention = 4 * GEOMETRY.layers * GEOMETRY.heads * GEOMETRY.head_dim * length
    weights = parameters(GEOMETRY).linear + GEOMETRY.vocabulary * GEOMETRY.hidden
    plain, aware = (step(scheme) for scheme in (None, trained.FURTHER_SCHEMES[4]))
    assert plain.flops == aware.flops == 3 * trained.BATCH * length * (2 * weights + attention)


def test_where_operations_bind_rounding_is_free() -> None:
    slow = replace(READS, flops_per_second={"float32": 1e9}, bytes_per_second=1e30)
    assert predict(slow)["aware_step_ratio"] == pytest.approx(1)


def test_where_bytes_or_the_queue_bind_it_is_not() -> None:
    queue = replace(READS, bytes_per_second=1e30, launch_seconds=1.0)
    assert predict(queue)["aware_step_ratio"] > predict(READS)["aware_step_ratio"] > 1  # type: ignore[operator]
