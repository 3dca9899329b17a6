"""Why is temperature zero not deterministic? Bounds against exact sums, flips on made-up logits, traps shown wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from snippets.models import smollm2
from snippets.models.decoder import generate
from snippets.throughput import determinism as snippet
from snippets.throughput.determinism import SMALL, Scale, Steps, Written

CPU = torch.device("cpu")
ODD = Scale(7, 13, 5, (1, 2, 3), 2)


def test_sums_depend_on_the_order() -> None:
    found = snippet.sum_values()
    assert (found["fp32_large_first_count"], found["fp32_small_first_count"]) == (2**24, 2**24 + 2)
    assert (found["bf16_large_first_count"], found["bf16_small_first_count"]) == (256, 258)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", [3, 37, 501])
def test_any_two_orders_stay_within_the_bound(dtype: torch.dtype, columns: int) -> None:
    """Sums in FP32 in shuffled orders, one term at a time, against exact rational arithmetic."""
    x, _, weight = snippet.layer(Scale(1, columns, 1), dtype, CPU, seed=columns)
    terms = [float(a) * float(b) for a, b in zip(x[0].tolist(), weight[0].tolist(), strict=True)]
    bound = float(snippet.rounding_bound(x, weight)[0, 0])
    exact, results = float(sum(map(Fraction, terms))), []
    for seed in range(20):
        shuffled = random.Random(seed).sample(terms, len(terms))
        total = torch.zeros((), dtype=torch.float32)
        for term in shuffled:
            total = total + torch.tensor(term, dtype=torch.float32)
        results.append(float(total.to(dtype)))
    assert all(abs(a - b) <= bound for a in results for b in results)
    assert all(abs(a - exact) <= bound for a in results)


def test_the_bound_is_not_met_by_another_row() -> None:
    own, other = (snippet.layer_values(SMALL, CPU, row) for row in (0, 1))
    for name in own:
        assert own[name] <= 1 < other[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", [snippet.row_by_row, lambda x, w: snippet.padded(x, w, 7)])
def test_invariant_ways_compute_the_product(dtype: torch.dtype, way: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, _, weight = snippet.layer(ODD, dtype, CPU)
    apart = (way(x[:3], weight).double() - x[:3].double() @ weight.double().T).abs()
    assert bool((apart <= snippet.rounding_bound(x[:3], weight)).all())
    # A row's bits are its own in any batch.
    for batch in (1, 2, 5):
        assert torch.equal(way(x[:batch], weight)[0], way(x, weight)[0])


def test_bits_are_equal_wherever_the_page_says_so() -> None:
    found = snippet.equal_values(ODD, CPU)
    for name in ("repeats", "settings", "companions", "rows"):
        assert found[f"{name}_equal_count"] == found[f"{name}_count"] > 0


def test_trap_the_switch_leaves_nothing_behind() -> None:
    assert not torch.are_deterministic_algorithms_enabled()
    with snippet.deterministic():
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def two_runs() -> tuple[Written, Written]:
    """Two sequences: the first flips at its second step by a hair, the second never does."""
    one = torch.tensor([[[5.0, 1, 0], [2.0, 1.9, 0], [9.0, 0, 0]], [[0, 4.0, 0], [0, 4, 1], [0, 7, 0]]])
    other = one.clone()
    other[0, 1] = torch.tensor([1.94, 1.98, 0])
    other[0, 2] = torch.tensor([0, 0, 9.0])
    other[1, 1, 1] += 0.5
    return Written(one.argmax(-1), one), Written(other.argmax(-1), other)


def test_steps_behind_a_flip_are_not_compared() -> None:
    one, other = two_runs()
    found = snippet.comparable(one, other)
    assert list(zip(found.row.tolist(), found.step.tolist(), strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]
    assert found.flipped.tolist() == [False, True, False, False, False]
    assert found.margin.tolist() == pytest.approx([4, 0.1, 4, 3, 7], rel=1e-5)
    assert found.change.tolist() == pytest.approx([0, 0.08, 0, 0.5, 0], abs=1e-5)


def test_a_flip_has_a_gap_of_at_most_two_changes_and_others_need_not() -> None:
    found = {"FP32": snippet.comparable(*two_runs())}
    assert snippet.law_values(found)["flip_margin_ratio"] == pytest.approx(0.1 / 0.08, rel=1e-4)
    assert snippet.law_values(found, kept=True)["flip_margin_ratio"] > 2
    none = {"FP32": Steps(*(part[:1] for part in found["FP32"]))}
    assert snippet.law_values(none)["flip_margin_ratio"] == 0


def test_the_law_holds_for_any_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(50, 20, 5, generator=generator)
    other = one + 0.5 * torch.randn(50, 20, 5, generator=generator)
    found = {"FP32": snippet.comparable(Written(one.argmax(-1), one), Written(other.argmax(-1), other))}
    assert int(found["FP32"].flipped.sum()) > 20
    assert 1 < snippet.law_values(found)["flip_margin_ratio"] <= 2


def test_rows_of_the_table_of_flips() -> None:
    columns = snippet.flip_columns("FP32", *two_runs())
    assert columns["agreed_tokens"] == [1, 3]
    assert columns["margin_difference"] == pytest.approx([0.1, 3], rel=1e-5)  # the second: its narrowest choice
    assert columns["behind_share"] == [0, 1]


def test_margins_are_cumulative() -> None:
    columns = snippet.margin_columns({"FP32": snippet.comparable(*two_runs())})
    assert columns["closer_share"][-1] == 1 and columns["closer_share"][0] == 0
    assert all(low <= high for low, high in pairwise(columns["closer_share"]))


class Products(TorchDispatchMode):
    """Rows of every product that is dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.__name__.startswith(("mm", "linear")):
            self.rows.append(args[0].shape[0])
        return func(*args, **(kwargs or {}))


