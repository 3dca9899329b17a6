"""Speculative decoding: the distribution is kept, greedy tokens stay the same, and each shortcut breaks one of them."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from snippets.models import trained
from snippets.models.decoder import Decoder, KVCache, generate
from snippets.throughput import speculative_decoding as sd

LIMIT = 37.7  # one in a thousand with fifteen degrees of freedom


def without_residual(drafted: list[int], draft: Tensor, target: Tensor, dice: random.Random) -> list[int]:
    """Wrong: the right chance to keep a proposal, but after a rejection the target's whole distribution."""
    for place, token in enumerate(drafted):
        if dice.random() * draft[place, token] >= target[place, token]:
            return [*drafted[:place], sd.draw(target[place], dice)]
    return [*drafted, sd.draw(target[len(drafted)], dice)]


class Stuck(KVCache):
    """Wrong: rejected keys stay in the cache."""

    def __setattr__(self, name: str, value: object) -> None:
        if name != "length" or int(value) >= getattr(self, "length", 0):  # type: ignore[call-overload]
            super().__setattr__(name, value)


@pytest.fixture(scope="module")
def small() -> Decoder:
    return trained.decoder("small", 0)


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return trained.decoder("tiny", 0)


@pytest.fixture(scope="module")
def prompt() -> list[int]:
    return trained.held_out_windows(1, 31)[0].tolist()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_rule_keeps_the_target_and_the_shortcuts_do_not(seed: int) -> None:
    assert 0 < sd.chi_square(sd.verify, 2000, seed) < LIMIT
    assert sd.chi_square(sd.by_argmax, 2000, seed) > 10 * LIMIT
    assert sd.chi_square(without_residual, 2000, seed) > 3 * LIMIT


def test_acceptance_is_the_overlap_of_the_distributions() -> None:
    """The second way to alpha: what is kept over many draws, and the sum of the smaller chances."""
    generator, dice = torch.Generator().manual_seed(3), random.Random(3)
    target, draft = (torch.randn(5, generator=generator).softmax(0) for _ in range(2))
    rows, count = torch.stack((target, target)), 4000
    kept = sum(len(sd.verify([sd.draw(draft, dice)], draft[None], rows, dice)) == 2 for _ in range(count))
    assert kept / count == pytest.approx(float(torch.minimum(target, draft).sum()), abs=4 * 0.5 / count**0.5)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.8, 4), (0.5, 1), (0.3, 7), (0.0, 3), (1.0, 5)])
def test_expected_tokens_by_summing_the_chances(alpha: float, gamma: int) -> None:
    assert sd.expected_tokens(alpha, gamma) == pytest.approx(sum(alpha**place for place in range(gamma + 1)))


def test_the_textbook_numbers() -> None:
    assert sd.expected_tokens(0.8, 4) == pytest.approx(3.3616)
    assert sd.speedup(0.8, 4, 0.1) == pytest.approx(2.4011, abs=1e-4)
    assert sd.speedup(0.8, 8, 0.5) == pytest.approx(0.8658, abs=1e-4)


@pytest.mark.parametrize("gamma", [1, 2, 3, 7])
def test_greedy_tokens_equal_plain_ones_with_every_draft(
    gamma: int, small: Decoder, tiny: Decoder, prompt: list[int]
) -> None:
    scale = sd.Scale(new_tokens=17)
    plain = generate(small, torch.tensor([prompt]), 17)[0].tolist()
    drafts: dict[str, sd.Draft] = {
        "nothing": sd.nothing,
        "lookup": sd.Lookup(trained.VOCABULARY, (2, 1)),
        "smaller": sd.Smaller(tiny, sd.room_for(tiny, prompt, scale, gamma), 0.0, random.Random(0)),
        "itself": sd.Smaller(small, sd.room_for(small, prompt, scale, gamma), 0.0, random.Random(0)),
    }
    steps = {}
    for name, draft in drafts.items():
        run = sd.speculate(small, sd.room_for(small, prompt, scale, gamma), draft, prompt, 17, gamma)
        assert run.tokens[:17] == plain, name
        assert len(run.tokens) == sum(run.accepted) + len(run.accepted)
        steps[name] = len(run.proposed)
    assert steps["nothing"] == 17
    assert steps["itself"] == -(-17 // (gamma + 1))  # every proposal is kept
    assert steps["itself"] <= steps["smaller"] < 17


def test_trap_rejected_keys_that_stay_in_the_cache(small: Decoder, tiny: Decoder, prompt: list[int]) -> None:
    plain = generate(small, torch.tensor([prompt]), 24)[0].tolist()
    found = {}
    for kind in (KVCache, Stuck):
        cache = kind(small.geometry, 1, 256, torch.float32)
        draft = sd.Smaller(tiny, KVCache(tiny.geometry, 1, 256, torch.float32), 0.0, random.Random(0))
        found[kind] = sd.speculate(small, cache, draft, prompt, 24, 4)
    assert found[KVCache].tokens[:24] == plain and sum(found[KVCache].tried()) > 24 // 5
    assert found[Stuck].tokens[:24] != plain


def test_lookup_proposes_what_followed_the_latest_match() -> None:
    draft = sd.Lookup(20, (2, 1))
    assert draft([1, 2, 3, 4, 1, 2, 5, 6, 7, 1, 2], 3)[0] == [5, 6, 7]
    assert draft([1, 9, 8, 9], 2)[0] == [8, 9]
    assert draft([1, 2, 3], 4)[0] == []
    tokens, rows = draft([3, 4, 3], 1)
    assert tokens == [4] and rows.tolist() == [[float(at == 4) for at in range(20)]]


def test_counts_of_a_run() -> None:
    run = sd.Run([0] * 9, [3, 3, 0, 2], [3, 1, 0, 1])
    assert run.tried() == (3 + 2 + 0 + 2, 5)
    assert [run.tried(place) for place in range(3)] == [(3, 3), (3, 1), (1, 1)]
    assert run.a_step == 9 / 4 and run.alpha == 5 / 7


def test_dependence_between_places_breaks_the_formula() -> None:
    """Half of the drafts all right, half all wrong: the mean acceptance misses the tokens a step."""
    runs = {"good": sd.Run([0] * 50, [4] * 10, [4] * 10), "bad": sd.Run([0] * 10, [4] * 10, [0] * 10)}
    mixed = sd.mixed_values(runs, sd.Scale(looked=4))
    assert mixed["mixed_counted_tokens"] == 3.0
    assert mixed["mixed_formula_tokens"] == pytest.approx(sd.expected_tokens(0.8, 4))
    assert sd.mixed_values(runs, sd.Scale(looked=4), by_place=True)["mixed_formula_tokens"] == pytest.approx(3.0)


def test_a_batch_on_the_ridge_stops_gaining() -> None:
    values = sd.batch_values()
    assert values["h100_one_ratio"] == pytest.approx(sd.speedup(0.8, 4, 0.1))
    last = int(values["h100_last_count"])
    assert sd.batch_speedup(last) > 1 >= sd.batch_speedup(last + 1)
    assert sd.predicted(1, 5) == sd.predicted(1, 1) and sd.predicted(1024, 5) == pytest.approx(
        5 * sd.predicted(1024, 1)
    )
