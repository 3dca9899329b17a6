"""Who gets a place in the next step: static, dynamic and continuous batching, as one scheduler without torch.

A scheduler says at each step how many new tokens of which request are run; who runs them is another matter: a model
over a `PagedCache`, or `simulate`, which charges each step a cost. Lengths are drawn and times are kept in whole
numbers, so a trace gives the same schedule on every machine; docs/assets/scheduler.js repeats it in a page.

`static` waits until a batch is full; `window` until it is full or the oldest has waited long enough; `length` starts
as `window` does, and takes beside the oldest those whose prompts are most like its own, as many as a budget of padded
prompt tokens allows. In these a batch runs until its last answer ends. `continuous` decides anew at each step.
Sources: Orca (OSDI), PagedAttention (arXiv:2309.06180), Sarathi-Serve (arXiv:2403.02310) for chunked prefill.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

POLICIES = ("static", "window", "length", "continuous")
DISTRIBUTIONS = ("constant", "uniform", "geometric", "few long")
_MODULUS, _FACTOR = 2**31 - 1, 48_271


@dataclass(frozen=True)
class Request:
    """When it arrives, in the clock's unit, and how many tokens it brings and asks for."""

    arrival: int
    prompt: int
    answer: int


@dataclass(frozen=True)
class Limits:
    """What a server allows: sequences at once, new tokens in a step, blocks of cache, the wait for company."""

    policy: str = "continuous"
    batch: int = 8
    budget: int = 512  # continuous: new tokens in a step, so prompts are cut; length: padded tokens of prompts
    blocks: int = 10**9
    block_tokens: int = 16
    window: int = 0  # window, length: the longest that the oldest waits for company

    def blocks_of(self, tokens: int) -> int:
        """Blocks that hold so many tokens of one sequence."""
        return -(-tokens // self.block_tokens)


@dataclass(frozen=True)
class Step:
    """One step: new tokens to run by request, then who is a token further, who ends, who lost its cache before."""

    counts: dict[int, int]
    writes: list[int]
    ends: list[int]
    preempted: list[int]
    context: int  # cached tokens that the step attends to, its own among them


class Scheduler:
    """Requests in, steps out. A request is known by its place in the list, which is in order of arrival."""

    def __init__(self, requests: Sequence[Request], limits: Limits) -> None:
        """Refuses with ValueError what could never end: a request larger than the cache, a budget below the batch."""
        if limits.policy not in POLICIES:
            raise ValueError(f"{limits.policy!r} is none of {', '.join(POLICIES)}")
        if min(limits.batch, limits.block_tokens) < 1 or limits.window < 0:
            raise ValueError("a batch and a block have at least one place, and a window is not negative")
        if limits.budget < limits.batch:
            raise ValueError(f"a budget of {limits.budget} tokens starves a batch of {limits.batch}")
        if any(one.arrival > other.arrival for one, other in pairwise(requests)):
            raise ValueError("requests come in order of arrival")
        for number, request in enumerate(requests):
            if min(request.prompt, request.answer) < 1:
                raise ValueError(f"request {number} needs a token of prompt and one of answer")
            if limits.blocks_of(request.prompt + request.answer - 1) > limits.blocks:
                raise ValueError(f"request {number} does not fit the cache even alone")
        self.requests, self.limits = requests, limits
        self.waiting = deque(range(len(requests)))
        self.running: list[int] = []  # longest admitted first
        self.cached, self.written = [0] * len(requests), [0] * len(requests)
        self.free = limits.blocks

    def pending(self, request: int) -> int:
        """Known tokens that are not in the cache: a prompt or what is left of it, else the token written last."""
        return self.requests[request].prompt + self.written[request] - self.cached[request]

    # --8<-- [start:next]
    def next(self, now: int) -> Step | None:
        """The step that begins now; None where there is nothing to run before `wake()`."""
        counts: dict[int, int] = {}
        preempted: list[int] = []
        if self.limits.policy == "continuous":
            self._continue(counts, preempted)
            if not preempted:
                self._admit(now, counts)
        else:
            if not self.running and self.waiting and self.wake() <= now:
                self._form(now)
            for request in self.running:
                self._give(request, self.pending(request), counts)
        return self._finished(counts, preempted) if counts else None

    def _continue(self, counts: dict[int, int], preempted: list[int]) -> None:
        """A token for everybody who writes, what the budget leaves for prompts; the youngest yield their blocks."""
        left = self.limits.budget - sum(self.pending(request) == 1 for request in self.running)
        at = 0
        while at < len(self.running):
            request = self.running[at]
            new = 1 if self.pending(request) == 1 else min(self.pending(request), left)
            while self._fresh(request, new) > self.free:
                preempted.append(self.running.pop())
                self._preempt(preempted[-1])
                if preempted[-1] == request:
                    return
            if new:
                left -= new if self.pending(request) > 1 else 0
                self._give(request, new, counts)
            at += 1

    def _admit(self, now: int, counts: dict[int, int]) -> None:
        """The oldest who wait, while there are places, budget and blocks for the whole prompt: nobody overtakes."""
        left = self.limits.budget - sum(counts.values())
        while self.waiting and left and len(self.running) < self.limits.batch:
            request = self.waiting[0]
            promised = sum(self._fresh(other, self.pending(other)) for other in self.running)
            whole = self._fresh(request, self.pending(request))
            if self.requests[request].arrival > now or promised + whole > self.free:
                return
            self.running.append(self.waiting.popleft())
            new = min(self.pending(request), left)
            self._give(request, new, counts)
            left -= new

    # --8<-- [end:next]

    def wake(self) -> int:
        """When the oldest who waits could be admitted, if nothing runs. ValueError if nobody waits."""
        if not self.waiting:
            raise ValueError("nobody waits")
        oldest = self.requests[self.waiting[0]].arrival
        if self.limits.policy == "continuous":
            return oldest
        full = self.requests[self.waiting[min(self.limits.batch, len(self.waiting)) - 1]].arrival
        if self.limits.policy == "static":  # the last ones do not wait for company that will never come
            return full
        patience = oldest + self.limits.window
        return min(full, patience) if len(self.waiting) >= self.limits.batch else patience

    def _form(self, now: int) -> None:
        """A batch that nobody joins, small enough for all its answers' blocks."""
        known = [request for request in self.waiting if self.requests[request].arrival <= now]
        if self.limits.policy == "length":
            like = self.requests[known[0]].prompt
            known.sort(key=lambda request: abs(self.requests[request].prompt - like))  # stable: ties by arrival
        longest = held = 0
        for request in known[: self.limits.batch]:
            wanted = self.requests[request]
            longest = max(longest, wanted.prompt)
            held += self.limits.blocks_of(wanted.prompt + wanted.answer - 1)
            padded = (len(self.running) + 1) * longest if self.limits.policy == "length" else 0
            if self.running and (held > self.limits.blocks or padded > self.limits.budget):
                break
            self.running.append(request)
        taken = set(self.running)
        self.waiting = deque(request for request in self.waiting if request not in taken)

    def _fresh(self, request: int, new: int) -> int:
        cached = self.cached[request]
        return self.limits.blocks_of(cached + new) - self.limits.blocks_of(cached)

    def _give(self, request: int, new: int, counts: dict[int, int]) -> None:
        self.free -= self._fresh(request, new)
        self.cached[request] += new
        counts[request] = new

    def _preempt(self, request: int) -> None:
        """Its cache is dropped and computed again: all but the youngest stay, so it waits at the head."""
        self.free += self.limits.blocks_of(self.cached[request])
        self.cached[request] = 0
        self.waiting.appendleft(request)

    def _finished(self, counts: dict[int, int], preempted: list[int]) -> Step:
        context = sum(self.cached[request] for request in counts)
        writes = [request for request in counts if not self.pending(request)]
        for request in writes:
            self.written[request] += 1
        ends = [request for request in writes if self.written[request] == self.requests[request].answer]
        for request in ends:
            self.free += self.limits.blocks_of(self.cached[request])
            self.running.remove(request)
        return Step(counts, writes, ends, preempted, context)


# --8<-- [start:simulate]
@dataclass(frozen=True)
class Cost:
    """What a step takes, in whole units of the clock: for itself, for each new token, for each cached token."""

    step: int = 1
    token: int = 0
    context: int = 0


@dataclass
class Served:
    """What became of a trace: every step, when each began and ended, and when each token was written."""

    requests: Sequence[Request]
    steps: list[Step] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    times: list[list[int]] = field(default_factory=list)


def simulate(requests: Sequence[Request], limits: Limits, cost: Cost | None = None) -> Served:
    """Run a trace to its end; without a cost the clock counts steps."""
    cost, scheduler, now = cost or Cost(), Scheduler(requests, limits), 0
    served = Served(requests, times=[[] for _ in requests])
    while scheduler.waiting or scheduler.running:
        step = scheduler.next(now)
        if step is None:
            now = scheduler.wake()
            continue
        now += cost.step + cost.token * sum(step.counts.values()) + cost.context * step.context
        served.steps.append(step)
        served.ended.append(now)
        for request in step.writes:
            served.times[request].append(now)
    return served


# --8<-- [end:simulate]


def percentile(numbers: Sequence[int], percent: int) -> int:
    """The smallest of the numbers that so many percent of them do not exceed (nearest rank); of none, zero."""
    return sorted(numbers)[max(0, -(-percent * len(numbers) // 100) - 1)] if numbers else 0


def figures(served: Served, first_limit: int, gap_limit: int) -> dict[str, int]:
    """Whole numbers that sum a run up, times in the clock's unit.

    A request is good if its first token comes within `first_limit` of its arrival and no later token more than
    `gap_limit` after the one before it. Goodput is good requests over the time from the first arrival to the end.
    """
    arrivals = [request.arrival for request in served.requests]
    first = [times[0] - arrival for times, arrival in zip(served.times, arrivals, strict=True)]
    whole = [times[-1] - arrival for times, arrival in zip(served.times, arrivals, strict=True)]
    gaps = [[b - a for a, b in pairwise(times)] for times in served.times]
    good = [
        wait <= first_limit and max(between, default=0) <= gap_limit for wait, between in zip(first, gaps, strict=True)
    ]
    kinds = {"first": first, "gap": [gap for between in gaps for gap in between], "whole": whole}
    return {
        **{f"{name}_p{q}": percentile(numbers, q) for name, numbers in kinds.items() for q in (50, 95, 99)},
        "steps": len(served.steps),
        "run_tokens": sum(sum(step.counts.values()) for step in served.steps),
        "written_tokens": sum(map(len, served.times)),
        "preempted": sum(len(step.preempted) for step in served.steps),
        "requests": len(arrivals),
        "good": sum(good),
        "span": served.ended[-1] - arrivals[0],
    }


class Draws:
    """Whole numbers at random, the same in every language (Park, Miller and Stockmeyer's minimal standard)."""

    def __init__(self, seed: int) -> None:
        self._state = seed % (_MODULUS - 1) + 1
        for _ in range(8):  # small seeds begin with small numbers
            self.below(2)

    def below(self, most: int) -> int:
        """One of zero to `most`, itself left out."""
        self._state = self._state * _FACTOR % _MODULUS
        return self._state % most

    # --8<-- [start:lengths]
    def length(self, distribution: str, mean: int) -> int:
        """Tokens, at least one, of this mean (few long: an even one). Geometric: each is the last by one chance."""
        if distribution == "constant":
            return mean
        if distribution == "uniform":
            return 1 + self.below(2 * mean - 1)
        if distribution == "few long":  # one in eight is nine times as long as the others
            return mean // 2 if self.below(8) else 9 * mean // 2
        if distribution != "geometric":
            raise ValueError(f"{distribution!r} is none of {', '.join(DISTRIBUTIONS)}")
        tokens = 1
        while self.below(mean):
            tokens += 1
        return tokens

    # --8<-- [end:lengths]


def trace(
    count: int, gap: int, prompts: tuple[str, int], answers: tuple[str, int], seed: int = 0, unit: int = 1
) -> list[Request]:
    """Requests at random: (distribution, mean) of both lengths, `gap` units of the clock between arrivals on average.

    In each unit a request arrives by the same chance, so gaps are geometric: a Poisson process, rounded. Without a
    gap all arrive at once.
    """
    draws, now, made = Draws(seed), 0, []
    for _ in range(count):
        made.append(Request(now * unit, draws.length(*prompts), draws.length(*answers)))
        now += draws.length("geometric", gap) if gap else 0
    return made
