"""Targets: the devices that pages predict for, as their vendors declare them. No torch.

A prediction is registered before there is a recording from such a device; both stand side by side when one comes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from snippets.instruments import roofline
from snippets.instruments.datasheets import Peak, gpu_peak

_TERA = 10**12
_GIGA = 10**9
FORMATS = ("float32", "tf32", "float16", "bfloat16", "float8", "int8")
"""Number formats by the names of `datasheets`."""


@dataclass(frozen=True)
class Target:
    """A device that is not at hand: rates by number format, memory, and what its queue takes for each operation.

    `flops_per_second` is dense and by the names of `FORMATS`;
    `host_bytes_per_second` is one direction of the link to the machine's memory, None where they share it.
    """

    name: str
    flops_per_second: Mapping[str, float]
    bytes_per_second: float
    memory_bytes: float
    host_bytes_per_second: float | None
    launch_seconds: float
    capabilities: frozenset[str]
    source: str

    def peak(self, number_format: str) -> Peak:
        """What it is declared to do in a format.

        Raises:
            LookupError: it has no units for that format.
        """
        if number_format not in self.flops_per_second:
            raise LookupError(f"{self.name} has no units for {number_format}")
        return Peak(self.flops_per_second[number_format], self.bytes_per_second, self.source)

    def seconds(self, number_format: str, *, flops: float = 0, bytes: float = 0, launches: int = 1) -> float:
        """Least seconds of a queue of operations here (see `roofline.predict_seconds`).

        Raises:
            LookupError: it has no units for that format.
        """
        return roofline.predict_seconds(
            flops=flops,
            bytes=bytes,
            peak=self.peak(number_format),
            launches=launches,
            launch_seconds=self.launch_seconds,
        )


_HOST = frozenset({"two-processes", "compiler"})  # of the machine around the device, assumed
_NVIDIA = _HOST | {"cuda", "cuda-bf16", "fast-bf16", "triton"}
APPLE_LAUNCH_SECONDS = 1e-5
"""An assumption, since Apple declares none: to encode an operation for Metal takes longer than to queue one on CUDA."""


def _gpu(name: str, *, memory_gigabytes: float, link_gigabytes_per_second: float, sheet: str) -> Target:
    """A GPU of `datasheets`, whose rates stand there alone; `sheet` says where its memory and link are declared."""
    peaks = {form: peak for form in FORMATS if (peak := gpu_peak(name, form))}
    return Target(
        name=name,
        flops_per_second={form: peak.flops_per_second for form, peak in peaks.items()},
        bytes_per_second=peaks["float32"].bytes_per_second,
        memory_bytes=memory_gigabytes * _GIGA,
        host_bytes_per_second=link_gigabytes_per_second * _GIGA,
        launch_seconds=roofline.LAUNCH_SECONDS,
        capabilities=_NVIDIA | ({"cuda-fp8"} if "float8" in peaks else set()),
        source=f"{peaks['float32'].source}; memory and link to the host: {sheet}",
    )


_M2_ULTRA = 27.2 * _TERA

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _gpu("H100 SXM", memory_gigabytes=80, link_gigabytes_per_second=64,
            sheet="the same page, PCIe Gen5, half of what it declares for both directions"),
        _gpu("A100 SXM 80GB", memory_gigabytes=80, link_gigabytes_per_second=32,
            sheet="the same datasheet, PCIe Gen4, half of what it declares for both directions"),
        _gpu("RTX 4090", memory_gigabytes=24, link_gigabytes_per_second=32,
            sheet="the same whitepaper, GDDR6X, PCIe Gen4 x16, one direction"),
        Target(
            name="Apple M2 Ultra",
            flops_per_second={"float32": _M2_ULTRA, "float16": _M2_ULTRA, "bfloat16": _M2_ULTRA},
            bytes_per_second=800.0 * _GIGA,
            memory_bytes=192.0 * _GIGA,
            host_bytes_per_second=None,
            launch_seconds=APPLE_LAUNCH_SECONDS,
            capabilities=_HOST | {"mps"},
            source="Apple, newsroom, Apple introduces M2 Ultra (memory); Apple, Mac Pro (GPU of the most cores); "
            "FP16 and BF16 assumed at the one rate that Apple declares",
        ),
    )
}  # fmt: skip
"""Devices that predictions are registered for, by the name that a text uses."""


def target_named(name: str) -> Target | None:
    """The target that a text or its driver calls `name`; None for every other device."""
    for target in TARGETS.values():
        sheet = gpu_peak(name, "float32")
        if name == target.name or (sheet and sheet == gpu_peak(target.name, "float32")):
            return target
    return None
