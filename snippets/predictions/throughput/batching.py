"""Counted are a step's products, weights, cache and launches, of a layer in BF16 and of the whole model in FP32, and
the queue that is simulated with such steps; activations and what a kernel loses beside the roofline are left out."""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.layers import LAUNCHES, decode_curve
from snippets.predictions.reasons import LOGIT_GAP, SETTING
from snippets.throughput import batching
from snippets.throughput.batching import BUSY, IDLE, LAYER, WINDOW, Scale


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale = Scale()
    most = max(scale.batches)
    layer, long = (
        decode_curve(target, LAYER, scale.batches, context, "bfloat16", head=False)
        for context in (scale.context, scale.long_context)
    )
    model = decode_curve(target, SMOLLM2_135M, scale.batches, scale.prompt_tokens + 1, "float32")
    loads = batching.load_columns(model.step_seconds, (IDLE, BUSY), scale.answer_tokens, scale.requests)
    shown = batching.shown_values("layer", layer) | batching.shown_values("model", model)
    return {
        "layer_calls_count": batching.counted(LAYER, 1, scale.context)[1],
        **batching.ratio_values("layer", layer),
        **batching.ratio_values("model", model),
        **shown,
        "layer_threads_count": SETTING,
        "model_threads_count": SETTING,
        "smallest_gap_difference": LOGIT_GAP,
        "launch_seconds": target.seconds("float32", launches=SMOLLM2_135M.layers * LAUNCHES),  # next to no width
        **batching.queue_values(loads),
        "idle_load_ratio": IDLE,
        "busy_load_ratio": BUSY,
        "window_ratio": WINDOW,
        "long_speed_ratio": long.speed_ratio(most),
        "long_loss_ratio": layer.speed_ratio(most) / long.speed_ratio(most),
    }
