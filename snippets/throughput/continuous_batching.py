"""Static, dynamic and continuous batching: what is the difference?

Claim: a batch that nobody may join or leave takes as many steps as its longest answer, so it uses the mean answer
over the expected longest of its places. Deciding anew at each step keeps every place busy as long as somebody waits,
writes the same tokens, and changes nothing where answers are equally long or where nobody queues.

Run: python -m snippets.throughput.continuous_batching
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from statistics import fmean, variance

import torch

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.models import paged, smollm2, texts, trained
from snippets.models.decoder import Decoder, KVCache
from snippets.models.interference import step_times
from snippets.models.paged import PagedCache
from snippets.models.scheduler import (
    DISTRIBUTIONS,
    POLICIES,
    Cost,
    Limits,
    Request,
    Scheduler,
    Served,
    figures,
    simulate,
    trace,
)
from snippets.models.shapes import LLAMA_3_8B, Geometry, parameters

# isort: split
from measured.values import report

MILLISECOND, SECOND = 10**6, 10**9  # of a clock that counts nanoseconds
FIRST_LIMIT, GAP_LIMIT = SECOND, 25 * MILLISECOND  # what a good request keeps to
PROMPTS, ANSWERS = ("few long", 512), ("geometric", 128)
LONGEST_PROMPT = 9 * PROMPTS[1] // 2
WHOLE = 2**20  # a budget that cuts no prompt


@dataclass(frozen=True)
class Scale:
    """How much is run: requests of each trace, the batch, tokens of the prompt that interferes, timing rounds."""

    drawn: int = 2048
    simulated: int = 300
    timed: int = 128
    checked: int = 24
    batch: int = 8
    checked_by_smollm2: int = 6
    rounds: int = 3
    rare: int = 60
    long_prompt: int = 256
    chunk: int = 32

    def counts(self) -> dict[str, int]:
        """What the page states of it."""
        return {"long_prompt_tokens": self.long_prompt, "chunk_tokens": self.chunk, "timed_requests_count": self.timed}


SMALL = Scale(drawn=1024, timed=16, checked=8, checked_by_smollm2=2, rounds=2, long_prompt=160)


# --8<-- [start:serve]
@torch.inference_mode()
def serve(
    decoder: Decoder, prompts: Sequence[list[int]], requests: Sequence[Request], limits: Limits
) -> tuple[list[list[int]], dict[str, int]]:
    """Answers of a real decoder over a paged cache, step by step as the scheduler says; the clock counts steps."""
    weight = decoder.lm_head.weight
    cache = PagedCache(decoder.geometry, limits.blocks, limits.block_tokens, weight.dtype, weight.device)
    scheduler, now, known = Scheduler(requests, limits), 0, [list(prompt) for prompt in prompts]
    held: dict[int, int] = {}  # request -> sequence of the cache
    tally = {"steps": 0, "preempted": 0, "cut": 0}
    while scheduler.waiting or scheduler.running:
        if (step := scheduler.next(now)) is None:
            now = scheduler.wake()
            continue
        for request in step.preempted:
            cache.finish(held.pop(request))
        fresh = {}
        for request, new in step.counts.items():
            if request not in held:
                held[request] = cache.admit()
            begin = cache.length(held[request])
            fresh[held[request]] = torch.tensor(known[request][begin : begin + new], device=weight.device)
        chosen = paged.step(decoder, cache, fresh).argmax(-1).tolist()
        for request, token in zip(step.counts, chosen, strict=True):
            if request in step.writes:  # else a part of a prompt, whose logits nobody asked for
                known[request].append(token)
        for request in step.ends:
            cache.finish(held.pop(request))
        now += 1
        tally["steps"] += 1
        tally["preempted"] += len(step.preempted)
        tally["cut"] += len(step.counts) - len(step.writes)
    tally["lost_blocks"] = limits.blocks - cache.allocator.free_count
    return [tokens[len(prompt) :] for tokens, prompt in zip(known, prompts, strict=True)], tally


# --8<-- [end:serve]


@torch.inference_mode()
def alone(decoder: Decoder, prompt: list[int], answer: int) -> tuple[list[int], float]:
    """Greedy answer to one prompt in a contiguous cache, and how near the second-best token ever came."""
    weight = decoder.lm_head.weight
    cache = KVCache(decoder.geometry, 1, len(prompt) + answer, weight.dtype, weight.device)
    fresh, tokens, gap = list(prompt), [], float("inf")
    for _ in range(answer):
        logits = decoder(torch.tensor([fresh], device=weight.device), cache, last_only=True)[0, -1]
        (best, second), places = logits.topk(2)
        gap = min(gap, float(best - second))
        fresh = [int(places[0])]
        tokens += fresh
    return tokens, gap


def tight(requests: Sequence[Request], batch: int, budget: int, block_tokens: int = 4) -> Limits:
    """Continuous with prompts cut to a small budget, and blocks for hardly more than the largest request."""
    unlimited = Limits("continuous", batch, budget, block_tokens=block_tokens)
    largest = max(unlimited.blocks_of(one.prompt + one.answer - 1) for one in requests)
    return replace(unlimited, blocks=largest + batch // 2)


def equality_values(
    name: str, decoder: Decoder, ids: list[int], requests: Sequence[Request], runs: Sequence[Limits]
) -> dict[str, float]:
    """Answers under each of the limits against each request alone: counts, under names that begin with `name`."""
    begins = [sum(one.prompt for one in requests[:n]) for n in range(len(requests))]
    prompts = [ids[begin : begin + one.prompt] for begin, one in zip(begins, requests, strict=True)]
    single = [alone(decoder, prompt, one.answer) for prompt, one in zip(prompts, requests, strict=True)]
    served = [serve(decoder, prompts, requests, limits) for limits in runs]
    pairs = [(a, b) for answers, _ in served for (one, _), own in zip(single, answers, strict=True)
             for a, b in zip(one, own, strict=True)]  # fmt: skip
    return {
        f"{name}_written_tokens": len(pairs),
        f"{name}_equal_tokens": sum(a == b for a, b in pairs),
        f"{name}_preempted_count": sum(tally["preempted"] for _, tally in served),
        f"{name}_cut_count": sum(tally["cut"] for _, tally in served),
        f"{name}_lost_blocks_count": sum(tally["lost_blocks"] for _, tally in served),
        f"{name}_smallest_gap_difference": min(gap for _, gap in single),
    }


def real_values(scale: Scale, device: torch.device) -> dict[str, float]:
    """Both real decoders: the one trained here under every policy, SmolLM2 under the two that differ most.

    Trained weights differ a little between machines, so nothing fixed is known of the gaps between candidates: there
    FP64 keeps rounding out of it. SmolLM2's are the same everywhere, and FP32 is far finer than its smallest gap.
    """
    small = trained.decoder("small").to(device, torch.float64)
    some = trace(scale.checked, 2, ("uniform", 12), ("geometric", 12), seed=3)
    base = Limits(batch=scale.batch, budget=128, block_tokens=4, blocks=400, window=6)
    runs = [replace(base, policy=policy) for policy in POLICIES]
    few = trace(scale.checked_by_smollm2, 1, ("uniform", 10), ("geometric", 6), seed=5)
    large = smollm2.decoder(torch.float32, device)
    ids = smollm2.encode(texts.address())[0].tolist()
    two = [Limits("static", 4, block_tokens=4, blocks=100), tight(few, 4, 6)]
    found = {
        **equality_values("small", small, trained.held_out_ids().tolist(), some, [*runs, tight(some, 8, 12)]),
        **equality_values("smollm2", large, ids, few, two),
    }
    lost = sum(found.pop(f"{name}_lost_blocks_count") for name in ("small", "smollm2"))
    unneeded = ("small_smallest_gap_difference", "smollm2_cut_count")
    return {"lost_blocks_count": lost, **{name: value for name, value in found.items() if name not in unneeded}}


# --8<-- [start:longest]
def longest_of(distribution: str, mean: int, batch: int) -> float:
    """Expected longest of `batch` answers: a sum over t of the chance that some answer is longer than t tokens."""
    if distribution == "constant":
        return mean
    if distribution == "few long":  # one in eight is nine times as long as the others
        none_long = (7 / 8) ** batch
        return none_long * mean / 2 + (1 - none_long) * 9 * mean / 2
    if distribution == "uniform":  # on one to 2 * mean - 1
        most = 2 * mean - 1
        return sum(1 - (tokens / most) ** batch for tokens in range(most))
    return sum(1 - (1 - (1 - 1 / mean) ** tokens) ** batch for tokens in range(100 * mean))  # geometric


def continuous_form(distribution: str, batch: int) -> float:
    """Mean over expected longest where answers are long: what one says at a whiteboard."""
    harmonic = sum(1 / k for k in range(1, batch + 1))
    long = 1 - (7 / 8) ** batch
    return {
        "constant": 1.0,
        "uniform": (batch + 1) / (2 * batch),
        "geometric": 1 / harmonic,
        "few long": 1 / (0.5 + 4 * long),
    }[distribution]


# --8<-- [end:longest]


def used_share(served: Served, batch: int) -> float:
    """Places that wrote a token, of all places of all steps."""
    return sum(len(step.writes) for step in served.steps) / (batch * len(served.steps))


def padded_tokens(served: Served) -> int:
    """What rectangular prefills would compute beyond the prompts: rows times the longest, less the prompts."""
    first = [step.counts.values() for step in served.steps if max(step.counts.values()) > 1]
    return sum(len(new) * max(new) - sum(new) for new in first)


def standard_error(served: Served, batch: int) -> float:
    """Of a static run's used share: its batches are independent draws of tokens written and places held."""
    answers = [one.answer for one in served.requests]
    groups = [answers[at : at + batch] for at in range(0, len(answers), batch)]
    held = fmean(batch * max(group) for group in groups)
    share = sum(answers) / (held * len(groups))
    return sqrt(variance(sum(group) - share * batch * max(group) for group in groups) / len(groups)) / held


