"""GPTQ, AWQ, SmoothQuant, LLM.int8(): what does calibration buy?

Claim: at equal bits, a method that has seen the inputs of a layer rounds its weights with less error in its outputs,
and with less loss of the model, than rounding to nearest. A few samples of ordinary text do most of it; the wrong
text does not, and where rounding costs nothing there is nothing to be won.

Run: python -m snippets.quantization.calibration
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from snippets.models import encoder, similarity, smollm2, trained
from snippets.models.calibrated import (
    METHODS,
    OUTLIER,
    Inputs,
    Int8Linear,
    calibrate,
    captured,
    output_error,
    smoothing,
)
from snippets.models.language_loss import calibration_windows, paired_difference, unseen_windows, window_nats
from snippets.models.rounding import Scheme

# --8<-- [end:imports]

SAMPLES = (1, 8, 64, 512)  # rounding to nearest is what no sample gives
WINDOW = 32  # tokens of one sample of the decoder trained here
EVERY = 3  # SmolLM2: one block in so many is quantized
# Layers of MiniLM that read the same inputs.
SHARED = (
    ("attention.self.query", "attention.self.key", "attention.self.value"),
    ("attention.output.dense",),
    ("intermediate.dense",),
    ("output.dense",),
)


# --8<-- [start:minilm]
@dataclass(frozen=True)
class Study:
    """MiniLM's linear layers, those with common inputs together, and the inputs of some sentences.

    Sentences to calibrate on and sentences to judge by are of different splits. For each there is a dictionary of
    a group's first layer → inputs (tokens, columns).
    """

    model: encoder.Encoder
    groups: list[list[str]]
    known: list[dict[str, Tensor]]
    judged: list[dict[str, Tensor]]

    def weight(self, names: list[str]) -> Tensor:
        """The matrices of a group as one: (rows of all, columns)."""
        return torch.cat([self.model.get_parameter(f"{name}.weight") for name in names])


def joined(sentences: Sequence[dict[str, Tensor]]) -> dict[str, Inputs]:
    """What calibration keeps of these sentences."""
    return {name: Inputs.of(torch.cat([seen[name] for seen in sentences])) for name in sentences[0]}


def mean_error(study: Study, method: str, known: dict[str, Inputs], judged: dict[str, Inputs]) -> float:
    """Squared error of a group's outputs over the squared outputs, mean: INT4 knowing some inputs, judged on others."""
    errors = []
    for names in study.groups:
        weight = study.weight(names)
        rounded = METHODS[method](weight, known.get(names[0]), Scheme(4, group=128))
        errors.append(output_error(weight, rounded, judged[names[0]].second_moment))
    return sum(errors) / len(errors)


# --8<-- [end:minilm]


@functools.cache
def study(samples: int = max(SAMPLES), judges: int = 100, blocks: int = 3) -> Study:
    """Run the sentences one by one, so that none is padded, through the layers that are studied."""
    model = encoder.encoder()
    del model.get_submodule("encoder.layer")[blocks:]  # type: ignore[operator]
    groups = [[f"encoder.layer.{block}.{name}" for name in names] for block in range(blocks) for names in SHARED]

    def run(split: str, count: int) -> list[dict[str, Tensor]]:
        found = []
        for sentence in similarity.pairs(split).first[:count]:
            with captured(model, [names[0] for names in groups]) as seen:
                encoder.sentence_vectors(model, [sentence])
            found.append(seen)
        return found

    return Study(model, groups, run("train", samples), run("test", judges))


# --8<-- [start:sentences]
def sentence_errors(data: Study, samples: Sequence[int] = SAMPLES) -> dict[tuple[str, int], float]:
    """Output error by method and number of calibration sentences; rounding to nearest has none."""
    judged = joined(data.judged)
    found = {("nearest", 0): mean_error(data, "nearest", {}, judged)}
    for count in samples:
        known = joined(data.known[:count])
        found |= {(method, count): mean_error(data, method, known, judged) for method in ("AWQ", "GPTQ")}
    return found


# --8<-- [end:sentences]


def sentence_values(data: Study, found: dict[tuple[str, int], float]) -> dict[str, float]:
    """The ends of those curves, and what a single sample promises on itself."""
    most, few = max(n for _, n in found), min(n for _, n in found if n)
    own = joined(data.known[:few])
    return {
        "minilm_nearest_error_share": found["nearest", 0],
        "minilm_awq_error_share": found["AWQ", most],
        "minilm_gptq_error_share": found["GPTQ", most],
        "minilm_few_error_share": found["GPTQ", few],
        "minilm_few_own_error_share": mean_error(data, "GPTQ", own, own),
    }


