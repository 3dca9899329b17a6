"""Least seconds of a decoder's step, of a product and of a read on a target: formulas that predictions of pages share.

Of a step are counted the products with the weights and the attention, the weights and the cache that they read, and the
kernels that are launched; activations, embeddings, norms and the few launches outside of layers are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from snippets.instruments.targets import Target
from snippets.models.shapes import Geometry, parameters
from snippets.throughput.batching import Curve, step_work

ELEMENT_BYTES = {"float32": 4, "tf32": 4, "float16": 2, "bfloat16": 2, "float8": 1, "int8": 1}
"""Bytes of a number by the formats of `datasheets`."""

LAUNCHES = 26
"""Kernels of one layer of `snippets.models.decoder`, run eagerly: two norms, seven products, ten for the rotations, two
writes to the cache, attention, two additions, the activation and its product. A test counts them on the meta device."""

PAGED_LAUNCHES, PAGED_OVERHEAD = 29, 33
"""Kernels of one layer over a paged cache, which are gathered besides, and those before and behind all layers."""


def step_seconds(
    target: Target,
    geometry: Geometry,
    *,
    rows: int,
    context: int = 0,
    new: int = 1,
    weight_bytes_per_weight: float = 2.0,
    cache_bytes_per_number: float = 2.0,
    number_format: str = "bfloat16",
    launches_per_layer: int = LAUNCHES,
    head: bool = True,
) -> float:
    """Least seconds of one forward of all layers: the weights are read once, each row's cache once.

    Args:
        target: the device.
        geometry: the decoder's shape.
        rows: sequences.
        context: tokens that the last new one attends to, itself among them; without any, attention is left out.
        new: tokens computed of each row, the last of its context: one for decode, all of them for prefill.
        weight_bytes_per_weight: bytes of a stored weight, its share of a scale with it.
        cache_bytes_per_number: the same of the cache.
        number_format: of the products, by the names of `datasheets`.
        launches_per_layer: kernels of a layer; zero for a graph that is launched as a whole.
        head: whether the last token of each row goes through the head.

    Raises:
        LookupError: the target has no units for that format.
        ValueError: more new tokens than context.
    """
    if 0 < context < new:
        raise ValueError(f"{new} new tokens are not the last of a context of {context}")
    body, whole = (step_work(geometry, rows, context, 1, head=with_head) for with_head in (False, head))
    pairs = rows * new * (new - 1) // 2 if context else 0  # a new token and a later one, which it does not see
    unseen = 4 * geometry.layers * geometry.heads * geometry.head_dim * pairs
    return target.seconds(
        number_format,
        flops=new * body.flops - unseen + (whole.flops - body.flops),
        bytes=whole.weight_bytes * weight_bytes_per_weight + whole.cache_bytes * cache_bytes_per_number,
        launches=launches_per_layer * geometry.layers,
    )


def paged_step_seconds(
    target: Target, geometry: Geometry, counts: Sequence[int], lengths: Sequence[int], number_format: str = "float32"
) -> float:
    """Least seconds of `paged.step`: so many new tokens of each sequence, of so many with them.

    Keys and values of all sequences are gathered to the longest one's length (read, written) and read again, and as
    many queries a sequence as any has attend to them: what is padded is computed.

    Raises:
        LookupError: the target has no units for that format.
    """
    found, padded = parameters(geometry), len(lengths) * max(lengths)
    head = geometry.vocabulary * geometry.hidden
    pairs = geometry.layers * geometry.heads * geometry.head_dim * padded * max(counts)
    cached = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * padded
    return target.seconds(
        number_format,
        flops=2 * (sum(counts) * found.linear + len(counts) * head) + 4 * pairs,
        bytes=ELEMENT_BYTES[number_format] * (found.linear + head + 3 * cached),
        launches=PAGED_LAUNCHES * geometry.layers + PAGED_OVERHEAD,
    )


def fast_format(target: Target) -> str:
    """BF16 where the target multiplies it with instructions of its own, else FP32: what pages choose there."""
    return "bfloat16" if "fast-bf16" in target.capabilities else "float32"


def product_seconds(
    target: Target, rows: int, columns: int, inner: int, number_format: str, launches: int = 1
) -> float:
    """Least seconds of a product (rows, inner) x (inner, columns): factors are read, the result written, once each.

    Raises:
        LookupError: the target has no units for that format.
    """
    moved = (rows * inner + inner * columns + rows * columns) * ELEMENT_BYTES[number_format]
    return target.seconds(number_format, flops=2 * rows * columns * inner, bytes=moved, launches=launches)


def ceilings(target: Target, number_format: str) -> tuple[float, float]:
    """(bytes/s, FLOP/s) that pages would measure beside their steps: a sum of many FP32 numbers, a large product."""
    numbers, rows, width = 2**26, 256, 4096
    moved = numbers * ELEMENT_BYTES["float32"]
    read = target.seconds("float32", flops=numbers, bytes=moved)
    product = product_seconds(target, rows, width, width, number_format)
    return moved / read, 2 * rows * width * width / product


def decode_curve(
    target: Target, geometry: Geometry, batches: Sequence[int], context: int, number_format: str, **step: Any
) -> Curve:
    """A page's curve of decode steps by batch, every second of it predicted; `step` goes to `step_seconds`."""
    size = ELEMENT_BYTES[number_format]
    step |= {"weight_bytes_per_weight": size, "cache_bytes_per_number": size, "number_format": number_format}
    seconds = {batch: step_seconds(target, geometry, rows=batch, context=context, **step) for batch in batches}
    read, product = ceilings(target, number_format)
    return Curve(seconds, {batch: each / seconds[min(seconds)] for batch, each in seconds.items()}, read, product, 0)
