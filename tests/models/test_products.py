"""Each operator's product is the plain one within rounding, and each layer says which it took."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from snippets.models.decoder import Decoder, initialize
from snippets.models.products import (
    PLAIN,
    DynamicInt8Linear,
    Int4Linear,
    Int8Linear,
    QuantizedLinear,
    replace_linears,
)
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.models.shapes import Geometry

pytestmark = pytest.mark.models

TOKENS = (1, 2, 3, 5, 7, 33)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    return float((result.double() - reference).norm() / reference.norm())


def rounding(dtype: torch.dtype) -> float:
    """Relative: sums of exact inputs are FP32 or better; the scale and the output are rounded to dtype."""
    return 3 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", TOKENS)
def test_int8_weights(tokens: int, dtype: torch.dtype) -> None:
    weight, x = quantize_rows_int8(normal(48, 96)), normal(tokens, 96, seed=1).to(dtype)
    reference = x.double() @ weight.dequantize(torch.float64).T
    operator, plain = Int8Linear(weight, dtype), Int8Linear(weight, dtype, plain=True)
    assert (operator.path, plain.path) == ("_weight_int8pack_mm", PLAIN)
    assert operator.nbytes == plain.nbytes == 48 * 96 + 48 * dtype.itemsize
    for layer in (operator, plain):
        assert layer(x).dtype == dtype
        assert relative_error(layer(x), reference) < rounding(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", TOKENS)
def test_int4_weights(tokens: int, dtype: torch.dtype) -> None:
    weight, x = quantize_groups_int4(normal(48, 192), 64), normal(tokens, 192, seed=1).to(dtype)
    reference = x.double() @ weight.dequantize(torch.float64).T
    operator, plain = Int4Linear(weight, dtype), Int4Linear(weight, dtype, plain=True)
    assert (operator.path, plain.path) == ("_weight_int4pack_mm_for_cpu", PLAIN)
    assert plain.nbytes == 48 * 192 // 2 + 48 * 3 * dtype.itemsize
    assert operator.nbytes == plain.nbytes + 48 * 3 * dtype.itemsize, "a zero point beside each scale"
    for layer in (operator, plain):
        assert layer(x).dtype == dtype
        assert relative_error(layer(x), reference) < rounding(dtype) + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), [(48, 96), (3, 7), (7, 5), (5, 2)])
@pytest.mark.parametrize("tokens", TOKENS)
def test_dynamic_int8_paths_agree_to_the_last_bit(tokens: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    weight, x = quantize_rows_int8(normal(rows, columns)), normal(tokens, columns, seed=1).to(dtype)
    operator, plain = DynamicInt8Linear(weight, dtype), DynamicInt8Linear(weight, dtype, plain=True)
    assert (operator.path, plain.path) == ("_int_mm", PLAIN)
    assert torch.equal(operator(x), plain(x))
    # Activations keep 127 steps: half a step of the token's largest, for each feature, at worst.
    bound = (x.abs().amax(1).double() / 254).outer(weight.dequantize(torch.float64).abs().sum(1))
    error = (operator(x).double() - x.double() @ weight.dequantize(torch.float64).T).abs()
    assert bool((error <= bound + torch.finfo(dtype).eps * operator(x).double().abs()).all())
    assert error.max() > 0


@pytest.mark.parametrize(("rows", "columns"), [(16, 5), (32, 40), (3, 7)])
def test_columns_that_crash_the_int8_operator_take_the_plain_path(rows: int, columns: int) -> None:
    weight, x = quantize_rows_int8(normal(rows, columns)), normal(3, columns, seed=1).to(torch.bfloat16)
    layer = Int8Linear(weight, torch.bfloat16)
    assert layer.path == PLAIN
    reference = x.double() @ weight.dequantize(torch.float64).T
    assert relative_error(layer(x), reference) < rounding(torch.bfloat16)


@pytest.mark.parametrize(("rows", "columns", "group"), [(33, 64, 32), (32, 48, 16), (3, 14, 7)])
def test_sizes_the_int4_operator_refuses_take_the_plain_path(rows: int, columns: int, group: int) -> None:
    weight, x = quantize_groups_int4(normal(rows, columns), group), normal(2, columns, seed=1)
    layer = Int4Linear(weight, torch.float32)
    assert layer.path == PLAIN
    assert relative_error(layer(x), x.double() @ weight.dequantize(torch.float64).T) < 1e-6


def test_leading_axes_are_kept() -> None:
    layer = Int8Linear(quantize_rows_int8(normal(16, 32)), torch.float32)
    x = normal(2, 3, 32, seed=1)
    assert layer(x).shape == (2, 3, 16)
    assert torch.allclose(layer(x)[1, 2], layer(x[1, 2][None])[0], atol=1e-5)


def test_the_wrong_kind_of_weight_is_refused() -> None:
    int8, int4 = quantize_rows_int8(normal(16, 32)), quantize_groups_int4(normal(16, 32), 32)
    with pytest.raises(ValueError, match="8 bits, not 4"):
        Int4Linear(int8, torch.float32)
    for layer in (Int8Linear, DynamicInt8Linear):
        with pytest.raises(ValueError, match="one scale a row"):
            layer(int4, torch.float32)


def test_all_projections_of_a_decoder_are_replaced_and_its_output_stays_near(tiny: Geometry) -> None:
    decoder = Decoder(tiny)
    initialize(decoder, seed=3, std=0.2)
    ids = torch.arange(12).view(2, 6)
    before = decoder(ids).detach()
    made = replace_linears(decoder, lambda weight: Int8Linear(quantize_rows_int8(weight), torch.float32))
    assert made == 7 * tiny.layers
    assert not any(isinstance(m, nn.Linear) for block in decoder.layers for m in block.modules())
    assert sum(isinstance(m, QuantizedLinear) for m in decoder.modules()) == made
    assert isinstance(decoder.lm_head, nn.Linear)
    assert 0 < relative_error(decoder(ids).detach(), before.double()) < 0.05
