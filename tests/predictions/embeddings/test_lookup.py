"""Predictions of a lookup and its product, by hand on round numbers and beside the page's own count."""

from __future__ import annotations

from dataclasses import replace

import pytest

from measured import recording
from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.embeddings.lookup import SENTENCE_TOKENS, predict

READS = Target("reads", {"bfloat16": 1e30}, 1e9, 1e11, None, 0.0, frozenset(), "a test")


def test_the_sentence_is_as_long_as_the_page_s() -> None:
    recorded = recording.primary("embeddings/lookup")
    assert recorded is not None and recorded.values["sentence_tokens"] == SENTENCE_TOKENS


def test_a_lookup_reads_and_writes_its_rows_and_a_product_reads_all() -> None:
    found, rows = predict(READS), SENTENCE_TOKENS * SMOLLM2_135M.hidden
    assert found["lookup_seconds"] == pytest.approx(2 * 2 * rows / 1e9)
    hot = SENTENCE_TOKENS * SMOLLM2_135M.vocabulary
    matrix = SMOLLM2_135M.vocabulary * SMOLLM2_135M.hidden
    assert found["product_seconds"] == pytest.approx(2 * (hot + matrix + rows) / 1e9)


def test_a_slow_queue_hides_the_difference() -> None:
    assert predict(replace(READS, launch_seconds=10.0))["product_over_lookup_ratio"] == 1
