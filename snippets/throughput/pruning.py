"""Does pruning speed up inference?

Claim: zeros that are stored dense change no byte and no operation, hence nothing; rows or columns that are really
removed make the product smaller and faster. Sparse storage pays from some share of zeros on, which depends on the
bytes of an index and on the rows. What is fast to leave out costs most loss.

Run: python -m snippets.throughput.pruning
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.sparse import _semi_structured_conversions as two_four_storage
from torch.sparse import to_sparse_semi_structured
from torch.utils.flop_counter import FlopCounterMode

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import capabilities, pick
from snippets.instruments.memory import storage_bytes
from snippets.instruments.roofline import LAUNCH_SECONDS, predict_seconds
from snippets.models import smollm2, trained
from snippets.models.calibrated import captured, sharing_copy
from snippets.models.decoder import Decoder, KVCache, from_state
from snippets.models.language_loss import calibration_windows, unseen_windows, window_nats
from snippets.models.rounding import matrices
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry, parameters

HALF, MOST, MOSTLY = 0.5, 0.75, 0.9  # shares of weights gone
MANY_H100 = 4096  # rows
INDEX_BYTES, LONG_INDEX_BYTES = 4, 8  # INT32; what PyTorch makes of a dense matrix by itself is INT64


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    layer: tuple[int, int] = (LLAMA_3_8B.ffn, LLAMA_3_8B.hidden)
    many: int = 64
    shares: tuple[float, ...] = (HALF, MOST, MOSTLY, 0.99)  # of zeros, in CSR
    rounds: int = 9
    context: int = 64
    texts: tuple[int, int] = (6, 64)  # windows and tokens of each, SmolLM2
    calibration: tuple[int, int] = (2, 128)
    seeds: tuple[int, ...] = trained.SEEDS
    windows: int = 10
    whole: bool = True  # every share of zeros, not only those that claims need


SMALL = Scale(
    layer=(LLAMA_3_8B.ffn // 4, LLAMA_3_8B.hidden), rounds=9, texts=(3, 40), calibration=(1, 96), seeds=(0,),
    windows=6, whole=False,
)  # fmt: skip


# --8<-- [start:stored]
def kept_columns(shape: tuple[int, int], share: float, seed: int = 0) -> Tensor:
    """Where a row keeps its weights: sorted columns (rows, kept), INT32, drawn for some rows and repeated."""
    rows, columns = shape
    kept = columns - round(share * columns)
    drawn = torch.rand(min(rows, 512), columns, generator=torch.Generator().manual_seed(seed))
    some = drawn.argsort(1)[:, :kept].sort(1).values.int()
    return some.repeat(-(-rows // len(some)), 1)[:rows]


def zeros_dense(columns: Tensor, values: Tensor, width: int) -> Tensor:
    """The weights (rows, width) as a dense matrix: zeros are stored like any other number."""
    return values.new_zeros(len(values), width).scatter_(1, columns.long(), values)


def zeros_left_out(columns: Tensor, values: Tensor, width: int) -> Tensor:
    """The same weights as CSR: a value and a column index for each one kept, and a pointer a row."""
    rows, kept = columns.shape
    starts = torch.arange(rows + 1, dtype=torch.int32) * kept
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            starts, columns.flatten(), values.flatten(), (rows, width), check_invariants=False
        )


def csr_bytes(shape: tuple[int, int], kept: int, value_bytes: int, index_bytes: int = INDEX_BYTES) -> int:
    """Formula of what CSR stores, `kept` weights in each row."""
    return shape[0] * kept * (value_bytes + index_bytes) + (shape[0] + 1) * index_bytes


# --8<-- [end:stored]


def two_four(weight: Tensor, score: Tensor | None = None) -> Tensor:
    """Of every four neighbours in a row the two of highest score (size, unless given), the others zero."""
    groups = (weight.abs() if score is None else score).unflatten(1, (-1, 4))
    kept = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(2, -1).indices, True)
    return weight * kept.flatten(1)


def byte_values(scale: Scale) -> dict[str, int]:
    """What each way stores of one layer, by formula and as stored, and the FLOP that PyTorch counts a row."""
    rows, width = scale.layer
    columns = kept_columns(scale.layer, HALF)
    some = torch.ones(columns.shape, dtype=torch.bfloat16)
    dense, zeros = torch.ones(scale.layer, dtype=torch.bfloat16), zeros_dense(columns, some, width)
    csr = zeros_left_out(columns, some.float(), width)
    real = two_four(smollm2.load_state()["model.layers.0.mlp.up_proj.weight"].bfloat16())
    packed, codes = two_four_storage.sparse_semi_structured_from_dense_cutlass(real)
    back = two_four_storage.sparse_semi_structured_to_dense_cutlass(packed, codes)
    return {
        "dense_bytes": storage_bytes(dense),
        "zeros_bytes": storage_bytes(zeros),
        "zeros_count": int((zeros == 0).sum()),
        "removed_bytes": storage_bytes(dense[: rows // 2].clone()),
        "csr_bytes": storage_bytes(csr),
        "csr_formula_bytes": csr_bytes(scale.layer, columns.shape[1], 4),
        "dense_fp32_bytes": 4 * dense.numel(),
        "columns_count": width,
        "even_count": width * 4 // (4 + INDEX_BYTES),
        "value_bytes": 4,
        "short_bytes": 2,
        "index_bytes": INDEX_BYTES,
        "long_index_bytes": LONG_INDEX_BYTES,
        "two_four_bytes": storage_bytes([packed, codes]),
        "two_four_dense_bytes": real.nbytes,
        "place_bits": 8 * codes.nbytes // packed.numel(),
        "two_four_wrong_count": int((back != real).sum()),
        **{f"{name}_flops": counted(weight) for name, weight in (("dense", dense), ("zeros", zeros))},
        "removed_flops": counted(dense[: rows // 2]),
        "linear_bytes": 4 * 64 * 64,
        "masked_bytes": masked_bytes((64, 64)),
    }


def masked_bytes(shape: tuple[int, int]) -> int:
    """What a layer holds after PyTorch's own pruning: the weights as they were, a mask, and their product."""
    layer = nn.Linear(shape[1], shape[0], bias=False)
    prune.l1_unstructured(layer, "weight", HALF)
    return storage_bytes(layer)


