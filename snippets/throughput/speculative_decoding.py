"""Speculative decoding: how many tokens a step, and is it faster?

Claim: a cheap draft proposes tokens, one pass of the target checks them all, and a rejection rule keeps the target's
distribution exactly. Tokens a step follow from the acceptance rate; whether that is faster depends on what a draft
costs and on a pass over several tokens costing about as much as over one. It does at small batches, not at large ones.

Run: python -m snippets.throughput.speculative_decoding
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import smollm2, texts, trained
from snippets.models.decoder import Decoder, KVCache, generate, random_block, rotation
from snippets.models.language_loss import unseen_windows
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry, parameters

Drafted = tuple[list[int], Tensor]
"""Proposed tokens, and the distribution that each was drawn from: (proposed, vocabulary)."""
Draft = Callable[[list[int], int], Drafted]  # of the sequence so far, and how many to propose at most
Rule = Callable[[list[int], Tensor, Tensor, random.Random], list[int]]
Formula = Callable[[float, int], float]


def expected_tokens(alpha: float, gamma: int) -> float:
    """Tokens a step if each of `gamma` proposals is accepted with chance `alpha`, independently (arXiv:2211.17192)."""
    return (1 - alpha ** (gamma + 1)) / (1 - alpha) if alpha < 1 else gamma + 1


def speedup(alpha: float, gamma: int, cost: float) -> float:
    """Of a draft whose step takes `cost` of the target's, where checking takes no longer than one target step."""
    return expected_tokens(alpha, gamma) / (gamma * cost + 1)


# --8<-- [start:rule]
def draw(weights: Tensor, dice: random.Random) -> int:
    """An index with chance in proportion to its weight."""
    sums = weights.double().cumsum(0)
    return int(torch.searchsorted(sums, dice.random() * sums[-1], right=True).clamp(max=len(sums) - 1))


def verify(drafted: list[int], draft: Tensor, target: Tensor, dice: random.Random) -> list[int]:
    """The accepted proposals and one token more, distributed as the target alone would draw them.

    Target probabilities are (one more than proposed, vocabulary). Greedy decoding and prompt lookup are the same rule
    with distributions that hold a single token.
    """
    for place, token in enumerate(drafted):
        if dice.random() * draft[place, token] >= target[place, token]:  # keep with chance min(1, target / draft)
            missing = (target[place] - draft[place]).clamp(min=0)  # where the draft proposes too seldom
            return [*drafted[:place], draw(missing, dice)]
    return [*drafted, draw(target[len(drafted)], dice)]


# --8<-- [end:rule]


