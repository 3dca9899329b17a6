"""Predictions of attention with fewer KV heads, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.device import KINDS
from snippets.instruments.targets import Target
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.kv_cache.heads_mha_gqa_mqa import predict

READS = Target("reads", {"float32": 1e30}, 1e12, 1e11, None, 0.0, frozenset(), "a test")
CPU = replace(READS, capabilities=frozenset({KINDS[-1]}))
COMPUTES = replace(READS, flops_per_second={"float32": 1e9}, bytes_per_second=1e30)
GROUP = LLAMA_3_8B.heads / LLAMA_3_8B.kv_heads


def test_groups_read_as_much_less_as_they_share() -> None:
    found = predict(READS)
    assert found["gqa_grouped_speed_ratio"] == pytest.approx(GROUP, rel=0.01)
    assert found["mqa_grouped_speed_ratio"] == pytest.approx(LLAMA_3_8B.heads, rel=0.01)


def test_a_copy_is_written_and_read_beside_what_it_is_made_of() -> None:
    assert predict(READS)["gqa_copy_cost_ratio"] == pytest.approx(1 + 2 * GROUP, rel=0.01)


def test_the_flag_reads_like_mha_on_a_cpu_and_copies_elsewhere() -> None:
    assert predict(CPU)["gqa_flag_speed_ratio"] == pytest.approx(1)
    assert predict(READS)["gqa_flag_speed_ratio"] == predict(READS)["gqa_repeat_speed_ratio"]


def test_where_operations_bind_fewer_heads_gain_nothing() -> None:
    found = predict(COMPUTES)
    assert found["mqa_grouped_speed_ratio"] == found["mqa_prefill_speed_ratio"] == pytest.approx(1)
