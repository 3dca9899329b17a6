"""A whole training step, an optimizer's update alone and one product: every operation that the page's code dispatches.

Of autocast's step, activations and gradients are counted as in BF16 throughout, with each matrix cast forth and its
gradient back; fused kernels are counted for AdamW alone.
"""

from __future__ import annotations

from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models.shapes import Geometry, parameters
from snippets.models.training import BF16, FP32, Recipe, Trainer
from snippets.predictions.counting import Work, counted
from snippets.predictions.layers import product_seconds
from snippets.predictions.reasons import or_reason
from snippets.predictions.training import adamw
from snippets.quantization.training_memory_and_speed import BYTES, WIDE, fresh, stepped

BATCH, LENGTH = 4, 129  # tokens of the step that the page times
PRODUCT_ROWS, PRODUCT_WIDTH = 128, 512  # of its product
TRAINING = "a loss after training, which operations and bytes do not tell"


@cache
def backward(weights: torch.dtype) -> Work:
    """Forward and backward of the wide layer with its weights in a format."""
    trainer = Trainer(fresh(WIDE, "meta"), Recipe(weights))
    tokens = torch.empty(BATCH, LENGTH, dtype=torch.long, device="meta")
    return counted(lambda: trainer.losses(tokens).mean().backward())


@cache
def update8() -> Work:
    """The update with moments in a byte each, of the small model."""
    return counted(stepped(BYTES, Recipe(codes=True), "meta").update)


def update(geometry: Geometry) -> Work:
    """Plain AdamW of a model, an optimizer for each tensor."""
    return adamw(parameters(geometry).total, len(list(fresh(geometry, "meta").parameters())))


def casts() -> Work:
    """Every matrix read in FP32 and written in BF16, and its gradient the other way round."""
    matrices = [weight for weight in fresh(WIDE, "meta").parameters() if weight.ndim > 1]
    moved = 2 * (FP32.itemsize + BF16.itemsize) * sum(weight.numel() for weight in matrices)
    return Work(other_bytes=moved, launches=2 * len(matrices))


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""

    def product(number_format: str) -> float:
        return product_seconds(target, PRODUCT_ROWS, PRODUCT_WIDTH, PRODUCT_WIDTH, number_format)

    step = (backward(FP32) + update(WIDE)).seconds(target, "float32")
    narrow = (backward(BF16) + casts() + update(WIDE)).seconds(target, "bfloat16")
    plain, states8 = (work.seconds(target, "float32") for work in (update(BYTES), update8()))
    losses = ("fp32_loss", "seeds_spread", "autocast_error", "states8_error", "int4_error")
    return {
        **dict.fromkeys((f"{name}_nats" for name in losses), TRAINING),
        "step_ratio": step / narrow,
        "fp32_step_seconds": step,
        "autocast_step_seconds": narrow,
        "update_ratio": states8 / plain,
        "fp32_update_seconds": plain,
        "states8_update_seconds": states8,
        "bf16_product_ratio": or_reason(lambda: product("float32") / product("bfloat16")),
        "fp16_product_ratio": or_reason(lambda: product("float16") / product("float32")),
    }
