"""Are LLMs redundant, and robust to changed weights?

Claim: the smallest weights can go for almost nothing and small noise costs little, in every decoder at hand; a few
columns, and in one real model a single weight, can not go at all. Of two decoders trained alike the larger bears
more noise, but more training makes a decoder bear less, and the largest one at hand bears least of all.

Run: python -m snippets.quantization.redundancy_and_robustness
Cost: `measured list` shows the seconds of each recording; `measured prepare` trains the small decoders before.
"""

from __future__ import annotations

# --8<-- [start:imports]
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor

from snippets.models import smollm2, trained
from snippets.models.calibrated import captured
from snippets.models.decoder import Decoder
from snippets.models.encoder import encoder, sentence_vectors
from snippets.models.language_loss import calibration_windows, unseen_windows, window_nats
from snippets.models.rounding import Scheme, matrices, round_to_grid
from snippets.models.similarity import pairs, spearman

# --8<-- [end:imports]

NOISE, REAL_NOISE = (0.1, 0.2, 0.5), (0.02, 0.1, 0.2)
SHARES = (0.1, 0.3)
INT4 = Scheme(4, group=64)
LOUD = 0.005  # share of a matrix's columns, at least one
Change = Callable[[str, Tensor], Tensor]


# --8<-- [start:changes]
def noisy(share: float, seed: int) -> Change:
    """Adds normal noise to a matrix; its root mean square is `share` of the matrix's own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda _, weight: (
        weight + share * weight.square().mean().sqrt() * torch.randn(weight.shape, generator=generator)
    )


def smallest_removed(share: float, seed: int = 0) -> Change:
    """Sets that share of each matrix to zero, the smallest magnitudes; nothing is drawn."""

    def change(_: str, weight: Tensor) -> Tensor:
        size = weight.abs()
        return weight * (size > size.flatten().kthvalue(max(1, round(share * weight.numel()))).values)

    return change


def random_removed(share: float, seed: int) -> Change:
    """Sets that share of each matrix to zero, whichever."""
    generator = torch.Generator().manual_seed(seed)
    return lambda _, weight: weight * (torch.rand(weight.shape, generator=generator) >= share)


def columns_removed(chosen: Mapping[str, Tensor]) -> Change:
    """Sets the chosen input columns of each matrix to zero."""
    return lambda name, weight: weight.index_fill(1, chosen[name], 0)


# --8<-- [end:changes]


# --8<-- [start:rise]
@contextmanager
def changed(model: torch.nn.Module, change: Change, only: str = "") -> Iterator[None]:
    """The model with its matrices (or `only` one of them) replaced while the context lasts; embeddings are kept."""
    kept = {n: w for n, w in matrices(model, ("lm_head", "embed_tokens", "embeddings")).items() if only in ("", n)}
    before = {name: weight.data for name, weight in kept.items()}
    try:
        for name, weight in kept.items():
            weight.data = change(name, weight.data)
        yield
    finally:
        for name, weight in kept.items():
            weight.data = before[name]


def rise(decoder: Decoder, windows: Tensor, change: Change, base: Tensor, only: str = "") -> Tensor:
    """How much more each window loses once the weights are changed, FP64 (windows,), nats a token."""
    with changed(decoder, change, only):
        return window_nats(decoder, windows) - base


# --8<-- [end:rise]


# --8<-- [start:columns]
def loud_columns(decoder: Decoder, text: Tensor, share: float) -> dict[str, Tensor]:
    """For each matrix the indices of that share of its input columns whose inputs are largest on average."""
    names = list(matrices(decoder))
    with torch.inference_mode(), captured(decoder, names) as seen:
        decoder(text)
    size = {name: rows.abs().mean(0) for name, rows in seen.items()}
    return {name: mean.topk(max(1, round(share * len(mean)))).indices for name, mean in size.items()}


def random_columns(like: Mapping[str, Tensor], decoder: Decoder, seed: int) -> dict[str, Tensor]:
    """As many columns of each matrix, drawn."""
    generator = torch.Generator().manual_seed(seed)
    weights = matrices(decoder)
    return {
        name: torch.randperm(weights[name].shape[1], generator=generator)[: len(chosen)]
        for name, chosen in like.items()
    }


# --8<-- [end:columns]


# --8<-- [start:one]
def loudest_weight(decoder: Decoder, text: Tensor) -> tuple[str, int, int]:
    """The weight behind the largest output of any down projection, found in one forward pass: name, row, column.

    After "The Super Weight in Large Language Models" (arXiv:2411.07191).
    """
    names = [name for name in matrices(decoder) if name.endswith("down_proj")]
    with torch.inference_mode(), captured(decoder, names) as seen:
        decoder(text)
    found = []
    for name in names:
        weight = decoder.get_parameter(f"{name}.weight")
        outputs = seen[name] @ weight.T  # (tokens, rows)
        token, row = divmod(int(outputs.abs().argmax()), outputs.shape[1])
        column = int((seen[name][token] * weight[row]).abs().argmax())
        found.append((float(outputs.abs().max()), name, row, column))
    return max(found)[1:]


def one_removed(row: int, column: int) -> Change:
    """Sets a single weight to zero."""

    def change(_: str, weight: Tensor) -> Tensor:
        weight = weight.clone()
        weight[row, column] = 0
        return weight

    return change


# --8<-- [end:one]


Rises = dict[str, dict[float, Tensor]]


def trained_rises(*, small: bool = False) -> dict[str, Rises]:
    """For each decoder trained here the rises by noise and by removed weights, FP64 (seeds,), mean of the windows."""
    seeds = (0,) if small else trained.SEEDS
    windows = trained.held_out_windows(6 if small else 10)
    found: dict[str, Rises] = {}
    for name, steps in (("tiny", None), ("small", None), ("tiny, few steps", trained.FEW_STEPS)):
        rows = found.setdefault(name, {"noise": {}, "smallest": {}, "random": {}})
        decoders = [trained.decoder(name.split(",")[0], seed, steps) for seed in seeds]
        bases = [window_nats(decoder, windows) for decoder in decoders]
        changes: list[tuple[str, float, Callable[[int], Change]]] = []
        changes += [("noise", share, partial(noisy, share)) for share in (NOISE if steps is None else (0.5,))]
        for share in SHARES if steps is None else ():
            changes.append(("smallest", share, partial(smallest_removed, share)))
            changes.append(("random", share, partial(random_removed, share)))
        for way, share, make in changes:
            each = [rise(d, windows, make(s), b).mean() for d, s, b in zip(decoders, seeds, bases, strict=True)]
            rows[way][share] = torch.stack(each)
    return found


def real_rises(*, small: bool = False) -> Rises:
    """The same of SmolLM2, FP64 (windows,), and what its loud columns and its loudest weight are worth."""
    decoder = smollm2.decoder()
    windows = unseen_windows(2, 64) if small else unseen_windows(4, 192)
    base = window_nats(decoder, windows)
    text = calibration_windows(1, 64 if small else 256)
    loud = loud_columns(decoder, text, LOUD)
    name, row, column = loudest_weight(decoder, text)
    below = (row + 1) % decoder.geometry.hidden  # a neighbour, whatever it is

    def of(change: Change, only: str = "") -> Tensor:
        return rise(decoder, windows, change, base, only)

    return {
        "noise": {share: of(noisy(share, 0)) for share in (REAL_NOISE[:2] if small else REAL_NOISE)},
        "smallest": {share: of(smallest_removed(share)) for share in (SHARES[:1] if small else SHARES)},
        "random": {share: of(random_removed(share, 0)) for share in SHARES[:1]},
        "loud columns": {LOUD: of(columns_removed(loud))},
        "any columns": {LOUD: of(columns_removed(random_columns(loud, decoder, 0)))},
        "loudest weight": {0: of(one_removed(row, column), name)},
        "another weight": {0: of(one_removed(below, column), name)},
    }


# --8<-- [start:similarity]
def similarity_drop(share: float, sentences: int) -> float:
    """How far noise lowers MiniLM's rank correlation with people's scores on STS-B."""
    model, data = encoder(), pairs("dev")
    first, second, score = data.first[:sentences], data.second[:sentences], data.score[:sentences]

    def correlation() -> float:
        cosine = (sentence_vectors(model, first) * sentence_vectors(model, second)).sum(1)
        return float(spearman(cosine, score))

    clean = correlation()
    with changed(model, noisy(share, 0)):
        return clean - correlation()


# --8<-- [end:similarity]


@cache
def rises(small: bool = False) -> dict[str, Rises]:
    """All rises, by decoder, change and share."""
    return {**trained_rises(small=small), "SmolLM2": real_rises(small=small)}


def rise_values(found: Mapping[str, Rises]) -> dict[str, float]:
    """The rises that the page states, in nats a token: means over seeds, or over SmolLM2's windows."""
    real, tiny, larger = found["SmolLM2"], found["tiny"], found["small"]
    means = {
        "tiny_noise10": tiny["noise"][0.1],
        "tiny_noise50": tiny["noise"][0.5],
        "small_noise50": larger["noise"][0.5],
        "few_noise50": found["tiny, few steps"]["noise"][0.5],
        "small_noise10": larger["noise"][0.1],
        "real_noise2": real["noise"][0.02],
        "real_noise10": real["noise"][0.1],
        "small_smallest30": larger["smallest"][0.3],
        "small_random30": larger["random"][0.3],
        "real_smallest10": real["smallest"][0.1],
        "real_random10": real["random"][0.1],
        "loud_columns": real["loud columns"][LOUD],
        "any_columns": real["any columns"][LOUD],
        "one_weight": real["loudest weight"][0],
        "another_weight": real["another weight"][0],
    }
    values = {f"{name}_nats": float(each.mean()) for name, each in means.items()}
    values["size_gain_nats"] = values["tiny_noise50_nats"] - values["small_noise50_nats"]
    values["training_rise_nats"] = values["tiny_noise50_nats"] - values["few_noise50_nats"]
    values["random_excess_nats"] = values["real_random10_nats"] - values["real_smallest10_nats"]
    values["loud_excess_nats"] = values["loud_columns_nats"] - values["any_columns_nats"]
    values["real_excess_nats"] = values["real_noise10_nats"] - values["small_noise10_nats"]
    return values


