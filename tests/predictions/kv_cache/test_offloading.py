"""Predictions of prefill against a copy, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.kv_cache.offloading import prefill_flops
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.kv_cache.offloading import LENGTHS, predict

LINKED = Target("linked", {"float32": 1e12, "bfloat16": 1e12}, 1e30, 1e11, 1e9, 0.0, frozenset({"fast-bf16"}), "a test")
SHARED = replace(LINKED, host_bytes_per_second=None, bytes_per_second=8e9)


def test_a_copy_goes_at_the_link_or_reads_and_writes_one_memory() -> None:
    assert predict(LINKED)["copy_bytes_per_second"] == pytest.approx(1e9)
    assert predict(SHARED)["copy_bytes_per_second"] == pytest.approx(8e9 / 2)


def test_prefill_is_the_page_s_operations_and_the_head_for_one_token() -> None:
    head = 2 * SMOLLM2_135M.vocabulary * SMOLLM2_135M.hidden
    flops = sum(prefill_flops(SMOLLM2_135M, LENGTHS[-1])) + head
    assert predict(LINKED)["longest_tokens_per_second"] == pytest.approx(LENGTHS[-1] / (flops / 1e12))


def test_a_faster_link_restores_faster_and_computes_no_faster() -> None:
    slow, fast = predict(LINKED), predict(replace(LINKED, host_bytes_per_second=4e9))
    assert fast["restore_ratio"] == pytest.approx(4 * slow["restore_ratio"])  # type: ignore[operator]
    assert fast["prefill_seconds"] == slow["prefill_seconds"]


def test_without_fast_bf16_the_cache_is_fp32() -> None:
    assert predict(replace(LINKED, capabilities=frozenset()))["prefill_element_bytes"] == 4
