"""What does a shared prefix save?

Claim: whole blocks of a prompt that were computed before are found by a chain of hashes and shared: a multiple of the
block, up to the first token that differs, and never the whole prompt. Outputs do not change. Time to the first token
falls by less than the tokens computed do; writing the answer costs what it did.

Run: python -m snippets.kv_cache.prefix_caching
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.device import pick
from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, Device, initialize
from snippets.models.paged import BlockTables, PagedCache, step
from snippets.models.shapes import LLAMA_3_8B

BLOCK_TOKENS = 16
LAYER = replace(LLAMA_3_8B, name="one layer of Llama-3-8B", layers=1, vocabulary=256)


# --8<-- [start:index]
class PrefixIndex:
    """Full blocks that stay when their sequence ends, found again by what they hold and all that came before."""

    def __init__(self, tables: BlockTables) -> None:
        self.tables = tables
        self._blocks: dict[bytes, int] = {}  # hash of the chain up to and with a block → the block; least used first

    def chain(self, ids: Sequence[int]) -> list[bytes]:
        """A hash for each full block of the prompt: of its parent's hash and its own tokens."""
        size, parent, found = self.tables.block_tokens, b"", []
        for start in range(0, len(ids) - size + 1, size):
            parent = sha256(parent + array("q", ids[start : start + size]).tobytes()).digest()
            found.append(parent)
        return found

    def admit(self, ids: Sequence[int]) -> int:
        """A sequence that begins with the blocks found; at least one token is left to compute, for its logits."""
        blocks = []
        for key in self.chain(ids[:-1]):  # so a prompt found as a whole computes its last block once more
            if key not in self._blocks:
                break
            blocks.append(self._blocks[key])
        return self.tables.admit(blocks)

    def publish(self, sequence: int, ids: Sequence[int]) -> None:
        """Keep the sequence's full blocks of these computed tokens for others."""
        held = list(zip(self.chain(ids), self.tables.blocks(sequence), strict=False))
        for key, block in reversed(held):  # so that a chain's beginning counts as used last
            if key not in self._blocks:
                self.tables.allocator.share([block])
            self._blocks[key] = self._blocks.pop(key, block)

    def evict(self, count: int) -> int:
        """Let go of up to `count` blocks that no sequence uses, least used first, ends of chains before beginnings."""
        idle = [key for key, block in self._blocks.items() if self.tables.allocator.holders(block) == 1]
        gone = idle[:count]
        self.tables.allocator.release([self._blocks.pop(key) for key in gone])
        return len(gone)


# --8<-- [end:index]


class Unchained(PrefixIndex):
    """The slip: a block's hash of its own tokens alone, whatever came before."""

    def chain(self, ids: Sequence[int]) -> list[bytes]:
        size = self.tables.block_tokens
        return [sha256(array("q", ids[i : i + size]).tobytes()).digest() for i in range(0, len(ids) - size + 1, size)]


class Nothing(PrefixIndex):
    """No prefix caching: nothing is ever found."""

    def chain(self, ids: Sequence[int]) -> list[bytes]:
        return []


Index = Callable[[BlockTables], PrefixIndex]


