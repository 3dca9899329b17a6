"""Why are activations harder to quantize than weights?

Claim: a few channels of the activations are far larger than the rest, in the same places for every token. A scale
that several channels share is set by them, and the others are rounded away; the signal-to-noise ratio of the whole
does not show it. Scales for each token, smoothing into the weights and columns kept apart are remedies.

Run: python -m snippets.quantization.outliers
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import functools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from snippets.models import smollm2, trained
from snippets.models.calibrated import (
    INT8_ROWS,
    OUTLIER,
    SHARED_INPUTS,
    Int8Linear,
    captured,
    int8_copy,
    smoothing,
)  # fmt: skip
from snippets.models.decoder import Decoder
from snippets.models.language_loss import calibration_windows, paired_difference, unseen_windows, window_nats
from snippets.models.rounding import Scheme, quantize_decoder, round_to_grid

# --8<-- [end:imports]


# --8<-- [start:synthetic]
def decibels(whole: Tensor, rounded: Tensor) -> float:
    """Signal-to-noise ratio: energy of the values over energy of their rounding errors."""
    ratio = whole.double().square().sum() / (rounded - whole).double().square().sum()
    return 10 * math.log10(float(ratio))


def few_large(tokens: int = 512, channels: int = 4096, large: int = 4, factor: float = 100.0) -> tuple[Tensor, Tensor]:
    """Normal draws (tokens, channels) of which a few channels are multiplied, and which channels are not."""
    rows = torch.randn(tokens, channels, generator=torch.Generator().manual_seed(0))
    chosen = (torch.arange(large) * channels // max(large, 1) + 7) % channels
    rows[:, chosen] *= factor
    return rows, torch.ones(channels, dtype=torch.bool).index_fill(0, chosen, False)


def synthetic_values(large: int = 4) -> dict[str, float]:
    """INT8 with a scale for the tensor and for each token: what all channels show, and what the ordinary ones do."""
    found = {}
    for name, count in (("plain", 0), ("few", large)):
        rows, ordinary = few_large(large=count)
        found[f"{name}_reach_ratio"] = float(rows.abs().max())
        for per, scheme in (("tensor", Scheme(8, per="tensor")), ("token", Scheme(8))):
            rounded = round_to_grid(rows, scheme)
            found[f"{name}_{per}_whole_db"] = decibels(rows, rounded)
            found[f"{name}_{per}_ordinary_db"] = decibels(rows[:, ordinary], rounded[:, ordinary])
            found[f"{name}_{per}_zero_share"] = float((rounded[:, ordinary] == 0).double().mean())
    return found


# --8<-- [end:synthetic]


def synthetic_counts() -> dict[str, int]:
    """The shape of the draws."""
    rows, ordinary = few_large()
    return {
        "channels_count": rows.shape[1],
        "large_count": int((~ordinary).sum()),
        "factor_count": 100,
        "threshold_count": int(OUTLIER),
    }


@functools.cache
def model() -> Decoder:
    """SmolLM2, once a process."""
    return smollm2.decoder()


# --8<-- [start:peaks]
def peak_ratio(table: Tensor) -> float:
    """Largest value of the largest column over that of the median column, of (rows, columns)."""
    largest = table.abs().amax(0)
    return float(largest.amax() / largest.median())


def layer_inputs(decoder: Decoder, windows: Tensor, blocks: Sequence[int]) -> dict[str, Tensor]:
    """Inputs (tokens, columns) of every group of layers in some blocks, under its first layer's name."""
    with captured(decoder, [f"layers.{block}.{names[0]}" for block in blocks for names in SHARED_INPUTS]) as seen:
        decoder(windows)
    return seen


# --8<-- [end:peaks]


def peak_columns(seen: dict[str, Tensor], decoder: Decoder, every: int = 3) -> dict[str, list]:
    """Peaks through the model, for a chart: of one block in so many, the last, and where inputs peak most."""
    columns: dict[str, list] = {"what": [], "block_count": [], "peak_ratio": []}
    last = len(decoder.layers) - 1
    highest = sorted(range(last), key=lambda block: peak_ratio(seen[f"layers.{block}.mlp.down_proj"]))[-2:]
    for what, layer, of_weight in (
        ("inputs of down_proj", "mlp.down_proj", False),
        ("inputs of q_proj", "self_attn.q_proj", False),
        ("weights of down_proj", "mlp.down_proj", True),
    ):
        for block in sorted({*range(0, last, every), last, *highest}):
            name = f"layers.{block}.{layer}"
            table = decoder.get_parameter(f"{name}.weight") if of_weight else seen[name]
            for column, value in zip(columns, (what, block, peak_ratio(table)), strict=True):
                columns[column].append(value)
    return columns


