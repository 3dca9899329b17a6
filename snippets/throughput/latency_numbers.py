"""TTFT, TPOT, goodput: which latency numbers?

Claim: a latency number is a statistic of a population, and the populations differ: requests or tokens, arrivals or
sends, all answers or those in time. One run gives another number for each, and the p99s of parts do not add up.

Run: python -m snippets.throughput.latency_numbers
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import fmean, median
from typing import NamedTuple

import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import paged, smollm2, texts
from snippets.models.capacity import token_bytes
from snippets.models.decoder import Decoder, generate
from snippets.models.interference import step_times
from snippets.models.shapes import LLAMA_3_8B, parameters

# isort: split
from measured.values import report

# --8<-- [start:workload]
REQUESTS, PROMPTS, ANSWERS = 2000, (128, 512, 2048), (17, 65, 257)  # how many; tokens of each, drawn evenly
TTFT_LIMIT, TPOT_LIMIT = 500, 70  # the stated objective, in ticks
BUSY = 90  # per cent of the server's capacity, where one run is looked at closely
LOADS = (30, 40, 50, 60, 70, 80, 90, 100, 110, 120)
# --8<-- [end:workload]


# --8<-- [start:serve]
class Request(NamedTuple):
    """When it arrives, its prompt and its answer in tokens."""

    arrival: float
    prompt: int
    answer: int


@dataclass
class Served:
    """What a client sees: when the request arrived and was sent, and when each token came."""

    arrival: float
    sent: float  # a client with as many connections as the server has slots sends it only when one is free
    tokens: list[float] = field(default_factory=list)

    @property
    def ttft(self) -> float:
        return self.tokens[0] - self.arrival

    @property
    def decode(self) -> float:
        return self.tokens[-1] - self.tokens[0]

    @property
    def total(self) -> float:
        return self.tokens[-1] - self.arrival

    @property
    def gaps(self) -> list[float]:
        return [after - before for before, after in zip(self.tokens, self.tokens[1:], strict=False)]

    @property
    def tpot(self) -> float:
        return self.decode / (len(self.tokens) - 1)


Step = Callable[[Sequence[int], Sequence[int]], float]  # (decoding, admitted) → how long the step takes


def serve(requests: Sequence[Request], step: Step, slots: int) -> list[Served]:
    """Continuous batching, oldest first: a step gives a token to all who decode, and prefills those it admits."""
    served = [Served(request.arrival, request.arrival) for request in requests]
    running: list[int] = []
    freed, now, first = deque([0.0] * slots), 0.0, 0
    while running or first < len(requests):
        admitted: list[int] = []
        while first < len(requests) and requests[first].arrival <= now and len(running) + len(admitted) < slots:
            served[first].sent = max(requests[first].arrival, freed.popleft())
            admitted.append(first)
            first += 1
        if not running and not admitted:
            now = requests[first].arrival
            continue
        now += step(running, admitted)
        running += admitted
        for one in running:
            served[one].tokens.append(now)
        left = [one for one in running if len(served[one].tokens) < requests[one].answer]
        freed.extend([now] * (len(running) - len(left)))
        running = left
    return served


# --8<-- [end:serve]


# --8<-- [start:stated]
class Server(NamedTuple):
    """What a step takes, in whole ticks: a fixed part, so much a decoding sequence, so many prompt tokens a tick."""

    base: int = 20
    row: int = 1
    prompts_a_tick: float = 16
    slots: int = 32

    def run(self, requests: Sequence[Request]) -> list[Served]:
        """Simulate it."""

        def ticks(running: Sequence[int], admitted: Sequence[int]) -> int:
            prefill = sum(requests[one].prompt for one in admitted) // self.prompts_a_tick
            return self.base + self.row * len(running) + int(prefill)

        return serve(requests, ticks, self.slots)

    def never_idle(self, requests: Sequence[Request]) -> int:
        """Ticks for all requests if all were there at the start: its capacity."""
        return int(max(one.tokens[-1] for one in self.run([r._replace(arrival=0) for r in requests])))


# --8<-- [end:stated]


def workload(count: int, prompts: Sequence[int] = PROMPTS, answers: Sequence[int] = ANSWERS) -> list[Request]:
    """Random arrivals in whole ticks (geometric gaps), prompts and answers; the same on every machine."""
    draw, found, now = Random(0), [], 0
    for _ in range(count):
        while draw.random() >= 1 / 16:
            now += 1
        prompt, answer = (sizes[int(draw.random() * len(sizes))] for sizes in (prompts, answers))
        found.append(Request(now, prompt, answer))
    return found


def at_load(requests: Sequence[Request], percent: int, never_idle: int) -> list[Request]:
    """The same requests in the same order, arriving at `percent` of what a server never idle answers."""
    last = int(requests[-1].arrival)
    return [r._replace(arrival=int(r.arrival) * never_idle * 100 // (last * percent)) for r in requests]


def busy_run(requests: Sequence[Request], server: Server) -> list[Served]:
    """The run that is looked at closely."""
    return server.run(at_load(requests, BUSY, server.never_idle(requests)))


def even_run(server: Server, count: int = 200) -> list[Served]:
    """The baseline: equal requests so far apart that none meets another."""
    return server.run([Request(100_000 * number, PROMPTS[1], ANSWERS[1]) for number in range(count)])


# --8<-- [start:numbers]
def percentile(values: Sequence[float], percent: int) -> float:
    """Nearest rank: the least value that so many per cent do not exceed."""
    return sorted(values)[-(-percent * len(values) // 100) - 1]


def adding_values(served: Sequence[Served]) -> dict[str, float]:
    """The p99 of each part and of the whole; how many requests are among the slowest hundredth in both parts."""
    parts = {name: [getattr(one, name) for one in served] for name in ("ttft", "decode", "total")}
    worst = {name: {i for i, v in enumerate(parts[name]) if v >= percentile(parts[name], 99)} for name in parts}
    found = {f"{name}_p99_ticks_count": percentile(values, 99) for name, values in parts.items()}
    found |= {f"{name}_sum_ticks_count": sum(values) for name, values in parts.items()}
    return found | {"slowest_count": len(worst["ttft"]), "both_slowest_count": len(worst["ttft"] & worst["decode"])}


def gap_values(served: Sequence[Served]) -> dict[str, float]:
    """The same gaps averaged over requests (TPOT) and over tokens (ITL), and the covariance that lies between."""
    tpots, counts = [one.tpot for one in served], [len(one.tokens) - 1 for one in served]
    gaps = [gap for one in served for gap in one.gaps]
    each, many = fmean(tpots), fmean(counts)
    return {
        "tpot_mean_count": each,
        "gap_mean_count": fmean(gaps),
        "gaps_a_request_count": many,
        "covariance_count": fmean((t - each) * (n - many) for t, n in zip(tpots, counts, strict=True)),
        "gap_p99_ratio": percentile(gaps, 99) / percentile(tpots, 99),
    }


# --8<-- [end:numbers]


def sent_values(served: Sequence[Served]) -> dict[str, float]:
    """p99 of TTFT by a stopwatch that starts when the client sends."""
    return {"sent_ttft_p99_ticks_count": percentile([one.tokens[0] - one.sent for one in served], 99)}


def run_columns(served: Sequence[Served]) -> dict[str, list]:
    """Mean, median and p99 of every latency number of one run."""
    rows = {
        "TTFT: arrival to first token": [one.ttft for one in served],
        "decode: first to last token": [one.decode for one in served],
        "total: arrival to last token": [one.total for one in served],
        "TPOT: decode over its gaps, one number a request": [one.tpot for one in served],
        "ITL: every gap of every request": [gap for one in served for gap in one.gaps],
        "total over all its tokens": [one.total / len(one.tokens) for one in served],
    }
    return {
        "number": list(rows),
        "mean_count": [fmean(values) for values in rows.values()],
        "median_count": [percentile(values, 50) for values in rows.values()],
        "p99_count": [percentile(values, 99) for values in rows.values()],
    }


# --8<-- [start:goodput]
def in_time(one: Served) -> bool:
    """The stated objective: first token and pace, both."""
    return one.ttft <= TTFT_LIMIT and one.tpot <= TPOT_LIMIT


def goodput_columns(requests: Sequence[Request], server: Server, loads: Sequence[int]) -> dict[str, list]:
    """Requests answered, and answered in time, a tick: as shares of what a server never idle answers."""
    full, rows = server.never_idle(requests), []
    for load in loads:
        served = server.run(at_load(requests, load, full))
        taken = max(one.tokens[-1] for one in served) - served[0].arrival
        good = sum(map(in_time, served))
        rows.append((load / 100, full / taken, full / taken * good / len(served), good))
    names = ("load_share", "throughput_share", "goodput_share", "good_count")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


# --8<-- [end:goodput]


def goodput_values(columns: dict[str, list]) -> dict[str, float]:
    """The load with the most goodput, and what has become of both at full load."""
    best = max(range(len(columns["load_share"])), key=columns["goodput_share"].__getitem__)
    full = min(range(len(columns["load_share"])), key=lambda i: abs(columns["load_share"][i] - 1))
    found = {f"{name}_{c}": columns[c][i] for name, i in (("best", best), ("full", full)) for c in columns}
    return {name: value for name, value in found.items() if name != "full_load_share"}


# --8<-- [start:small]
def hidden_values(count: int = 1000, each: int = 8) -> dict[str, float]:
    """Slow first tokens and slow decodes, each rarer than a hundredth, of different requests."""
    ttft = [1000] * each + [10] * (count - each)
    decode = [100] * (count - each) + [1000] * each
    total = [a + b for a, b in zip(ttft, decode, strict=True)]
    return {
        "hidden_sum_ticks_count": percentile(ttft, 99) + percentile(decode, 99),
        "hidden_total_ticks_count": percentile(total, 99),
    }


def workers_values() -> dict[str, float]:
    """Two workers, the slow one with a twentieth of the traffic: the mean of their p99s, and the p99 of all."""
    quick, slow = [10] * 950, [1000] * 50
    return {
        "workers_mean_ticks_count": (percentile(quick, 99) + percentile(slow, 99)) // 2,
        "workers_pooled_ticks_count": percentile(quick + slow, 99),
    }


def sample_values(served: Sequence[Served]) -> dict[str, float]:
    """How many samples a p99 takes, and what it comes out as in samples of a hundred requests of one run."""
    totals = [one.total for one in served]
    parts = [percentile(totals[k :: len(totals) // 100], 99) for k in range(len(totals) // 100)]
    return {
        "bounded_count": next(n for n in range(1, 1000) if 0.99**n <= 0.05),
        "subsets_count": len(parts),
        "least_p99_ticks_count": min(parts),
        "most_p99_ticks_count": max(parts),
    }


# --8<-- [end:small]


def stated_values(served: Sequence[Served]) -> dict[str, int]:
    """The stated server and its run, and that of equal requests which never meet, in whole numbers."""
    found = adding_values(served) | sent_values(served) | hidden_values() | workers_values() | sample_values(served)
    alone = adding_values(even_run(Server()))
    found |= {f"even_{name}": alone[name] for name in alone if "_p99_" in name}
    return {name: int(value) for name, value in found.items()} | {
        "requests_count": len(served),
        "busy_load_count": BUSY,
        "base_ticks_count": Server().base,
        "prompts_a_tick_count": int(Server().prompts_a_tick),
        "slots_count": Server().slots,
        "ttft_limit_ticks_count": TTFT_LIMIT,
        "tpot_limit_ticks_count": TPOT_LIMIT,
    }


# --8<-- [start:live]
class Live:
    """Runs the steps that `serve` asks for on a real model with a paged cache, and tells their seconds."""

    def __init__(self, decoder: Decoder, prompts: Sequence[Tensor], answers: Sequence[int]) -> None:
        weight, block = decoder.embed_tokens.weight, 16
        blocks = sum(-(-(len(p) + n) // block) for p, n in zip(prompts, answers, strict=True))
        self.decoder, self.prompts, self.device = decoder, prompts, weight.device
        self.cache = paged.PagedCache(decoder.geometry, blocks, block, weight.dtype, weight.device)
        self.places: dict[int, int] = {}
        self.written: list[list[Tensor]] = [[] for _ in prompts]
        self.steps: list[tuple[int, int, float]] = []  # (decoding, prompt tokens, seconds)

    def __call__(self, running: Sequence[int], admitted: Sequence[int]) -> float:
        for done in self.places.keys() - set(running):
            self.cache.finish(self.places.pop(done))
        self.places |= {one: self.cache.admit() for one in admitted}
        fresh = {self.places[one]: self.written[one][-1] for one in running}
        fresh |= {self.places[one]: self.prompts[one] for one in admitted}
        chosen, seconds = clock.time_once(
            lambda: paged.step(self.decoder, self.cache, fresh).argmax(-1), device=self.device
        )
        for one, token in zip([*running, *admitted], chosen[:, None], strict=True):
            self.written[one].append(token)
        self.steps.append((len(running), sum(len(self.prompts[one]) for one in admitted), seconds))
        return seconds


# --8<-- [end:live]


@dataclass(frozen=True)
class Scale:
    """How much of the real model is run: requests, their prompts and answers, slots, and how many are run alone."""

    count: int = 20
    prompts: Sequence[int] = (32, 160)
    answers: Sequence[int] = (9, 17, 25)
    slots: int = 8
    alone: int = 3


SMALL = Scale(count=4, prompts=(4, 96), answers=(9, 13), slots=3, alone=1)


def live_run(decoder: Decoder, scale: Scale) -> tuple[Live, list[Served]]:
    """Real requests on a clock that only the model's own steps move, as many a second as it can just serve."""
    device = decoder.embed_tokens.weight.device
    text = smollm2.encode(texts.address(), device)[0]
    sizes = [(scale.prompts[i % len(scale.prompts)], scale.answers[i % len(scale.answers)]) for i in range(scale.count)]
    starts = [sum(prompt for prompt, _ in sizes[:i]) for i in range(scale.count)]
    prompts = [text[at : at + size] for at, (size, _) in zip(starts, sizes, strict=True)]
    clock.fix_allocator()
    spacings = []
    for _ in range(3):
        warm = Live(decoder, prompts[:2], [4, 4])
        serve([Request(0, *size) for size in sizes[:2]], warm, 2)
        spacings.append(warm.steps[0][2] / 2 + 6 * warm.steps[-1][2])  # half of what prefilled two, and some steps
    each = min(spacings)  # a disturbed one would let requests pass each other by
    requests = [Request(each * i, *size) for i, size in enumerate(sizes)]
    live = Live(decoder, prompts, [answer for _, answer in sizes])
    with clock.timing_lock():
        return live, serve(requests, live, scale.slots)


