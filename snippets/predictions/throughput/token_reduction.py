"""Counted are the products, attention, weights and launches of one layer's prefill by the length of the prompt;
activations, which a long prompt writes and reads between the products, are left out."""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.predictions.layers import ELEMENT_BYTES, fast_format, step_seconds
from snippets.throughput.token_reduction import Scale, first_token_values


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale, number_format = Scale(), fast_format(target)
    size = ELEMENT_BYTES[number_format]
    seconds = [
        step_seconds(
            target,
            scale.layer,
            rows=1,
            new=tokens,
            context=tokens,
            weight_bytes_per_weight=size,
            cache_bytes_per_number=size,
            number_format=number_format,
        )
        for tokens in scale.lengths
    ]
    longest = seconds[scale.lengths.index(max(scale.lengths))]
    gated, shown = first_token_values(
        {
            "prompt_tokens": list(scale.lengths),
            "first_seconds": seconds,
            "sooner_ratio": [longest / each for each in seconds],
        }
    )
    return {**gated, **shown}
