"""Can a model exit early?

Claim: an answer read before the last layer is often another answer, and a rule that lets sure tokens leave early keeps
more of them than the same depths dealt at random. But the rule asks the head, which is as large as many layers; tokens
that left lack keys and values for those that stay; a batch is as deep as its deepest row. As a draft, an exit is exact.

Run: python -m snippets.throughput.early_exit
Cost: `measured list` shows the seconds of each recording; `measured prepare` fits the exits before.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import smollm2
from snippets.models.decoder import Decoder, KVCache, generate, rotation
from snippets.models.files import cache_folder
from snippets.models.language_loss import calibration_windows, paired_difference, unseen_windows
from snippets.models.shapes import GEMMA_7B, LLAMA_2_7B, LLAMA_3_8B, LLAMA_3_70B, SMOLLM2_135M, Geometry, parameters
from snippets.models.similarity import spearman

LAYERS = SMOLLM2_135M.layers
EXITS = (4, 8, 12, 16, 20, 24, 28)  # layers after which somebody may look
EARLY, LATE = EXITS[0], 24  # the exit that drafts and that a guess may take; the one that losses are told of
LIMIT = 0.7  # of both rules
LIMITS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
OUT = (2, 6, 10)  # middle layers left out
RIDGE, TRUST_RIDGE = 0.01, 0.3  # of the mean variance
BF16_BYTES = 2
Left = dict[int, tuple[Tensor, Tensor]]
"""By middle layers left out: choices and losses, (windows, positions) each."""


@dataclass(frozen=True)
class Scale:
    """How much is measured: windows of text and their tokens, tokens drafted and timed, rounds."""

    windows: int = 8
    tokens: int = 81  # the last is predicted only
    repeated: int = 4  # windows of half that length, each read again at once
    prompts: int = 2
    written: int = 24
    rounds: int = 9
    timed_rounds: int = 3  # where a round takes seconds


SMALL = Scale(4, 33, 2, 1, 6, 7, 2)


# --8<-- [start:exit]
@dataclass(frozen=True)
class Exit:
    """How the head reads a state before the end: an affine map of the normed state, and a linear guess at its worth."""

    matrix: Tensor  # (hidden, hidden)
    bias: Tensor  # (hidden,)
    trust: Tensor  # (hidden + 1,): predicts whether the whole model would choose the same token

    def logits(self, decoder: Decoder, x: Tensor) -> Tensor:
        return decoder.lm_head(normed(x) @ self.matrix + self.bias)

    def worth(self, x: Tensor) -> Tensor:
        return normed(x) @ self.trust[:-1] + self.trust[-1]


def normed(x: Tensor) -> Tensor:
    """RMSNorm without its weights, over the last dimension."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-5)


def own(decoder: Decoder) -> Exit:
    """The model's own final norm and head: a diagonal map, and nothing to trust."""
    hidden, weight = decoder.geometry.hidden, decoder.norm.weight
    return Exit(torch.diag(weight), torch.zeros_like(weight), weight.new_zeros(hidden + 1))


