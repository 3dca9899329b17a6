"""What does MLA store? Both ways of attending agree on odd sizes, and moving a rotated key's matrix does not."""

from __future__ import annotations

import pytest
import torch

from snippets.kv_cache import latent_attention as snippet
from snippets.kv_cache.latent_attention import LatentShape
from tests.small import controlled, measured_small

EPSILON = 2**-24


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shape", [LatentShape(2, 3, 5, 7, 2, 5), LatentShape(3, 5, 7, 3, 2, 2)], ids=["a", "b"])
def test_latent_equals_expanded_equals_by_hand_on_odd_sizes(tokens: int, shape: LatentShape) -> None:
    layer = snippet.random_layer(tokens, shape, seed=tokens)
    expanded, latent = snippet.attend_expanded(layer), snippet.attend_latent(layer)
    rows = []
    for head in range(shape.heads):
        keys = layer.latent.double() @ layer.key_expansion[head].double().T
        keys = torch.cat((keys, layer.key_rope.double()), 1)
        query = torch.cat((layer.query_nope[head], layer.query_rope[head])).double()
        weights = (keys @ query * keys.shape[1] ** -0.5).softmax(0)
        rows.append(weights @ layer.latent.double() @ layer.value_expansion[head].double().T)
    by_hand = torch.stack(rows)
    assert by_hand.norm() > 0
    for found in (expanded, latent):
        assert snippet.relative_difference(found.double(), by_hand) < 4 * (shape.kv_lora_rank + 2) * EPSILON


def test_bytes_of_deepseek_v3() -> None:
    values = snippet.shape_values()
    assert values["latent_token_bytes"] == 70_272
    assert values["expanded_token_bytes"] == 4_997_120


def test_formula_equals_storage() -> None:
    shape = LatentShape(3, 5, 7, 4, 2, 3)
    for dtype in (torch.float32, torch.bfloat16):
        held = snippet.allocated_values(11, shape, dtype)
        assert held["latent_cache_bytes"] == 11 * snippet.latent_token_bytes(shape, dtype.itemsize)
        assert held["expanded_cache_bytes"] == 11 * snippet.expanded_token_bytes(shape, dtype.itemsize)


def test_operations_by_counting_the_multiplications() -> None:
    """The formula against torch's own counter on the two products that touch every cached token."""
    from torch.utils.flop_counter import FlopCounterMode

    shape, tokens = LatentShape(1, 4, 8, 6, 2, 6), 10
    layer = snippet.random_layer(tokens, shape)
    rank, rope = shape.kv_lora_rank, shape.qk_rope_head_dim
    with FlopCounterMode(display=False) as counter:
        scores = torch.randn(shape.heads, rank + rope) @ torch.cat((layer.latent, layer.key_rope), 1).T
        scores @ layer.latent
    assert counter.get_total_flops() == tokens * snippet.work_values(shape)["latent_attention_flops"]


def test_the_latent_is_replicated_and_heads_are_divided() -> None:
    values = snippet.rank_values(ranks=8)
    assert values["latent_rank_token_bytes"] == snippet.latent_token_bytes(snippet.DEEPSEEK_V3, 2)
    assert 8 * values["expanded_rank_token_bytes"] == snippet.expanded_token_bytes(snippet.DEEPSEEK_V3, 2)


def test_trap_a_rotation_between_query_and_key_cannot_be_moved() -> None:
    """With rotated expanded keys, moving the matrix into the query computes another score."""
    generator = torch.Generator().manual_seed(0)
    rank, width, tokens = 6, 4, 5
    query, latent = torch.randn(width, generator=generator), torch.randn(tokens, rank, generator=generator)
    matrix = torch.randn(width, rank, generator=generator)
    angles = torch.arange(tokens).float()
    turn = torch.stack(
        [torch.block_diag(*[torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]])] * (width // 2)) for a in angles]
    )
    right = torch.einsum("twx,xr,tr,w->t", turn, matrix, latent, query)
    moved = (query @ matrix) @ latent.T
    assert snippet.relative_difference(moved[:1], right[:1]) < 1e-6  # position zero is not rotated
    assert snippet.relative_difference(moved[1:], right[1:]) > 0.1


def test_control_breaks_what_the_page_claims() -> None:
    found, control = measured_small("kv_cache/latent_attention"), controlled("kv_cache/latent_attention")
    assert found["output_difference"] <= 1e-5 < control["output_difference"]
    assert control["latent_token_bytes"] != 70_272
