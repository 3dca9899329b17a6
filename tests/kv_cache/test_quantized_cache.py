"""Can the KV cache be quantized? Bytes, losses and errors against a second way; each trap is shown wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from snippets.kv_cache import quantized_cache as snippet
from snippets.models.decoder import Decoder, KVCache, attend
from snippets.models.quantized_cache import CacheScheme, QuantizedCache
from snippets.models.shapes import LLAMA_3_8B
from tests.odd import ODD, odd_decoder, odd_ids
from tests.small import failing_small


@pytest.fixture(scope="module")
def odd() -> Decoder:
    return odd_decoder()


def test_bytes_by_hand() -> None:
    found = snippet.byte_values()
    heads = 32 * 8
    assert found["plain_token_bytes"] == heads * 2 * 128 * 2
    assert found["int8_token_bytes"] == heads * 2 * (128 + 2)
    assert found["int4_token_bytes"] == heads * 2 * (64 + 2)
    assert found["int4_channel_bytes"] == heads * (64 + 2 + 64 + 128 * 2 // 64)
    assert found["int4_channel_middle_bytes"] == heads * (64 + 4 + 64 + 128 * 4 // 64)
    assert found["recent_bytes"] == heads * 64 * 128 * 2
    for name in ("plain_token", "int8_token", "int4_token", "int4_channel", "int4_channel_middle"):
        stored = found[f"{name.removesuffix('_token') if name == 'plain_token' else name}_cache_bytes"]
        assert stored == 64 * found[f"{name}_bytes"]


def test_a_step_reads_weights_once_and_every_cache() -> None:
    columns = snippet.step_columns((1, 10_000_000))
    few, many = columns["fewer_ratio"]
    assert few == pytest.approx(1, abs=1e-4)
    assert 1.9 < many < 131072 / 66560
    assert columns["plain_step_bytes"][1] == 2 * 8_030_261_248 + 1_310_720_000_000


def test_the_loss_through_a_cache_equals_token_by_token(odd: Decoder) -> None:
    """A second way: one token at a time, its logits against the next token."""
    windows = odd_ids(3, 8)
    found = snippet.loss_values(odd, windows)
    losses = {}
    for name in ("plain", "int8_token", "int4_token"):
        rows = []
        for window in windows:
            cache = KVCache(ODD, 1, 7, torch.float32)
            if name != "plain":
                cache = QuantizedCache(ODD, 1, 7, torch.float32, scheme=snippet.SCHEMES[name])
            logits = torch.cat([odd(window[None, i : i + 1], cache)[0] for i in range(7)])
            rows.append(F.cross_entropy(logits, window[1:]))
        losses[name] = torch.stack(rows)
    assert found["plain_loss_nats"] == pytest.approx(float(losses["plain"].mean()), abs=1e-4)
    assert found["plain_loss_nats"] > 1
    for name in ("int8_token", "int4_token"):
        added = float((losses[name] - losses["plain"]).mean())
        assert found[f"{name}_added_nats"] == pytest.approx(added, abs=5e-3)
    assert found["channel_gain_nats"] == pytest.approx(
        found["int4_token_added_nats"] - found["int4_channel_added_nats"], abs=1e-9
    )
    assert 0 < found["int4_token_agree_share"] <= found["int8_token_agree_share"] <= 1


def test_attention_inputs_are_what_the_decoder_attends_with(odd: Decoder) -> None:
    """With them the last layer's attention, computed again, is what entered the output projection."""
    ids, seen = odd_ids(1, 7), list[torch.Tensor]()
    hook = odd.layers[-1].get_submodule("self_attn.o_proj").register_forward_pre_hook(lambda _m, x: seen.append(x[0]))
    odd(ids)
    hook.remove()
    queries, cache = snippet.attention_inputs(odd, ids)
    again = attend(queries[-1], cache.keys[-1], cache.values[-1]).transpose(1, 2).reshape(1, 7, -1)
    assert torch.allclose(again, seen[0], atol=1e-5) and again.norm() > 0.01
    assert len(queries) == ODD.layers and not odd.layers[0].get_submodule("self_attn.q_proj")._forward_hooks


def test_error_by_layer_against_rounding_by_hand(odd: Decoder) -> None:
    ids = odd_ids(1, 9)
    columns = snippet.layer_columns(odd, ids, ("int8_token", "int4_token"))
    assert columns["layer_count"] == [0, 1, 2, 0, 1, 2]
    queries, cache = snippet.attention_inputs(odd, ids)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        step = (x.abs().amax(-1, keepdim=True) / 7).half().float()
        return (x / step).round() * step

    for layer in range(3):
        keys, values = cache.keys[layer], cache.values[layer]
        exact = attend(queries[layer], keys, values)
        found = attend(queries[layer], rounded(keys), rounded(values))
        by_hand = float((found - exact).norm() / exact.norm())
        assert columns["output_difference"][3 + layer] == pytest.approx(by_hand, rel=1e-3)
        assert columns["output_difference"][layer] < by_hand / 4


def test_trap_one_large_channel_spoils_a_shared_scale_and_not_its_own() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(1, 8, 64, 128, generator=generator)
    geometry = replace(LLAMA_3_8B, layers=1)
    errors = {}
    for large in (1.0, 20.0):
        keys[..., 5] *= large
        for per in ("token", "channel"):
            cache = QuantizedCache(geometry, 1, 64, torch.float32, scheme=CacheScheme(4, per))
            found, _ = cache.append(0, keys, keys)
            others = [i for i in range(128) if i != 5]
            errors[per, large] = float((found - keys)[..., others].norm() / keys[..., others].norm())
    assert errors["token", 20.0] > 3 * errors["token", 1.0]
    assert errors["channel", 20.0] == pytest.approx(errors["channel", 1.0])


def test_trap_codes_alone_are_not_the_bytes() -> None:
    found = snippet.byte_values()
    assert found["int4_token_bytes"] > found["plain_token_bytes"] / 4
    assert found["int8_token_bytes"] > found["plain_token_bytes"] / 2


@pytest.mark.models
@pytest.mark.timing
def test_claims_hold_at_small_scale() -> None:
    assert failing_small("kv_cache/quantized_cache", "T") == []
