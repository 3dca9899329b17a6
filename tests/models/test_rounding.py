"""Rounding to a grid: against packed codes, against a search over all codes, and its counts of bits."""

from __future__ import annotations

import pytest
import torch

from snippets.models.decoder import Decoder, initialize
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.models.rounding import Scheme, matrices, quantize_decoder, round_to_grid, scales, stored_bits
from snippets.models.shapes import Geometry

pytestmark = pytest.mark.models


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("rows", "columns"), [(3, 7), (5, 2), (64, 128)])
def test_rows_equal_the_packed_codes(rows: int, columns: int) -> None:
    weight = gaussian(rows, columns)
    assert torch.equal(round_to_grid(weight, Scheme(8)), quantize_rows_int8(weight).dequantize())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_groups_equal_the_packed_codes(dtype: torch.dtype) -> None:
    weight = gaussian(5, 42)
    ours = round_to_grid(weight, Scheme(4, group=14), scale_dtype=dtype)
    assert torch.equal(ours, quantize_groups_int4(weight, 14, dtype).dequantize())


@pytest.mark.parametrize("scheme", [Scheme(2), Scheme(3, group=3), Scheme(3, symmetric=False), Scheme(2, per="tensor")])
def test_no_other_code_lies_nearer(scheme: Scheme) -> None:
    weight = gaussian(7, 9) + 0.3
    step = scales(weight, scheme)
    share = scheme.group or 9
    steps = step.expand(7, 1).repeat_interleave(9, 1) if scheme.per != "group" else step.repeat_interleave(share, 1)
    error = (round_to_grid(weight, scheme) - weight).abs()
    # A grid that covers the weights holds a value within half a step; a rounded zero point moves its end by half.
    assert (error <= steps * (0.5 if scheme.symmetric else 1.0) * (1 + 1e-5)).all()
    assert error.max() > 0.25 * steps.max()


def test_every_grid_has_as_many_values_as_its_codes() -> None:
    weight = gaussian(1, 4096)
    assert round_to_grid(weight, Scheme(2)).unique().numel() == 3
    assert round_to_grid(weight, Scheme(3)).unique().numel() == 7
    assert round_to_grid(weight, Scheme(3, symmetric=False)).unique().numel() == 8
    assert round_to_grid(weight, Scheme(1, symmetric=False)).unique().numel() == 2


def test_more_bits_and_finer_scales_lie_nearer() -> None:
    weight = gaussian(16, 128)
    weight[0, 0] = 40.0  # one outlier spoils the scale of all that share it

    def error(scheme: Scheme) -> float:
        return float((round_to_grid(weight, scheme) - weight).norm())

    by_bits = [error(Scheme(bits)) for bits in (2, 3, 4, 8)]
    assert by_bits == sorted(by_bits, reverse=True) and by_bits[0] > 2 * by_bits[2]
    by_grain = [error(s) for s in (Scheme(4, per="tensor"), Scheme(4), Scheme(4, group=16))]
    assert by_grain[0] > 1.5 * by_grain[1] > 1.5 * by_grain[2]


def test_a_zero_point_helps_one_sided_weights_and_zero_stays_zero() -> None:
    weight = gaussian(8, 64).abs()
    weight[:, 0] = 0.0
    one_sided = round_to_grid(weight, Scheme(4, symmetric=False))
    assert (one_sided - weight).norm() < 0.7 * (round_to_grid(weight, Scheme(4)) - weight).norm()
    assert (one_sided[:, 0] == 0).all()


def test_zeros_and_a_given_scale() -> None:
    assert torch.equal(round_to_grid(torch.zeros(3, 5), Scheme(4)), torch.zeros(3, 5))
    assert torch.equal(round_to_grid(torch.zeros(3, 5), Scheme(4, symmetric=False)), torch.zeros(3, 5))
    clipped = round_to_grid(torch.tensor([[0.2, 0.6, 9.0]]), Scheme(2), scale=torch.tensor([[1.0]]))
    assert clipped.tolist() == [[0.0, 1.0, 1.0]]


def test_bits_with_their_share_of_scales() -> None:
    assert stored_bits((64, 128), Scheme(4, group=128)) == 4.125
    assert stored_bits((64, 576), Scheme(4, group=64, symmetric=False)) == 4 + (16 + 4) / 64
    assert stored_bits((10, 32), Scheme(8)) == 8.5
    assert stored_bits((10, 32), Scheme(8, per="tensor")) == 8 + 16 / 320


@pytest.mark.parametrize("wrong", [{"bits": 1}, {"bits": 4, "group": 3, "per": "row"}, {"bits": 4, "per": "group"}])
def test_a_grid_that_contradicts_itself_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError):
        Scheme(**wrong)


def test_columns_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide by a group of 4"):
        round_to_grid(gaussian(2, 6), Scheme(4, group=4))


def test_a_decoder_is_copied_and_its_tied_embedding_kept(tiny: Geometry) -> None:
    decoder = initialize(Decoder(tiny), seed=3).requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    rounded = quantize_decoder(decoder, Scheme(3))
    after = rounded.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state_dict().items())
    assert after["lm_head.weight"].data_ptr() == after["embed_tokens.weight"].data_ptr()
    changed = [name for name, tensor in after.items() if not torch.equal(before[name], tensor)]
    assert len(changed) == 7 * tiny.layers == len(matrices(decoder))
    name = "layers.1.mlp.up_proj.weight"
    assert torch.equal(after[name], round_to_grid(before[name], Scheme(3)))


def test_what_is_not_kept_is_rounded_once(tiny: Geometry) -> None:
    decoder = initialize(Decoder(tiny), seed=3).requires_grad_(False)
    before = decoder.state_dict()
    assert "embed_tokens" in matrices(decoder, keep=()) and "lm_head" not in matrices(decoder, keep=())
    after = quantize_decoder(decoder, Scheme(4), keep=("down_proj",)).state_dict()
    assert torch.equal(after["layers.0.mlp.down_proj.weight"], before["layers.0.mlp.down_proj.weight"])
    assert torch.equal(after["lm_head.weight"], round_to_grid(before["lm_head.weight"], Scheme(4)))
