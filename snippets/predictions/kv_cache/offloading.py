"""A prompt's prefill against the copy of its cache from host memory: products, weights, launches; bytes over a link.

Where device and host share their memory, a copy reads and writes it. What a disk or a link's driver takes is left out.
"""

from __future__ import annotations

from snippets.instruments.targets import Target
from snippets.kv_cache.offloading import Scale, predicted_values, token_bytes
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.kinds import on_cpu
from snippets.predictions.layers import ELEMENT_BYTES, fast_format, step_seconds
from snippets.predictions.reasons import ON_THE_HOST, OWN_H100

LENGTHS = sorted(Scale().lengths)
DISK = "a disk's rate, which no device declares"


def prefill_seconds(target: Target, tokens: int) -> float:
    """Least seconds of a prompt, in the format that the page chooses there."""
    number_format = fast_format(target)
    size = ELEMENT_BYTES[number_format]
    return step_seconds(
        target,
        SMOLLM2_135M,
        rows=1,
        context=tokens,
        new=tokens,
        weight_bytes_per_weight=size,
        cache_bytes_per_number=size,
        number_format=number_format,
    )


def copy_seconds(target: Target, moved: float) -> float:
    """Least seconds of bytes from the host's memory to the device's."""
    if target.host_bytes_per_second is None:
        return target.seconds(fast_format(target), bytes=2 * moved)
    return moved / target.host_bytes_per_second


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    size, middle, longest = ELEMENT_BYTES[fast_format(target)], LENGTHS[len(LENGTHS) // 2], LENGTHS[-1]
    held = token_bytes(SMOLLM2_135M, size) * longest
    seconds = {tokens: prefill_seconds(target, tokens) for tokens in (middle, longest)}
    disk = Scale().disk_bytes
    return {
        **dict.fromkeys(predicted_values(), OWN_H100),
        "prefill_element_bytes": float(size),
        "prefill_tokens": float(middle),
        "longest_tokens": float(longest),
        "prefill_seconds": seconds[middle],
        "prefill_tokens_per_second": middle / seconds[middle],
        "longest_tokens_per_second": longest / seconds[longest],
        "copy_bytes_per_second": held / copy_seconds(target, held),
        "restore_ratio": seconds[longest] / copy_seconds(target, held),
        "disk_bytes_per_second": DISK,
        "disk_cached_share": DISK,
        "warm_bytes_per_second": disk / copy_seconds(target, disk) if on_cpu(target) else ON_THE_HOST,
    }
