"""Why is decode slow? Formula, PyTorch's counter and storage agree on odd sizes; ridges are those of the datasheets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snippets.instruments.memory import storage_bytes
from snippets.models.decoder import Decoder, KVCache
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry
from snippets.throughput import prefill_and_decode as snippet

ODD = Geometry("odd", 3, 10, 6, 2, 4, 14, 22, False, "none")


@pytest.mark.parametrize("new, context, batch", [(1, 0, 1), (1, 6, 3), (7, 0, 1), (5, 0, 2), (3, 4, 2)])
@pytest.mark.parametrize("geometry", [ODD, replace(ODD, tied=True, heads=2)], ids=["gqa", "tied"])
def test_formula_equals_the_counter(geometry: Geometry, new: int, context: int, batch: int) -> None:
    one = snippet.work(geometry, new, context, batch)
    assert snippet.counted(geometry, new, context, batch)[0] == one.flops > 0
    assert snippet.counted(geometry, new, context, batch)[2] == one.weight_bytes


def test_bytes_equal_real_storage() -> None:
    decoder, cache = Decoder(ODD).to(torch.bfloat16), KVCache(ODD, 3, 7, torch.bfloat16)
    one = snippet.work(ODD, 1, 6, 3)
    matrices = [weight for name, weight in decoder.named_parameters() if weight.ndim == 2 and "embed" not in name]
    assert one.weight_bytes == storage_bytes(matrices)
    assert one.cache_bytes == cache.nbytes == storage_bytes([cache.keys, cache.values])


def test_ridges_of_public_cards() -> None:
    columns = snippet.card_columns()
    ridge = dict(zip(columns["card"], map(round, columns["ridge_flops_per_byte"]), strict=True))
    assert {"A100 SXM 80GB": 153, "H100 SXM": 295, "H200 SXM": 206, "B200": 281}.items() <= ridge.items()


def test_trap_the_sparse_rate_is_no_dense_one() -> None:
    """What product pages print for an H100 in BF16 is twice what the table of dense rates holds."""
    assert 2 * snippet.peak("H100 SXM").flops_per_second == pytest.approx(1979e12, rel=1e-3)


def test_attention_gains_nothing_from_a_batch_and_matrices_do() -> None:
    one, many = (snippet.work(LLAMA_3_8B, 1, 99, batch) for batch in (1, 64))
    assert many.attention_flops / many.cache_bytes == one.attention_flops / one.cache_bytes == 4
    assert many.layers_flops / many.weight_bytes == 64 * one.layers_flops / one.weight_bytes


@pytest.mark.parametrize("card", ["H100 SXM", "B200", "A100 SXM 80GB"])
def test_the_context_beyond_which_no_batch_reaches_the_ridge(card: str) -> None:
    peak = snippet.peak(card)
    found = snippet.ridge_context_tokens(LLAMA_3_8B, peak)
    assert found == snippet.scanned_context_tokens(LLAMA_3_8B, peak)
    ridge = peak.flops_per_second / peak.bytes_per_second
    assert snippet.work(LLAMA_3_8B, 1, found, 10**7).flops_per_byte < ridge
    assert snippet.work(LLAMA_3_8B, 1, found // 2, 10**7).flops_per_byte > ridge


def test_views_are_no_launches() -> None:
    x = torch.ones(4, 6)
    with torch.inference_mode(), snippet.KernelCounter() as counter:
        x.view(6, 4).transpose(0, 1)[1:]
    assert counter.count == 0
    with torch.inference_mode(), snippet.KernelCounter() as counter:
        (x.T @ x).add_(1)
    assert counter.count == 2


def test_predictions_name_what_binds() -> None:
    columns = snippet.predicted_columns()
    rows = list(zip(columns["model"], columns["phase"], columns["queued"], strict=True))
    bound = dict(zip(rows, columns["bound"], strict=True))
    seconds = dict(zip(rows, columns["step_seconds"], strict=True))
    assert bound["Llama-3-8B", "decode", "as a graph"] == "bytes"
    assert bound["Llama-3-8B", "prefill", "as a graph"] == "operations"
    small = [("SmolLM2-135M", phase, "one by one") for phase in ("decode", "prefill")]
    assert [bound[row] for row in small] == ["launches", "launches"]
    assert seconds[small[0]] == seconds[small[1]] == snippet.kernels(SMOLLM2_135M) * snippet.LAUNCH_SECONDS


def test_a_call_of_a_layer_multiplies_what_the_formula_says() -> None:
    """Random weights: rows in one pass give what the rows give one by one where attention sees one token."""
    from snippets.models.decoder import random_block

    thin = replace(snippet.LAYER, hidden=32, heads=4, kv_heads=2, head_dim=8, ffn=48)
    block = random_block(thin, torch.bfloat16)
    alone, prompt = (snippet.layer_call(block, thin, rows)() for rows in (1, 5))
    assert isinstance(alone, torch.Tensor) and isinstance(prompt, torch.Tensor)
    assert prompt.shape == (1, 5, 32)
    assert torch.allclose(prompt[:, :1].float(), alone.float(), rtol=2**-6, atol=2**-6)
