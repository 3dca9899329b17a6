"""Predictions of attention through a gather, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.device import KINDS
from snippets.instruments.targets import Target
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.kv_cache.paged_attention import SCALE, predict

READS = Target("reads", {"bfloat16": 1e30}, 1e9, 1e11, None, 0.0, frozenset(), "a test")


def test_keys_and_values_are_read_written_and_read_again() -> None:
    found = predict(READS)
    held = 2 * SCALE.batch * SCALE.context * LLAMA_3_8B.kv_heads * LLAMA_3_8B.head_dim * 2
    assert found["gather_seconds"] == pytest.approx(2 * held / 1e9)
    assert found["slowdown_ratio"] == pytest.approx(3, rel=0.01)


def test_where_operations_bind_a_gather_is_free() -> None:
    slow = replace(READS, flops_per_second={"bfloat16": 1e9}, bytes_per_second=1e30)
    assert predict(slow)["slowdown_ratio"] == pytest.approx(1)


def test_only_a_processor_takes_fresh_memory_for_every_copy() -> None:
    assert predict(READS)["fresh_slowdown_ratio"] == predict(READS)["slowdown_ratio"]
    cpu = replace(READS, capabilities=frozenset({KINDS[-1]}))
    assert isinstance(predict(cpu)["fresh_slowdown_ratio"], str)
