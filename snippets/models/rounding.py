"""Simulated quantization to any width: weights rounded to the values that codes could hold, kept as floats.

It answers for quality, never for speed or memory; `snippets/models/quantized.py` packs what is really stored.
Formulas: uniform affine quantization (arXiv:2106.08295).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Scheme:
    """A grid: its width, what shares a scale, and whether it has a zero point.

    `Scheme(8)` has one scale a row, `Scheme(4, group=64)` one for each group of neighbours in a row,
    `Scheme(8, per="tensor")` one in all. A symmetric grid leaves the one more negative code unused, so two bits
    are three values.

    Raises:
        ValueError: the parts contradict each other.
    """

    bits: int
    group: int | None = None
    per: str = ""  # "group", "row" or "tensor"; empty: from `group`
    symmetric: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "per", self.per or ("row" if self.group is None else "group"))
        if self.per not in ("group", "row", "tensor") or (self.per == "group") != (self.group is not None):
            raise ValueError(f"per={self.per!r} with group={self.group}: a group goes with per='group' alone")
        if not (2 if self.symmetric else 1) <= self.bits <= 16:
            raise ValueError(f"{self.bits} bits make no grid here")

    @property
    def largest(self) -> int:
        """The largest code; the smallest is its negative, or zero with a zero point."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1


def grouped(weight: Tensor, scheme: Scheme) -> Tensor:
    """View (rows, columns) as (rows, groups, group), FP32: what shares a scale lies in the last dimension.

    Per tensor it is (1, 1, rows * columns). ValueError if columns do not divide by the group.
    """
    if weight.ndim != 2:
        raise ValueError(f"a weight has rows and columns, not shape {tuple(weight.shape)}")
    if scheme.per == "tensor":
        return weight.to(torch.float32).reshape(1, 1, -1)
    group = weight.shape[1] if scheme.group is None else scheme.group
    if group < 1 or weight.shape[1] % group:
        raise ValueError(f"{weight.shape[1]} columns do not divide by a group of {group}")
    return weight.to(torch.float32).unflatten(1, (-1, group))


def scales(weight: Tensor, scheme: Scheme, scale_dtype: torch.dtype = torch.float32) -> Tensor:
    """The step of every grid, FP32 (rows, groups), that just covers the weights; (1, 1) per tensor."""
    parts = grouped(weight, scheme)
    reach = parts.abs().amax(-1) if scheme.symmetric else parts.amax(-1).clamp(min=0) - parts.amin(-1).clamp(max=0)
    return (reach / scheme.largest).to(scale_dtype).to(torch.float32)


def round_to_grid(
    weight: Tensor, scheme: Scheme, *, scale: Tensor | None = None, scale_dtype: torch.dtype = torch.float32
) -> Tensor:
    """The nearest value on the grid for each weight, FP32 (rows, columns).

    Args:
        weight: (rows, columns), any floating dtype.
        scheme: the grid.
        scale: steps to use instead of `scales(...)`, in its shape; what lies beyond the grid is clipped.
        scale_dtype: how a scale is stored. Rounding divides by the scale as stored.
    """
    parts = grouped(weight, scheme)
    step = (scales(weight, scheme) if scale is None else scale).to(scale_dtype).to(torch.float32).unsqueeze(-1)
    safe = torch.where(step > 0, step, 1.0)  # All zeros: any step gives them back.
    if scheme.symmetric:
        codes = (parts / safe).round().clamp(-scheme.largest, scheme.largest)
        return (codes * step).reshape(weight.shape)
    zero = (-parts.amin(-1, keepdim=True).clamp(max=0) / safe).round().clamp(0, scheme.largest)
    codes = ((parts / safe).round() + zero).clamp(0, scheme.largest)
    return ((codes - zero) * step).reshape(weight.shape)


def stored_bits(shape: tuple[int, int], scheme: Scheme, scale_bits: int = 16) -> float:
    """Bits a weight, with its share of scales; a zero point takes as many bits as a code."""
    rows, columns = shape
    grids = {"tensor": 1, "row": rows, "group": rows * columns // (scheme.group or columns)}[scheme.per]
    zero_bits = 0 if scheme.symmetric else scheme.bits
    return scheme.bits + grids * (scale_bits + zero_bits) / (rows * columns)


def matrices(model: nn.Module, keep: tuple[str, ...] = ("lm_head", "embed_tokens")) -> dict[str, nn.Parameter]:
    """Name of the module → weight of every linear layer and embedding, without those in `keep`, each once.

    A name in `keep` is any part of a module's dotted name. A tied weight is kept if one of its names is.
    """
    found: dict[str, nn.Parameter] = {
        n: cast(nn.Parameter, m.weight) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding)
    }
    seen = {id(weight) for name, weight in found.items() if set(name.split(".")) & set(keep)}
    chosen: dict[str, nn.Parameter] = {}
    for name, weight in found.items():
        if id(weight) not in seen:
            chosen[name] = weight
            seen.add(id(weight))
    return chosen


def quantize_decoder(decoder: Model, scheme: Scheme, *, keep: tuple[str, ...] = ("lm_head", "embed_tokens")) -> Model:
    """A deep copy of a decoder (or of any module) whose matrices, but those in `keep`, are rounded to the grid."""
    rounded = copy.deepcopy(decoder)
    with torch.no_grad():
        for weight in matrices(rounded, keep).values():
            weight.copy_(round_to_grid(weight, scheme))
    return rounded
