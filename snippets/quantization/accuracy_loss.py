"""Why does quantization hardly hurt accuracy, and when does it?

Claim: a bit fewer costs about as many decibels at any width until the grid has few steps, so INT8 leaves a model's
loss where it was. Loss follows the power of the noise; how steeply depends on the model: INT2 by plain rounding breaks
one trained on much text and not those trained on little. A baseline that was quantized already makes its own scheme
look free.

Run: python -m snippets.quantization.accuracy_loss
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from snippets.models import language_loss, similarity, smollm2, trained
from snippets.models.decoder import Decoder
from snippets.models.encoder import Encoder, encoder
from snippets.models.rounding import Scheme, matrices, round_to_grid

# --8<-- [end:imports]


# --8<-- [start:noise]
GROUP = 64  # divides the rows of every model here


def at_width(weight: Tensor, bits: int, group: int | None = GROUP) -> Tensor:
    """A weight (rows, columns) as it stands in `bits`, in FP32: BF16, or a symmetric grid for each group."""
    return weight.bfloat16().float() if bits == 16 else round_to_grid(weight, Scheme(bits, group))


def snr_db(weight: Tensor, stored: Tensor) -> float:
    """Power of the weights over power of their errors, in dB."""
    error = (stored.double() - weight.double()).square().sum()
    return 10 * math.log10(float(weight.double().square().sum() / error))


# --8<-- [end:noise]


def gaussian_rows(rows: int = 128, columns: int = 4096) -> Tensor:
    """Seeded normal draws, (rows, columns)."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def noise_columns(weight: Tensor, widths: Sequence[int] = (8, 7, 6, 5, 4, 3, 2)) -> dict[str, list]:
    """SNR of a weight at each width, one scale a row, and what the grid's steps alone say of the next bit."""
    found = [snr_db(weight, at_width(weight, bits, group=None)) for bits in widths]
    steps = [Scheme(bits).largest for bits in widths]
    return {
        "width_bits": list(widths),
        "steps_count": steps,
        "snr_db": found,
        "drop_db": [0.0] + [a - b for a, b in pairwise(found)],
        "predicted_drop_db": [0.0] + [20 * math.log10(more / fewer) for more, fewer in pairwise(steps)],
    }


def noise_values(weight: Tensor, widths: Sequence[int] = (8, 7, 6, 5, 4, 3, 2)) -> dict[str, float]:
    """What each bit fewer takes from the SNR of Gaussian rows."""
    columns = noise_columns(weight, widths)
    drops = {f"drop_to_int{7 - i}_db": drop for i, drop in enumerate(columns["drop_db"][1:])}
    # The largest weight of a row over the root mean square, as it enters the mean noise power.
    reach = float((weight.abs().amax(1).square().mean() / weight.square().mean()).sqrt())
    return {"gaussian_reach_ratio": reach, "gaussian_int8_db": columns["snr_db"][0], **drops}


# --8<-- [start:models]
WIDTHS = (16, 8, 6, 4, 3, 2)
FP32 = 32


def by_width(
    model: nn.Module, evaluate: Callable[[nn.Module], Tensor], widths: Sequence[int] = WIDTHS
) -> dict[int, Tensor]:
    """What `evaluate` finds by width, the model's own under FP32.

    Matrices of the layers are rounded where they stand and put back; embedding, head and norms stay as they are.
    """
    weights = matrices(model, keep=("lm_head", "embed_tokens", "embeddings"))
    own = {name: weight.clone() for name, weight in weights.items()}
    found = {FP32: evaluate(model)}
    for bits in dict.fromkeys(widths):
        for name, weight in weights.items():
            weight.copy_(at_width(own[name], bits))
        found[bits] = evaluate(model)
    for name, weight in weights.items():
        weight.copy_(own[name])
    return found


def losses(model: nn.Module, windows: Tensor, widths: Sequence[int] = WIDTHS) -> dict[int, Tensor]:
    """Loss of each window (windows,) in nats a token, by width."""
    return by_width(model, lambda changed: language_loss.window_nats(changed, windows), widths)


def cosines(model: Encoder, rows: similarity.Pairs, widths: Sequence[int] = WIDTHS) -> dict[int, Tensor]:
    """An encoder's similarity of each pair (pairs,), by width."""
    return by_width(model, lambda _: similarity.similarities(model, rows), widths)


# --8<-- [end:models]


def loss_values(model: str, found: dict[int, Tensor], widths: Sequence[int] = WIDTHS) -> dict[str, float]:
    """Loss in FP32, and what each width adds to it, with the paired standard error over windows."""
    values = {f"{model}_fp32_nats": float(found[FP32].mean())}
    for name, bits in zip(WIDTHS, widths, strict=True):
        mean, error = language_loss.paired_difference(found[bits], found[FP32])
        values |= {f"{model}_int{name}_excess_nats": mean, f"{model}_int{name}_error_nats": error}
    return values


def only(values: dict[str, float], *ends: str) -> dict[str, float]:
    """The values whose names end so: what the prose quotes; tables show the others."""
    return {name: value for name, value in values.items() if name.endswith(ends)}


def trained_losses(
    name: str, seeds: Sequence[int] = trained.SEEDS, windows: int = 4, widths: Sequence[int] = WIDTHS
) -> dict[int, Tensor]:
    """Mean loss of decoders trained here, one for each seed, by width: (seeds,)."""
    held_out = trained.held_out_windows(windows, 256)
    each = [losses(trained.decoder(name, seed), held_out, widths) for seed in seeds]
    return {bits: torch.stack([one[bits].mean() for one in each]) for bits in each[0]}


