"""TTFT, TPOT, goodput? The scheduler against runs by hand, numbers against a second way, each trap shown wrong."""

from __future__ import annotations

import random
import statistics
from math import comb

import pytest
import torch

from snippets.models.decoder import Decoder, generate, initialize
from snippets.models.shapes import Geometry
from snippets.throughput import latency_numbers as snippet
from snippets.throughput.latency_numbers import Request, Served, Server

ODD = Geometry("odd", 2, 35, 6, 3, 14, 22, 53, True, "none", rope_theta=1_000.0)


@pytest.fixture(scope="module")
def served() -> list[Served]:
    return snippet.busy_run(snippet.workload(2000), Server())


# The scheduler.


def test_a_run_worked_out_by_hand() -> None:
    """Two slots, a step of ten and one a decoding sequence, a tick for each prompt token."""
    server = Server(base=10, row=1, prompts_a_tick=1, slots=2)
    found = server.run([Request(0, 5, 2), Request(3, 7, 3), Request(4, 2, 1), Request(200, 1, 1)])
    # 0→15 prefill of the first; 15→33 it decodes beside the second's prefill; 33→46 the third takes the free slot
    # beside the second; 46→57 the second alone; idle until 200.
    assert [one.tokens for one in found] == [[15, 33], [33, 46, 57], [46], [211]]
    assert [one.sent for one in found] == [0, 3, 33, 200]
    assert [one.ttft for one in found] == [15, 30, 42, 11]


@pytest.mark.parametrize("slots", [1, 2, 3, 7])
def test_every_token_is_served_in_order_and_never_more_than_the_slots(slots: int) -> None:
    requests = snippet.workload(23, prompts=(1, 33), answers=(2, 3, 5))
    found = Server(slots=slots).run(snippet.at_load(requests, 200, Server(slots=slots).never_idle(requests)))
    for one, request in zip(found, requests, strict=True):
        assert len(one.tokens) == request.answer and one.arrival <= one.sent < one.tokens[0]
        assert one.tokens == sorted(one.tokens)
    instants = sorted({t for one in found for t in one.tokens})
    assert max(sum(one.tokens[0] <= t <= one.tokens[-1] for one in found) for t in instants) == slots
    assert [one.tokens[0] for one in found] == sorted(one.tokens[0] for one in found)


def test_the_workload_is_the_same_everywhere_and_arrives_at_its_load() -> None:
    requests = snippet.workload(500)
    assert requests == snippet.workload(500)
    assert requests[:2] == [Request(*requests[0]), Request(*requests[1])]
    full = Server().never_idle(requests)
    assert snippet.at_load(requests, 50, full)[-1].arrival == pytest.approx(2 * full, abs=1)
    assert {r.prompt for r in requests} == set(snippet.PROMPTS) and {r.answer for r in requests} == set(snippet.ANSWERS)


# The numbers.


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7, 99, 100, 101])
def test_nearest_rank_against_its_definition(count: int) -> None:
    values = random.Random(count).sample(range(1000), count)
    for percent in (1, 50, 90, 99):
        wanted = min(v for v in values if sum(w <= v for w in values) * 100 >= percent * count)
        assert snippet.percentile(values, percent) == wanted


def test_parts_add_up_for_each_request_and_for_the_sums(served: list[Served]) -> None:
    assert all(one.ttft + (len(one.tokens) - 1) * one.tpot == one.total for one in served)
    found = snippet.adding_values(served)
    assert found["ttft_sum_ticks_count"] + found["decode_sum_ticks_count"] == found["total_sum_ticks_count"] > 0


def test_the_two_means_differ_by_the_covariance_and_agree_where_lengths_are_equal(served: list[Served]) -> None:
    found = snippet.gap_values(served)
    weighted = sum(one.tpot * (len(one.tokens) - 1) for one in served) / sum(len(one.tokens) - 1 for one in served)
    assert found["gap_mean_count"] == pytest.approx(weighted, rel=1e-12)
    assert found["gap_mean_count"] - found["tpot_mean_count"] == pytest.approx(
        found["covariance_count"] / found["gaps_a_request_count"], rel=1e-9
    )
    assert abs(found["covariance_count"]) > 1
    even = snippet.gap_values(snippet.even_run(Server(), 5))
    assert even["gap_mean_count"] == even["tpot_mean_count"] == 21 and even["gap_p99_ratio"] == 1


def test_goodput_counts_those_who_meet_both_limits() -> None:
    slow_start = Served(0, 0, [501, 502])
    slow_pace = Served(0, 0, [10, 81])
    good = Served(0, 0, [500, 570])
    assert [snippet.in_time(one) for one in (slow_start, slow_pace, good)] == [False, False, True]


