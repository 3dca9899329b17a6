"""Predictions of a layer in six ways, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.device import KINDS
from snippets.instruments.targets import Target
from snippets.predictions.quantization.inference_speed import SCALE, predict, way_seconds
from snippets.quantization.inference_speed import work

RATES = {"float32": 1e12, "bfloat16": 1e12, "int8": 4e12}
READS = Target("reads", dict.fromkeys(RATES, 1e30), 1e9, 1e11, None, 0.0, frozenset(), "a test")
CPU = replace(READS, capabilities=frozenset({KINDS[-1]}))
COMPUTES = replace(CPU, flops_per_second=RATES, bytes_per_second=1e30)


def test_on_a_cpu_one_row_is_as_fast_as_it_has_fewer_bytes() -> None:
    bf16, int4 = (work(way, 1, *SCALE.layer).bytes for way in ("bf16", "int4"))
    assert predict(CPU)["one_int4_ratio"] == pytest.approx(bf16 / int4)


def test_on_an_accelerator_int8_writes_and_reads_a_copy_in_bf16() -> None:
    """Codes, the copy written, the copy read: five bytes a weight where BF16 has two."""
    assert predict(READS)["one_int8_ratio"] == pytest.approx(2 / 5, rel=0.01)
    assert way_seconds(READS, "naive", 1) > way_seconds(READS, "int8", 1)


def test_many_rows_gain_by_narrower_products_alone() -> None:
    found = predict(COMPUTES)
    assert found["many_w8a8_ratio"] == pytest.approx(4, rel=0.01)
    assert found["many_int8_slower_ratio"] == pytest.approx(1, rel=0.01)
    assert found["int8_crossover_count"] == 1


def test_many_rows_are_integer_products_on_an_accelerator_that_has_them() -> None:
    units = replace(COMPUTES, capabilities=frozenset())
    assert predict(units)["many_w8a8_ratio"] == pytest.approx(4)
    without = replace(units, flops_per_second={"float32": 1e12, "bfloat16": 2e12})
    assert predict(without)["many_w8a8_ratio"] == pytest.approx(1 / 2)
