"""One layer's decode attention over codes: dequantizing them, operation by operation, then attention to the copy.

The fused kernel is recorded where Triton runs, and not predicted.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models.quantized_cache import CacheScheme, QuantizedCache
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.attention import attention
from snippets.predictions.counting import Work, counted

TOKENS = 4096  # that the page attends to, in BF16
LAYER = replace(LLAMA_3_8B, layers=1)


def plain() -> Work:
    """Attention to keys and values in BF16."""
    return attention(LAYER, TOKENS, torch.bfloat16.itemsize)


@cache
def dequantized(bits: int) -> Work:
    """The same after every key and value is made BF16 again."""
    held = QuantizedCache(LAYER, 1, TOKENS, torch.bfloat16, "meta", CacheScheme(bits))
    reads = [counted(part.read, 0, TOKENS, torch.bfloat16) for part in (held.key_part, held.value_part)]
    return sum(reads, plain())


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    alone = plain().seconds(target, "bfloat16")
    return {
        "slower_ratio": dequantized(8).seconds(target, "bfloat16") / alone,
        "int4_slower_ratio": dequantized(4).seconds(target, "bfloat16") / alone,
    }