def by_argmax(drafted: list[int], draft: Tensor, target: Tensor, dice: random.Random) -> list[int]:
    """Wrong: keep a proposal if it is the target's likeliest token, else draw one from the target."""
    for place, token in enumerate(drafted):
        if token != int(target[place].argmax()):
            return [*drafted[:place], draw(target[place], dice)]
    return [*drafted, draw(target[len(drafted)], dice)]


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Distributions (tokens, vocabulary); temperature zero puts everything on the likeliest token."""
    if temperature == 0:
        return F.one_hot(logits.argmax(-1), logits.shape[-1]).to(logits.dtype)
    return (logits / temperature).softmax(-1)


@dataclass
class Lookup:
    """Prompt lookup: what followed the last time that the newest tokens occurred."""

    vocabulary: int
    sizes: Sequence[int] = (3, 2)  # tokens that must match, longest first

    def __call__(self, sequence: list[int], count: int) -> Drafted:
        found: list[int] = []
        for size in self.sizes:
            tail = sequence[-size:]
            starts = (at for at in range(len(sequence) - size - 1, -1, -1) if sequence[at : at + size] == tail)
            if (start := next(starts, None)) is not None:
                found = sequence[start + size : start + size + count]
                break
        return found, F.one_hot(torch.tensor(found, dtype=torch.long), self.vocabulary).float()


class Smaller:
    """A smaller model with a cache of its own."""

    def __init__(self, decoder: Decoder, cache: KVCache, temperature: float, dice: random.Random) -> None:
        self.decoder, self.cache, self.temperature, self.dice = decoder, cache, temperature, dice

    def __call__(self, sequence: list[int], count: int) -> Drafted:
        self.cache.length = min(self.cache.length, len(sequence) - 1)  # forget what was rejected
        unread, drafted, rows = sequence[self.cache.length :], [], []
        for _ in range(count):
            logits = self.decoder(torch.tensor([unread], device=self.cache.keys.device), self.cache, last_only=True)
            rows.append(probabilities(logits[0], self.temperature)[0].cpu())
            drafted.append(draw(rows[-1], self.dice))
            unread = drafted[-1:]
        return drafted, torch.stack(rows)


def nothing(sequence: list[int], count: int) -> Drafted:
    """No proposal: plain decoding, one token a step."""
    return [], torch.empty(0, 0)


@dataclass
class Run:
    """What came of a speculative decoding: new tokens, and for each step proposals made and accepted."""

    tokens: list[int] = field(default_factory=list)
    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)

    def add(self, other: Run) -> None:
        """Append another run's steps."""
        self.tokens += other.tokens
        self.proposed += other.proposed
        self.accepted += other.accepted

    @property
    def a_step(self) -> float:
        """Tokens a step of the target."""
        return len(self.tokens) / len(self.proposed)

    def tried(self, place: int | None = None) -> tuple[int, int]:
        """(proposals looked at, of them accepted), at one place in the draft or at all: none behind a rejection."""
        pairs = list(zip(self.proposed, self.accepted, strict=True))
        if place is not None:
            return sum(p > place and a >= place for p, a in pairs), sum(a > place for _, a in pairs)
        return sum(min(a + 1, p) for p, a in pairs), sum(a for _, a in pairs)

    @property
    def alpha(self) -> float:
        """Accepted share of the proposals that were looked at."""
        looked, kept = self.tried()
        return kept / looked if looked else 0.0


# --8<-- [start:loop]
@torch.inference_mode()
def speculate(
    target: Decoder, cache: KVCache, draft: Draft, prompt: list[int], new_tokens: int, gamma: int,
    temperature: float = 0.0, dice: random.Random | None = None, rule: Rule = verify,
) -> Run:  # fmt: skip
    """At least `new_tokens` after the prompt; each step checks up to `gamma` proposals in one pass of the target."""
    sequence, run, dice = list(prompt), Run(), dice or random.Random(0)
    cache.length = min(cache.length, len(prompt) - 1)
    if unread := prompt[cache.length : -1]:
        target(torch.tensor([unread], device=cache.keys.device), cache, last_only=True)
    while len(run.tokens) < new_tokens:
        drafted, rows = draft(sequence, gamma)
        ids = torch.tensor([sequence[-1:] + drafted], device=cache.keys.device)
        fresh = rule(drafted, rows, probabilities(target(ids, cache)[0], temperature).cpu(), dice)
        sequence += fresh
        cache.length = len(sequence) - 1  # roll back: rejected keys lie beyond the length, and are overwritten
        run.add(Run(fresh, [len(drafted)], [len(fresh) - 1]))
    return run


# --8<-- [end:loop]


def room_for(decoder: Decoder, prompt: list[int], scale: Scale, gamma: int | None = None) -> KVCache:
    """A cache for a prompt, the tokens written after it, and proposals beyond them."""
    weight, tokens = decoder.embed_tokens.weight, len(prompt) + scale.new_tokens + 2 * ((gamma or scale.gamma) + 1)
    return KVCache(decoder.geometry, 1, tokens, weight.dtype, weight.device)


# The rule, on a vocabulary small enough to count.


