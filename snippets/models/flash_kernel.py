"""FlashAttention's forward pass as a Triton kernel, causal, with a window. Importing this module imports triton.

A program owns a tile of queries and walks over the tiles of keys that it may see. Scores live in registers only; what
was summed is rescaled whenever the running maximum grows (arXiv:2205.14135, arXiv:1805.02867).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    queries, keys, values, output, tokens, window, softmax_scale,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head."""
    tile, head = tl.program_id(0), tl.program_id(1)
    columns = tl.arange(0, COLUMNS)
    inside = columns[None, :] < HEAD_DIM
    row = tile * BLOCK + tl.arange(0, BLOCK)
    asked = (head * tokens + row[:, None]) * HEAD_DIM + columns[None, :]
    asking = (row[:, None] < tokens) & inside
    query = tl.load(queries + asked, mask=asking, other=0.0)
    top = tl.full([BLOCK], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    mixed = tl.zeros([BLOCK, COLUMNS], tl.float32)
    kept = (head // GROUP) * tokens
    tiles = tile + 1 - tl.maximum(tile * BLOCK - window + 1, 0) // BLOCK
    for back in range(0, tiles):  # from the diagonal back: every row sees something at once
        token = (tile - back) * BLOCK + tl.arange(0, BLOCK)
        where = (kept + token[:, None]) * HEAD_DIM + columns[None, :]
        live = (token[:, None] < tokens) & inside
        key = tl.load(keys + where, mask=live, other=0.0)
        value = tl.load(values + where, mask=live, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * softmax_scale
        distance = row[:, None] - token[None, :]
        scores = tl.where((distance >= 0) & (distance < window), scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        fade, weight = tl.exp(top - higher), tl.exp(scores - higher[:, None])
        total = total * fade + tl.sum(weight, 1)
        mixed = mixed * fade[:, None] + tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        top = higher
    tl.store(output + asked, (mixed / total[:, None]).to(query.dtype), mask=asking)


def attend(queries: Tensor, keys: Tensor, values: Tensor, *, window: int | None = None, block: int = 64) -> Tensor:
    """Causal attention (heads, tokens, head_dim) in the queries' dtype; keys and values (kv_heads, tokens, head_dim).

    A token sees the last `window` tokens, itself among them, or all.

    Raises:
        ValueError: heads that are no multiple of the key/value heads, or a block that is no power of two.
    """
    heads, tokens, head_dim = queries.shape
    if heads % len(keys) or keys.shape != values.shape or keys.shape[1:] != (tokens, head_dim):
        raise ValueError(f"queries {tuple(queries.shape)} do not fit keys {tuple(keys.shape)}")
    if block < 16 or block & (block - 1):
        raise ValueError(f"a tile is a power of two, of what a dot takes at least, not {block}")
    output = torch.empty(heads, tokens, head_dim, dtype=queries.dtype, device=queries.device)
    _attend[(triton.cdiv(tokens, block), heads)](
        queries.contiguous(), keys.contiguous(), values.contiguous(), output, tokens, window or tokens, head_dim**-0.5,
        GROUP=heads // len(keys), HEAD_DIM=head_dim, COLUMNS=max(16, triton.next_power_of_2(head_dim)), BLOCK=block,
    )  # fmt: skip
    return output
