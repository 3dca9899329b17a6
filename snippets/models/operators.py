"""PyTorch's private operators: the one place that calls them, each beside the same product in public operators.

A private operator may change or vanish with any release, and checks little: on a CPU `_weight_int8pack_mm` in BF16
reads beyond its rows, and returns garbage or crashes, unless the columns fill whole vectors. So each operator has a
function that says what it takes; everything else is computed in public operators, slower: integers to the same bit.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments.device import capabilities

INT8_VECTOR = 32  # columns: the widest vector of any CPU kernel, in INT8 codes
INT4_ROWS, INT4_GROUPS = 16, (32, 64, 128, 256)
_GPU_ROWS, _GPU_MULTIPLE, _FP8_MULTIPLE = 32, 8, 16  # what cuBLAS takes; fewer rows are filled up with zeros
_EXACT = 1024  # products of two INT8 codes that FP32 sums without rounding


def exists(operator: str) -> bool:
    """Whether this PyTorch still has an operator of that name."""
    return hasattr(torch.ops.aten, operator)


# --8<-- [start:int8]
def takes_int8(codes: Tensor) -> bool:
    """Whether `_int_mm` multiplies by codes (inner, columns) where they lie; a shape alone counts as on a GPU."""
    sizes_fit = all(size % _GPU_MULTIPLE == 0 for size in codes.shape)
    return exists("_int_mm") and (codes.is_cpu or ((codes.is_cuda or codes.is_meta) and sizes_fit))


def int8_product(a: Tensor, b: Tensor, *, plain: bool = False) -> Tensor:
    """INT32 (rows, columns) of INT8 a (rows, inner) times INT8 b (inner, columns), exact either way."""
    if plain or not takes_int8(b):
        sums = torch.zeros(len(a), b.shape[1], dtype=torch.int32, device=a.device)
        for x, y in zip(a.split(_EXACT, 1), b.split(_EXACT), strict=True):
            sums += (x.float() @ y.float()).to(torch.int32)
        return sums
    if b.is_cuda and len(a) < _GPU_ROWS:
        return torch._int_mm(F.pad(a, (0, 0, 0, _GPU_ROWS - len(a))), b)[: len(a)]
    return torch._int_mm(a, b)


# --8<-- [end:int8]


def takes_int8_weight(codes: Tensor) -> bool:
    """Whether `_weight_int8pack_mm` multiplies by codes (rows, columns) where they lie."""
    return codes.is_cpu and codes.shape[1] % INT8_VECTOR == 0 and exists("_weight_int8pack_mm")


def int8_weight_product(x: Tensor, codes: Tensor, scale: Tensor, *, plain: bool = False) -> Tensor:
    """(tokens, rows) of x (tokens, columns) times INT8 codes (rows, columns), transposed, with a scale a row."""
    if plain or not takes_int8_weight(codes):
        return (x @ codes.to(x.dtype).T) * scale
    return torch.ops.aten._weight_int8pack_mm(x, codes, scale)


def takes_int4_weight(packed: Tensor, rows: int, group: int) -> bool:
    """Whether `_weight_int4pack_mm_for_cpu` multiplies by such a matrix where it lies."""
    return packed.is_cpu and group in INT4_GROUPS and rows % INT4_ROWS == 0 and exists("_weight_int4pack_mm_for_cpu")


def int4_packed(codes: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """What the operator reads, of codes (rows, columns) from minus eight to seven and scale (rows, groups).

    It stores a zero point beside each scale: (groups, rows, two).
    """
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32) + 8, 1)
    return packed, torch.stack((scale, torch.zeros_like(scale)), dim=-1).transpose(0, 1).contiguous()


def int4_weight_product(x: Tensor, packed: Tensor, group: int, scale: Tensor) -> Tensor:
    """(tokens, rows) of x (tokens, columns) times what `int4_packed` made."""
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scale)


# --8<-- [start:fp8]
@functools.cache
def has_fp8(device: torch.device) -> bool:
    """Whether the device has instructions for FP8 that `_scaled_mm` uses."""
    return "cuda-fp8" in capabilities(device) and hasattr(torch, "_scaled_mm")


def column_major(matrix: Tensor) -> Tensor:
    """The same matrix, its columns contiguous: the layout that FP8's instructions read on their right."""
    return matrix.T.contiguous().T


def fp8_product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """(rows, columns) in `dtype` of E4M3 a (rows, inner) times E4M3 b (inner, columns), each with one FP32 scale.

    Sums are FP32's, or a GPU's shorter ones. Where the device multiplies FP8, hand b over in `column_major`.
    """
    sizes_fit = all(size % _FP8_MULTIPLE == 0 for size in b.shape)
    if not (has_fp8(b.device) and sizes_fit):
        return ((a.float() @ b.float()) * (scale_a * scale_b)).to(dtype)
    b = b if b.stride(0) == 1 else column_major(b)
    return torch._scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=dtype, use_fast_accum=True)


# --8<-- [end:fp8]