def length_columns(scale: Scale, mean: int = 32) -> dict[str, list]:
    """Used share by distribution of answers: a trace that all waits, static and continuous, beside both formulas."""
    columns: dict[str, list] = {name: [] for name in (
        "answers", "static_share", "error_share", "discrete_share", "formula_share", "continuous_share", "gain_ratio"
    )}  # fmt: skip
    for distribution in DISTRIBUTIONS:
        requests = trace(scale.drawn, 0, ("constant", 8), (distribution, mean), seed=1)
        static, continuous = (
            simulate(requests, Limits(policy, scale.batch, WHOLE)) for policy in ("static", "continuous")
        )
        row = (
            distribution, used_share(static, scale.batch), standard_error(static, scale.batch),
            mean / longest_of(distribution, mean, scale.batch), continuous_form(distribution, scale.batch),
            used_share(continuous, scale.batch), len(static.steps) / len(continuous.steps),
        )  # fmt: skip
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def length_values(columns: Mapping[str, list], batch: int) -> dict[str, float]:
    """The columns' shares by name, and the harmonic number of the batch."""
    values = {
        f"{str(answers).replace(' ', '_')}_{name}": columns[name][row]
        for row, answers in enumerate(columns["answers"])
        for name in ("static_share", "discrete_share", "continuous_share")
        if answers != "constant" and (name != "continuous_share" or answers == "geometric")
    }
    return {"harmonic_ratio": sum(1 / k for k in range(1, batch + 1)), **values}


