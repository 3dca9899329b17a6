"""Why a value has no prediction, where several pages say the same."""

from __future__ import annotations

from collections.abc import Callable

OWN_H100 = "the page's own prediction for an H100, the same on every device"
ON_THE_HOST = "measured on the processor beside the device, which the device does not tell"
TRAINED_LOGITS = "what rounding does to a trained model's logits, which operations and bytes do not tell"
LOGIT_GAP = "a gap between the model's own logits, which speed does not change"
SETTING = "a setting of the machine, which its rates do not tell"


def or_reason(compute: Callable[[], float]) -> float | str:
    """What it computes; or which units the target lacks for it."""
    try:
        return compute()
    except LookupError as missing:
        return str(missing)