def table_columns(found: Mapping[str, Rises], ways: tuple[str, ...]) -> dict[str, list]:
    """One row a decoder, change and share: the mean rise and its standard error over seeds, or windows."""
    rows: dict[str, list] = {"decoder": [], "change": [], "share": [], "rise_nats": [], "error_nats": []}
    for decoder in ("tiny", "small", "SmolLM2"):
        for way in ways:
            for share, each in found[decoder][way].items():
                error = float(each.std() / len(each) ** 0.5) if len(each) > 1 else 0.0
                for name, entry in zip(rows, (decoder, way, share, float(each.mean()), error), strict=True):
                    rows[name].append(entry)
    return rows


def count_values() -> dict[str, int]:
    """Weights that may be changed: matrices of the layers, without embedding and head."""
    decoders = {"tiny": trained.decoder("tiny"), "small": trained.decoder("small"), "real": smollm2.decoder()}
    return {f"{name}_weights_count": sum(w.numel() for w in matrices(d).values()) for name, d in decoders.items()}


def share_values() -> dict[str, float]:
    """The shares that the page speaks of."""
    shares = {"least": REAL_NOISE[0], "loud": LOUD, "low": SHARES[0], "middle": SHARES[1], "high": NOISE[-1]}
    return {f"{name}_share": share for name, share in shares.items()}