def chi_square(rule: Rule, draws: int, seed: int = 0) -> float:
    """Pearson's statistic of the first two tokens that a rule yields against the target's own chances.

    Four tokens, each token's chances dependent on the one before it, in a target and in a draft that differs from it:
    sixteen pairs, fifteen degrees of freedom.
    """
    dice, maker = random.Random(seed), torch.Generator().manual_seed(7)
    target, draft = (torch.randn(4, 4, generator=maker).softmax(-1) for _ in range(2))
    seen = torch.zeros(4, 4, dtype=torch.float64)
    for _ in range(draws):
        made = [0]
        while len(made) < 3:
            drafted = [draw(draft[made[-1]], dice)]
            drafted.append(draw(draft[drafted[0]], dice))
            states = [made[-1], *drafted]
            made += rule(drafted, draft[states[:-1]], target[states], dice)
        seen[made[1], made[2]] += 1
    expected = draws * target[0].double()[:, None] * target.double()
    return float(((seen - expected) ** 2 / expected).sum())


def rule_values(draws: int = 5000, rule: Rule = verify, wrong: Rule = by_argmax) -> dict[str, float]:
    """The statistic of the right rule and of the tempting one."""
    return {
        "draws_count": draws,
        "kept_chi_square_difference": chi_square(rule, draws),
        "argmax_chi_square_difference": chi_square(wrong, draws),
    }


def formula_values(alpha: float = 0.8, gamma: int = 4, cost: float = 0.1) -> dict[str, float]:
    """The textbook's case."""
    return {
        "alpha_share": alpha,
        "gamma_count": gamma,
        "cost_share": cost,
        "expected_tokens": expected_tokens(alpha, gamma),
        "formula_ratio": speedup(alpha, gamma, cost),
    }


def formula_columns(alpha: float = 0.8, costs: Sequence[float] = (0.0, 0.1, 0.3, 0.5)) -> dict[str, list]:
    """Speed-up by proposals a step, for drafts of several costs."""
    points = [(gamma, cost) for cost in costs for gamma in range(1, 13)]
    return {
        "proposed_tokens": [gamma for gamma, _ in points],
        "formula_ratio": [speedup(alpha, gamma, cost) for gamma, cost in points],
        "draft": [f"c = {cost}" for _, cost in points],
    }


@dataclass(frozen=True)
class Scale:
    """How much is measured: tokens written, proposals, draws, prompts of the small decoders, rounds, the layer."""

    new_tokens: int = 48
    gamma: int = 4
    looked: int = 8  # proposals of a lookup, which cost nothing to make
    draws: int = 5000
    seeds: Sequence[int] = trained.SEEDS
    prompts: int = 3
    rounds: int = 9
    few_rounds: int = 3  # where a round takes seconds
    layer: Geometry = LLAMA_3_8B
    checked: Sequence[int] = (1, 2, 5, 9, 17, 33, 65)
    text_tokens: int = 192


SMALL = Scale(10, 4, 8, 1500, (0,), 2, 9, 3, SMOLLM2_135M, (1, 5), 48)
BATCHES = (1, 16, 64, 128, 256, 1024)


# Prompt lookup on SmolLM2: a text to be repeated, as an edit or a quotation would, and one to be made up.


def prompts() -> dict[str, list[int]]:
    """Both prompts in the model's chat format."""
    quoted = texts.address().split("\n\n")[3][:420].rsplit(" ", 1)[0]
    asked = {"copy": f"Repeat this text word for word:\n\n{quoted}", "free": "Tell a story about a lighthouse keeper."}
    form = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return {name: smollm2.encode(form.format(text))[0].tolist() for name, text in asked.items()}


def lookup_runs(decoder: Decoder, scale: Scale) -> dict[str, Run]:
    """Greedy decoding with prompt lookup after each prompt."""
    draft = Lookup(decoder.geometry.vocabulary)
    return {
        name: speculate(
            decoder, room_for(decoder, prompt, scale, scale.looked), draft, prompt, scale.new_tokens, scale.looked
        )
        for name, prompt in prompts().items()
    }


