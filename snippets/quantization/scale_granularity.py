"""Per tensor, channel or group? Symmetric or with zero point?

Claim: the largest value under a scale sets the step for all that share it, so closer scales raise the signal over the
noise, by little for Gaussian weights and by much where tails are heavy. A zero point is worth a bit on one-sided
activations; on weights in small groups it is worth a fraction of one.

Run: python -m snippets.quantization.scale_granularity
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.models import language_loss, similarity, smollm2
from snippets.models.decoder import Decoder
from snippets.models.encoder import Encoder, encoder, sentence_vectors
from snippets.models.rounding import Scheme, matrices, quantize_decoder, round_to_grid, stored_bits

# --8<-- [end:imports]

KEPT = ("lm_head", "embed_tokens", "embeddings")
SOURCES = {"gaussian": 128, "student": 128, "minilm": 128, "smollm2": 64}  # what is rounded → its group
LEVELS = ("tensor", "row", "group")
# What the page's prose quotes of many; its tables show the others.
QUOTED = (
    *(f"{source}_{level}_db" for source in ("gaussian", "student", "minilm") for level in LEVELS),
    *(f"reach_{level}_ratio" for level in LEVELS),
    *("minilm_group_zero_db", "minilm_tensor_int8_db"),
    *("rank_tensor_lost_difference", "rank_tensor_moved_difference", "rank_row_moved_difference"),
)


# --8<-- [start:scheme]
def scheme(level: str, group: int = 128, symmetric: bool = True, bits: int = 4) -> Scheme:
    """INT4 with one scale for the whole tensor, for each row (output channel), or for each group in a row."""
    return Scheme(bits, group if level == "group" else None, level, symmetric)


def snr_db(weights: Iterable[Tensor], scheme: Scheme) -> float:
    """Power of all weights over power of all their rounding errors, in dB."""
    signal = noise = 0.0
    for weight in weights:
        signal += float(weight.double().square().sum())
        noise += float((round_to_grid(weight, scheme) - weight).double().square().sum())
    return 10 * math.log10(signal / noise)


# --8<-- [end:scheme]


# --8<-- [start:draws]
def gaussian(rows: int = 1024, columns: int = 4096, seed: int = 0) -> Tensor:
    """Seeded normal draws."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def student(rows: int = 1024, columns: int = 4096, freedom: int = 4) -> Tensor:
    """Student's t: a normal over the root of a mean of squares, so a few draws lie far out."""
    squares = torch.stack([gaussian(rows, columns, seed).square() for seed in range(1, freedom + 1)])
    return gaussian(rows, columns) / squares.mean(0).sqrt()


# --8<-- [end:draws]


def sources(model: Encoder, decoder: Decoder, small: bool = False) -> dict[str, list[Tensor]]:
    """Matrices to round: drawn ones, MiniLM's as published, SmolLM2's dequantized from Q4_1."""
    found: dict[str, list[Tensor]] = {
        "gaussian": [gaussian()],
        "student": [student(128 if small else 1024)],
        "minilm": list(matrices(model, keep=KEPT).values()),
        "smollm2": list(matrices(decoder).values()),
    }
    return {name: [weight.detach() for weight in some[: 7 if small else None]] for name, some in found.items()}


def reach_ratio(weight: Tensor, group: int | None) -> float:
    """The largest value under a scale over the root mean square of all, as it enters the mean noise power."""
    parts = weight.reshape(-1, group or weight.numel())
    return float((parts.abs().amax(1).square().mean() / weight.square().mean()).sqrt())


def level_values(found: Mapping[str, Sequence[Tensor]], levels: Sequence[str] = LEVELS) -> dict[str, float]:
    """SNR in INT4 of every source by what shares a scale; with a zero point as well."""
    values = {}
    for source, weights in found.items():
        for name, level in zip(LEVELS, levels, strict=True):
            values[f"{source}_{name}_db"] = snr_db(weights, scheme(level, SOURCES[source]))
            zero = snr_db(weights, scheme(level, SOURCES[source], symmetric=levels != LEVELS))
            values[f"{source}_{name}_zero_db"] = zero
    values["minilm_tensor_int8_db"] = snr_db(found["minilm"], scheme("tensor", bits=8))
    for name, group in zip(LEVELS, (None, 4096, 128), strict=True):
        values[f"reach_{name}_ratio"] = reach_ratio(found["gaussian"][0], group)
    return values


