"""Does quantization reduce memory during training? Does it speed training up?

Claim: a training step holds weights, gradients, optimizer states and activations. Rounding weights for inference
shrinks none of it, and autocast adds copies; what shrinks is what is kept in fewer bits: states, or a frozen base.
Autocast makes a step faster where BF16 products have instructions of their own and fill most of the step.

Run: python -m snippets.quantization.training_memory_and_speed
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Any
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize

from snippets.instruments import clock
from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, initialize
from snippets.models.rounding import Scheme, matrices, round_to_grid
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry, parameters
from snippets.models.trained import StraightThrough
from snippets.models.training import BF16, BLOCK, FP32, RECIPES, LoraLinear, Recipe, Trainer

# isort: split
from measured.values import report

BYTES = Geometry("reads bytes", 2, 128, 4, 2, 32, 384, 256, True, "trained here")
WIDE = replace(BYTES, name="one wide layer", layers=1, hidden=768, heads=12, kv_heads=4, head_dim=64, ffn=3072)
INT4 = Scheme(4, group=64)


@dataclass(frozen=True)
class Scale:
    """How much is measured: steps and seeds of a training, rounds of timing."""

    steps: int = 48
    points: int = 4
    seeds: int = 3
    rounds: int = 15
    saved_length: int = 64


SMALL = Scale(steps=10, points=1, seeds=2, rounds=2, saved_length=4)


# --8<-- [start:activations]
class Saved:
    """A tensor in autograd's keeping."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output with its history would keep its own graph alive for ever


def saved_bytes(trainer: Trainer, tokens: Tensor) -> int:
    """Bytes that a forward pass keeps for backward, each storage once, without what the model holds anyway."""
    kept: WeakSet[Saved] = WeakSet()  # what the graph lets go of is not counted

    def save(tensor: Tensor) -> Saved:
        box = Saved(tensor)
        kept.add(box)
        return box

    with saved_tensors_hooks(save, lambda box: box.tensor):
        loss = trainer.losses(tokens).mean()  # the graph lives as long as the loss
    graph = [box.tensor for box in kept]
    return storage_bytes([trainer.decoder, graph, loss]) - storage_bytes([trainer.decoder, loss])


# --8<-- [end:activations]


def saved_line(trainer: Trainer, length: int, device: torch.device | str = "cpu") -> tuple[int, int]:
    """(bytes kept whatever the batch, bytes kept for each token), from batches of one and of two."""
    tokens = torch.arange(2 * (length + 1), device=device).view(2, -1) % trainer.decoder.geometry.vocabulary
    one, two = (saved_bytes(trainer, tokens[:batch]) for batch in (1, 2))
    return 2 * one - two, (two - one) // length


def fresh(geometry: Geometry, device: torch.device | str = "cpu", seed: int = 0) -> Decoder:
    """A decoder with seeded random weights that train well, or with none where the device holds no content."""
    with torch.device(device):
        decoder = Decoder(geometry)
    return decoder if str(device) == "meta" else initialize(decoder, 1000 * seed, std=0.08)  # type: ignore[return-value]


def stepped(geometry: Geometry, recipe: Recipe, device: torch.device | str = "cpu") -> Trainer:
    """A trainer after one whole step: every state it will ever have is there."""
    trainer = Trainer(fresh(geometry, device), recipe)
    trainer.step(torch.arange(18, device=device).view(2, 9))
    return trainer


def kept_columns(device: torch.device | str = "cpu", geometry: Geometry = BYTES) -> dict[str, list]:
    """Every recipe after a real step: bytes a parameter, by what they are for, their sum, and bytes in all."""
    count = parameters(geometry).total
    held = {name: stepped(geometry, recipe, device).held() for name, recipe in RECIPES.items()}
    kept = [sum(one.values()) for one in held.values()]
    parts = {part: [one[part] / count for one in held.values()] for part in held["FP32"]}
    return {"recipe": list(held), **parts, "parameter_bytes": [one / count for one in kept], "kept_bytes": kept}