def lookup_values(decoder: Decoder, runs: dict[str, Run], scale: Scale) -> dict[str, float]:
    """Tokens equal to those of plain greedy decoding; steps and proposals of each run."""
    found: dict[str, float] = {"written_tokens": scale.new_tokens, "looked_count": scale.looked}
    found |= {"equal_tokens": 0, "compared_tokens": 0}
    for name, prompt in prompts().items():
        run, ids = runs[name], torch.tensor([prompt], device=decoder.embed_tokens.weight.device)
        plain = generate(decoder, ids, scale.new_tokens)[0].tolist()
        found["equal_tokens"] += sum(a == b for a, b in zip(run.tokens, plain, strict=False))
        found["compared_tokens"] += len(plain)
        looked, kept = run.tried()
        found |= {f"{name}_tokens": len(run.tokens), f"{name}_steps_count": len(run.proposed)}
        found |= {f"{name}_accepted_count": kept, f"{name}_rejected_count": looked - kept}
    return found


def mixed_values(runs: dict[str, Run], scale: Scale, by_place: bool = False) -> dict[str, float]:
    """Both texts together: tokens of a step that proposed, counted and from the mean acceptance; or place by place."""
    both = Run()
    for run in runs.values():
        both.add(run)
    counted = [kept + 1 for kept, made in zip(both.accepted, both.proposed, strict=True) if made]
    formula = expected_tokens(both.alpha, scale.looked)
    if by_place:  # a place is reached if all before it were kept: exact, whatever depends on what
        formula, chance = 1.0, 1.0
        for place in range(scale.looked):
            looked, kept = both.tried(place)
            chance *= kept / looked if looked else 0.0
            formula += chance
    return {
        "mixed_alpha_share": both.alpha,
        "mixed_formula_tokens": formula,
        "mixed_counted_tokens": sum(counted) / len(counted),
    }


def lookup_times(decoder: Decoder, scale: Scale, draft: Draft | None = None) -> dict[str, float]:
    """Plain decoding's seconds over those with prompt lookup. The prompt is read before; both are the same loop."""
    calls: dict[str, Callable[[], object]] = {}
    for name, prompt in prompts().items():
        for way, chosen in (("plain", nothing), ("lookup", draft or Lookup(decoder.geometry.vocabulary))):
            cache, tokens = room_for(decoder, prompt, scale, scale.looked), min(scale.new_tokens, 19)
            calls[f"{name} {way}"] = partial(speculate, decoder, cache, chosen, prompt, tokens, scale.looked)
    taken = clock.interleave(calls, device=decoder.embed_tokens.weight.device, rounds=scale.few_rounds, blocks=1)
    return {f"{name}_speed_ratio": taken.ratio(f"{name} plain", f"{name} lookup") for name in ("copy", "free")}


def check_columns(
    scale: Scale, device: torch.device, dtype: torch.dtype = torch.bfloat16, apart: bool = False
) -> dict[str, list]:
    """Seconds of one layer over several tokens, together or `apart`, as multiples of those over one: random weights."""
    block = random_block(scale.layer, dtype, device)
    calls: dict[str, Callable[[], object]] = {}
    for tokens in scale.checked:
        x = torch.ones(1, tokens, scale.layer.hidden, dtype=dtype, device=device)
        calls[str(tokens)] = partial(block, x, *rotation(scale.layer, 0, tokens, x))
    if apart:
        one = calls["1"]
        calls = {name: partial(_looped, one, int(name)) for name in calls}
    taken = clock.interleave(calls, device=device, rounds=scale.rounds)
    return {"checked_tokens": list(scale.checked), "check_ratio": [taken.ratio(name, "1") for name in calls]}


