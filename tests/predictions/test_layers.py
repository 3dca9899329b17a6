"""The seconds of a decoder's step, against the same by hand and against counts by PyTorch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from snippets.instruments.targets import Target
from snippets.models import paged
from snippets.models.decoder import Block, Decoder
from snippets.models.paged import PagedCache
from snippets.models.shapes import SMOLLM2_135M, parameters
from snippets.predictions.counting import counted
from snippets.predictions.layers import (
    LAUNCHES,
    PAGED_LAUNCHES,
    PAGED_OVERHEAD,
    ceilings,
    decode_curve,
    fast_format,
    paged_step_seconds,
    product_seconds,
    step_seconds,
)
from snippets.throughput.batching import layer_step
from snippets.throughput.capacity_and_cost import model_bytes, model_flops
from tests.odd import ODD

ROUND = Target("round", {"bfloat16": 1e12}, 1e9, 1e9, None, 0.0, frozenset(), "a test")
READS, COMPUTES = (replace(ROUND, flops_per_second={"bfloat16": 1e30}), replace(ROUND, bytes_per_second=1e30))
COMPUTES_BOTH = replace(COMPUTES, flops_per_second={"bfloat16": 1e12, "float32": 1e12})
MODEL = SMOLLM2_135M


def test_launches_are_counted() -> None:
    """All operations of a layer but views, which compute nothing."""
    with torch.device("meta"):
        step = layer_step(Block(MODEL).requires_grad_(False), MODEL, batch=3, context=7)
    assert counted(step).launches == LAUNCHES


def test_launches_of_a_paged_step_are_counted() -> None:
    """On the CPU: where tokens stand is computed from values, which the meta device has not."""
    launches = []
    for layers in (1, 2):
        decoder = Decoder(replace(ODD, layers=layers)).requires_grad_(False)
        cache = PagedCache(decoder.geometry, 8, 4, torch.float32)
        fresh = {cache.admit(): torch.zeros(1, dtype=torch.long) for _ in range(3)}
        launches.append(counted(paged.step, decoder, cache, fresh).launches)
    assert launches[1] - launches[0] == PAGED_LAUNCHES
    assert launches[0] - PAGED_LAUNCHES == PAGED_OVERHEAD


def test_a_paged_step_computes_what_it_pads() -> None:
    """Two sequences of three and seven tokens, of which two and five are new, against the same as one rectangle."""
    free = replace(COMPUTES_BOTH, launch_seconds=0.0)
    padded = paged_step_seconds(free, MODEL, [2, 5], [3, 7], "bfloat16")
    attention = 4 * MODEL.layers * MODEL.heads * MODEL.head_dim * 2 * 5 * 7
    weights = 2 * (7 * parameters(MODEL).linear + 2 * MODEL.vocabulary * MODEL.hidden)
    assert padded == pytest.approx((weights + attention) / 1e12)


@pytest.mark.parametrize(("rows", "new", "context"), [(1, 1, 5), (3, 1, 7), (2, 7, 7), (5, 2, 7)])
def test_work_is_that_of_the_formulas_elsewhere(rows: int, new: int, context: int) -> None:
    by_flops = step_seconds(COMPUTES, MODEL, rows=rows, new=new, context=context)
    assert by_flops == pytest.approx(model_flops(MODEL, rows, new, context) / 1e12)
    by_bytes = step_seconds(READS, MODEL, rows=rows, new=new, context=context)
    assert by_bytes == pytest.approx(model_bytes(MODEL, rows, context, element_bytes=2) / 1e9)


def test_weights_alone() -> None:
    """Four bits a weight, no cache, no head."""
    found = step_seconds(READS, MODEL, rows=1, weight_bytes_per_weight=0.5, head=False)
    assert found == pytest.approx(parameters(MODEL).linear / 2 / 1e9)


def test_launches_bind_where_nothing_else_takes_time() -> None:
    free = replace(READS, bytes_per_second=1e30, launch_seconds=1e-6)
    assert step_seconds(free, MODEL, rows=1) == pytest.approx(MODEL.layers * LAUNCHES * 1e-6)
    assert step_seconds(free, MODEL, rows=1, launches_per_layer=0) < 1e-12


def test_more_new_tokens_than_context_are_refused() -> None:
    with pytest.raises(ValueError, match="8 new tokens"):
        step_seconds(ROUND, MODEL, rows=1, new=8, context=7)


def test_a_product_by_hand() -> None:
    """Two rows of three numbers times five columns, in two bytes each: 31 numbers move."""
    assert product_seconds(READS, 2, 5, 3, "bfloat16") == pytest.approx(31 * 2 / 1e9)
    assert product_seconds(COMPUTES, 2, 5, 3, "bfloat16") == pytest.approx(2 * 2 * 3 * 5 / 1e12)


def test_ceilings_are_the_targets_own_rates() -> None:
    both = replace(ROUND, flops_per_second={"bfloat16": 1e12, "float32": 1e12}, bytes_per_second=1e11)
    assert ceilings(both, "bfloat16") == pytest.approx((1e11, 1e12))


def test_a_curve_rises_where_operations_bind() -> None:
    curve = decode_curve(COMPUTES_BOTH, MODEL, (1, 3), 7, "bfloat16")
    assert curve.step_ratio[3] == pytest.approx(3)
    assert curve.step_seconds[1] == pytest.approx(step_seconds(COMPUTES_BOTH, MODEL, rows=1, context=7))


def test_pages_choose_bf16_where_it_has_instructions() -> None:
    assert fast_format(ROUND) == "float32"
    assert fast_format(replace(ROUND, capabilities=frozenset({"fast-bf16"}))) == "bfloat16"
