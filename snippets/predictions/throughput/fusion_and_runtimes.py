"""Counted are calls and bytes of the chain and of a layer: eager ones as PyTorch dispatches them, fused ones as few as
products leave. How well a library computes a product, and what runtimes do before the first step, are left out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models.compiled import counted
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import ELEMENT_BYTES, fast_format, product_seconds
from snippets.predictions.reasons import LOGIT_GAP, ON_THE_HOST, OWN_H100, TRAINED_LOGITS
from snippets.throughput import fusion_and_runtimes as page

EXPORTED = "a count of nodes that an exporter or a runtime chooses"
START = "seconds of a compiler and of files, which operations and bytes do not tell"
BETWEEN_PRODUCTS = 6
"""Least kernels of a compiled layer besides its products: norm, rotation with the cache's write, attention, residual
with norm, SiLU times up, residual."""


def step_counts(layers: int) -> dict[str, float]:
    """The page's counts of a decoder's step, of its first layers alone, with nothing compiled."""
    decoder = page.thin_decoder(torch.device("cpu"))
    decoder.layers, decoder.geometry = decoder.layers[:layers], replace(decoder.geometry, layers=layers)
    return page.step_values(decoder, counted)


@cache
def calls() -> dict[str, float]:
    """The page's counts of what a step dispatches, the compiled layer as few kernels as it can be."""
    one, two = step_counts(1), step_counts(2)  # every further layer adds as many
    eager, fused = one["layer_eager_count"], one["layer_eager_products_count"] + BETWEEN_PRODUCTS
    plain, static = (
        one[name] + (page.THIN.layers - 1) * (two[name] - one[name])
        for name in ("plain_step_count", "compiled_step_count")
    )
    chain = counted(page.glue, *page.chain_inputs(1, torch.device("cpu"))).calls.total()
    return {
        "chain_kernels_ratio": float(chain),  # into one
        "compiled_chain_count": 1,
        "layer_kernels_ratio": eager / fused,
        "layer_eager_count": eager,
        "layer_compiled_count": fused,
        "plain_step_count": plain,
        "compiled_step_count": static - page.THIN.layers * (eager - fused),
    }


def chain_values(target: Target, scale: page.Scale) -> dict[str, float]:
    """The chain launch by launch and as one kernel, and the product beside it, which has nothing to fuse."""
    moved = page.glue_bytes(scale.rows, LLAMA_3_8B.hidden, LLAMA_3_8B.ffn)
    eager = target.seconds("float32", bytes=moved["eager"], launches=int(calls()["chain_kernels_ratio"]))
    fused = target.seconds("float32", bytes=moved["least"])
    product = product_seconds(target, scale.rows, LLAMA_3_8B.ffn, LLAMA_3_8B.hidden, "bfloat16")
    return {
        "compiled_chain_bytes": moved["least"],
        "chain_bytes_ratio": moved["eager"] / moved["least"],
        "chain_eager_seconds": eager,
        "chain_compiled_seconds": fused,
        "chain_speed_ratio": eager / fused,
        "product_seconds": product,
        "product_speed_ratio": product / product,
    }


def step_seconds(target: Target, geometry: Geometry, launches: float, rows: int = 1, size: float = 4) -> float:
    """Least seconds of a decode step with `size` bytes a weight: each is read once; the short cache is left out."""
    weights, units = page.step_weights(geometry), "float32" if size == ELEMENT_BYTES["float32"] else "bfloat16"
    return target.seconds(units, flops=2 * rows * weights, bytes=weights * size, launches=int(launches))


def runner_values(target: Target, scale: page.Scale) -> dict[str, float | str]:
    """Steps of the same weights in FP32, by launches alone different; other runtimes compute on processors."""
    plain, fused = calls()["plain_step_count"], calls()["compiled_step_count"]
    eager, compiled = (
        {rows: step_seconds(target, SMOLLM2_135M, count, rows) for rows in (1, scale.batch)} for count in (plain, fused)
    )
    thin, thin_fused = (step_seconds(target, page.THIN, count) for count in (plain, fused))
    found: dict[str, float | str] = {
        "compiled_single_ratio": eager[1] / compiled[1],
        "compiled_batch_ratio": eager[scale.batch] / compiled[scale.batch],
        "thin_step_seconds": thin,
        "overhead_share": thin / eager[1],
        "thin_compiled_ratio": thin / thin_fused,
    }
    runtimes = {f"{name}_{kind}_ratio": rows for name in ("onnx", "openvino")
                for kind, rows in (("single", 1), ("batch", scale.batch))}  # fmt: skip
    if not on_cpu(target):
        return found | dict.fromkeys([*runtimes, "default_ratio"], ON_THE_HOST)
    one_call = {rows: step_seconds(target, SMOLLM2_135M, 1, rows) for rows in eager}
    found |= {name: eager[rows] / one_call[rows] for name, rows in runtimes.items()}
    size = ELEMENT_BYTES[fast_format(target)]  # OpenVINO's own choice
    return found | {"default_ratio": one_call[1] / step_seconds(target, SMOLLM2_135M, 1, size=size)}


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = page.Scale()
    return {
        **calls(),
        **chain_values(target, scale),
        **runner_values(target, scale),
        **dict.fromkeys(("exported_nodes_count", "onnx_nodes_count", "openvino_nodes_count"), EXPORTED),
        **dict.fromkeys(("compiled_start_ratio", "onnx_start_ratio", "openvino_start_ratio"), START),
        "default_checked_tokens": scale.new_tokens,
        **dict.fromkeys(("default_equal_tokens", "default_logit_difference"), TRAINED_LOGITS),
        "smallest_gap_difference": LOGIT_GAP,
        **dict.fromkeys(("h100_large_graph_ratio", "h100_launch_seconds"), OWN_H100),
    }
