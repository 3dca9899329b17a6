"""Formats: values agree with definitions by hand on odd sizes, claims can fail, each trap is shown wrong."""

from __future__ import annotations

import pytest
import torch

from snippets.instruments.device import pick
from snippets.quantization import formats_and_fast_paths as snippet
from tests.small import failing_small, measured_small

CPU = torch.device("cpu")


def by_definition(exponent_bits: int, mantissa_bits: int, bias: int, top: int) -> set[float]:
    """Every finite value of a small float, from sign, exponent and mantissa; the last `top` codes are no numbers."""
    codes = range(2 ** (exponent_bits + mantissa_bits) - top)
    found = set()
    for code in codes:
        exponent, mantissa = code >> mantissa_bits, (code & (2**mantissa_bits - 1)) / 2**mantissa_bits
        value = 2.0 ** (exponent - bias) * (1 + mantissa) if exponent else 2.0 ** (1 - bias) * mantissa
        found |= {value, -value}
    return found


@pytest.mark.parametrize(
    ("name", "exponent_bits", "mantissa_bits", "bias", "top"),
    [
        ("E4M3", 4, 3, 7, 1),  # only the last code is no number
        ("E4M3 FNUZ", 4, 3, 8, 0),
        ("E5M2", 5, 2, 15, 4),  # infinity and three NaNs
        ("FP16", 5, 10, 15, 1024),
        ("BF16", 8, 7, 127, 128),
    ],
)
def test_every_value_is_what_exponent_and_mantissa_say(
    name: str, exponent_bits: int, mantissa_bits: int, bias: int, top: int
) -> None:
    found = snippet.every_value(snippet.FLOATS[name]).tolist()
    assert set(found) == by_definition(exponent_bits, mantissa_bits, bias, top)
    assert found == sorted(found)


def test_e2m1_is_what_exponent_and_mantissa_say() -> None:
    assert set(snippet.E2M1) == by_definition(2, 1, 1, 0)
    assert [snippet.E2M1[code] for code in (0, 1, 2, 7, 9, 15)] == [0, 0.5, 1, 6, -0.5, -6]


def test_normal_levels_match_the_published_and_even_ones_do_not() -> None:
    levels = snippet.normal_float()
    assert len(levels) == len(set(levels)) == 16 and levels == sorted(levels)
    assert sum(level > 0 for level in levels) == 8 and 0.0 in levels
    assert snippet.nf4_values(levels)["nf4_apart_difference"] < 1e-6
    even = [-1 + step / 7.5 for step in range(16)]
    assert snippet.nf4_values(even)["nf4_apart_difference"] > 0.05


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("levels", [snippet.E2M1, snippet.NF4_PUBLISHED])
def test_blocks_come_back_as_the_nearest_level(rows: int, levels: tuple[float, ...]) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, 6 * rows, generator=generator)
    scale = snippet.largest(weight, 2 * rows)
    assert scale.shape == (rows, 3)
    found = snippet.to_blocks(weight, levels, scale).values()
    for r in range(rows):
        for c in range(6 * rows):
            unit = float(scale[r, c // (2 * rows)])
            wanted = min(levels, key=lambda level: abs(level - float(weight[r, c]) / unit)) * unit
            assert float(found[r, c]) == pytest.approx(wanted, abs=1e-6)


def test_levels_themselves_come_back_exactly() -> None:
    weight = torch.tensor([snippet.E2M1 * 2])  # (1, 32): a block whose largest is the grid's end
    for blocks in (snippet.mxfp4(weight), snippet.nvfp4(weight)):
        assert torch.allclose(blocks.values(), weight, rtol=1e-6)
    assert torch.equal(snippet.mxfp4(4 * weight).values(), 4 * weight)


def test_bits_are_those_of_codes_and_scales() -> None:
    weight = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    assert snippet.mxfp4(weight).stored_bits == 3 * 128 * 4 + 3 * 4 * 8
    assert snippet.nvfp4(weight).stored_bits == 3 * 128 * 4 + 3 * 8 * 8 + 32
    assert snippet.nvfp4(weight).block_bits == 3 * 128 * 4.5
    assert snippet.nf4(weight).stored_bits == 3 * 128 * 4 + 3 * 2 * 32


def test_a_block_of_zeros_stays_zero() -> None:
    weight = torch.zeros(2, 64)
    weight[1, 0] = 1.0
    for blocks in (snippet.mxfp4(weight), snippet.nvfp4(weight), snippet.nf4(weight)):
        assert torch.equal(blocks.values()[0], weight[0])
        assert blocks.values().isfinite().all()


def test_signal_to_noise_of_a_known_error() -> None:
    exact = torch.full((3, 5), 2.0)
    assert snippet.snr_db(exact, exact * 1.1) == pytest.approx(20, abs=1e-4)
    assert snippet.snr_db(exact, exact * 1.01) == pytest.approx(40, abs=1e-3)


def test_trap_one_name_two_ends() -> None:
    assert snippet.cast(240.0, torch.float8_e4m3fn) == snippet.cast(240.0, torch.float8_e4m3fnuz) == 240
    assert snippet.cast(448.0, torch.float8_e4m3fn) == 448
    assert snippet.cast(448.0, torch.float8_e4m3fnuz) != 448


def test_trap_the_general_integer_product_wraps() -> None:
    codes = torch.full((2, 8), 100, dtype=torch.int8)
    assert int((codes @ codes.T)[0, 0]) == (80_000 + 128) % 256 - 128  # summed in INT8
    assert int(torch._int_mm(codes, codes.T.contiguous())[0, 0]) == 80_000


@pytest.mark.parametrize("rows", [17, 32])
def test_every_timed_product_is_the_same_product(rows: int) -> None:
    calls = snippet.products(rows, CPU)
    exact = calls["FP32"]()
    assert exact.shape == (rows, snippet.INNER) and exact.abs().max() > 100
    for name in ("BF16", "FP16", "INT8"):
        assert ((calls[name]().float() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all(), name
    assert torch.equal(calls["INT8"]().float(), exact)


@pytest.mark.models
@pytest.mark.timing
def test_exact_claims_hold_at_small_scale() -> None:
    assert failing_small("quantization/formats_and_fast_paths") == []
    assert pick().type != "cpu" or measured_small("quantization/formats_and_fast_paths")["e4m3_slower_ratio"] > 4
