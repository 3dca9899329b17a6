"""Residual and RMSNorm as one Triton kernel. Importing this module imports triton.

A program owns a row: it reads what was there and what a layer adds, keeps their sum in registers, and writes the
sum and its norm. Nothing between goes through memory. Formula: RMSNorm (arXiv:1910.07467).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


# --8<-- [start:kernel]
@triton.jit
def _add_norm(  # type: ignore[no-untyped-def]
    residual, added, weight, summed, normed, hidden, epsilon, COLUMNS: tl.constexpr
):  # fmt: skip
    """One row: two reads, two writes."""
    column = tl.arange(0, COLUMNS)
    inside = column < hidden
    at = tl.program_id(0) * hidden + column
    total = tl.load(residual + at, mask=inside, other=0.0) + tl.load(added + at, mask=inside, other=0.0)
    tl.store(summed + at, total, mask=inside)
    wide = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / hidden + epsilon)
    gain = tl.load(weight + column, mask=inside, other=0.0)
    tl.store(normed + at, (wide * scale).to(total.dtype) * gain, mask=inside)


# --8<-- [end:kernel]


def add_norm(residual: Tensor, added: Tensor, weight: Tensor, epsilon: float = 1e-5) -> tuple[Tensor, Tensor]:
    """(sum, norm of the sum), each (rows, hidden) in the inputs' dtype, of residual and added (rows, hidden).

    Raises:
        ValueError: shapes or dtypes that differ.
    """
    if residual.shape != added.shape or residual.shape[1:] != weight.shape or residual.dtype != added.dtype:
        raise ValueError(f"{tuple(residual.shape)}, {tuple(added.shape)} and {tuple(weight.shape)} do not fit")
    rows, hidden = residual.shape
    summed, normed = (torch.empty_like(residual, memory_format=torch.contiguous_format) for _ in range(2))
    _add_norm[(rows,)](
        residual.contiguous(), added.contiguous(), weight.contiguous(), summed, normed, hidden, epsilon,
        COLUMNS=triton.next_power_of_2(hidden),
    )  # fmt: skip
    return summed, normed
