"""What does PagedAttention do, and how big should a block be?

Claim: a cache in fixed-size blocks behind a table computes what a contiguous one does. It wastes the unused end of
one block a sequence, whatever the length; reserving the longest context wastes the rest of it. A bigger block wastes
more, a smaller one makes more pieces to look up. Where every length is known and equal, blocks gain nothing.

Run: python -m snippets.kv_cache.paged_attention
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist, fmean, median_low

import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.device import pick
from snippets.instruments.memory import allocated_by
from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, KVCache, attend, generate
from snippets.models.paged import BlockTables, OutOfBlocksError, PagedCache, Places, attend_places, step
from snippets.models.paged import generate as generate_paged
from snippets.models.shapes import LLAMA_3_8B, Geometry

BLOCK_TOKENS = 16
LONGEST_TOKENS = 8192  # Llama-3-8B's context
MEMORY_TOKENS = 2**34 // (2 * LLAMA_3_8B.layers * LLAMA_3_8B.kv_heads * LLAMA_3_8B.head_dim * 2)  # BF16
MEAN_TOKENS = 1024
DISTRIBUTIONS = ("chat", "exponential", "uniform", "constant")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def scattered(
    geometry: Geometry,
    blocks: int,
    block_tokens: int,
    dtype: torch.dtype,
    device: torch.device | str,
    kind: type[PagedCache] = PagedCache,
) -> PagedCache:
    """A cache whose free blocks lie in no order, as after a day of requests."""
    cache = kind(geometry, blocks, block_tokens, dtype, device)
    held = [cache.admit() for _ in range(blocks)]
    cache.append(dict.fromkeys(held, 1))
    for sequence in random.Random(0).sample(held, len(held)):
        cache.finish(sequence)
    return cache


def ragged_prompts(lengths: Sequence[int], device: torch.device | str) -> list[Tensor]:
    """Pieces of one real text, one of each length."""
    ids = smollm2.encode(texts.address(), device)[0]
    return list(ids[: sum(lengths)].split(list(lengths)))


@torch.inference_mode()
def equality_values(decoder: Decoder, cache: PagedCache, prompts: list[Tensor], new_tokens: int) -> dict[str, float]:
    """A ragged batch through the block table against each prompt alone in a contiguous cache."""
    together = generate_paged(decoder, cache, prompts, new_tokens)
    alone = torch.cat([generate(decoder, prompt[None], new_tokens) for prompt in prompts])
    sequences = [cache.admit() for _ in prompts]
    paged = step(decoder, cache, dict(zip(sequences, prompts, strict=True)))
    plain = torch.cat([decoder(prompt[None], last_only=True)[:, -1] for prompt in prompts])
    tables = [cache.blocks(sequence) for sequence in sequences]
    for sequence in sequences:
        cache.finish(sequence)
    neighbours = [(a, b) for table in tables for a, b in pairwise(table)]
    return {
        "prompts_count": len(prompts),
        "shortest_tokens": min(map(len, prompts)),
        "longest_tokens": max(map(len, prompts)),
        "checked_tokens": alone.numel(),
        "equal_tokens": int((together == alone).sum()),
        "joints_count": len(neighbours),
        "scattered_count": sum(b != a + 1 for a, b in neighbours),
        "logits_difference": float((paged - plain).abs().max() / plain.abs().max()),
    }


# --8<-- [start:lengths]
PROMPT, ANSWER = (582, 3549), (243, 964)  # median and ninety-ninth percentile: BurstGPT's conversations (Llumnix)


def log_normal(draw: random.Random, median: float, p99: float) -> float:
    """A log-normal number with this median and ninety-ninth percentile."""
    return median * math.exp(draw.gauss(0, 1) * math.log(p99 / median) / NormalDist().inv_cdf(0.99))


def lengths(distribution: str, count: int, seed: int = 0) -> list[int]:
    """Tokens of whole sequences, prompt and answer, seeded; all but "chat" are made up, with one mean."""
    draw = random.Random(seed)
    kinds: dict[str, Callable[[], float]] = {
        "chat": lambda: log_normal(draw, *PROMPT) + log_normal(draw, *ANSWER),
        "exponential": lambda: draw.expovariate(1 / MEAN_TOKENS),
        "uniform": lambda: draw.uniform(1, 2 * MEAN_TOKENS - 1),
        "constant": lambda: MEAN_TOKENS,
    }
    return [min(max(round(kinds[distribution]()), 1), LONGEST_TOKENS) for _ in range(count)]


# --8<-- [end:lengths]


# --8<-- [start:waste]
def held_blocks(tokens: Sequence[int], block_tokens: int) -> int:
    """Blocks that the real tables hold for sequences of these lengths."""
    tables = BlockTables(sum(tokens) // block_tokens + len(tokens), block_tokens)
    free = tables.allocator.free_count
    for length in tokens:
        tables.append({tables.admit(): length})
    return free - tables.allocator.free_count


def wasted_tokens(tokens: Sequence[int], block_tokens: int) -> float:
    """Slots held and not filled, a sequence."""
    return (held_blocks(tokens, block_tokens) * block_tokens - sum(tokens)) / len(tokens)


# --8<-- [end:waste]


def waste_values(count: int = 10_000) -> dict[str, float]:
    """Waste of blocks and of reservation for the chat lengths, and of blocks for the others."""
    chat = lengths("chat", count)
    return {
        "block_tokens": BLOCK_TOKENS,
        "context_tokens": LONGEST_TOKENS,
        "drawn_count": count,
        "chat_mean_tokens": fmean(chat),
        "chat_waste_tokens": wasted_tokens(chat, BLOCK_TOKENS),
        "exponential_waste_tokens": wasted_tokens(lengths("exponential", count), BLOCK_TOKENS),
        "uniform_waste_tokens": wasted_tokens(lengths("uniform", count), BLOCK_TOKENS),
        "constant_waste_tokens": wasted_tokens(lengths("constant", count), BLOCK_TOKENS),
        "reserved_waste_tokens": wasted_tokens(chat, LONGEST_TOKENS),
    }


def size_columns(sizes: Sequence[int] = SIZES, count: int = 2_000) -> dict[str, list]:
    """By block size: wasted share simulated and by formula, and what a table weighs against the cache it finds."""
    chat = lengths("chat", count)
    mean, token_bytes = fmean(chat), 2**34 // MEMORY_TOKENS
    held = [held_blocks(chat, size) for size in sizes]
    return {
        "block_size_tokens": list(sizes),
        "waste_share": [1 - sum(chat) / (blocks * size) for blocks, size in zip(held, sizes, strict=True)],
        "formula_share": [(size - 1) / 2 / (mean + (size - 1) / 2) for size in sizes],
        "table_bytes": [4 * blocks / count for blocks in held],  # INT32 block numbers
        "table_share": [4 / (size * token_bytes) for size in sizes],
    }


class Reserve:
    """Contiguous room of one fixed size for everybody, or rounded up by `rounded`, anywhere it fits: first fit."""

    def __init__(self, tokens: int, rounded: Callable[[int], int]) -> None:
        self.holes = [(0, tokens)]  # (start, end) of free room, in order
        self.rounded = rounded

    def take(self, tokens: int) -> tuple[int, int] | None:
        """Room for a sequence, None where no hole is big enough."""
        size = self.rounded(tokens)
        for i, (start, end) in enumerate(self.holes):
            if end - start >= size:
                self.holes[i : i + 1] = [(start + size, end)] if end - start > size else []
                return start, start + size
        return None

    def give(self, room: tuple[int, int]) -> None:
        """Take it back, and join it with the holes beside it."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted([*self.holes, room]):
            if merged and merged[-1][1] == start:
                start = merged.pop()[0]
            merged.append((start, end))
        self.holes = merged


