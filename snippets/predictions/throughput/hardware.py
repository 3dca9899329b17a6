"""Counted are a product's operations, bytes and launch, of which the page's own method leaves out launches. Caches are
left out, and so is the processor beside an accelerator, on which part of the page is measured."""

from __future__ import annotations

from math import isqrt

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import ELEMENT_BYTES, fast_format, product_seconds
from snippets.predictions.reasons import ON_THE_HOST
from snippets.throughput import hardware as page

IN_CACHE = "what a device's cache holds and how fast it is, which its declared peaks do not tell"
CORES = "how much of the processor one core is, which its declared peaks do not tell"
CACHED_ROWS = 64
"""Of the page's product with weights that a cache holds: as many as bind it by its operations."""


def tried(target: Target, scale: page.Scale) -> list[page.Trial]:
    """The page's trials of its method, with a launch in every product that it does not count."""
    fast = not on_cpu(target) or fast_format(target) == "bfloat16"
    number_format = "bfloat16" if fast else "float32"
    size, most = ELEMENT_BYTES[number_format], max(scale.rows)

    def seconds(shape: page.Shape, rows: int) -> float:
        return product_seconds(target, rows, *shape, number_format)

    known = page.calibrated(scale.known, {n: seconds(scale.known, n) for n in (1, most)}, size)
    return [
        page.Trial(
            f"{inner} to {outputs}",
            page.predicted_seconds((outputs, inner), rows, known, size),
            2 * rows * outputs * inner / known.flops_per_second,
            seconds((outputs, inner), rows),
        )
        for outputs, inner in scale.unseen
        for rows in scale.rows
    ]


def processor(target: Target, scale: page.Scale) -> dict[str, float | str]:
    """What newer instructions gain: BF16's rate over FP32's, in which older ones compute, on the same bytes."""
    names = {"one": 1, "many": max(scale.rows)}
    if not on_cpu(target):
        return {f"instructions_{part}_ratio": ON_THE_HOST for part in names}
    (outputs, inner), size = scale.known, ELEMENT_BYTES["bfloat16"]

    def seconds(rows: int, units: str) -> float:
        moved = size * (outputs * inner + rows * (outputs + inner))
        return target.seconds(units, flops=2 * rows * outputs * inner, bytes=moved)

    return {
        f"instructions_{part}_ratio": seconds(rows, "float32") / seconds(rows, "bfloat16")
        for part, rows in names.items()
    }


def near_many_ratio(target: Target, scale: page.Scale) -> float:
    """A weight's seconds among many that come from memory, over those of its operations alone, as in a cache."""
    width = isqrt(scale.far_bytes // ELEMENT_BYTES["float32"])
    far = product_seconds(target, CACHED_ROWS, width, width, "float32")
    return far * target.flops_per_second["float32"] / (2 * CACHED_ROWS * width**2)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = page.Scale()
    moved = 3 * ELEMENT_BYTES["bfloat16"] * SMOLLM2_135M.hidden  # two terms and their sum
    tiny = target.seconds("float32", flops=SMOLLM2_135M.hidden, bytes=moved)
    on_processor = on_cpu(target)
    return {
        **processor(target, scale),
        **{f"cores_{part}_ratio": CORES if on_processor else ON_THE_HOST for part in page.PARTS},
        **page.tested_values(tried(target, scale)),
        "near_many_ratio": near_many_ratio(target, scale),
        **dict.fromkeys(("near_ratio", "near_bytes", "far_bytes"), IN_CACHE),
        "tiny_seconds": tiny,
        "tiny_ratio": tiny * target.bytes_per_second / moved if on_processor else ON_THE_HOST,
        "most_rows_count": max(scale.rows),
    }
