"""Why is temperature zero not deterministic?

Claim: the same call gives the same bits, again and again. Another shape of the same work (a batch, a chunk, a number
of threads) may sum in another order and give others; where two candidates lie closer than that, the choice flips.

Run: python -m snippets.throughput.determinism
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import capabilities, pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, KVCache

# isort: split
from measured.values import report

DTYPES = {"BF16": torch.bfloat16, "FP32": torch.float32}


@dataclass(frozen=True)
class Scale:
    """How much is measured: a layer's rows and width, batches, prompts of the model, tokens written, rounds."""

    rows: int = 64
    columns: int = 4096
    outputs: int = 4096
    batches: Sequence[int] = (1, 2, 3, 4, 8, 16, 32, 63)
    repeats: int = 10
    prompts: int = 16
    bf16_every: int = 2  # of the prompts, those that are run alone as well
    fp32_every: int = 4
    prompt_tokens: int = 24
    new_tokens: int = 24
    whole_tokens: int = 24
    rounds: int = 9


SMALL = Scale(16, 256, 512, (1, 3, 8), 3, 4, 2, 2, 8, 4, 12, 3)


# --8<-- [start:sums]
def sum_values() -> dict[str, int]:
    """The same three numbers added in two orders: the large one first, or the small ones first."""
    found = {}
    for name, dtype, large in (("fp32", torch.float32, 2**24), ("bf16", torch.bfloat16, 2**8)):
        big, one = torch.tensor(large, dtype=dtype), torch.tensor(1, dtype=dtype)
        found[f"{name}_large_first_count"] = int((big + one) + one)
        found[f"{name}_small_first_count"] = int(big + (one + one))
    return found


# --8<-- [end:sums]


def shape_values(scale: Scale) -> dict[str, int]:
    """What the page states of the layer and of the texts."""
    return {"columns_count": scale.columns, "layer_rows_count": scale.rows, "new_tokens": scale.new_tokens}


def layer(scale: Scale, dtype: torch.dtype, device: torch.device, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, as many others, weight) of a random linear layer: bits and speed, no quality."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((scale.rows, scale.columns), (scale.rows, scale.columns), (scale.outputs, scale.columns))
    x, others, weight = (torch.randn(*shape, generator=generator).to(device, dtype) for shape in shapes)
    return x, others, weight * scale.columns**-0.5


# --8<-- [start:bound]
def rounding_bound(x: Tensor, weight: Tensor) -> Tensor:
    """Most that a product with FP32 sums may differ between two orders, (rows, outputs), FP64.

    Either sum is off by at most its terms times the unit roundoff times the sum of the terms' magnitudes (Higham,
    Accuracy and Stability of Numerical Algorithms); a BF16 result is rounded once more.
    """
    terms = x.double().abs() @ weight.double().abs().T
    bound = 2 * x.shape[1] * 2**-24 * terms
    if x.dtype == torch.float32:
        return bound
    return bound * (1 + 2**-8) + 2 * 2**-8 * (x.double() @ weight.double().T).abs()


# --8<-- [end:bound]


# --8<-- [start:rows]
def batch_columns(scale: Scale, device: torch.device) -> dict[str, list]:
    """The first row of a layer in batches of many sizes, against that row in the full batch."""
    found: dict[str, list] = {"batch_count": [], "differing_share": [], "largest_difference": [], "format": []}
    for name, dtype in DTYPES.items():
        x, _, weight = layer(scale, dtype, device)
        full = F.linear(x, weight)[0]
        for batch in scale.batches:
            row = F.linear(x[:batch], weight)[0]
            found["batch_count"].append(batch)
            found["differing_share"].append(float((row != full).double().mean()))
            found["largest_difference"].append(float((row.double() - full.double()).abs().max()))
            found["format"].append(name)
    return found


# --8<-- [end:rows]


def row_values(columns: Mapping[str, list]) -> dict[str, float]:
    """The lone row's share of numbers that differ, by format."""
    found = zip(columns["format"], columns["batch_count"], columns["differing_share"], strict=True)
    return {f"{name.lower()}_alone_differing_share": share for name, batch, share in found if batch == 1}


