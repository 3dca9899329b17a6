"""When is quantization-aware training worth it?

Claim: training with the rounding in the forward pass wins back most of what rounding costs where that cost is large,
and next to nothing where rounding costs little. It is judged against the same decoder trained on the same text for
the same steps and rounded afterwards, plainly and by GPTQ; the extra training alone moves the loss as well.

Run: python -m snippets.quantization.quantization_aware_training
Cost: `measured list` shows the seconds of each recording; `measured prepare` trains the decoders before.
"""

from __future__ import annotations

# --8<-- [start:imports]
import copy
from collections.abc import Callable

import torch
from torch import Tensor

from snippets.instruments.clock import interleave
from snippets.models import trained
from snippets.models.calibrated import METHODS, calibrate
from snippets.models.decoder import Decoder
from snippets.models.language_loss import window_nats, windows
from snippets.models.rounding import Scheme, quantize_decoder, round_to_grid
from snippets.models.shapes import LLAMA_3_8B, parameters

# --8<-- [end:imports]

CALIBRATED_WINDOWS = 32


# --8<-- [start:straight_through]
def straight_through(weight: Tensor, scheme: Scheme) -> Tensor:
    """The rounded weight going forward; going back, the gradient of the weight itself."""
    return weight + (round_to_grid(weight, scheme) - weight).detach()


# --8<-- [end:straight_through]


# --8<-- [start:ways]
def ways(seed: int, held_out: Tensor, calibration: Tensor) -> dict[str, Tensor]:
    """Loss of each held-out window, FP64 (windows,), for one seed: a name is a way, or a grid and a way.

    Every decoder but "before" was trained further on the same text for the same steps.
    """
    plain = trained.continued(seed)
    decoders = {"before": trained.decoder("small", seed), "full": plain}
    decoders["INT8 nearest"] = quantize_decoder(plain, Scheme(8, group=64))
    for bits, scheme in trained.FURTHER_SCHEMES.items():
        aware = trained.continued(seed, scheme)
        decoders[f"INT{bits} nearest"] = quantize_decoder(plain, scheme)
        decoders[f"INT{bits} GPTQ"] = calibrate(plain, calibration, METHODS["GPTQ"], scheme)
        decoders[f"INT{bits} QAT"] = quantize_decoder(aware, scheme)
    decoders["INT2 QAT, not rounded"] = trained.continued(seed, trained.FURTHER_SCHEMES[2])
    return {name: window_nats(decoder, held_out) for name, decoder in decoders.items()}


# --8<-- [end:ways]


# --8<-- [start:summary]
def mean_and_error(by_seed: list[Tensor]) -> tuple[float, float]:
    """Mean over seeds of each seed's mean, and its standard error; with one seed, over that seed's windows."""
    means = torch.stack([nats.mean() for nats in by_seed]) if len(by_seed) > 1 else by_seed[0]
    return float(means.mean()), float(means.std() / len(means) ** 0.5)


def above(by_seed: list[dict[str, Tensor]], way: str, baseline: str) -> tuple[float, float]:
    """How far one way's loss lies above another's, seed by seed, and the standard error of that."""
    return mean_and_error([found[way] - found[baseline] for found in by_seed])


# --8<-- [end:summary]


def compared(*, small: bool = False) -> list[dict[str, Tensor]]:
    """`ways` of every seed; `small` takes one seed and fewer windows."""
    held_out = trained.held_out_windows(8 if small else 20)
    calibration = windows(trained.corpus()[0], 256, 4 if small else CALIBRATED_WINDOWS)
    return [ways(seed, held_out, calibration) for seed in ((0,) if small else trained.SEEDS)]


