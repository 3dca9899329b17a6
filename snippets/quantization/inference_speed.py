"""How does quantization affect inference speed? When is it faster, when slower?

Claim: it removes bytes, never operations. One row at a time a layer is a read, so fewer bytes are faster; many rows are
arithmetic, where weight-only codes are made floats again for nothing and only narrower products are faster.

Run: python -m snippets.quantization.inference_speed
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import cache_bytes, pick
from snippets.instruments.roofline import LAUNCH_SECONDS, binding, predict_seconds
from snippets.models import minilm, operators, texts
from snippets.models.encoder import encoder
from snippets.models.products import DynamicInt8Linear, Int4Linear, Int8Linear
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M

# isort: split
from measured.values import report

Way = Callable[[Tensor], Tensor]  # (rows, columns) → (rows, outputs)
Ways = Mapping[str, Way]
NAMES = {
    "fp32": "FP32",
    "bf16": "BF16",
    "int8": "INT8 weight-only",
    "int4": "INT4 weight-only (W4A16)",
    "w8a8": "INT8 both (W8A8)",
    "naive": "INT8, dequantized into memory",
}
BETWEEN = ("bf16", "int8", "int4", "w8a8")  # what is timed at the rows between the few that every way is timed at


@dataclass(frozen=True)
class Scale:
    """How much is measured: the layer (outputs, columns), rows for every way and for some, rounds, cache sweep."""

    layer: tuple[int, int] = (LLAMA_3_8B.ffn, LLAMA_3_8B.hidden)
    rows: Sequence[int] = (1, 8, 64, 512)
    between: Sequence[int] = (2, 4, 16, 32)
    rounds: int = 21
    long_rounds: int = 6  # where a round takes a second
    sweep_columns: int = 4096
    largest: int = 4  # the sweep's largest matrix, in last caches
    sweep_rounds: int = 15

    def rounds_at(self, rows: int) -> int:
        """Rounds of timing: fewer where one takes a second."""
        return self.long_rounds if rows > 64 else self.rounds


# --8<-- [start:ways]
def ways(weight: Tensor, dtype: torch.dtype) -> Ways:
    """One layer, weight (outputs, columns) FP32, in six ways; all but FP32 take and give activations in `dtype`."""
    rows8, narrow = quantize_rows_int8(weight), weight.to(dtype)
    scale = rows8.scale.to(dtype)
    return {
        "fp32": lambda x: x.float() @ weight.T,
        "bf16": lambda x: x @ narrow.T,
        "int8": Int8Linear(rows8, dtype),
        "int4": Int4Linear(quantize_groups_int4(weight, 128), dtype),
        "w8a8": DynamicInt8Linear(rows8, dtype),
        "naive": lambda x: x @ (rows8.packed.to(dtype) * scale).T,
    }


# --8<-- [end:ways]


# --8<-- [start:work]
class Work(NamedTuple):
    """What a layer has to do: FLOP of its products, operations beside them, bytes of weights and of activations."""

    flops: int
    extra: int
    weight_bytes: int
    activation_bytes: int

    @property
    def bytes(self) -> int:
        return self.weight_bytes + self.activation_bytes


def work(way: str, rows: int, outputs: int, columns: int, group: int = 128) -> Work:
    """By formula, for `rows` rows. Beside the products: each code converted, each scale applied, each rounding."""
    weights, results = outputs * columns, rows * outputs
    extra, weight_bytes = {
        "fp32": (0, 4 * weights),
        "bf16": (0, 2 * weights),
        "int8": (weights + results, weights + 2 * outputs),  # a BF16 scale a row, applied to the result
        "int4": (2 * weights, weights // 2 + 2 * weights // group),  # a scale a group, applied to the weight
        "w8a8": (
            2 * rows * columns + 2 * results,
            weights + 4 * outputs,
        ),  # activations: scale, round; results: scale
        "naive": (2 * weights, weights + 2 * outputs + 2 * 2 * weights),  # written as BF16 and read again
    }[way]
    return Work(2 * rows * weights, extra, weight_bytes, (4 if way == "fp32" else 2) * rows * (outputs + columns))


# --8<-- [end:work]


class ElementCounter(TorchDispatchMode):
    """Counts the elements that conversions and multiplications produce: operations beside the products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.mul):
            self.count += out.numel()
        return out


