"""Codes stand for the weight within half a step, and take the bytes they claim."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from snippets.models.quantized import (
    QuantizedWeight,
    pack_int4,
    quantize_groups_int4,
    quantize_rows_int8,
    unpack_int4,
)

pytestmark = pytest.mark.models

ODD_ROWS = (1, 2, 3, 5, 7)


def weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def assert_within_half_a_step(original: torch.Tensor, quantized: QuantizedWeight, largest: int) -> None:
    step = quantized.scale.float().repeat_interleave(quantized.group, dim=1)
    error = (quantized.dequantize() - original.float()).abs()
    # Half a step, or what a scale rounded down (BF16: by one part in 256) leaves beyond the largest code.
    beyond = (original.float().abs() - largest * step).clamp(min=0)
    assert bool((error <= torch.maximum(step / 2, beyond) * (1 + 1e-5)).all())
    assert bool((beyond <= step * largest / 255).all())
    assert error.max() > 0


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [2, 3, 5, 7, 64])
@pytest.mark.parametrize("rows", ODD_ROWS)
def test_int8_rows(rows: int, columns: int, scale_dtype: torch.dtype) -> None:
    original = weight(rows, columns)
    quantized = quantize_rows_int8(original, scale_dtype)
    assert (quantized.shape, quantized.bits, quantized.group) == ((rows, columns), 8, columns)
    assert quantized.scale.shape == (rows, 1)
    assert quantized.nbytes == rows * columns + rows * scale_dtype.itemsize
    assert quantized.codes().abs().amax(1).tolist() == [127] * rows
    assert_within_half_a_step(original, quantized, 127)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "group"), [(6, 3), (10, 5), (14, 7), (64, 32), (64, 64), (256, 128)])
@pytest.mark.parametrize("rows", ODD_ROWS)
def test_int4_groups(rows: int, columns: int, group: int, dtype: torch.dtype) -> None:
    original = weight(rows, columns).to(dtype)
    quantized = quantize_groups_int4(original, group)
    assert (quantized.shape, quantized.bits, quantized.group) == ((rows, columns), 4, group)
    assert quantized.packed.shape == (rows, columns // 2)
    assert quantized.nbytes == rows * columns // 2 + rows * (columns // group) * 2
    assert quantized.dequantize(torch.bfloat16).dtype == torch.bfloat16
    assert_within_half_a_step(original, quantized, 7)


def test_int4_in_groups_of_128_takes_4_and_an_eighth_bits() -> None:
    assert quantize_groups_int4(weight(3, 512), 128).nbytes * 8 / (3 * 512) == 4.125


def test_groups_do_not_mix() -> None:
    original = weight(3, 64)
    louder = original.clone()
    louder[1, 32:] *= 1000
    before, after = (quantize_groups_int4(each, 32).dequantize() for each in (original, louder))
    assert torch.equal(before[:, :32], after[:, :32])
    assert not torch.equal(before[1, 32:], after[1, 32:])


@given(st.integers(1, 7), st.integers(1, 9), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_packing_is_invertible(rows: int, pairs: int, random: object) -> None:
    drawn = [[random.randint(-8, 7) for _ in range(2 * pairs)] for _ in range(rows)]  # type: ignore[attr-defined]
    codes = torch.tensor(drawn, dtype=torch.int8)
    packed = pack_int4(codes)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, pairs)
    assert torch.equal(unpack_int4(packed), codes)


def test_packing_puts_the_even_column_low() -> None:
    assert pack_int4(torch.tensor([[-8, 7]], dtype=torch.int8)).item() == 0 + 15 * 16


def test_zero_rows_stay_zero_and_a_transposed_view_works() -> None:
    original = weight(64, 5)
    original[:, 2] = 0
    for quantized in (quantize_rows_int8(original.T), quantize_groups_int4(original.T, 32)):
        assert torch.equal(quantized.dequantize()[2], torch.zeros(64))
        assert bool(quantized.dequantize()[1].any())
        assert bool(quantized.dequantize().isfinite().all())


@pytest.mark.parametrize(
    ("shape", "group", "what"),
    [((3, 10), 4, "a group of 4"), ((3, 9), 3, "odd"), ((3, 8), 0, "group of 0"), ((8,), 4, "shape")],
)
def test_what_does_not_fit_is_refused(shape: tuple[int, ...], group: int, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        quantize_groups_int4(torch.ones(shape), group)