def quoted(values: Mapping[str, float]) -> dict[str, float]:
    """The values that prose quotes."""
    return {name: value for name, value in values.items() if name in QUOTED}


def level_columns(values: Mapping[str, float]) -> dict[str, list]:
    """A row for each source: SNR by what shares a scale, without and with a zero point."""
    names = {"gaussian": "Gaussian", "student": "Student-t", "minilm": "MiniLM", "smollm2": "SmolLM2-135M"}
    columns: dict[str, list] = {"source": list(names.values())}
    for end in (f"{level}{kind}_db" for level in LEVELS for kind in ("", "_zero")):
        columns[end] = [values[f"{source}_{end}"] for source in names]
    return columns


def group_columns(found: Mapping[str, Sequence[Tensor]], groups: Sequence[int] = (128, 64, 32, 16)) -> dict[str, list]:
    """SNR against stored bits as groups shrink: drawn weights and MiniLM's."""
    names = {"gaussian": "Gaussian", "student": "Student-t", "minilm": "MiniLM"}
    rows = [(source, group) for source in names for group in groups]
    return {
        "source": [names[source] for source, _ in rows],
        "group_count": [group for _, group in rows],
        "weight_bits": [stored_bits((1, group), Scheme(4, group)) for _, group in rows],
        "snr_db": [snr_db(found[source], Scheme(4, group)) for source, group in rows],
    }


def group_values(columns: Mapping[str, list]) -> dict[str, float]:
    """What going from g128 to g32 adds to the SNR."""
    at = dict(zip(zip(columns["source"], columns["group_count"], strict=True), columns["snr_db"], strict=True))
    return {f"{name}_g32_gain_db": at[source, 32] - at[source, 128]
            for source, name in (("Gaussian", "gaussian"), ("Student-t", "student"), ("MiniLM", "minilm"))}  # fmt: skip


def bits_values(rows: int = 4096, columns: int = 4096) -> dict[str, int]:
    """Bits of a whole matrix in INT4 with scales as short floats, by what shares one."""
    schemes = {name: scheme(name) for name in LEVELS} | {"zero": scheme("group", symmetric=False)}
    found = {f"matrix_{n}_bits": round(rows * columns * stored_bits((rows, columns), s)) for n, s in schemes.items()}
    return {"matrix_weights_count": rows * columns, "matrix_columns_count": columns, **found}


# --8<-- [start:loss]
def loss_values(decoder: Decoder, windows: Tensor, levels: Sequence[str] = LEVELS) -> dict[str, float]:
    """What INT4 adds to SmolLM2's loss (FP32, dequantized from Q4_1), with paired standard errors over windows."""
    base = language_loss.window_nats(decoder, windows)
    values: dict[str, float] = {}
    for name, level in zip(LEVELS, levels, strict=True):
        rounded = quantize_decoder(decoder, scheme(level, group=64))
        mean, error = language_loss.paired_difference(language_loss.window_nats(rounded, windows), base)
        values |= {f"loss_{name}_excess_nats": mean, f"loss_{name}_error_nats": error}
    return values


# --8<-- [end:loss]


def similarity_values(model: Encoder, rows: similarity.Pairs, levels: Sequence[str] = LEVELS) -> dict[str, float]:
    """What INT4 takes from MiniLM's rank correlation (FP32 as published), and how far its cosines move (RMS)."""
    base = similarity.similarities(model, rows)
    values: dict[str, float] = {"pairs_count": len(rows.first)}
    schemes = {name: scheme(level) for name, level in zip(LEVELS, levels, strict=True)}
    for name, each in (schemes | {"zero": scheme(levels[-1], symmetric=levels != LEVELS)}).items():
        mine = similarity.similarities(quantize_decoder(model, each, keep=KEPT), rows)
        lost, error = similarity.paired_spearman(base, mine, rows.score)
        values |= {f"rank_{name}_lost_difference": lost, f"rank_{name}_error_difference": error}
        values[f"rank_{name}_moved_difference"] = float((mine - base).square().mean().sqrt())
    return values


