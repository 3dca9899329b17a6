"""Counted are the products, weights, cache and launches of SmolLM2's decode step and prefill in BF16, set against the
target's own rates as the page sets them against measured ones; activations and norms are left out."""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.layers import ELEMENT_BYTES, ceilings, step_seconds
from snippets.throughput.capacity_and_cost import Measured, Scale, model_bytes, model_flops, model_values

FORMAT = "bfloat16"


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = Scale()
    shapes = [(batch, 1, scale.context) for batch in scale.batches] + [(1, scale.prompt, scale.prompt)]
    read, product = ceilings(target, FORMAT)
    found = Measured(
        name=[f"{rows} x {new}" for rows, new, _ in shapes],
        tokens=[rows * new for rows, new, _ in shapes],
        flops=[model_flops(SMOLLM2_135M, *shape) for shape in shapes],
        moved=[model_bytes(SMOLLM2_135M, rows, context, ELEMENT_BYTES[FORMAT]) for rows, _, context in shapes],
        seconds=[
            step_seconds(target, SMOLLM2_135M, rows=rows, new=new, context=context) for rows, new, context in shapes
        ],
        read_bytes_per_second=read,
        product_flops_per_second=product,
    )
    return {**model_values(found)}