def kept_values(columns: dict[str, list], geometry: Geometry = BYTES) -> dict[str, int]:
    """Counts of the small model, and what each recipe keeps of it."""
    sizes = [weight.numel() for weight in fresh(geometry, "meta").parameters()]
    names = ("fp32", "autocast", "narrow", "wide", "both", "states8", "master_states8", "alone", "lora")
    return {
        "weights_count": sum(sizes),
        "tensors_count": len(sizes),
        "blocks_count": sum(-(-size // BLOCK) for size in sizes),
        **{f"{name}_kept_bytes": kept for name, kept in zip(names, columns["kept_bytes"], strict=True)},
    }


def apart_bytes(columns: dict[str, list]) -> int:
    """How far tensors without content count from real ones, over every recipe that runs on both."""
    pairs = zip(RECIPES.values(), columns["kept_bytes"], strict=True)
    return sum(abs(sum(stepped(BYTES, r, "meta").held().values()) - kept) for r, kept in pairs if not r.autocast)


SHAPES = {"smollm2": SMOLLM2_135M, "llama": LLAMA_3_8B}
SHOWN = {
    "fp32": "FP32",
    "wide": "BF16, FP32 master, FP32 gradients",
    "states8": "BF16, FP32 master, INT8 states",
    "lora": "LoRA over INT4",
}


def whole(geometry: Geometry, recipe: Recipe) -> tuple[int, int]:
    """(bytes kept after a step, trained parameters) of a shape. Layers are equal: what a second one adds, each adds."""
    one, two = (stepped(replace(geometry, layers=layers), recipe, "meta") for layers in (1, 2))
    kept, more_kept = (sum(trainer.held().values()) for trainer in (one, two))
    trained, more_trained = (sum(weight.numel() for weight in trainer.weights) for trainer in (one, two))
    further = geometry.layers - 1
    return kept + further * (more_kept - kept), trained + further * (more_trained - trained)


def shape_values() -> dict[str, int]:
    """Models too big to hold: the same step on tensors that have a shape and no content."""
    found = {}
    for model, geometry in SHAPES.items():
        found[f"{model}_weights_count"] = parameters(geometry).total
        for name, label in SHOWN.items():
            found[f"{model}_{name}_bytes"], found[f"{model}_trained_count"] = whole(geometry, RECIPES[label])
    return found


def shape_columns(values: dict[str, Any]) -> dict[str, list]:
    """The recorded bytes of both shapes as a table."""
    return {"recipe": list(SHOWN.values())} | {
        f"{model}_bytes": [values[f"{model}_{name}_bytes"] for name in SHOWN] for model in SHAPES
    }


SAVED = {
    "fp32": ("FP32", Recipe()),
    "cast": ("BF16 autocast", Recipe(autocast=True)),
    "bf16": ("BF16 weights", Recipe(BF16, True, (BF16,))),
    "lora": ("LoRA over INT4", Recipe(rank=16)),
    "recomputed": ("FP32, layers recomputed", Recipe(recompute=True)),
}


def saved_values(length: int, device: torch.device | str = "cpu") -> dict[str, int]:
    """SmolLM2: bytes a forward pass keeps for backward, fixed and a token, by recipe; and the trap beside LoRA."""
    found = {"saved_tokens": length}
    for name, (_, recipe) in SAVED.items():
        trainer = Trainer(smollm2.decoder(FP32, device), recipe)
        found[f"{name}_fixed_bytes"], found[f"{name}_token_bytes"] = saved_line(trainer, length, device)
        if name == "lora":
            for module in trainer.decoder.modules():
                if isinstance(module, LoraLinear):
                    module.again = False
            found["naive_fixed_bytes"] = saved_line(trainer, length, device)[0]
    shape = parameters(SMOLLM2_135M)
    # Frozen embeddings need no gradient: the first layer's projections of them save no weight.
    first = sum(rows * columns for name, (rows, columns) in SMOLLM2_135M.linear_shapes.items() if name[-6] in "qkv")
    counts = {"matrices_count": shape.linear + shape.embedding, "reached_count": shape.linear - first}
    return found | counts


def saved_columns(values: dict[str, Any]) -> dict[str, list]:
    """The recorded lines as a table."""
    parts = {part: [values[f"{name}_{part}"] for name in SAVED] for part in ("fixed_bytes", "token_bytes")}
    return {"recipe": [label for label, _ in SAVED.values()]} | parts


def by_token_columns(values: dict[str, Any]) -> dict[str, list]:
    """SmolLM2's bytes by tokens in a batch: activations, and what does not depend on them, for two recipes."""
    rows = []
    for name in ("fp32", "lora"):
        label, fixed, each = SAVED[name][0], values[f"{name}_fixed_bytes"], values[f"{name}_token_bytes"]
        for tokens in (64, 256, 1024, 4096):
            rows.append((f"{label}, kept", tokens, values[f"smollm2_{name}_bytes"]))
            rows.append((f"{label}, activations", tokens, fixed + each * tokens))
    return dict(zip(("line", "batch_tokens", "held_bytes"), map(list, zip(*rows, strict=True)), strict=True))


def aware_values() -> dict[str, int]:
    """Training with INT4 rounding in the forward pass: what it keeps beyond plain FP32, of the small model."""
    plain, aware = (Trainer(fresh(BYTES), Recipe()) for _ in range(2))
    for name in matrices(aware.decoder):
        parametrize.register_parametrization(aware.decoder.get_submodule(name), "weight", StraightThrough(INT4))
    tokens = torch.arange(18).view(2, 9)
    trainers = (plain, aware)
    for trainer in trainers:
        trainer.step(tokens)
    kept = [sum(trainer.held().values()) + saved_bytes(trainer, tokens) for trainer in trainers]
    return {"aware_added_bytes": kept[1] - kept[0], "aware_rounded_count": parameters(BYTES).linear}


@functools.cache
def text_bytes(held_out: bool) -> Tensor:
    """Bytes of real messages as token ids (tokens,): some years to train on, a later one to judge by."""
    years = (2026,) if held_out else (2022, 2023, 2024)
    return torch.tensor(list("".join(texts.address(year) for year in years).encode()))


def curve(recipe: Recipe, seed: int, scale: Scale, after: Callable[[Trainer], object] = lambda _: None) -> list[float]:
    """Held-out loss, nats a byte, at points of a training; first weights and text depend on the seed alone."""
    trainer, generator = Trainer(fresh(BYTES, seed=seed), recipe), torch.Generator().manual_seed(seed)
    read, judged = text_bytes(False), text_bytes(True)[: 8 * 257].view(8, -1)
    points = []
    for step in range(scale.steps):
        for optimizer in trainer.optimizers:  # warm up, hold, then fall to nothing
            optimizer.param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 10, 2 - 2 * step / scale.steps)
        starts = torch.randint(len(read) - 64, (8, 1), generator=generator)
        trainer.step(read[starts + torch.arange(65)])
        after(trainer)
        if (step + 1) % (scale.steps // scale.points) == 0:
            with torch.no_grad():
                points.append(float(trainer.losses(judged).mean()))
    return points


def to_grid(trainer: Trainer) -> None:
    """Put every matrix of the layers back on its INT4 grid: weights that are kept in few bits, with no copy in more."""
    for name in matrices(trainer.decoder):
        weight = trainer.decoder.get_submodule(name).weight
        weight.data.copy_(round_to_grid(weight.data, INT4))  # type: ignore[operator, union-attr, arg-type]


Curves = dict[str, list[list[float]]]  # losses by training, seed and point
TRAININGS: dict[str, Callable[[int, Scale], list[float]]] = {
    "FP32": lambda seed, scale: curve(Recipe(), seed, scale),
    "BF16 autocast": lambda seed, scale: curve(Recipe(autocast=True), seed, scale),
    "INT8 states": lambda seed, scale: curve(Recipe(codes=True), seed, scale),
    "INT4 weights, no copy": lambda seed, scale: curve(Recipe(), seed, scale, after=to_grid),
}


def curves(scale: Scale, names: Iterable[str] = TRAININGS) -> Curves:
    """Every training, or those named, with every seed."""
    return {name: [TRAININGS[name](seed, scale) for seed in range(scale.seeds)] for name in names}


def curve_columns(found: Curves, scale: Scale) -> dict[str, list]:
    """Held-out loss by training and step, means over the seeds."""
    rows = [
        (name, (point + 1) * (scale.steps // scale.points), fmean(losses))
        for name, seeds in found.items()
        for point, losses in enumerate(zip(*seeds, strict=True))
    ]
    return dict(zip(("training", "steps_count", "loss_nats"), map(list, zip(*rows, strict=True)), strict=True))


def gap_values(found: Curves) -> dict[str, float]:
    """Final loss against FP32's of the same seed: mean over the seeds and standard error, nats a byte."""
    plain, *others = ([points[-1] for points in seeds] for seeds in found.values())
    values = {"fp32_loss_nats": fmean(plain), "seeds_spread_nats": stdev(plain)}
    for name, losses in zip(("autocast", "states8", "int4"), others, strict=True):
        gaps = [loss - beside for loss, beside in zip(losses, plain, strict=True)]
        values |= {f"{name}_gap_nats": fmean(gaps), f"{name}_error_nats": stdev(gaps) / len(gaps) ** 0.5}
    return values


def unmoved_values(recipe: Recipe = RECIPES["BF16 alone"]) -> dict[str, float]:
    """Share of the weights that a first step at a fine-tuning rate leaves exactly where they were."""
    trainer = Trainer(fresh(BYTES), recipe, rate=1e-5)
    before = [weight.detach().clone() for weight in trainer.weights]
    trainer.step(text_bytes(False)[: 8 * 65].view(8, 65))
    pairs = list(zip(trainer.weights, before, strict=True))
    unmoved = sum(int((weight == old).sum()) for weight, old in pairs)
    return {"alone_unmoved_share": unmoved / sum(old.numel() for _, old in pairs)}


def step_times(recipe: Recipe, rounds: int, device: torch.device) -> clock.Interleaved:
    """Whole steps of one wide layer, FP32 against the recipe: the same tokens, the same fused AdamW."""
    tokens = torch.arange(4 * 129, device=device).view(4, 129) % 256
    trainers = {name: Trainer(fresh(WIDE, device), one) for name, one in (("FP32", Recipe()), ("other", recipe))}
    calls = {name: functools.partial(one.step, tokens) for name, one in trainers.items()}
    return clock.interleave(calls, device=device, rounds=rounds)


def update_times(recipe: Recipe, rounds: int, device: torch.device) -> clock.Interleaved:
    """The optimizer's part alone, of the small model: FP32 states against the recipe's."""
    trainers = {"FP32": Trainer(fresh(BYTES, device), Recipe())}
    trainers["other"] = Trainer(fresh(BYTES, device), recipe)
    for trainer in trainers.values():
        trainer.step(torch.arange(18, device=device).view(2, 9))
    return clock.interleave({n: t.update for n, t in trainers.items()}, device=device, rounds=rounds)


def product_times(rounds: int, device: torch.device) -> clock.Interleaved:
    """One product of activations and a weight, in three formats."""
    x, weight = torch.randn(128, 512, device=device), torch.randn(512, 512, device=device)
    formats = {"FP32": FP32, "BF16": BF16, "FP16": torch.float16}
    calls = {n: functools.partial(F.linear, x.to(dtype), weight.to(dtype)) for n, dtype in formats.items()}
    return clock.interleave(calls, device=device, rounds=rounds)


def shown_times(step: clock.Interleaved, update: clock.Interleaved, product: clock.Interleaved) -> dict[str, float]:
    """What this device took."""
    return {
        "fp32_step_seconds": step.seconds("FP32"),
        "autocast_step_seconds": step.seconds("other"),
        "fp32_update_seconds": update.seconds("FP32"),
        "states8_update_seconds": update.seconds("other"),
        "bf16_product_ratio": product.ratio("FP32", "BF16"),
        "fp16_product_ratio": product.ratio("FP16", "FP32"),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` trains and times less. `dtype` is what the page varies by itself."""
    scale, target = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    columns = kept_columns()
    step = step_times(Recipe(autocast=True), scale.rounds, target)
    update = update_times(Recipe(codes=True), scale.rounds, target)
    return {
        **kept_values(columns),
        "shape_apart_bytes": apart_bytes(columns),
        **shape_values(),
        **saved_values(scale.saved_length, target),
        **aware_values(),
        **gap_values(curves(scale)),
        **unmoved_values(),
        "step_ratio": step.ratio("FP32", "other"),
        "update_ratio": update.ratio("other", "FP32"),
        **shown_times(step, update, product_times(scale.rounds, target)),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """FP32 in place of the technique; where a claim says that nothing is lost, weights rounded to INT4 in its place."""
    scale, target = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    plain, rounded = curves(scale, ("FP32", "INT4 weights, no copy")).values()
    swapped = dict(zip(TRAININGS, (plain, rounded, rounded, plain), strict=True))
    step, update = step_times(Recipe(), scale.rounds, target), update_times(Recipe(), scale.rounds, target)
    return {
        **gap_values(swapped),
        **unmoved_values(Recipe()),
        "step_ratio": step.ratio("FP32", "other"),
        "update_ratio": update.ratio("other", "FP32"),
    }


if __name__ == "__main__":
    report("quantization/training_memory_and_speed", measure())