def _looped(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def check_values(columns: dict[str, list], tokens: int = 5) -> dict[str, float]:
    """What checking so many tokens at once costs in steps of one, and what it gains over as many of them."""
    cost = columns["check_ratio"][columns["checked_tokens"].index(tokens)]
    return {"check_ratio": cost, "check_gain_ratio": tokens / cost}


# A trained draft: the tiny decoder for the small one, both trained here.


def draft_runs(scale: Scale, temperature: float, rule: Rule = verify) -> list[Run]:
    """By seed: the small decoder with the tiny one as its draft, after openings of held-out windows."""
    runs = []
    for seed in scale.seeds:
        target, tiny = (trained.decoder(name, seed) for name in ("small", "tiny"))
        runs.append(Run())
        for number, prompt in enumerate(trained.held_out_windows(scale.prompts, 48).tolist()):
            dice = random.Random(1000 * seed + number)
            caches = [room_for(one, prompt, scale) for one in (target, tiny)]
            draft = Smaller(tiny, caches[1], temperature, dice)
            args = (prompt, scale.new_tokens, scale.gamma, temperature, dice, rule)
            runs[-1].add(speculate(target, caches[0], draft, *args))
    return runs


def draft_values(runs: dict[str, list[Run]], scale: Scale, formula: Formula = expected_tokens) -> dict[str, float]:
    """Acceptance when sampling and when greedy, tokens a step counted and by the formula: means over seeds."""
    sampled, greedy = ([run.alpha for run in runs[name]] for name in ("sampled", "greedy"))
    mean = sum(sampled) / len(sampled)
    return {
        "seeds_count": len(scale.seeds),
        "sampled_alpha_share": mean,
        "spread_alpha_share": max(sampled) - min(sampled),
        "greedy_alpha_share": sum(greedy) / len(greedy),
        "counted_step_tokens": sum(run.a_step for run in runs["sampled"]) / len(sampled),
        "formula_step_tokens": formula(mean, scale.gamma),
    }


def place_columns(scale: Scale, runs: dict[str, list[Run]]) -> dict[str, list]:
    """Accepted share at each place of the draft, given that all before it were accepted."""
    columns: dict[str, list] = {"place_count": list(range(1, scale.gamma + 1))}
    for name, several in runs.items():
        both = Run()
        for run in several:
            both.add(run)
        pairs = [both.tried(place) for place in range(scale.gamma)]
        columns[f"{name}_share"] = [kept / max(looked, 1) for looked, kept in pairs]
    return columns


def costly_times(scale: Scale, gamma: int = 8, drafted: bool = True) -> dict[str, float]:
    """The tiny decoder as a dear draft: seconds with it over those without; its own step over the target's."""
    target, tiny = (trained.decoder(name, 0) for name in ("small", "tiny"))
    prompt = trained.held_out_windows(1, 48)[0].tolist()
    draft: Draft = Smaller(tiny, room_for(tiny, prompt, scale, gamma), 0.0, random.Random(0)) if drafted else nothing
    calls = {
        name: partial(speculate, one, room_for(one, prompt, scale, gamma), chosen, prompt, scale.new_tokens, gamma)
        for name, one, chosen in (("plain", target, nothing), ("drafted", target, draft), ("alone", tiny, nothing))
    }
    taken = clock.interleave(calls, rounds=scale.rounds)
    run = calls["drafted"]()
    return {
        "costly_ratio": taken.ratio("drafted", "plain"),
        "costly_share": taken.ratio("alone", "plain"),
        "costly_step_tokens": run.a_step,
    }


# SmolLM2 without some of its layers, as a draft for itself.


@torch.inference_mode()
def skip_columns(decoder: Decoder, scale: Scale, free: bool = False) -> dict[str, list]:
    """By layers left out of the middle: agreement on real text, cost by parameters, best speed-up by the formula."""
    ids, layers = unseen_windows(1, scale.text_tokens).to(decoder.norm.weight.device), decoder.geometry.layers
    counts, whole = parameters(decoder.geometry), decoder(ids).argmax(-1)
    columns: dict[str, list] = {"skipped_count": [2, 6, 12], "cost_share": [], "agreed_share": [], "best_ratio": []}
    for out in columns["skipped_count"]:
        short, first = copy.copy(decoder), (layers - out) // 2
        short._modules = {
            **decoder._modules, "layers": nn.ModuleList([*decoder.layers[:first], *decoder.layers[first + out :]]),
        }  # fmt: skip
        agreed = float((short(ids).argmax(-1) == whole).double().mean())
        cost = 0.0 if free else 1 - out / layers * counts.linear / counts.total
        columns["cost_share"].append(cost)
        columns["agreed_share"].append(agreed)
        columns["best_ratio"].append(max(speedup(agreed, gamma, cost) for gamma in range(1, 9)))
    return columns


def predicted(batch: int, tokens: int) -> float:
    """Least seconds on an H100 of a Llama-3-8B step over `tokens` of each of `batch` sequences, without attention."""
    counts, peak = parameters(LLAMA_3_8B), gpu_peak("H100 SXM", "bfloat16")
    read = counts.linear + counts.head  # matrices that every token is multiplied with
    assert peak is not None
    return predict_seconds(flops=2 * read * batch * tokens, bytes=2 * read, peak=peak, launches=0)


def batch_speedup(batch: int, gamma: int = 4, alpha: float = 0.8, cost: float = 0.1) -> float:
    """Predicted speed-up of a batch, with a draft of `cost` times the target's weights."""
    step = predicted(batch, 1)
    return expected_tokens(alpha, gamma) * step / (gamma * cost * step + predicted(batch, gamma + 1))


def batch_columns(gamma: int = 4) -> dict[str, list]:
    """By batch: tokens checked in a step, its cost in plain steps, the predicted speed-up."""
    return {
        "batch_count": list(BATCHES),
        "checked_tokens": [batch * (gamma + 1) for batch in BATCHES],
        "step_ratio": [predicted(batch, gamma + 1) / predicted(batch, 1) for batch in BATCHES],
        "speed_ratio": [batch_speedup(batch, gamma) for batch in BATCHES],
    }


def batch_values(gamma: int = 4) -> dict[str, float]:
    """The ends of that table, and the largest batch that still gains."""
    return {
        "h100_one_ratio": batch_speedup(1, gamma),
        "h100_many_ratio": batch_speedup(1024, gamma),
        "h100_last_count": max((b for b in range(1, 1025) if batch_speedup(b, gamma) > 1), default=0),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` writes fewer tokens and times a smaller layer."""
    scale, where = SMALL if small else Scale(), pick(device)
    decoder = smollm2.decoder(torch.float32, where)
    runs = lookup_runs(decoder, scale)
    return {
        **formula_values(),
        **rule_values(scale.draws),
        **lookup_values(decoder, runs, scale),
        **mixed_values(runs, scale),
        **lookup_times(decoder, scale),
        **check_values(check_columns(scale, where, dtype or torch.bfloat16)),
        **draft_values({"sampled": draft_runs(scale, 1.0), "greedy": draft_runs(scale, 0.0)}, scale),
        **costly_times(scale),
        "skip_best_ratio": max(skip_columns(decoder, scale)["best_ratio"]),
        **batch_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Plain decoding in place of drafts, wrong rules and formulas in place of the right ones, a draft that is free.

    Tokens are checked one after another.
    """
    scale, where = SMALL if small else Scale(), pick(device)
    decoder = smollm2.decoder(torch.float32, where)
    runs = {"sampled": draft_runs(scale, 1.0), "greedy": draft_runs(scale, 0.0)}
    return {
        **rule_values(scale.draws, by_argmax, verify),
        **mixed_values(lookup_runs(decoder, scale), scale, by_place=True),
        **lookup_times(decoder, scale, nothing),
        **check_values(check_columns(scale, where, dtype or torch.bfloat16, apart=True)),
        **draft_values(runs, scale, lambda alpha, gamma: 1 + alpha * gamma),
        **costly_times(scale, drafted=False),
        "skip_best_ratio": max(skip_columns(decoder, scale, free=True)["best_ratio"]),
        **batch_values(gamma=0),
    }


if __name__ == "__main__":
    from measured.values import report

    report("throughput/speculative_decoding", measure())
