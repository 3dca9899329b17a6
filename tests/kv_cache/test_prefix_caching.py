"""What does a shared prefix save? The index agrees with comparing prompts token by token, and its traps are shown."""

from __future__ import annotations

import itertools
import random

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from snippets.kv_cache import prefix_caching as snippet
from snippets.models.decoder import Decoder, generate
from snippets.models.paged import BlockTables, PagedCache
from tests.odd import ODD, odd_decoder, odd_ids
from tests.small import failing_small, measured_small

pytestmark = pytest.mark.models

CPU = torch.device("cpu")
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def odd() -> Decoder:
    return odd_decoder()


def ids(tokens: int, seed: int = 3) -> torch.Tensor:
    return odd_ids(1, tokens, seed)[0]


def by_hand(first: list[int], second: list[int], block: int) -> int:
    """Whole blocks of the common beginning, computed in the first prompt, one token of the second left over."""
    common = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))))
    return min(common, len(second) - 1) // block * block


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=24)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(first=PROMPTS, second=PROMPTS, block=st.sampled_from([1, 2, 3, 5, 7]), cut=st.integers(0, 24))
def test_reuse_is_the_common_beginning_in_whole_blocks(
    first: list[int], second: list[int], block: int, cut: int
) -> None:
    for other in (second, first[:cut] + second, first):
        assert snippet.reused_tokens(first, other, block) == by_hand(first, other, block)


@pytest.mark.parametrize(("shared", "block"), [(s, b) for s in (0, 1, 15, 16, 17, 100) for b in (1, 3, 16)])
def test_the_formula_on_prompts_that_part(shared: int, block: int) -> None:
    assert snippet.reused_tokens(*snippet.shared_prompts(shared, 5), block) == shared // block * block


def test_a_block_is_the_same_only_behind_the_same_tokens() -> None:
    index = snippet.PrefixIndex(BlockTables(1, 3))
    one, other = index.chain([1, 2, 3, 7, 8, 9]), index.chain([4, 5, 6, 7, 8, 9])
    assert len(one) == len(other) == 2 and not set(one) & set(other)
    assert index.chain([1, 2, 3, 7, 8, 9, 10]) == one
    assert index.chain([1, 2, 3, 7, 8]) == one[:1] and index.chain([1, 2]) == []
    slip = snippet.Unchained(BlockTables(1, 3))
    assert slip.chain([1, 2, 3, 7, 8, 9])[1] == slip.chain([4, 5, 6, 7, 8, 9])[1]


def test_many_requests_leak_nothing_and_end_with_an_empty_index() -> None:
    draw, tables = random.Random(0), BlockTables(40, 3)
    index = snippet.PrefixIndex(tables)
    live: list[int] = []
    for _ in range(300):
        prompt = [draw.randint(0, 1) for _ in range(draw.randint(1, 20))]
        sequence = index.admit(prompt)
        counts = {sequence: len(prompt) - tables.length(sequence)}
        assert counts[sequence] >= 1
        while missing := tables.missing(counts):
            if not index.evict(missing):
                tables.finish(live.pop(0))
        tables.append(counts)
        index.publish(sequence, prompt)
        live.append(sequence)
        held = {block for s in live for block in tables.blocks(s)} | set(index._blocks.values())
        assert tables.allocator.free_count == 40 - len(held)
        for s in live:
            assert tables.length(s) <= len(tables.blocks(s)) * 3
    for sequence in live:
        tables.finish(sequence)
    left = 40 - tables.allocator.free_count
    assert index.evict(1000) == left > 0
    assert tables.allocator.free_count == 40 and not index._blocks