def counted(weight: Tensor) -> int:
    """FLOP of a product with one row, as PyTorch's counter sees them."""
    with FlopCounterMode(display=False) as counter:
        F.linear(weight.new_ones(1, weight.shape[1]), weight)
    return int(counter.get_total_flops())


Key = tuple[str, str, float]  # how it is stored, number format, share of weights gone


def ways(scale: Scale, device: torch.device) -> dict[Key, Tensor]:
    """One Llama-3-8B-shaped layer with random weights, pruned and stored in each way."""
    width, short = scale.layer[1], torch.bfloat16
    generator = torch.Generator().manual_seed(1)
    full = torch.randn(scale.layer, generator=generator).mul_(0.02)
    found: dict[Key, Tensor] = {
        ("dense", "BF16", 0.0): full.to(short),
        ("dense", "FP32", 0.0): full,
    }
    # MKL's sparse products, PyTorch's on a CPU, have no BF16.
    sparse = torch.float32 if device.type == "cpu" else short
    name = "FP32" if sparse == torch.float32 else "BF16"
    for share in scale.shares:
        columns = kept_columns(scale.layer, share)
        values = full[:, : columns.shape[1]].contiguous()
        found["CSR", name, share] = zeros_left_out(columns, values.to(sparse), width)
        if share in (HALF, MOST):
            found["dense with zeros", "BF16", share] = zeros_dense(columns, values.to(short), width)
            found["rows removed", "BF16", share] = full[round(share * len(full)) :].to(short)
    found = {key: weight.to(device) for key, weight in found.items()}
    if "cuda-bf16" in capabilities(device):
        found["2:4", "BF16", HALF] = to_sparse_semi_structured(two_four(found["dense", "BF16", 0.0]))
    return found