def encoder_values(found: dict[int, Tensor], score: Tensor, widths: Sequence[int] = WIDTHS) -> dict[str, float]:
    """Spearman's correlation in FP32, what each width loses of it with jackknife errors, how far cosines move (RMS)."""
    values = {
        "minilm_pairs_count": len(score),
        "minilm_fp32_difference": float(similarity.spearman(found[FP32], score)),
    }
    for name, bits in zip(WIDTHS, widths, strict=True):
        lost, error = similarity.paired_spearman(found[FP32], found[bits], score)
        values |= {f"minilm_int{name}_lost_difference": lost, f"minilm_int{name}_error_difference": error}
        values[f"minilm_int{name}_moved_difference"] = float((found[bits] - found[FP32]).square().mean().sqrt())
    return values


# --8<-- [start:trap]
def scale_and_minimum(weight: Tensor, group: int = 32, shift: int = 0) -> Tensor:
    """INT4 with an FP16 scale and an FP16 minimum for each group, llama.cpp's Q4_1; groups start `shift` later."""
    parts = weight.roll(-shift, dims=1).unflatten(1, (-1, group))
    low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
    low, step = low.half().float(), ((high - low) / 15).half().float()
    codes = ((parts - low) / step.clamp(min=1e-12)).round().clamp(0, 15)
    return (codes * step + low).reshape(weight.shape).roll(shift, dims=1)


def changed_count(weights: Sequence[Tensor], shift: int = 0) -> int:
    """How many weights the scheme does not give back exactly."""
    return sum(int((scale_and_minimum(weight, shift=shift) != weight).sum()) for weight in weights)


# --8<-- [end:trap]


def width_columns(values: dict[str, float], models: Sequence[str] = ("smollm2", "small", "tiny")) -> dict[str, list]:
    """Rows for each model and width: nats above its own FP32, and the standard error of that."""
    rows = [(model, bits) for model in models for bits in WIDTHS]
    return {
        "model": [{"smollm2": "SmolLM2-135M"}.get(model, f"{model}, trained here") for model, _ in rows],
        "width_bits": [bits for _, bits in rows],
        "excess_nats": [values[f"{model}_int{bits}_excess_nats"] for model, bits in rows],
        "error_nats": [values[f"{model}_int{bits}_error_nats"] for model, bits in rows],
    }


def beside_columns(values: dict[str, float]) -> dict[str, list]:
    """A row for each width: what it costs every model."""
    columns: dict[str, list] = {"format": ["BF16" if bits == 16 else f"INT{bits}" for bits in WIDTHS]}
    for model in ("smollm2", "small", "tiny"):
        for part in ("excess", "error"):
            columns[f"{model}_{part}_nats"] = [values[f"{model}_int{bits}_{part}_nats"] for bits in WIDTHS]
    for part in ("lost", "error", "moved"):
        columns[f"minilm_{part}_difference"] = [values[f"minilm_int{bits}_{part}_difference"] for bits in WIDTHS]
    return columns


def trap_values(decoder: Decoder, windows: Tensor, base: Tensor, layers: int | None = None) -> dict[str, float]:
    """The scheme that SmolLM2's weights were made with: on their own groups, on true FP32 weights, on shifted groups.

    Leaves the decoder on the shifted groups. `base` is its own loss of the windows.
    """
    chosen = matrices(decoder)
    mine = [weight for name, weight in chosen.items() if layers is None or int(name.split(".")[1]) < layers]
    theirs = list(matrices(encoder(), keep=("embeddings",)).values())
    values: dict[str, float] = {
        "grid_weights_count": sum(weight.numel() for weight in mine),
        "same_grid_changed_count": changed_count(mine),
        "published_weights_count": sum(weight.numel() for weight in theirs),
        "published_changed_count": changed_count(theirs),
    }
    for weight in chosen.values():
        weight.copy_(scale_and_minimum(weight, shift=16))
    shifted, error = language_loss.paired_difference(language_loss.window_nats(decoder, windows), base)
    return values | {"shifted_grid_excess_nats": shifted, "shifted_grid_error_nats": error}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` reads fewer windows, pairs and seeds. `device` is the CPU."""
    return _measure(small, WIDTHS)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """No bit fewer: INT8 stands in for every width, and for Gaussian rows too; the trap's groups are not shifted."""
    values = _measure(small, (8,) * len(WIDTHS), noise=(8,) * 7)
    same = {"shifted_grid_excess_nats": 0.0, "published_changed_count": values["same_grid_changed_count"]}
    return values | same


def _measure(small: bool, widths: Sequence[int], noise: Sequence[int] = (8, 7, 6, 5, 4, 3, 2)) -> dict[str, float]:
    windows = language_loss.unseen_windows(*((2, 48) if small else (4, 256)))
    rows = similarity.thinned(similarity.pairs("test"), 48 if small else 4)
    decoder = smollm2.decoder()
    found = losses(decoder, windows, widths)
    seeds, held_out = (trained.SEEDS[:2], 1) if small else (trained.SEEDS, 4)
    values = noise_values(gaussian_rows(16 if small else 128), noise)
    values |= {"trained_tokens": trained.STEPS * trained.BATCH * trained.LENGTH}
    values |= {"smollm2_guess_nats": math.log(smollm2.GEOMETRY.vocabulary)}
    values |= loss_values("smollm2", found, widths)
    for name in trained.GEOMETRIES:
        values |= loss_values(name, trained_losses(name, seeds, held_out, widths), widths)
    values |= encoder_values(cosines(encoder(), rows, widths), rows.score, widths)
    return values | trap_values(decoder, windows, found[FP32], layers=2 if small else None)


if __name__ == "__main__":
    from measured.values import report

    report("quantization/accuracy_loss", measure())