def test_row_by_row_never_multiplies_two_rows() -> None:
    x, _, weight = snippet.layer(ODD, torch.float32, CPU)
    with Products() as seen:
        snippet.row_by_row(x, weight)
    assert seen.rows == [1] * 7


@pytest.mark.models
def test_writing_is_greedy_generation_and_chunks_are_the_prompt() -> None:
    decoder, ids = smollm2.decoder(), snippet.pieces(SMALL)
    written = snippet.write(decoder, ids, 3, every=2)
    assert torch.equal(written.tokens, generate(decoder, ids, 3)[::2])
    assert torch.equal(written.logits.argmax(-1), written.tokens)
    with torch.inference_mode():
        whole = decoder(ids[:1])
    for size in (1, 3, 8):
        assert torch.allclose(snippet.in_chunks(decoder, ids[:1], size), whole, atol=1e-3)


def test_the_first_matrix_that_differs_and_what_comes_of_it() -> None:
    one = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), torch.tensor([6.0, 7.0, 8.0, 9.0])]
    other = [one[0].clone(), torch.tensor([3.0, 4.5, 5.0]), torch.tensor([6.0, 0, 0, 0])]
    found = snippet.spread_values("bf16", one, other)
    assert list(found.values()) == [3, 1, 1, 0.75]
    assert list(snippet.spread_values("bf16", one, one).values()) == [3, 3, 0, 0]


@pytest.mark.models
def test_a_step_is_taken_from_equal_caches() -> None:
    """Every matrix is seen once, and the last are the logits that an uncached run gives."""
    decoder, ids = smollm2.decoder(), snippet.pieces(SMALL)
    seen = snippet.step_outputs(decoder, ids, 2)
    assert len(seen) == 7 * decoder.geometry.layers + 1
    fresh = generate(decoder, ids[:1], 1)
    with torch.inference_mode():
        whole = decoder(torch.cat((ids[:1], fresh), 1), last_only=True)[0, -1]
    assert torch.allclose(seen[-1], whole, atol=1e-3)
    assert not any(module._forward_hooks for module in decoder.modules())


def test_prediction_is_the_number_of_reads() -> None:
    assert snippet.predicted_values(64)["h100_rows_price_ratio"] == pytest.approx(64)
    assert snippet.predicted_values(1)["h100_rows_price_ratio"] == pytest.approx(1)