def test_goodput_is_throughput_while_idle_and_falls_beyond_capacity() -> None:
    columns = snippet.goodput_columns(snippet.workload(400), Server(), (20, 90, 150))
    assert columns["goodput_share"][0] == columns["throughput_share"][0] == pytest.approx(0.2, rel=0.05)
    assert columns["good_count"][0] == 400
    assert columns["throughput_share"] == sorted(columns["throughput_share"])
    assert columns["goodput_share"][2] < columns["goodput_share"][1]
    found = snippet.goodput_values(columns)
    assert found["best_load_share"] == 0.9 and found["full_good_count"] == found["best_good_count"]


# Traps.


def test_trap_the_sum_of_p99s_is_no_bound_either_way(served: list[Served]) -> None:
    found, hidden = snippet.adding_values(served), snippet.hidden_values()
    assert found["ttft_p99_ticks_count"] + found["decode_p99_ticks_count"] > found["total_p99_ticks_count"]
    assert hidden["hidden_sum_ticks_count"] < hidden["hidden_total_ticks_count"]
    frequent = snippet.hidden_values(each=11)  # more than a hundredth each: now the p99s see them
    assert frequent["hidden_sum_ticks_count"] > frequent["hidden_total_ticks_count"]


def test_trap_a_client_with_as_many_connections_as_slots_hides_the_queue(served: list[Served]) -> None:
    """Sending only when a connection is free changes no token's time: the arrivals are simply those sends."""
    requests = snippet.workload(2000)
    again = Server().run([r._replace(arrival=one.sent) for r, one in zip(requests, served, strict=True)])
    assert [one.tokens for one in again] == [one.tokens for one in served]
    sent = [one.tokens[0] - one.sent for one in served]
    assert snippet.percentile([one.ttft for one in served], 99) > 2 * snippet.percentile(sent, 99)


def test_trap_a_mean_of_p99s_may_be_too_low_or_too_high() -> None:
    found = snippet.workers_values()
    assert found["workers_mean_ticks_count"] < found["workers_pooled_ticks_count"]
    rare = [10] * 9950 + [1000] * 50  # the slow worker with less than a hundredth of the traffic
    assert snippet.percentile(rare, 99) == 10 < found["workers_mean_ticks_count"]


def test_trap_a_hundred_samples_do_not_hold_a_p99(served: list[Served]) -> None:
    found = snippet.sample_values(served)
    n = int(found["bounded_count"])
    under = [sum(comb(k, i) * 0.99**i * 0.01 ** (k - i) for i in (k,)) for k in (n - 1, n)]
    assert under[0] > 0.05 >= under[1]
    draw = random.Random(1)
    missed = statistics.fmean(max(draw.random() for _ in range(100)) < 0.99 for _ in range(4000))
    assert missed == pytest.approx(0.99**100, abs=4 * (0.37 * 0.63 / 4000) ** 0.5)
    assert found["least_p99_ticks_count"] < found["most_p99_ticks_count"]


# The real model.


def test_the_real_server_writes_what_each_request_gets_alone() -> None:
    decoder = Decoder(ODD)
    initialize(decoder, seed=3, std=0.3)
    decoder.requires_grad_(False).eval()
    draw = torch.Generator().manual_seed(5)
    prompts = [torch.randint(53, (n,), generator=draw) for n in (1, 17, 3, 7, 20)]
    requests = [Request(i / 1e6, len(p), n) for i, (p, n) in enumerate(zip(prompts, (3, 5, 2, 7, 4), strict=True))]
    live = snippet.Live(decoder, prompts, [r.answer for r in requests])
    served = snippet.serve(requests, live, slots=2)
    for prompt, tokens, one in zip(prompts, live.written, served, strict=True):
        assert torch.equal(torch.cat(tokens), generate(decoder, prompt[None], len(one.tokens))[0])
    assert max(one.tokens[-1] for one in served) >= sum(seconds for *_, seconds in live.steps)
    assert sum(prompt for _, prompt, _ in live.steps) == sum(map(len, prompts))


def test_the_fitted_server_is_the_one_that_made_the_steps() -> None:
    decoder = Decoder(ODD)
    live = snippet.Live(decoder, [torch.zeros(8, dtype=torch.long)], [2])
    live.steps = [(d, p, 0.02 + 0.003 * d + 0.001 * p) for d in (0, 1, 4, 7) for p in (0, 8, 32)]
    server, parts = snippet.fitted(live, slots=4)
    assert parts.pop("fitted_error_share") < 1e-9
    assert list(parts.values()) == pytest.approx([0.02, 0.003, 0.001])
    assert server[:2] == (20_000, 3_000) and server.prompts_a_tick == pytest.approx(0.001)


def test_the_prediction_is_a_roofline_by_hand() -> None:
    found = snippet.predicted_values(batch=1, context=1, prompt=0)
    weights = 32 * (4096 * (4096 + 1024) * 2 + 3 * 4096 * 14336) + 4096 * 128256
    assert found["h100_plain_seconds"] == found["h100_stalled_seconds"]
    assert found["h100_plain_seconds"] == pytest.approx((2 * weights + 131072) / 3.35e12)