def least_squares(x: Tensor, y: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """Ridge regression of y (tokens, out) on x (tokens, in) in FP64: a matrix (in, out) and a bias (out,)."""
    x, y = x.double(), y.double()
    means = x.mean(0), y.mean(0)
    moment = (x - means[0]).T @ (x - means[0])
    moment += ridge * moment.diagonal().mean() * torch.eye(len(moment), dtype=x.dtype, device=x.device)
    matrix = torch.linalg.solve(moment, (x - means[0]).T @ (y - means[1]))
    return matrix.float().contiguous(), (means[1] - means[0] @ matrix).float()


# --8<-- [end:exit]


@torch.inference_mode()
def states(decoder: Decoder, ids: Tensor, stops: Sequence[int]) -> Tensor:
    """What the layers numbered `stops` (from one) hand on: (stops, windows, tokens, hidden)."""
    x = decoder.embed_tokens(ids)
    cos, sin = rotation(decoder.geometry, 0, ids.shape[1], x)
    kept = []
    for layer, block in enumerate(decoder.layers, 1):
        x = block(x, cos, sin)
        kept += [x] * (layer in stops)
    return torch.stack(kept)


@torch.inference_mode()
def fit(decoder: Decoder, ids: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Maps from each exit's states to what the head reads at the end, on `ids`; their worth, on `other` text."""
    stops = (*EXITS, decoder.geometry.layers)
    seen = torch.cat([states(decoder, window[None], stops)[:, 0] for window in ids], 1)  # (stops, tokens, hidden)
    again = torch.cat([states(decoder, window[None], stops)[:, 0] for window in other], 1)
    wanted = own(decoder).logits(decoder, again[-1]).argmax(-1)
    fitted: dict[str, Tensor] = {}
    for place, layer in enumerate(EXITS):
        matrix, bias = least_squares(normed(seen[place]), decoder.norm(seen[-1]), RIDGE)
        right = decoder.lm_head(normed(again[place]) @ matrix + bias).argmax(-1) == wanted
        slope, offset = least_squares(normed(again[place]), right[:, None], TRUST_RIDGE)
        fitted |= {f"{layer}.matrix": matrix, f"{layer}.bias": bias, f"{layer}.trust": torch.cat((slope[:, 0], offset))}
    return fitted


@functools.cache
def exits(device: str = "cpu") -> dict[int, Exit]:
    """Fitted exits by layer, from the cache folder; made by the first who asks."""
    decoder = model(device)
    code = "".join(inspect.getsource(part) for part in (least_squares, fit, states, normed))
    digest = hashlib.sha256(f"{code} {EXITS} {RIDGE} {TRUST_RIDGE} {torch.__version__}".encode())
    digest.update(
        decoder.get_parameter(f"layers.{LAYERS - 1}.mlp.down_proj.weight").cpu().numpy().data
    )  # another model, other exits
    path = cache_folder() / "early_exit" / f"exits-{digest.hexdigest()[:12]}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            text = [calibration_windows(count, 1024, year).to(device) for count, year in ((4, 2024), (1, 2023))]
            with tempfile.TemporaryDirectory(dir=path.parent, suffix=".tmp") as scratch:
                save_file({n: t.cpu() for n, t in fit(decoder, *text).items()}, fresh := Path(scratch) / path.name)
                os.replace(fresh, path)
    kept = {name: tensor.clone().to(device) for name, tensor in load_file(path).items()}
    return {layer: Exit(*(kept[f"{layer}.{part}"] for part in ("matrix", "bias", "trust"))) for layer in EXITS}


def prepare() -> None:
    """Fit the exits; returns at once where that is done."""
    exits()


@functools.cache
def model(device: str = "cpu") -> Decoder:
    """SmolLM2, once a process."""
    return smollm2.decoder(torch.float32, device)


@dataclass(frozen=True)
class Reading:
    """What stands at every exit and, last, at the end: (exits and the end, windows, positions) each."""

    choice: Tensor  # likeliest token
    sure: Tensor  # its probability
    nats: Tensor  # loss on the token that follows
    worth: Tensor  # guess at agreement; at the end one
    entropy: Tensor  # (windows, positions) of the whole model's prediction

    @property
    def agreed(self) -> Tensor:
        return (self.choice == self.choice[-1]).double()


@torch.inference_mode()
def read(decoder: Decoder, ids: Tensor, heads: Sequence[Exit]) -> Reading:
    """Every exit's reading of windows (windows, tokens), all layers run: what lies before is as the model has it."""
    x = states(decoder, ids[:, :-1], (*EXITS, decoder.geometry.layers))
    rows = []
    for state, head in zip(x, (*heads, own(decoder)), strict=True):
        chances = head.logits(decoder, state).log_softmax(-1)
        best = chances.max(-1)
        nats = -chances.gather(-1, ids[:, 1:, None])[..., 0]
        rows.append((best.indices, best.values.exp(), nats.double(), head.worth(state)))
    choice, sure, nats, worth = map(torch.stack, zip(*rows, strict=True))
    return Reading(choice, sure, nats, torch.cat((worth[:-1], torch.ones_like(worth[-1:]))), entropy(chances))


def entropy(chances: Tensor) -> Tensor:
    """Of log-probabilities, in nats, over the last dimension."""
    return -(chances.exp() * chances).sum(-1)


# --8<-- [start:rule]
def first_sure(score: Tensor, limit: float) -> Tensor:
    """Place of the first exit whose score (exits and the end, ...) exceeds the limit, else of the end."""
    leaves = score > limit
    leaves[-1] = True
    return leaves.int().argmax(0)


def ask(reading: Reading, limit: float) -> tuple[Tensor, float]:
    """At every exit, is the likeliest token's chance above the limit? Places, and head products a token."""
    place = first_sure(reading.sure, limit)
    return place, float((place + 1.0).mean())


def guess(reading: Reading, limit: float) -> tuple[Tensor, float]:
    """At the first exit alone, does a linear guess promise agreement? Places, and one head product a token."""
    return first_sure(reading.worth[[0, -1]], limit) * len(EXITS), 1.0


def coin(values: Tensor, layers: float) -> Tensor:
    """The baseline: a coin sends tokens out at the first exit or lets them run, to the same mean layers."""
    runs = (layers - EXITS[0]) / (LAYERS - EXITS[0])
    return runs * values[-1] + (1 - runs) * values[0]


# --8<-- [end:rule]


def taken(values: Tensor, place: Tensor) -> Tensor:
    """Each token's value at the exit that it took."""
    return values.gather(0, place[None])[0]


def depths(place: Tensor) -> Tensor:
    """Layers run, of places of exits."""
    return torch.tensor((*EXITS, LAYERS), dtype=torch.float64, device=place.device)[place]


def price(geometry: Geometry) -> float:
    """Weights of one product with the head over those of one layer's matrices."""
    return geometry.vocabulary * geometry.hidden * geometry.layers / parameters(geometry).linear


def read_share(layers: float, heads: float, priced: float | None = None) -> float:
    """Weights read for a token over those of the whole model, which runs all layers and the head once."""
    each = price(SMOLLM2_135M) if priced is None else priced
    return (layers + each * heads) / (LAYERS + each)


def without_middle(decoder: Decoder, out: int) -> Decoder:
    """The decoder without so many layers of its middle, sharing the rest."""
    short, first = copy.copy(decoder), (decoder.geometry.layers - out) // 2
    kept = nn.ModuleList([*decoder.layers[:first], *decoder.layers[first + out :]])
    short._modules = {**decoder._modules, "layers": kept}
    return short


@torch.inference_mode()
def skipped(decoder: Decoder, ids: Tensor, out: int) -> tuple[Tensor, Tensor]:
    """Choices and losses (windows, positions) without so many middle layers."""
    logits = without_middle(decoder, out)(ids[:, :-1])
    return logits.argmax(-1), F.cross_entropy(logits.mT, ids[:, 1:], reduction="none").double()


def depth_columns(plain: Reading, fitted: Reading, left: Left) -> dict[str, list]:
    """Loss by layers run: read by the model's own head, by a fitted exit, and with middle layers left out."""
    points = [(stop, float(nats.mean()), "own head") for stop, nats in zip((*EXITS, LAYERS), plain.nats, strict=True)]
    points += [(stop, float(nats.mean()), "fitted") for stop, nats in zip((*EXITS, LAYERS), fitted.nats, strict=True)]
    points += [(LAYERS - out, float(nats.mean()), "middle left out") for out, (_, nats) in left.items()]
    return columns(("layers_count", "loss_nats", "way"), points)


def columns(names: Sequence[str], rows: Sequence[tuple]) -> dict[str, list]:
    """Rows as named columns."""
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def loss_values(plain: Reading, fitted: Reading, left: Left) -> dict[str, float]:
    """What the late exit costs by either reading, and what leaving out as many middle layers does; nats a token."""
    place, whole = EXITS.index(LATE), fitted.nats[-1].mean(1)
    found: dict[str, float] = {"windows_count": len(whole), "text_tokens": plain.entropy.numel()}
    found |= {"whole_nats": float(whole.mean()), "late_count": LATE}
    ways = (("own", plain.nats[place]), ("fitted", fitted.nats[place]), ("middle", left[LAYERS - LATE][1]))
    for name, nats in ways:
        found[f"{name}_cost_nats"], found[f"{name}_error_nats"] = paired_difference(nats.mean(1), whole)
    for name, reading in (("own", plain), ("fitted", fitted)):
        found[f"{name}_agreed_share"] = float(reading.agreed[place].mean())
    few = min(left)
    found |= {"few_out_count": few, "few_read_ratio": read_share(LAYERS - few, 1)}
    found["few_cost_nats"] = paired_difference(left[few][1].mean(1), whole)[0]
    return found | {"own_sure_share": float(plain.sure[place].mean())}


def limit_columns(reading: Reading) -> dict[str, list]:
    """Asking the head, over limits: layers, agreement, that of a coin, and weights read."""
    rows = []
    for limit in LIMITS:
        place, heads = ask(reading, limit)
        layers = float(depths(place).mean())
        agreed = float(taken(reading.agreed, place).mean())
        rows.append((limit, layers, agreed, float(coin(reading.agreed, layers).mean()), read_share(layers, heads)))
    return columns(("limit_share", "layers_count", "agreed_share", "coin_share", "read_ratio"), rows)


def trade_columns(reading: Reading, left: Left) -> dict[str, list]:
    """Agreement against weights read: both rules over limits, a coin, a fixed exit, middle layers left out."""
    points = []
    for name, rule in (("ask the head", ask), ("one linear guess", guess)):
        for limit in LIMITS:
            place, heads = rule(reading, limit)
            share = float(taken(reading.agreed, place).mean())
            points.append((read_share(float(depths(place).mean()), heads), share, name))
    fixed = [(read_share(stop, 1), float(reading.agreed[i].mean())) for i, stop in enumerate((*EXITS, LAYERS))]
    points += [(*point, "fixed exit") for point in fixed] + [(*fixed[i], "a coin") for i in (0, -1)]
    for out, (choice, _) in left.items():
        agreed = float((choice == reading.choice[-1]).double().mean())
        points.append((read_share(LAYERS - out, 1), agreed, "middle left out"))
    return columns(("read_ratio", "agreed_share", "way"), points)


def rule_values(reading: Reading, shuffled: bool = False, priced: float | None = None) -> dict[str, float]:
    """What each rule keeps beyond a coin of its mean layers, with errors over windows, and the weights that it reads.

    `shuffled` deals the rule's depths at random, and `priced` puts another price on a check.
    """
    found = {"check_layers_count": price(SMOLLM2_135M) if priced is None else priced, "limit_share": LIMIT}
    for name, rule in (("ask", ask), ("guess", guess)):
        place, heads = rule(reading, LIMIT)
        if shuffled:
            order = torch.randperm(place.numel(), generator=torch.Generator().manual_seed(5)).to(place.device)
            place = place.flatten()[order].view(place.shape)
        layers = float(depths(place).mean())
        agreed, tossed = taken(reading.agreed, place).mean(1), coin(reading.agreed, layers).mean(1)
        nats, tossed_nats = taken(reading.nats, place).mean(1), coin(reading.nats, layers).mean(1)
        (gain, error), (saved, saved_error) = paired_difference(agreed, tossed), paired_difference(tossed_nats, nats)
        found |= {
            f"{name}_layers_count": layers,
            f"{name}_checks_count": heads,
            f"{name}_read_ratio": read_share(layers, heads, priced),
            f"{name}_agreed_share": float(agreed.mean()),
            f"{name}_coin_share": float(tossed.mean()),
            f"{name}_gain_share": gain,
            f"{name}_error_share": error,
            f"{name}_cost_nats": float((nats - reading.nats[-1].mean(1)).mean()),
            f"{name}_saved_nats": saved,
            f"{name}_saved_error_nats": saved_error,
        }
        if rule is ask:
            found["simple_difference"] = float(spearman(depths(place).flatten(), reading.entropy.flatten().double()))
            found["whole_share"] = float((place == len(EXITS)).double().mean())
    return found


def word_values(reading: Reading, ids: Tensor, shuffled: bool = False) -> dict[str, float]:
    """Mean layers by the rule where the token that follows goes on with a word, and where it begins one."""
    tokenizer, depth = smollm2.tokenizer(), depths(ask(reading, LIMIT)[0])
    follows = [[tokenizer.id_to_token(token) or "" for token in window] for window in ids[:, 1:].tolist()]
    begins = torch.tensor([[text.startswith("Ġ") for text in window] for window in follows], device=ids.device)
    if shuffled:
        begins = begins.roll(1, 0)
    return {"begin_layers_count": float(depth[begins].mean()), "within_layers_count": float(depth[~begins].mean())}


def repeat_values(decoder: Decoder, heads: dict[int, Exit], scale: Scale, unseen: bool = False) -> dict[str, float]:
    """A text read again at once: its loss and mean layers the first and the second time, and what that saves.

    With `unseen` another text takes the place of the repetition.
    """
    half = scale.tokens // 2
    first = unseen_windows(2 * scale.repeated, half).to(decoder.norm.weight.device).view(2, scale.repeated, half)
    reading = read(decoder, torch.cat((first[0], first[1 if unseen else 0]), 1), [*heads.values()])
    depth, nats = depths(ask(reading, LIMIT)[0]), reading.nats[-1]
    return {
        "first_nats": float(nats[:, : half - 1].mean()),
        "second_nats": float(nats[:, half:].mean()),
        "first_layers_count": float(depth[:, : half - 1].mean()),
        "second_layers_count": float(depth[:, half:].mean()),
    }


# --8<-- [start:copied]
@torch.inference_mode()
def leave(
    decoder: Decoder, ids: Tensor, heads: dict[int, Exit], guessed: bool = False, copied: bool = True
) -> tuple[Tensor, ...]:
    """Early exit as it is served: a token that left hands its state up unchanged, for keys and values of later layers.

    Layer by layer over all tokens, which yields what one token after another would. `heads` are the exits in use, by
    layer. Returns choices, losses and layers run, (windows, positions) each. Without `copied` layers go on as if
    nobody had left.
    """
    x = decoder.embed_tokens(ids[:, :-1])
    cos, sin = rotation(decoder.geometry, 0, x.shape[1], x)
    stays, depth = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device), torch.zeros(x.shape[:2]).to(x)
    choice, nats = torch.zeros_like(ids[:, 1:]), torch.zeros_like(depth)
    for layer, block in enumerate(decoder.layers, 1):
        depth += stays
        after = block(x, cos, sin)
        x = torch.where(stays[..., None], after, x) if copied else after
        last = layer == decoder.geometry.layers
        if not (last or layer in heads):
            continue
        head = own(decoder) if last else heads[layer]
        logits = head.logits(decoder, x[stays])
        best = logits.softmax(-1).max(-1)
        goes = ((head.worth(x[stays]) if guessed else best.values) > LIMIT) | last
        where = torch.zeros_like(stays).masked_scatter(stays, goes)
        choice[where], nats[where] = (
            best.indices[goes],
            F.cross_entropy(logits[goes], ids[:, 1:][where], reduction="none"),
        )
        stays = stays & ~where
    return choice, nats.double(), depth.double()


# --8<-- [end:copied]


def hole_values(
    decoder: Decoder, ids: Tensor, reading: Reading, heads: dict[int, Exit], copied: bool = True
) -> dict[str, float]:
    """Agreement of either rule once it is served, and what that takes from the agreement on paper."""
    found: dict[str, float] = {}
    for name, rule, used in (("ask", ask, heads), ("guess", guess, {EARLY: heads[EARLY]})):
        choice, nats, _ = leave(decoder, ids, used, guessed=rule is guess, copied=copied)
        paper, same = taken(reading.agreed, rule(reading, LIMIT)[0]), (choice == reading.choice[-1]).double()
        found[f"{name}_lost_share"], found[f"{name}_lost_error_share"] = paired_difference(paper.mean(1), same.mean(1))
        found[f"{name}_served_share"] = float(same.mean())
        found[f"{name}_served_cost_nats"] = float((nats - reading.nats[-1]).mean())
    return found


def batch_columns(reading: Reading, batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> dict[str, list]:
    """Mean layers of the deepest of so many tokens that draw their depths alike, and how often one needs them all."""
    depth = depths(ask(reading, LIMIT)[0]).flatten()
    stops = torch.tensor((0, *EXITS, LAYERS), dtype=depth.dtype, device=depth.device)
    below = torch.stack([(depth <= stop).double().mean() for stop in stops])  # share that has left by then
    deepest = [float((stops[1:] * (below[1:] ** b - below[:-1] ** b)).sum()) for b in batches]
    whole = [float(1 - below[-2] ** b) for b in batches]
    return {"batch_count": list(batches), "deepest_count": deepest, "whole_share": whole}


def batch_values(columns: dict[str, list], batch: int = 4) -> dict[str, float]:
    """One row of that table."""
    row = columns["batch_count"].index(batch)
    return {
        "batch_count": batch,
        "batch_layers_count": columns["deepest_count"][row],
        "batch_whole_share": columns["whole_share"][row],
    }


# As a draft for itself.


@dataclass(frozen=True)
class Draft:
    """New tokens, steps, proposals looked at and accepted."""

    tokens: list[int]
    steps: int
    looked: int
    accepted: int


# --8<-- [start:draft]
@torch.inference_mode()
def draft_itself(
    decoder: Decoder, head: Exit, exit_layer: int, prompt: list[int], new_tokens: int, gamma: int
) -> Draft:
    """Greedy decoding with the first layers as the draft. Checking starts from the states that drafting left behind.

    Both halves share one cache: what drafting wrote into the first layers is what the whole model would have written.
    """
    weight, made, steps, looked, accepted = decoder.norm.weight, list(prompt), 0, 0, 0
    tokens = len(prompt) + new_tokens + gamma
    cache = KVCache(decoder.geometry, 1, tokens, weight.dtype, weight.device)
    first, rest = range(exit_layer), range(exit_layer, decoder.geometry.layers)

    def through(x: Tensor, layers: range) -> Tensor:
        cos, sin = rotation(decoder.geometry, cache.length, x.shape[1], x)
        for layer in layers:
            x = decoder.layers[layer](x, cos, sin, cache, layer)
        return x

    decoder(torch.tensor([prompt[:-1]], device=weight.device), cache, last_only=True)
    while len(made) < len(prompt) + new_tokens:
        start, waiting, proposed = cache.length, [], [made[-1]]
        for _ in range(gamma):
            waiting.append(through(decoder.embed_tokens(torch.tensor([proposed[-1:]], device=weight.device)), first))
            proposed.append(int(head.logits(decoder, waiting[-1])[0, -1].argmax()))
            cache.length += 1
        cache.length = start
        checked = own(decoder).logits(decoder, through(torch.cat(waiting, 1), rest))[0].argmax(-1).tolist()
        right = next((i for i in range(gamma) if checked[i] != proposed[i + 1]), gamma)
        made += checked[: right + 1]  # what was right, and the whole model's token where it was not
        cache.length = len(made) - 1
        steps, looked, accepted = steps + 1, looked + min(right + 1, gamma), accepted + right
    return Draft(made[len(prompt) :], steps, looked, accepted)


# --8<-- [end:draft]


def prompts(count: int = 2, tokens: int = 48) -> list[list[int]]:
    """Openings of windows of the unseen text."""
    return unseen_windows(count, 1024)[:, :tokens].tolist()


def draft_read_ratio(exit_layer: int, gamma: int, tokens_a_step: float, geometry: Geometry, each: float) -> float:
    """Weights read for a token over plain decoding's: so many drafts and one check, nothing computed again."""
    step = gamma * (exit_layer + each) + geometry.layers - exit_layer + each
    return step / (tokens_a_step * (geometry.layers + each))


def draft_values(decoder: Decoder, head: Exit, scale: Scale, each: float | None = None) -> dict[str, float]:
    """Tokens equal to plain greedy decoding's, acceptance, tokens a step, and the weights read for a token."""
    gamma, written, given = 3, scale.written, prompts(scale.prompts)
    runs = [draft_itself(decoder, head, EARLY, prompt, written, gamma) for prompt in given]
    plain = [generate(decoder, as_ids(prompt, decoder), written)[0].tolist() for prompt in given]
    equal = sum(a == b for run, same in zip(runs, plain, strict=True) for a, b in zip(run.tokens, same, strict=False))
    a_step, priced = sum(len(run.tokens) for run in runs) / sum(run.steps for run in runs), price(SMOLLM2_135M)
    return {
        "draft_equal_tokens": equal,
        "draft_compared_tokens": written * len(runs),
        "draft_accepted_share": sum(run.accepted for run in runs) / sum(run.looked for run in runs),
        "draft_step_tokens": a_step,
        "draft_gamma_count": gamma,
        "draft_read_ratio": draft_read_ratio(EARLY, gamma, a_step, SMOLLM2_135M, priced if each is None else each),
    }


def as_ids(prompt: list[int], decoder: Decoder) -> Tensor:
    """A batch of one, where the decoder is."""
    return torch.tensor([prompt], device=decoder.norm.weight.device)


def draft_times(decoder: Decoder, head: Exit, scale: Scale) -> dict[str, float]:
    """Seconds of drafting for itself over plain decoding's, for a few tokens."""
    prompt, few = prompts(1, 12)[0], 6
    calls: dict[str, Callable[[], object]] = {
        "draft": functools.partial(draft_itself, decoder, head, EARLY, prompt, few, 3),
        "plain": functools.partial(generate, decoder, as_ids(prompt, decoder), few),
    }
    timed = clock.interleave(calls, device=decoder.norm.weight.device, rounds=scale.timed_rounds, blocks=1)
    return {"draft_time_ratio": timed.ratio("draft", "plain")}


@torch.inference_mode()
def check_times(decoder: Decoder, scale: Scale, layers: bool = False) -> dict[str, float]:
    """Time of one check of one token, in layers; with `layers` a layer is timed in its place."""
    x = torch.randn(1, 1, decoder.geometry.hidden, generator=torch.Generator().manual_seed(0))
    x = x.to(decoder.norm.weight.device)
    cos, sin = rotation(decoder.geometry, 0, 1, x)

    def run() -> None:
        state = x
        for block in decoder.layers:
            state = block(state, cos, sin)

    def check() -> None:
        own(decoder).logits(decoder, x).softmax(-1).max(-1)

    timed = clock.interleave({"layers": run, "check": run if layers else check}, device=x.device, rounds=scale.rounds)
    count = len(decoder.layers)
    return {"check_time_ratio": timed.ratio("check", "layers") * (1 if layers else count)}


SHAPES = (SMOLLM2_135M, LLAMA_2_7B, LLAMA_3_8B, LLAMA_3_70B, GEMMA_7B)


def early(geometry: Geometry) -> int:
    """An eighth of the layers."""
    return round(geometry.layers / 8)


def leaving_to_pay(geometry: Geometry) -> float:
    """Share of tokens that must leave at an eighth of the layers for one look there, with the head, to pay."""
    each = price(geometry)
    return each / (geometry.layers - early(geometry) + each)


def accepted_to_pay(geometry: Geometry) -> float:
    """Least acceptance, in thousandths, at which drafting with an eighth of the layers reads fewer weights a token."""
    each, layer = price(geometry), early(geometry)
    for alpha in (thousandth / 1000 for thousandth in range(1, 1000)):
        a_step = {gamma: (1 - alpha**gamma) / (1 - alpha) for gamma in range(1, 13)}
        if min(draft_read_ratio(layer, gamma, made, geometry, each) for gamma, made in a_step.items()) < 1:
            return alpha
    return 1.0


def shape_columns() -> dict[str, list]:
    """By shape: one check in layers, the share that must leave at one look, the acceptance that a draft needs."""
    rows = [(g.name, price(g), leaving_to_pay(g), accepted_to_pay(g)) for g in SHAPES]
    return columns(("shape", "check_ratio", "leaving_share", "accepted_share"), rows)


def shape_values() -> dict[str, float]:
    """Bytes in BF16 of one check and of one layer's matrices, and counts."""
    counts = parameters(SMOLLM2_135M)
    return {
        "layers_count": LAYERS,
        "early_count": EARLY,
        "head_bytes": BF16_BYTES * SMOLLM2_135M.vocabulary * SMOLLM2_135M.hidden,
        "layer_bytes": BF16_BYTES * counts.linear // LAYERS,
    }


def predicted_values(launches: int = 10) -> dict[str, float]:
    """Registered for an H100: one check in layers of Llama-3-8B in BF16, a token alone."""
    peak, shape = gpu_peak("H100 SXM", "bfloat16"), LLAMA_3_8B
    assert peak is not None
    head, layer = shape.vocabulary * shape.hidden, parameters(shape).linear / shape.layers
    seconds = [
        predict_seconds(flops=2 * weights, bytes=BF16_BYTES * weights, peak=peak, launches=count)
        for weights, count in ((head, 3), (layer, launches))
    ]
    return {"h100_check_layers_count": seconds[0] / seconds[1]}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` reads less text and times fewer rounds."""
    scale, where = SMALL if small else Scale(), str(pick(device))
    decoder, heads = model(where), exits(where)
    ids = unseen_windows(scale.windows, scale.tokens).to(where)
    fitted, plain = read(decoder, ids, [*heads.values()]), read(decoder, ids, [own(decoder)] * len(EXITS))
    return {
        **shape_values(),
        **predicted_values(),
        **loss_values(plain, fitted, {out: skipped(decoder, ids, out) for out in (OUT[0], LAYERS - LATE)}),
        **rule_values(fitted),
        **word_values(fitted, ids),
        **repeat_values(decoder, heads, scale),
        **hole_values(decoder, ids, fitted, heads),
        **batch_values(batch_columns(fitted)),
        **draft_values(decoder, heads[EARLY], scale),
        **draft_times(decoder, heads[EARLY], scale),
        **check_times(decoder, scale),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The end in place of every exit, depths dealt at random, checks for nothing, keys and values as they were.

    A batch of one, another text for a repetition, a draft that checks for nothing, and a layer timed for a check.
    """
    scale, where = SMALL if small else Scale(), str(pick(device))
    decoder, heads = model(where), exits(where)
    ids = unseen_windows(scale.windows, scale.tokens).to(where)
    fitted = read(decoder, ids, [*heads.values()])
    choice, sure, nats = (part[-1:].expand_as(part) for part in (fitted.choice, fitted.sure, fitted.nats))
    end = Reading(choice, sure, nats, fitted.worth, fitted.entropy)
    return {
        **loss_values(end, end, dict.fromkeys((OUT[0], LAYERS - LATE), skipped(decoder, ids, 0))),
        **rule_values(fitted, shuffled=True, priced=0.0),
        **word_values(fitted, ids, shuffled=True),
        **repeat_values(decoder, heads, scale, unseen=True),
        **hole_values(decoder, ids, fitted, heads, copied=False),
        **batch_values(batch_columns(fitted, (1,)), 1),
        **draft_values(decoder, heads[EARLY], scale, each=0.0),
        **check_times(decoder, scale, layers=True),
    }


if __name__ == "__main__":
    from measured.values import report

    report("throughput/early_exit", measure())