class Paged:
    """Blocks, by the real tables."""

    def __init__(self, tokens: int, block_tokens: int) -> None:
        self.tables = BlockTables(tokens // block_tokens, block_tokens)

    def take(self, tokens: int) -> int | None:
        sequence = self.tables.admit()
        try:
            self.tables.append({sequence: tokens})
        except OutOfBlocksError:
            self.tables.finish(sequence)
            return None
        return sequence

    def give(self, sequence: int) -> None:
        self.tables.finish(sequence)


# --8<-- [start:churn]
def churn(policy: Reserve | Paged, tokens: Sequence[int], rounds: int, seed: int = 0) -> tuple[int, float]:
    """Admit in order while there is room, let one at random go, and again: (median sequences held, mean share used).

    Each sequence takes its full length at once, so this is the most that any batch of them needs.
    """
    draw, waiting = random.Random(seed), iter(tokens)
    live: list[tuple[int, object]] = []
    head, counts, used = next(waiting), [], []
    for _ in range(rounds):
        while (room := policy.take(head)) is not None:
            live.append((head, room))
            head = next(waiting)
        counts.append(len(live))
        used.append(sum(length for length, _ in live) / MEMORY_TOKENS)
        policy.give(live.pop(draw.randrange(len(live)))[1])  # type: ignore[arg-type]
    half = rounds // 2  # the first ones fill an empty memory, without holes
    return median_low(counts[half:]), fmean(used[half:])


# --8<-- [end:churn]


def policies(block_tokens: int = BLOCK_TOKENS) -> dict[str, Callable[[], Reserve | Paged]]:
    """Fresh memories under each policy."""
    return {
        "longest": lambda: Reserve(MEMORY_TOKENS, lambda tokens: LONGEST_TOKENS),
        "power": lambda: Reserve(MEMORY_TOKENS, lambda tokens: 2 ** math.ceil(math.log2(tokens))),
        "exact": lambda: Reserve(MEMORY_TOKENS, lambda tokens: tokens),
        "blocks": lambda: Paged(MEMORY_TOKENS, block_tokens),
    }


def admitted_columns(rounds: int = 1000, block_tokens: int = BLOCK_TOKENS) -> dict[str, list]:
    """By distribution: sequences held at once under each policy, and the share of memory that holds tokens."""
    columns: dict[str, list] = {"distribution": list(DISTRIBUTIONS)}
    for name, memory in policies(block_tokens).items():
        found = [churn(memory(), lengths(d, 3 * rounds, seed=1), rounds) for d in DISTRIBUTIONS]
        columns[f"{name}_count"] = [count for count, _ in found]
        columns[f"{name}_share"] = [share for _, share in found]
    return columns


def admitted_values(columns: dict[str, list]) -> dict[str, int]:
    """Sequences held at once: chat lengths and constant ones."""
    found = {"memory_tokens": MEMORY_TOKENS}
    for distribution in ("chat", "constant"):
        row = columns["distribution"].index(distribution)
        found |= {f"{distribution}_{policy}_count": columns[f"{policy}_count"][row] for policy in policies()}
    return found


def layer_caches(
    batch: int, context: int, block_tokens: int, dtype: torch.dtype, device: torch.device
) -> tuple[KVCache, PagedCache, Places]:
    """One layer of Llama-3-8B's cache, `context` tokens a sequence: contiguous, and in blocks that lie scattered."""
    layer = replace(LLAMA_3_8B, layers=1)
    plain = KVCache(layer, batch, context, dtype, device)
    paged = scattered(layer, batch * -(-context // block_tokens), block_tokens, dtype, device)
    sequences = {paged.admit(): context for _ in range(batch)}
    paged.append(sequences)
    return plain, paged, paged.places(dict.fromkeys(sequences, 1))


def reads(plain: KVCache, paged: PagedCache, places: Places) -> dict[str, Callable[[], object]]:
    """One decode step's attention in both, for random queries of one token each."""
    batch, heads, context = len(places.counts), LLAMA_3_8B.heads, places.longest
    queries = torch.ones(batch, heads, 1, LLAMA_3_8B.head_dim, dtype=plain.keys.dtype, device=plain.keys.device)
    flat = queries[:, :, 0]
    return {
        "contiguous": lambda: attend(queries, plain.keys[0, :, :, :context], plain.values[0, :, :, :context]),
        "paged": lambda: attend_places(flat, *paged.gather(0, places), places),
        "gather": lambda: paged.gather(0, places),
    }


def copied_values(batch: int, context: int, dtype: torch.dtype, device: torch.device) -> dict[str, int]:
    """Bytes that a gather allocates, and those of the keys and values that attention needs."""
    _, paged, places = layer_caches(batch, context, BLOCK_TOKENS, dtype, device)
    _, copied = allocated_by(lambda: paged.gather(0, places), device=device)
    return {
        "read_batch_count": batch,
        "read_context_tokens": context,
        "gather_copied_bytes": copied,
        "context_bytes": 2 * batch * context * LLAMA_3_8B.kv_heads * LLAMA_3_8B.head_dim * dtype.itemsize,
    }


def slowdown(batch: int, context: int, dtype: torch.dtype, device: torch.device, rounds: int) -> dict[str, float]:
    """Attention through a gather against attention to contiguous keys, with the allocator as it happens to be."""
    calls = reads(*layer_caches(batch, context, BLOCK_TOKENS, dtype, device))
    taken = clock.interleave(calls, device=device, rounds=rounds)
    return {
        "contiguous_seconds": taken.seconds("contiguous"),
        "slowdown_ratio": taken.ratio("paged", "contiguous"),
        "gather_seconds": taken.seconds("gather"),
    }


def reading_columns(
    sizes: Sequence[int], batch: int, context: int, dtype: torch.dtype, device: torch.device, rounds: int
) -> dict[str, list]:
    """By block size: seconds of a gather, and attention through it against contiguous keys. The allocator is fixed."""
    clock.fix_allocator()
    calls: dict[str, Callable[[], object]] = {}
    for size in sizes:
        calls |= {
            f"{what} {size}": call for what, call in reads(*layer_caches(batch, context, size, dtype, device)).items()
        }
    contiguous = f"contiguous {sizes[0]}"
    kept = {name: call for name, call in calls.items() if name == contiguous or not name.startswith("contiguous")}
    taken = clock.interleave(kept, device=device, rounds=rounds)
    return {
        "block_size_tokens": list(sizes),
        "gather_seconds": [taken.seconds(f"gather {size}") for size in sizes],
        "gather_ratio": [taken.ratio(f"gather {size}", contiguous) for size in sizes],
        "paged_ratio": [taken.ratio(f"paged {size}", contiguous) for size in sizes],
    }


@dataclass(frozen=True)
class Scale:
    """How much is measured: prompts and tokens compared, sequences drawn, rounds, and the context that is read."""

    lengths: Sequence[int] = (3, 16, 33, 90, 200)
    new_tokens: int = 16
    count: int = 10_000
    rounds: int = 1000
    batch: int = 16
    context: int = 1024
    timings: int = 15


SMALL = Scale(lengths=(3, 16, 33), new_tokens=4, count=2000, batch=4, context=256, timings=3)


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; equal tokens are shown in FP32, `dtype` is that of the keys that are read and timed."""
    scale, where, dtype = SMALL if small else Scale(), pick(device), dtype or torch.bfloat16
    decoder = smollm2.decoder(torch.float32, where)
    cache = scattered(smollm2.GEOMETRY, 64, BLOCK_TOKENS, torch.float32, where)
    fresh = slowdown(scale.batch, scale.context, dtype, where, scale.timings)
    clock.fix_allocator()
    fixed = slowdown(scale.batch, scale.context, dtype, where, scale.timings)
    return {
        **equality_values(decoder, cache, ragged_prompts(scale.lengths, where), scale.new_tokens),
        **waste_values(scale.count),
        **admitted_values(admitted_columns(scale.rounds)),
        **copied_values(scale.batch, scale.context, dtype, where),
        "fresh_slowdown_ratio": fresh["slowdown_ratio"],
        **fixed,
    }


class Untranslated(PagedCache):
    """Blocks without their table: each sequence reads the blocks beside its own."""

    def places(self, counts: Mapping[int, int]) -> Places:
        places = super().places(counts)
        return replace(places, table=places.table.roll(1, dims=0))


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Reservation of the longest context in place of blocks, and blocks read without their table."""
    scale, where = SMALL if small else Scale(), pick(device)
    decoder = smollm2.decoder(torch.float32, where)
    cache = scattered(smollm2.GEOMETRY, 64, BLOCK_TOKENS, torch.float32, where, Untranslated)
    drawn = {d: wasted_tokens(lengths(d, scale.count), LONGEST_TOKENS) for d in DISTRIBUTIONS}
    return {
        **equality_values(decoder, cache, ragged_prompts(scale.lengths, where), scale.new_tokens),
        **{f"{distribution}_waste_tokens": waste for distribution, waste in drawn.items()},
        **admitted_values(admitted_columns(scale.rounds, block_tokens=LONGEST_TOKENS)),
    }


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/paged_attention", measure())
