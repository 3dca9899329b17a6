"""Ways to train a decoder that keep different things between two steps: masters, states in a byte, LoRA over INT4.

The decoder is the project's own; a `Recipe` says what is kept and in which format, a `Trainer` does its steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from snippets.instruments.memory import storage_bytes
from snippets.models.decoder import Decoder
from snippets.models.quantized import QuantizedWeight, quantize_groups_int4

FP32, BF16 = torch.float32, torch.bfloat16
BLOCK = 256  # neighbours of a moment that share a scale


# --8<-- [start:codes]
def codebook(signed: bool) -> Tensor:
    """Levels in which a moment is stored, ascending, for every code of a byte (arXiv:2110.02861).

    Each decade below the largest has as many levels as all smaller ones: relative precision, over a wide range.
    """
    levels = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1, dtype=torch.float64)
        middles = ((edges[1:] + edges[:-1]) / 2 * 10.0 ** (decade - 6)).tolist()
        levels += middles + ([-middle for middle in middles] if signed else [])
    return torch.tensor(sorted(levels), dtype=FP32)


def encode(moment: Tensor, book: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, uint8 of the moment's size, and the largest magnitude of each block of neighbours, FP32."""
    blocks = F.pad(moment.flatten(), (0, -moment.numel() % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True)
    borders = (book[1:] + book[:-1]) / 2
    codes = torch.bucketize(blocks / scale.clamp_min(1e-30), borders.to(moment.device), out_int32=True)
    return codes.to(torch.uint8).flatten()[: moment.numel()].clone(), scale


# --8<-- [end:codes]


def decode(stored: tuple[Tensor, Tensor], book: Tensor, like: Tensor) -> Tensor:
    """The moment that codes and scales stand for, in FP32 and in the shape of `like`."""
    codes, scale = stored
    blocks = F.pad(book.to(codes.device)[codes.int()], (0, -codes.numel() % BLOCK)).view(-1, BLOCK)
    return (blocks * scale).flatten()[: codes.numel()].view_as(like)


class AdamW8(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) whose two moments wait as one byte each between the steps."""

    def __init__(
        self, weights: Iterable[Tensor], lr: float = 1e-3, levels: Callable[[bool], Tensor] = codebook
    ) -> None:
        super().__init__(weights, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01})
        self.books = (levels(True), levels(False))  # a first moment has a sign, a second has none

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Decode both moments, update them and the weight as AdamW does, encode them again."""
        for group in self.param_groups:
            rate, (keep_first, keep_second) = group["lr"], group["betas"]
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state.update(steps=0, moments=[encode(torch.zeros_like(weight), book) for book in self.books])
                state["steps"] += 1
                first, second = (decode(m, b, weight) for m, b in zip(state["moments"], self.books, strict=True))
                first.lerp_(weight.grad, 1 - keep_first)
                second.mul_(keep_second).addcmul_(weight.grad, weight.grad, value=1 - keep_second)
                state["moments"] = [encode(m, b) for m, b in zip((first, second), self.books, strict=True)]
                spread = (second / (1 - keep_second ** state["steps"])).sqrt_().add_(group["eps"])
                weight.mul_(1 - rate * group["weight_decay"])
                weight.addcdiv_(first, spread, value=-rate / (1 - keep_first ** state["steps"]))


# --8<-- [start:lora]
class FrozenProduct(torch.autograd.Function):
    """x times a packed weight. Backward dequantizes again, so that no float copy waits between the passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: QuantizedWeight) -> Tensor:
        """(..., columns) → (..., rows)."""
        ctx.weight = weight
        return F.linear(x, weight.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of x; codes have none."""
        return gradient @ ctx.weight.dequantize(gradient.dtype), None


class LoraLinear(nn.Module):
    """A frozen packed weight plus a trained product of two thin matrices (arXiv:2106.09685, arXiv:2305.14314)."""

    def __init__(self, weight: QuantizedWeight, rank: int, again: bool = True) -> None:
        super().__init__()
        rows, columns = weight.shape
        device = weight.packed.device
        self.frozen, self.again = weight, again
        self.down = nn.Parameter(torch.randn(rank, columns, device=device) * columns**-0.5)
        self.up = nn.Parameter(torch.zeros(rows, rank, device=device))  # at first the sum is the frozen weight alone

    def forward(self, x: Tensor) -> Tensor:
        """(..., columns) → (..., rows)."""
        # The second way is the trap: autograd keeps its float copy of the weight until backward.
        base = FrozenProduct.apply(x, self.frozen) if self.again else F.linear(x, self.frozen.dequantize(x.dtype))
        return base + F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


# --8<-- [end:lora]


def add_lora(decoder: Decoder, rank: int, group: int = 64, again: bool = True) -> Decoder:
    """Freeze everything in BF16, pack the layers' matrices to INT4, put an FP32 adapter beside each; in place."""
    decoder.to(BF16).requires_grad_(False)
    for block in decoder.layers:
        for name in decoder.geometry.linear_shapes:
            part, _, last = name.rpartition(".")
            owner = block.get_submodule(part)
            packed = quantize_groups_int4(owner.get_parameter(f"{last}.weight"), group)
            setattr(owner, last, LoraLinear(packed, rank, again))
    return decoder


# --8<-- [start:recipes]
@dataclass(frozen=True)
class Recipe:
    """What a training keeps, and in which format."""

    weights: torch.dtype = FP32  # those that forward and backward use
    master: bool = False  # an FP32 copy of the weights that the optimizer updates
    gradients: tuple[torch.dtype, ...] = (FP32,)  # what waits for the optimizer; sums of several batches go into FP32
    codes: bool = False  # the optimizer's moments in a byte each
    autocast: bool = False  # products in BF16, whatever the weights are
    rank: int = 0  # LoRA over a frozen INT4 base
    recompute: bool = False  # keep a layer's input alone, and run the layer again in backward


RECIPES = {
    "FP32": Recipe(),
    "BF16 autocast": Recipe(autocast=True),
    "BF16, FP32 master, BF16 gradients": Recipe(BF16, True, (BF16,)),
    "BF16, FP32 master, FP32 gradients": Recipe(BF16, True, (FP32,)),
    "BF16, FP32 master, both gradients": Recipe(BF16, True, (BF16, FP32)),
    "FP32, INT8 states": Recipe(codes=True),
    "BF16, FP32 master, INT8 states": Recipe(BF16, True, (BF16,), codes=True),
    "BF16 alone": Recipe(BF16, False, (BF16,)),
    "LoRA over INT4": Recipe(rank=16),
}


# --8<-- [end:recipes]


class Trainer:
    """A decoder, its masters and its optimizers, as a recipe says."""

    def __init__(self, decoder: Decoder, recipe: Recipe, rate: float = 3e-3) -> None:
        self.decoder, self.recipe = decoder, recipe
        if recipe.rank:
            add_lora(decoder, recipe.rank)
        else:
            decoder.requires_grad_(True)
        trained = [p for p in decoder.parameters() if p.requires_grad]
        self.masters = [p.detach().clone().requires_grad_() for p in trained] if recipe.master else trained
        self.weights = trained
        if not recipe.rank:
            decoder.to(recipe.weights)
        fused = self.masters[0].device.type != "meta"  # where there is content, PyTorch has one kernel for all of it
        make = AdamW8 if recipe.codes else functools.partial(torch.optim.AdamW, fused=fused, foreach=False)
        # An optimizer for each tensor: a BF16 gradient is then widened for one tensor at a time.
        self.optimizers = [make([master], lr=rate) for master in self.masters]
        if recipe.master and FP32 in recipe.gradients:
            for weight, master in zip(trained, self.masters, strict=True):
                weight.register_post_accumulate_grad_hook(functools.partial(self._widen, master))
        if recipe.recompute:
            for block in decoder.layers:
                block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]

    def _widen(self, master: Tensor, weight: Tensor) -> None:
        assert weight.grad is not None
        master.grad = weight.grad.to(FP32) if master.grad is None else master.grad.add_(weight.grad)
        if BF16 not in self.recipe.gradients:
            weight.grad = None

    def losses(self, tokens: Tensor) -> Tensor:
        """Mean next-token loss of each sequence, nats, (batch,); tokens are (batch, length + one)."""
        cast = torch.autocast(tokens.device.type, BF16) if self.recipe.autocast else nullcontext()
        with cast:
            logits = self.decoder(tokens[:, :-1].clone())
        flat = F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten().clone(), reduction="none")
        return flat.view(len(tokens), -1).mean(1)

    def update(self) -> None:
        """The optimizers' step, from the gradients that the last backward pass left."""
        for weight, master, optimizer in zip(self.weights, self.masters, self.optimizers, strict=True):
            if narrow := master.grad is None:
                assert weight.grad is not None
                master.grad = weight.grad.to(FP32)
            optimizer.step()
            if narrow:
                master.grad = None
            if master is not weight:
                weight.data.copy_(master.data)

    def step(self, tokens: Tensor) -> None:
        """One whole step: forget the gradients of the last, forward, backward, update."""
        for tensor in (*self.weights, *self.masters):
            tensor.grad = None
        self.losses(tokens).mean().backward()
        self.update()

    def held(self) -> dict[str, int]:
        """Bytes of every tensor that is alive between two steps, by what it is for."""
        gradients = [t.grad for t in (*self.weights, *self.masters) if t.grad is not None]
        return {
            "weights_bytes": storage_bytes(self.decoder),
            "master_bytes": storage_bytes(self.masters) if self.recipe.master else 0,
            "gradients_bytes": storage_bytes(gradients),
            "states_bytes": storage_bytes([optimizer.state for optimizer in self.optimizers]),
        }