def counted(layer: Way, x: Tensor) -> tuple[int, int]:
    """(FLOP of products by PyTorch's own counter, conversions and scalings by ours) of one call."""
    # No inference mode: in it a dispatch mode sees `to` whole, not the copy that it makes.
    with torch.no_grad(), FlopCounterMode(display=False) as flops, ElementCounter() as elements:
        layer(x)
    return flops.get_total_flops(), elements.count


def count_values(layer: tuple[int, int]) -> dict[str, int]:
    """Work of one row by formula, beside what counters and storage say of layers that have only a shape."""
    outputs, columns = layer
    weight, x = torch.empty(layer, device="meta"), torch.empty(1, columns, dtype=torch.bfloat16, device="meta")
    rows8, groups4 = quantize_rows_int8(weight), quantize_groups_int4(weight, 128)
    plain = Int8Linear(rows8, torch.bfloat16, plain=True)
    packed = Int8Linear(quantize_rows_int8(torch.ones(64, 64)), torch.bfloat16)
    works = {way: work(way, 1, outputs, columns) for way in NAMES}
    shapes = LLAMA_3_8B.linear_shapes.values()
    return {
        "llama_layer_int4_bytes": sum(work("int4", 1, *shape).weight_bytes for shape in shapes),
        "weights_count": outputs * columns,
        "product_flops": works["bf16"].flops,
        "w8a8_product_flops": works["w8a8"].flops,
        "counted_bf16_flops": counted(lambda x: x @ weight.to(x.dtype).T, x)[0],
        "counted_int8_flops": counted(plain, x)[0],
        "counted_int8_extra_count": counted(plain, x)[1],
        "counted_packed_flops": counted(packed, torch.ones(1, 64, dtype=torch.bfloat16))[0],
        "int8_storage_bytes": plain.nbytes,
        "int4_storage_bytes": groups4.nbytes,
        **{f"{way}_extra_count": works[way].extra for way in ("int8", "int4", "w8a8")},
        **{f"{way}_weight_bytes": works[way].weight_bytes for way in ("bf16", "int8", "int4", "w8a8")},
    }


@dataclass(frozen=True)
class Curves:
    """Seconds by way and rows, how many times BF16's speed, and what the device read and multiplied at best."""

    seconds: Mapping[tuple[str, int], float]
    speed: Mapping[tuple[str, int], float]  # BF16's seconds over the way's: the median over the rounds
    read_bytes_per_second: float
    peak: Mapping[str, float]  # FLOP/s by way
    rows: Sequence[int]

    def against(self, way: str, other: str, rows: int) -> float:
        """How many times `other`'s speed."""
        return self.speed[way, rows] / self.speed[other, rows]

    def crossover(self, way: str) -> float:
        """Rows at which it falls to BF16's speed, on straight lines between logarithms; the last where it does not."""
        points = [(math.log(n), math.log(self.speed[way, n])) for n in self.rows]
        for (a, high), (b, low) in pairwise(points):
            if high > 0 >= low:
                return math.exp(a + (b - a) * high / (high - low))
        return float(self.rows[-1] if points[0][1] > 0 else self.rows[0])


