"""Search in an interviewer's words: the right page is among the first three."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser

ASKED = {
    "MQA": "kv_cache/heads_mha_gqa_mqa",
    "multi-query attention": "kv_cache/heads_mha_gqa_mqa",
    "why is decode slow": "throughput/prefill_and_decode",
    "how much memory does kv cache take": "kv_cache/bytes_per_token",
    "flash attention": "throughput/efficient_attention",
    "does quantization speed up inference": "quantization/inference_speed",
    "temperature 0 not deterministic": "throughput/determinism",
    "how many users fit on a gpu": "kv_cache/users_per_gpu",
    "can a 70b model fit on 80gb": "quantization/which_model_fits",
    "int4 vs int8": "quantization/formats_and_fast_paths",
    "gptq awq": "quantization/calibration",
    "QAT vs PTQ": "quantization/quantization_aware_training",
    "zero point asymmetric quantization": "quantization/scale_granularity",
    "fp8 vs bf16": "quantization/formats_and_fast_paths",
    "lora memory": "quantization/training_memory_and_speed",
    "paged attention block size": "kv_cache/paged_attention",
    "prefix cache": "kv_cache/prefix_caching",
    "int8 kv cache": "kv_cache/quantized_cache",
    "cpu offload kv cache": "kv_cache/offloading",
    "attention sinks": "kv_cache/sliding_window",
    "deepseek MLA": "kv_cache/latent_attention",
    "hnsw recall": "embeddings/vector_search",
    "cosine or dot product": "embeddings/similarity_measures",
    "tokenizer bytes": "embeddings/tokenization_first",
    "static vs contextual embeddings": "embeddings/static_or_contextual",
    "king minus man plus woman": "embeddings/semantic_neighbours",
    "matryoshka": "embeddings/compressed_vectors",
    "rope": "embeddings/positions_enter_later",
    "weight tying": "embeddings/matrix_share",
    "ttft tpot": "throughput/latency_numbers",
    "roofline arithmetic intensity": "throughput/prefill_and_decode",
    "tensor parallel vs pipeline parallel": "throughput/model_parallelism",
    "draft model acceptance": "throughput/speculative_decoding",
    "cuda graphs": "throughput/fusion_and_runtimes",
    "continuous vs dynamic batching": "throughput/continuous_batching",
    "what batch size": "throughput/batching",
    "semantic cache": "throughput/caching",
    "2:4 sparsity": "throughput/pruning",
    "knowledge distillation": "throughput/distillation",
    "cost per million tokens": "throughput/capacity_and_cost",
}

_FOUND = """place => [...new Set([...document.querySelectorAll(".md-search-result__link")]
    .map(link => new URL(link.href).pathname))].slice(0, 3).some(path => path.endsWith(place))"""


@pytest.mark.parametrize("topic", ["quantization", "kv_cache", "embeddings", "throughput"])
def test_search_in_an_interviewers_words(visitor: Any, topic: str) -> None:
    """Typed into the box of one page, one after the other."""
    page, lost = visitor().open("index"), []
    page.keyboard.press("/")
    box = page.locator(".md-search__input")
    for words, right in ASKED.items():
        if not right.startswith(topic):
            continue
        box.fill(words)
        box.press("End")  # the theme searches when a key is let go
        try:
            page.wait_for_function(_FOUND, arg=f"/{right}.html", timeout=5_000)
        except Exception:  # told with what was found in its place
            first = page.locator(".md-search-result__link").evaluate_all("links => links.slice(0, 4).map(a => a.href)")
            lost.append((words, right, [place.rsplit("/", 1)[1] for place in first]))
    assert lost == []


def test_every_question_can_be_found_by_a_tag_and_by_other_words(site: Path, source: Any) -> None:
    """Each question's other wordings stand in the search index, and each of its tags in the list of tags."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    first = {entry["location"]: entry for entry in index["docs"] if "#" not in entry["location"]}
    listed = (site / "tags.html").read_text(encoding="utf-8")
    questions = [n for n in source.pages() if "asked:" in (source.root / "docs" / f"{n}.md").read_text("utf-8")]
    assert len(questions) > 40
    for name in questions:
        entry = first[f"{name}.html"]
        assert "Also asked as: " in entry["text"], name
        assert "30 s Formula" not in " ".join(entry["text"].split()), name
        assert len(entry["tags"]) >= 2 and f"{name}.html" in listed, name