def sentence_counts(data: Study, few: int = min(SAMPLES)) -> dict[str, int]:
    """How many tokens the samples are, and how many columns the narrow layers have."""
    lengths = [len(seen[data.groups[0][0]]) for seen in data.known]
    return {
        "sentences_count": len(lengths),
        "sentences_tokens": sum(lengths),
        "few_tokens": sum(lengths[:few]),
        "narrow_columns_count": data.known[0][data.groups[0][0]].shape[1],
    }


def int8_error(data: Study, remedy: str, known: dict[str, Inputs]) -> float:
    """Output error with weights and inputs in INT8, one scale for all inputs of a layer: mean over groups."""
    errors = []
    for names in data.groups:
        weight, rows = data.weight(names), torch.cat([seen[names[0]] for seen in data.judged])
        layer = nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        divisor = smoothing(weight, known[names[0]].max_abs.clamp(min=1e-3)) if remedy == "SmoothQuant" else None
        changed = Int8Linear(layer, "tensor", divisor, OUTLIER if remedy == "LLM.int8()" else None)
        whole = rows @ weight.T
        errors.append(float((changed(rows) - whole).square().sum() / whole.square().sum()))
    return sum(errors) / len(errors)


def int8_values(data: Study) -> dict[str, float]:
    """The methods of the other kind among themselves."""
    known = joined(data.known)
    remedies = {"nearest": "nearest", "smooth": "SmoothQuant", "apart": "LLM.int8()"}
    return {f"int8_{key}_error_share": int8_error(data, remedy, known) for key, remedy in remedies.items()}


@functools.cache
def unrounded(seed: int, windows: int) -> Tensor:
    """The loss of the decoder as trained, in each window."""
    return window_nats(trained.decoder("small", seed), trained.held_out_windows(windows, 256))


# --8<-- [start:trained]
def training_windows(count: int, seed: int = 0) -> Tensor | None:
    """Samples for the decoder trained here: windows (count, tokens) from random places of its training text."""
    if not count:
        return None
    ids = trained.corpus()[0]
    starts = torch.randint(len(ids) - WINDOW, (count, 1), generator=torch.Generator().manual_seed(seed))
    return ids[starts + torch.arange(WINDOW)]


def random_windows(count: int, seed: int = 0, vocabulary: int = trained.VOCABULARY) -> Tensor:
    """The wrong text: tokens drawn evenly from the vocabulary."""
    return torch.randint(vocabulary, (count, WINDOW), generator=torch.Generator().manual_seed(seed))


def added_nats(seed: int, samples: Tensor | None, method: str, scheme: Scheme, windows: int) -> float:
    """What quantization adds to the loss of one of these decoders on later years, mean over windows."""
    changed = calibrate(trained.decoder("small", seed), samples, METHODS[method], scheme)
    return paired_difference(window_nats(changed, trained.held_out_windows(windows, 256)), unrounded(seed, windows))[0]


# --8<-- [end:trained]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean of these values."""
    return float(torch.tensor(values, dtype=torch.float64).std() / len(values) ** 0.5)


# --8<-- [start:curve]
def losses_by_samples(
    samples: Sequence[int] = SAMPLES, seeds: Sequence[int] = trained.SEEDS, windows: int = 16
) -> dict[tuple[str, int], list[float]]:
    """Loss that INT2 adds, one number a seed (a decoder and a draw of samples): (method, samples) → values."""
    scheme, some = Scheme(2, group=64), sorted(samples)[-2]
    cases = [("nearest", 0), *(("GPTQ", count) for count in samples), ("AWQ", some)]
    return {
        (method, count): [added_nats(seed, training_windows(count, seed), method, scheme, windows) for seed in seeds]
        for method, count in cases
    }


# --8<-- [end:curve]


def curve(found: Mapping[tuple[str, int], float | list[float]], name: str) -> dict[str, list]:
    """Values by method and samples as columns: rounding to nearest is the same for any number of samples."""
    counts = sorted({count for _, count in found if count})
    whole = [m for m in ("AWQ", "GPTQ") if all((m, n) in found for n in counts)]
    each = [(m, n, found[m, 0 if m == "nearest" else n]) for m in ("nearest", *whole) for n in counts]
    means = [sum(value) / len(value) if isinstance(value, list) else value for *_, value in each]
    return {"method": [m for m, *_ in each], "samples_count": [n for _, n, _ in each], name: means}


def gain(found: dict[tuple[str, int], list[float]], method: str, count: int, key: str) -> dict[str, float]:
    """How much less a method adds to the loss than rounding to nearest: mean over seeds, its standard error."""
    each = [less - more for less, more in zip(found["nearest", 0], found[method, count], strict=True)]
    return {f"{key}_gain_nats": sum(each) / len(each), f"{key}_gain_error_nats": standard_error(each)}