def curves(layer: Ways, scale: Scale, device: torch.device) -> Curves:
    """Every way in turn in each round, at each number of rows."""
    clock.fix_allocator()
    generator = torch.Generator().manual_seed(0)
    seconds: dict[tuple[str, int], float] = {}
    speed: dict[tuple[str, int], float] = {}
    timed = sorted([*scale.rows, *scale.between])
    for rows in timed:
        x = torch.randn(rows, scale.layer[1], generator=generator).to(device, torch.bfloat16)
        chosen = NAMES if rows in scale.rows else BETWEEN
        taken = _timed({way: partial(layer[way], x) for way in chosen}, scale.rounds_at(rows), device)
        for way in chosen:
            seconds[way, rows], speed[way, rows] = taken.seconds(way), taken.ratio("bf16", way)
            one = work(way, rows, *scale.layer)
            dtype = {"fp32": torch.float32, "w8a8": torch.int8}.get(way, torch.bfloat16)
            clock.refuse_beyond_peak(seconds[way, rows], flops=one.flops, bytes=one.bytes, device=device, dtype=dtype)
    read, peak = device_best(scale, device)
    for way in peak:  # a layer may do better than the plain product: no line lies above what was measured
        peak[way] = max(peak[way], *(work(way, n, *scale.layer).flops / seconds[way, n] for n in scale.rows))
    return Curves(seconds, speed, read, peak, timed)


def device_best(scale: Scale, device: torch.device) -> tuple[float, dict[str, float]]:
    """(bytes/s of a plain read, FLOP/s of a plain product by the way whose units it uses)."""
    rows, columns = 128, scale.layer[1]
    buffer = torch.ones(2**26, device=device)
    wide, square = (torch.ones(n, columns, device=device) for n in (rows, columns))
    narrow = (wide.to(torch.bfloat16), square.to(torch.bfloat16))
    calls: dict[str, Callable[[], object]] = {"fp32": lambda: wide @ square, "bf16": lambda: narrow[0] @ narrow[1]}
    codes = (wide.to(torch.int8), square.to(torch.int8))
    if operators.takes_int8(codes[1]):
        calls["w8a8"] = lambda: operators.int8_product(*codes)
    taken = _timed({"read": buffer.sum, **calls}, scale.rounds, device)
    rates = {way: 2.0 * rows * columns**2 / taken.seconds(way) for way in calls}
    return buffer.nbytes / taken.seconds("read"), rates