def equal_values(live: Live, alone: int) -> dict[str, float]:
    """Tokens of the first requests as served beside others, against each run alone."""
    served = [torch.cat(tokens) for tokens in live.written[:alone]]
    lone = [generate(live.decoder, live.prompts[i][None], len(served[i]))[0] for i in range(alone)]
    return {
        "checked_tokens": sum(len(tokens) for tokens in served),
        "equal_tokens": sum(int((a == b).sum()) for a, b in zip(served, lone, strict=True)),
    }


def live_columns(served: Sequence[Served]) -> dict[str, list]:
    """Latency numbers of the real run, in seconds."""
    rows = {
        "TTFT": [one.ttft for one in served],
        "total": [one.total for one in served],
        "TPOT, a request": [one.tpot for one in served],
        "ITL, a gap": [gap for one in served for gap in one.gaps],
    }
    return {
        "number": list(rows),
        "samples_count": [len(values) for values in rows.values()],
        "median_seconds": [percentile(values, 50) for values in rows.values()],
        "p90_seconds": [percentile(values, 90) for values in rows.values()],
        "largest_seconds": [max(values) for values in rows.values()],
    }


def stall_values(decoder: Decoder, scale: Scale, prompts: bool = True) -> dict[str, float]:
    """Seconds of a step for three who decode: with a fourth's token in it, and with the longest prompt, in turn.

    The baseline, without `prompts`: all of the longest prompt against all but a token of it.
    """
    ids, longest = smollm2.encode(texts.address(), decoder.lm_head.weight.device)[0], max(scale.prompts)
    times = step_times(decoder, ids, longest, 1 if prompts else longest - 1, rounds=3)
    return {
        "plain_step_seconds": times.seconds("last"),
        "stalled_step_seconds": times.seconds("whole"),
        "stall_ratio": times.ratio("whole", "last"),
    }


