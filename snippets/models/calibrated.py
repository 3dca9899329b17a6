"""Post-training quantization that looks at activations: what each method keeps of them and does with them.

Weights only: activation-aware scaling (AWQ, arXiv:2306.00978) and error compensation (GPTQ, arXiv:2210.17323).
Weights and activations in INT8: smoothing (SmoothQuant, arXiv:2211.10438) and outlier columns kept apart
(LLM.int8(), arXiv:2208.07339). All simulated: values lie on the grid and are multiplied in the weight's dtype.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from snippets.models.decoder import Decoder, rotation
from snippets.models.rounding import Scheme, round_to_grid, scales

Model = TypeVar("Model", bound=nn.Module)
INT8_ROWS, INT8_TENSOR = Scheme(8), Scheme(8, per="tensor")
OUTLIER = 6.0  # LLM.int8()'s threshold on the magnitude of a hidden feature


@dataclass(frozen=True)
class Inputs:
    """What calibration keeps of the inputs of one layer; its size does not grow with the text."""

    second_moment: Tensor  # (columns, columns), mean of x xᵀ: half the Hessian of the squared output error
    mean_abs: Tensor  # (columns,), what AWQ scales by
    max_abs: Tensor  # (columns,), what SmoothQuant scales by
    tokens: int

    @classmethod
    def of(cls, rows: Tensor) -> Inputs:
        """From inputs (tokens, columns), at least one token."""
        size = rows.abs()
        return cls(rows.T @ rows / len(rows), size.mean(0), size.amax(0), len(rows))


@contextmanager
def captured(module: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Inputs of named submodules, (tokens, columns), in the dictionary once the context is left."""
    seen: dict[str, list[Tensor]] = {name: [] for name in names}
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, args: seen[name].append(args[0].detach().flatten(0, -2))

    hooks = [module.get_submodule(name).register_forward_pre_hook(keep(name)) for name in seen]
    try:
        yield found
        found |= {name: torch.cat(rows) for name, rows in seen.items()}
    finally:
        for hook in hooks:
            hook.remove()


def output_error(weight: Tensor, changed: Tensor, second_moment: Tensor) -> float:
    """Mean squared norm of (changed - weight) x, relative to that of weight x, over inputs of this second moment."""
    return squared_output(changed - weight, second_moment) / squared_output(weight, second_moment)


def squared_output(weight: Tensor, second_moment: Tensor) -> float:
    """Mean squared norm of weight x over inputs of this second moment."""
    return float((weight @ second_moment).mul_(weight).sum(dtype=torch.float64))


def round_nearest(weight: Tensor, inputs: Inputs | None, scheme: Scheme) -> Tensor:
    """The baseline: looks at no activation."""
    return round_to_grid(weight, scheme)


# --8<-- [start:awq]
def activation_aware(weight: Tensor, inputs: Inputs | None, scheme: Scheme, grid: int = 10) -> Tensor:
    """AWQ: columns with large inputs are scaled up before they are rounded, and down again.

    The scale is the inputs' mean size to a power from zero to one, searched for the least output error. What
    divides it out again belongs to the layer before, so that no bit is added. The paper's search for clipped
    ranges is left out. Without inputs this is rounding to nearest.
    """
    if inputs is None:
        return round_to_grid(weight, scheme)
    best, least = weight, float("inf")
    for step in range(grid):
        scale = inputs.mean_abs.pow(step / grid).clamp(min=1e-4)
        scale = scale / (scale.max() * scale.min()).sqrt()
        rounded = round_to_grid(weight * scale, scheme) / scale
        error = squared_output(rounded - weight, inputs.second_moment)
        if error < least:
            best, least = rounded, error
    return best


# --8<-- [end:awq]


