"""What kind of device a target is."""

from __future__ import annotations

from snippets.instruments.device import KINDS
from snippets.instruments.targets import Target


def on_cpu(target: Target) -> bool:
    """Whether it is a processor with kernels of its own for quantized weights, and no queue to a device."""
    return KINDS[-1] in target.capabilities
