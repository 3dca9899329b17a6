"""Triton kernels. Importing this module imports triton: do it where a machine has the capability `triton`.

Decode attention over an INT8 cache: codes become numbers in registers and are never written back. A scale belongs to a
whole key, so it multiplies the key's score; a value's scale multiplies its weight. Tokens are split among programs and
their parts put together by their softmax sums, so that one sequence can use a whole GPU (Flash-Decoding).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

Coded = tuple[Tensor, Tensor]
"""Codes int8 (batch, kv_heads, tokens, head_dim) and their scales (batch, kv_heads, tokens)."""


@triton.jit
def _attend_int8(  # type: ignore[no-untyped-def]
    queries, keys, key_scales, values, value_scales, sums, tops, totals,
    key_stride, key_scale_stride, value_stride, value_scale_stride, tokens, span, softmax_scale,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One key/value head of one sequence, one span of its tokens: a weighted sum of values, and its softmax state."""
    head, part, parts = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = columns < HEAD_DIM
    asked = (head * GROUP + rows[:, None]) * HEAD_DIM + columns[None, :]
    query = tl.load(queries + asked, mask=(rows[:, None] < GROUP) & inside[None, :], other=0.0)
    top = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    summed = tl.zeros([ROWS, COLUMNS], tl.float32)
    end = tl.minimum((part + 1) * span, tokens)
    # --8<-- [start:loop]
    for first in range(part * span, end, BLOCK):
        token = first + tl.arange(0, BLOCK)
        live = token < end
        where = token[:, None] * HEAD_DIM + columns[None, :]
        mask = live[:, None] & inside[None, :]
        key = tl.load(keys + head * key_stride + where, mask=mask, other=0).to(query.dtype)
        key_scale = tl.load(key_scales + head * key_scale_stride + token, mask=live, other=0.0).to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (key_scale * softmax_scale)[None, :]
        scores = tl.where(live[None, :], scores, -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 1))
        fade, weights = tl.exp(top - higher), tl.exp(scores - higher[:, None])
        value = tl.load(values + head * value_stride + where, mask=mask, other=0).to(query.dtype)
        value_scale = tl.load(value_scales + head * value_scale_stride + token, mask=live, other=0.0).to(tl.float32)
        scaled = (weights * value_scale[None, :]).to(query.dtype)
        summed = summed * fade[:, None] + tl.dot(scaled, value, input_precision="ieee")
        total = total * fade + tl.sum(weights, 1)
        top = higher
    # --8<-- [end:loop]
    state = (head * parts + part) * ROWS + rows
    tl.store(tops + state, top)
    tl.store(totals + state, total)
    tl.store(sums + state[:, None] * COLUMNS + columns[None, :], summed)


def attend_int8(queries: Tensor, keys: Coded, values: Coded, *, block: int = 64, parts: int | None = None) -> Tensor:
    """Attention (batch, heads, 1, head_dim) of one new token to all cached ones, in the dtype of the queries.

    `parts` spans of the tokens run beside each other; by default one for every few blocks.

    Raises:
        ValueError: more than one new token, or codes that are not laid out head after head.
    """
    batch, heads, new, head_dim = queries.shape
    kv_heads, tokens = keys[0].shape[1:3]
    if new != 1:
        raise ValueError(f"one new token at a time, not {new}")
    for codes, scales in (keys, values):
        if codes.dtype != torch.int8 or codes.stride()[2:] != (head_dim, 1) or scales.stride(2) != 1:
            raise ValueError("codes are int8, and lie head after head, token after token")
        if batch > 1 and any(t.stride(0) != kv_heads * t.stride(1) for t in (codes, scales)):
            raise ValueError("sequences lie one after the other")
    group = heads // kv_heads
    rows, columns = (max(16, triton.next_power_of_2(size)) for size in (group, head_dim))  # the least a dot takes
    parts = parts or max(1, triton.cdiv(tokens, 8 * block))
    span = triton.cdiv(triton.cdiv(tokens, parts), block) * block
    state = (batch * kv_heads, parts, rows)
    sums = torch.empty(*state, columns, dtype=torch.float32, device=queries.device)
    tops, totals = (torch.empty(state, dtype=torch.float32, device=queries.device) for _ in range(2))
    _attend_int8[(batch * kv_heads, parts)](
        queries.contiguous(), keys[0], keys[1], values[0], values[1], sums, tops, totals,
        keys[0].stride(1), keys[1].stride(1), values[0].stride(1), values[1].stride(1), tokens, span, head_dim**-0.5,
        GROUP=group, HEAD_DIM=head_dim, ROWS=rows, COLUMNS=columns, BLOCK=block,
    )  # fmt: skip
    share = torch.exp(tops - tops.amax(1, keepdim=True))  # a span without tokens has minus infinity: no share
    mixed = (sums * share.unsqueeze(-1)).sum(1) / (totals * share).sum(1).unsqueeze(-1)
    return mixed[:, :group, :head_dim].reshape(batch, heads, 1, head_dim).to(queries.dtype)
