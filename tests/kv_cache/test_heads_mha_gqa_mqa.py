"""MHA, GQA, MQA: three ways to one attention on odd sizes, exact copies, pooling by hand, both traps shown wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from snippets.kv_cache import heads_mha_gqa_mqa as snippet
from snippets.models.decoder import Decoder, from_state, initialize
from snippets.models.shapes import Geometry

CPU = torch.device("cpu")
EPSILON = 2**-24
SMALL = Geometry("odd", 2, 30, 6, 3, 6, 14, 11, True, "random weights")


def random_decoder(geometry: Geometry = SMALL) -> Decoder:
    """Weights wide enough that a wrong head shows in the logits."""
    decoder = initialize(Decoder(geometry), 0, std=0.3)
    assert isinstance(decoder, Decoder)
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 33])
@pytest.mark.parametrize(("heads", "kv_heads"), [(6, 6), (6, 3), (6, 2), (7, 1), (15, 5)])
def test_three_ways_equal_each_head_by_hand(tokens: int, heads: int, kv_heads: int) -> None:
    queries, keys, values = snippet.draw(kv_heads, tokens, torch.float32, CPU, heads, head_dim=10)
    rows = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        weights = (keys[0, shared].double() @ queries[0, head, 0].double() * 10**-0.5).softmax(0)
        rows.append(weights @ values[0, shared].double())
    by_hand = torch.stack(rows)[None, :, None]
    for name, way in snippet.WAYS.items():
        found = way(queries, keys, values)
        assert found.shape == queries.shape, name
        assert snippet.relative_difference(found, by_hand) < 4 * (tokens + 10) ** 0.5 * EPSILON, name


def test_bytes_by_hand_and_by_storage() -> None:
    values = snippet.byte_values(tokens=7)
    assert values["mha_token_bytes"] == 2 * 32 * 32 * 128 * 2
    for name, share in (("mha", 1), ("gqa", 4), ("mqa", 32)):
        assert values[f"{name}_token_bytes"] * share == values["mha_token_bytes"]
        assert values[f"{name}_cache_bytes"] == 7 * values[f"{name}_token_bytes"]
        assert values[f"{name}_flops_per_byte"] == share  # BF16: query heads over KV heads


def test_operations_by_counting_two_products() -> None:
    """The formula against PyTorch's counter, on scores and weighted sum of one layer; KV heads do not enter."""
    for kv_heads in (8, 2, 1):
        tokens, shape = 10, Geometry("one layer", 1, 32, 8, kv_heads, 4, 1, 1, True, "")
        rows, keys = torch.ones(kv_heads, 8 // kv_heads, 4), torch.ones(kv_heads, tokens, 4)
        with FlopCounterMode(display=False) as counter:
            rows @ keys.mT @ keys
        assert counter.get_total_flops() == tokens * snippet.attention_flops(shape)


def test_copied_heads_are_the_same_model_and_pooled_are_not() -> None:
    decoder, ids = random_decoder(), torch.arange(11)[None]
    ways = snippet.merges(SMALL)
    logits = decoder(ids)
    as_mha = snippet.converted(decoder, ways[snippet.COPIES])
    assert as_mha.geometry.kv_heads == 6
    assert snippet.relative_difference(as_mha(ids), logits) < 100 * EPSILON
    pooled = snippet.converted(decoder, ways[snippet.MEAN])
    assert pooled.geometry.kv_heads == 1
    assert snippet.relative_difference(pooled(ids), logits) > 0.01
    assert torch.equal(decoder(ids), logits)  # the original is untouched


def test_pooling_is_the_mean_of_each_heads_keys() -> None:
    """By the projections' outputs: the pooled head's key is the mean of the heads' keys."""
    decoder = random_decoder()
    keys, values = "layers.1.self_attn.k_proj.weight", "layers.0.self_attn.v_proj.weight"
    x = torch.randn(5, SMALL.hidden, generator=torch.Generator().manual_seed(1))
    own = x @ decoder.state_dict()[keys].T
    one = x @ snippet.converted(decoder, snippet.pooled).state_dict()[keys].T
    torch.testing.assert_close(one, own.view(5, SMALL.kv_heads, SMALL.head_dim).mean(1))
    second = snippet.converted(decoder, snippet.picked(1)).state_dict()[values]
    assert torch.equal(second, decoder.state_dict()[values][SMALL.head_dim : 2 * SMALL.head_dim])


def test_heads_that_are_equal_pool_without_loss() -> None:
    """What conversion costs is how far heads differ: equal ones cost nothing."""
    shared = random_decoder(replace(SMALL, kv_heads=1))
    state = dict(shared.state_dict())
    for name, weight in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            state[name] = weight.repeat(3, 1)
    wide = from_state(SMALL, state, torch.float32)
    ids = torch.arange(9)[None]
    assert snippet.relative_difference(snippet.converted(wide, snippet.pooled)(ids), shared(ids)) < 100 * EPSILON


def test_trap_copies_in_the_wrong_order_fit_and_are_wrong() -> None:
    tensors = snippet.draw(3, 5, torch.float32, CPU, heads=6, head_dim=10)
    right, wrong = snippet.grouped(*tensors), snippet.tiled(*tensors)
    assert wrong.shape == right.shape
    assert snippet.relative_difference(wrong, right) > 0.1


def test_trap_copies_allocate_the_cache_that_was_saved() -> None:
    found = snippet.equality_values(33, CPU)
    gqa_layer_bytes = 2 * 33 * 8 * 128 * 2
    assert found["copied_bytes"] == 4 * gqa_layer_bytes


def test_a_rank_holds_a_head_at_least() -> None:
    four, sixteen = snippet.rank_values(4), snippet.rank_values(16)
    assert 4 * four["gqa_rank_token_bytes"] == snippet.token_bytes(8, 2)
    assert 16 * sixteen["gqa_rank_token_bytes"] == 2 * snippet.token_bytes(8, 2)  # each head twice
    assert sixteen["mqa_rank_token_bytes"] == sixteen["gqa_rank_token_bytes"]


def test_short_contexts_are_weights_and_long_batches_are_cache() -> None:
    columns = snippet.step_columns()
    ratios = dict(zip(zip(columns["batch"], columns["context_tokens"], strict=True), columns["gqa_ratio"], strict=True))
    assert ratios["1", 256] < 1.01
    assert 2 < ratios["32", 8192] < 4
