"""What does PagedAttention do? Waste and batches agree with counting by hand; blocks without a table do not."""

from __future__ import annotations

import math
import random
from statistics import fmean, quantiles

import pytest
import torch

from snippets.kv_cache import paged_attention as snippet
from snippets.models.decoder import Decoder, attend
from snippets.models.paged import PagedCache, attend_places
from tests.odd import ODD, odd_decoder, odd_ids
from tests.small import controlled, failing_small, measured_small

pytestmark = pytest.mark.models

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def odd() -> Decoder:
    return odd_decoder()


def prompts(*lengths: int) -> list[torch.Tensor]:
    return [odd_ids(1, tokens, seed)[0] for seed, tokens in enumerate(lengths)]


# The output.


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 5, 7])
def test_tokens_and_logits_equal_those_of_a_contiguous_cache(odd: Decoder, block_tokens: int) -> None:
    cache = snippet.scattered(ODD, 60, block_tokens, torch.float32, CPU)
    found = snippet.equality_values(odd, cache, prompts(1, 5, 2, 7), 3)
    assert found["checked_tokens"] == found["equal_tokens"] == 4 * 3
    assert found["logits_difference"] < 1e-5
    assert found["joints_count"] == sum(-(-n // block_tokens) - 1 for n in (1, 5, 2, 7))
    assert found["scattered_count"] >= 0.6 * found["joints_count"]


def test_trap_blocks_read_without_their_table_are_another_text(odd: Decoder) -> None:
    cache = snippet.scattered(ODD, 60, 3, torch.float32, CPU, snippet.Untranslated)
    found = snippet.equality_values(odd, cache, prompts(1, 5, 2, 7), 3)
    assert found["equal_tokens"] < found["checked_tokens"]
    assert found["logits_difference"] > 1e-3


def test_scattered_blocks_are_all_free_and_in_no_order() -> None:
    cache = snippet.scattered(ODD, 30, 3, torch.float32, CPU)
    assert cache.allocator.free_count == 30
    taken = cache.allocator.take(30)
    assert sorted(taken) == list(range(30)) and taken not in (sorted(taken), sorted(taken)[::-1])


# Lengths and waste.


def test_chat_lengths_have_the_published_percentiles() -> None:
    draw = random.Random(1)
    for median, p99 in (snippet.PROMPT, snippet.ANSWER):
        taken = quantiles([snippet.log_normal(draw, median, p99) for _ in range(40_000)], n=100)
        assert taken[49] == pytest.approx(median, rel=0.02)
        assert taken[98] == pytest.approx(p99, rel=0.05)


@pytest.mark.parametrize("distribution", snippet.DISTRIBUTIONS)
def test_lengths_are_whole_within_the_context_and_repeat(distribution: str) -> None:
    drawn = snippet.lengths(distribution, 5000, seed=2)
    assert drawn == snippet.lengths(distribution, 5000, seed=2)
    assert all(isinstance(tokens, int) and 1 <= tokens <= snippet.LONGEST_TOKENS for tokens in drawn)
    if distribution != "chat":
        assert fmean(drawn) == pytest.approx(snippet.MEAN_TOKENS, rel=0.05)
    if distribution != "constant":
        assert drawn != snippet.lengths(distribution, 5000, seed=3)


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 5, 7, 16])
def test_waste_by_the_tables_is_the_waste_by_hand(block_tokens: int) -> None:
    drawn = [1, 2, 3, 5, 7, 16, 17, 32, 100]
    by_hand = [-tokens % block_tokens for tokens in drawn]
    assert snippet.wasted_tokens(drawn, block_tokens) == pytest.approx(fmean(by_hand))
    every_rest = list(range(1, 5 * block_tokens + 1))
    assert snippet.wasted_tokens(every_rest, block_tokens) == (block_tokens - 1) / 2


def test_trap_constant_lengths_do_not_follow_the_formula() -> None:
    assert snippet.wasted_tokens([1024] * 5, 16) == 0
    assert snippet.wasted_tokens([1025] * 5, 16) == 15


def test_a_block_of_the_longest_context_is_reservation() -> None:
    drawn = snippet.lengths("chat", 50)
    assert snippet.wasted_tokens(drawn, snippet.LONGEST_TOKENS) == snippet.LONGEST_TOKENS - fmean(drawn)


def test_size_columns_agree_with_each_other() -> None:
    columns = snippet.size_columns((1, 3, 16), 700)
    mean = fmean(snippet.lengths("chat", 700))
    for size, share, table_bytes in zip(
        columns["block_size_tokens"], columns["waste_share"], columns["table_bytes"], strict=True
    ):
        waste = snippet.wasted_tokens(snippet.lengths("chat", 700), size)
        assert share == pytest.approx(waste / (mean + waste))
        assert table_bytes == pytest.approx(4 * (mean + waste) / size)
    assert columns["waste_share"] == pytest.approx(columns["formula_share"], abs=1e-3)


