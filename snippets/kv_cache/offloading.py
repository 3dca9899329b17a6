"""When to offload the KV cache, and when to recompute it?

Claim: loading a cache back and computing it again both take time in proportion to its tokens, so what decides is no
length but a bandwidth: KV bytes a token times prefill tokens/s. What comes back is the cache, bit for bit.

Run: python -m snippets.kv_cache.offloading
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import capabilities, pick
from snippets.instruments.memory import safetensors_payload_bytes
from snippets.instruments.roofline import predict_seconds
from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, KVCache
from snippets.models.shapes import LLAMA_3_8B, LLAMA_3_70B, Geometry, parameters

# isort: split
from measured.values import report

MFU = 0.4  # an assumption: the share of an H100's declared BF16 rate that prefill reaches
PATHS = {  # bytes/s in one direction; the page cites where each comes from
    "PCIe Gen5 x16": 64e9,
    "PCIe Gen4 x16": 32e9,
    "NVMe drive, PCIe Gen4 x4": 7.45e9,
    "Ethernet, ten gigabit": 1.25e9,
    "SATA drive": 0.6e9,
}


@dataclass(frozen=True)
class Scale:
    """How much is measured: lengths of prefill, rounds, tokens restored, bytes read from a disk."""

    lengths: Sequence[int] = (128, 512, 2048)
    rounds: int = 4
    blocks: int = 2
    prompt_tokens: int = 96
    checked_tokens: int = 12
    disk_bytes: int = 2**28


SMALL = Scale((32, 64, 128), rounds=2, blocks=1, prompt_tokens=12, checked_tokens=3, disk_bytes=2**22)


# --8<-- [start:formula]
def token_bytes(geometry: Geometry, element_bytes: int = 2) -> int:
    """Bytes that one token of one sequence has in the cache."""
    return 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * element_bytes


def prefill_flops(geometry: Geometry, tokens: int) -> tuple[int, int]:
    """Operations of computing a cache: (of the layers' matrices, of causal attention), a product and a sum each two."""
    pairs = tokens * (tokens + 1) // 2  # a token attends to itself and to all before it
    scores_and_mix = 2 * 2 * geometry.heads * geometry.head_dim * geometry.layers
    return 2 * parameters(geometry).linear * tokens, scores_and_mix * pairs


def break_even(geometry: Geometry, tokens: int, seconds: float, element_bytes: int = 2) -> float:
    """Bytes/s of a path that loads the cache of so many tokens in just the `seconds` that computing it takes."""
    return token_bytes(geometry, element_bytes) * tokens / seconds


# --8<-- [end:formula]


def formula_values() -> dict[str, int]:
    """Both shapes, and the tokens at which attention costs as much as all matrices."""
    matrices, _ = prefill_flops(LLAMA_3_8B, 1)
    pair = prefill_flops(LLAMA_3_8B, 1)[1]
    equal = 2 * matrices // pair - 1
    linear, quadratic = prefill_flops(LLAMA_3_8B, equal)
    return {
        "smollm2_token_bytes": token_bytes(smollm2.GEOMETRY),
        "llama_token_bytes": token_bytes(LLAMA_3_8B),
        "llama_matrix_flops": matrices,
        "equal_tokens": equal,
        "equal_matrix_flops": linear,
        "equal_attention_flops": quadratic,
    }


def predicted_seconds(geometry: Geometry, new: int, cached: int = 0) -> float:
    """Seconds in which an H100 computes `new` tokens after cached ones: its BF16 roofline over the assumed share."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    flops = sum(prefill_flops(geometry, cached + new)) - sum(prefill_flops(geometry, cached))
    weights_bytes = 2 * parameters(geometry).linear
    return predict_seconds(flops=flops, bytes=weights_bytes, peak=peak, launches=0) / MFU


def predicted_values(short: int = 1024, long: int = 131_072) -> dict[str, float]:
    """Llama-3-8B on an H100: prefill of a short prompt, and the break-even bandwidth of a short and of a long one."""
    return {
        "h100_mfu_share": MFU,
        "h100_prompt_tokens": short,
        "h100_long_tokens": long,
        "h100_prefill_tokens_per_second": short / predicted_seconds(LLAMA_3_8B, short),
        "h100_short_bytes_per_second": break_even(LLAMA_3_8B, short, predicted_seconds(LLAMA_3_8B, short)),
        "h100_long_bytes_per_second": break_even(LLAMA_3_8B, long, predicted_seconds(LLAMA_3_8B, long)),
    }


def length_columns(lengths: Sequence[int]) -> dict[str, list]:
    """Break-even bandwidth by length on that H100, for both shapes in BF16."""
    rows = [(g.name, n, break_even(g, n, predicted_seconds(g, n))) for g in (LLAMA_3_8B, LLAMA_3_70B) for n in lengths]
    names = ("model", "prompt_tokens", "break_even_bytes_per_second")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def path_columns(tokens: int = 8192) -> dict[str, list]:
    """Loading Llama-3-8B's cache over each path against computing it on an H100; gains above one favour the path."""
    seconds = predicted_seconds(LLAMA_3_8B, tokens)
    restore = [token_bytes(LLAMA_3_8B) * tokens / rate for rate in PATHS.values()]
    return {
        "path": list(PATHS),
        "path_bytes_per_second": list(PATHS.values()),
        "restore_seconds": restore,
        "recompute_seconds": [seconds] * len(PATHS),
        "gain_ratio": [seconds / one for one in restore],
    }


def path_values(columns: dict[str, list]) -> dict[str, int]:
    """How many of the paths are faster than computing the cache."""
    return {"paths_count": len(columns["path"]), "faster_paths_count": sum(gain > 1 for gain in columns["gain_ratio"])}


# --8<-- [start:restore]
def offload(cache: KVCache, path: Path) -> int:
    """Write the filled part of a cache to a file; bytes of tensors in it."""
    filled = slice(0, cache.length)
    parts = {"keys": cache.keys[..., filled, :], "values": cache.values[..., filled, :]}
    save_file({name: part.contiguous().cpu() for name, part in parts.items()}, path)
    return safetensors_payload_bytes(path)


def restore(path: Path, cache: KVCache) -> None:
    """Read a file of `offload` into a cache with room for it."""
    parts = load_file(path)
    cache.length = parts["keys"].shape[3]
    cache.keys[..., : cache.length, :] = parts["keys"].to(cache.keys.device)
    cache.values[..., : cache.length, :] = parts["values"].to(cache.values.device)


@torch.inference_mode()
def continuation(decoder: Decoder, cache: KVCache, token: Tensor, new_tokens: int) -> Tensor:
    """Greedy tokens (batch, new) after `token`, which follows those in the cache."""
    written = [token]
    for _ in range(new_tokens):
        written.append(decoder(written[-1], cache, last_only=True)[:, -1].argmax(-1, keepdim=True))
    return torch.cat(written[1:], dim=1)


# --8<-- [end:restore]


@torch.inference_mode()
def restored_values(decoder: Decoder, tokens: int, new_tokens: int, keep_layers: int | None = None) -> dict[str, int]:
    """A cache through a file and back: bits that differ, and greedy tokens that are the same as without the journey.

    With `keep_layers`, only those layers come back: what a cache that is not whole does.
    """
    weight = decoder.embed_tokens.weight
    ids = smollm2.encode(texts.address(), weight.device)[:, : tokens + 1]

    def room() -> KVCache:
        return KVCache(decoder.geometry, 1, tokens + new_tokens, weight.dtype, weight.device)

    cache, other = room(), room()
    decoder(ids[:, :-1], cache, last_only=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.safetensors"
        file_bytes = offload(cache, path)
        restore(path, other)
    if keep_layers is not None:
        other.keys[keep_layers:] = 0
    pairs = ((cache.keys, other.keys), (cache.values, other.values))
    differing = sum(int((one != two).sum()) for one, two in pairs)
    stayed, came_back = (continuation(decoder, one, ids[:, -1:], new_tokens) for one in (cache, other))
    return {
        "restored_tokens": tokens,
        "restored_file_bytes": file_bytes,
        "differing_count": differing,
        "checked_tokens": stayed.numel(),
        "equal_tokens_count": int((stayed == came_back).sum()),
    }


# --8<-- [start:overlap]
def overlapped(layers: int, load: int, compute: int) -> int:
    """When the last layer is computed, if the next layer is loaded meanwhile; one link and one processor, whole µs."""
    loaded = computed = 0
    for _ in range(layers):
        loaded += load  # the link is never idle
        computed = max(loaded, computed) + compute  # a layer needs its cache and the layer before
    return computed


def exposed_formula(layers: int, load: int, compute: int) -> int:
    """What loading adds to computing: the first layer's load, and whatever each further one is longer than a layer."""
    return load + (layers - 1) * max(0, load - compute)


# --8<-- [end:overlap]


def overlap_values() -> dict[str, int]:
    """Llama-3-8B on an H100, in whole µs: its cache comes back over PCIe, layer by layer, while new tokens run."""
    layers, cached, new = LLAMA_3_8B.layers, 8192, 512
    compute = round(predicted_seconds(LLAMA_3_8B, new, cached) / layers * 1e6)
    load = round(token_bytes(LLAMA_3_8B) * cached / layers / PATHS["PCIe Gen5 x16"] * 1e6)
    slow = 16 * load
    return {
        "cached_tokens": cached,
        "new_tokens": new,
        "overlap_layers_count": layers,
        "layer_load_count": load,
        "layer_compute_count": compute,
        "sequential_count": layers * (load + compute),
        "exposed_count": overlapped(layers, load, compute) - layers * compute,
        "exposed_formula_count": exposed_formula(layers, load, compute),
        "slow_load_count": slow,
        "slow_exposed_count": overlapped(layers, slow, compute) - layers * compute,
        "slow_formula_count": exposed_formula(layers, slow, compute),
    }


def fast_dtype(device: torch.device) -> torch.dtype:
    """BF16 where the device has instructions for it; FP32 elsewhere."""
    return torch.bfloat16 if "fast-bf16" in capabilities(device) else torch.float32


def prefill_times(decoder: Decoder, scale: Scale, restored: bool = True) -> clock.Interleaved:
    """Prefill of one prompt into an empty cache, by length; and the copy of the longest one's cache from host memory.

    Unless `restored`, the copy's place is taken by computing the cache once more.
    """
    lengths = scale.lengths
    weight = decoder.embed_tokens.weight
    ids = smollm2.encode(texts.address(), weight.device)
    cache = KVCache(decoder.geometry, 1, max(lengths), weight.dtype, weight.device)
    away = KVCache(decoder.geometry, 1, max(lengths), weight.dtype)  # in the host's memory
    for part in (away.keys, away.values):
        part.normal_()  # zeros that nobody wrote are one page of the kernel's, read from its cache
    if weight.device.type != "cpu":
        away.keys, away.values = away.keys.pin_memory(), away.values.pin_memory()

    @torch.inference_mode()
    def prefill(tokens: int) -> None:
        cache.length = 0
        decoder(ids[:, :tokens], cache, last_only=True)

    @torch.inference_mode()
    def bring_back() -> None:
        if not restored:
            return prefill(max(lengths))
        cache.keys.copy_(away.keys)
        cache.values.copy_(away.values)

    calls: dict[str, Callable[[], object]] = {str(n): functools.partial(prefill, n) for n in lengths}
    calls["copy"] = bring_back
    return clock.interleave(calls, device=weight.device, rounds=scale.rounds, blocks=scale.blocks)


def prefill_values(timed: clock.Interleaved, lengths: Sequence[int], element_bytes: int) -> dict[str, float]:
    """Speeds by length, the path through memory, and the break-even bandwidth of the middle length."""
    most, middle = max(lengths), sorted(lengths)[len(lengths) // 2]
    each = token_bytes(smollm2.GEOMETRY, element_bytes)
    return {
        "prefill_element_bytes": element_bytes,
        "prefill_tokens": middle,
        "longest_tokens": most,
        "prefill_seconds": timed.seconds(str(middle)),
        "prefill_tokens_per_second": middle / timed.seconds(str(middle)),
        "longest_tokens_per_second": most / timed.seconds(str(most)),
        "copy_bytes_per_second": most * each / timed.seconds("copy"),
    }


def prefill_columns(timed: clock.Interleaved, lengths: Sequence[int], element_bytes: int) -> dict[str, list]:
    """Prefill by length: seconds, tokens/s, attention's share of the operations, break-even bandwidth."""
    seconds = [timed.seconds(str(n)) for n in lengths]
    flops = [prefill_flops(smollm2.GEOMETRY, n) for n in lengths]
    pairs = list(zip(lengths, seconds, strict=True))
    return {
        "prompt_tokens": list(lengths),
        "prefill_seconds": seconds,
        "speed_tokens_per_second": [n / one for n, one in pairs],
        "attention_share": [attention / (matrices + attention) for matrices, attention in flops],
        "break_even_bytes_per_second": [break_even(smollm2.GEOMETRY, n, one, element_bytes) for n, one in pairs],
    }


# --8<-- [start:disk]
def resident_share(path: Path) -> float:
    """Share of a file's pages in the page cache, as the kernel tells (mincore); ValueError where it does not."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * pages)()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        view = (ctypes.c_char * size).from_buffer(mapped)
        try:
            failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(view), ctypes.c_size_t(size), flags)
        except AttributeError as error:
            raise ValueError("this C library has no mincore") from error
        finally:
            del view
    if failed:
        raise ValueError("the kernel does not tell which pages are cached")
    return sum(flag & 1 for flag in flags) / pages


def read_seconds(path: Path, buffer: mmap.mmap, chunk_bytes: int = 2**22) -> float:
    """Seconds of reading a whole file into a buffer, chunk by chunk."""
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        began = time.perf_counter()
        for start in range(0, len(view), chunk_bytes):
            file.readinto(view[start : start + chunk_bytes])
        taken = time.perf_counter() - began
    view.release()
    return taken


def disk_values(size: int, folder: Path | None = None, repeats: int = 3) -> dict[str, float]:
    """Bytes/s of reading a fresh file, its pages dropped from the page cache before each read; and again, cached.

    Zero bytes/s stand for "not measured": the kernel would not drop the file's pages, as with one in memory.
    """
    if not hasattr(os, "posix_fadvise"):
        return {"disk_cached_share": 1.0, "disk_bytes_per_second": 0.0, "warm_bytes_per_second": 0.0}
    cold, warm, shares = [], [], []
    buffer = mmap.mmap(-1, size)
    with tempfile.TemporaryDirectory(dir=folder) as scratch, clock.timing_lock():
        path = Path(scratch) / "cache"
        with path.open("wb") as file:
            for _ in range(0, size, 2**20):
                file.write(os.urandom(2**20))  # nothing that a file system could compress
            file.flush()
            os.fsync(file.fileno())
        for _ in range(repeats):
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            shares.append(resident_share(path))
            cold.append(read_seconds(path, buffer))
            warm.append(read_seconds(path, buffer))
    defeated = max(shares) == 0
    return {
        "disk_cached_share": max(shares),
        "disk_bytes_per_second": size / median(cold) if defeated else 0.0,
        "warm_bytes_per_second": size / median(warm),
    }


# --8<-- [end:disk]


def ratio_values(timed: clock.Interleaved, lengths: Sequence[int]) -> dict[str, float]:
    """Computing the longest prompt's cache against copying it back from the host's memory."""
    return {"restore_ratio": timed.ratio(str(max(lengths)), "copy")}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `dtype` is that of the timed prefill, equality is shown in BF16."""
    scale, target = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    timed_dtype = dtype or fast_dtype(target)
    timed = prefill_times(smollm2.decoder(timed_dtype, target), scale)
    restored = smollm2.decoder(torch.bfloat16, target)
    return {
        **formula_values(),
        **predicted_values(),
        **path_values(path_columns()),
        **overlap_values(),
        **restored_values(restored, scale.prompt_tokens, scale.checked_tokens),
        **prefill_values(timed, scale.lengths, timed_dtype.itemsize),
        **ratio_values(timed, scale.lengths),
        **disk_values(scale.disk_bytes),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Computing the cache again in place of bringing it back."""
    scale, target = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    timed = prefill_times(smollm2.decoder(dtype or fast_dtype(target), target), scale, restored=False)
    return ratio_values(timed, scale.lengths)


if __name__ == "__main__":
    report("kv_cache/offloading", measure())
