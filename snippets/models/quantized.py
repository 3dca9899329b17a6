"""Symmetric weight quantization, packed as it is stored, so that its bytes can be counted.

A code times its scale gives the weight back; zero is always exact. INT4 codes lie two to a byte.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

INT8_LARGEST, INT4_LARGEST = 127, 7  # The codes are symmetric: the one more negative code stays unused.


@dataclass(frozen=True)
class QuantizedWeight:
    """Codes and scales of a matrix (rows, columns).

    `packed` is int8 (rows, columns), or uint8 (rows, columns / two) with even columns in the low halves.
    `scale` is (rows, columns / group); a group never crosses a row.
    """

    packed: Tensor
    scale: Tensor
    shape: tuple[int, int]
    group: int

    @property
    def bits(self) -> int:
        """Bits of one code, without its share of a scale."""
        return 8 if self.packed.dtype == torch.int8 else 4

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.scale.nbytes

    def codes(self) -> Tensor:
        """Signed codes, int8 (rows, columns)."""
        return self.packed if self.packed.dtype == torch.int8 else unpack_int4(self.packed)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes stand for, (rows, columns)."""
        grouped = self.codes().to(torch.float32).unflatten(1, (-1, self.group))
        return (grouped * self.scale.to(torch.float32).unsqueeze(-1)).flatten(1).to(dtype)


def quantize_rows_int8(weight: Tensor, scale_dtype: torch.dtype = torch.float32) -> QuantizedWeight:
    """INT8 with one scale a row, for a weight (rows, columns)."""
    codes, scale = _symmetric(weight, weight.shape[1], INT8_LARGEST, scale_dtype)
    return QuantizedWeight(codes, scale, (weight.shape[0], weight.shape[1]), weight.shape[1])


def quantize_groups_int4(
    weight: Tensor, group: int = 128, scale_dtype: torch.dtype = torch.bfloat16
) -> QuantizedWeight:
    """INT4 with one scale for each `group` neighbours of a row, for a weight (rows, columns).

    Raises:
        ValueError: the group does not divide the columns, or the columns are odd and cannot be paired.
    """
    codes, scale = _symmetric(weight, group, INT4_LARGEST, scale_dtype)
    return QuantizedWeight(pack_int4(codes), scale, (weight.shape[0], weight.shape[1]), group)


def pack_int4(codes: Tensor) -> Tensor:
    """Signed codes (rows, columns) of four bits → uint8 (rows, columns / two)."""
    if codes.shape[1] % 2:
        raise ValueError(f"{codes.shape[1]} columns are odd: codes are packed two to a byte")
    nibbles = (codes + 8).to(torch.uint8)
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4


def unpack_int4(packed: Tensor) -> Tensor:
    """The inverse of `pack_int4`, int8."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1).to(torch.int8) - 8


def _symmetric(weight: Tensor, group: int, largest: int, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if weight.ndim != 2:
        raise ValueError(f"a weight has rows and columns, not shape {tuple(weight.shape)}")
    if group < 1 or weight.shape[1] % group:
        raise ValueError(f"{weight.shape[1]} columns do not divide by a group of {group}")
    grouped = weight.detach().to(torch.float32).unflatten(1, (-1, group))
    scale = (grouped.abs().amax(-1) / largest).to(scale_dtype)
    # Divide by the scale as it is stored: a code must answer for the rounding of its scale as well.
    step = scale.to(torch.float32).unsqueeze(-1)
    codes = torch.where(step > 0, grouped / step, 0.0).round().clamp(-largest, largest)
    return codes.flatten(1).to(torch.int8), scale