# The batch.


def test_first_fit_by_hand() -> None:
    memory = snippet.Reserve(10, lambda tokens: tokens)
    first, second, third = (memory.take(size) for size in (3, 4, 3))
    assert (first, second, third) == ((0, 3), (3, 7), (7, 10))
    assert memory.take(1) is None
    memory.give((0, 3))
    memory.give((7, 10))
    assert memory.take(4) is None, "six are free, in two pieces"
    memory.give((3, 7))
    assert memory.holes == [(0, 10)]


def test_first_fit_never_hands_out_room_twice() -> None:
    draw, memory = random.Random(0), snippet.Reserve(97, lambda tokens: tokens)
    live: list[tuple[int, int]] = []
    for _ in range(500):
        room = memory.take(draw.randint(1, 20))
        if live and (room is None or draw.random() < 0.4):
            memory.give(live.pop(draw.randrange(len(live))))
        if room is not None:
            live.append(room)
        pieces = sorted([*live, *memory.holes])
        assert [end for _, end in pieces[:-1]] == [start for start, _ in pieces[1:]]
        assert pieces[0][0] == 0 and pieces[-1][1] == 97


def test_blocks_refuse_what_does_not_fit_and_keep_nothing_of_it() -> None:
    memory = snippet.Paged(50, 5)
    assert memory.take(26) is not None
    assert memory.take(24) is None
    assert memory.tables.allocator.free_count == 4 and len(memory.tables.sequences) == 1
    assert memory.take(20) is not None


def test_constant_lengths_fit_by_division() -> None:
    tokens = [1000] * 300
    for policy, size in (("exact", 1000), ("power", 1024), ("longest", 8192), ("blocks", 1008)):
        count, used = snippet.churn(snippet.policies()[policy](), tokens, 100)
        assert count == snippet.MEMORY_TOKENS // size
        assert used == pytest.approx(count * 1000 / snippet.MEMORY_TOKENS)


def test_blocks_lose_only_their_ends_and_the_head_of_the_queue() -> None:
    columns = snippet.admitted_columns(rounds=200)
    assert min(columns["blocks_share"]) > 0.97
    assert columns["longest_count"] == [16] * 4
    for exact, blocks, power in zip(
        columns["exact_count"], columns["blocks_count"], columns["power_count"], strict=True
    ):
        assert blocks >= exact >= power


# Reading.


@pytest.mark.parametrize(("batch", "context", "block_tokens"), [(1, 7, 3), (3, 5, 16), (2, 32, 1)])
def test_paged_attention_is_attention(batch: int, context: int, block_tokens: int) -> None:
    plain, paged, places = snippet.layer_caches(batch, context, block_tokens, torch.float32, CPU)
    generator = torch.Generator().manual_seed(0)
    for contiguous, pool in ((plain.keys, paged.keys), (plain.values, paged.values)):
        contiguous.copy_(torch.randn(contiguous.shape, generator=generator))
        for row in range(batch):
            for position in range(context):
                block = places.table[row, position // block_tokens]
                pool[0, block, position % block_tokens] = contiguous[0, row, :, position]
    queries = torch.randn(batch, 32, 1, 128, generator=generator)
    found = attend_places(queries[:, :, 0], *paged.gather(0, places), places)
    assert torch.allclose(found, attend(queries, plain.keys[0], plain.values[0])[:, :, 0], atol=1e-5)


def test_a_gather_copies_the_whole_context() -> None:
    found = snippet.copied_values(3, 48, torch.bfloat16, CPU)
    assert found["gather_copied_bytes"] == found["context_bytes"] == 3 * 48 * 2 * 8 * 128 * 2


@pytest.mark.timing
def test_columns_of_reading_have_a_row_a_size() -> None:
    columns = snippet.reading_columns((1, 16), 2, 64, torch.bfloat16, CPU, 3)
    assert columns["block_size_tokens"] == [1, 16]
    assert all(value > 0 for name in columns for value in columns[name])


# The page.


@pytest.mark.timing
def test_claims_hold_at_small_scale_and_reserving_the_longest_admits_fewer() -> None:
    assert failing_small("kv_cache/paged_attention", "DTR") == []
    found, control = measured_small("kv_cache/paged_attention"), controlled("kv_cache/paged_attention")
    assert control["chat_blocks_count"] == found["chat_longest_count"] < found["chat_blocks_count"]


def test_the_memory_is_what_the_page_says() -> None:
    assert snippet.MEMORY_TOKENS * 131_072 == 16 * 2**30
    assert math.log2(snippet.LONGEST_TOKENS) == 13
    assert isinstance(snippet.scattered(ODD, 3, 2, torch.float32, CPU), PagedCache)
