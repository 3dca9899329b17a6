"""Counted are the weights, operations and launches of each process's token, in FP32, and its messages over the link to
the host, by the page's model of a ring; activations and what it takes processes to meet are left out."""

from __future__ import annotations

from dataclasses import replace

from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M, Geometry
from snippets.predictions.layers import ELEMENT_BYTES, step_seconds
from snippets.predictions.reasons import LOGIT_GAP, TRAINED_LOGITS
from snippets.throughput import model_parallelism as page

NO_LINK = "what a message between its processes takes, which no declared number tells"


def link(target: Target) -> page.Link | None:
    """Cards of this kind that talk over the link to the host; None where there is no such link."""
    if target.host_bytes_per_second is None:
        return None
    return replace(page.LINKS["PCIe"], bytes_per_second=target.host_bytes_per_second)


def token_seconds(target: Target, geometry: Geometry, context: int, number_format: str = "float32") -> float:
    """Least seconds of a token in one process."""
    size = ELEMENT_BYTES[number_format]
    return step_seconds(
        target,
        geometry,
        rows=1,
        context=context,
        weight_bytes_per_weight=size,
        cache_bytes_per_number=size,
        number_format=number_format,
    )


def split_seconds(target: Target, scale: page.Scale, over: page.Link) -> float:
    """A shard's token, with the head whole, and two sums over all processes a layer."""
    geometry, message = SMOLLM2_135M, SMOLLM2_135M.hidden * ELEMENT_BYTES["float32"]
    own = token_seconds(target, page.shard_geometry(geometry, page.LOCAL_RANKS), scale.prompt_tokens + 1)
    return own + 2 * geometry.layers * page.all_reduce_seconds(page.LOCAL_RANKS, message, over)


def staged_seconds(target: Target, scale: page.Scale, over: page.Link) -> float:
    """All layers in turn, one message between each two stages, and the token back to the first."""
    message = SMOLLM2_135M.hidden * ELEMENT_BYTES["float32"]
    hops = (page.LOCAL_RANKS - 1) * (over.step_seconds + message / over.bytes_per_second) + over.step_seconds
    return token_seconds(target, SMOLLM2_135M, scale.prompt_tokens + 1) + hops


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    scale, over = page.Scale(), link(target)
    message = SMOLLM2_135M.hidden * ELEMENT_BYTES["float32"]
    slots = page.schedule_values(page.LOCAL_RANKS, scale.timed_microbatches)
    one_by_one = scale.timed_microbatches * slots["request_slots_count"]
    return {
        "filled_ratio": one_by_one / slots["slots_count"],  # stages wait, they do not compute
        "alone_seconds": token_seconds(target, SMOLLM2_135M, scale.prompt_tokens + 1),
        "split_seconds": split_seconds(target, scale, over) if over else NO_LINK,
        "staged_seconds": staged_seconds(target, scale, over or page.LINKS["free"]),  # messages are few
        "reduce_seconds": page.all_reduce_seconds(page.LOCAL_RANKS, message, over) if over else NO_LINK,
        "smallest_gap_difference": LOGIT_GAP,
        "tensor_largest_difference": TRAINED_LOGITS,
    }
