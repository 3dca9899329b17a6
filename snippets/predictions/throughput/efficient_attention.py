"""Counted is every operation of each way of attention as the page calls it, in FP32 on tensors without content, and the
bytes held at once, by formula. What a kernel skips above the diagonal counts as computed."""

from __future__ import annotations

from functools import cache, partial

import torch

from snippets.instruments.targets import Target
from snippets.predictions.counting import Work, counted
from snippets.throughput.efficient_attention import HEADS, WAYS, WIDTH, Attend, Scale, masked, online

KERNELS = ("fused", "masked")


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = Scale()

    def seconds(way: str, tokens: int, window: int | None = None) -> float:
        return _work(way, tokens, window).seconds(target, "float32")

    longest, shortest = scale.lengths[-1], scale.lengths[0]
    naive_ratio = seconds("naive", longest) / seconds("fused", longest)
    fused, window = seconds("fused", scale.long), seconds("online", scale.long, scale.window)
    narrow = seconds("masked", scale.long, scale.window)
    return {
        **_peaks(scale.held[-1]),
        "naive_ratio": naive_ratio,
        "fresh_ratio": naive_ratio,
        "short_linear_ratio": seconds("fused", shortest) / seconds("linear", shortest),
        "linear_ratio": fused / seconds("linear", scale.long),
        "window_ratio": narrow / window,
        "long_fused_seconds": fused,
        "mask_ratio": narrow / seconds("masked", scale.long),
        "window_fused_ratio": fused / window,
    }


def _peaks(tokens: int) -> dict[str, float]:
    """Bytes held beside the inputs: scores twice, while new ones are made of old; of the kernel, output and sums."""
    size = torch.float32.itemsize
    return {
        "naive_peak_bytes": 2 * HEADS * tokens * tokens * size,
        "fused_peak_bytes": HEADS * tokens * (WIDTH + 1) * size,
    }


@cache
def _work(way: str, tokens: int, window: int | None) -> Work:
    """Of one way at SmolLM2's heads."""
    narrow: dict[str, Attend] = {"masked": partial(masked, window=window), "online": partial(online, window=window)}
    given = [torch.empty(HEADS, tokens, WIDTH, device="meta") for _ in range(3)]
    with torch.inference_mode(way in KERNELS):  # else PyTorch takes its kernel apart before it is counted
        return counted({**WAYS, **narrow}[way], *given)
