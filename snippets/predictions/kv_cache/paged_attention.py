"""One layer's decode attention through a gather: each block read and written, then attention to the copy."""

from __future__ import annotations

import torch

from snippets.instruments.targets import Target
from snippets.kv_cache.paged_attention import Scale
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.attention import attention
from snippets.predictions.counting import Work
from snippets.predictions.kinds import on_cpu

SCALE = Scale()
ELEMENT_BYTES = torch.bfloat16.itemsize


def gather() -> Work:
    """Keys and values of every sequence copied by way of the table."""
    numbers = 2 * SCALE.batch * SCALE.context * LLAMA_3_8B.kv_heads * LLAMA_3_8B.head_dim
    return Work(other_bytes=2 * numbers * ELEMENT_BYTES, launches=2)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    contiguous = attention(LLAMA_3_8B, SCALE.context, ELEMENT_BYTES, batch=SCALE.batch)
    picked = Work(launches=1)  # the new tokens' rows of the result
    whole, plain, copy = (w.seconds(target, "bfloat16") for w in (gather() + contiguous + picked, contiguous, gather()))
    fresh = "what a processor's allocator takes for fresh memory"
    return {
        "contiguous_seconds": plain,
        "gather_seconds": copy,
        "slowdown_ratio": whole / plain,
        "fresh_slowdown_ratio": fresh
        if on_cpu(target)
        else whole / plain,  # an accelerator's memory is kept by PyTorch
    }
