"""Predictions of attention over codes, by hand on round numbers and at their limits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from snippets.instruments.targets import Target
from snippets.predictions.kv_cache.quantized_cache import predict

READS = Target("reads", {"bfloat16": 1e30}, 1e12, 1e11, None, 0.0, frozenset(), "a test")


def test_int8_is_widened_then_scaled_then_read() -> None:
    """Bytes a number: code read, BF16 written, read and written again, read; where plain attention reads BF16 once."""
    assert predict(READS)["slower_ratio"] == pytest.approx((1 + 2 + 2 + 2 + 2) / 2, rel=0.01)


def test_int4_is_slower_still() -> None:
    found = predict(READS)
    assert found["int4_slower_ratio"] > found["slower_ratio"]  # type: ignore[operator]


def test_dequantizing_is_free_where_operations_bind() -> None:
    slow = replace(READS, flops_per_second={"bfloat16": 1e9}, bytes_per_second=1e30)
    assert predict(slow)["int4_slower_ratio"] == pytest.approx(1)