def similarity_columns(values: Mapping[str, float]) -> dict[str, list]:
    """A row for each kind of scale: what MiniLM loses."""
    names = {"tensor": "tensor", "row": "row", "group": "g128", "zero": "g128, zero point"}
    columns: dict[str, list] = {"scale": list(names.values())}
    for end in ("lost_difference", "error_difference", "moved_difference"):
        columns[end] = [values[f"rank_{name}_{end}"] for name in names]
    return columns


# --8<-- [start:activations]
def token_snr_db(layers: Iterable[Tensor], scheme: Scheme) -> float:
    """The median token's SNR in dB: over all tokens together, a single loud one would drown the others."""
    found = [
        10
        * (tokens.double().square().sum(1) / (round_to_grid(tokens, scheme) - tokens).double().square().sum(1)).log10()
        for tokens in layers
    ]
    return float(torch.cat(found).median())


def after_gelu(model: Encoder, sentences: Sequence[str]) -> list[Tensor]:
    """What the second product of each feed-forward reads, (tokens, ffn): GELU leaves next to nothing below zero."""
    kept: list[Tensor] = []
    hooks = [
        layer.intermediate.dense.register_forward_hook(lambda *call: kept.append(F.gelu(call[2])[0]))
        for layer in model.encoder.layer  # type: ignore[union-attr]
    ]
    sentence_vectors(model, sentences, batch=1)
    for hook in hooks:
        hook.remove()
    return kept


def after_swiglu(decoder: Decoder, ids: Tensor) -> list[Tensor]:
    """What each layer's down projection reads, (tokens, ffn): SiLU of one projection times another, of either sign."""
    kept: list[Tensor] = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0][0]))  # type: ignore[union-attr]
        for layer in decoder.layers  # type: ignore[union-attr]
    ]
    with torch.inference_mode():
        decoder(ids)
    for hook in hooks:
        hook.remove()
    return kept


# --8<-- [end:activations]


def activation_values(
    model: Encoder, decoder: Decoder, sentences: Sequence[str], ids: Tensor, zero: bool = True
) -> dict[str, float]:
    """SNR of activations in INT8, one scale a token, without and with a zero point."""
    found = {"gelu": after_gelu(model, sentences), "swiglu": after_swiglu(decoder, ids)}
    return {
        f"{name}_{kind}_db": token_snr_db(tokens, scheme("row", bits=8, symmetric=not (zero and kind == "zero")))
        for name, tokens in found.items()
        for kind in ("symmetric", "zero")
    }


# --8<-- [start:trap]
def loud_rows(rows: int = 1024, loud: int = 4, factor: float = 100) -> Tensor:
    """Gaussian rows, the first few a hundred times as large."""
    weight = gaussian(rows, 1024)
    weight[:loud] *= factor
    return weight


def trap_values(weight: Tensor, loud: int = 4, level: str = "tensor") -> dict[str, float]:
    """SNR of the whole tensor on one scale, and how many of the quiet rows it turns to nothing."""
    stored = round_to_grid(weight, scheme(level))
    return {
        "loud_tensor_db": snr_db([weight], scheme(level)),
        "quiet_rows_count": len(weight) - loud,
        "quiet_zeroed_count": int((stored[loud:] == 0).all(1).sum()),
    }


# --8<-- [end:trap]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` draws, rounds and reads less. `device` is the CPU."""
    return _measure(small, LEVELS)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """One symmetric scale a tensor stands in for every finer one, and no zero point."""
    values = _measure(small, ("tensor",) * 3)
    same = {name: 0.0 for name in values if name.endswith("_g32_gain_db")}
    return values | same | {"matrix_group_bits": values["matrix_tensor_bits"]}


def _measure(small: bool, levels: Sequence[str]) -> dict[str, float]:
    model, decoder = encoder(), smollm2.decoder()
    found, rows = sources(model, decoder, small), similarity.thinned(similarity.pairs("test"), 48 if small else 4)
    windows = language_loss.unseen_windows(*((2, 48) if small else (4, 256)))
    return {
        **level_values(found, levels),
        **group_values(group_columns(found, (128, 32))),
        **bits_values(),
        **loss_values(decoder, windows, levels),
        **similarity_values(model, rows, levels),
        **activation_values(model, decoder, rows.first[:: 8 if small else 16], windows[:1], zero=levels == LEVELS),
        **trap_values(loud_rows()),
    }


if __name__ == "__main__":
    from measured.values import report

    report("quantization/scale_granularity", measure())
