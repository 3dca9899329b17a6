"""One layer in six ways: its products, conversions and bytes on a CPU by the page's formula; on an accelerator, where
the page's quantized layers make their weights floats in memory, every operation that they dispatch there.

Kernels' efficiency and caches are left out: a weight-only product is as fast as a plain one once its operations bind.
"""

from __future__ import annotations

from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models.products import DynamicInt8Linear
from snippets.models.quantized import quantize_rows_int8
from snippets.predictions.counting import Work, counted
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import ceilings, product_seconds
from snippets.predictions.reasons import ON_THE_HOST
from snippets.quantization.inference_speed import NAMES, Curves, Scale, Ways, shown_values, speed_values, ways, work

SCALE = Scale()
PLAIN = "w8a8, plain"  # where no units multiply INT8: codes are made FP32, and their exact sums integers again
PEAK_ROWS = 128  # of the plain product that the page takes a rate from
FORMATS = {way: {"fp32": "float32", "w8a8": "int8"}.get(way, "bfloat16") for way in NAMES}
FP32_BYTES, CODE_BYTES, COPY_BYTES = 4, 1, 2  # a weight in FP32, in INT8, and in the BF16 copy that is made of a code
CACHE = "where a matrix leaves the last cache, whose size is no declared rate"


@cache
def _layers() -> Ways:
    weight = torch.empty(SCALE.layer, device="meta")
    plain = DynamicInt8Linear(quantize_rows_int8(weight), torch.bfloat16, plain=True)
    return {**ways(weight, torch.bfloat16), PLAIN: plain}


@cache
def dispatched(way: str, rows: int) -> Work:
    """What a way's layer hands to an accelerator."""
    x = torch.empty(rows, SCALE.layer[1], dtype=torch.bfloat16, device="meta")
    with torch.no_grad():
        return counted(_layers()[way], x)


def way_seconds(target: Target, way: str, rows: int) -> float:
    """Least seconds of one call.

    Raises:
        LookupError: no units for its format here.
    """
    if on_cpu(target):
        one, number_format = work(way, rows, *SCALE.layer), FORMATS[way]
        wider = target.peak(number_format).flops_per_second / target.peak("float32").flops_per_second
        return target.seconds(number_format, flops=one.flops + one.extra * wider, bytes=one.bytes)
    if way == "w8a8" and FORMATS[way] not in target.flops_per_second:
        return dispatched(PLAIN, rows).seconds(target, "float32")
    return dispatched(way, rows).seconds(target, FORMATS[way])


def curves(target: Target) -> Curves:
    """The page's curves, every second of them predicted."""
    timed = sorted([*SCALE.rows, *SCALE.between])
    seconds = {(way, rows): way_seconds(target, way, rows) for way in NAMES for rows in timed}
    speed = {(way, rows): seconds["bf16", rows] / taken for (way, rows), taken in seconds.items()}
    width = SCALE.layer[1]
    plain = 2 * PEAK_ROWS * width**2 / product_seconds(target, PEAK_ROWS, width, width, "bfloat16")
    peak = max(plain, *(work("bf16", n, *SCALE.layer).flops / seconds["bf16", n] for n in SCALE.rows))
    read, _ = ceilings(target, "bfloat16")
    return Curves(seconds, speed, read, {"bf16": peak}, timed)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    found = curves(target)
    kept = found.against("bf16", "naive", 1)
    return {
        **speed_values(found, SCALE),
        **shown_values(found),
        "step_moved_ratio": FP32_BYTES / (CODE_BYTES + (0 if on_cpu(target) else COPY_BYTES)),
        **dict.fromkeys(("cache_bytes", "fp32_step_count", "int8_step_count"), CACHE),
        "kept_naive_ratio": kept if on_cpu(target) else ON_THE_HOST,
        **dict.fromkeys(("fresh_naive_ratio", "confound_ratio"), "what an allocator takes for fresh memory"),
    }
