"""Memory: what tensors weigh, what the allocator holds for them, what a call allocates, what a file holds."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import itertools
import json
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from snippets.instruments import device as devices

_T = TypeVar("_T")


def storage_bytes(obj: object) -> int:
    """Bytes of every storage that `obj` keeps alive, each counted once: views and tied weights add nothing.

    Args:
        obj: a tensor, a module, a mapping, an iterable or any object with attributes, nested at will.
        Sparse tensors
            count indices and values; a view counts its whole storage.

    Raises:
        TypeError: `obj` is none of these (a number, say), so that zero would be no answer.
    """
    if _parts(obj) is None:
        raise TypeError(f"{type(obj).__name__} holds no tensors")
    storages = (tensor.untyped_storage() for tensor in _dense_tensors(obj, {}))
    return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def _parts(obj: object) -> Iterable[object] | None:
    """What to look into for tensors; None where there is nothing to look into."""
    if isinstance(obj, torch.Tensor):
        return _tensor_parts(obj)
    if isinstance(obj, torch.nn.Module):
        return vars(obj).values()  # parameters, buffers, submodules, and tensors kept as plain attributes
    if isinstance(obj, Mapping):
        return obj.values()
    if isinstance(obj, Iterable):
        return None if isinstance(obj, (str, bytes)) else obj
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return [getattr(obj, field.name) for field in dataclasses.fields(obj)]  # slots have no vars
    return vars(obj).values() if hasattr(obj, "__dict__") and not callable(obj) else None


def _tensor_parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """A sparse or wrapping tensor's dense parts; none for a dense one."""
    if tensor.layout == torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
    if hasattr(tensor, "__tensor_flatten__"):
        return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
    return []


def _dense_tensors(obj: object, seen: dict[int, object]) -> Iterator[torch.Tensor]:
    """Every dense tensor inside, walking each container once so that a cycle ends."""
    if id(obj) in seen or (parts := _parts(obj)) is None:
        return
    seen[id(obj)] = obj  # kept, or a temporary's id would be given to the next one
    inner = list(parts)
    if isinstance(obj, torch.Tensor) and not inner:
        yield obj
    for part in inner:
        yield from _dense_tensors(part, seen)


def usable_bytes(tensor: torch.Tensor) -> int:
    """Bytes that the allocator holds for the tensor's storage: what was asked for, rounded up.

    On a CPU the C library is asked; on an accelerator a second block of the same size is allocated, its
    cost read.

    Raises:
        ValueError: the storage is not the allocator's (NumPy, a mapped file, shared memory), or nothing
        tells.
    """
    storage = tensor.untyped_storage()
    if tensor.device.type != "cpu":
        return _rounded_bytes(storage.nbytes(), tensor.device)
    if not storage.resizable() or storage.is_shared():
        raise ValueError("the storage is borrowed: PyTorch's allocator did not make it")
    try:
        name = "malloc_size" if platform.system() == "Darwin" else "malloc_usable_size"
        ask = getattr(ctypes.CDLL(None), name)
    except (AttributeError, OSError, TypeError) as error:
        raise ValueError("this C library does not tell the size of a block") from error
    ask.argtypes, ask.restype = [ctypes.c_void_p], ctypes.c_size_t
    return int(ask(storage.data_ptr()))


def _rounded_bytes(size: int, device: torch.device) -> int:
    before = devices.allocated_bytes(device)
    block = torch.empty(size, dtype=torch.uint8, device=device)
    after = devices.allocated_bytes(device)
    del block
    return after - before


def allocated_by(fn: Callable[[], _T], *, device: torch.device | str | None = None) -> tuple[_T, int]:
    """(result, bytes that `fn` allocated and still held when it returned, its result among them).

    A CPU's allocator is watched by PyTorch's profiler: what oneDNN or MKL take by themselves is not seen, nor
    what was held before and is freed inside. An accelerator's account is read before and after.
    """
    target = devices.pick(device)
    if target.type != "cpu":
        devices.synchronize(target)
        before = devices.allocated_bytes(target)
        result = fn()
        devices.synchronize(target)
        return result, devices.allocated_bytes(target) - before
    result, events = _cpu_memory_events(fn)
    return result, sum(events)


def peak_allocated_by(fn: Callable[[], _T], *, device: torch.device | str | None = None) -> tuple[_T, int]:
    """(result, the most bytes that `fn` held at once beyond what was held before): temporaries show here.

    Raises:
        ValueError: the device keeps no account of its peak.
    """
    target = devices.pick(device)
    if target.type != "cpu":
        devices.synchronize(target)
        devices.reset_peak(target)
        before = devices.allocated_bytes(target)
        result = fn()
        devices.synchronize(target)
        return result, devices.peak_allocated_bytes(target) - before
    result, events = _cpu_memory_events(fn)
    return result, max(itertools.accumulate(events), default=0)


def _cpu_memory_events(fn: Callable[[], _T]) -> tuple[_T, list[int]]:
    """(result, bytes allocated or, below zero, freed: in order of time)."""
    gc.collect()  # garbage of before, freed inside, would confuse the account
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # or the profiler tells stderr that it starts and stops
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profiler:
        result = fn()
    recorded: Any = profiler.kineto_results
    events = [event for event in recorded.events() if event.name() == "[memory]"]
    return result, [int(event.nbytes()) for event in sorted(events, key=lambda event: event.start_ns())]


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Size of the file as it stands on disk."""
    return Path(path).stat().st_size


def safetensors_payload_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes of the tensors in a safetensors file: the file without its length field and header.

    Format (github.com/huggingface/safetensors): eight bytes of header length, a JSON header, the tensors.

    Raises:
        ValueError: the file is none, or is cut short.
    """
    size = file_bytes(path)
    with open(path, "rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if 8 + header_bytes > size:
            raise ValueError(f"{Path(path).name} is no safetensors file: its header ends beyond the file")
        header = json.loads(file.read(header_bytes))
    payload = size - 8 - header_bytes
    header.pop("__metadata__", None)
    stated = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if stated != payload:
        raise ValueError(f"{Path(path).name} holds {payload} bytes of tensors, its header states {stated}")
    return payload