def fitted(live: Live, slots: int) -> tuple[Server, dict[str, float]]:
    """A server in whole microseconds from the measured steps, by least squares."""
    rows = torch.tensor([(1, decoding, prompt) for decoding, prompt, _ in live.steps], dtype=torch.float64)
    seconds = torch.tensor([each for *_, each in live.steps], dtype=torch.float64)
    parts = torch.linalg.lstsq(rows, seconds[:, None]).solution[:, 0].clamp(min=1e-7).tolist()
    base, row, prompt = parts
    off = median(abs(base + row * d + prompt * p - seconds) / seconds for d, p, seconds in live.steps)
    server = Server(round(base * 1e6), round(row * 1e6), 1e-6 / prompt, slots)
    return server, {
        "fitted_base_seconds": base,
        "fitted_row_seconds": row,
        "fitted_prompt_seconds": prompt,
        "fitted_error_share": off,
    }


def fitted_values(live: Live, scale: Scale, count: int = REQUESTS) -> dict[str, float]:
    """The measured steps carried on to as many requests as a p99 needs."""
    server, parts = fitted(live, scale.slots)
    served = busy_run(workload(count, scale.prompts, scale.answers), server)
    kinds = {name: [getattr(one, name) for one in served] for name in ("ttft", "decode", "total", "tpot")}
    kinds["gap"] = [gap for one in served for gap in one.gaps]
    return parts | {f"fitted_{name}_p99_seconds": percentile(each, 99) / 1e6 for name, each in kinds.items()}