def rounding_share(scheme: Scheme = INT4) -> float:
    """The error of rounding the small decoder, relative to its weights: noise of that share."""
    weights = matrices(trained.decoder("small")).values()
    lost = sum((round_to_grid(w, scheme) - w).double().square().sum() for w in weights)
    return float((lost / sum(w.double().square().sum() for w in weights)) ** 0.5)


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page, FP32 throughout."""
    sentences = 48 if small else 200
    drops = {f"minilm_noise{round(100 * share)}_difference": similarity_drop(share, sentences) for share in (0.1, 0.5)}
    exact = {**count_values(), **share_values()}
    return {**rise_values(rises(small)), **exact, "int4_error_share": rounding_share(), **drops}


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Each choice replaced: the smallest weights by any, loud columns and weight by others, small noise by large, and
    of two decoders compared one by the other."""
    found = {name: dict(ways) for name, ways in rises(small).items()}
    real, tiny, larger = found["SmolLM2"], found["tiny"], found["small"]
    real["smallest"], larger["smallest"] = real["random"], larger["random"]
    real["loud columns"], real["loudest weight"] = real["any columns"], real["another weight"]
    real["noise"] = {0.02: real["noise"][0.1], 0.1: larger["noise"][0.5]}
    found["tiny, few steps"] = found["small"] = {**larger, "noise": dict.fromkeys(NOISE, tiny["noise"][0.5])}
    return {**rise_values(found), "minilm_noise10_difference": similarity_drop(0.5, 48)}


if __name__ == "__main__":
    from measured.values import report

    report("quantization/redundancy_and_robustness", measure())
