"""Llama-3-70B on N GPUs? Bytes, operations and dollars by a second way, Little's law by hand, each trap shown wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from snippets.models import shapes
from snippets.models.capacity import GB, budget
from snippets.models.decoder import Decoder, KVCache
from snippets.models.queueing import latencies
from snippets.models.shapes import Geometry
from snippets.throughput import capacity_and_cost as snippet

ODD = Geometry("odd", 3, 35, 6, 3, 14, 22, 53, True, "none", rope_theta=1_000.0)


# Users and dollars.


@pytest.mark.parametrize("cards", [2, 4, 8])
def test_a_step_by_hand(cards: int) -> None:
    """Llama-3-70B in BF16: matrices and head once, and a cache of two vectors for each layer and head."""
    linear = 80 * (2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    read = 2 * (linear + 128_256 * 8192 + 80 * 2 * 8192 * cards + 8192 * cards) / cards  # each card has all norms
    cached = 2 * 80 * 8 * 128 * 2 * 4096 / cards
    for users in (1, 7):
        seconds = snippet.step_seconds(snippet.asked(cards), users)
        assert seconds == pytest.approx((read + users * cached) / 3.35e12, rel=1e-9)


def test_a_step_of_very_many_users_is_bound_by_operations() -> None:
    on = replace(snippet.asked(8), context_tokens=1)
    assert snippet.step_seconds(on, 10_000) == pytest.approx(10_000 * 2 * 69.5e9 / 8 / 989.4e12, rel=0.01)


def test_users_fill_the_card_and_one_more_does_not_fit() -> None:
    for stored in snippet.FORMATS:
        for cards in (1, 2, 4, 8):
            found = snippet.node(cards, stored)
            assert budget(replace(found.on, users=max(1, found.users))).fits == bool(found.users)
            assert not budget(replace(found.on, users=found.users + 1)).fits


def test_dollars_by_counting_an_hour() -> None:
    assert snippet.dollars(3, 500) == pytest.approx(3 * snippet.CARD_HOUR * 10**6 / (500 * 60 * 60))
    values = snippet.price_values() | snippet.board_values()
    sold = values["users_count"] / values["step_seconds"] * 3600
    assert values["price_dollars_count"] == pytest.approx(4 * 2 / sold * 1e6)


def test_price_depends_on_users_and_not_on_cards() -> None:
    columns = snippet.price_columns()
    at_eight = [p for u, p in zip(columns["users_count"], columns["price_dollars_count"], strict=True) if u == 8]
    assert len(at_eight) == 3 and max(at_eight) / min(at_eight) < 1.001


def test_a_full_card_takes_as_long_as_reading_it() -> None:
    values = snippet.price_values() | snippet.board_values()
    whole = values["card_bytes"] / 3.35e12
    assert 0.95 * whole < values["step_seconds"] < whole


def test_the_limit_on_speed_is_met_and_one_more_user_breaks_it() -> None:
    on, users = snippet.asked(4), snippet.board_values()["limit_users_count"]
    assert snippet.step_seconds(on, users) <= 0.020 < snippet.step_seconds(on, users + 1)


# Traps.


def test_trap_fewest_cards_that_fit_are_dearest() -> None:
    columns = snippet.node_columns()
    for stored in snippet.FORMATS:
        prices = [p for s, p in zip(columns["stored"], columns["price_dollars_count"], strict=True) if s == stored]
        assert prices == sorted(prices, reverse=True) and prices[0] > 4 * prices[-1]
    values = snippet.board_values()
    assert values["halves_users_count"] < values["users_count"] / 3


def test_trap_the_label_in_gb_is_less_than_the_card_reports_and_in_gib_more() -> None:
    values = snippet.board_values()
    assert values["label_users_count"] < values["users_count"]
    assert 80 * GB < values["card_bytes"] < 80 * 2**30


def test_trap_full_batch_is_not_the_average() -> None:
    day = snippet.day_values()
    assert 0 < day["day_percent_count"] < 100 * day["day_hours_count"]
    prices = snippet.price_values()
    assert prices["lone_price_dollars_count"] > 50 * prices["price_dollars_count"]


# Little's law.


@pytest.mark.parametrize("most", [1, 2, 3])
def test_littles_law_by_hand(most: int) -> None:
    arrivals = [0, 1, 1, 4, 9]
    taken = latencies(arrivals, lambda batch: 3, most=most)
    leaves = [a + t for a, t in zip(arrivals, taken, strict=True)]
    counted = sum(a <= tick < b for tick in range(40) for a, b in zip(arrivals, leaves, strict=True))
    assert counted == sum(taken) > 0


@pytest.mark.parametrize("requests", [1, 2, 7, 100])
def test_presence_is_the_sum_of_latencies_unless_the_trace_is_cut(requests: int) -> None:
    found = snippet.little_values(requests, window=10**6)
    assert found["inside_ticks_count"] == found["latencies_ticks_count"] == found["window_done_ticks_count"] > 0
    cut = snippet.little_values(requests, window=found["trace_ticks_count"] // 2)
    assert cut["window_done_ticks_count"] < cut["window_inside_ticks_count"] < cut["inside_ticks_count"]


# The model that runs.


@pytest.mark.parametrize(("rows", "context"), [(1, 1), (2, 5), (3, 7)])
def test_operations_of_decode_against_pytorchs_counter(rows: int, context: int) -> None:
    cache = KVCache(ODD, rows, context, torch.float32, "meta")
    cache.length = context - 1
    with torch.device("meta"):
        decoder = Decoder(ODD)
    with FlopCounterMode(display=False) as counter:
        decoder(torch.zeros(rows, 1, dtype=torch.long, device="meta"), cache, last_only=True)
    assert counter.get_total_flops() == snippet.model_flops(ODD, rows, 1, context) > 0


def test_operations_of_a_prompt_are_those_of_its_tokens_one_by_one_and_a_single_head() -> None:
    head = 2 * ODD.vocabulary * ODD.hidden
    steps = sum(snippet.model_flops(ODD, 1, 1, context) - head for context in range(1, 8))
    assert snippet.model_flops(ODD, 1, 7, 7) == steps + head


def test_bytes_are_the_storage_of_weights_and_caches() -> None:
    decoder = Decoder(ODD)
    matrices = {id(w): w.nbytes for w in decoder.parameters() if w.ndim == 2}
    cache = KVCache(ODD, 5, 7, torch.float32)
    assert snippet.model_bytes(ODD, 5, 7, 4) == sum(matrices.values()) + cache.nbytes


def test_utilisation_is_one_at_the_roofline() -> None:
    found = snippet.Measured(["a", "b"], [1, 64], [10, 9000], [400, 20], [4.0, 9.0], 100.0, 1000.0)
    columns = found.columns()
    assert columns["mbu_share"] == [1.0, pytest.approx(0.2 / 9)] and columns["mfu_share"] == [0.0025, 1.0]
    assert columns["speed_tokens_per_second"] == columns["predicted_tokens_per_second"]
    assert snippet.model_values(found)["decode_prefill_cost_ratio"] == pytest.approx(4 * 64 / 9)


def test_the_baseline_computes_a_prompt_token_by_token() -> None:
    ran: list[str] = []
    calls: dict[str, Callable[[], object]] = {
        "decode, batch 1": lambda: ran.append("step"),
        "prefill": lambda: ran.append("prefill"),
    }
    snippet.token_by_token(calls, 5)["prefill"]()
    assert ran == ["step"] * 5
    assert snippet.as_it_is(calls, 5) is calls


def test_shapes_are_those_of_the_model_named() -> None:
    assert snippet.asked(4).geometry is shapes.LLAMA_3_70B
    with pytest.raises(KeyError):
        snippet.asked(4, "INT3")
