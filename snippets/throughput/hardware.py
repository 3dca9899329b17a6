"""What does other hardware change?

Claim: a card is three numbers to a language model: bytes a second, operations a second in the format used, and bytes
of memory. A step gains the ratio of the one that binds it, and nothing of the others.

Run: python -m snippets.throughput.hardware
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.clock import Interleaved
from snippets.instruments.datasheets import Peak, cpu_peak, gpu_peak
from snippets.instruments.device import KINDS, cache_bytes, capabilities, declared_peak, device_name, pick
from snippets.instruments.roofline import predict_seconds
from snippets.instruments.threads import one_thread
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, parameters

# isort: split
from measured.values import report

Call = Callable[[], object]
Shape = tuple[int, int]  # outputs, inputs
PARTS = ("read", "one", "many")


@dataclass(frozen=True)
class Scale:
    """How much is measured: a known product, those to predict, rows of a step, rounds of timing."""

    known: Shape = (LLAMA_3_8B.ffn, LLAMA_3_8B.hidden)
    unseen: Sequence[Shape] = ((LLAMA_3_8B.hidden, LLAMA_3_8B.hidden), (LLAMA_3_8B.hidden, LLAMA_3_8B.ffn))
    rows: Sequence[int] = (1, 4, 16, 64, 128)
    read_bytes: int = 2**28
    far_bytes: int = 2**26  # at least; more where the last cache is large
    rounds: int = 9


SMALL = Scale((2048, 2048), ((1024, 2048),), (1, 64), 2**26, 2**25, 7)


# --8<-- [start:machines]
class Setting(NamedTuple):
    """This processor as another one: so many threads, and instructions that oneDNN may use (all where empty)."""

    threads: int
    newest: str = ""


MACHINES = {
    "older: without BF16 instructions": Setting(1, "AVX512_CORE"),
    "newer: with them": Setting(1),
    "wider: with a second core": Setting(2),
}
OLDER, NEWER, WIDER = MACHINES


def products(shape: Shape, rows: int, dtype: torch.dtype, device: torch.device, read_bytes: int) -> dict[str, Call]:
    """A plain read, and one product of random numbers with one row and with many, on a device."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, shape[1], generator=generator).to(device, dtype) for n in (shape[0], rows))
    buffer = torch.ones(read_bytes // 4, device=device)
    return {"read": buffer.sum, "one": partial(F.linear, x[:1], weight), "many": partial(F.linear, x, weight)}


def serve() -> None:
    """A machine of its own, as a process: runs what a line on stdin names, and answers with an empty line."""
    outputs, inner, rows, read_bytes, threads = map(int, sys.argv[1:])
    torch.set_num_threads(threads)
    clock.fix_allocator()
    calls = products((outputs, inner), rows, torch.bfloat16, pick("cpu"), read_bytes)
    with torch.inference_mode():
        _answer()  # ready
        for line in sys.stdin:
            calls[line.strip()]()
            _answer()


def _answer() -> None:
    sys.stdout.write("\n")
    sys.stdout.flush()


# --8<-- [end:machines]


class Machine:
    """The other end of `serve`."""

    def __init__(self, setting: Setting, scale: Scale) -> None:
        told = (*scale.known, max(scale.rows), scale.read_bytes, setting.threads)
        environment = os.environ | {"OMP_NUM_THREADS": str(setting.threads)}
        if setting.newest:
            environment["ONEDNN_MAX_CPU_ISA"] = setting.newest
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from snippets.throughput.hardware import serve; serve()", *map(str, told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def wait(self) -> None:
        """Until it is ready, or done. RuntimeError if it died."""
        assert self.process.stdout
        if not self.process.stdout.readline():
            raise RuntimeError("a machine's process ended; its message stands above")

    def run(self, part: str) -> None:
        """One of `PARTS`, there."""
        assert self.process.stdin
        self.process.stdin.write(part + "\n")
        self.process.stdin.flush()
        self.wait()

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def time_machines(settings: Mapping[str, Setting], scale: Scale) -> Interleaved:
    """Every machine's parts in turn, "name part"."""
    with ExitStack() as stack:
        machines = {name: Machine(setting, scale) for name, setting in settings.items()}
        for machine in machines.values():
            stack.callback(machine.stop)
        for machine in machines.values():
            machine.wait()
        calls = {f"{name} {part}": partial(one.run, part) for name, one in machines.items() for part in PARTS}
        # Other processes compute here on purpose: they are no foreign load.
        return clock.interleave(calls, device="cpu", rounds=scale.rounds, foreign_load_limit=1)


def machine_values(taken: Interleaved) -> tuple[dict[str, float], dict[str, float]]:
    """(what newer instructions gain with many rows and with one, what a second core does)."""
    gain = {part: taken.ratio(f"{OLDER} {part}", f"{NEWER} {part}") for part in PARTS}
    wide = {part: taken.ratio(f"{NEWER} {part}", f"{WIDER} {part}") for part in PARTS}
    gated = {"instructions_many_ratio": gain["many"], "instructions_one_ratio": gain["one"]}
    return gated, {f"cores_{part}_ratio": wide[part] for part in PARTS}


def read_bytes_per_second(taken: Interleaved, scale: Scale) -> float:
    """What one core reads in a plain sum."""
    return scale.read_bytes / taken.seconds(f"{NEWER} read")


def present() -> list[torch.device]:
    """Every kind of accelerator that is here; the processor is measured as several machines."""
    found = []
    for kind in KINDS[:-1]:
        try:
            found.append(pick(kind))
        except ValueError:
            continue
    return found


def device_columns(taken: Interleaved, settings: Mapping[str, Setting], scale: Scale) -> dict[str, list]:
    """A table's columns: each device, what it reads and computes, and as shares of its limits.

    A processor's limit for reading is what it reads in a plain sum, for computing an upper bound from its
    instructions; an accelerator's are those of its datasheet.
    """
    (outputs, inner), most, have = scale.known, max(scale.rows), capabilities("cpu")
    flops, weight_bytes, rows = 2 * most * outputs * inner, 2 * outputs * inner, []
    for name, setting in settings.items():
        can = frozenset(one for one in have if not (setting.newest and one in ("avx512-bf16", "amx-bf16")))
        bound = cpu_peak(can, setting.threads, "bfloat16").flops_per_second
        seconds = {part: taken.seconds(f"{name} {part}") for part in PARTS}
        rows.append((name, seconds, scale.read_bytes / seconds["read"], bound))
    for device in present():
        with torch.inference_mode():
            calls = products(scale.known, most, torch.bfloat16, device, scale.read_bytes)
            here = clock.interleave(calls, device=device, rounds=scale.rounds)
        clock.refuse_beyond_peak(here.seconds("many"), flops=flops, device=device, dtype=torch.bfloat16)
        peak = declared_peak(device, torch.bfloat16)
        limits = (peak.bytes_per_second, peak.flops_per_second) if peak else (float("nan"), float("nan"))
        rows.append((device_name(device), {part: here.seconds(part) for part in PARTS}, *limits))
    return {
        "device": [name for name, *_ in rows],
        "one_bytes_per_second": [weight_bytes / seconds["one"] for _, seconds, *_ in rows],
        "read_share": [weight_bytes / seconds["one"] / limit for _, seconds, limit, _ in rows],
        "many_flops_per_second": [flops / seconds["many"] for _, seconds, *_ in rows],
        "compute_share": [flops / seconds["many"] / limit for _, seconds, _, limit in rows],
    }


# --8<-- [start:predict]
def predicted_seconds(shape: Shape, rows: int, peak: Peak, element_bytes: int) -> float:
    """A product on a device of which two numbers are known: the slower of its operations and its bytes."""
    (outputs, inner), moved = shape, shape[0] * shape[1] + rows * sum(shape)
    return predict_seconds(flops=2 * rows * outputs * inner, bytes=moved * element_bytes, peak=peak, launches=0)


def calibrated(shape: Shape, seconds: Mapping[int, float], element_bytes: int) -> Peak:
    """Those two numbers of a device, from one product at the fewest and at the most rows."""
    few, most, weights = min(seconds), max(seconds), shape[0] * shape[1]
    return Peak(2 * most * weights / seconds[most], element_bytes * weights / seconds[few], "measured")


# --8<-- [end:predict]


class Trial(NamedTuple):
    """A product that was predicted: its label, what is predicted, by operations alone, and measured; seconds."""

    label: str
    predicted: float
    operations: float
    measured: float


def try_method(scale: Scale, device: torch.device) -> list[Trial]:
    """Predict products from another one's two numbers, then time them; weights come from memory."""
    clock.fix_allocator()
    fast = device.type != "cpu" or "fast-bf16" in capabilities(device)
    dtype, most = torch.bfloat16 if fast else torch.float32, max(scale.rows)
    size = dtype.itemsize
    calls: dict[tuple[Shape, int], Call] = {}
    for shape in (scale.known, *scale.unseen):
        weight, x = (torch.randn(n, shape[1], device=device).to(dtype) for n in (shape[0], most))
        rows = (1, most) if shape == scale.known else scale.rows
        calls |= {(shape, n): partial(F.linear, x[:n], weight) for n in rows}
    with torch.inference_mode(), one_thread():
        named = {str(key): call for key, call in calls.items()}
        taken = clock.interleave(named, device=device, rounds=scale.rounds, flush_cache=True)
    seconds = {key: taken.seconds(str(key)) for key in calls}
    peak = calibrated(scale.known, {n: seconds[scale.known, n] for n in (1, most)}, size)
    return [
        Trial(
            f"{shape[1]:,} to {shape[0]:,}",
            predicted_seconds(shape, n, peak, size),
            2 * n * shape[0] * shape[1] / peak.flops_per_second,
            seconds[shape, n],
        )
        for shape, n in calls
        if shape != scale.known
    ]


def tested_values(found: Sequence[Trial], by_operations: bool = False) -> dict[str, float]:
    """How far off the worst prediction is, either way, and the worst by operations alone."""
    roofline = max(max(one.measured / one.predicted, one.predicted / one.measured) for one in found)
    alone = max(max(one.measured / one.operations, one.operations / one.measured) for one in found)
    return {"worst_ratio": alone if by_operations else roofline, "operations_worst_ratio": alone}


def tested_columns(found: Sequence[Trial]) -> dict[str, list]:
    """A chart's columns: predicted and measured seconds, and a line where they would be equal."""
    ends = sorted(one.predicted for one in found)[:: len(found) - 1]
    return {
        "predicted_seconds": [*ends, *(one.predicted for one in found)],
        "measured_seconds": [*ends, *(one.measured for one in found)],
        "product": ["as predicted"] * len(ends) + [one.label for one in found],
    }


# --8<-- [start:cache]
def cache_values(scale: Scale, device: torch.device, near_bytes: int = 0) -> dict[str, float]:
    """The same device with faster memory: weights that its cache holds against weights that it does not, FP32.

    `near_ratio` is how much faster a byte of weights is used by one row, `near_many_ratio` a weight by many rows.
    """
    clock.fix_allocator()
    caches, rows = cache_bytes(device), 64
    last = min(max([2 * size for size in caches.values()], default=0), 2**29)
    sizes = {"near": near_bytes or caches.get("L2", 2**20) // 2, "far": max(scale.far_bytes, last)}
    widths = {name: 64 * max(1, int(sqrt(size / 4) / 64)) for name, size in sizes.items()}
    calls: dict[str, Callable[[], Tensor]] = {}
    for name, width in widths.items():
        weight, x = (torch.randn(n, width, device=device) for n in (width, rows))
        calls |= {f"{name} {n}": partial(F.linear, x[:n], weight) for n in (1, rows)}
    with torch.inference_mode(), one_thread():
        taken = clock.interleave(calls, device=device, rounds=scale.rounds, flush_cache=False)
    work = (widths["near"] / widths["far"]) ** 2
    return {
        "near_ratio": taken.ratio("far 1", "near 1") * work,
        "near_many_ratio": taken.ratio(f"far {rows}", f"near {rows}") * work,
        "near_bytes": 4 * widths["near"] ** 2,
        "far_bytes": 4 * widths["far"] ** 2,
    }


# --8<-- [end:cache]


def tiny_values(bytes_per_second: float, device: torch.device, width: int = SMOLLM2_135M.hidden) -> dict[str, float]:
    """One token's residual addition, against what its bytes would take: work that faster memory changes little."""
    x, y, out = (torch.ones(1, width, device=device, dtype=torch.bfloat16) for _ in range(3))
    with torch.inference_mode(), one_thread():
        taken = clock.interleave({"add": partial(torch.add, x, y, out=out)}, device=device, rounds=9)
    seconds = taken.seconds("add")
    return {"tiny_seconds": seconds, "tiny_ratio": seconds * bytes_per_second / (3 * x.nbytes)}


# --8<-- [start:cards]
GB = 10**9
TPUS = {  # Google's documentation of Cloud TPU: dense BF16 and memory of a chip
    "TPU v5e": Peak(197e12, 819e9, "tpu-v5e"),
    "TPU v6e": Peak(918e12, 1638e9, "tpu-v6e"),
}
MEMORY = {
    "A100 SXM 80GB": 80, "H100 SXM": 80, "H200 SXM": 141, "B200": 180, "MI300X": 192, "L4": 24,
    "TPU v5e": 16, "TPU v6e": 32,
}  # fmt: skip


class Floor(NamedTuple):
    """The least a card takes for Llama-3-8B in BF16: a prompt, a token alone; tokens/s with its memory full."""

    prompt_seconds: float
    token_seconds: float
    users_count: int
    full_tokens_per_second: float


def peak(card: str) -> Peak:
    """Declared dense BF16 and bandwidth."""
    found = TPUS.get(card) or gpu_peak(card, "bfloat16")
    assert found is not None
    return found


def floor_of(card: str, tokens: int = 2048) -> Floor:
    """From three numbers of its datasheet, by the roofline; every user has `tokens` of context, attention left out."""
    g, limit = LLAMA_3_8B, peak(card)
    layers, head = parameters(g).linear, g.vocabulary * g.hidden
    cache = 4 * g.layers * g.kv_heads * g.head_dim * tokens  # keys and values in BF16
    read = 2 * (layers + head)

    def step(rows: int, users: int) -> float:
        flops = 2 * rows * layers + 2 * users * head
        return predict_seconds(flops=flops, bytes=read + users * cache, peak=limit, launches=0)

    users = max(0, (MEMORY[card] * GB - 2 * parameters(g).total) // cache)
    return Floor(step(tokens, 1), step(1, 1), users, users / step(users, users))


# --8<-- [end:cards]


def card_columns(base: str = "A100 SXM 80GB") -> dict[str, list]:
    """A table's columns: how many times as fast as another card each is, by what is asked of it."""
    floors, old = {card: floor_of(card) for card in MEMORY}, floor_of(base)
    return {
        "card": list(MEMORY),
        "memory_bytes": [MEMORY[card] * GB for card in MEMORY],
        "prefill_ratio": [old.prompt_seconds / one.prompt_seconds for one in floors.values()],
        "decode_ratio": [old.token_seconds / one.token_seconds for one in floors.values()],
        "full_ratio": [one.full_tokens_per_second / old.full_tokens_per_second for one in floors.values()],
    }


def card_values() -> dict[str, float]:
    """What the page says of single cards."""
    h100, h200 = floor_of("H100 SXM"), floor_of("H200 SXM")
    values: dict[str, float] = {"weights_bytes": 2 * parameters(LLAMA_3_8B).total}
    for short, card in {"a100": "A100 SXM 80GB", "h100": "H100 SXM", "h200": "H200 SXM", "b200": "B200"}.items():
        values[f"{short}_flops_per_second"] = round(peak(card).flops_per_second)
        values[f"{short}_bytes_per_second"] = round(peak(card).bytes_per_second)
    return values | {
        "h100_memory_bytes": MEMORY["H100 SXM"] * GB,
        "h200_memory_bytes": MEMORY["H200 SXM"] * GB,
        "h100_users_count": h100.users_count,
        "h200_users_count": h200.users_count,
        "h100_full_tokens_per_second": round(h100.full_tokens_per_second),
        "h200_full_tokens_per_second": round(h200.full_tokens_per_second),
        "v5e_memory_bytes": MEMORY["TPU v5e"] * GB,
        "v5e_users_count": floor_of("TPU v5e").users_count,
    }


def _measured(scale: Scale, device: torch.device, settings: Mapping[str, Setting], control: bool) -> dict[str, float]:
    taken = time_machines(settings, scale)
    gated, shown = machine_values(taken)
    width = 2**24 if control else SMOLLM2_135M.hidden
    return {
        **card_values(),
        **gated,
        **shown,
        **tested_values(try_method(scale, device), by_operations=control),
        **cache_values(scale, device, scale.far_bytes if control else 0),
        **tiny_values(read_bytes_per_second(taken, scale), device, width),
        "most_rows_count": max(scale.rows),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` multiplies narrower matrices. `dtype` is the page's own."""
    return _measured(SMALL if small else Scale(), pick(device), MACHINES, control=False)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Nothing changes: every machine is the older one, and no byte is predicted, cached, or small."""
    settings = dict.fromkeys(MACHINES, MACHINES[OLDER])
    return _measured(SMALL if small else Scale(), pick(device), settings, control=True)


if __name__ == "__main__":
    report("throughput/hardware", measure())
