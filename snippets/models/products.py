"""Quantized weights as drop-in linear layers, multiplied by torch's private operators where those work.

The operators may change and check little: on a CPU `_weight_int8pack_mm` in BF16 reads beyond its rows, and
returns garbage or crashes, unless the columns fill whole vectors. So each layer names the `path` it took: an
operator of torch, or "plain", the same product in public operators, much slower. Quantize on the device that
computes: a layer's buffers are laid out for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from snippets.models.quantized import INT8_LARGEST, QuantizedWeight

PLAIN = "plain"
_VECTOR = 32  # columns: the widest vector of any CPU kernel, in INT8 codes
_INT4_ROWS, _INT4_GROUPS = 16, (32, 64, 128, 256)  # what _weight_int4pack_mm_for_cpu accepts


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
        usable = _on_cpu(weight) and weight.shape[1] % _VECTOR == 0 and _exists("_weight_int8pack_mm")
        super().__init__(weight, "_weight_int8pack_mm" if usable and not plain else PLAIN)
        _require_row_scales(weight)
        self.register_buffer("codes", weight.codes().contiguous())
        self.register_buffer("scale", weight.scale[:, 0].to(dtype))

    def product(self, x: Tensor) -> Tensor:
        if self.path == PLAIN:
            return (x @ self.codes.to(x.dtype).T) * self.scale
        return torch.ops.aten._weight_int8pack_mm(x.contiguous(), self.codes, self.scale)


class Int4Linear(QuantizedLinear):
    """INT4 weights in groups, activations in `dtype`. The operator stores a zero point beside each scale."""

    packed: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype, *, plain: bool = False) -> None:
        usable = _on_cpu(weight) and weight.group in _INT4_GROUPS and weight.shape[0] % _INT4_ROWS == 0
        usable = usable and _exists("_weight_int4pack_mm_for_cpu")
        super().__init__(weight, "_weight_int4pack_mm_for_cpu" if usable and not plain else PLAIN)
        if weight.bits != 4:
            raise ValueError(f"codes of {weight.bits} bits, not 4")
        self.group = weight.group
        packed, scale = weight.packed, weight.scale.to(dtype)
        if self.path != PLAIN:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.codes().to(torch.int32) + 8, 1)
            # (columns / group, rows, scale and zero point)
            scale = torch.stack((scale, torch.zeros_like(scale)), dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("packed", packed)
        self.register_buffer("scale", scale)

    def product(self, x: Tensor) -> Tensor:
        if self.path == PLAIN:
            weight = QuantizedWeight(self.packed, self.scale, (self.rows, self.columns), self.group)
            return x @ weight.dequantize(x.dtype).T
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self.packed, self.group, self.scale)


class DynamicInt8Linear(QuantizedLinear):
    """INT8 weights and activations; a token's activations get their scale on each call (W8A8).

    Both paths sum the same integers, so they agree to the last bit.
    """

    codes: Tensor

    def __init__(self, weight: QuantizedWeight, dtype: torch.dtype, *, plain: bool = False) -> None:
        usable = _on_cpu(weight) and _exists("_int_mm")
        super().__init__(weight, "_int_mm" if usable and not plain else PLAIN)
        _require_row_scales(weight)
        self.dtype = dtype
        self.register_buffer("codes", weight.codes().T.contiguous())  # (columns, rows)
        self.register_buffer("scale", weight.scale[:, 0].to(torch.float32))

    def product(self, x: Tensor) -> Tensor:
        scale = x.abs().amax(-1, keepdim=True).to(torch.float32).clamp(min=1e-12) / INT8_LARGEST
        codes = (x / scale).round().to(torch.int8)
        if self.path == PLAIN:
            # Exact: FP64 holds every sum of such integers. (Integer products exist on CPUs alone.)
            sums = codes.to(torch.float64) @ self.codes.to(torch.float64)
        else:
            sums = torch._int_mm(codes, self.codes)
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


def _exists(operator: str) -> bool:
    return hasattr(torch.ops.aten, operator)


def _on_cpu(weight: QuantizedWeight) -> bool:
    return weight.packed.is_cpu


def _require_row_scales(weight: QuantizedWeight) -> None:
    if weight.bits != 8 or weight.group != weight.shape[1]:
        raise ValueError(f"INT8 with one scale a row is needed, not {weight.bits} bits in {weight.group}s")