def call(weight: Tensor, rows: int) -> clock.Call:
    """A product with `rows` rows of inputs, each way fed in the layout that it takes without a copy."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    if weight.layout == torch.sparse_csr:
        given = x[0] if rows == 1 else x.T.contiguous()
        return lambda: weight @ given
    return lambda: F.linear(x, weight)


def times(made: Mapping[Key, Tensor], scale: Scale, device: torch.device) -> dict[int, clock.Interleaved]:
    """Every way in turn, at one row and at many."""
    return {
        rows: clock.interleave(
            {repr(key): call(weight, rows) for key, weight in made.items()}, device=device, rounds=scale.rounds
        )
        for rows in (1, scale.many)
    }


def crossing(shares: Sequence[float], speeds: Sequence[float]) -> float:
    """Share of zeros at which speed passes one, between points, on logarithms; the nearest end if it never does."""
    points = list(zip(shares, speeds, strict=True))
    for (low, slow), (high, fast) in pairwise(points):
        if slow < 1 <= fast:
            part = -math.log(slow) / (math.log(fast) - math.log(slow))
            return 1 - (1 - low) ** (1 - part) * (1 - high) ** part
    return shares[0] if speeds[0] >= 1 else 1.0


def speed_values(taken: Mapping[int, clock.Interleaved], made: Mapping[Key, Tensor]) -> dict[str, float]:
    """Zeros stored dense over rows removed at the same count; CSR against the dense BF16 that one would serve."""
    found: dict[str, float] = {}
    base = repr(("dense", "BF16", 0.0))
    for name, rows in (("one", 1), ("many", max(taken))):
        one = taken[rows]
        sparse = {key[2]: one.ratio(base, repr(key)) for key in made if key[0] == "CSR"}
        for share, part in ((HALF, "half"), (MOST, "most")):
            zeros, removed = (repr((way, "BF16", share)) for way in ("dense with zeros", "rows removed"))
            found[f"{name}_{part}_ratio"] = one.ratio(zeros, removed)
            found[f"{name}_{part}_zeros_ratio"] = one.ratio(base, zeros)
        found[f"{name}_csr90_ratio"] = sparse[MOSTLY]
        found[f"{name}_cross_share"] = crossing(list(sparse), list(sparse.values()))
    found["many_csr50_slower_ratio"] = 1 / sparse[HALF]
    found["many_csr90_fp32_ratio"] = sparse[MOSTLY] / one.ratio(base, repr(("dense", "FP32", 0.0)))
    return found


def speed_columns(taken: Mapping[int, clock.Interleaved], made: Mapping[Key, Tensor]) -> dict[str, list]:
    """By way: bytes, and speed against dense BF16 at one row and at many."""
    first, last = taken[1], taken[max(taken)]
    base = repr(("dense", "BF16", 0.0))
    return {
        "way": [key[0] for key in made],
        "format": [key[1] for key in made],
        "removed_share": [key[2] for key in made],
        "stored_bytes": [storage_bytes(weight) for weight in made.values()],
        "one_ratio": [first.ratio(base, repr(key)) for key in made],
        "many_ratio": [last.ratio(base, repr(key)) for key in made],
    }


def crossing_columns(taken: Mapping[int, clock.Interleaved], made: Mapping[Key, Tensor]) -> dict[str, list]:
    """CSR's speed against dense BF16 by the share of weights that is kept."""
    base, columns = repr(("dense", "BF16", 0.0)), {"kept_share": [], "speed_ratio": [], "inputs": []}  # type: ignore[var-annotated]
    for rows, name in ((1, "one row"), (max(taken), "many rows")):
        for key in made:
            if key[0] == "CSR":
                entry = (1 - key[2], taken[rows].ratio(base, repr(key)), name)
                for column, value in zip(columns.values(), entry, strict=True):
                    column.append(value)
    return columns


# --8<-- [start:scores]
Score = Callable[[Tensor, Tensor], Tensor]  # weight (rows, columns), norms of its inputs (columns,) -> as the weight


def magnitude(weight: Tensor, norms: Tensor) -> Tensor:
    """Size alone."""
    return weight.abs()


def wanda(weight: Tensor, norms: Tensor) -> Tensor:
    """Wanda (arXiv:2306.11695): size times the norm of the input that it multiplies."""
    return weight.abs() * norms


def drawn(weight: Tensor, norms: Tensor) -> Tensor:
    """The control: any weight."""
    return torch.rand(weight.shape, generator=torch.Generator().manual_seed(weight.numel())).to(weight.device)