def test_eviction_takes_the_least_used_and_chains_from_their_ends() -> None:
    tables = BlockTables(9, 2)
    index = snippet.PrefixIndex(tables)
    old, new = [1, 1, 2, 2, 3, 3], [7, 7, 8, 8]
    for prompt in (old, new):
        sequence = index.admit(prompt)
        tables.append({sequence: len(prompt)})
        index.publish(sequence, prompt)
        tables.finish(sequence)
    assert index.evict(1) == 1
    probe = [[*old, 0], [*new, 0]]

    def found() -> list[int]:
        sequences = [index.admit(prompt) for prompt in probe]
        lengths = [tables.length(s) for s in sequences]
        for sequence in sequences:
            tables.finish(sequence)
        return lengths

    assert found() == [4, 4], "the end of the older chain went"
    busy = index.admit([*old, 0])
    assert index.evict(9) == 2 and found() == [4, 0], "what a sequence uses stays"
    tables.finish(busy)
    assert index.evict(9) == 2 and tables.allocator.free_count == 9


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("shared", [1, 6, 10, 11])
def test_an_answer_behind_found_blocks_is_the_same(odd: Decoder, shared: int, block_tokens: int) -> None:
    cache = PagedCache(ODD, 60, block_tokens, torch.float32)
    index = snippet.PrefixIndex(cache)
    first, second = ids(11), torch.cat((ids(11)[:shared], ids(5, seed=4)))
    snippet.answer(odd, cache, index, first, 3)
    for _ in range(2):  # the second time, the whole prompt is found
        tokens, logits, computed = snippet.answer(odd, cache, index, second, 4)
        assert torch.equal(tokens, generate(odd, second[None], 4)[0])
        assert torch.allclose(logits[0], odd(second[None])[0, -1], atol=ROUNDING)
    assert 1 <= computed == len(second) - (len(second) - 1) // block_tokens * block_tokens


def test_trap_without_the_parents_hash_the_logits_are_wrong(odd: Decoder) -> None:
    text = ids(300)
    right = snippet.equality_values(odd, text, 64, 8, 3)
    wrong = snippet.equality_values(odd, text, 64, 8, 3, snippet.Unchained)
    nothing = snippet.equality_values(odd, text, 64, 8, 3, snippet.Nothing)
    assert right["computed_tokens"] == wrong["computed_tokens"] == 8 and nothing["computed_tokens"] == 72
    assert right["equal_tokens"] == right["checked_tokens"] == 3
    assert right["logits_difference"] < 1e-5 < 1e-3 < wrong["logits_difference"]


def test_trap_an_early_change_and_a_shared_end_save_nothing() -> None:
    columns = snippet.first_difference_columns(64)
    assert columns["position_tokens"] == [0, 10, 16, 32, 63]
    assert columns["found_tokens"] == [0, 0, 16, 32, 48]
    assert snippet.reuse_values(64, 8)["suffix_reused_tokens"] == 0


def test_memory_by_hand() -> None:
    found = snippet.memory_values(48, 20, 5)
    assert found["apart_blocks_count"] == 5 * 5
    assert found["shared_blocks_count"] == 3 + 5 * 2
    assert found["fork_copies_count"] == 4
    assert snippet.memory_values(48, 20, 5, snippet.Nothing)["shared_blocks_count"] == 25


def test_timed_calls_compute_what_they_say(odd: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, real = [], snippet.step

    def watched(decoder: Decoder, cache: PagedCache, fresh: dict[int, torch.Tensor]) -> torch.Tensor:
        seen.append([(cache.length(sequence), len(new)) for sequence, new in fresh.items()])
        return real(decoder, cache, fresh)

    monkeypatch.setattr(snippet, "step", watched)
    calls = snippet.first_token_calls(odd, 32, 5)
    for name in ("all", "new", "all", "new"):
        calls[name]()
    assert seen[1:] == [[(0, 37)], [(32, 5)]] * 2


# The page.


@pytest.mark.timing
def test_exact_claims_hold_at_small_scale() -> None:
    assert failing_small("kv_cache/prefix_caching") == []
    measured = measured_small("kv_cache/prefix_caching")
    assert measured["first_token_ratio"] > measured["block_first_token_ratio"] > 0
