"""Where does order come in? Rotation agrees with the paper's matrices, logits with the model's; the traps bite."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snippets.embeddings import positions_enter_later as snippet
from snippets.embeddings.positions_enter_later import at
from snippets.models.decoder import Attention, Decoder, KVCache, initialize, rotate, rotation
from snippets.models.encoder import Encoder, encoder
from snippets.models.shapes import Geometry

ODD = Geometry("odd", 3, 30, 3, 1, 10, 7, 11, True, "a test's own", rope_theta=100.0)
EPSILON = 2**-24


@pytest.fixture(scope="module")
def odd() -> Decoder:
    fresh = Decoder(ODD)
    initialize(fresh, 0, std=0.3)
    return fresh.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return encoder()


def ids_of(tokens: int) -> torch.Tensor:
    return torch.randint(11, (1, tokens), generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("head_dim", [2, 6, 10])
def test_the_decoders_rotation_is_the_papers_block_matrix_and_its_complex_form(tokens: int, head_dim: int) -> None:
    geometry = replace(ODD, head_dim=head_dim)
    x = torch.randn(tokens, head_dim, generator=torch.Generator().manual_seed(head_dim))
    positions = torch.arange(tokens) * 3 + 1
    found, half = rotate(x, *snippet.at(positions, x, geometry)).double(), head_dim // 2
    turned = snippet.turned(x, positions, geometry.rope_theta)
    rows = []
    for vector, position in zip(x.double(), positions, strict=True):
        row = torch.zeros(head_dim, dtype=torch.float64)
        for pair in range(half):
            angle = position.double() * geometry.rope_theta ** (-pair / half)
            a, b = vector[pair], vector[pair + half]
            row[pair], row[pair + half] = a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()
        rows.append(row)
    by_hand = torch.stack(rows)
    assert by_hand.norm() > 0
    assert torch.allclose(torch.cat((turned.real, turned.imag), 1), by_hand, atol=1e-12)
    assert torch.allclose(found, by_hand, atol=30 * EPSILON * 22)


@pytest.mark.parametrize("tokens", [1, 2, 5, 7])
def test_logits_at_its_own_positions_are_the_decoders_bit_for_bit(odd: Decoder, tokens: int) -> None:
    ids, weight = ids_of(tokens), odd.embed_tokens.weight
    here = torch.arange(tokens)
    assert torch.equal(snippet.logits_at(odd, ids, *snippet.at(here, weight, ODD)), odd(ids))
    exact = snippet.logits_at(odd, ids, *snippet.exact(here, weight, ODD))
    assert snippet.relative(exact, odd(ids)) < 1e-5


@pytest.mark.parametrize("tokens", [4, 6, 10])
def test_cached_keys_left_where_they_were_are_a_gap_in_the_text(odd: Decoder, tokens: int) -> None:
    ids, weight, moved, half = ids_of(tokens), odd.embed_tokens.weight, 13, tokens // 2
    cache = KVCache(ODD, 1, tokens, torch.float32)
    odd(ids[:, :half], cache)
    late = torch.arange(half, tokens) + moved
    cached = snippet.logits_at(odd, ids[:, half:], *snippet.at(late, weight, ODD), cache)
    positions = torch.cat((torch.arange(half), late))
    whole = snippet.logits_at(odd, ids, *snippet.at(positions, weight, ODD))[:, half:]
    assert snippet.relative(cached, whole) < 1e-5
    found = snippet.reuse_values(odd, ids, moved)
    assert found["turned_reuse_difference"] < 1e-5 < 1e-3 < found["left_reuse_difference"]


def test_turning_a_turned_key_adds_positions() -> None:
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))
    here = torch.arange(5)
    once = rotate(x, *snippet.at(here, x, ODD))
    again = rotate(once, *rotation(ODD, 7, 1, x))
    assert torch.allclose(again, rotate(x, *snippet.at(here + 7, x, ODD)), atol=1e-5)


def test_trap_the_conventions_differ_in_order_alone_and_cannot_be_mixed(odd: Decoder) -> None:
    found = snippet.convention_values(tokens=7)
    assert found["conventions_equal_count"] == found["rotated_count"] == 7 * 64
    ids, weight = ids_of(7), odd.embed_tokens.weight
    table, before = snippet.at(torch.arange(7), weight, ODD), odd(ids)
    with snippet.interleaved(odd):
        assert snippet.relative(snippet.logits_at(odd, ids, *table), before) > 0.01
        # Order within a head alone: without rotation the scores, and so the logits, are what they were.
        unturned = snippet.logits_at(odd, ids, *snippet.unturned(7, weight, ODD))
    assert torch.equal(odd(ids), before)
    assert snippet.relative(snippet.logits_at(odd, ids, *snippet.unturned(7, weight, ODD)), unturned) < 1e-5


def test_interleaved_rows_are_put_back_after_an_error(odd: Decoder) -> None:
    keys = odd.get_submodule("layers.0.self_attn.k_proj")
    before = keys.get_parameter("weight").clone()
    with pytest.raises(KeyError), snippet.interleaved(odd):
        assert not torch.equal(keys.get_parameter("weight"), before)
        raise KeyError
    assert torch.equal(keys.get_parameter("weight"), before)


def test_neighbours_is_how_gguf_orders_rows() -> None:
    rows = torch.arange(2 * 6)[:, None]  # two heads of six
    assert snippet.neighbours(rows, 6)[:, 0].tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


def test_trap_positions_in_bf16_collide() -> None:
    found = snippet.rounding_values(2100)
    assert found["bf16_distinct_count"] == len({float(torch.tensor(i).bfloat16()) for i in range(2100)})
    assert torch.tensor(257).bfloat16() == torch.tensor(256).bfloat16()
    assert (found["bf16_first_wrong_count"], found["fp16_first_wrong_count"]) == (257, 2049)
    with pytest.raises(IndexError):
        snippet.rounding_values(256)  # nothing is wrong yet


def test_scores_depend_on_the_distance_alone_and_added_positions_break_that() -> None:
    found = snippet.score_values(pairs=257)
    assert 0 < found["shift_difference"] <= 1e-3
    assert found["fp64_shift_difference"] < 1e-11
    assert found["norm_difference"] <= 1e-6
    words = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    here, learned = torch.arange(5), torch.randn(20, 10, generator=torch.Generator().manual_seed(2))
    for scheme, moves in (("learned", True), ("sinusoidal", True), ("rotary", False)):
        (_, one), (_, other) = (snippet.placed(scheme, words, here + shift, learned) for shift in (0, 9))
        assert (snippet.relative(one @ one.T, other @ other.T) > 0.01) is moves
    alone = snippet.sinusoid(here.float(), 10), snippet.sinusoid(here + 9.0, 10)
    assert torch.allclose(alone[0] @ alone[0].T, alone[1] @ alone[1].T, atol=1e-4)  # without a word, distance alone


def test_a_learned_table_ends(minilm: Encoder) -> None:
    ids = snippet.minilm_ids(7)
    found = snippet.limit_values(minilm, ids)
    assert found["longest_tokens"] == found["learned_rows_count"] == 512
    assert found["learned_parameters_count"] == 512 * 384
    assert found["added_distinct_count"] == 2
    with pytest.raises(RuntimeError):
        minilm(ids[:1].expand(1, 513), torch.ones(1, 513))


def test_lookup_knows_no_order(odd: Decoder) -> None:
    found = snippet.lookup_values(odd, ids_of(7)[0])
    assert found["permuted_equal_count"] == 7
    assert found["distinct_rows_count"] == found["distinct_ids_count"] == len(set(ids_of(7)[0].tolist()))
    assert found["model_parameters_count"] == found["parts_parameters_count"]


def test_mask_and_rotation_are_what_break_the_symmetry(odd: Decoder) -> None:
    x = torch.randn(7, 30, generator=torch.Generator().manual_seed(3))
    order, layer = torch.tensor([6, 2, 0, 5, 1, 3, 4]), odd.get_submodule("layers.0.self_attn")
    assert isinstance(layer, Attention)
    for table, causal, symmetric in (
        (snippet.unturned(7, x, ODD), False, True),
        (snippet.unturned(7, x, ODD), True, False),
        (snippet.at(torch.arange(7), x, ODD), False, False),
    ):
        out, moved = (snippet.attention(layer, y, *table, causal) for y in (x, x[order]))
        assert (snippet.relative(moved, out[order]) < 1e-5) is symmetric
    masked = snippet.attention(layer, x, *snippet.at(torch.arange(7), x, ODD), True)
    theirs = layer(x[None], *snippet.at(torch.arange(7), x, ODD), None, 0)[0]
    assert torch.allclose(masked, theirs, atol=1e-5)


def test_losses_are_compared_on_the_same_tokens(odd: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snippet, "at", lambda positions, like, geometry=ODD: at(positions, like, ODD))
    windows = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(4))
    found = snippet.losses(odd, windows, (5,))
    logits, alone = odd(windows[:, :-1]), odd(windows[:, 4:-1])
    for row in range(2):
        by_hand = -logits[row].log_softmax(-1)[torch.arange(8), windows[row, 1:]]
        assert torch.allclose(found["trained"][row].float(), by_hand, atol=1e-5)
        by_hand = -alone[row].log_softmax(-1)[torch.arange(4), windows[row, 5:]]
        assert torch.allclose(found["alone"][row].float(), by_hand, atol=1e-5)
    gap, trained = found["gap_5"], found["trained"]
    assert torch.allclose(gap[:, :4], trained[:, :4], atol=1e-5)
    assert not torch.allclose(gap[:, 4:], trained[:, 4:], atol=1e-4)
    difference = (gap - trained)[:, 4:].mean(1)
    assert snippet.added(found, "gap_5") == pytest.approx((float(difference.mean()), float(difference.std()) / 2**0.5))
    difference = (found["none"] - trained).mean(1)
    assert snippet.loss_values(found)["none_added_nats"] == pytest.approx(float(difference.mean()))
