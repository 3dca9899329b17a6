"""One layer's attention with fewer KV heads: products, keys and values, and the copies that a way makes of them.

How well a kernel fills a device with so few rows is left out.
"""

from __future__ import annotations

from dataclasses import replace

from snippets.instruments.targets import Target
from snippets.kv_cache.heads_mha_gqa_mqa import KV_HEADS, PLAIN
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.attention import attention
from snippets.predictions.counting import Work
from snippets.predictions.kinds import on_cpu

DECODE_TOKENS, PREFILL_TOKENS = 8192, 1024  # that the page attends to, in FP32
ELEMENT_BYTES = 4


def work(kv_heads: int, tokens: int, new: int, *, read_heads: int = 0, copied_heads: int = 0) -> Work:
    """Attention of the newest tokens; `read_heads` are read by the kernel, `copied_heads` are written before that."""
    shape = replace(LLAMA_3_8B, kv_heads=read_heads or copied_heads or kv_heads)
    whole = attention(shape, tokens, ELEMENT_BYTES, new=new)
    if not copied_heads:
        return whole
    moved = 2 * (kv_heads + copied_heads) * tokens * LLAMA_3_8B.head_dim * ELEMENT_BYTES  # keys, and values
    return whole + Work(other_bytes=moved, launches=2)


def flagged(target: Target, kv_heads: int, tokens: int, new: int) -> Work:
    """Grouping left to the library: a CPU's kernel reads a head for every query head, no GPU's takes groups in FP32."""
    heads = LLAMA_3_8B.heads
    if kv_heads == heads:
        return work(kv_heads, tokens, new)
    if on_cpu(target):
        return work(kv_heads, tokens, new, read_heads=heads)
    return work(kv_heads, tokens, new, copied_heads=heads)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    mha, gqa, mqa = (KV_HEADS[name] for name in ("mha", "gqa", "mqa"))
    works = {
        PLAIN: work(mha, DECODE_TOKENS, 1),
        "gqa grouped": work(gqa, DECODE_TOKENS, 1),
        "mqa grouped": work(mqa, DECODE_TOKENS, 1),
        "gqa enable_gqa": flagged(target, gqa, DECODE_TOKENS, 1),
        "gqa repeat_interleave": work(gqa, DECODE_TOKENS, 1, copied_heads=mha),
        **{f"{heads} prefill": flagged(target, heads, PREFILL_TOKENS, PREFILL_TOKENS) for heads in (mha, gqa, mqa)},
    }
    seconds = {name: each.seconds(target, "float32") for name, each in works.items()}
    return {
        "gqa_grouped_speed_ratio": seconds[PLAIN] / seconds["gqa grouped"],
        "mqa_grouped_speed_ratio": seconds[PLAIN] / seconds["mqa grouped"],
        "gqa_flag_speed_ratio": seconds[PLAIN] / seconds["gqa enable_gqa"],
        "gqa_repeat_speed_ratio": seconds[PLAIN] / seconds["gqa repeat_interleave"],
        "gqa_copy_cost_ratio": seconds["gqa repeat_interleave"] / seconds["gqa grouped"],
        "gqa_prefill_speed_ratio": seconds[f"{mha} prefill"] / seconds[f"{gqa} prefill"],
        "mqa_prefill_speed_ratio": seconds[f"{mha} prefill"] / seconds[f"{mqa} prefill"],
    }