def peak_values(seen: dict[str, Tensor], decoder: Decoder, windows: Tensor) -> dict[str, float]:
    """The largest peaks, of inputs and of weights; and of the same inputs without the first token of each window."""
    inputs = {name: peak_ratio(rows) for name, rows in seen.items()}
    top = max(inputs, key=lambda name: inputs[name])
    later = torch.arange(windows.numel()) % windows.shape[1] != 0
    weights = [peak_ratio(decoder.get_parameter(f"{name}.weight")) for name in seen]
    return {
        "inputs_peak_ratio": inputs[top],
        "inputs_middle_ratio": float(torch.tensor(list(inputs.values())).median()),
        "weights_peak_ratio": max(weights),
        "weights_middle_ratio": float(torch.tensor(weights).median()),
        "later_tokens_peak_ratio": peak_ratio(seen[top][later]),
    }


# --8<-- [start:remedies]
FOLDED = ("self_attn.q_proj", "mlp.gate_proj")  # behind a norm, which takes a divisor: what the paper smooths
ALSO_DOWN = (*FOLDED, "mlp.down_proj")  # rows of up_proj take this one


def divisors(decoder: Decoder, known: dict[str, Tensor], chosen: Sequence[str], strength: float) -> dict[str, Tensor]:
    """SmoothQuant's divisor of the inputs of each linear layer, common to layers with common inputs."""
    found: dict[str, Tensor] = {}
    for first, rows in known.items():
        _, block, layer = first.split(".", 2)
        if layer in chosen:
            names = [f"layers.{block}.{name}" for group in SHARED_INPUTS if layer == group[0] for name in group]
            weight = torch.cat([decoder.get_parameter(f"{name}.weight") for name in names])
            found |= dict.fromkeys(names, smoothing(weight, rows.abs().amax(0).clamp(min=1e-3), strength))
    return found


# What inputs share a scale in (a call or a row, which is a token), what is smoothed, which columns are kept apart.
FORMS: dict[str, tuple[str, tuple[str, ...], float | None]] = {
    "tensor": ("tensor", (), None),
    "tensor_smooth": ("tensor", FOLDED, None),
    "tensor_smooth_down": ("tensor", ALSO_DOWN, None),
    "tensor_apart": ("tensor", (), OUTLIER),
    "token": ("row", (), None),
    "token_smooth_down": ("row", ALSO_DOWN, None),
    "token_apart": ("row", (), OUTLIER),
}


def int8_model(decoder: Decoder, known: dict[str, Tensor], form: str) -> nn.Module:
    """The decoder with weights and inputs in INT8."""
    per, smoothed, threshold = FORMS[form]
    by_name = divisors(decoder, known, smoothed, 0.5)
    return int8_copy(decoder, lambda name, linear: Int8Linear(linear, per, by_name.get(name), threshold))


# --8<-- [end:remedies]


def losses(windows: int, length: int, known: dict[str, Tensor]) -> dict[str, Tensor]:
    """SmolLM2's loss in each window of a later year; `known` are the inputs, of an earlier year, to smooth by."""
    decoder, judged = model(), unseen_windows(windows, length)
    found = {"FP32": window_nats(decoder, judged)}
    found["weights"] = window_nats(quantize_decoder(decoder, INT8_ROWS), judged)
    for form in FORMS:
        found[form] = window_nats(int8_model(decoder, known, form), judged)
    return found


def loss_values(found: dict[str, Tensor]) -> dict[str, float]:
    """What each form of INT8 adds, and the paired standard error over windows."""
    values: dict[str, float] = {}
    for name in found:
        if name != "FP32":
            mean, error = paired_difference(found[name], found["FP32"])
            values |= {f"{name}_nats": mean, f"{name}_error_nats": error}
    return values | {
        "smooth_left_ratio": values["tensor_smooth_down_nats"] / values["tensor_nats"],
        "apart_left_ratio": values["tensor_apart_nats"] / values["tensor_nats"],
        "norms_alone_ratio": values["tensor_smooth_nats"] / values["tensor_smooth_down_nats"],
    }


