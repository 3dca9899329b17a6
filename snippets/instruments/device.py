"""Device: the one place that knows accelerators by name: picks one, waits for it, describes it.

Everything else takes a `torch.device` and asks here. Everything works where torch was built without a GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from snippets.instruments.datasheets import Peak, cpu_peak, gpu_peak

KINDS = ("cuda", "mps", "xpu", "cpu")
"""Device kinds in the order in which `pick` prefers them."""


def _is_available(kind: str) -> bool:
    if kind == "cpu":
        return True
    module = torch.backends.mps if kind == "mps" else getattr(torch, kind)
    return bool(module.is_available())


def pick(name: str | torch.device | None = None) -> torch.device:
    """The device called `name` (a kind, with an index if need be), or the best one that is available.

    Raises:
        ValueError: no such kind of device, or none of it on this machine.
    """
    available = [kind for kind in KINDS if _is_available(kind)]
    if name is None:
        return torch.device(available[0])
    kind = str(name).partition(":")[0]
    if kind not in KINDS:
        raise ValueError(f"unknown device {str(name)!r}; known: {', '.join(KINDS)}")
    if kind not in available:
        raise ValueError(f"no {kind} device on this machine; available: {', '.join(available)}")
    return torch.device(name)


def _module(device: torch.device) -> Any:
    """torch.cuda, torch.mps or torch.xpu.

    Raises:
        ValueError: the device is of another kind: waiting for it silently would time nothing.
    """
    if device.type not in KINDS:
        raise ValueError(f"unknown device {str(device)!r}; known: {', '.join(KINDS)}")
    return getattr(torch, device.type)


def synchronize(device: torch.device | str) -> None:
    """Wait until everything queued on the device has run; nothing to wait for on a CPU."""
    device = torch.device(device)
    module = _module(device)
    if device.type == "mps":
        module.synchronize()
    elif device.type != "cpu":
        module.synchronize(device)


def empty_cache(device: torch.device | str) -> None:
    """Give the allocator's unused memory back to an accelerator; a CPU's allocator is left as it is."""
    device = torch.device(device)
    if device.type != "cpu":
        _module(device).empty_cache()


def allocated_bytes(device: torch.device | str) -> int:
    """Bytes that tensors hold on an accelerator, as its allocator rounds them.

    Raises:
        ValueError: a CPU, whose allocator keeps no such account (see `memory.allocated_by`).
    """
    device = torch.device(device)
    module = _module(device)
    if device.type == "cpu":
        raise ValueError("the CPU allocator keeps no account of its bytes")
    return int(module.current_allocated_memory() if device.type == "mps" else module.memory_allocated(device))


def _peak_account(device: torch.device) -> Any:
    if device.type not in ("cuda", "xpu"):
        raise ValueError(f"the {device.type} allocator keeps no account of its peak")
    return _module(device)


def peak_allocated_bytes(device: torch.device | str) -> int:
    """The most bytes that tensors held at once since `reset_peak`; ValueError where no account is kept."""
    device = torch.device(device)
    return int(_peak_account(device).max_memory_allocated(device))


def reset_peak(device: torch.device | str) -> None:
    """Start a new account of the peak; ValueError where none is kept."""
    device = torch.device(device)
    _peak_account(device).reset_peak_memory_stats(device)


def has_events(device: torch.device | str) -> bool:
    """Whether the device times its own queue, so that a sample of one call is exact."""
    return torch.device(device).type in ("cuda", "xpu")


def elapsed_seconds(fn: Callable[[], object], device: torch.device | str, calls: int = 1) -> float:
    """Seconds that `calls` calls took together: by the device's own events where it has them."""
    device = torch.device(device)
    repeat = range(calls)
    synchronize(device)
    if has_events(device):
        start, end = (_module(device).Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in repeat:
            fn()
        end.record()
        synchronize(device)
        return float(start.elapsed_time(end)) * 1e-3  # events count milliseconds
    began = time.perf_counter()
    for _ in repeat:
        fn()
    synchronize(device)
    return time.perf_counter() - began


def cache_flusher(device: torch.device | str) -> Callable[[], object]:
    """A function that writes a buffer larger than the last cache, so that the next read comes from memory."""
    caches = cache_bytes(device)
    largest = max(caches.values(), default=128 * 2**20)  # unknown: more than a common device has
    buffer = torch.empty(2 * largest, dtype=torch.uint8, device=device)
    return buffer.zero_


# What the machine is. Nothing here may name a host, a user or a path.


@functools.cache
def _cpu_info() -> dict[str, str]:
    """First processor's fields of /proc/cpuinfo; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _sysctl(name: str) -> str:
    """A kernel value of macOS, or nothing."""
    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def cpu_name() -> str:
    """The processor's model name; with family and model where a hypervisor hides the number ("AMD EPYC")."""
    info = _cpu_info()
    name = info.get("model name", "")
    if not name and platform.system() == "Darwin":
        name = _sysctl("machdep.cpu.brand_string")
    name = re.sub(r"\s+", " ", name or platform.processor() or platform.machine())
    if not re.search(r"\d", name) and "cpu family" in info:
        name += f" (family {info['cpu family']} model {info.get('model', '?')})"
    return name


def cpu_count() -> int:
    """Logical processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_FLAGS = {  # capability -> name of the feature in /proc/cpuinfo, on x86 or on ARM
    "avx2": "avx2", "avx512": "avx512f", "avx512-vnni": "avx512_vnni", "avx512-bf16": "avx512_bf16",
    "avx512-fp16": "avx512_fp16", "amx-bf16": "amx_bf16", "amx-int8": "amx_int8", "amx-fp16": "amx_fp16",
    "neon": "asimd", "neon-bf16": "bf16", "neon-i8mm": "i8mm",
}  # fmt: skip


def _cpu_capabilities() -> set[str]:
    info = _cpu_info()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    found = {name for name, flag in _FLAGS.items() if flag in flags}
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        features = (("neon-bf16", "BF16"), ("neon-i8mm", "I8MM"))
        found |= {"neon", "apple-amx"}  # Accelerate's matrix unit
        found |= {name for name, key in features if _sysctl(f"hw.optional.arm.FEAT_{key}") == "1"}
    if "avx512-vnni" in found or "avx_vnni" in flags:
        found.add("vnni")
    if found & {"avx512-bf16", "amx-bf16", "neon-bf16"}:
        found.add("fast-bf16")
    return found


def capabilities(device: torch.device | str | None = None) -> frozenset[str]:
    """What a claim may need: the device's kind, its instructions or formats, and what the machine offers.

    A CPU: avx2, avx512, vnni, avx512-vnni, avx512-bf16, amx-bf16, amx-int8, neon, ... ; an accelerator:
    cuda-bf16, cuda-fp8, triton. Either: fast-bf16 (a BF16 product has instructions of its own),
    two-processes, compiler.
    """
    device = pick(device)
    found = {device.type}
    if device.type == "cpu":
        found |= _cpu_capabilities()
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        generation = (properties.major, properties.minor)
        if generation >= (8, 0) or torch.version.hip:
            found |= {"cuda-bf16", "fast-bf16"}
        if generation >= (8, 9) and not torch.version.hip:
            found.add("cuda-fp8")
    if device.type in ("cuda", "xpu") and importlib.util.find_spec("triton"):
        found.add("triton")
    if cpu_count() > 1 and torch.distributed.is_available():
        found.add("two-processes")
    if any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")):
        found.add("compiler")
    return frozenset(found)


def cache_bytes(device: torch.device | str | None = None) -> dict[str, int]:
    """Bytes of one instance of each cache level (L1d, L2, L3); empty where nothing tells."""
    device = pick(device)
    if device.type == "cuda":
        return {"L2": int(torch.cuda.get_device_properties(device).L2_cache_size)}
    if device.type != "cpu":
        return {}
    if platform.system() == "Darwin":
        keys = {"L1d": "hw.perflevel0.l1dcachesize", "L2": "hw.perflevel0.l2cachesize"}
        return {level: int(size) for level, key in keys.items() if (size := _sysctl(key)).isdigit()}
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            scale = {"K": 2**10, "M": 2**20}.get(size[-1], 1)
            found[f"L{level}{'d' if kind == 'Data' else ''}"] = int(size.rstrip("KM")) * scale
    return found


def memory_bytes(device: torch.device | str | None = None) -> int | None:
    """Memory of an accelerator, or of the machine (a container's limit where that is less)."""
    device = pick(device)
    if device.type in ("cuda", "xpu"):
        return int(_module(device).get_device_properties(device).total_memory)
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no control group, or "max"
        return total


def device_name(device: torch.device | str | None = None) -> str:
    """Model name of the accelerator or processor."""
    device = pick(device)
    if device.type in ("cuda", "xpu"):
        return str(_module(device).get_device_properties(device).name)
    return cpu_name()


def machine_class(device: torch.device | str | None = None) -> str:
    """Device kind, model and, for a CPU, threads, as a slug: machines of one class may be compared."""
    device = pick(device)
    threads = f" threads {torch.get_num_threads()}" if device.type == "cpu" else ""
    return re.sub(r"[^a-z0-9]+", "-", f"{device.type} {device_name(device)}{threads}".lower()).strip("-")


def describe(device: torch.device | str | None = None) -> dict[str, Any]:
    """What a recording says of its machine; JSON-ready, with no host, user or path in it."""
    device = pick(device)
    return {
        "kind": device.type,
        "name": device_name(device),
        "class": machine_class(device),
        "threads": torch.get_num_threads(),
        "cores": cpu_count(),
        "memory_bytes": memory_bytes(device),
        "capabilities": sorted(capabilities(device)),
        "caches": cache_bytes(device),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "os": f"{platform.system()} {platform.machine()}",
    }


# Declared peaks: the table stands in datasheets.py.


def _runs_tf32() -> bool:
    """Whether this process lets a GPU round the factors of FP32 products to TF32."""
    return bool(torch.backends.cuda.matmul.fp32_precision == "tf32")


def _number_format(dtype: torch.dtype, device_kind: str) -> str:
    """Name of a format in the datasheets."""
    name = str(dtype).removeprefix("torch.")
    if name.startswith("float8"):
        return "float8"
    if name == "float32" and device_kind == "cuda" and _runs_tf32():
        return "tf32"
    return "int8" if name == "uint8" else name


def declared_peak(device: torch.device | str, dtype: torch.dtype) -> Peak | None:
    """What the device is declared to do with numbers of `dtype`; None where nobody declares it.

    A GPU by its vendor's datasheet, dense; a CPU by an upper bound over instructions, processors and clock.
    """
    device = pick(device)
    if device.type == "cpu":
        return cpu_peak(frozenset(_cpu_capabilities()), cpu_count(), _number_format(dtype, device.type))
    if device.type == "cuda":
        return gpu_peak(device_name(device), _number_format(dtype, device.type))
    return None