def layer_values(scale: Scale, device: torch.device, row: int = 0) -> dict[str, float]:
    """A lone row against a row of the batch (the same one, or another): share of numbers, part of the bound."""
    found = {}
    for name, dtype in DTYPES.items():
        x, _, weight = layer(scale, dtype, device)
        alone, batched = F.linear(x[:1], weight)[0], F.linear(x, weight)[row]
        apart = (alone.double() - batched.double()).abs() / rounding_bound(x[:1], weight)[0]
        found[f"{name.lower()}_bound_ratio"] = float(apart.max())
    return found


@contextmanager
def deterministic(seed: int = 0) -> Iterator[None]:
    """A seed, and PyTorch's switch for deterministic algorithms."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def equal_values(scale: Scale, device: torch.device) -> dict[str, int]:
    """How often bits are the same: again, after a seed and the switch, beside other companions, row by row."""
    counts = dict.fromkeys(("repeats", "settings", "companions", "rows"), 0)
    equal = dict(counts)
    for dtype in DTYPES.values():
        x, others, weight = layer(scale, dtype, device)
        for batch in (1, scale.rows):
            first = F.linear(x[:batch], weight)
            again = [torch.equal(first, F.linear(x[:batch], weight)) for _ in range(scale.repeats)]
            with deterministic():
                switched = torch.equal(first, F.linear(x[:batch], weight))
            for name, outcomes in (("repeats", again), ("settings", [switched])):
                counts[name] += len(outcomes)
                equal[name] += sum(outcomes)
        one_by_one, together = row_by_row(x, weight), F.linear(x, weight)
        for row in range(0, scale.rows, max(1, scale.rows // 8)):
            beside = others.clone()
            beside[row] = x[row]
            alone = F.linear(x[row : row + 1], weight)[0]
            counts["companions"] += 1
            equal["companions"] += torch.equal(F.linear(beside, weight)[row], together[row])
            counts["rows"] += 1
            equal["rows"] += torch.equal(one_by_one[row], alone)
    return {f"{name}_count": n for name, n in counts.items()} | {f"{name}_equal_count": n for name, n in equal.items()}


# --8<-- [start:fixes]
def row_by_row(x: Tensor, weight: Tensor) -> Tensor:
    """Batch-invariant: every row is a product of one row, whatever the batch."""
    return torch.cat([F.linear(row, weight) for row in x.split(1)])


def padded(x: Tensor, weight: Tensor, size: int) -> Tensor:
    """One shape for all batches: filled up with zeros, so a row in its place meets the same kernel."""
    return F.linear(F.pad(x, (0, 0, 0, size - len(x))), weight)[: len(x)]


# --8<-- [end:fixes]


def fast_dtype(device: torch.device) -> torch.dtype:
    """BF16 where the device multiplies it with instructions of its own, else FP32."""
    return torch.bfloat16 if "fast-bf16" in capabilities(device) else torch.float32


def price_values(
    scale: Scale, device: torch.device, rows: Callable[[Tensor, Tensor], Tensor] = row_by_row
) -> tuple[dict[str, float], dict[str, float]]:
    """(what row by row costs a full batch; what padding to the full batch costs a lone row)."""
    clock.fix_allocator()
    x, _, weight = layer(scale, fast_dtype(device), device)
    calls: dict[str, Callable[[], object]] = {
        "batch": lambda: F.linear(x, weight),
        "rows": lambda: rows(x, weight),
        "alone": lambda: F.linear(x[:1], weight),
        "padded": lambda: padded(x[:1], weight, len(x)),
    }
    with torch.inference_mode():
        taken = clock.interleave(calls, device=device, rounds=scale.rounds, blocks=max(1, scale.rounds // 3))
    return {"rows_price_ratio": taken.ratio("rows", "batch")}, {"padded_price_ratio": taken.ratio("padded", "alone")}


def predicted_values(rows: int = 64, columns: int = 4096) -> dict[str, float]:
    """Row by row against the batch on an H100, from declared peaks: as many reads of the weight."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    weight = columns * columns
    one = predict_seconds(flops=2 * weight, bytes=2 * weight, peak=peak)
    many = predict_seconds(flops=2 * rows * weight, bytes=2 * weight, peak=peak)
    return {"h100_rows_price_ratio": rows * one / many}


