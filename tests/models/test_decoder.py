"""The plain decoder computes what transformers does, with or without its cache, alone or in a batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from snippets.models import shapes
from snippets.models.decoder import (
    Decoder,
    KVCache,
    attend,
    from_state,
    generate,
    initialize,
    random_block,
    rotation,
)
from snippets.models.shapes import Geometry

pytestmark = pytest.mark.models

# FP32 sums in another order: products of at most 60 terms, a dozen of them a layer, values near one.
ROUNDING = 2e-5


def random_decoder(geometry: Geometry, seed: int = 0) -> Decoder:
    decoder = Decoder(geometry)
    initialize(decoder, seed, std=0.3)
    return decoder.requires_grad_(False).eval()


def ids(batch: int, tokens: int, geometry: Geometry) -> torch.Tensor:
    return torch.randint(geometry.vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
@pytest.mark.parametrize(("batch", "tokens"), [(1, 1), (2, 7), (3, 5)])
def test_equals_transformers(tiny: Geometry, llama: Any, batch: int, tokens: int, kv_heads: int, tied: bool) -> None:
    geometry = dataclasses.replace(tiny, kv_heads=kv_heads, tied=tied)
    model = llama(geometry)
    decoder = from_state(geometry, model.state_dict(), torch.float32)
    prompt = ids(batch, tokens, geometry)
    with torch.inference_mode():
        expected, computed = model(prompt).logits, decoder(prompt)
    assert computed.shape == (batch, tokens, geometry.vocabulary)
    assert expected.std() > 1e-3
    assert torch.allclose(computed, expected, atol=1e-5)


@pytest.mark.parametrize("chunks", [[1] * 7, [3, 1, 2, 1], [5, 2], [6, 1]], ids=str)
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_cached_equals_uncached(tiny: Geometry, batch: int, chunks: list[int]) -> None:
    decoder, prompt = random_decoder(tiny), ids(batch, 7, tiny)
    cache = KVCache(tiny, batch, 9, torch.float32)
    pieces = [decoder(piece, cache) for piece in prompt.split(chunks, dim=1)]
    assert cache.length == 7
    assert torch.allclose(torch.cat(pieces, dim=1), decoder(prompt), atol=ROUNDING)


@pytest.mark.parametrize("batch", [2, 3, 5, 7])
def test_batched_rows_equal_single_ones(tiny: Geometry, batch: int) -> None:
    decoder, prompts = random_decoder(tiny), ids(batch, 6, tiny)
    together = generate(decoder, prompts, 5)
    assert together.shape == (batch, 5)
    for row in range(batch):
        alone = prompts[row : row + 1]
        assert torch.allclose(decoder(prompts)[row], decoder(alone)[0], atol=ROUNDING)
        assert torch.equal(generate(decoder, alone, 5)[0], together[row])


def test_generates_the_same_with_and_without_a_cache(tiny: Geometry) -> None:
    decoder, prompts = random_decoder(tiny), ids(3, 4, tiny)
    cached = generate(decoder, prompts, 9)
    assert torch.equal(cached, generate(decoder, prompts, 9, cached=False))
    assert cached.unique().numel() > 3, "a constant answer would prove nothing"
    # By hand, a token at a time.
    sequence = prompts
    for _ in range(9):
        sequence = torch.cat((sequence, decoder(sequence)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(cached, sequence[:, 4:])


def test_last_only_is_the_last_row(tiny: Geometry) -> None:
    decoder, prompts = random_decoder(tiny), ids(2, 5, tiny)
    assert torch.allclose(decoder(prompts, last_only=True), decoder(prompts)[:, -1:], atol=ROUNDING)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (3, 1), (6, 2), (5, 5)])
@pytest.mark.parametrize(("new", "tokens"), [(1, 1), (1, 7), (2, 7), (5, 5), (3, 11)])
def test_attention_equals_the_formula(heads: int, kv_heads: int, new: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(2, heads, new, 10, generator=generator)
    keys, values = (torch.randn(2, kv_heads, tokens, 10, generator=generator) for _ in range(2))
    wide_keys, wide_values = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (keys, values))
    scores = queries @ wide_keys.transpose(-1, -2) / 10**0.5
    for row in range(new):
        scores[:, :, row, tokens - new + row + 1 :] = -torch.inf
    assert torch.allclose(attend(queries, keys, values), scores.softmax(-1) @ wide_values, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("geometry", "batch", "tokens"),
    [
        (shapes.SMOLLM2_135M, 1, 1),
        (shapes.SMOLLM2_135M, 3, 17),
        (shapes.LLAMA_3_8B, 2, 5),
        (shapes.GEMMA_7B, 1, 7),
    ],
)
def test_cache_bytes_are_exact(geometry: Geometry, batch: int, tokens: int, dtype: torch.dtype) -> None:
    cache = KVCache(geometry, batch, tokens, dtype)
    a_token = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * dtype.itemsize
    assert cache.nbytes == batch * tokens * a_token
    storages = [half.untyped_storage() for half in (cache.keys, cache.values)]
    assert sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values()) == cache.nbytes
    assert (cache.tokens, cache.length) == (tokens, 0)


def test_cache_gives_views_and_grows_nothing(tiny: Geometry) -> None:
    cache = KVCache(tiny, 2, 5, torch.float32)
    before = cache.keys.data_ptr(), cache.nbytes
    new = torch.ones(2, tiny.kv_heads, 3, tiny.head_dim)
    keys, values = cache.append(1, new, 2 * new)
    assert keys.untyped_storage().data_ptr() == cache.keys.untyped_storage().data_ptr()
    assert cache.keys.sum() == new.numel() and cache.values.sum() == 2 * new.numel()
    assert not cache.keys[0].any() and keys.shape == values.shape == new.shape
    assert cache.length == 0, "the caller moves it when all layers have written"
    assert (cache.keys.data_ptr(), cache.nbytes) == before


def test_cache_that_is_full_refuses(tiny: Geometry) -> None:
    decoder, cache = random_decoder(tiny), KVCache(tiny, 1, 5, torch.float32)
    decoder(ids(1, 4, tiny), cache)
    with pytest.raises(ValueError, match="6 tokens do not fit into a cache of 5"):
        decoder(ids(1, 2, tiny), cache)


def test_generation_fills_its_cache_exactly(tiny: Geometry, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[KVCache] = []
    whole = KVCache.__init__

    def watched(self: KVCache, *args: Any, **kwargs: Any) -> None:
        whole(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(KVCache, "__init__", watched)
    generate(random_decoder(tiny), ids(2, 4, tiny), 3)
    assert [(cache.length, cache.tokens) for cache in made] == [(6, 6)], "the last token is never read"


def test_random_block_runs_alone_behind_a_cache(tiny: Geometry) -> None:
    block = random_block(tiny, torch.float32, seed=1)
    assert (
        sum(p.numel() for p in block.parameters())
        == sum(rows * columns for rows, columns in tiny.linear_shapes.values()) + 2 * tiny.hidden
    )
    hidden = torch.randn(2, 7, tiny.hidden, generator=torch.Generator().manual_seed(2))
    whole = block(hidden, *rotation(tiny, 0, 7, hidden))
    cache = KVCache(tiny, 2, 7, torch.float32)
    block(hidden[:, :6], *rotation(tiny, 0, 6, hidden), cache, layer=2)
    cache.length = 6
    steps = [block(hidden[:, 6:], *rotation(tiny, 6, 1, hidden), cache, layer=2) for _ in range(2)]
    assert torch.equal(steps[0], steps[1]), "a step can be timed again at the same context"
    assert torch.allclose(steps[0], whole[:, 6:], atol=ROUNDING)
    assert not torch.allclose(whole, hidden, atol=1e-3)


def test_random_weights_are_the_seeds(tiny: Geometry) -> None:
    one, same, other = (random_block(tiny, seed=seed).mlp.up_proj.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert one.std() == pytest.approx(0.02, rel=0.1)
    block = random_block(tiny, torch.bfloat16, seed=1)
    assert {p.dtype for p in block.parameters()} == {torch.bfloat16}
    assert bool((block.input_layernorm.weight == 1).all())
    assert not torch.equal(block.mlp.gate_proj.weight, block.mlp.up_proj.weight)


def test_bfloat16_is_near_and_stays_bfloat16(tiny: Geometry) -> None:
    exact = random_decoder(tiny)
    rounded = from_state(tiny, exact.state_dict(), torch.bfloat16)
    prompt = ids(2, 6, tiny)
    assert rounded(prompt).dtype == torch.bfloat16
    error = (rounded(prompt).float() - exact(prompt)).norm() / exact(prompt).norm()
    assert 0 < error < 0.05


def test_weights_must_all_be_there_and_be_known(tiny: Geometry) -> None:
    state = dict(random_decoder(tiny).state_dict())
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        from_state(tiny, {name: state[name] for name in state if name != "norm.weight"}, torch.float32)
    with pytest.raises(RuntimeError, match="stranger"):
        from_state(tiny, state | {"stranger": torch.ones(1)}, torch.float32)


def test_a_tied_head_is_one_parameter_after_loading(tiny: Geometry) -> None:
    decoder = from_state(tiny, random_decoder(tiny).state_dict(), torch.float32)
    assert decoder.lm_head.weight is decoder.embed_tokens.weight
    assert sum(p.numel() for p in decoder.parameters()) == shapes.parameters(tiny).total


def test_it_learns_a_sequence_by_heart(tiny: Geometry) -> None:
    decoder = Decoder(tiny)
    initialize(decoder, seed=0, std=0.1)
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    batch, losses = ids(2, 9, tiny), []
    for _ in range(60):
        loss = F.cross_entropy(decoder(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 3 and losses[-1] < 0.5


def test_normed_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Qwen3-0\.6B norms its queries"):
        Decoder(shapes.QWEN3_0_6B)
