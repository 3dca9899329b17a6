"""What does quantization buy in memory and speed, and what does it cost in loss?

Claim: the same model in every scheme, in one run: INT8 costs next to no loss for half the bytes, INT4 is where a
price begins, and below it the loss grows faster than the memory shrinks.

Run: python -m snippets.quantization.index
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snippets.instruments import clock
from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.models import smollm2
from snippets.models.decoder import Decoder, KVCache
from snippets.models.language_loss import paired_difference, unseen_windows, window_nats
from snippets.models.products import DynamicInt8Linear, Int4Linear, Int8Linear, replace_linears
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.models.rounding import Scheme, matrices, quantize_decoder, stored_bits

# isort: split
from measured.values import report

BASE = "BF16"


@dataclass(frozen=True)
class Point:
    """One scheme of the frontier: bytes of the model, loss of each window, seconds of a decode step.

    A scheme without a kernel here has no seconds.
    """

    scheme: str
    model_bytes: int
    nats: Tensor  # (windows,)
    step_seconds: float | None


# --8<-- [start:schemes]
@dataclass(frozen=True)
class Held:
    """How linear layers are held: the grid, bits of a scale, and the layer that multiplies, where torch has one."""

    grid: Scheme
    layer: Callable[[Tensor], nn.Module] | None = None
    scale_bits: int = 16


def schemes(dtype: torch.dtype) -> dict[str, Held]:
    """Every scheme but the baseline; head and embedding stay in `dtype` in all of them."""
    return {
        "INT8 rows": Held(Scheme(8), lambda weight: Int8Linear(quantize_rows_int8(weight), dtype)),
        "INT8 rows and activations": Held(
            Scheme(8), lambda weight: DynamicInt8Linear(quantize_rows_int8(weight), dtype), scale_bits=32
        ),
        "INT4-g64": Held(Scheme(4, group=64), lambda weight: Int4Linear(quantize_groups_int4(weight, group=64), dtype)),
        "INT3-g64": Held(Scheme(3, group=64)),
        "INT2-g64": Held(Scheme(2, group=64)),
    }


# --8<-- [end:schemes]


# --8<-- [start:frontier]
def frontier(decoder: Decoder, windows: Tensor, context: int, rounds: int) -> list[Point]:
    """Every scheme on the same text; decode steps of one sequence timed in turn, where there is a kernel."""
    models, held = {BASE: decoder}, schemes(decoder.embed_tokens.weight.dtype)
    for name, how in held.items():
        if how.layer:
            models[name] = copy.deepcopy(decoder)
            replace_linears(models[name], how.layer)
    taken = clock.interleave({name: step(model, context) for name, model in models.items()}, rounds=rounds)
    points = [Point(BASE, storage_bytes(decoder), window_nats(decoder, windows), taken.seconds(BASE))]
    for name, how in held.items():
        model = models[name] if how.layer else quantize_decoder(decoder, how.grid)
        seconds = taken.seconds(name) if how.layer else None
        points.append(Point(name, held_bytes(decoder, how), window_nats(model, windows), seconds))
    return points


# --8<-- [end:frontier]


def step(model: Decoder, context: int) -> Callable[[], object]:
    """One decode step of one sequence whose cache holds all but the newest of `context` tokens."""
    weight = model.embed_tokens.weight
    cache = KVCache(model.geometry, 1, context, weight.dtype, weight.device)
    token = torch.zeros(1, 1, dtype=torch.long, device=weight.device)

    @torch.inference_mode()
    def decode() -> None:
        cache.length = context - 1
        model(token, cache)

    return decode


def held_bytes(decoder: Decoder, how: Held) -> int:
    """Bytes of the model with its linear layers packed: codes and scales by formula, the rest as it is."""
    linear = matrices(decoder)
    bits = sum(w.numel() * stored_bits((w.shape[0], w.shape[1]), how.grid, how.scale_bits) for w in linear.values())
    return storage_bytes(decoder) - sum(w.nbytes for w in linear.values()) + round(bits / 8)


def loss_columns(points: Sequence[Point]) -> dict[str, list]:
    """Bytes and loss of every scheme; what it adds to BF16's loss, with its standard error over the windows."""
    added = [paired_difference(p.nats, points[0].nats) for p in points]
    return {
        "scheme": [p.scheme for p in points],
        "model_bytes": [p.model_bytes for p in points],
        "bytes_ratio": [p.model_bytes / points[0].model_bytes for p in points],
        "text_nats": [float(p.nats.mean()) for p in points],
        "added_nats": [mean for mean, _ in added],
        "error_nats": [error for _, error in added],
    }


def speed_columns(points: Sequence[Point]) -> dict[str, list]:
    """Speed of a decode step against BF16's, beside the loss, of every scheme that has a kernel."""
    timed = [(p, p.step_seconds) for p in points if p.step_seconds is not None]
    return {
        "scheme": [p.scheme for p, _ in timed],
        "step_seconds": [seconds for _, seconds in timed],
        "speed_ratio": [timed[0][1] / seconds for _, seconds in timed],
        "text_nats": [float(p.nats.mean()) for p, _ in timed],
    }


def loss_values(points: Sequence[Point]) -> dict[str, float]:
    """Loss added to BF16's, by scheme."""
    added = {p.scheme: paired_difference(p.nats, points[0].nats) for p in points}
    return {
        "int8_added_nats": added["INT8 rows"][0],
        "w8a8_added_nats": added["INT8 rows and activations"][0],
        "int4_added_nats": added["INT4-g64"][0],
        "int3_added_nats": added["INT3-g64"][0],
        "int2_added_nats": added["INT2-g64"][0],
    }


def ratio_values(points: Sequence[Point]) -> dict[str, float]:
    """Bytes of the model with INT8 rows against BF16."""
    held = {p.scheme: p.model_bytes for p in points}
    return {"int8_bytes_ratio": held["INT8 rows"] / held[BASE]}


def bytes_values(points: Sequence[Point]) -> dict[str, int]:
    """Bytes of the whole model, by scheme."""
    held = {p.scheme: p.model_bytes for p in points}
    return {
        "bf16_model_bytes": held[BASE],
        "int4_model_bytes": held["INT4-g64"],
        "int3_model_bytes": held["INT3-g64"],
    }


def model_and_text(count: int = 4, length: int = 512) -> tuple[Decoder, Tensor]:
    """SmolLM2 in BF16 on this device, and windows of text that is newer than it."""
    device = pick()
    return smollm2.decoder(torch.bfloat16, device), unseen_windows(count, length).to(device)


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` reads two short windows."""
    decoder, windows = model_and_text(*((2, 128) if small else (4, 512)))
    points = frontier(decoder, windows, context=256, rounds=3 if small else 21)
    return loss_values(points) | ratio_values(points) | bytes_values(points)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Nothing quantized: every scheme is BF16 under another name, so none adds a loss or saves a byte."""
    decoder, windows = model_and_text(2, 128)
    nats = window_nats(decoder, windows)
    points = [Point(name, storage_bytes(decoder), nats, 1.0) for name in (BASE, *schemes(torch.bfloat16))]
    return loss_values(points) | ratio_values(points) | bytes_values(points)


if __name__ == "__main__":
    report("quantization/index", measure())
