"""Each way of storing a layer, against the page's own prediction for an H100 and against limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import TARGETS
from snippets.predictions.throughput.pruning import predict, way_seconds
from snippets.throughput import pruning as page

H100 = TARGETS["H100 SXM"]
SHAPE = page.Scale().layer


@pytest.mark.parametrize("rows", [1, 64, page.MANY_H100])
def test_an_h100_takes_what_the_page_says(rows: int) -> None:
    ways = {"dense": 0.0, "rows removed": page.HALF}
    for way, share in ways.items():
        assert way_seconds(H100, (way, "BF16", share), rows, SHAPE) == pytest.approx(
            page.predicted(way, rows), rel=0.02
        )
    sparse = way_seconds(H100, ("CSR", "BF16", page.MOSTLY), rows, SHAPE)
    assert sparse == pytest.approx(page.predicted("CSR", rows), rel=0.01)  # here with its pointers to rows


def test_zeros_stored_dense_gain_nothing_and_rows_removed_gain_all() -> None:
    found = predict(replace(H100, launch_seconds=0))
    for rows in ("one", "many"):
        for part, share in (("half", page.HALF), ("most", page.MOST)):
            assert found[f"{rows}_{part}_zeros_ratio"] == 1
            assert found[f"{rows}_{part}_ratio"] == pytest.approx(1 / (1 - share), rel=0.02)  # inputs are read whole
    assert found["step_zeros_ratio"] == 1


def test_sparse_storage_pays_by_its_bytes_where_they_bind() -> None:
    """BF16 and an index are three times a weight's bytes; on a processor FP32 and an index are four times."""
    reads = replace(H100, flops_per_second=dict.fromkeys(H100.flops_per_second, 1e30), launch_seconds=0)
    assert predict(reads)["one_csr90_ratio"] == pytest.approx(10 / 3, rel=0.01)
    processor = replace(reads, capabilities=frozenset({"cpu", "fast-bf16"}))
    assert predict(processor)["one_csr90_ratio"] == pytest.approx(10 / 4, rel=0.01)
    assert predict(processor)["one_cross_share"] == pytest.approx(3 / 4, rel=0.01)


def test_sparse_storage_loses_where_operations_bind_on_matrix_units() -> None:
    computes = replace(H100, bytes_per_second=1e30, launch_seconds=0)
    assert predict(computes)["many_csr50_slower_ratio"] == pytest.approx(989.4 / 66.9 / 2)


def test_a_step_of_launches_gains_nothing() -> None:
    assert predict(H100)["step_removed_ratio"] == 1
    assert float(predict(replace(H100, launch_seconds=0))["step_removed_ratio"]) > 1.2