def _timed(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, **options: Any
) -> clock.Interleaved:
    # Short blocks: a neighbour spoils a whole block.
    with torch.inference_mode():
        return clock.interleave(calls, device=device, rounds=rounds, blocks=max(1, rounds // 3), **options)


def curve_columns(found: Curves, scale: Scale, rows: Sequence[int]) -> dict[str, list]:
    """A table's columns: time and speed of every way, beside the least time for its bytes and for its operations."""
    points = [(way, n) for n in rows for way in NAMES]
    works = [work(way, n, *scale.layer) for way, n in points]
    return {
        "rows_count": [n for _, n in points],
        "way": [NAMES[way] for way, _ in points],
        "step_seconds": [found.seconds[point] for point in points],
        "speed_ratio": [found.speed[point] for point in points],
        "product_flops": [one.flops for one in works],
        "extra_count": [one.extra for one in works],
        "moved_bytes": [one.bytes for one in works],
        "bytes_seconds": [one.bytes / found.read_bytes_per_second for one in works],
        "flops_seconds": [
            one.flops / found.peak.get(way, found.peak["bf16"]) for (way, _), one in zip(points, works, strict=True)
        ],
    }


def chart_columns(found: Curves) -> dict[str, list]:
    """Speed against BF16 by rows, of every way that was timed there."""
    points = [(way, n) for way in NAMES for n in found.rows if (way, n) in found.speed]
    return {
        "rows_count": [n for _, n in points],
        "speed_ratio": [found.speed[point] for point in points],
        "way": [NAMES[way] for way, _ in points],
    }


def speed_values(found: Curves, scale: Scale) -> dict[str, float]:
    """The ratios that claims rest on: one row, and as many as were timed."""
    many = max(scale.rows)
    return {
        "one_int4_ratio": found.against("int4", "bf16", 1),
        "one_int8_ratio": found.against("int8", "bf16", 1),
        "one_int8_fp32_ratio": found.against("int8", "fp32", 1),
        "one_naive_slower_ratio": found.against("bf16", "naive", 1),
        "one_int4_w8a8_ratio": found.against("int4", "w8a8", 1),
        "many_int8_slower_ratio": found.against("bf16", "int8", many),
        "many_int4_slower_ratio": found.against("bf16", "int4", many),
        "many_w8a8_ratio": found.against("w8a8", "bf16", many),
        "many_w8a8_fp32_ratio": found.against("w8a8", "fp32", many),
        "many_w8a8_int8_ratio": found.against("w8a8", "int8", many),
    }


# --8<-- [start:sweep]
def sweep(columns: int, sizes: Sequence[int], formats: Sequence[str], device: torch.device, rounds: int) -> dict:
    """Weights a second of a matrix times one vector, by (format, bytes of the matrix), warm from its own use.

    Every sample starts with an untimed call that leaves in the caches what fits: the other matrices have been there.
    """
    clock.fix_allocator()
    matrix = torch.full((max(sizes) // columns // 4, columns), 0.5, device=device)
    codes = torch.ones(max(sizes) // columns, columns, dtype=torch.int8, device=device)
    wide, x, scales = matrix[0], matrix[:1].to(torch.bfloat16), codes[:, 0].to(torch.bfloat16)
    calls, once, weights = {}, {}, {}
    for size in sizes:
        for name in formats:
            rows = size // columns // (4 if name == "FP32" else 1)
            one: Callable[[], object] = partial(torch.mv, matrix[:rows], wide)
            if name == "INT8":
                one = partial(operators.int8_weight_product, x, codes[:rows], scales[:rows])
            point, weights_once = (name, size), rows * columns
            repeats = max(1, 2**24 // weights_once)
            calls[point], once[point] = partial(_repeat, one, repeats), one
            weights[point] = repeats * weights_once
    names = {str(point): point for point in calls}
    warm = {name: once[point] for name, point in names.items()}
    taken = _timed({name: calls[point] for name, point in names.items()}, rounds, device, setup=warm)
    return {point: weights[point] / taken.seconds(name) for name, point in names.items()}


# --8<-- [end:sweep]


def _repeat(one: Callable[[], object], repeats: int) -> None:
    for _ in range(repeats):
        one()


def step_weights(rate: Mapping[tuple[str, int], float], name: str, cache: int) -> float:
    """Weights at which a format leaves the last cache: where its rate falls through the middle of inside and outside.

    Inside is the best rate up to half the cache, outside that of the largest matrix; the middle is geometric.
    """
    points = sorted((size, value) for (way, size), value in rate.items() if way == name)
    inside, outside = max(value for size, value in points if size <= cache // 2), points[-1][1]
    middle, element = math.sqrt(inside * outside), 4 if name == "FP32" else 1
    for (a, high), (b, low) in reversed(list(pairwise(points))):  # the last fall: small matrices are all overhead
        if high > middle >= low:
            share = (math.log(high) - math.log(middle)) / (math.log(high) - math.log(low))
            return a * (b / a) ** share / element
    return points[-1][0] / element


def sweep_sizes(scale: Scale, device: torch.device) -> tuple[int, list[int]]:
    """(bytes of the last cache, bytes of the matrices): by doubling, from a quarter of the second-level cache."""
    caches = cache_bytes(device)
    last = max(caches.values(), default=2**25)
    first = caches.get("L2", last // 32) // 4 if scale.largest > 2 else last // 4
    largest = min(scale.largest * last, 2**30)
    doublings = round(math.log2(largest / first))
    return last, [int(largest / 2**step) // 2**16 * 2**16 for step in range(doublings, -1, -1)]


# --8<-- [start:confound]
def confound(scale: Scale) -> dict[str, float]:
    """Dequantized into memory against BF16, at one row: with memory as the allocator gives it, then with it kept."""
    layer = ways(torch.ones(scale.layer), torch.bfloat16)
    x = torch.ones(1, scale.layer[1], dtype=torch.bfloat16)
    found = {}
    for state in ("fresh", "kept"):
        if state == "kept":
            clock.fix_allocator()
        calls = {way: partial(layer[way], x) for way in ("bf16", "naive")}
        found[f"{state}_naive_ratio"] = _timed(calls, 9, torch.device("cpu")).ratio("naive", "bf16")
    return found


# --8<-- [end:confound]


def confound_values(scale: Scale) -> dict[str, float]:
    """`confound` in a process of its own: what an allocator was told lasts as long as its process."""
    script = (
        "import json, torch; from snippets.quantization.inference_speed import *;"
        f"torch.set_num_threads({torch.get_num_threads()}); print(json.dumps(confound(Scale(layer={scale.layer}))))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"confound_ratio": found["fresh_naive_ratio"] / found["kept_naive_ratio"]}


# --8<-- [start:error]
def real_layer() -> tuple[Tensor, Tensor]:
    """MiniLM's first contraction, FP32 (outputs, columns), and what it is given for real text: (tokens, columns)."""
    model, seen = encoder(), []
    words = " ".join(texts.address().split()[:80])
    tokens = minilm.tokenizer().encode(words).ids[:64]  # shorter than the text: no padding
    layer: Any = model.get_submodule("encoder.layer.0.output.dense")
    handle = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0][0]))
    with torch.inference_mode():
        model(torch.tensor([tokens]), torch.ones(1, len(tokens)))
    handle.remove()
    return layer.weight.detach(), seen[0]


def error_values(weight: Tensor, x: Tensor) -> dict[str, float]:
    """Relative error of the layer's output, root of mean squares, by what is quantized. All sums in FP32."""
    rows8, groups4 = quantize_rows_int8(weight), quantize_groups_int4(weight, 128)
    exact = x @ weight.T
    layers = {
        "int8": Int8Linear(rows8, torch.float32, plain=True),
        "w8a8": DynamicInt8Linear(rows8, torch.float32, plain=True),
        "int4": Int4Linear(groups4, torch.float32, plain=True),
    }
    return {f"{way}_error_share": float((layer(x) - exact).norm() / exact.norm()) for way, layer in layers.items()}


# --8<-- [end:error]


# --8<-- [start:predict]
def predicted(way: str, rows: int, layer: tuple[int, int], gpu: str = "H100 SXM") -> tuple[float, str]:
    """(seconds, what binds) on a named GPU: declared peaks, the work above, and the launches of the way.

    Operations beside the products run on the ordinary units, at the declared FP32 rate, and are counted once.
    """
    one, wide = work(way, rows, *layer), gpu_peak(gpu, "float32")
    peak = gpu_peak(gpu, {"fp32": "float32", "w8a8": "int8"}.get(way, "bfloat16"))
    assert peak is not None and wide is not None
    flops = one.flops + one.extra * peak.flops_per_second / wide.flops_per_second
    launches = 2 if way in ("w8a8", "naive") else 1
    asked: dict[str, Any] = {"flops": flops, "bytes": one.bytes, "peak": peak, "launches": launches}
    return predict_seconds(**asked), binding(**asked)


# --8<-- [end:predict]

PREDICTED = {
    "Llama-3-8B": (LLAMA_3_8B.ffn, LLAMA_3_8B.hidden),
    "SmolLM2-135M": (SMOLLM2_135M.ffn, SMOLLM2_135M.hidden),
}


def prediction_columns(rows: Sequence[int] = (1, 512)) -> dict[str, list]:
    """A table's columns: BF16's time on an H100, what binds it, how many times its speed the others have."""
    points = [(name, n) for name in PREDICTED for n in rows]
    time = {way: [predicted(way, n, PREDICTED[name])[0] for name, n in points] for way in NAMES}
    columns: dict[str, list] = {
        "layer": [name for name, _ in points],
        "rows_count": [n for _, n in points],
        "bf16_seconds": time["bf16"],
        "bound": [predicted("bf16", n, PREDICTED[name])[1] for name, n in points],
    }
    for way in ("int8", "int4", "w8a8", "naive"):
        columns[f"{way}_ratio"] = [a / b for a, b in zip(time["bf16"], time[way], strict=True)]
    return columns


def prediction_values(way: Callable[[str], str] = str) -> dict[str, float]:
    """The predictions that claims rest on; `way` replaces a way by another."""
    large, little = PREDICTED["Llama-3-8B"], PREDICTED["SmolLM2-135M"]

    def speed(name: str, rows: int, layer: tuple[int, int]) -> float:
        return predicted("bf16", rows, layer)[0] / predicted(way(name), rows, layer)[0]

    return {
        "h100_one_int4_ratio": speed("int4", 1, large),
        "h100_many_int4_ratio": speed("int4", 512, large),
        "h100_many_w8a8_ratio": speed("w8a8", 512, large),
        "h100_little_w8a8_ratio": speed("w8a8", 1, little),
        "h100_launch_seconds": LAUNCH_SECONDS,
    }


SMALL = Scale((2048, 2048), (1, 64), (), rounds=3, long_rounds=3, largest=2, sweep_rounds=3)


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page: `small` has fewer and smaller points."""
    scale, target = SMALL if small else Scale(), pick(device)
    generator = torch.Generator().manual_seed(0)
    layer = ways(torch.randn(scale.layer, generator=generator).to(target) * 0.02, dtype or torch.bfloat16)
    found = _measure(scale, target, layer, ("FP32", "INT8"), error_values(*real_layer()), prediction_values())
    return found | confound_values(scale)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same where nothing is quantized: each way is the BF16 product, the sweep and the errors are FP32's."""
    scale, target = SMALL if small else Scale(), pick(device)
    narrow = torch.ones(scale.layer, dtype=dtype or torch.bfloat16, device=target)
    layer: Ways = dict.fromkeys(NAMES, lambda x: x @ narrow.T)
    errors = dict.fromkeys(("int8_error_share", "w8a8_error_share", "int4_error_share"), 0.0)
    return _measure(scale, target, layer, ("FP32", "FP32"), errors, prediction_values(lambda _: "bf16"))


def _measure(
    scale: Scale,
    device: torch.device,
    layer: Ways,
    formats: tuple[str, str],
    errors: Mapping[str, float],
    predictions: Mapping[str, float],
) -> dict[str, float]:
    found = curves(layer, scale, device)
    cache, sizes = sweep_sizes(scale, device)
    rate = sweep(scale.sweep_columns, sizes, tuple(dict.fromkeys(formats)), device, scale.sweep_rounds)
    return {
        **count_values(Scale().layer),
        **speed_values(found, scale),
        **shown_values(found),
        **step_values(rate, cache, formats),
        **errors,
        **predictions,
    }


def shown_values(found: Curves) -> dict[str, float]:
    """What one machine showed: where the ways cross BF16, and what it reads and multiplies at best."""
    return {
        "many_count": max(found.rows),
        "int8_crossover_count": found.crossover("int8"),
        "int4_crossover_count": found.crossover("int4"),
        "read_bytes_per_second": found.read_bytes_per_second,
        "bf16_flops_per_second": found.peak["bf16"],
    }


def step_values(rate: Mapping, cache: int, formats: Sequence[str] = ("FP32", "INT8")) -> dict[str, float]:
    """Weights at which each format leaves the last cache, and how far the step moved."""
    first, second = (step_weights(rate, name, cache) for name in formats)
    return {
        "cache_bytes": cache,
        "fp32_step_count": first,
        "int8_step_count": second,
        "step_moved_ratio": second / first,
    }


def sweep_columns(rate: Mapping[tuple[str, int], float]) -> dict[str, list]:
    """A chart's columns: weights of the matrix, weights a second, format."""
    points = [(name, size // (4 if name == "FP32" else 1)) for name, size in rate]
    return {
        "weights_count": [count for _, count in points],
        "read_flops_per_second": [2 * value for value in rate.values()],
        "format": [name for name, _ in points],
    }


if __name__ == "__main__":
    report("quantization/inference_speed", measure())