def loss_values(found: list[dict[str, Tensor]]) -> dict[str, float]:
    """The losses that the page states, in nats a token above the decoder trained as long without rounding."""
    values = {"before_nats": mean_and_error([one["before"] for one in found])[0]}
    values["further_gain_nats"], values["further_gain_error_nats"] = above(found, "before", "full")
    for name in found[0]:
        if name.endswith(("nearest", "GPTQ", "QAT")):
            values[f"{name.replace(' ', '_').lower()}_nats"] = above(found, name, "full")[0]
    values["int4_unfair_nats"] = above(found, "INT4 QAT", "before")[0]
    pairs = {"gain": "INT2 nearest", "over_gptq": "INT2 GPTQ", "fitted": "INT2 QAT, not rounded"}
    for gain, way in pairs.items():
        mean, error = above(found, way, "INT2 QAT")
        values[f"int2_{gain}_nats"], values[f"int2_{gain}_error_nats"] = mean, error
        values[f"int2_{gain}_errors_ratio"] = mean / max(error, 1e-9)  # The control gains nothing, without any error.
    values["int2_left_nats"] = values["int2_qat_nats"] - values["int4_gptq_nats"]
    values["int2_qat_ratio"] = values["int2_qat_nats"] / values["int2_nearest_nats"]
    return values


def table_columns(found: list[dict[str, Tensor]]) -> dict[str, list]:
    """One row a width and way, for the page's table and chart."""
    rows: dict[str, list] = {"grid": [], "way": [], "above_nats": [], "error_nats": []}
    for name in found[0]:
        grid, _, way = name.partition(" ")
        if way in ("nearest", "GPTQ", "QAT"):
            for column, entry in zip(rows, (grid, way, *above(found, name, "full")), strict=True):
                rows[column].append(entry)
    return rows


# --8<-- [start:cost]
def cost_values() -> dict[str, int]:
    """What each way reads, and what training a published shape with AdamW in FP32 would hold."""
    weights = parameters(LLAMA_3_8B).total
    return {
        "first_steps_count": trained.STEPS,
        "further_steps_count": trained.FURTHER_STEPS,
        "step_tokens": trained.BATCH * trained.LENGTH,
        "qat_tokens": trained.FURTHER_STEPS * trained.BATCH * trained.LENGTH,
        "gptq_tokens": CALIBRATED_WINDOWS * 256,
        "llama_weights_count": weights,
        "llama_adamw_bytes": weights * (4 + 4 + 8),  # FP32 weight, gradient, two moments
    }


def step_values(*, small: bool = False) -> dict[str, float]:
    """Seconds of a training step with the rounding in it against one without."""
    base, ids = trained.decoder("small"), trained.corpus()[0]

    def steps(scheme: Scheme | None) -> Callable[[], object]:
        decoder: Decoder = copy.deepcopy(base)
        return lambda: trained.train(decoder, ids, 1, seed=0, scheme=scheme, rate=1e-6)

    runs = {"plain": steps(None), "aware": steps(trained.FURTHER_SCHEMES[4])}
    timed = interleave(runs, rounds=5 if small else 7, blocks=1 if small else 3)
    return {"aware_step_ratio": timed.ratio("aware", "plain"), "aware_step_seconds": timed.seconds("aware")}


# --8<-- [end:cost]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page. Losses are of the small decoder trained here; FP32 throughout."""
    return {**loss_values(compared(small=small)), **cost_values(), **step_values(small=small)}


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Each technique replaced: quantization-aware training by none, rounding and GPTQ by the coarsest rounding, and
    further training by no training."""
    found = compared(small=small)
    for one in found:
        coarse = one["INT2 nearest"]
        one["full"] = one["before"]
        for grid in ("INT4", "INT3", "INT2"):
            one[f"{grid} QAT"] = one[f"{grid} nearest"]
        for name in ("INT8 nearest", "INT4 nearest", "INT3 nearest", "INT4 GPTQ", "INT3 GPTQ", "INT2 GPTQ"):
            one[name] = coarse
        one["INT2 QAT, not rounded"] = coarse
    return loss_values(found)


if __name__ == "__main__":
    from measured.values import report

    report("quantization/quantization_aware_training", measure())
