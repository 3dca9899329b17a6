"""Static, dynamic and continuous batching: the formulas agree with counting, schedules do not change tokens."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction
from itertools import product
from statistics import fmean

import pytest
import torch

from snippets.models.decoder import Decoder, initialize
from snippets.models.decoder import generate as generate_alone
from snippets.models.scheduler import DISTRIBUTIONS, POLICIES, Draws, Limits, Request, simulate, trace
from snippets.models.shapes import LLAMA_3_8B, Geometry, parameters
from snippets.throughput import continuous_batching as snippet

ODD = Geometry("odd", 2, 42, 6, 2, 10, 36, 53, True, "none", rope_theta=1_000.0)


@pytest.fixture(scope="module")
def odd() -> Decoder:
    decoder = Decoder(ODD)
    initialize(decoder, 0, std=0.3)
    return decoder.requires_grad_(False).eval()


def ids(count: int, seed: int = 1) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(ODD.vocabulary) for _ in range(count)]


# The same tokens.


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("block_tokens", [1, 3, 7])
def test_a_schedule_changes_no_token(odd: Decoder, policy: str, block_tokens: int) -> None:
    requests = trace(7, 2, ("uniform", 5), ("geometric", 5), seed=block_tokens)
    limits = Limits(policy, 3, 5, blocks=200, block_tokens=block_tokens, window=3)
    prompts = [ids(one.prompt, seed) for seed, one in enumerate(requests)]
    answers, tally = snippet.serve(odd, prompts, requests, limits)
    for prompt, answer, one in zip(prompts, answers, requests, strict=True):
        assert answer == generate_alone(odd, torch.tensor([prompt]), one.answer)[0].tolist()
    assert tally["lost_blocks"] == 0 and tally["steps"] == len(simulate(requests, limits).steps)


def test_who_lost_its_cache_goes_on_with_the_same_tokens(odd: Decoder) -> None:
    requests = [Request(0, 3, 11), Request(0, 5, 9), Request(1, 2, 12)]
    limits = snippet.tight(requests, 3, 4, block_tokens=2)
    found = snippet.equality_values("odd", odd, ids(10), requests, [limits])
    assert found["odd_equal_tokens"] == found["odd_written_tokens"] == 32
    assert found["odd_preempted_count"] >= 2 and found["odd_cut_count"] >= 1
    assert found["odd_lost_blocks_count"] == 0
    assert found["odd_smallest_gap_difference"] > 1e-4


def test_trap_a_token_from_inside_a_prompt_is_no_answer(odd: Decoder) -> None:
    """What a scheduler would write that took the logits of a part of a prompt for an answer."""
    prompt = ids(9)
    cut = generate_alone(odd, torch.tensor([prompt[:4]]), 1)[0].tolist()
    whole = generate_alone(odd, torch.tensor([prompt]), 1)[0].tolist()
    served, _ = snippet.serve(odd, [prompt], [Request(0, 9, 1)], Limits(batch=1, budget=4, blocks=9))
    assert served == [whole] and whole != cut


# Places used.


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_expected_longest_by_counting_every_case(batch: int) -> None:
    uniform = range(1, 6)  # mean three
    cases = list(product(uniform, repeat=batch))
    assert snippet.longest_of("uniform", 3, batch) == pytest.approx(float(Fraction(sum(map(max, cases)), len(cases))))
    kinds = [4] * 7 + [36]  # mean eight
    cases = list(product(kinds, repeat=min(batch, 3)))
    assert snippet.longest_of("few long", 8, min(batch, 3)) == pytest.approx(fmean(map(max, cases)))
    assert snippet.longest_of("constant", 8, batch) == 8


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
def test_expected_longest_of_geometric_answers_by_inclusion_and_exclusion(batch: int) -> None:
    from math import comb

    stay = 1 - 1 / 20
    other = sum((-1) ** (k + 1) * comb(batch, k) / (1 - stay**k) for k in range(1, batch + 1))
    assert snippet.longest_of("geometric", 20, batch) == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("batch", [2, 5, 8, 64])
def test_the_whiteboard_is_the_limit_of_long_answers(distribution: str, batch: int) -> None:
    mean = 2_000
    exact = mean / snippet.longest_of(distribution, mean, batch)
    assert snippet.continuous_form(distribution, batch) == pytest.approx(exact, rel=2e-3)
    short = 4 / snippet.longest_of(distribution, 4, batch)
    if distribution in ("uniform", "geometric"):
        assert short > exact * 1.005, "short answers waste less than the whiteboard says"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_static_run_uses_what_the_formula_says(distribution: str) -> None:
    columns = snippet.length_columns(snippet.Scale(drawn=800, batch=5), mean=20)
    row = columns["answers"].index(distribution)
    error = columns["error_share"][row]
    assert columns["static_share"][row] == pytest.approx(columns["discrete_share"][row], abs=4 * error + 1e-9)
    assert columns["continuous_share"][row] > 0.95


def test_the_share_is_tokens_over_places_by_hand() -> None:
    requests = [Request(0, 1, 1), Request(0, 1, 4), Request(0, 2, 3)]
    static = simulate(requests, Limits("static", 2, snippet.WHOLE))
    assert snippet.used_share(static, 2) == 8 / (2 * 7)
    assert snippet.used_share(simulate(requests, Limits("continuous", 2, snippet.WHOLE)), 2) == 8 / (2 * 4)


def test_standard_error_is_the_spread_over_traces() -> None:
    shares, errors = [], []
    for seed in range(60):
        draws = Draws(seed)
        requests = [Request(0, 1, draws.length("geometric", 10)) for _ in range(200)]
        served = simulate(requests, Limits("static", 4, snippet.WHOLE))
        shares.append(snippet.used_share(served, 4))
        errors.append(snippet.standard_error(served, 4))
    spread = (fmean(s * s for s in shares) - fmean(shares) ** 2) ** 0.5
    assert fmean(errors) == pytest.approx(spread, rel=0.3)


def test_padding_by_hand() -> None:
    requests = [Request(0, prompt, 1) for prompt in (2, 9, 2, 9)]
    assert snippet.padded_tokens(simulate(requests, Limits("static", 2, 100))) == 14
    assert snippet.padded_tokens(simulate(requests, Limits("length", 2, 100))) == 0


def test_sorting_by_input_saves_padding_and_no_step() -> None:
    found = snippet.step_values(snippet.Scale(simulated=120, batch=5))
    assert found["length_padded_tokens"] < found["static_padded_tokens"] / 5
    assert found["all_length_steps_count"] == pytest.approx(found["all_static_steps_count"], rel=0.1)
    assert found["all_continuous_steps_count"] < 0.6 * found["all_static_steps_count"]
    equal = snippet.step_values(snippet.Scale(simulated=121, batch=5), constant=True)
    assert {equal[f"equal_{policy}_steps_count"] for policy in ("static", "length", "continuous")} == {25 * 32}


# Under load.


def test_the_cost_is_the_declared_peaks() -> None:
    cost = snippet.predicted_cost()
    weights = parameters(LLAMA_3_8B).linear + parameters(LLAMA_3_8B).head
    assert cost.step == pytest.approx(2 * weights / 3.35e12 * 1e9, abs=1)
    assert cost.token == pytest.approx(2 * weights / 989.4e12 * 1e9, abs=1)
    assert cost.context == pytest.approx(131_072 / 3.35e12 * 1e9, abs=0.5)


def test_trap_tokens_a_second_do_not_tell_servers_apart_where_load_is_light() -> None:
    found = snippet.light_values(snippet.SMALL)
    assert found["light_speed_ratio"] == pytest.approx(1, abs=0.02)
    assert found["light_static_first_seconds"] > 100 * found["light_continuous_first_seconds"]


def test_a_larger_cache_preempts_less_and_computes_less_again() -> None:
    columns = snippet.memory_columns(replace(snippet.SMALL, simulated=150), (4096, 1100, 700))
    assert columns["preempted_count"][0] == columns["again_tokens"][0] == 0
    assert 0 < columns["preempted_count"][1] < columns["preempted_count"][2]
    assert 0 < columns["again_tokens"][1] < columns["again_tokens"][2]


def test_a_budget_bounds_the_widest_step() -> None:
    columns = snippet.budget_columns(replace(snippet.SMALL, simulated=100), (100, 700, snippet.WHOLE))
    assert columns["widest_tokens"][:2] == [100, 700]
    assert columns["widest_tokens"][2] >= snippet.LONGEST_PROMPT
    assert columns["gap_p99_seconds"] == sorted(columns["gap_p99_seconds"])
    assert columns["first_p99_seconds"] == sorted(columns["first_p99_seconds"], reverse=True)
    assert columns["budget"] == ["100", "700", "whole prompts"]