def batch_columns(mean: int = 32, batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)) -> dict[str, list]:
    """Expected share of places that a static batch uses, by its size and the distribution of answers."""
    rows = [(batch, mean / longest_of(name, mean, batch), name) for name in DISTRIBUTIONS for batch in batches]
    return dict(zip(("places_count", "used_share", "answers"), map(list, zip(*rows, strict=True)), strict=True))


def step_values(scale: Scale, constant: bool = False) -> dict[str, int]:
    """One trace that all waits, prompts of two kinds: steps by policy, and padding with and without sorting."""
    answers = ("constant" if constant else "geometric", 32)
    requests = trace(scale.simulated, 0, ("few long", 64), answers, seed=4)
    name = "equal" if constant else "all"
    values = {} if constant else {"all_requests_count": len(requests), "all_batch_count": scale.batch}
    for policy in ("static", "length", "continuous"):
        served = simulate(requests, Limits(policy, scale.batch, WHOLE))
        values[f"{name}_{policy}_steps_count"] = len(served.steps)
        if not constant and policy != "continuous":
            values[f"{policy}_padded_tokens"] = padded_tokens(served)
    return values


# --8<-- [start:cost]
def predicted_cost(geometry: Geometry = LLAMA_3_8B) -> Cost:
    """Nanoseconds of a step on an H100, from declared peaks: BF16 weights read, FLOP of a token, cache read a token.

    The three are added, as if nothing overlapped: more than the roofline's bound, less than a real engine takes.
    """
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    weights = parameters(geometry).linear + geometry.vocabulary * geometry.hidden
    cached = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim
    return Cost(
        round(2 * weights / peak.bytes_per_second * SECOND),
        round(2 * weights / peak.flops_per_second * SECOND),
        round(2 * cached / peak.bytes_per_second * SECOND),
    )