# --8<-- [start:strength]
STRENGTHS = (0.25, 0.5, 0.75, 1.0)


def down_error(name: str, known: Tensor, rows: Tensor, strength: float | None) -> float:
    """Squared error of a layer's outputs over the squared outputs: INT8, one scale for all inputs, smoothed or not."""
    linear = model().get_submodule(name)
    assert isinstance(linear, nn.Linear)
    divisor = None if strength is None else divisors(model(), {name: known}, ALSO_DOWN, strength)[name]
    whole = linear(rows)
    error = Int8Linear(linear, "tensor", divisor)(rows) - whole
    return float(error.square().sum() / whole.square().sum())


# --8<-- [end:strength]


def strength_columns(known: dict[str, Tensor], judged: dict[str, Tensor]) -> dict[str, list]:
    """Mean output error of down_proj, one block in three, by how much is moved into its weight."""
    names = [name for name in judged if name.endswith("down_proj")][::3]
    errors = [[down_error(n, known[n], judged[n], s) for n in names] for s in (None, *STRENGTHS)]
    means = [sum(each) / len(each) for each in errors]
    shown = {"error_share": means[1:], "plain_share": [means[0]] * len(STRENGTHS)}
    return {"strength_ratio": list(STRENGTHS), **shown}


def strength_values(columns: dict[str, list]) -> dict[str, float]:
    """Without smoothing, at the paper's strength, and with everything moved."""
    by_strength = dict(zip(columns["strength_ratio"], columns["error_share"], strict=True))
    return {
        "down_plain_share": columns["plain_share"][0],
        "down_half_share": by_strength[0.5],
        "down_all_share": by_strength[1.0],
    }


# --8<-- [start:mild]
def mild_values(windows: int = 8, seeds: Sequence[int] = trained.SEEDS) -> dict[str, float]:
    """Decoders without large channels, trained here: what one scale a call costs them."""
    judged, peaks, added = trained.held_out_windows(windows, 256), [], []
    for seed in seeds:
        decoder = trained.decoder("small", seed)
        seen = layer_inputs(decoder, judged[:1], range(len(decoder.layers)))
        peaks.append(max(peak_ratio(rows) for rows in seen.values()))
        changed = int8_copy(decoder, lambda _, linear: Int8Linear(linear, "tensor"))
        added.append(paired_difference(window_nats(changed, judged), window_nats(decoder, judged))[0])
    return {"mild_peak_ratio": max(peaks), "mild_tensor_nats": sum(added) / len(added)}


# --8<-- [end:mild]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` reads fewer and shorter windows."""
    return dict(_measured(small))


@functools.cache
def _measured(small: bool) -> Mapping[str, float]:
    windows, length = (2, 64) if small else (8, 128)
    blocks = range(len(model().layers))
    judged = unseen_windows(4 if not small else 2, length)
    known, seen = (layer_inputs(model(), w, blocks) for w in (calibration_windows(windows, length), judged))
    return {
        **synthetic_counts(),
        **synthetic_values(),
        **peak_values(seen, model(), judged),
        **loss_values(losses(windows, length, known)),
        **strength_values(strength_columns(known, seen)),
        **mild_values(2 if small else 8, trained.SEEDS[:1] if small else trained.SEEDS),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """No channel stands out, inputs are rounded no worse than weights, and no remedy does anything."""
    found = measure(small=small)
    same = {n: found[n.replace("few_", "plain_")] for n in found if n.startswith("few_")}
    same |= {n: found["weights_peak_ratio"] for n in ("inputs_peak_ratio", "later_tokens_peak_ratio")}
    same |= {"inputs_middle_ratio": found["weights_middle_ratio"], "mild_tensor_nats": found["tensor_nats"]}
    same |= {f"{form}_nats": found["weights_nats"] for form in FORMS}
    same |= dict.fromkeys(("smooth_left_ratio", "apart_left_ratio", "norms_alone_ratio"), 1.0)
    return found | same | {n: found["down_plain_share"] for n in ("down_half_share", "down_all_share")}


if __name__ == "__main__":
    from measured.values import report

    report("quantization/outliers", measure())
