"""Quantized weights as drop-in linear layers, multiplied by PyTorch's private operators where those work.

Each layer names the `path` it took: an operator (see `operators`), or "plain", the same product in public operators,
much slower. Quantize on the device that computes: a layer's buffers are laid out for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snippets.models import operators
from snippets.models.quantized import INT8_LARGEST, QuantizedWeight

PLAIN = "plain"


class QuantizedLinear(nn.Module):
    """A bias-free linear layer on a `QuantizedWeight`: (..., columns) → (..., rows), same dtype."""

    scale: Tensor

    def __init__(self, weight: QuantizedWeight, path: str) -> None:
        super().__init__()
        self.rows, self.columns = weight.shape
        self.path = path

    @property
    def nbytes(self) -> int:
        """Bytes of what the product reads: codes, scales, and what else the operator wants stored."""
        return sum(buffer.nbytes for buffer in self.buffers())

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.reshape(-1, self.columns)).unflatten(0, x.shape[:-1])

    def product(self, x: Tensor) -> Tensor:
        """(tokens, columns) → (tokens, rows)."""
        raise NotImplementedError


class Int8Linear(QuantizedLinear):
    """INT8 weights, activations in `dtype`: fewer bytes to read, the same multiplications."""

    codes: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype, *, plain: bool = False) -> None:
        codes = weight.codes().contiguous()
        usable = not plain and operators.takes_int8_weight(codes)
        super().__init__(weight, "_weight_int8pack_mm" if usable else PLAIN)
        _require_row_scales(weight)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", weight.scale[:, 0].to(dtype))

    def product(self, x: Tensor) -> Tensor:
        return operators.int8_weight_product(x.contiguous(), self.codes, self.scale, plain=self.path == PLAIN)


class Int4Linear(QuantizedLinear):
    """INT4 weights in groups, activations in `dtype`. The operator stores a zero point beside each scale."""

    packed: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype, *, plain: bool = False) -> None:
        usable = not plain and operators.takes_int4_weight(weight.packed, weight.shape[0], weight.group)
        super().__init__(weight, "_weight_int4pack_mm_for_cpu" if usable else PLAIN)
        if weight.bits != 4:
            raise ValueError(f"codes of {weight.bits} bits, not 4")
        self.group = weight.group
        packed, scale = weight.packed, weight.scale.to(dtype)
        if self.path != PLAIN:
            packed, scale = operators.int4_packed(weight.codes(), scale)
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)

    def product(self, x: Tensor) -> Tensor:
        if self.path == PLAIN:
            weight = QuantizedWeight(self.packed, self.scale, (self.rows, self.columns), self.group)
            return x @ weight.dequantize(x.dtype).T
        return operators.int4_weight_product(x.contiguous(), self.packed, self.group, self.scale)


class DynamicInt8Linear(QuantizedLinear):
    """INT8 weights and activations; a token's activations get their scale on each call (W8A8).

    Both paths sum the same integers, so they agree to the last bit.
    """

    codes: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype, *, plain: bool = False) -> None:
        codes = weight.codes().T.contiguous()  # (columns, rows)
        usable = not plain and operators.takes_int8(codes)
        super().__init__(weight, "_int_mm" if usable else PLAIN)
        _require_row_scales(weight)
        self.dtype = dtype
        self.register_buffer("codes", codes)
        self.register_buffer("scale", weight.scale[:, 0].to(torch.float32))

    def product(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).to(torch.float32).clamp(min=1e-12) / INT8_LARGEST
        codes = (x / scale).round().to(torch.int8)
        sums = operators.int8_product(codes, self.codes, plain=self.path == PLAIN)
        return (sums.to(torch.float32) * scale * self.scale).to(self.dtype)


def replace_linears(
    module: nn.Module, make: Callable[[Tensor], nn.Module], *, keep: tuple[str, ...] = ("lm_head",)
) -> int:
    """Replace every `nn.Linear` in place by make(its weight), but those whose last name is in `keep`.

    Returns how many were replaced.
    """
    found = [
        (parent, name, child)
        for parent in module.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear) and name not in keep
    ]
    for parent, name, child in found:
        setattr(parent, name, make(child.weight.detach()))
    return len(found)


def _require_row_scales(weight: QuantizedWeight) -> None:
    if weight.bits != 8 or weight.group != weight.shape[1]:
        raise ValueError(f"INT8 with one scale a row is needed, not {weight.bits} bits in {weight.group}s")
