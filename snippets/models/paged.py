"""A paged KV cache: fixed-size blocks, a table of blocks a sequence, copies only where a shared block is written.

`BlockAllocator` counts who holds a block, `BlockTables` keeps the books of all sequences (plain Python, so a
scheduler can be simulated with it), `PagedCache` puts keys and values behind the tables, and `step` runs a plain
`Decoder` on sequences of any lengths at once. Source: PagedAttention (arXiv:2309.06180).

`append` first, then write: `step` does both. Keys are gathered into one tensor before attention, because plain
PyTorch cannot read them in place; a fused kernel would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.models.decoder import Block, Decoder, Device, attend, rotate, rotation
from snippets.models.shapes import Geometry


class OutOfBlocksError(RuntimeError):
    """Too few free blocks; `missing` says how many more it takes. Nothing was changed."""

    def __init__(self, missing: int) -> None:
        super().__init__(f"{missing} more free blocks are needed")
        self.missing = missing


class BlockAllocator:
    """Hands out numbers of free blocks and counts the holders of each; a block without a holder is free again."""

    def __init__(self, blocks: int) -> None:
        self._free = list(reversed(range(blocks)))
        self._holders = [0] * blocks

    @property
    def free_count(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def holders(self, block: int) -> int:
        """How many tables (or others) hold the block."""
        return self._holders[block]

    def take(self, count: int) -> list[int]:
        """`count` free blocks, one holder each; OutOfBlocksError if there are fewer."""
        if count > len(self._free):
            raise OutOfBlocksError(count - len(self._free))
        taken = [self._free.pop() for _ in range(count)]
        for block in taken:
            self._holders[block] = 1
        return taken

    def share(self, blocks: Iterable[int]) -> None:
        """One more holder for each; ValueError for a free one."""
        for block in blocks:
            self._held(block)
            self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """One holder less for each; ValueError for a free one."""
        for block in blocks:
            self._held(block)
            self._holders[block] -= 1
            if not self._holders[block]:
                self._free.append(block)

    def _held(self, block: int) -> None:
        if not self._holders[block]:
            raise ValueError(f"block {block} is free")


class BlockTables:
    """Which blocks hold the tokens of each sequence, and how many tokens those are."""

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.allocator = BlockAllocator(blocks)
        self.block_tokens = block_tokens
        self._blocks: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}
        self._next = 0

    @property
    def sequences(self) -> list[int]:
        """Sequences that are not finished, oldest first."""
        return list(self._blocks)

    def length(self, sequence: int) -> int:
        """Tokens of the sequence."""
        return self._lengths[sequence]

    def blocks(self, sequence: int) -> tuple[int, ...]:
        """The sequence's blocks in the order of its tokens."""
        return tuple(self._blocks[sequence])

    def admit(self, shared: Sequence[int] = ()) -> int:
        """A new sequence: empty, or beginning with the full blocks `shared`, which are held and never written."""
        self.allocator.share(shared)
        sequence, self._next = self._next, self._next + 1
        self._blocks[sequence], self._lengths[sequence] = list(shared), len(shared) * self.block_tokens
        return sequence

    def fork(self, sequence: int) -> int:
        """A second sequence with the same tokens in the same blocks."""
        twin = self.admit(self._blocks[sequence])
        self._lengths[twin] = self._lengths[sequence]
        return twin

    # --8<-- [start:append]
    def append(self, counts: Mapping[int, int]) -> dict[int, int]:
        """Make room for so many more tokens of each sequence, for all of them or for none.

        Returns:
            Copies to make before the tokens are written, {new block: shared block it replaces}.

        Raises:
            OutOfBlocksError: no room. Nothing has changed.
        """
        split = self._to_split(counts)
        fresh = {sequence: self._fresh_count(sequence, new) for sequence, new in counts.items()}
        taken = self.allocator.take(len(split) + sum(fresh.values()))
        copies = {}
        for sequence, new in counts.items():
            blocks = self._blocks[sequence]
            if sequence in split:
                shared, blocks[-1] = blocks[-1], taken.pop()
                copies[blocks[-1]] = shared
                self.allocator.release([shared])
            blocks.extend(taken.pop() for _ in range(fresh[sequence]))
            self._lengths[sequence] += new
        return copies

    # --8<-- [end:append]

    def missing(self, counts: Mapping[int, int]) -> int:
        """Blocks that `append` would lack: zero if it would succeed."""
        needed = len(self._to_split(counts)) + sum(self._fresh_count(s, new) for s, new in counts.items())
        return max(0, needed - self.allocator.free_count)

    def finish(self, sequence: int) -> None:
        """Forget the sequence; blocks that nobody else holds are free."""
        self.allocator.release(self._blocks.pop(sequence))
        del self._lengths[sequence]

    def _fresh_count(self, sequence: int, new: int) -> int:
        held = len(self._blocks[sequence])
        return -(-(self._lengths[sequence] + new) // self.block_tokens) - held

    def _to_split(self, counts: Mapping[int, int]) -> set[int]:
        """Sequences whose last block is written and still held by others when it is their turn: they copy it."""
        left: Counter[int] = Counter()
        split = set()
        for sequence, new in counts.items():
            if new and self._lengths[sequence] % self.block_tokens:
                last = self._blocks[sequence][-1]
                if self.allocator.holders(last) - left[last] > 1:
                    split.add(sequence)
                    left[last] += 1
        return split


@dataclass(frozen=True)
class Places:
    """Where the new tokens of several sequences stand, and what they may see."""

    table: Tensor  # (batch, blocks) of the longest; shorter rows end in block zero, which the mask hides
    slots: Tensor  # (new,) in the pool, one sequence after the other
    positions: Tensor  # (new,) in their own sequences
    rows: Tensor  # (new,) whose they are
    columns: Tensor  # (new,) which of its sequence's new tokens
    counts: tuple[int, ...]  # new tokens of each sequence
    longest: int  # tokens of the longest sequence, the new ones among them
    mask: Tensor | None  # (batch, 1, most new, longest), true where seen; None: all equally long, causal


class PagedCache(BlockTables):
    """Keys and values in one pool of blocks: (layers, blocks, block_tokens, kv_heads, head_dim) each."""

    def __init__(
        self, geometry: Geometry, blocks: int, block_tokens: int, dtype: torch.dtype, device: Device = "cpu"
    ) -> None:
        super().__init__(blocks, block_tokens)
        shape = (geometry.layers, blocks, block_tokens, geometry.kv_heads, geometry.head_dim)
        # Zeros: what a mask hides is multiplied by zero all the same, and must be finite.
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool, held or free."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, counts: Mapping[int, int]) -> dict[int, int]:
        """As the tables do; shared blocks about to be written are copied."""
        if copies := super().append(counts):
            new, shared = (torch.tensor(list(b), device=self.keys.device) for b in (copies, copies.values()))
            for pool in (self.keys, self.values):
                pool[:, new] = pool[:, shared]
        return copies

    def places(self, counts: Mapping[int, int]) -> Places:
        """Places of the newest `counts` tokens of each sequence, which were appended already."""
        device = self.keys.device
        lengths = [self.length(sequence) for sequence in counts]
        longest, most = max(lengths), max(counts.values())
        width = -(-longest // self.block_tokens)
        table = torch.tensor([[*self.blocks(s), *[0] * width][:width] for s in counts], device=device)
        starts = torch.tensor([n - new for n, new in zip(lengths, counts.values(), strict=True)], device=device)
        ahead = torch.arange(most, device=device)
        new = torch.tensor(list(counts.values()), device=device)
        rows, columns = (ahead < new[:, None]).nonzero(as_tuple=True)
        positions = starts[rows] + columns
        slots = table[rows, positions // self.block_tokens] * self.block_tokens + positions % self.block_tokens
        mask = None
        if len(set(lengths)) > 1 or len(set(counts.values())) > 1:
            seen = starts[:, None] + ahead  # last position that a query sees: its own
            mask = (torch.arange(longest, device=device) <= seen[..., None])[:, None]
        return Places(table, slots, positions, rows, columns, tuple(counts.values()), longest, mask)

    def write(self, layer: int, places: Places, keys: Tensor, values: Tensor) -> None:
        """Put (new, kv_heads, head_dim) into the slots of the new tokens."""
        for pool, new in ((self.keys, keys), (self.values, values)):
            pool[layer].flatten(0, 1).index_copy_(0, places.slots, new)

    # --8<-- [start:gather]
    def gather(self, layer: int, places: Places) -> tuple[Tensor, Tensor]:
        """Keys and values by way of the table, (batch, kv_heads, longest, head_dim) each: a copy of them all."""
        return self._gathered(self.keys[layer], places), self._gathered(self.values[layer], places)

    def _gathered(self, pool: Tensor, places: Places) -> Tensor:
        blocks = pool.index_select(0, places.table.flatten())
        return blocks.view(len(places.table), -1, *pool.shape[2:])[:, : places.longest].transpose(1, 2)

    # --8<-- [end:gather]


def attend_places(queries: Tensor, keys: Tensor, values: Tensor, places: Places) -> Tensor:
    """Each new token attends to its own sequence up to itself: (new, heads, head_dim) of all sequences.

    Keys and values as `PagedCache.gather` returns them.
    """
    new, heads, head_dim = queries.shape
    batch, kv_heads = keys.shape[:2]
    most = max(places.counts)
    if new == batch * most:
        wide = queries.view(batch, most, heads, head_dim)
    else:  # sequences with fewer new tokens get queries that nobody reads
        wide = queries.new_zeros(batch, most, heads, head_dim)
        wide[places.rows, places.columns] = queries
    if places.mask is None:
        mixed = attend(wide.transpose(1, 2), keys, values).transpose(1, 2)
    elif most == 1:  # as in `attend`: the query heads of a group are the rows of one product
        rows = wide.view(batch, kv_heads, heads // kv_heads, head_dim)
        mixed = F.scaled_dot_product_attention(rows, keys, values, attn_mask=places.mask).reshape(wide.shape)
    else:
        mixed = F.scaled_dot_product_attention(
            wide.transpose(1, 2), keys, values, attn_mask=places.mask, enable_gqa=True
        ).transpose(1, 2)
    return mixed[places.rows, places.columns]


@torch.inference_mode()
def step(decoder: Decoder, cache: PagedCache, fresh: Mapping[int, Tensor], *, last_only: bool = True) -> Tensor:
    """Run the new tokens (tokens,) of each sequence: prompts, parts of prompts and single tokens, mixed at will.

    Returns:
        Logits (sequences, vocabulary) of the last token of each; without `last_only` (new, vocabulary) of all
        new tokens, one sequence after the other.

    Raises:
        OutOfBlocksError: no room; nothing has changed.
        ValueError: a sequence without a new token.
    """
    counts = {sequence: len(ids) for sequence, ids in fresh.items()}
    if not counts or not all(counts.values()):
        raise ValueError("every sequence of a step needs a new token")
    cache.append(counts)
    places = cache.places(counts)
    x = decoder.embed_tokens(torch.cat(list(fresh.values())))  # (new, hidden)
    cos, sin = (table[places.positions][:, None] for table in rotation(decoder.geometry, 0, places.longest, x))
    for layer, block in enumerate(decoder.layers):
        assert isinstance(block, Block)
        project, hidden = block.self_attn, block.input_layernorm(x)
        queries, keys, values = (
            linear(hidden).unflatten(-1, (-1, decoder.geometry.head_dim))
            for linear in (project.q_proj, project.k_proj, project.v_proj)
        )  # (new, heads or kv_heads, head_dim)
        cache.write(layer, places, rotate(keys, cos, sin), values)
        mixed = attend_places(rotate(queries, cos, sin), *cache.gather(layer, places), places)
        x = x + project.o_proj(mixed.flatten(1))
        x = x + block.mlp(block.post_attention_layernorm(x))
    if last_only:
        x = x[torch.tensor(places.counts, device=x.device).cumsum(0) - 1]
    return decoder.lm_head(decoder.norm(x))


def generate(decoder: Decoder, cache: PagedCache, prompts: Sequence[Tensor], new_tokens: int) -> Tensor:
    """Greedy continuations (prompts, new_tokens) of prompts (tokens,) of any lengths, all in one batch."""
    sequences = [cache.admit() for _ in prompts]
    fresh, chosen = dict(zip(sequences, prompts, strict=True)), []
    try:
        for _ in range(new_tokens):
            chosen.append(step(decoder, cache, fresh).argmax(-1))
            fresh = dict(zip(sequences, chosen[-1][:, None], strict=True))
    finally:
        for sequence in sequences:
            cache.finish(sequence)
    return torch.stack(chosen, dim=1)
