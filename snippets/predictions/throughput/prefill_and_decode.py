"""Counted are the products, weights, cache and launches of a layer and of the whole model, of a prompt and of a token;
activations between operations are left out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models.decoder import Block
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry
from snippets.predictions.counting import counted
from snippets.predictions.layers import ELEMENT_BYTES, fast_format, product_seconds
from snippets.throughput import prefill_and_decode as page

READ_NUMBERS = 2**26
"""FP32 numbers of the plain sum that is timed beside the layer."""


@cache
def layer_launches(geometry: Geometry) -> int:
    """Operations of one layer without a cache, as it is timed."""
    with torch.device("meta"):
        block = Block(geometry).to(torch.bfloat16).requires_grad_(False)
    return counted(page.layer_call(block, geometry, 1)).launches


@cache
def step_launches(geometry: Geometry) -> int:
    """Operations of one step of a whole decoder, as the page counts them."""
    return page.kernels(geometry)


def work_seconds(target: Target, work: page.Work, number_format: str, launches: int) -> float:
    """Least seconds of a pass with that work."""
    moved = work.weight_bytes + work.cache_bytes
    return target.seconds(number_format, flops=work.flops, bytes=moved, launches=launches)


def timed(target: Target, scale: page.Scale) -> page.Timed:
    """What the page measures of a layer, every second of it predicted."""
    geometry, launches = replace(scale.layer, vocabulary=0), layer_launches(scale.layer)
    seconds = {n: work_seconds(target, page.work(geometry, n), "bfloat16", launches) for n in scale.rows}
    moved = READ_NUMBERS * ELEMENT_BYTES["float32"]
    most, (outputs, inner) = max(scale.rows), scale.layer.linear_shapes["mlp.up_proj"]
    product = product_seconds(target, most, outputs, inner, "bfloat16")
    return page.Timed(
        seconds=seconds,
        row_ratio={rows: rows * seconds[1] / each for rows, each in seconds.items()},
        read_bytes_per_second=moved / target.seconds("float32", flops=READ_NUMBERS, bytes=moved),
        product_flops_per_second=2 * most * outputs * inner / product,
    )


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale, number_format = page.Scale(), fast_format(target)
    gated, shown = page.layer_values(timed(target, scale), scale)
    size, launches, tokens = ELEMENT_BYTES[number_format], step_launches(SMOLLM2_135M), scale.prompt_tokens
    prefill, decode = (
        work_seconds(target, page.work(SMOLLM2_135M, new, before, element_bytes=size), number_format, launches)
        for new, before in ((tokens, 0), (1, tokens))
    )
    return {
        **gated,
        **shown,
        "model_speed_ratio": tokens * decode / prefill,
        "prefill_seconds": prefill,
        "decode_seconds": decode,
        "llama_calls_count": step_launches(LLAMA_3_8B),
        "smollm2_calls_count": launches,
        "launch_seconds": page.LAUNCH_SECONDS,
    }