# --8<-- [end:cost]

GAPS = (400, 200, 100, 60, 40, 30, 25)  # milliseconds between arrivals on average
BUSY, LIGHT = 40, 400


def serving_limits(policy: str, budget: int = 512, **changes: int) -> Limits:
    """The simulated server's limits; a batch by length may be padded to the longest prompt throughout."""
    least = 32 * LONGEST_PROMPT if policy == "length" else budget
    return replace(Limits(policy, 32, least, window=SECOND // 2), **changes)  # type: ignore[arg-type]


def arrivals(count: int, gap: int) -> list[Request]:
    """The simulated trace at a load: the same requests, closer together or further apart."""
    return trace(count, gap, PROMPTS, ANSWERS, seed=2, unit=MILLISECOND)


def run_figures(count: int, gap: int, limits: Limits) -> dict[str, int]:
    """One simulated run, summed up."""
    return figures(simulate(arrivals(count, gap), limits, predicted_cost()), FIRST_LIMIT, GAP_LIMIT)


def load_columns(scale: Scale, gaps: Sequence[int] = GAPS) -> dict[str, list]:
    """Every policy at every load of the simulated H100."""
    rows = []
    for gap in gaps:
        for policy in POLICIES:
            found = run_figures(scale.simulated, gap, serving_limits(policy))
            seconds = found["span"] / SECOND
            rows.append((
                1000 / gap, policy, found["written_tokens"] / seconds, found["good"] / seconds, found["good"],
                *(found[name] / SECOND for name in ("first_p50", "first_p95", "first_p99", "gap_p50", "gap_p99")),
            ))  # fmt: skip
    names = (
        "load_requests_per_second", "policy", "speed_tokens_per_second", "good_requests_per_second", "good_count",
        "first_p50_seconds", "first_p95_seconds", "first_p99_seconds", "gap_p50_seconds", "gap_p99_seconds",
    )  # fmt: skip
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def load_values(columns: Mapping[str, list], requests: int) -> dict[str, int]:
    """Of the columns by load: requests that were good at the busy load, by policy."""
    busy = {
        policy: good
        for load, policy, good in zip(
            columns["load_requests_per_second"], columns["policy"], columns["good_count"], strict=True
        )
        if load == 1000 / BUSY
    }
    counts = {f"busy_{policy}_good_count": busy[policy] for policy in ("static", "window", "continuous")}
    return {"simulated_requests_count": requests, **counts}


def light_values(scale: Scale) -> dict[str, float]:
    """What makes a request good; and the trap: at a light load tokens/s are those of the arrivals, whoever serves."""
    static, continuous = (run_figures(scale.simulated, LIGHT, serving_limits(p)) for p in ("static", "continuous"))
    return {
        "first_limit_seconds": FIRST_LIMIT / SECOND,
        "gap_limit_seconds": GAP_LIMIT / SECOND,
        "light_speed_ratio": static["span"] / continuous["span"],
        "light_static_first_seconds": static["first_p50"] / SECOND,
        "light_continuous_first_seconds": continuous["first_p50"] / SECOND,
    }


def idle_values(scale: Scale, policy: str = "continuous") -> dict[str, float]:
    """Where hardly anybody meets another: the median of whole latencies, over that of a server without a batch."""
    rare = trace(scale.rare, 60, PROMPTS, ANSWERS, seed=2, unit=SECOND)
    lone, found = (
        figures(simulate(rare, limits, predicted_cost()), FIRST_LIMIT, GAP_LIMIT)
        for limits in (serving_limits("continuous", batch=1), serving_limits(policy))
    )
    return {"idle_whole_ratio": found["whole_p50"] / lone["whole_p50"]}


def budget_columns(scale: Scale, budgets: Sequence[int] = (64, 128, 256, 512, 1024, WHOLE)) -> dict[str, list]:
    """The busy load by budget of a step: how long others pause for a prompt, and how long a prompt takes."""
    rows = []
    for budget in budgets:
        served = simulate(arrivals(scale.simulated, BUSY), serving_limits("continuous", budget), predicted_cost())
        found = figures(served, FIRST_LIMIT, GAP_LIMIT)
        widest = max(sum(step.counts.values()) for step in served.steps)
        rows.append((
            f"{budget:,}" if budget < WHOLE else "whole prompts", widest, found["steps"], found["good"],
            *(found[name] / SECOND for name in ("gap_p50", "gap_p99", "first_p50", "first_p99")),
        ))  # fmt: skip
    names = ("budget", "widest_tokens", "steps_count", "good_count",
             "gap_p50_seconds", "gap_p99_seconds", "first_p50_seconds", "first_p99_seconds")  # fmt: skip
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def memory_columns(scale: Scale, blocks: Sequence[int] = (4096, 1400, 1100, 900, 700)) -> dict[str, list]:
    """The busy load by size of the cache: who yields, and what is computed again."""
    rows = []
    for count in blocks:
        found = run_figures(scale.simulated, BUSY, serving_limits("continuous", blocks=count))
        needed = sum(one.prompt + one.answer - 1 for one in arrivals(scale.simulated, BUSY))
        rows.append((
            count * Limits().block_tokens, found["preempted"], found["run_tokens"] - needed, found["good"],
            found["gap_p99"] / SECOND, found["first_p99"] / SECOND,
        ))  # fmt: skip
    names = ("cache_tokens", "preempted_count", "again_tokens", "good_count", "gap_p99_seconds", "first_p99_seconds")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def timed_values(decoder: Decoder, scale: Scale) -> dict[str, float]:
    """Tokens/s of a real decoder, all requests waiting, static and continuous interleaved."""
    requests = trace(scale.timed, 0, ("constant", 8), ("geometric", 8), seed=6)
    prompts = [trained.held_out_ids()[8 * n : 8 * n + 8].tolist() for n in range(scale.timed)]
    base = Limits(batch=scale.batch, budget=128, blocks=400)

    def run(policy: str) -> Callable[[], object]:
        return lambda: serve(decoder, prompts, requests, replace(base, policy=policy))

    runs = {policy: run(policy) for policy in ("static", "continuous")}
    times = clock.interleave(runs, device=decoder.lm_head.weight.device, rounds=scale.rounds, blocks=1)
    written = sum(one.answer for one in requests)
    return {
        "timed_speed_ratio": times.ratio("static", "continuous"),
        **{f"{policy}_speed_tokens_per_second": written / times.seconds(policy) for policy in runs},
    }


def timed_counts(scale: Scale) -> dict[str, int]:
    """Steps of those two runs."""
    requests = trace(scale.timed, 0, ("constant", 8), ("geometric", 8), seed=6)
    steps = {name: len(simulate(requests, Limits(name, scale.batch, 128)).steps) for name in ("static", "continuous")}
    return {f"timed_{name}_steps_count": n for name, n in steps.items()}


def pause_values(decoder: Decoder, scale: Scale, chunk: int | None = None) -> dict[str, float]:
    """The longest step that three who write share with a long prompt: with the whole of it, or its last chunk."""
    ids = smollm2.encode(texts.address(), decoder.lm_head.weight.device)[0]
    times = step_times(decoder, ids, scale.long_prompt, chunk or scale.chunk, rounds=scale.rounds)
    return {
        "pause_ratio": times.ratio("whole", "last"),
        "whole_pause_seconds": times.seconds("whole"),
        "chunk_pause_seconds": times.seconds("last"),
    }


def predicted_pause(scale: Scale) -> dict[str, float]:
    """The same two steps for Llama-3-8B on the simulated H100."""
    cost = predicted_cost()

    def seconds(new: int) -> float:
        context = 3 * 33 + scale.long_prompt
        return (cost.step + cost.token * (3 + new) + cost.context * context) / SECOND

    return {"h100_whole_pause_seconds": seconds(scale.long_prompt), "h100_chunk_pause_seconds": seconds(scale.chunk)}


def cut_values(columns: Mapping[str, list], budget: str = "512") -> dict[str, float]:
    """Of the columns by budget: whole prompts against cut ones, and against a budget that starves them."""
    small, cut, whole = (columns["budget"].index(name) for name in ("64", budget, "whole prompts"))
    return {
        "simulated_pause_ratio": columns["gap_p99_seconds"][whole] / columns["gap_p99_seconds"][cut],
        "starved_good_count": columns["good_count"][small],
        "cut_good_count": columns["good_count"][cut],
        "whole_good_count": columns["good_count"][whole],
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; the equality is one of FP32, so `dtype` is not asked."""
    scale, where = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    return {
        **real_values(scale, where),
        **length_values(length_columns(scale), scale.batch),
        **step_values(scale),
        **step_values(scale, constant=True),
        **load_values(load_columns(scale, (BUSY,)), scale.simulated),
        **light_values(scale),
        **idle_values(scale),
        **cut_values(budget_columns(scale, (64, 512, WHOLE))),
        **scale.counts(),
        **timed_counts(scale),
        **timed_values(trained.decoder("small").to(where), scale),
        **pause_values(smollm2.decoder(torch.float32, where), scale),
        **predicted_pause(scale),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Static in place of continuous, whole prompts in place of chunks, equal answers in place of unequal ones."""
    scale, where = SMALL if small else Scale(), pick(device)
    columns = length_columns(replace(scale, drawn=64))
    equal = {f"{name}_static_share": columns["static_share"][0] for name in ("uniform", "geometric", "few_long")}
    return {
        **equal,
        "geometric_continuous_share": columns["static_share"][columns["answers"].index("geometric")],
        **idle_values(scale, "window"),
        **cut_values(budget_columns(scale, (64, WHOLE)), "whole prompts"),
        "pause_ratio": pause_values(smollm2.decoder(torch.float32, where), scale, scale.long_prompt - 1)["pause_ratio"],
    }


if __name__ == "__main__":
    report("throughput/continuous_batching", measure())