def loss_values(found: dict[tuple[str, int], list[float]]) -> dict[str, float]:
    """What the curve says in numbers."""
    most, few = max(n for _, n in found), min(n for _, n in found if n)
    return {
        "trained_nearest_nats": sum(found["nearest", 0]) / len(found["nearest", 0]),
        **gain(found, "GPTQ", most, "gptq"),
        **gain(found, "AWQ", next(n for method, n in found if method == "AWQ"), "awq"),
        **gain(found, "GPTQ", few, "gptq_few"),
    }


# --8<-- [start:flips]
def flip_values(count: int = 64, seeds: Sequence[int] = trained.SEEDS, windows: int = 16) -> dict[str, float]:
    """The same gain with samples of the wrong text, and at a width where rounding loses next to nothing."""
    values: dict[str, float] = {}
    for case, scheme, draw in (("wrong", Scheme(2, group=64), random_windows), ("int8", Scheme(8), training_windows)):
        nearest = [added_nats(seed, None, "nearest", scheme, windows) for seed in seeds]
        found = [added_nats(seed, draw(count, seed), "GPTQ", scheme, windows) for seed in seeds]
        values |= gain({("nearest", 0): nearest, ("GPTQ", count): found}, "GPTQ", count, case)
    return values | {"int8_nearest_nats": sum(nearest) / len(nearest)}


# --8<-- [end:flips]


# --8<-- [start:smollm2]
def smollm2_losses(
    windows: int = 8, length: int = 128, samples: int = 16, tokens: int = 128, every: int = EVERY
) -> dict[str, Tensor]:
    """SmolLM2's loss in each window of a later year, some blocks in INT3-g64: calibrated on an earlier year."""
    model, judged, scheme = smollm2.decoder(), unseen_windows(windows, length), Scheme(3, group=64)
    known = calibration_windows(samples, tokens)
    wrong = torch.randint(model.geometry.vocabulary, known.shape, generator=torch.Generator().manual_seed(0))
    found = {"FP32": window_nats(model, judged)}
    for name, method, text in (
        ("nearest", "nearest", None), ("AWQ", "AWQ", known), ("GPTQ", "GPTQ", known), ("wrong", "GPTQ", wrong),
    ):  # fmt: skip
        found[name] = window_nats(calibrate(model, text, METHODS[method], scheme, every=every), judged)
    return found


# --8<-- [end:smollm2]


def smollm2_values(found: dict[str, Tensor]) -> dict[str, float]:
    """Added losses and the gains over rounding to nearest, with paired standard errors over windows."""
    values: dict[str, float] = {}
    for name, key in (("nearest", "nearest"), ("AWQ", "awq"), ("GPTQ", "gptq"), ("wrong", "wrong")):
        values[f"smollm2_{key}_nats"] = paired_difference(found[name], found["FP32"])[0]
    for name, key in (("AWQ", "awq"), ("GPTQ", "gptq"), ("wrong", "wrong")):
        mean, error = paired_difference(found["nearest"], found[name])
        values |= {f"smollm2_{key}_gain_nats": mean, f"smollm2_{key}_gain_error_nats": error}
    return values


def design_values() -> dict[str, int]:
    """Sizes of what is compared, as the page says them."""
    return {
        "window_tokens": WINDOW,
        "some_samples_count": sorted(SAMPLES)[-2],
        "most_samples_count": max(SAMPLES),
        "seeds_count": len(trained.SEEDS),
        "blocks_count": len(range(0, smollm2.GEOMETRY.layers, EVERY)),
        "all_blocks_count": smollm2.GEOMETRY.layers,
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` takes fewer sentences, layers, seeds, windows and blocks."""
    return dict(_measured(small))


@functools.cache
def _measured(small: bool) -> Mapping[str, float]:
    samples, seeds, windows = ((1, 16), trained.SEEDS[:2], 4) if small else (SAMPLES, trained.SEEDS, 16)
    data = study(16, 20, blocks=1) if small else study()
    real = smollm2_losses(2, 48, 8, 64, every=30) if small else smollm2_losses()
    return {
        **design_values(),
        **sentence_counts(data),
        **sentence_values(data, sentence_errors(data, samples)),
        **int8_values(data),
        **loss_values(losses_by_samples(samples, seeds, windows)),
        **flip_values(8 if small else 64, seeds, windows),
        **smollm2_values(real),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Rounding to nearest in place of every method: no gain, and the same error with every remedy."""
    found = measure(small=small)
    same = {name: 0.0 for name in found if name.endswith("_gain_nats")}
    same |= {n: found["minilm_nearest_error_share"] for n in found if n.startswith("minilm_")}
    same |= {n: found["int8_nearest_error_share"] for n in found if n.startswith("int8_") and n.endswith("_share")}
    return found | same | {f"smollm2_{n}_nats": found["smollm2_nearest_nats"] for n in ("awq", "gptq", "wrong")}


if __name__ == "__main__":
    from measured.values import report

    report("quantization/calibration", measure())
