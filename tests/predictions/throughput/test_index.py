"""The topic page's prediction is the one of its question page at the same ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.predictions.throughput import batching, index
from snippets.throughput.batching import Scale

ROUND = Target("round", {"bfloat16": 1e14, "float32": 1e13}, 1e12, 1e11, None, 1e-6, frozenset(), "a test")


def test_both_pages_predict_the_same() -> None:
    found, longer = index.predict(ROUND), batching.predict(ROUND)
    assert found and {name: longer[name] for name in found} == found


def test_a_step_grows_with_nothing_but_operations() -> None:
    """Where bytes are free a batch takes so many steps of one row, where launches bind no longer than one."""
    most = max(Scale().batches)
    assert index.predict(replace(ROUND, bytes_per_second=1e30, launch_seconds=0))["layer_step_ratio"] == pytest.approx(
        most
    )
    assert index.predict(replace(ROUND, launch_seconds=1))["layer_step_ratio"] == 1