def lowest_removed(weight: Tensor, score: Tensor, share: float) -> Tensor:
    """That share of every row set to zero, the lowest scores; ties at the edge go together."""
    count = round(share * weight.shape[1])
    if not count:
        return weight
    edge = np.sort(score.cpu().numpy(), axis=1)[:, count - 1 : count]
    return weight * (score > torch.from_numpy(edge).to(score))


# --8<-- [end:scores]


def input_norms(decoder: Decoder, text: Tensor) -> dict[str, Tensor]:
    """Norm of every input column of each matrix of the layers, over the text (windows, tokens)."""
    names = list(matrices(decoder))
    with torch.inference_mode(), captured(decoder, names) as seen:
        decoder(text)
    return {name: rows.norm(dim=0) for name, rows in seen.items()}


def pruned(decoder: Decoder, norms: Mapping[str, Tensor], change: Callable[[Tensor, Tensor], Tensor]) -> Decoder:
    """A copy whose matrices are changed, given the norms of their inputs; embedding and head are shared."""
    result = sharing_copy(decoder)
    for name, weight in matrices(decoder).items():
        changed = nn.Parameter(change(weight, norms[name]), requires_grad=False)
        result.get_submodule(name).weight = changed
    return result


def unstructured(score: Score, share: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Change for `pruned`: that share of each row."""
    return lambda weight, norms: lowest_removed(weight, score(weight, norms), share)


def semi_structured(score: Score) -> Callable[[Tensor, Tensor], Tensor]:
    """Change for `pruned`: two of four."""
    return lambda weight, norms: two_four(weight, score(weight, norms))


# --8<-- [start:structured]
def neuron_scores(decoder: Decoder, norms: Mapping[str, Tensor]) -> list[Tensor]:
    """Of every FFN neuron of each layer (ffn,): norm of its activation times the norm of its output column."""
    name = "layers.{}.mlp.down_proj"
    every = [name.format(number) for number in range(len(decoder.layers))]
    return [norms[down] * decoder.get_parameter(f"{down}.weight").norm(dim=0) for down in every]


def without_neurons(decoder: Decoder, scores: Sequence[Tensor], share: float, *, shrink: bool = True) -> Decoder:
    """The decoder without that share of FFN neurons, the lowest: smaller matrices, or zeros in matrices as large."""
    state, width = dict(decoder.state_dict()), decoder.geometry.ffn
    kept = width - round(share * width)
    for number, score in enumerate(scores):
        chosen = score.topk(kept).indices.sort().values
        mask = torch.zeros_like(score).index_fill_(0, chosen, 1)
        for part, axis in (("gate_proj", 0), ("up_proj", 0), ("down_proj", 1)):
            name = f"layers.{number}.mlp.{part}.weight"
            weight, by = state[name], mask.to(state[name].dtype)
            state[name] = weight.index_select(axis, chosen) if shrink else weight * (by if axis else by[:, None])
    geometry = replace(decoder.geometry, ffn=kept) if shrink else decoder.geometry
    return from_state(geometry, state, decoder.norm.weight.dtype, decoder.norm.weight.device)


def without_layers(decoder: Decoder, count: int) -> Decoder:
    """The decoder without that many layers from the middle on."""
    result, first = sharing_copy(decoder), len(decoder.layers) // 2
    del result.layers[first : first + count]
    return result


# --8<-- [end:structured]


def random_scores(decoder: Decoder) -> list[Tensor]:
    """The control: any neuron."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(decoder.geometry.ffn, generator=generator) for _ in decoder.layers]


def without_heads(decoder: Decoder, norms: Mapping[str, Tensor]) -> Decoder:
    """A copy without one group of heads a layer (a key/value head with its queries), that of the least output."""
    result, group = sharing_copy(decoder), decoder.geometry.heads // decoder.geometry.kv_heads
    for number, block in enumerate(result.layers):
        name = f"layers.{number}.self_attn.o_proj"
        out = decoder.get_parameter(f"{name}.weight")
        size = (norms[name] * out.norm(dim=0)).unflatten(0, (-1, group * decoder.geometry.head_dim)).square().sum(1)
        least = int(size.argmin()) * group * decoder.geometry.head_dim
        gone = torch.arange(least, least + group * decoder.geometry.head_dim, device=out.device)
        block.get_submodule("self_attn.o_proj").weight = nn.Parameter(out.index_fill(1, gone, 0), requires_grad=False)
    return result


Rises = dict[str, dict[float, Tensor]]
"""By method and by share of the layers' weights that is gone: how much more each window (or seed) loses, nats."""


Makers = dict[tuple[str, float], Callable[[], Decoder]]


def variants(decoder: Decoder, norms: Mapping[str, Tensor], whole: bool) -> Makers:
    """Pruned decoders to make, by method and by share of the layers' weights that is gone."""
    found: Makers = {}
    shares = {"magnitude": (0.3, 0.5, 0.7), "Wanda": (0.3, 0.5, 0.7), "any weight": (HALF,)}
    for (name, each), score in zip(shares.items(), (magnitude, wanda, drawn), strict=True):
        for share in each if whole else (HALF,):
            found[name, share] = partial(pruned, decoder, norms, unstructured(score, share))
    for name, score in (("two of four, Wanda", wanda), *((("two of four, magnitude", magnitude),) if whole else ())):
        found[name, HALF] = partial(pruned, decoder, norms, semi_structured(score))
    geometry = decoder.geometry
    part = ffn_count(geometry) / parameters(geometry).linear
    for name, scores in (("FFN neurons", neuron_scores(decoder, norms)), ("any neurons", random_scores(decoder))):
        for share in (0.1, 0.3, HALF) if whole and name == "FFN neurons" else (HALF,):
            found[name, share * part] = partial(without_neurons, decoder, scores, share)
    if whole:
        found["heads", (1 - part) / geometry.kv_heads] = partial(without_heads, decoder, norms)
        for count in (geometry.layers // 10, geometry.layers // 3):
            found["layers", count / geometry.layers] = partial(without_layers, decoder, count)
    return found


def ffn_count(geometry: Geometry) -> int:
    """Weights of all layers' feed-forward matrices."""
    return geometry.layers * 3 * geometry.hidden * geometry.ffn


def rises(decoder: Decoder, text: Tensor, windows: Tensor, whole: bool) -> Rises:
    """What each way of pruning costs on the windows; norms are taken from the text."""
    base, found = window_nats(decoder, windows), Rises()
    for (method, share), make in variants(decoder, input_norms(decoder, text), whole).items():
        found.setdefault(method, {})[share] = window_nats(make(), windows) - base
    return found


@cache
def real_rises(scale: Scale) -> Rises:
    """Of SmolLM2 (FP32, dequantized from Q4_1), each (windows,)."""
    return rises(smollm2.decoder(), calibration_windows(*scale.calibration), unseen_windows(*scale.texts), scale.whole)


@cache
def small_rises(scale: Scale) -> Rises:
    """Of the small decoders trained here, each (seeds,), and with half the neurons gone and training since."""
    windows, text = trained.held_out_windows(scale.windows), trained.corpus()[0][:1024].view(4, -1)
    found = Rises()
    for seed in scale.seeds:
        for method, each in rises(trained.decoder("small", seed), text, windows, False).items():
            for share, rise in each.items():
                have = found.setdefault(method, {}).get(share, rise[:0])
                found[method][share] = torch.cat((have, rise.mean()[None]))
        gone = max(found["FFN neurons"])
        after = window_nats(recovered(seed), windows) - window_nats(trained.continued(seed), windows)
        have = found.setdefault("FFN neurons, trained on", {}).get(gone, after[:0])
        found["FFN neurons, trained on"][gone] = torch.cat((have, after.mean()[None]))
    return found


def halved(seed: int) -> Decoder:
    """The small decoder of that seed without half its FFN neurons."""
    whole, text = trained.decoder("small", seed), trained.corpus()[0][:1024].view(4, -1)
    return without_neurons(whole, neuron_scores(whole, input_norms(whole, text)), HALF)


def recovered(seed: int) -> Decoder:
    """The same trained on as far, and on the same text, as `trained.continued` trains the whole decoder."""
    geometry = replace(trained.GEOMETRIES["small"], ffn=trained.GEOMETRIES["small"].ffn // 2)
    how = "".join(inspect.getsource(part) for part in (halved, without_neurons, neuron_scores, input_norms))
    return trained.further(f"small-{seed}-halved", geometry, seed, partial(halved, seed), how=how)


def prepare() -> None:
    """The trainings that the page evaluates; returns at once where they are done."""
    for seed in trained.SEEDS:
        recovered(seed)


def rise_values(real: Rises, small: Rises) -> dict[str, float]:
    """What the page states of losses, nats a token: means over windows or seeds, and differences with their errors."""
    most = max(real["FFN neurons"])
    one = {
        "magnitude50": real["magnitude"][HALF],
        "wanda50": real["Wanda"][HALF],
        "any50": real["any weight"][HALF],
        "two_four": real["two of four, Wanda"][HALF],
        "neurons50": real["FFN neurons"][most],
        "wanda_gain": real["magnitude"][HALF] - real["Wanda"][HALF],
        "choice_gain": real["any weight"][HALF] - real["magnitude"][HALF],
        "pattern_cost": real["two of four, Wanda"][HALF] - real["Wanda"][HALF],
        "structure_cost": real["FFN neurons"][most] - real["Wanda"][HALF],
        "score_gain": real["magnitude"][HALF] - real["two of four, Wanda"][HALF],
        "neuron_gain": real["any neurons"][most] - real["FFN neurons"][most],
    }
    most, finished = max(small["FFN neurons"]), "FFN neurons, trained on"
    one |= {
        "small_magnitude50": small["magnitude"][HALF],
        "small_wanda50": small["Wanda"][HALF],
        "small_two_four": small["two of four, Wanda"][HALF],
        "small_neurons50": small["FFN neurons"][most],
        "small_recovered": small[finished][most],
        "small_recovery": small["FFN neurons"][most] - small[finished][most],
    }
    values = {f"{name}_nats": float(each.mean()) for name, each in one.items()}
    shown = ("wanda_gain", "pattern_cost", "structure_cost", "score_gain", "small_recovery", "small_recovered")
    return values | {f"{name}_error_nats": standard_error(one[name]) for name in shown}


def standard_error(each: Tensor) -> float:
    """Of the mean; zero where there is one."""
    return float(each.std() / len(each) ** 0.5) if len(each) > 1 else 0.0


def rise_columns(found: Rises) -> dict[str, list]:
    """One row a method and share: mean rise and its standard error."""
    rows = [(m, share, float(e.mean()), standard_error(e)) for m, each in found.items() for share, e in each.items()]
    names = ("method", "removed_share", "rise_nats", "error_nats")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


# --8<-- [start:amdahl]
def read_count(geometry: Geometry) -> int:
    """Weights that a step of decoding reads: all layers' matrices and the head; of the embedding only a row."""
    return parameters(geometry).linear + geometry.vocabulary * geometry.hidden


def amdahl_values() -> dict[str, int]:
    """Weights read a step, and how many of them half the FFN neurons are."""
    found: dict[str, int] = {}
    for name, geometry in (("llama", LLAMA_3_8B), ("smol", SMOLLM2_135M)):
        read, removed = read_count(geometry), ffn_count(geometry) // 2
        found |= {f"{name}_read_count": read, f"{name}_removed_count": removed, f"{name}_left_count": read - removed}
    return found


# --8<-- [end:amdahl]


def step_values(scale: Scale, device: torch.device, *, shrink: bool = True) -> dict[str, float]:
    """One step of SmolLM2 in BF16 whole, with half its FFN neurons zero, and without them; and that both are equal."""
    whole = smollm2.decoder(torch.float32, device)
    scores = neuron_scores(whole, input_norms(whole, calibration_windows(*scale.calibration).to(device)))
    text = unseen_windows(1, 64).to(device)
    zeros, removed = (without_neurons(whole, scores, HALF, shrink=each) for each in (False, True))
    other = removed if shrink else without_neurons(whole, random_scores(whole), HALF)
    with torch.inference_mode():
        wanted = zeros(text).double()
        far = float((other(text) - wanted).norm() / wanted.norm())
    taken = decode_times({"whole": whole, "zeros": zeros, "removed": removed if shrink else zeros}, scale, device)
    return {
        "equal_difference": far,
        "step_zeros_ratio": taken.ratio("whole", "zeros"),
        "step_removed_ratio": taken.ratio("zeros", "removed"),
    }


def decode_times(decoders: Mapping[str, Decoder], scale: Scale, device: torch.device) -> clock.Interleaved:
    """A step of one sequence behind `context` tokens, BF16, decoders in turn."""
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def step(decoder: Decoder, held: KVCache) -> None:
        held.length = scale.context
        with torch.inference_mode():
            decoder(token, held, last_only=True)

    calls = {}
    for name, decoder in decoders.items():
        short = from_state(decoder.geometry, decoder.state_dict(), torch.bfloat16, device)
        calls[name] = partial(step, short, KVCache(short.geometry, 1, scale.context + 1, torch.bfloat16, device))
    return clock.interleave(calls, device=device, rounds=scale.rounds)


# --8<-- [start:prediction]
def predicted(way: str, rows: int) -> float:
    """Least seconds of that layer on an H100: weights read once, BF16, CSR without tensor cores."""
    weights, ends = LLAMA_3_8B.ffn * LLAMA_3_8B.hidden, 2 * rows * (LLAMA_3_8B.ffn + LLAMA_3_8B.hidden)
    stored, share, units = {
        "dense": (2 * weights, 1, "bfloat16"),
        "rows removed": (weights, 1 / 2, "bfloat16"),
        "two of four": (2 * weights * 9 / 16, 1 / 2, "bfloat16"),  # half the products, at the dense rate
        "CSR": (weights * 0.1 * (2 + INDEX_BYTES), 0.1, "float32"),
    }[way]
    peak = gpu_peak("H100 SXM", units)
    assert peak is not None
    return predict_seconds(flops=2 * weights * share * rows, bytes=stored + ends, peak=peak)


# --8<-- [end:prediction]

PREDICTED = {"rows removed": "removed", "two of four": "two_four", "CSR": "csr90"}


def prediction_columns() -> dict[str, list]:
    """By rows: dense seconds on an H100, and how many times as fast each way is predicted to be."""
    rows = (1, 64, 512, MANY_H100)
    found: dict[str, list] = {"rows_count": list(rows), "dense_seconds": [predicted("dense", n) for n in rows]}
    for way, name in PREDICTED.items():
        found[f"{name}_ratio"] = [predicted("dense", n) / predicted(way, n) for n in rows]
    return found


def prediction_values(way: str = "") -> dict[str, float]:
    """Predicted speeds of two of four at one row and at many, and CSR's slowness there; `way` replaces each."""
    return {
        "h100_one_ratio": predicted("dense", 1) / predicted(way or "two of four", 1),
        "h100_many_ratio": predicted("dense", MANY_H100) / predicted(way or "two of four", MANY_H100),
        "h100_csr_slower_ratio": predicted(way or "CSR", MANY_H100) / predicted("dense", MANY_H100),
        "h100_launch_seconds": LAUNCH_SECONDS,
        "h100_rows_count": MANY_H100,
    }


def share_values() -> dict[str, float]:
    """The shares of weights gone that the page speaks of."""
    ffn = ffn_count(SMOLLM2_135M) / parameters(SMOLLM2_135M).linear
    return {"half_share": HALF, "mostly_share": MOSTLY, "neurons_share": HALF * ffn}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page."""
    scale, where = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    made = ways(scale, where)
    return {
        **byte_values(Scale()),
        **share_values(),
        "many_count": scale.many,
        **speed_values(times(made, scale, where), made),
        **rise_values(real_rises(scale), small_rises(scale)),
        **amdahl_values(),
        **step_values(scale, where),
        **prediction_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Nothing removed from storage: zeros stored dense in place of every other way; any weight in place of a choice."""
    scale, where = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    made = ways(scale, where)
    zeros = made["dense with zeros", "BF16", HALF]
    # Each way reads memory of its own, as in the measurement: one tensor for all would stay in the cache between turns.
    dense = {key: zeros.clone() if key[2] else weight for key, weight in made.items()}
    plain = []
    for found in (real_rises(scale), small_rises(scale)):
        plain.append({method: dict.fromkeys(each, found["any weight"][HALF]) for method, each in found.items()})
    return {
        **speed_values(times(dense, scale, where), dense),
        **rise_values(*plain),
        **step_values(scale, where, shrink=False),
        **prediction_values("dense"),
    }


if __name__ == "__main__":
    from measured.values import report

    report("throughput/pruning", measure())
