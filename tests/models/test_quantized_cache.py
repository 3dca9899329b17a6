"""Quantized caches: bytes, rounding and the decoder's use of them on odd sizes; the kernel in Triton's interpreter."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snippets.instruments.memory import storage_bytes
from snippets.models.decoder import Decoder, KVCache, generate
from snippets.models.quantized_cache import (
    CacheScheme,
    QuantizedCache,
    attend_dequantized,
    attend_fused,
    decode,
    encode,
    generate_into,
    token_bytes,
)
from tests.odd import ODD, odd_decoder, odd_ids
from tests.triton_interpreter import interpret, needs_triton

SCHEMES = [
    CacheScheme(8),
    CacheScheme(4),
    CacheScheme(8, "channel", block=5),
    CacheScheme(4, "channel", block=5),
    CacheScheme(4, "channel", zero_point=True, block=3),
    CacheScheme(8, zero_point=True, before_rotation=True),
    CacheScheme(4, "channel", before_rotation=True, block=5),
]


@pytest.fixture(scope="module")
def odd() -> Decoder:
    return odd_decoder()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dim", [1, -1])
@pytest.mark.parametrize("zero_point", [False, True])
def test_rounding_is_off_by_half_a_step_at_most(bits: int, dim: int, zero_point: bool) -> None:
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(1)) + 3 * zero_point
    codes, scale, middle = encode(x, bits, dim, zero_point)
    found = decode(codes, scale, middle if zero_point else None, torch.float32)
    step = scale.float().expand_as(x)
    half_ulp = x.abs().amax() * 2**-11  # scale and middle are FP16
    assert ((found - x).abs() <= step / 2 + (2 ** (bits - 1)) * step * 2**-11 + half_ulp).all()
    assert codes.abs().max() == 2 ** (bits - 1) - 1  # the range is used
    assert len(codes.unique()) > 2


def test_zeros_stay_zeros() -> None:
    codes, scale, _ = encode(torch.zeros(1, 3, 4), 8, -1, False)
    assert codes.shape == (1, 3, 4) and not codes.any() and not scale.any()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_bytes_by_formula_are_bytes_in_storage(scheme: CacheScheme) -> None:
    cache = QuantizedCache(ODD, 2, 15, torch.float32, scheme=scheme)
    recent = 2 * ODD.layers * ODD.kv_heads * ODD.head_dim * 4 * (scheme.block if scheme.keys_per == "channel" else 0)
    assert cache.nbytes == storage_bytes(cache) == pytest.approx(2 * 15 * token_bytes(ODD, scheme) + recent, rel=1e-12)
    assert cache.nbytes > recent


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_pass_and_token_by_token_give_the_same_cache(odd: Decoder, scheme: CacheScheme, batch: int) -> None:
    ids = odd_ids(batch, 13)
    whole, steps = (QuantizedCache(ODD, batch, 13, torch.float32, scheme=scheme) for _ in range(2))
    logits = odd(ids, whole)
    one_by_one = torch.cat([odd(ids[:, i : i + 1], steps) for i in range(13)], 1)
    assert whole.length == steps.length == 13
    # A channel's range is known once its block is whole: until then a step sees keys as they came.
    apart = float((logits - one_by_one).norm() / logits.norm())
    assert apart < (0.02 if scheme.keys_per == "token" or scheme.bits == 8 else 0.5)
    filled = 13 // scheme.block * scheme.block if scheme.keys_per == "channel" else 13
    for one, other in ((whole.key_part, steps.key_part), (whole.value_part, steps.value_part)):
        found = one.read(0, filled, torch.float32)  # layer zero stands before any attention
        assert found.norm() > 0
        assert torch.allclose(found, other.read(0, filled, torch.float32), atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_append_returns_nearly_what_went_in_across_blocks(scheme: CacheScheme) -> None:
    generator = torch.Generator().manual_seed(2)
    keys, values = torch.randn(2, 2, ODD.kv_heads, 12, ODD.head_dim, generator=generator)
    cache = QuantizedCache(ODD, 2, 12, torch.float32, scheme=scheme)
    for start, end in ((0, 2), (2, 3), (3, 11), (11, 12)):
        found = cache.append(1, keys[:, :, start:end], values[:, :, start:end])
        cache.length = end
    for got, sent in zip(found, (keys, values), strict=True):
        assert got.shape == sent.shape
        error = float((got - sent).norm() / sent.norm())
        assert 0 < error < (0.01 if scheme.bits == 8 else 0.15)
    if scheme.keys_per == "channel":
        kept = 12 % scheme.block
        exact = 1e-6 if scheme.before_rotation else 0.0
        assert kept == 0 or (found[0] - keys)[:, :, -kept:].abs().max() <= exact
    with pytest.raises(ValueError, match="do not fit"):
        cache.append(1, keys, values)


def test_int8_writes_the_same_tokens_as_the_plain_cache(odd: Decoder) -> None:
    ids = odd_ids(2, 5)
    plain = generate_into(odd, ids, 7, KVCache(ODD, 2, 11, torch.float32))
    assert torch.equal(plain, generate(odd, ids, 7))
    assert generate_into(odd, ids, 7, QuantizedCache(ODD, 2, 11, torch.float32)).shape == (2, 7)


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="odd"):
        QuantizedCache(replace(ODD, head_dim=7), 1, 4, torch.float32, scheme=CacheScheme(4))
    for wrong in ({"bits": 3}, {"keys_per": "head"}, {"block": 0}):
        with pytest.raises(ValueError, match="share a scale"):
            CacheScheme(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="plain INT8"):
        attend_fused(torch.zeros(1, 6, 1, 14), QuantizedCache(ODD, 1, 4, torch.float32, scheme=CacheScheme(4)))


def random_cache(heads: int, kv_heads: int, head_dim: int, tokens: int, batch: int, dtype: torch.dtype) -> tuple:
    """A filled INT8 cache of one layer with room to spare, and queries."""
    geometry = replace(ODD, layers=1, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    generator = torch.Generator().manual_seed(tokens)
    cache = QuantizedCache(geometry, batch, tokens + 3, dtype)
    keys, values = torch.randn(2, batch, kv_heads, tokens, head_dim, generator=generator).to(dtype)
    cache.append(0, keys, values)
    cache.length = tokens
    return torch.randn(batch, heads, 1, head_dim, generator=generator).to(dtype), cache


def compare_kernel() -> None:
    """Runs in a process of its own, where Triton interprets: the kernel against the plain way, on odd sizes."""
    from snippets.models.kernels import attend_int8

    for dtype, bound in ((torch.float32, 2e-6), (torch.float16, 2e-3)):
        for heads, kv_heads, head_dim, tokens, batch, parts in (
            (6, 3, 14, 7, 2, 1),
            (5, 1, 20, 33, 1, 3),
            (9, 3, 64, 65, 2, 2),
            (4, 4, 32, 1, 3, None),
            (34, 2, 16, 50, 1, 7),
        ):
            queries, cache = random_cache(heads, kv_heads, head_dim, tokens, batch, dtype)
            plain = attend_dequantized(queries.double(), cache)
            keys, values = (
                (part.codes[0, :, :, : cache.length], part.scale[0, :, :, : cache.length, 0])
                for part in (cache.key_part, cache.value_part)
            )
            found = attend_int8(queries, keys, values, block=16, parts=parts)
            assert found.shape == queries.shape and found.dtype == dtype
            error = float((found.double() - plain).norm() / plain.norm())
            assert error < bound, (dtype, heads, kv_heads, head_dim, tokens, error)
            assert float(plain.norm()) > 0.1
            if parts is None:
                assert torch.equal(attend_fused(queries, cache), attend_int8(queries, keys, values))
    print("equal")


@needs_triton
def test_the_kernel_equals_the_plain_way_in_tritons_interpreter() -> None:
    assert interpret(__file__, "compare_kernel") == "equal\n"