def predicted_values(batch: int = 32, context: int = 1024, prompt: int = 2048) -> dict[str, float]:
    """Llama-3-8B in BF16 on an H100 at its declared peaks: a decode step, and the same step with a prompt in it."""
    peak, counted = gpu_peak("H100 SXM", "bfloat16"), parameters(LLAMA_3_8B)
    assert peak is not None
    weights = counted.linear + counted.head
    moved = 2 * weights + batch * context * token_bytes(LLAMA_3_8B)
    plain, stalled = (
        predict_seconds(flops=2 * (batch * weights + more * counted.linear), bytes=moved, peak=peak, launches=0)
        for more in (0, prompt)
    )
    return {
        "h100_batch_count": batch,
        "h100_context_tokens": context,
        "h100_prompt_tokens": prompt,
        "h100_plain_seconds": plain,
        "h100_stalled_seconds": stalled,
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; the real model runs in FP32, in which tokens are shown to be equal."""
    scale, requests = SMALL if small else Scale(), workload(REQUESTS)
    served = busy_run(requests, Server())
    live, _ = live_run(smollm2.decoder(dtype or torch.float32, pick(device)), scale)
    return {
        **stated_values(served),
        **gap_values(served),
        **goodput_values(goodput_columns(requests, Server(), (80, 100) if small else LOADS)),
        **equal_values(live, scale.alone),
        **stall_values(live.decoder, scale),
        **fitted_values(live, scale),
        **predicted_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same with equal requests that never meet, at one load, and steps without a prompt in them."""
    served, requests = even_run(Server()), workload(200)
    scale = Scale(count=2, prompts=(1,), answers=(12,), slots=2)
    live, _ = live_run(smollm2.decoder(dtype or torch.float32, pick(device)), scale)
    columns = goodput_columns(requests, Server(), (30,))
    return {
        **adding_values(served),
        **gap_values(served),
        **goodput_values(columns),
        **stall_values(live.decoder, SMALL, prompts=False),
    }


if __name__ == "__main__":
    report("throughput/latency_numbers", measure())
