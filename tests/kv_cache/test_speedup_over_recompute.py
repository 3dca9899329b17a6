"""Why cache at all? Both ways of a step agree, operations are counted by hand, a fit finds the terms it was given."""

from __future__ import annotations

import pytest
import torch

from snippets.kv_cache import speedup_over_recompute as snippet
from snippets.models.decoder import Decoder, initialize
from snippets.models.shapes import Geometry
from tests.small import controlled

ODD = Geometry("odd", 3, 10, 6, 2, 6, 14, 23, True, "none")


@pytest.fixture
def decoder() -> Decoder:
    made = initialize(Decoder(ODD), seed=3)
    assert isinstance(made, Decoder)
    return made.requires_grad_(False).eval()


@pytest.mark.parametrize(("new", "context"), [(1, 1), (1, 7), (5, 5), (3, 3)])
def test_operations_by_hand(new: int, context: int) -> None:
    by_hand = 0
    for _ in range(ODD.layers):
        for rows, columns in ODD.linear_shapes.values():
            by_hand += 2 * rows * columns * new
        by_hand += 2 * (2 * ODD.heads * new * context * ODD.head_dim)  # scores, then the weighted sum
    by_hand += 2 * ODD.vocabulary * ODD.hidden
    assert snippet.forward_flops(ODD, new, context) == by_hand


def test_operations_by_pytorchs_counter() -> None:
    counted = snippet.counted_values(ODD, context=7)
    assert counted["counted_cached_flops"] == counted["formula_cached_flops"] > 0
    assert counted["counted_recomputed_flops"] == counted["formula_recomputed_flops"]


def test_an_answer_is_the_sum_of_its_steps() -> None:
    values = snippet.operation_values(ODD, context=5, answer=3)
    assert values["recomputed_answer_flops"] == sum(snippet.recomputed_flops(ODD, n) for n in (5, 6, 7))
    assert values["cached_answer_flops"] == snippet.recomputed_flops(ODD, 5) + sum(
        snippet.cached_flops(ODD, n) for n in (6, 7)
    )


@pytest.mark.parametrize("tokens", [2, 3, 5, 7])
def test_a_cached_step_computes_what_the_whole_text_does(decoder: Decoder, tokens: int) -> None:
    ids = torch.randint(0, ODD.vocabulary, (1, tokens), generator=torch.Generator().manual_seed(tokens))
    cache = snippet.filled_cache(decoder, ids[:, :-1], tokens)
    with torch.inference_mode():
        step, whole = decoder(ids[:, -1:], cache)[0, -1], decoder(ids)[0, -1]
    assert whole.abs().max() > 0 and torch.allclose(step, whole, atol=1e-6)


def test_a_timed_step_can_be_repeated(decoder: Decoder) -> None:
    step = snippet.cached_step(decoder, torch.ones(1, 5, dtype=torch.long))
    step()
    step()  # a cache that kept growing would have no room


@pytest.mark.parametrize("terms", [(2.0, 0.5, 0.01), (0.0, 1.0, 0.25), (3.0, 0.0, 0.0), (1.0, 0.0, 0.125)])
def test_a_fit_finds_the_terms_that_made_the_times(terms: tuple[float, float, float]) -> None:
    lengths = (2, 3, 5, 7, 11, 100)
    seconds = [terms[0] + terms[1] * n + terms[2] * n * n for n in lengths]
    assert snippet.fit(lengths, seconds) == pytest.approx(terms, abs=1e-9)


def test_trap_an_unforced_fit_would_report_a_negative_time() -> None:
    """Noise makes plain least squares take time back; the terms here are never below zero."""
    lengths, seconds = (1, 2, 4, 8), (1.0, 1.1, 1.5, 1.6)
    plain = torch.linalg.lstsq(
        torch.tensor([[1.0, n, n * n] for n in lengths]), torch.tensor([[s] for s in seconds])
    ).solution
    assert plain.min() < 0
    assert min(snippet.fit(lengths, seconds)) >= 0


@pytest.mark.models
def test_control_breaks_what_the_page_claims() -> None:
    control = controlled("kv_cache/speedup_over_recompute")
    assert control["short_time_ratio"] < 1.2 and control["long_time_ratio"] < 6
    assert control["logits_difference"] > 1e-5