# --8<-- [start:gptq]
def inverse_factor(second_moment: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped second moment, FP64 inside; dead columns count as one.

    Read backwards, the inverse of a matrix' lower factor is the upper factor of the matrix' inverse.
    """
    moment = second_moment.double()
    diagonal = moment.diagonal()
    moment = moment + torch.diag(torch.where(diagonal == 0, 1.0, damping * diagonal.mean()))
    lower = torch.linalg.cholesky(moment.flip(0, 1))
    return torch.linalg.solve_triangular(lower, torch.eye(len(lower)).to(lower), upper=False).flip(0, 1)


def error_compensated(weight: Tensor, inputs: Inputs | None, scheme: Scheme, damping: float = 0.01) -> Tensor:
    """GPTQ: round column by column; what a column loses, the columns after it make good where inputs correlate.

    The scale of a group is taken when its first column is reached, from weights that are compensated so far.
    Without inputs this is rounding to nearest.
    """
    if not scheme.symmetric or scheme.per == "tensor":
        raise ValueError("error compensation is written for symmetric grids of rows or groups")
    if inputs is None:
        return round_to_grid(weight, scheme)
    factor = inverse_factor(inputs.second_moment, damping).to(weight)
    left = torch.clone(weight.T, memory_format=torch.contiguous_format)  # (columns, rows): a column in one piece
    rounded, width = torch.empty_like(left), scheme.group or len(left)
    for start in range(0, len(left), width):
        stop = start + width
        lost, step = torch.empty_like(left[start:stop]), scales(left[start:stop].T, Scheme(scheme.bits)).flatten()
        step = torch.where(step > 0, step, 1.0)
        for column in range(start, stop):
            codes = (left[column] / step).round_().clamp_(-scheme.largest, scheme.largest)
            torch.mul(codes, step, out=rounded[column])
            error = torch.sub(left[column], rounded[column], out=lost[column - start]).div_(factor[column, column])
            left[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
        left[stop:] -= factor[start:stop, stop:].T @ lost
    return rounded.T.contiguous()


# --8<-- [end:gptq]


Method = Callable[[Tensor, Inputs | None, Scheme], Tensor]
METHODS: dict[str, Method] = {"nearest": round_nearest, "AWQ": activation_aware, "GPTQ": error_compensated}

# Layers of a block that read the same inputs are quantized as one matrix: rows do not depend on each other.
SHARED_INPUTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def sharing_copy(model: Model) -> Model:
    """A copy of the modules with the same parameters: replacing one in the copy leaves the original alone."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


@torch.no_grad()
def calibrate(decoder: Decoder, windows: Tensor | None, method: Method, scheme: Scheme, *, every: int = 1) -> Decoder:
    """A copy whose linear layers are quantized block by block, each on inputs from blocks quantized before.

    What is not quantized is shared with the decoder.

    Args:
        decoder: Not changed. Embedding and head are kept.
        windows: Token ids (samples, tokens), or None for no sample.
        method: One of `METHODS`.
        scheme: The grid of every layer.
        every: Quantize only one block in so many, from the first on.
    """
    result = sharing_copy(decoder)
    if windows is not None:
        x = result.embed_tokens(windows)
        cos, sin = rotation(result.geometry, 0, windows.shape[1], x)
    grouped_heads = result.geometry.heads != result.geometry.kv_heads
    last = (len(result.layers) - 1) // every * every
    for number, block in enumerate(result.layers[: last + 1]):
        seen: dict[str, Tensor] = {}
        chosen = number % every == 0
        if windows is not None and chosen:
            with captured(block, [names[0] for names in SHARED_INPUTS]) as seen:
                block(x, cos, sin)
        for names in SHARED_INPUTS if chosen else ():
            # A scale of AWQ goes into the layer before; values that several query heads share cannot take it.
            skipped = method is activation_aware and grouped_heads and names == ("self_attn.o_proj",)
            inputs = Inputs.of(seen[names[0]]) if seen and not skipped else None
            weights: list[Tensor] = [block.get_parameter(f"{name}.weight") for name in names]
            changed = method(torch.cat(weights), inputs, scheme)
            for name, fresh in zip(names, changed.split([len(weight) for weight in weights]), strict=True):
                block.get_submodule(name).weight = nn.Parameter(fresh, requires_grad=False)
        if windows is not None and number < last:
            x = block(x, cos, sin)
    return result


# --8<-- [start:int8]
def smoothing(weight: Tensor, max_abs: Tensor, strength: float = 0.5) -> Tensor:
    """SmoothQuant's divisor of every input column (columns,): what it takes from inputs, the weight takes on."""
    columns = weight.abs().amax(0).clamp(min=1e-5)
    return (max_abs.pow(strength) / columns.pow(1 - strength)).clamp(min=1e-5)


def outlier_columns(rows: Tensor, threshold: float = OUTLIER) -> Tensor:
    """Which columns of inputs (tokens, columns) hold a value of at least the threshold, as LLM.int8() asks."""
    return rows.abs().amax(0) >= threshold


class Int8Linear(nn.Module):
    """A linear layer whose weight and inputs are rounded to INT8, the inputs anew at every call.

    Args:
        linear: What it replaces; a bias is kept.
        per: What shares a scale of the inputs: "row" (a token) or "tensor" (a call). Weights have one a row.
        divisor: (columns,) that inputs are divided and weights multiplied by before rounding, or None.
        threshold: Columns of the inputs that reach it are multiplied unrounded, or None.
    """

    def __init__(
        self, linear: nn.Linear, per: str = "row", divisor: Tensor | None = None, threshold: float | None = None
    ) -> None:
        super().__init__()
        self.plain = linear.weight.detach() if divisor is None else linear.weight.detach() * divisor
        self.weight = nn.Parameter(round_to_grid(self.plain, INT8_ROWS), requires_grad=False)
        self.bias, self.divisor, self.threshold = linear.bias, divisor, threshold
        self.scheme = Scheme(8, per=per)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2)
        if self.divisor is not None:
            rows = rows / self.divisor
        apart = torch.zeros(0, dtype=torch.long)
        if self.threshold is not None:
            apart = outlier_columns(rows, self.threshold).nonzero().flatten()
        high = rows[:, apart] @ self.plain[:, apart].T
        low = round_to_grid(rows.index_fill(1, apart, 0), self.scheme) @ self.weight.T
        out = (low + high).unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias


# --8<-- [end:int8]


def int8_copy(model: nn.Module, make: Callable[[str, nn.Linear], nn.Module], keep: str = "lm_head") -> nn.Module:
    """A copy of a model whose linear layers, but `keep`, are replaced by what `make` returns; parameters are shared."""
    result = sharing_copy(model)
    for name, module in list(result.named_modules()):
        if isinstance(module, nn.Linear) and name != keep:
            parent, _, child = name.rpartition(".")
            setattr(result.get_submodule(parent), child, make(name, module))
    return result
