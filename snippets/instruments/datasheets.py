"""Declared peaks: what vendors' datasheets promise of GPUs, and an upper bound for any CPU. No torch.

A declared peak stays what it is; a measured one drifts. It serves two ends: a measurement beyond it is
broken, and a prediction for a device that is not at hand starts from it. GPU figures are dense, in FLOP/s
or integer op/s with the accumulator that PyTorch uses (FP32; INT32 for INT8), FP8 with the fastest that a
datasheet lists.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TERA = 10**12
_GIGA = 10**9


@dataclass(frozen=True)
class Peak:
    """The most that a device is declared to do: FLOP/s of one number format, bytes/s, and who says so."""

    flops_per_second: float
    bytes_per_second: float
    source: str

    def seconds(self, flops: float = 0, moved_bytes: float = 0) -> float:
        """The roofline (Williams, Waterman, Patterson, CACM): the least time for such work and traffic."""
        return max(flops / self.flops_per_second, moved_bytes / self.bytes_per_second)


@dataclass(frozen=True)
class Datasheet:
    """One GPU: its driver's names for it, GB/s of memory, TFLOP/s by format, where that stands."""

    pattern: str
    gigabytes_per_second: float
    tera: dict[str, float]
    source: str


def _formats(
    fp32: float, tf32: float | None, fp16: float, bf16: float | None, fp8: float | None, int8: float | None
) -> dict[str, float]:
    """Rates by name of the format, without those that the GPU has no units for."""
    rates = {"float32": fp32, "tf32": tf32, "float16": fp16, "bfloat16": bf16, "float8": fp8, "int8": int8}
    return {name: rate for name, rate in rates.items() if rate is not None}


_A100 = "NVIDIA A100 datasheet, nvidia-a100-datasheet-us-nvidia-1758950-r4"
_H100 = "NVIDIA H100 product page, nvidia.com/en-us/data-center/h100; NVIDIA H100 architecture whitepaper"
_AMPERE = _formats(19.5, 156, 312, 312, None, 624)
_HOPPER_SXM = _formats(66.9, 494.7, 989.4, 989.4, 1978.9, 1978.9)

DATASHEETS: dict[str, Datasheet] = {
    "V100 SXM2": Datasheet(r"V100-SXM2-\d+GB", 900, _formats(15.7, None, 125, None, None, None),
        "NVIDIA V100 datasheet, volta-v100-datasheet-update-us-1165301-r5"),
    "T4": Datasheet(r"T4", 320, _formats(8.1, None, 65, None, None, 130),
        "NVIDIA T4 datasheet, nvidia.com/en-us/data-center/tesla-t4"),
    "A10": Datasheet(r"A10", 600, _formats(31.2, 62.5, 125, 125, None, 250),
        "NVIDIA A10 datasheet, nvidia.com/en-us/data-center/products/a10-gpu"),
    "A100 SXM 40GB": Datasheet(r"A100-SXM4-40GB", 1555, _AMPERE, _A100),
    "A100 PCIe 40GB": Datasheet(r"A100-PCIE-40GB", 1555, _AMPERE, _A100),
    "A100 SXM 80GB": Datasheet(r"A100-SXM4-80GB", 2039, _AMPERE, _A100),
    "A100 PCIe 80GB": Datasheet(r"A100 80GB PCIe", 1935, _AMPERE, _A100),
    "L4": Datasheet(r"L4", 300, _formats(30.3, 60, 121, 121, 242.5, 242.5),
        "NVIDIA L4 datasheet, nvidia.com/en-us/data-center/l4"),
    "L40S": Datasheet(r"L40S", 864, _formats(91.6, 183, 362.05, 362.05, 733, 733),
        "NVIDIA L40S datasheet, nvidia.com/en-us/data-center/l40s"),
    "H100 SXM": Datasheet(r"H100 80GB HBM3|H100 SXM5?( 80GB)?", 3350, _HOPPER_SXM, _H100),
    "H100 PCIe": Datasheet(r"H100 PCIe", 2000, _formats(51.2, 378, 756.5, 756.5, 1513, 1513), _H100),
    "H100 NVL": Datasheet(r"H100 NVL", 3900, _formats(60, 417.5, 835.5, 835.5, 1671, 1671), _H100),
    "H200 SXM": Datasheet(r"H200", 4800, _HOPPER_SXM,
        "NVIDIA H200 datasheet, nvidia.com/en-us/data-center/h200"),
    "B200": Datasheet(r"B200", 8000, _formats(80, 1125, 2250, 2250, 4500, 4500),
        "NVIDIA Blackwell architecture technical brief, HGX B200"),
    "RTX 3090": Datasheet(r"RTX 3090", 936, _formats(35.6, 35.6, 71, 71, None, 284),
        "NVIDIA Ampere GA102 architecture whitepaper, appendix"),
    "RTX 4090": Datasheet(r"RTX 4090", 1008, _formats(82.6, 82.6, 165.2, 165.2, 660.6, 660.6),
        "NVIDIA Ada GPU architecture whitepaper, appendix A"),
    "RTX 5090": Datasheet(r"RTX 5090", 1792, _formats(104.8, 104.8, 209.5, 209.5, 838, 838),
        "NVIDIA RTX Blackwell GPU architecture whitepaper, appendix A"),
    "MI300X": Datasheet(r"(Instinct )?MI300X( OAM)?", 5300,
        _formats(163.4, 653.7, 1307.4, 1307.4, 2614.9, 2614.9), "AMD Instinct MI300X data sheet"),
}  # fmt: skip
"""Datasheets by the name that a text uses."""