# --8<-- [start:reused]
def reused_tokens(first: Sequence[int], second: Sequence[int], block_tokens: int, index: Index = PrefixIndex) -> int:
    """Tokens of the second prompt that need no computing after the first: bookkeeping alone, no model."""
    tables = BlockTables(-(-len(first) // block_tokens) + 1, block_tokens)
    found = index(tables)
    sequence = tables.admit()
    tables.append({sequence: len(first)})
    found.publish(sequence, first)
    tables.finish(sequence)
    return tables.length(found.admit(second))


def shared_prompts(shared: int, new: int) -> tuple[list[int], list[int]]:
    """Two prompts that begin with the same `shared` tokens and differ in all others."""
    same = list(range(shared))
    return same + [-1] * new, same + [-2] * new


# --8<-- [end:reused]


def grid_columns(new: int, index: Index = PrefixIndex) -> dict[str, list]:
    """Tokens reused by length of the shared prefix and by block, and what the formula says."""
    grid = [(shared, block) for shared in (15, 16, 100, 255, 256) for block in (1, 16, 64)]
    return {
        "shared_tokens": [shared for shared, _ in grid],
        "block_size_tokens": [block for _, block in grid],
        "found_tokens": [reused_tokens(*shared_prompts(s, new), b, index) for s, b in grid],
        "formula_tokens": [s // b * b for s, b in grid],
    }


def first_difference_columns(prompt: int, index: Index = PrefixIndex) -> dict[str, list]:
    """Tokens reused of one prompt in which a single token was changed, by its position."""
    ids = list(range(prompt))
    positions = [0, 10, prompt // 4, prompt // 2, prompt - 1]
    changed = [[*ids[:p], -1, *ids[p + 1 :]] for p in positions]
    return {
        "position_tokens": positions,
        "found_tokens": [reused_tokens(ids, other, BLOCK_TOKENS, index) for other in changed],
        "lost_tokens": [prompt - reused_tokens(ids, other, BLOCK_TOKENS, index) for other in changed],
    }


def reuse_values(shared: int, new: int, index: Index = PrefixIndex) -> dict[str, int]:
    """The page's prompt: what is reused when it is shared, cut short, repeated, changed early, or shared at its end."""
    prompt = list(range(shared + new))
    grid, changed = grid_columns(new, index), first_difference_columns(shared + new, index)
    return {
        "block_tokens": BLOCK_TOKENS,
        "prefix_tokens": shared,
        "new_tokens": new,
        "prompt_tokens": shared + new,
        "reused_tokens": reused_tokens(*shared_prompts(shared, new), BLOCK_TOKENS, index),
        "shorter_reused_tokens": reused_tokens(*shared_prompts(shared - 1, new), BLOCK_TOKENS, index),
        "repeated_reused_tokens": reused_tokens(prompt, prompt, BLOCK_TOKENS, index),
        "short_reused_tokens": reused_tokens(*shared_prompts(BLOCK_TOKENS - 1, new), BLOCK_TOKENS, index),
        "changed_reused_tokens": changed["found_tokens"][1],
        "suffix_reused_tokens": reused_tokens([-1] * new + prompt, [-2] * new + prompt, BLOCK_TOKENS, index),
        "grid_count": len(grid["found_tokens"]),
        "grid_equal_count": sum(a == b for a, b in zip(grid["found_tokens"], grid["formula_tokens"], strict=True)),
    }


def memory_values(shared: int, new: int, users: int, index: Index = PrefixIndex) -> dict[str, int]:
    """Blocks that users of one prefix hold together, with and without the index; and forks of one sequence."""
    prompts = [[*range(shared), *[-1 - user] * new] for user in range(users)]
    tables = BlockTables(users * -(-(shared + new) // BLOCK_TOKENS) + 1, BLOCK_TOKENS)
    free, found = tables.allocator.free_count, index(tables)
    for ids in prompts:
        sequence = found.admit(ids)
        tables.append({sequence: len(ids) - tables.length(sequence)})
        found.publish(sequence, ids)
    apart = users * -(-(shared + new) // BLOCK_TOKENS)
    held = free - tables.allocator.free_count

    tables = BlockTables(users * -(-shared // BLOCK_TOKENS), BLOCK_TOKENS)
    first = tables.admit()
    tables.append({first: shared - 1})  # the last block is not full
    copies = tables.append(dict.fromkeys([first, *(tables.fork(first) for _ in range(users - 1))], 1))
    return {
        "users_count": users,
        "apart_blocks_count": apart,
        "shared_blocks_count": held,
        "fork_copies_count": len(copies),
    }


# --8<-- [start:serve]
def prefill(decoder: Decoder, cache: PagedCache, index: PrefixIndex, ids: Tensor) -> tuple[int, Tensor, int]:
    """(sequence, logits of the prompt's last token, tokens computed for them): blocks found are not computed again."""
    prompt = ids.tolist()
    sequence = index.admit(prompt)
    fresh = ids[cache.length(sequence) :]
    logits = step(decoder, cache, {sequence: fresh})
    index.publish(sequence, prompt)
    return sequence, logits, len(fresh)


# --8<-- [end:serve]


def answer(
    decoder: Decoder, cache: PagedCache, index: PrefixIndex, ids: Tensor, new: int
) -> tuple[Tensor, Tensor, int]:
    """(greedy tokens, logits of the first, prompt tokens computed): a whole request, finished at the end."""
    sequence, first, computed = prefill(decoder, cache, index, ids)
    tokens = [first.argmax(-1)]
    for _ in range(new - 1):
        tokens.append(step(decoder, cache, {sequence: tokens[-1]}).argmax(-1))
    cache.finish(sequence)
    return torch.cat(tokens), first, computed


def caches(decoder: Decoder, tokens: int, index: Index) -> tuple[PagedCache, PrefixIndex]:
    """A paged cache with room for so many tokens, and an index over it."""
    weight = decoder.embed_tokens.weight
    cache = PagedCache(decoder.geometry, -(-tokens // BLOCK_TOKENS), BLOCK_TOKENS, weight.dtype, weight.device)
    return cache, index(cache)


def equality_values(
    decoder: Decoder, ids: Tensor, shared: int, new: int, answer_tokens: int, index: Index = PrefixIndex
) -> dict[str, float]:
    """A second user's answer behind a first one's prefix, against the same request without prefix caching.

    A third request comes between them that makes an index without chains find a block behind other tokens.
    """
    first, second = ids[: shared + new], torch.cat((ids[:shared], ids[shared + new : shared + 2 * new]))
    other = torch.cat((ids[-BLOCK_TOKENS:], ids[BLOCK_TOKENS:shared], ids[-1:]))
    room = 4 * (shared + new + answer_tokens)
    cache, found = caches(decoder, room, index)
    for ids_before in (other, first):
        answer(decoder, cache, found, ids_before, 1)
    tokens, logits, computed = answer(decoder, cache, found, second, answer_tokens)
    plain_tokens, plain_logits, _ = answer(decoder, *caches(decoder, room, Nothing), second, answer_tokens)
    return {
        "computed_tokens": computed,
        "checked_tokens": answer_tokens,
        "equal_tokens": int((tokens == plain_tokens).sum()),
        "logits_difference": float((logits - plain_logits).abs().max() / plain_logits.abs().max()),
    }


def layer_decoder(dtype: torch.dtype, device: Device) -> Decoder:
    """One layer of Llama-3-8B's shape with random weights, and next to no vocabulary: it stands for speed only."""
    with torch.device("meta"):
        decoder = Decoder(LAYER)
    decoder = decoder.to(dtype).to_empty(device=device)
    initialize(decoder, 0)
    return decoder.requires_grad_(False).eval()


# --8<-- [start:first_token]
def first_token_calls(
    decoder: Decoder, shared: int, new: int, index: Index = PrefixIndex
) -> dict[str, Callable[[], object]]:
    """Prefill of one prompt: with nothing found, and behind a prefix that another user left."""
    ids = torch.arange(shared + new, device=decoder.embed_tokens.weight.device) % decoder.geometry.vocabulary
    cache, found = caches(decoder, 3 * (shared + new), index)
    nothing = Nothing(cache)
    cache.finish(prefill(decoder, cache, found, ids[:shared])[0])

    def serve(index: PrefixIndex) -> None:
        sequence = index.admit(ids.tolist())
        step(decoder, cache, {sequence: ids[cache.length(sequence) :]}).argmax(-1)
        cache.finish(sequence)

    return {"all": lambda: serve(nothing), "new": lambda: serve(found)}


# --8<-- [end:first_token]


def first_token_columns(
    decoder: Decoder, prefixes: Sequence[int], new: int, rounds: int, index: Index = PrefixIndex
) -> dict[str, list]:
    """By shared prefix: seconds to the first token with and without it; the ratio of tokens beside that of times."""
    clock.fix_allocator()
    device = decoder.embed_tokens.weight.device
    calls: dict[str, Callable[[], object]] = {}
    for shared in prefixes:
        pair = first_token_calls(decoder, shared, new, index)
        calls |= {f"{name} {shared}": call for name, call in pair.items()}
    taken = clock.interleave(calls, device=device, rounds=rounds, blocks=max(1, rounds // 3))
    return {
        "shared_tokens": list(prefixes),
        "all_seconds": [taken.seconds(f"all {shared}") for shared in prefixes],
        "new_seconds": [taken.seconds(f"new {shared}") for shared in prefixes],
        "tokens_ratio": [(shared + new) / new for shared in prefixes],
        "saved_ratio": [taken.ratio(f"all {shared}", f"new {shared}") for shared in prefixes],
    }


def saved_values(columns: dict[str, list], shared: int, new: int) -> dict[str, float]:
    """The page's prefix, and the prefix of a block."""
    row, least = columns["shared_tokens"].index(shared), columns["shared_tokens"].index(BLOCK_TOKENS)
    return {
        "first_token_ratio": columns["saved_ratio"][row],
        "block_first_token_ratio": columns["saved_ratio"][least],
    }


def hash_seconds(tokens: int) -> float:
    """Seconds of looking up a prompt in which nothing is found."""
    tables = BlockTables(1, BLOCK_TOKENS)
    index, prompt = PrefixIndex(tables), list(range(tokens))
    return clock.measure_seconds(lambda: tables.finish(index.admit(prompt))).median_seconds


@dataclass(frozen=True)
class Scale:
    """The prompt, what is compared and timed."""

    shared: int = 256
    new: int = 32
    read: int = 256  # tokens shared where the model runs
    answer: int = 16
    users: int = 8
    prefixes: Sequence[int] = (16, 64, 128, 256)
    rounds: int = 9


SMALL = Scale(read=64, answer=4, prefixes=(16, 256), rounds=2)


def _measured(scale: Scale, device: Device, dtype: torch.dtype, index: Index) -> dict[str, float]:
    model, ids = smollm2.decoder(torch.float32, device), smollm2.encode(texts.address(), device)[0]
    layer = layer_decoder(dtype, device)
    saved = first_token_columns(layer, scale.prefixes, scale.new, scale.rounds, index)
    return {
        **reuse_values(scale.shared, scale.new, index),
        **memory_values(scale.shared, scale.new, scale.users, index),
        **equality_values(model, ids, scale.read, scale.new, scale.answer, index),
        **saved_values(saved, scale.shared, scale.new),
        "wrong_hash_difference": equality_values(model, ids, scale.shared, scale.new, 1, Unchained)[
            "logits_difference"
        ],
        "hash_seconds": hash_seconds(scale.shared + scale.new),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `dtype` is that of the layer that is timed."""
    return _measured(SMALL if small else Scale(), pick(device), dtype or torch.bfloat16, PrefixIndex)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Without prefix caching nothing is found and no time is saved; outputs as of an index that forgets the parent."""
    values = _measured(SMALL if small else Scale(), pick(device), dtype or torch.bfloat16, Nothing)
    right = values["logits_difference"]
    return values | {"logits_difference": values["wrong_hash_difference"], "wrong_hash_difference": right}


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/prefix_caching", measure())
