"""The paged cache: no block leaks or is shared by accident, and the decoder computes what it does without."""

from __future__ import annotations

import itertools
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from snippets.instruments.memory import storage_bytes
from snippets.models import decoder as plain_decoder
from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, KVCache, generate
from snippets.models.paged import BlockAllocator, BlockTables, OutOfBlocksError, PagedCache, step
from snippets.models.paged import generate as generate_paged
from snippets.models.shapes import Geometry

pytestmark = pytest.mark.models

# FP32 sums in another order: products of at most 60 terms, a dozen of them a layer, values near one.
ROUNDING = 2e-5
BLOCKS, BLOCK_TOKENS = 7, 3


def random_decoder(geometry: Geometry, seed: int = 0) -> Decoder:
    decoder = Decoder(geometry)
    plain_decoder.initialize(decoder, seed, std=0.3)
    return decoder.requires_grad_(False).eval()


def prompts(geometry: Geometry, *lengths: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(geometry.vocabulary, (tokens,), generator=generator) for tokens in lengths]


def scrambled(geometry: Geometry, blocks: int, block_tokens: int, dtype: torch.dtype = torch.float32) -> PagedCache:
    """A cache whose free blocks lie in no order, and whose pool is full of what others left there."""
    cache = PagedCache(geometry, blocks, block_tokens, dtype)
    held = [cache.admit() for _ in range(blocks)]
    for sequence in held:
        cache.append({sequence: 1})
    for sequence in sorted(held, key=lambda s: (s * 5) % 7):
        cache.finish(sequence)
    cache.keys.fill_(1e4)
    cache.values.fill_(-1e4)
    return cache


# The allocator.


def test_blocks_are_handed_out_once_and_come_back_with_their_last_holder() -> None:
    allocator = BlockAllocator(5)
    taken = allocator.take(5)
    assert sorted(taken) == [0, 1, 2, 3, 4] and allocator.free_count == 0
    allocator.share(taken[:2])
    allocator.release(taken)
    assert allocator.free_count == 3 and allocator.holders(taken[0]) == 1
    allocator.release(taken[:2])
    assert sorted(allocator.take(5)) == sorted(taken)


def test_too_few_blocks_says_how_many_are_missing_and_takes_none() -> None:
    allocator = BlockAllocator(3)
    with pytest.raises(OutOfBlocksError, match="4 more free blocks") as caught:
        allocator.take(7)
    assert caught.value.missing == 4 and allocator.free_count == 3


def test_a_free_block_is_neither_shared_nor_released() -> None:
    allocator = BlockAllocator(2)
    (block,) = allocator.take(1)
    allocator.release([block])
    for misuse in (allocator.share, allocator.release):
        with pytest.raises(ValueError, match=f"block {block} is free"):
            misuse([block])
    assert allocator.free_count == 2


# The tables, against plain lists.


