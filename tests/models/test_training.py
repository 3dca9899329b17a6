"""Ways to train: states in a byte follow AdamW, and LoRA over codes equals the merged weight."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from snippets.models import training
from snippets.models.quantized import quantize_groups_int4
from snippets.models.training import AdamW8, LoraLinear


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# States in a byte.


@pytest.mark.parametrize("signed", [True, False])
def test_a_codebook_has_a_level_for_every_code(signed: bool) -> None:
    book = training.codebook(signed)
    assert len(book) == 256 == len(book.unique()) and bool((book.diff() > 0).all())
    assert book[-1] == 1 and (book == 0).sum() == 1
    assert bool((book < 0).any()) is signed


@pytest.mark.parametrize("size", [1, 3, 255, 257, 1031])
def test_codes_give_each_value_its_nearest_level(size: int) -> None:
    values = torch.randn(size, generator=generator(size)) * torch.logspace(-5, 0, size)
    for signed in (True, False):
        moment, book = (values if signed else values.square()), training.codebook(signed)
        stored = training.encode(moment, book)
        assert stored[0].dtype == torch.uint8 and stored[0].numel() == size
        found = training.decode(stored, book, moment)
        for start in range(0, size, training.BLOCK):
            block = moment[start : start + training.BLOCK]
            levels = book * block.abs().max()
            nearest = levels[(block[:, None] - levels).abs().argmin(1)]
            distance = (found[start : start + training.BLOCK] - block).abs()
            assert bool((distance <= (nearest - block).abs() * (1 + 1e-5) + 1e-12).all())


def distances(spread: float, steps: int = 40) -> tuple[float, float]:
    """How far byte states lead from AdamW's weights, in units of the way, with the page's levels and with even ones."""
    start, target = (torch.randn(37, 11, generator=generator(seed)) for seed in (0, 1))
    weights = [start.clone().requires_grad_() for _ in range(3)]
    even_levels = functools.partial(AdamW8, levels=linear_levels)
    makers: tuple[Callable[..., torch.optim.Optimizer], ...] = (torch.optim.AdamW, AdamW8, even_levels)
    optimizers = [make([weight], lr=0.01) for make, weight in zip(makers, weights, strict=True)]
    for step in range(steps):
        for weight, optimizer in zip(weights, optimizers, strict=True):
            weight.grad = (weight.detach() - target) * torch.logspace(-spread, 0, 11)
            optimizer.step()
        if step == 0:  # moments are encoded after they were used
            torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=1e-6)
    found = [weight.detach() for weight in weights]
    near, even = (float((one - found[0]).norm() / (found[0] - start).norm()) for one in found[1:])
    return near, even


def test_the_first_step_is_adamws_and_later_ones_stay_near() -> None:
    near, even = distances(spread=1.5)
    assert 0 < near < 0.05  # levels are a few hundredths apart
    assert not even < 1  # evenly spaced levels put small second moments to zero, and divide by them


def test_trap_gradients_that_differ_by_four_decades_in_a_block_are_beyond_the_levels() -> None:
    assert distances(spread=4)[0] > 1


def linear_levels(signed: bool) -> torch.Tensor:
    return torch.linspace(-1, 1, 255) if signed else torch.linspace(0, 1, 256)


# LoRA.


@pytest.mark.parametrize(("rows", "columns", "group", "rank"), [(3, 10, 5, 2), (7, 6, 2, 3), (5, 14, 14, 1)])
def test_lora_equals_the_merged_weight_and_so_do_its_gradients(rows: int, columns: int, group: int, rank: int) -> None:
    packed = quantize_groups_int4(torch.randn(rows, columns, generator=generator(rows)), group)
    layers = [LoraLinear(packed, rank, again) for again in (True, False)]
    up, down = torch.randn(rows, rank, generator=generator(1)), torch.randn(rank, columns, generator=generator(2))
    x = torch.randn(2, 5, columns, generator=generator(3), requires_grad=True)
    merged = packed.dequantize() + up @ down
    wanted = F.linear(x, merged)
    (gradient,) = torch.autograd.grad(wanted.square().sum(), x)
    for layer in layers:
        layer.up.data, layer.down.data = up.clone(), down.clone()
        found = layer(x)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(torch.autograd.grad(found.square().sum(), x)[0], gradient, rtol=1e-4, atol=1e-4)
        assert sorted(n for n, p in layer.named_parameters() if p.requires_grad) == ["down", "up"]


def test_codes_take_no_gradient() -> None:
    packed = quantize_groups_int4(torch.randn(3, 10), 5).packed
    with pytest.raises(RuntimeError, match="floating point"):
        packed.requires_grad_(True)
