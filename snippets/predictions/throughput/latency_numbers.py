"""Counted are products, weights, launches, gathered caches and padded attention of every step of the paged cache; the
queue is the page's own, run on those seconds in FP32, and fitted as the page fits its measured ones."""

from __future__ import annotations

from collections.abc import Sequence

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.layers import paged_step_seconds
from snippets.predictions.reasons import OWN_H100
from snippets.predictions.throughput.continuous_batching import WRITERS, WRITTEN
from snippets.throughput import latency_numbers as page

WARM_PROMPTS, WARM_ANSWER = 2, 4
"""Requests and tokens of the run from whose first and last step the page takes how far apart requests come."""


class Steps:
    """What `page.Live` runs and times, with predicted seconds in place of both."""

    def __init__(self, target: Target, requests: Sequence[page.Request]) -> None:
        self.target, self.requests = target, requests
        self.lengths = [request.prompt for request in requests]
        self.steps: list[tuple[int, int, float]] = []  # (decoding, prompt tokens, seconds)

    def __call__(self, running: Sequence[int], admitted: Sequence[int]) -> float:
        for one in running:
            self.lengths[one] += 1
        prompts = [self.requests[one].prompt for one in admitted]
        lengths = [self.lengths[one] for one in (*running, *admitted)]
        seconds = paged_step_seconds(self.target, SMOLLM2_135M, [1] * len(running) + prompts, lengths)
        self.steps.append((len(running), sum(prompts), seconds))
        return seconds


def ran(target: Target, requests: Sequence[page.Request], slots: int) -> Steps:
    """The steps that these requests ask for."""
    steps = Steps(target, requests)
    page.serve(requests, steps, slots)
    return steps


def live(target: Target, scale: page.Scale) -> Steps:
    """The page's run of the real model: requests as many a second as it can just serve."""
    sizes = [(scale.prompts[i % len(scale.prompts)], scale.answers[i % len(scale.answers)]) for i in range(scale.count)]
    warm = ran(target, [page.Request(0, prompt, WARM_ANSWER) for prompt, _ in sizes[:WARM_PROMPTS]], WARM_PROMPTS)
    apart = warm.steps[0][2] / WARM_PROMPTS + 6 * warm.steps[-1][2]
    return ran(target, [page.Request(apart * i, *size) for i, size in enumerate(sizes)], scale.slots)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = page.Scale()
    longest = max(scale.prompts)
    stalled, plain = (
        paged_step_seconds(target, SMOLLM2_135M, [1] * WRITERS + [new], [WRITTEN] * WRITERS + [longest])
        for new in (longest, 1)
    )
    return {
        "stall_ratio": stalled / plain,
        "plain_step_seconds": plain,
        "stalled_step_seconds": stalled,
        **page.fitted_values(live(target, scale), scale),  # type: ignore[arg-type]  # it looks at the steps alone
        **dict.fromkeys(page.predicted_values(), OWN_H100),
    }
