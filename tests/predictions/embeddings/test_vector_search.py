"""Predictions of a graph against exact search, by hand and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from measured import recording
from snippets.embeddings.vector_search import BREADTH, LINKS
from snippets.instruments.device import KINDS
from snippets.instruments.targets import Target
from snippets.predictions.embeddings.vector_search import SCALE, WIDTH, compared, predict

ELSEWHERE = Target("elsewhere", {"float32": 1e30}, 1e9, 1e11, None, 0.0, frozenset(), "a test")
COMPUTES = replace(
    ELSEWHERE, flops_per_second={"float32": 1e9}, bytes_per_second=1e30, capabilities=frozenset({KINDS[-1]})
)
MOST = max(SCALE.counts)


def test_vectors_are_as_wide_as_the_page_s() -> None:
    recorded = recording.primary("embeddings/vector_search")
    assert recorded is not None and recorded.values["dims_count"] == WIDTH


def test_a_graph_looks_at_its_candidates_links_and_at_no_more_than_there_are() -> None:
    assert compared(10**9) == 2 * BREADTH * LINKS
    assert compared(min(SCALE.counts)) == min(SCALE.counts)


def test_alone_it_is_a_ratio_of_vectors_on_any_device() -> None:
    for target in (ELSEWHERE, COMPUTES):
        found = predict(target)
        assert found["graph_speed_ratio"] == pytest.approx(MOST / compared(MOST))
        assert found["few_speed_ratio"] == pytest.approx(1)


def test_a_batch_is_predicted_where_both_run_on_one_processor() -> None:
    assert predict(COMPUTES)["batch_speed_ratio"] == pytest.approx(MOST / compared(MOST))
    reads = replace(COMPUTES, flops_per_second={"float32": 1e30}, bytes_per_second=1e9)
    assert predict(reads)["product_speed_ratio"] < 1  # type: ignore[operator]
    assert isinstance(predict(ELSEWHERE)["batch_speed_ratio"], str)
