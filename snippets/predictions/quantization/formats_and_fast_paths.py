"""One product in each format: its operations, and its factors and result once; what caches keep is left out.

Where no units multiply INT8, its codes are made FP32 and their sums integers again, operation by operation.
"""

from __future__ import annotations

from functools import cache, partial

import torch

from snippets.instruments.targets import Target
from snippets.models.operators import int8_product
from snippets.predictions.counting import Work, counted
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import product_seconds
from snippets.predictions.reasons import or_reason
from snippets.quantization.formats_and_fast_paths import INNER

ROWS = 256  # of the product that the page times


@cache
def plain_int8() -> Work:
    """INT8's product in public operators."""
    a, b = (torch.empty(size, INNER, dtype=torch.int8, device="meta") for size in (ROWS, INNER))
    return counted(partial(int8_product, plain=True), a, b)


def seconds(target: Target, number_format: str) -> float:
    """Least seconds of the product.

    Raises:
        LookupError: the target has no units for that format, and the page no other way.
    """
    if number_format == "int8" and number_format not in target.flops_per_second:
        return plain_int8().seconds(target, "float32")
    return product_seconds(target, ROWS, INNER, INNER, number_format)


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    wide = seconds(target, "float32")
    loop = "a loop without fast instructions, whose operations are not those of the product"
    return {
        "bf16_speed_ratio": or_reason(lambda: wide / seconds(target, "bfloat16")),
        "int8_speed_ratio": wide / seconds(target, "int8"),
        "fp16_speed_ratio": or_reason(lambda: wide / seconds(target, "float16")),
        "e4m3_slower_ratio": loop if on_cpu(target) else or_reason(lambda: seconds(target, "float8") / wide),
        "int8_general_slower_ratio": loop if on_cpu(target) else "accelerators refuse the general operator on integers",
        "e4m3_saturated_count": "what a cast makes of numbers beyond the range, which each PyTorch version decides",
    }