def pieces(scale: Scale, start: int = 0) -> Tensor:
    """Different pieces of one real text, (prompts, tokens)."""
    ids, size = smollm2.encode(texts.address())[0], scale.prompts * scale.prompt_tokens
    return ids[start * size : (start + 1) * size].view(scale.prompts, scale.prompt_tokens)


# --8<-- [start:spread]
@torch.inference_mode()
def step_outputs(decoder: Decoder, ids: Tensor, rows: int) -> list[Tensor]:
    """The first row after every matrix of a decode step, logits last, in a batch of the first `rows` prompts.

    All prompts are prefilled together and the batch takes its part of that cache: the step's inputs are the same bits.
    """
    weight, tokens = decoder.embed_tokens.weight, ids.shape[1]
    filled, cache = (KVCache(decoder.geometry, n, tokens + 1, weight.dtype, weight.device) for n in (len(ids), rows))
    fresh = decoder(ids, filled, last_only=True)[:, -1].argmax(-1, keepdim=True)
    cache.keys.copy_(filled.keys[:, :rows])
    cache.values.copy_(filled.values[:, :rows])
    cache.length, seen = tokens, []
    matrices = [module for module in decoder.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [m.register_forward_hook(lambda _m, _given, out: seen.append(out[0, -1].clone())) for m in matrices]
    try:
        decoder(fresh[:rows], cache, last_only=True)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


# --8<-- [end:spread]


def spread_values(name: str, alone: Sequence[Tensor], batched: Sequence[Tensor]) -> dict[str, float]:
    """How many matrices give equal bits until one does not, how many of its numbers differ, and of the logits."""
    apart = [int((one != other).sum()) for one, other in zip(alone, batched, strict=True)]
    first = next((place for place, count in enumerate(apart) if count), len(apart))
    return {
        f"{name}_matrices_count": len(apart),
        f"{name}_equal_matrices_count": first,
        f"{name}_first_numbers_count": apart[first] if first < len(apart) else 0,
        f"{name}_step_differing_share": apart[-1] / alone[-1].numel(),
    }


# --8<-- [start:whole]
@torch.inference_mode()
def in_chunks(decoder: Decoder, ids: Tensor, size: int) -> Tensor:
    """Logits of a prompt fed in chunks through a cache: of one token each, it is decode."""
    weight = decoder.embed_tokens.weight
    cache = KVCache(decoder.geometry, len(ids), ids.shape[1], weight.dtype, weight.device)
    return torch.cat([decoder(part, cache) for part in ids.split(size, dim=1)], dim=1)


@torch.inference_mode()
def whole_columns(scale: Scale, decoders: Mapping[str, Decoder]) -> dict[str, list]:
    """One prompt computed in many ways, two at a time: what differs, by how much, and how many choices."""
    rows: dict[str, list] = {}
    for name, decoder in decoders.items():
        device = decoder.embed_tokens.weight.device
        ids = smollm2.encode(texts.address(), device)[0, : 9 * scale.whole_tokens].view(9, -1)
        alone, eight = decoder(ids[:1])[0], decoder(ids[:8])
        lone_step, batch_step = (step_outputs(decoder, ids[:8], n) for n in (1, 8))
        threads = torch.get_num_threads()
        torch.set_num_threads(2 if threads == 1 else 1)
        rethreaded = decoder(ids[:1])[0]
        torch.set_num_threads(threads)
        with deterministic():
            seeded = decoder(ids[:1])[0]
        pairs = {
            "the same call again": (alone, decoder(ids[:1])[0]),
            "after a seed and the switch": (alone, seeded),
            "other companions, same shape": (eight[0], decoder(torch.cat((ids[:1], ids[2:])))[0]),
            "another place in the batch": (eight[0], decoder(ids[:8].flip(0))[-1]),
            "prompt alone, in a batch": (alone, eight[0]),
            "next token alone, in a batch": (lone_step[-1][None], batch_step[-1][None]),
            "prompt at once, in chunks": (alone, in_chunks(decoder, ids[:1], scale.whole_tokens // 3)[0]),
            "prompt at once, token by token": (alone, in_chunks(decoder, ids[:1], 1)[0]),
            "another number of threads": (alone, rethreaded),
        }
        rows["pair"] = list(pairs)
        found = [(one.double(), other.double()) for one, other in pairs.values()]
        rows[f"{name.lower()}_differing_share"] = [float((a != b).double().mean()) for a, b in found]
        rows[f"{name.lower()}_largest_difference"] = [float((a - b).abs().max()) for a, b in found]
        rows[f"{name.lower()}_flips_count"] = [int((a.argmax(-1) != b.argmax(-1)).sum()) for a, b in found]
    return rows


# --8<-- [end:whole]


# --8<-- [start:greedy]
class Written(NamedTuple):
    """What some rows of a batch wrote greedily: tokens (rows, steps) and the logits they were chosen from."""

    tokens: Tensor
    logits: Tensor  # (rows, steps, vocabulary)


@torch.inference_mode()
def write(decoder: Decoder, ids: Tensor, steps: int, every: int = 1) -> Written:
    """Greedy continuation of prompts (batch, tokens), always the largest logit; every so many rows are kept."""
    weight = decoder.embed_tokens.weight
    cache = KVCache(decoder.geometry, len(ids), ids.shape[1] + steps, weight.dtype, weight.device)
    fresh, kept = ids.to(weight.device), []
    for _ in range(steps):
        logits = decoder(fresh, cache, last_only=True)[:, -1]
        fresh = logits.argmax(-1, keepdim=True)
        kept.append((fresh[::every, 0], logits[::every]))
    tokens, logits = zip(*kept, strict=True)
    return Written(torch.stack(tokens, 1), torch.stack(logits, 1))


# --8<-- [end:greedy]


class Steps(NamedTuple):
    """Every step at which two runs had the same tokens before them, flat: gap of the best two, change, flipped."""

    row: Tensor
    step: Tensor
    margin: Tensor  # of the first run's two largest logits
    change: Tensor  # largest of any logit between the runs
    flipped: Tensor  # whether the runs chose differently


def comparable(one: Written, other: Written) -> Steps:
    """The steps up to and with the first flip of each row; behind it the runs read different texts."""
    flipped = one.tokens != other.tokens
    same_before = (flipped.cumsum(1) - flipped.long()) == 0
    row, step = same_before.nonzero(as_tuple=True)
    a, b = one.logits[row, step].double(), other.logits[row, step].double()
    best = a.topk(2).values
    return Steps(row, step, best[:, 0] - best[:, 1], (a - b).abs().amax(-1), flipped[row, step])


def flip_columns(name: str, one: Written, other: Written) -> dict[str, list]:
    """A table's columns: for each sequence how long both runs agree, and the gap and the change at the flip.

    A sequence that never flips shows the step with its smallest gap.
    """
    found = comparable(one, other)
    rows: dict[str, list] = {}
    for row in range(len(one.tokens)):
        mine = found.row == row
        last = mine.nonzero()[-1, 0]
        at = last if found.flipped[last] else mine.nonzero()[found.margin[mine].argmin(), 0]
        agreed = int(found.flipped[last].logical_not()) + int(found.step[last])
        behind = one.tokens[row, agreed + 1 :] == other.tokens[row, agreed + 1 :]
        values = {
            "sequence": f"{name} {'ABCDEFGHIJKLMNOP'[row]}",
            "agreed_tokens": agreed,
            "margin_difference": float(found.margin[at]),
            "change_difference": float(found.change[at]),
            "behind_share": float(behind.double().mean()) if len(behind) else 1.0,
        }
        for key, value in values.items():
            rows.setdefault(key, []).append(value)
    return rows


# --8<-- [start:law]
def law_values(found: Mapping[str, Steps], kept: bool = False) -> dict[str, float]:
    """The widest gap at any flip, over how far the logits moved there; with `kept`, at the choices that held."""
    ratios = [steps.margin / steps.change.clamp(min=1e-6) for steps in found.values()]
    flipped = [ratio[steps.flipped != kept] for ratio, steps in zip(ratios, found.values(), strict=True)]
    return {"flip_margin_ratio": float(torch.cat(flipped).max()) if torch.cat(flipped).numel() else 0.0}


# --8<-- [end:law]


def shown_values(found: Mapping[str, Steps], alone: Mapping[str, Written]) -> dict[str, float]:
    """What this device showed of each format: sequences that parted, steps compared, largest change, exact ties."""
    values: dict[str, float] = {}
    for name, steps in found.items():
        key = name.lower()
        values |= {
            f"{key}_parted_count": int(steps.flipped.sum()),
            f"{key}_sequences_count": len(alone[name].tokens),
            f"{key}_compared_tokens": len(steps.margin),
            f"{key}_change_difference": float(steps.change.max()),
            f"{key}_ties_count": int((steps.margin == 0).sum()),
            f"{key}_untouched_tokens": int((steps.change == 0).sum()),
        }
    return values


def margin_columns(found: Mapping[str, Steps]) -> dict[str, list]:
    """A chart's columns: the share of choices whose best two lie closer than so much."""
    gaps = [2.0**power for power in range(-12, 4)]
    return {
        "margin_difference": gaps * len(found),
        "closer_share": [float((steps.margin < gap).double().mean()) for steps in found.values() for gap in gaps],
        "format": [name for name in found for _ in gaps],
    }


def fixed_values(together: Mapping[str, Written], beside: Mapping[str, Written]) -> dict[str, int]:
    """Sequences that other companions in a batch of the same size leave as they were, to the last bit of any logit."""
    pairs = [(together[name], beside[name]) for name in together]
    return {
        "fixed_count": sum(len(one.tokens) for one, _ in pairs),
        "fixed_equal_count": sum(
            torch.equal(a, b) for one, other in pairs for a, b in zip(one.logits, other.logits, strict=True)
        ),
    }


Runs = tuple[dict[str, Written], dict[str, Written], dict[str, Written]]


def runs(scale: Scale, decoders: Mapping[str, Decoder]) -> Runs:
    """By format: prompts written alone, in one batch, and in that batch beside other companions."""
    ids, alone, together, others = pieces(scale), {}, {}, {}
    for name, decoder in decoders.items():
        every = scale.bf16_every if name == "BF16" else scale.fp32_every
        lone = [write(decoder, row[None], scale.new_tokens) for row in ids[::every]]
        alone[name] = Written(torch.cat([one.tokens for one in lone]), torch.cat([one.logits for one in lone]))
        together[name] = write(decoder, ids, scale.new_tokens, every)
        beside = pieces(scale, 1)
        beside[::every] = ids[::every]
        others[name] = write(decoder, beside, scale.new_tokens, every)
    return alone, together, others


def decoders(device: torch.device) -> dict[str, Decoder]:
    """SmolLM2 in both formats."""
    return {name: smollm2.decoder(dtype, device) for name, dtype in DTYPES.items()}


def spreads(scale: Scale, models: Mapping[str, Decoder]) -> dict[str, float]:
    """Where a decode step alone and in the batch of prompts first differ, in both formats."""
    found: dict[str, float] = {}
    for name, decoder in models.items():
        ids = pieces(scale).to(decoder.embed_tokens.weight.device)
        found |= spread_values(name.lower(), step_outputs(decoder, ids, 1), step_outputs(decoder, ids, len(ids)))
    return found


def _measured(scale: Scale, device: torch.device, invariant: bool) -> dict[str, float]:
    models = decoders(device)
    alone, together, others = runs(scale, models)
    found = {name: comparable(alone[name], together[name]) for name in alone}
    gated, shown = price_values(scale, device, row_by_row if invariant else F.linear)
    return {
        **sum_values(),
        **layer_values(scale, device, 0 if invariant else scale.rows - 1),
        **row_values(batch_columns(scale, device)),
        **equal_values(scale, device),
        **law_values(found, kept=not invariant),
        **shown_values(found, alone),
        **fixed_values(together, others),
        **spreads(scale, models),
        **gated,
        **shown,
        **shape_values(scale),
        **predicted_values(64 if invariant else 1),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page, in both formats; `small` has a narrower layer and shorter texts."""
    return _measured(SMALL if small else Scale(), pick(device), invariant=True)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Another row in place of the same one, choices that held in place of flips, the plain batch in place of rows."""
    return _measured(SMALL if small else Scale(), pick(device), invariant=False)


if __name__ == "__main__":
    report("throughput/determinism", measure())
