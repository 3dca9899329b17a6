"""Counted are the products, weights, cache and launches of one layer's decode step; activations are left out."""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.predictions.layers import decode_curve
from snippets.throughput.batching import LAYER, Scale, ratio_values


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = Scale()
    ends = (min(scale.batches), max(scale.batches))
    return {**ratio_values("layer", decode_curve(target, LAYER, ends, scale.context, "bfloat16", head=False))}
