"""Counted are a check's operations on tensors without content, and the products, weights and launches of the layers and
heads that drafting runs, all in FP32; how many proposals are right is assumed, not known."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models.decoder import Decoder, rotation
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.counting import Work, counted
from snippets.predictions.layers import step_seconds
from snippets.throughput.early_exit import EARLY, own

GAMMA, STEP_TOKENS = 3, 1
"""Proposals of a step; and assumed: after so few layers none of them is right, so a step adds the check's own token."""


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    check, layers = (work.seconds(target, "float32") for work in _check_work())
    return {"check_time_ratio": check / layers * SMOLLM2_135M.layers, "draft_time_ratio": _draft_ratio(target)}


@cache
def _check_work() -> tuple[Work, Work]:
    """A check of one token and all layers, both as the page calls them."""
    with torch.device("meta"):
        decoder = Decoder(SMOLLM2_135M).requires_grad_(False)
        x = torch.ones(1, 1, SMOLLM2_135M.hidden)
    cos, sin = rotation(SMOLLM2_135M, 0, 1, x)

    def check() -> None:
        own(decoder).logits(decoder, x).softmax(-1).max(-1)

    def layers() -> None:
        state = x
        for block in decoder.layers:
            state = block(state, cos, sin)

    return counted(check), counted(layers)


def _draft_ratio(target: Target) -> float:
    """A step of so many drafts and one check of them all, for each token it yields, over a plain step."""

    def seconds(layers: int, rows: int) -> float:
        part = replace(SMOLLM2_135M, layers=layers)
        return step_seconds(
            target, part, rows=rows, weight_bytes_per_weight=torch.float32.itemsize, number_format="float32"
        )

    step = GAMMA * seconds(EARLY, 1) + seconds(SMOLLM2_135M.layers - EARLY, GAMMA)
    return step / STEP_TOKENS / seconds(SMOLLM2_135M.layers, 1)
