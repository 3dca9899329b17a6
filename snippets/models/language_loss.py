"""Next-token loss of a decoder in nats a token, on fixed windows of text, with errors of paired differences.

Two variants of a model read the same windows, so what they share cancels in the difference and its standard error.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.models import smollm2, texts


def windows(ids: Tensor, length: int, count: int) -> Tensor:
    """The first `count` windows of ids (tokens,), end to end: (count, length).

    Raises:
        ValueError: there are fewer tokens than that.
    """
    if ids.ndim != 1 or ids.numel() < length * count:
        raise ValueError(f"{count} windows of {length} need {length * count} tokens in a row, got {tuple(ids.shape)}")
    return ids[: length * count].view(count, length)


@torch.inference_mode()
def window_nats(decoder: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Mean next-token loss of each window (count, length), FP64 (count,) on the CPU.

    One window at a time: logits of a large vocabulary are big. A window's first token is read, never predicted.
    """
    losses = []
    for window in windows:
        logits = decoder(window[None, :-1])[0]  # (length - 1, vocabulary)
        losses.append(F.cross_entropy(logits.float(), window[1:], reduction="none").double().mean().cpu())
    return torch.stack(losses)


def paired_difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean of a - b over pairs, and its standard error (NaN for a single pair)."""
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"pairs need two rows of one length, not {tuple(a.shape)} and {tuple(b.shape)}")
    difference = a.double() - b.double()
    error = difference.std() / len(difference) ** 0.5 if len(difference) > 1 else torch.tensor(float("nan"))
    return float(difference.mean()), float(error)


def unseen_windows(count: int = 4, length: int = 1024) -> Tensor:
    """SmolLM2's tokens of a message that is newer than the model: (count, length)."""
    return windows(smollm2.encode(texts.address())[0], length, count)


def calibration_windows(count: int, length: int = 1024, year: int = 2024) -> Tensor:
    """SmolLM2's tokens of an older message, to calibrate on: (count, length)."""
    return windows(smollm2.encode(texts.address(year))[0], length, count)
