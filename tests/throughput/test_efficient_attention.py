"""Flash, sparse or linear? Tiles agree with naive attention on odd sizes; each shortcut is shown wrong."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from snippets.instruments.memory import peak_allocated_by
from snippets.throughput import efficient_attention as ea

CLOSE = 1e-5


def draw(tokens: int, heads: int = 3, width: int = 5, spread: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    return [spread * torch.randn(heads, tokens, width, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 23])
@pytest.mark.parametrize("block", [1, 2, 3, 7, 64])
def test_tiles_equal_naive_equal_the_kernel_equal_a_loop_by_hand(tokens: int, block: int) -> None:
    given = queries, keys, values = draw(tokens)
    by_hand = torch.zeros(queries.shape, dtype=torch.float64)
    for head in range(len(queries)):
        for row in range(tokens):
            weights = (keys[head, : row + 1].double() @ queries[head, row].double() * 5**-0.5).exp()
            by_hand[head, row] = weights @ values[head, : row + 1].double() / weights.sum()
    assert by_hand.norm() > 0
    for found in (ea.naive(*given), ea.fused(*given), ea.online(*given, block=block)):
        assert ea.difference(found, by_hand) < CLOSE


@pytest.mark.parametrize(
    ("tokens", "window", "block"), [(1, 1, 2), (7, 1, 3), (7, 3, 2), (23, 5, 4), (23, 22, 8), (9, 99, 4)]
)
def test_a_window_in_tiles_equals_the_mask(tokens: int, window: int, block: int) -> None:
    given = draw(tokens)
    wanted = ea.naive(*given, window=window)
    assert ea.difference(ea.online(*given, window=window, block=block), wanted) < CLOSE
    assert ea.difference(ea.masked(*given, window=window), wanted) < CLOSE
    assert ea.visible(tokens, window).sum() == sum(min(row + 1, window) for row in range(tokens))


@pytest.mark.parametrize("block", [1, 2, 5, 64])
def test_linear_chunks_equal_the_quadratic_form(block: int) -> None:
    queries, keys, values = draw(11)
    weights = ((F.elu(queries) + 1).double() @ (F.elu(keys) + 1).double().mT).tril()
    wanted = weights @ values.double() / weights.sum(-1, keepdim=True)
    assert ea.difference(ea.linear(queries, keys, values, block=block), wanted) < CLOSE
    assert ea.difference(wanted, ea.naive(queries, keys, values)) > 0.1


def test_the_running_maximum_is_needed() -> None:
    """Large scores: their exponentials overflow in FP32, and tiles under maxima of their own do not add up."""
    given = queries, keys, values = draw(16, spread=12.0)
    raw = ea.scores(queries, keys).exp()
    assert not (raw @ values / raw.sum(-1, keepdim=True)).isfinite().all()
    assert ea.difference(ea.online(*given, block=4), ea.naive(*given)) < CLOSE
    assert ea.difference(ea.unfaded(*draw(16), block=4), ea.naive(*draw(16))) > 0.05


def test_trap_a_mask_saves_no_product_and_tiles_do() -> None:
    dense = ea.counted(ea.naive, 512)
    assert ea.counted(partial(ea.masked, window=128), 512) == ea.counted(ea.fused, 512) == dense
    assert dense == 4 * ea.HEADS * ea.WIDTH * 512**2
    # four rows of tiles: one at the start, then the diagonal and the tile before it
    assert ea.counted(partial(ea.online, window=128), 512) == 4 * ea.HEADS * ea.WIDTH * 128**2 * (1 + 2 + 2 + 2)


def test_trap_the_counter_does_not_see_the_kernel_on_a_cpu() -> None:
    given = draw(16)
    with FlopCounterMode(display=False) as counter:
        ea.fused(*given)
    assert counter.get_total_flops() == 0
    assert ea.counted(ea.fused, 16) == 4 * ea.HEADS * ea.WIDTH * 16**2


@pytest.mark.parametrize("tokens", [3, 64, 100])
def test_a_step_crosses_where_the_tokens_equal_the_width(tokens: int) -> None:
    found = ea.step_values(tokens)
    assert found["softmax_step_flops"] == 4 * tokens * ea.WIDTH
    assert found["linear_step_flops"] == 4 * ea.WIDTH**2
    assert (found["softmax_step_flops"] > found["linear_step_flops"]) == (tokens > ea.WIDTH)


def test_scores_grow_with_the_square_and_the_kernel_does_not() -> None:
    small, large = (ea.drawn(tokens, "cpu") for tokens in (256, 512))
    assert ea.byte_values(256, torch.device("cpu"))["score_bytes"] == 4 * ea.HEADS * 256**2
    naive = [peak_allocated_by(partial(ea.naive, *given), device="cpu")[1] for given in (small, large)]
    tiled = [peak_allocated_by(partial(ea.online, *given, block=64), device="cpu")[1] for given in (small, large)]
    assert naive[1] > 3.5 * naive[0] and tiled[1] < 2 * tiled[0]


def test_predicted_ratio_is_the_ridge_over_half_the_head_width() -> None:
    naive, fused, linear = (ea.predicted(way, 1 << 20) for way in ("naive", "fused", "linear"))
    assert naive / fused == pytest.approx(989.4e12 / 3.35e12 / 64, rel=1e-3)
    assert linear < fused / 100
