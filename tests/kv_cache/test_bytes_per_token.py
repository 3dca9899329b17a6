"""How big is the KV cache? The product agrees with real caches on odd shapes, and each slip is shown wrong."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from snippets.instruments.memory import allocated_by, storage_bytes
from snippets.kv_cache import bytes_per_token as snippet
from snippets.models import shapes
from snippets.models.decoder import Decoder, KVCache, initialize
from tests.small import controlled, measured_small

ODD = dataclasses.replace(
    shapes.SMOLLM2_135M, name="odd", layers=3, hidden=40, heads=10, kv_heads=5, head_dim=14, ffn=12, vocabulary=11
)


@pytest.mark.parametrize("tokens", [2, 3, 5, 7])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_formula_equals_storage_and_allocator_on_odd_sizes(tokens: int, batch: int, dtype: torch.dtype) -> None:
    wanted = tokens * batch * snippet.token_bytes(ODD, dtype.itemsize)
    cache, allocated = allocated_by(lambda: KVCache(ODD, batch, tokens, dtype), device="cpu")
    assert storage_bytes(cache) == cache.nbytes == allocated == wanted > 0


def test_claims_of_llama_shapes() -> None:
    values = snippet.formula_values(2)
    assert values["kv_8b_token_bytes"] == 131_072
    assert values["kv_70b_token_bytes"] == 327_680
    assert values["gib_8b_tokens"] == 8_192


def test_an_empty_cache_is_seen_as_unwritten_and_a_filled_one_is_not() -> None:
    model = initialize(Decoder(ODD), seed=0)
    cache = KVCache(ODD, 2, 7, torch.float32)
    assert snippet.unwritten_count(cache) == 2 * 7
    with torch.inference_mode():
        model(torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]]), cache)
    assert snippet.unwritten_count(cache) == 2 * 2


def test_residual_sees_a_cache_that_is_not_linear() -> None:
    straight = {"cached_tokens": [2, 5], "batch_count": [3, 3], "cache_bytes": [60, 150]}
    assert snippet.residual_bytes(straight, 10) == 0
    assert snippet.residual_bytes(straight | {"cache_bytes": [60, 151]}, 10) == 1
    assert snippet.residual_bytes(straight, 11) == 15


def test_trap_query_heads_overstate_by_the_group_size() -> None:
    for geometry in (shapes.LLAMA_3_8B, shapes.SMOLLM2_135M, shapes.QWEN3_0_6B):
        slip = snippet.query_heads_token_bytes(geometry, 2)
        assert slip == snippet.token_bytes(geometry, 2) * geometry.heads // geometry.kv_heads
        assert slip > snippet.token_bytes(geometry, 2)


def test_trap_hidden_over_heads_is_wrong_where_head_dim_is_its_own() -> None:
    right = {g.name: snippet.hidden_token_bytes(g, 2) == snippet.token_bytes(g, 2) for g in (
        shapes.LLAMA_3_8B, shapes.LLAMA_2_7B, shapes.MISTRAL_7B, shapes.GEMMA_7B, shapes.QWEN3_0_6B,
    )}  # fmt: skip
    assert right == {
        "Llama-3-8B": True, "Llama-2-7B": True, "Mistral-7B": True, "Gemma-7B": False, "Qwen3-0.6B": False,
    }  # fmt: skip


def test_levers_agree_with_real_tensors() -> None:
    geometry = dataclasses.replace(ODD, layers=2)
    codes = torch.zeros(2, geometry.layers, geometry.kv_heads, 1, geometry.head_dim, dtype=torch.int8)
    scales = torch.zeros(2, geometry.layers, geometry.kv_heads, 1, dtype=torch.bfloat16)
    assert snippet.int8_token_bytes(geometry) == codes.nbytes + scales.nbytes
    levers = snippet.lever_values(geometry)
    assert levers["unshared_token_bytes"] == geometry.heads * levers["single_token_bytes"]
    assert levers["shared_token_bytes"] == snippet.token_bytes(geometry, 2)


@pytest.mark.models
def test_control_breaks_what_the_page_claims() -> None:
    found, control = measured_small("kv_cache/bytes_per_token"), controlled("kv_cache/bytes_per_token")
    assert found["filled_formula_bytes"] == found["filled_storage_bytes"] == found["filled_allocated_bytes"]
    assert found["unwritten_count"] == found["residual_bytes"] == 0
    assert control["filled_formula_bytes"] != control["filled_storage_bytes"]
    assert control["unwritten_count"] > 0
    assert control["residual_bytes"] > 0