def gpu_peak(name: str, number_format: str) -> Peak | None:
    """Peak of the GPU that a text (a key of `DATASHEETS`) or its driver calls `name`; None if unknown.

    A part that shares a name but not a figure (a laptop's chip, a slice of a GPU) is unknown.
    `number_format` is one of float32, tf32, float16, bfloat16, float8, int8; None where the GPU has no such
    units.
    """
    sheet = DATASHEETS.get(name)
    if sheet is None:
        bare = re.sub(r"^(?:NVIDIA|AMD|Tesla)\s+(?:GeForce\s+)?", "", name)
        sheet = next((one for one in DATASHEETS.values() if re.fullmatch(one.pattern, bare)), None)
    if sheet is None or number_format not in sheet.tera:
        return None
    flops_per_second, bytes_per_second = sheet.tera[number_format] * _TERA, sheet.gigabytes_per_second * _GIGA
    return Peak(float(flops_per_second), float(bytes_per_second), f"{sheet.source} (dense)")


CPU_CLOCK_CEILING = 6.2 * _GIGA
"""Cycles/s that no sold x86 or ARM processor exceeds: Intel's Core i9-14900KS names this as its turbo."""

CPU_BYTES_PER_CYCLE = 192
"""First-level cache bytes a cycle and core: two loads and a store of 64 bytes (Zen 5, Golden Cove)."""

# (capability, number format) -> FLOP a cycle and core, from the vendors' optimization manuals: two ports
# (four for NEON) x lanes x 2; AMX by its tile unit.
_FLOPS_PER_CYCLE = {
    ("", "float32"): 16, ("avx2", "float32"): 32, ("avx512", "float32"): 64, ("neon", "float32"): 32,
    ("apple-amx", "float32"): 512, ("apple-amx", "float16"): 1024, ("apple-amx", "bfloat16"): 1024,
    ("avx512-bf16", "bfloat16"): 128, ("amx-bf16", "bfloat16"): 1024, ("neon-bf16", "bfloat16"): 128,
    ("avx512-fp16", "float16"): 128, ("amx-fp16", "float16"): 1024, ("neon", "float16"): 64,
    ("avx2", "int8"): 128, ("avx512", "int8"): 256, ("avx512-vnni", "int8"): 256, ("amx-int8", "int8"): 2048,
    ("neon-i8mm", "int8"): 256, ("neon", "int8"): 128,
}  # fmt: skip


def cpu_peak(capabilities: frozenset[str], processors: int, number_format: str) -> Peak:
    """An upper bound for a CPU: FLOP a cycle of its instructions x processors x a clock that none exceeds.

    A format without instructions of its own is computed in FP32. The bound for memory is that of the
    first-level cache: no claim about memory is tight against it, but a clock that missed the work is beyond
    it.
    """
    best = max(
        rate
        for (needed, named), rate in _FLOPS_PER_CYCLE.items()
        if named in (number_format, "float32") and (not needed or needed in capabilities)
    )
    cycles = processors * CPU_CLOCK_CEILING
    source = f"upper bound: {best} FLOP a cycle x {processors} processors x {CPU_CLOCK_CEILING / _GIGA} GHz"
    return Peak(best * cycles, CPU_BYTES_PER_CYCLE * cycles, source)