class Machine(RuleBasedStateMachine):
    """Random admit, append, fork, finish; every sequence's tokens are read back from a pool and from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = BlockTables(BLOCKS, BLOCK_TOKENS)
        self.pool: dict[tuple[int, int], int] = {}  # (block, place in it) → token
        self.plain: dict[int, list[int]] = {}
        self.kept: list[int] = []  # full blocks that somebody beside the sequences holds
        self.tokens = itertools.count()

    sequences = Bundle("sequences")

    @initialize(target=sequences, tokens=st.integers(0, 7))
    def begin(self, tokens: int) -> MultipleResults[int]:
        """Two that share all blocks, the last of them not full as a rule: what is hardest is not left to chance."""
        first = self.tables.admit()
        self.plain[first] = []
        self.extend({first: tokens})
        return multiple(first, self.fork_of(first))

    @rule(target=sequences)
    def admit(self) -> int:
        sequence = self.tables.admit()
        self.plain[sequence] = []
        return sequence

    @rule(target=sequences, sequence=sequences, full=st.integers(0, 3))
    def admit_behind_full_blocks(self, sequence: int, full: int) -> int:
        full = min(full, len(self.plain[sequence]) // BLOCK_TOKENS)
        twin = self.tables.admit(self.tables.blocks(sequence)[:full])
        self.plain[twin] = self.plain[sequence][: full * BLOCK_TOKENS]
        return twin

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: int) -> int:
        return self.fork_of(sequence)

    def fork_of(self, sequence: int) -> int:
        twin = self.tables.fork(sequence)
        self.plain[twin] = list(self.plain[sequence])
        return twin

    @rule(sequence=consumes(sequences))
    def finish(self, sequence: int) -> None:
        self.tables.finish(sequence)
        del self.plain[sequence]

    @rule(sequence=sequences, tokens=st.integers(1, 5))
    def append(self, sequence: int, tokens: int) -> None:
        self.extend({sequence: tokens})

    @rule(sequences=st.lists(sequences, min_size=2, max_size=4, unique=True), data=st.data())
    def append_to_several(self, sequences: list[int], data: st.DataObject) -> None:
        self.extend({sequence: data.draw(st.integers(0, 3)) for sequence in sequences})

    def extend(self, counts: dict[int, int]) -> None:
        """All of them or, where a block is missing, none."""
        before = {s: (self.tables.blocks(s), self.tables.length(s)) for s in self.plain}
        free, missing = self.tables.allocator.free_count, self.tables.missing(counts)
        try:
            copies = self.tables.append(counts)
        except OutOfBlocksError as error:
            assert error.missing == missing > 0
            assert self.tables.allocator.free_count == free
            assert before == {s: (self.tables.blocks(s), self.tables.length(s)) for s in self.plain}
            return
        assert missing == 0
        for new, shared in copies.items():
            for place in range(BLOCK_TOKENS):
                if (shared, place) in self.pool:
                    self.pool[new, place] = self.pool[shared, place]
        for sequence, new_tokens in counts.items():
            for _ in range(new_tokens):
                position, token = len(self.plain[sequence]), next(self.tokens)
                block = self.tables.blocks(sequence)[position // BLOCK_TOKENS]
                assert self.tables.allocator.holders(block) == 1, "a shared block is written"
                self.pool[block, position % BLOCK_TOKENS] = token
                self.plain[sequence].append(token)

    @precondition(lambda self: any(len(tokens) >= BLOCK_TOKENS for tokens in self.plain.values()))
    @rule(data=st.data())
    def keep_a_full_block(self, data: st.DataObject) -> None:
        full = [s for s, tokens in self.plain.items() if len(tokens) >= BLOCK_TOKENS]
        block = self.tables.blocks(data.draw(st.sampled_from(full)))[0]
        self.tables.allocator.share([block])
        self.kept.append(block)

    @precondition(lambda self: self.kept)
    @rule()
    def let_it_go(self) -> None:
        self.tables.allocator.release([self.kept.pop()])

    @invariant()
    def contents_are_the_plain_lists(self) -> None:
        assert sorted(self.tables.sequences) == sorted(self.plain)
        for sequence, tokens in self.plain.items():
            blocks = self.tables.blocks(sequence)
            assert self.tables.length(sequence) == len(tokens)
            assert len(blocks) == -(-len(tokens) // BLOCK_TOKENS), "a block too many, or too few"
            places = [(blocks[i // BLOCK_TOKENS], i % BLOCK_TOKENS) for i in range(len(tokens))]
            assert [self.pool[place] for place in places] == tokens

    @invariant()
    def holders_are_the_tables_that_name_the_block(self) -> None:
        held = Counter(block for s in self.plain for block in self.tables.blocks(s)) + Counter(self.kept)
        allocator = self.tables.allocator
        assert {b: allocator.holders(b) for b in range(BLOCKS) if allocator.holders(b)} == dict(held)
        assert allocator.free_count == BLOCKS - len(held)

    def teardown(self) -> None:
        for sequence in self.tables.sequences:
            self.tables.finish(sequence)
        self.tables.allocator.release(self.kept)
        assert self.tables.allocator.free_count == BLOCKS
        assert sorted(self.tables.allocator.take(BLOCKS)) == list(range(BLOCKS))


TestTables = Machine.TestCase
TestTables.settings = settings(max_examples=150, stateful_step_count=30, deadline=None, derandomize=True)


def test_the_last_of_several_sharers_writes_in_place() -> None:
    tables = BlockTables(5, 4)
    first = tables.admit()
    tables.append({first: 6})
    twins = [first, tables.fork(first), tables.fork(first)]
    assert tables.allocator.free_count == 3
    copies = tables.append(dict.fromkeys(twins, 1))
    assert len(copies) == 2 and tables.allocator.free_count == 1
    assert len({tables.blocks(twin)[0] for twin in twins}) == 1, "the full block stays shared"
    assert len({tables.blocks(twin)[1] for twin in twins}) == 3


def test_a_fork_at_a_block_boundary_copies_nothing() -> None:
    tables = BlockTables(5, 4)
    first = tables.admit()
    tables.append({first: 8})
    assert tables.append({tables.fork(first): 1, first: 1}) == {}


# The pool and the decoder.


def test_pool_bytes_are_exact(tiny: Geometry) -> None:
    cache = PagedCache(tiny, 5, 7, torch.bfloat16)
    assert cache.nbytes == 5 * 7 * 2 * tiny.layers * tiny.kv_heads * tiny.head_dim * 2
    assert storage_bytes([cache.keys, cache.values]) == cache.nbytes


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("chunks", [[7], [1] * 7, [3, 1, 2, 1], [5, 2]], ids=str)
def test_paged_logits_equal_plain_ones(tiny: Geometry, chunks: list[int], block_tokens: int) -> None:
    """Prompts of several lengths, given in chunks: every logit of every token against an uncached run alone."""
    decoder, ids = random_decoder(tiny), prompts(tiny, 7, 12, 9)
    cache = scrambled(tiny, 40, block_tokens)
    sequences = [cache.admit() for _ in ids]
    whole = [0, 5, 2]  # tokens ahead of the chunks, so that positions differ
    found = step(
        decoder, cache, {s: i[:n] for s, i, n in zip(sequences, ids, whole, strict=True) if n}, last_only=False
    )
    parts = {s: [rows] for s, rows in zip(sequences[1:], found.split([5, 2]), strict=True)} | {sequences[0]: []}
    for end, chunk in zip(itertools.accumulate(chunks), chunks, strict=True):
        fresh = {s: i[n + end - chunk : n + end] for s, i, n in zip(sequences, ids, whole, strict=True)}
        rows = step(decoder, cache, fresh, last_only=False)
        for sequence, part in zip(sequences, rows.split(chunk), strict=True):
            parts[sequence].append(part)
    for sequence, alone in zip(sequences, ids, strict=True):
        expected = decoder(alone[None])[0]
        assert torch.cat(parts[sequence]).shape == expected.shape
        assert expected.std() > 1e-3
        assert torch.allclose(torch.cat(parts[sequence]), expected, atol=ROUNDING)


@pytest.mark.parametrize("block_tokens", [1, 3, 16])
def test_prompts_parts_and_single_tokens_mix_in_one_step(tiny: Geometry, block_tokens: int) -> None:
    decoder, ids = random_decoder(tiny), prompts(tiny, 11, 6, 4)
    cache = scrambled(tiny, 40, block_tokens)
    one, two, three = (cache.admit() for _ in ids)
    step(decoder, cache, {two: ids[1][:5], one: ids[0][:3]})
    last = step(decoder, cache, {one: ids[0][3:], two: ids[1][5:], three: ids[2]})
    for row, alone in zip(last, ids, strict=True):
        assert torch.allclose(row, decoder(alone[None])[0, -1], atol=ROUNDING)


@pytest.mark.parametrize("block_tokens", [1, 2, 5, 16])
def test_ragged_prompts_continue_as_each_does_alone(tiny: Geometry, block_tokens: int) -> None:
    decoder, ids = random_decoder(tiny), prompts(tiny, 1, 5, 2, 17, 5)
    cache = scrambled(tiny, 80, block_tokens)
    together = generate_paged(decoder, cache, ids, 9)
    assert together.shape == (5, 9) and together.unique().numel() > 3
    for row, prompt in zip(together, ids, strict=True):
        assert torch.equal(row, generate(decoder, prompt[None], 9)[0])
    assert cache.allocator.free_count == 80 and cache.sequences == []


@pytest.mark.parametrize("split", [4, 6], ids=["at a boundary", "inside a block"])
def test_forks_part_where_their_tokens_do(tiny: Geometry, split: int) -> None:
    decoder, (ids, other) = random_decoder(tiny), prompts(tiny, 10, 10)
    cache = scrambled(tiny, 9, 4)
    first = cache.admit()
    step(decoder, cache, {first: ids[:split]})
    twin = cache.fork(first)
    shared = cache.blocks(first)
    rows = step(decoder, cache, {first: ids[split:], twin: other[split:]})
    assert cache.blocks(first)[: split // 4] == cache.blocks(twin)[: split // 4] == shared[: split // 4]
    assert not set(cache.blocks(first)[split // 4 :]) & set(cache.blocks(twin)[split // 4 :])
    for row, alone in zip(rows, (ids, torch.cat((ids[:split], other[split:]))), strict=True):
        assert torch.allclose(row, decoder(alone[None])[0, -1], atol=ROUNDING)


def test_a_step_without_room_changes_nothing(tiny: Geometry) -> None:
    decoder, (long, short) = random_decoder(tiny), prompts(tiny, 9, 3)
    cache = PagedCache(tiny, 3, 3, torch.float32)
    one, two = cache.admit(), cache.admit()
    step(decoder, cache, {two: short})
    kept = cache.keys.clone()
    with pytest.raises(OutOfBlocksError) as caught:
        step(decoder, cache, {two: short[:1], one: long})
    assert caught.value.missing == 2
    assert cache.length(one) == 0 and cache.length(two) == 3 and torch.equal(cache.keys, kept)
    cache.finish(two)
    assert torch.allclose(step(decoder, cache, {one: long})[0], decoder(long[None])[0, -1], atol=ROUNDING)


def test_an_empty_step_is_refused(tiny: Geometry) -> None:
    cache = PagedCache(tiny, 3, 3, torch.float32)
    for fresh in ({}, {cache.admit(): torch.tensor([], dtype=torch.long)}):
        with pytest.raises(ValueError, match="needs a new token"):
            step(random_decoder(tiny), cache, fresh)


def test_bfloat16_stays_bfloat16(tiny: Geometry) -> None:
    decoder, ids = random_decoder(tiny).to(torch.bfloat16), prompts(tiny, 5, 8)
    cache = PagedCache(tiny, 9, 3, torch.bfloat16)
    rows = step(decoder, cache, {cache.admit(): prompt for prompt in ids})
    assert rows.dtype == torch.bfloat16 and rows.shape == (2, tiny.vocabulary)


def test_real_weights_write_the_same_tokens(ours: Decoder) -> None:
    ids = smollm2.encode(texts.address())[0]
    pieces = [ids[:3], ids[3:40], ids[40:57], ids[57:89]]
    cache = scrambled(smollm2.GEOMETRY, 24, 8)
    together = generate_paged(ours, cache, pieces, 6)
    for row, piece in zip(together, pieces, strict=True):
        plain = KVCache(smollm2.GEOMETRY, 1, len(piece), torch.float32)
        assert ours(piece[None], plain, last_only=True)[0, -1].argmax() == row[0]
        assert torch.equal(row, generate(ours, piece[None], 6)[0])
