"""Llama-3-8B's head at one row and at many, and one layer's products: weights read once, operations, launches."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from snippets.instruments.targets import Target
from snippets.models.shapes import LLAMA_3_8B
from snippets.predictions.counting import Work, counted

ROWS = 32  # of the page's product of many rows


def product(rows: int, shape: tuple[int, int]) -> Work:
    """A BF16 product of so many rows with a matrix (out, in)."""
    x, weight = (torch.empty(size, dtype=torch.bfloat16, device="meta") for size in ((rows, shape[1]), shape))
    return counted(F.linear, x, weight)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    matrix = (LLAMA_3_8B.vocabulary, LLAMA_3_8B.hidden)
    layer = sum((product(1, shape) for shape in LLAMA_3_8B.linear_shapes.values()), Work())
    one, many, products = (w.seconds(target, "bfloat16") for w in (product(1, matrix), product(ROWS, matrix), layer))
    return {"head_seconds": one, "head_over_layer_ratio": one / products, "amortised_ratio": ROWS * one / many}
