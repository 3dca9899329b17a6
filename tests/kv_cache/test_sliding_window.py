"""What caps the KV cache? The ring against the mask, the mask against transformers, and each trap shown wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from snippets.instruments.memory import storage_bytes
from snippets.kv_cache import sliding_window as snippet
from snippets.kv_cache.sliding_window import WHOLE, Kept, RollingCache
from snippets.models.decoder import Decoder, KVCache
from snippets.models.shapes import MISTRAL_7B
from tests.odd import ODD, odd_decoder, odd_ids
from tests.small import failing_small


@pytest.fixture(scope="module")
def odd() -> Decoder:
    return odd_decoder()


KEPT = [
    Kept(5),
    Kept(1),
    Kept(3, 2),
    Kept(4, 1, places=True),
    Kept(3, 2, places=True),
    Kept(5, places=True),
    Kept(40, 2),
]


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_the_ring_equals_the_mask_on_odd_sizes(odd: Decoder, kept: Kept) -> None:
    ids = odd_ids(1, 17)
    ring = RollingCache(ODD, 1, kept, torch.float32)
    logits, masked = snippet.one_by_one(odd, ids, ring), snippet.masked_logits(odd, ids, kept)
    assert torch.allclose(logits, masked, atol=1e-4) and masked.abs().max() > 0.1
    assert ring.seen == 17
    whole = snippet.masked_logits(odd, ids, WHOLE)
    assert torch.allclose(logits, whole, atol=1e-4) == (kept.window >= 17)  # the window matters
    assert torch.allclose(logits[:, : kept.window], whole[:, : kept.window], atol=1e-4)  # and not before it is full


def test_a_ring_of_several_sequences(odd: Decoder) -> None:
    ids, kept = odd_ids(3, 9), Kept(3, 1, places=True)
    together = snippet.one_by_one(odd, ids, RollingCache(ODD, 3, kept, torch.float32))
    for row in range(3):
        alone = snippet.one_by_one(odd, ids[row : row + 1], RollingCache(ODD, 1, kept, torch.float32))
        assert torch.allclose(together[row], alone[0], atol=1e-5) and alone.norm() > 0


def test_without_a_window_it_is_the_decoder(odd: Decoder) -> None:
    ids = odd_ids(2, 11)
    assert torch.allclose(snippet.masked_logits(odd, ids, WHOLE), odd(ids), atol=1e-5)


def test_without_sinks_places_and_positions_are_the_same(odd: Decoder) -> None:
    """Rotation knows distances alone, and those within a window do not change."""
    ids = odd_ids(1, 13)
    place, position = (snippet.masked_logits(odd, ids, Kept(5, 0, places)) for places in (True, False))
    assert torch.allclose(place, position, atol=1e-5)
    place, position = (snippet.masked_logits(odd, ids, Kept(4, 1, places)) for places in (True, False))
    assert not torch.allclose(place, position, atol=1e-3)


def test_the_window_is_that_of_mistral_in_transformers(odd: Decoder) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    window = 5
    config = MistralConfig(
        vocab_size=ODD.vocabulary,
        hidden_size=ODD.hidden,
        intermediate_size=ODD.ffn,
        num_hidden_layers=ODD.layers,
        num_attention_heads=ODD.heads,
        num_key_value_heads=ODD.kv_heads,
        head_dim=ODD.head_dim,
        rms_norm_eps=ODD.norm_epsilon,
        rope_parameters={"rope_type": "default", "rope_theta": ODD.rope_theta},
        sliding_window=window,
        tie_word_embeddings=True,
    )
    theirs: Any = MistralForCausalLM(config).eval()
    state = {n if n.startswith("lm_head") else f"model.{n}": t for n, t in odd.state_dict().items()}
    theirs.load_state_dict(state)
    ids = odd_ids(1, 17)
    with torch.inference_mode():
        logits = theirs(ids, use_cache=False).logits
    assert torch.allclose(snippet.masked_logits(odd, ids, Kept(window)), logits, atol=1e-4)
    assert not torch.allclose(snippet.masked_logits(odd, ids, Kept(window + 1)), logits, atol=1e-3)


def test_the_mask_by_loops() -> None:
    kept = Kept(3, 2)
    mask = snippet.seen_mask(7, kept)
    for row in range(7):
        for column in range(7):
            seen = column <= row and (row - column < 3 or column < 2)
            assert bool(mask[row, column]) == seen


def test_attention_drawn_by_hand(odd: Decoder) -> None:
    ids, shares = odd_ids(1, 7), list[torch.Tensor]()
    snippet.masked_logits(odd, ids, WHOLE, shares)
    assert len(shares) == ODD.layers
    attention, layer = odd.layers[0].get_submodule("self_attn"), odd.layers[0]
    read = layer.get_submodule("input_layernorm")(odd.embed_tokens(ids))[0]
    queries = attention.get_submodule("q_proj")(read).view(7, ODD.heads, ODD.head_dim).double()
    keys = attention.get_submodule("k_proj")(read).view(7, ODD.kv_heads, ODD.head_dim).double()
    drawn = torch.zeros(7, dtype=torch.float64)
    angle = 1.0 / ODD.rope_theta ** (torch.arange(0, ODD.head_dim, 2) / ODD.head_dim).double()
    for head in range(ODD.heads):
        key = torch.complex(*keys[:, head // 2].chunk(2, -1))
        query = torch.complex(*queries[:, head].chunk(2, -1))
        for at in (3, 4, 5, 6):
            turned = torch.stack([torch.polar(torch.ones(7).double(), angle * (at - back)) for back in range(at + 1)])
            scores = (query[at] * (key[: at + 1]).conj() * turned).real.sum(-1)
            drawn[: at + 1] += (scores * ODD.head_dim**-0.5).softmax(0)
    assert torch.allclose(shares[0].double(), drawn / (4 * ODD.heads), atol=1e-5)
    for share in shares:
        assert float(share.sum()) == pytest.approx(1, abs=1e-5)


def test_even_share_is_one_over_the_tokens_seen() -> None:
    columns = {"first_share": [0.5, 0.7], "next_share": [0.1, 0.3]}
    found = snippet.share_values(columns, 4)
    assert found["even_share"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert found["first_share"] == pytest.approx(0.6) and found["most_share"] == 0.7


def test_token_losses_against_the_decoder_itself(odd: Decoder) -> None:
    texts = odd_ids(2, 9)
    found = snippet.token_nats(odd, texts, WHOLE)
    by_hand = F.cross_entropy(odd(texts[:, :-1]).transpose(1, 2), texts[:, 1:], reduction="none")
    assert torch.allclose(found, by_hand.double(), atol=1e-5) and found.shape == (2, 8)
    columns = snippet.loss_columns({"whole": found, "plain": found + 1}, bin_tokens=4)
    assert columns["position_tokens"] == [2, 6, 2, 6]
    assert columns["loss_nats"][2] == pytest.approx(columns["loss_nats"][0] + 1)


def test_bytes_by_hand() -> None:
    found = snippet.byte_values(held=7)
    assert found["window_bytes"] == 4096 * 32 * 8 * 128 * 2 * 2
    assert found["ring_storage_bytes"] == 7 * found["token_bytes"] == 7 * 131_072
    ring = RollingCache(MISTRAL_7B, 1, Kept(5, 2), torch.bfloat16)
    assert storage_bytes([ring.keys, ring.values]) == ring.nbytes == 7 * 131_072


def test_trap_a_plain_cache_refuses_what_the_ring_takes_for_ever(odd: Decoder) -> None:
    ids = odd_ids(1, 9)
    with pytest.raises(ValueError, match="do not fit"):
        snippet.one_by_one(odd, ids, KVCache(ODD, 1, 5, torch.float32))
    assert snippet.one_by_one(odd, ids, RollingCache(ODD, 1, Kept(5), torch.float32)).shape == (1, 9, ODD.vocabulary)
    with pytest.raises(ValueError, match="one token at a time"):
        odd(ids, RollingCache(ODD, 1, Kept(5), torch.float32))


@pytest.mark.models
def test_claims_hold_at_small_scale() -> None:
    assert failing_small("kv_cache/sliding_window", "DTR") == []
