"""FP16, BF16, FP8, INT8, NF4, MXFP4: what range, what step, what fast path?

Claim: exponent bits buy range, mantissa bits buy steps, a block's scale buys both back for codes that have neither.
None of it says anything about speed: that depends on whether the device has instructions for the format.

Run: python -m snippets.quantization.formats_and_fast_paths
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.device import KINDS, capabilities, pick
from snippets.models import minilm, operators
from snippets.models.quantized import pack_int4, quantize_groups_int4, quantize_rows_int8, unpack_int4

# isort: split
from measured.values import report

FLOATS = {
    "FP32": torch.float32,
    "BF16": torch.bfloat16,
    "FP16": torch.float16,
    "E5M2": torch.float8_e5m2,
    "E4M3": torch.float8_e4m3fn,
    "E4M3 FNUZ": torch.float8_e4m3fnuz,
}
INNER = 512
MATRIX = "encoder.layer.0.output.dense.weight"


# --8<-- [start:codes]
def every_value(dtype: torch.dtype) -> Tensor:
    """Every finite value of a format of at most two bytes, sorted, FP32: each code there is, read as the format."""
    bits = 8 * dtype.itemsize
    codes = torch.arange(2**bits, dtype=torch.int32).to(torch.uint8 if bits == 8 else torch.int16)
    values = codes.view(dtype).float()
    return values[values.isfinite()].unique()


# --8<-- [end:codes]


def normal_float() -> list[float]:
    """NF4's levels (QLoRA, arXiv:2305.14314): quantiles of a normal distribution, one more above zero than below."""
    normal, tail = NormalDist(), 1 - (1 / 30 + 1 / 32) / 2  # the ends lie half a step inside, on average of both halves

    def half(levels: int) -> list[float]:
        return [normal.inv_cdf(tail + (0.5 - tail) * step / levels) for step in range(levels)]

    above, below = half(8), half(7)
    return sorted(level / above[0] for level in (*above, 0.0, *(-level for level in below)))


NF4_PUBLISHED = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The table in QLoRA's appendix, which its library looks up."""

# By code: sign, two bits of exponent, one of mantissa (OCP Microscaling Formats).
E2M1 = tuple(sign * value for sign in (1.0, -1.0) for value in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))


# --8<-- [start:block]
@dataclass(frozen=True)
class Blocks:
    """A matrix in codes of half a byte, a scale for every block of a row, one for the whole (none stored if one)."""

    packed: Tensor  # uint8 (rows, columns / two)
    scale: Tensor  # (rows, columns / block), in the format that it is stored in
    whole: Tensor
    levels: tuple[float, ...]

    @property
    def block_bits(self) -> int:
        """Bits of codes and block scales."""
        return 8 * (self.packed.nbytes + self.scale.nbytes)

    @property
    def stored_bits(self) -> int:
        """And of the scale of the whole."""
        return self.block_bits + (8 * self.whole.nbytes if float(self.whole) != 1 else 0)

    def values(self) -> Tensor:
        """FP32 (rows, columns)."""
        codes = torch.tensor(self.levels)[(unpack_int4(self.packed) + 8).long()]
        return (codes.unflatten(1, (self.scale.shape[1], -1)) * self.scale.float()[..., None] * self.whole).flatten(1)


def to_blocks(weight: Tensor, levels: tuple[float, ...], scale: Tensor, whole: float = 1.0) -> Blocks:
    """Each weight as the nearest level after division by its block's scale, as that is stored."""
    scaled = weight.unflatten(1, (scale.shape[1], -1)) / (scale.float()[..., None] * whole).clamp(min=1e-30)
    order = torch.tensor(levels).argsort(stable=True)
    ascending = torch.tensor(levels)[order]
    places = torch.bucketize(scaled.flatten(1), (ascending[1:] + ascending[:-1]) / 2)
    return Blocks(pack_int4(order[places].to(torch.int8) - 8), scale, torch.tensor(whole), levels)


def largest(weight: Tensor, block: int) -> Tensor:
    """Largest magnitude of every block, (rows, columns / block)."""
    return weight.unflatten(1, (-1, block)).abs().amax(-1)


def mxfp4(weight: Tensor) -> Blocks:
    """OCP MXFP4: a power of two for thirty-two weights, which may put the largest beyond the grid's end."""
    power = torch.exp2(largest(weight, 32).clamp(min=2.0**-100).log2().floor() - 2)  # E2M1's largest exponent is two
    return to_blocks(weight, E2M1, power.to(torch.float8_e8m0fnu))


def nvfp4(weight: Tensor) -> Blocks:
    """NVIDIA's NVFP4: an E4M3 scale for sixteen weights, and an FP32 scale that brings these into E4M3's range."""
    whole = float(weight.abs().max()) / (max(E2M1) * torch.finfo(torch.float8_e4m3fn).max)
    return to_blocks(weight, E2M1, (largest(weight, 16) / max(E2M1) / whole).to(torch.float8_e4m3fn), whole)


def nf4(weight: Tensor) -> Blocks:
    """QLoRA's NF4: the largest of sixty-four weights in FP32."""
    return to_blocks(weight, NF4_PUBLISHED, largest(weight, 64))


# --8<-- [end:block]


def snr_db(exact: Tensor, rounded: Tensor) -> float:
    """Signal to noise in decibels: mean squares of the matrix over those of its rounding."""
    exact, error = exact.double(), (exact - rounded).double()
    return float(10 * (exact.square().sum() / error.square().sum()).log10())


def e4m3_rows(weight: Tensor) -> tuple[Tensor, int]:
    """(values, bits) of E4M3 with an FP32 scale a row, the row's largest at the format's end."""
    scale = weight.abs().amax(1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return codes.float() * scale, 8 * (codes.nbytes + scale.nbytes)


def stored(weight: Tensor) -> dict[str, tuple[Tensor, int]]:
    """(values that come back, bits stored) of a real matrix by format."""
    kept: dict[str, tuple[Tensor, int]] = {
        name: (weight.to(FLOATS[name]).float(), 16 * weight.numel()) for name in ("FP16", "BF16")
    }
    rows8, groups4 = quantize_rows_int8(weight), quantize_groups_int4(weight, 128)
    kept["INT8 rows"] = rows8.dequantize(), 8 * rows8.nbytes
    kept["E4M3 rows"] = e4m3_rows(weight)
    kept["INT4-g128"] = groups4.dequantize(), 8 * groups4.nbytes
    return kept | {
        name: (blocks.values(), blocks.stored_bits)
        for name, blocks in {"NF4-g64": nf4(weight), "MXFP4": mxfp4(weight), "NVFP4": nvfp4(weight)}.items()
    }


def stored_columns(weight: Tensor) -> dict[str, list]:
    """A table's columns: format, bits a weight with its scales, signal to noise."""
    kept = stored(weight)
    return {
        "format": list(kept),
        "weight_bits": [bits / weight.numel() for _, bits in kept.values()],
        "snr_db": [snr_db(weight, values) for values, _ in kept.values()],
    }


def stored_values(weight: Tensor) -> tuple[dict[str, int], dict[str, float]]:
    """(bits stored, signal to noise) of the formats that claims rest on."""
    kept = stored(weight)
    names = {"mxfp4": "MXFP4", "nvfp4": "NVFP4", "nf4": "NF4-g64", "int4": "INT4-g128"}
    bits = {f"{short}_stored_bits": kept[name][1] for short, name in names.items()}
    names |= {"int8": "INT8 rows", "e4m3": "E4M3 rows", "bf16": "BF16", "fp16": "FP16"}
    noise = {f"{short}_snr_db": snr_db(weight, kept[name][0]) for short, name in names.items()}
    return {"weights_count": weight.numel(), "nvfp4_block_bits": nvfp4(weight).block_bits, **bits}, noise


def range_columns() -> dict[str, list]:
    """A table's columns: largest, smallest above zero, the step above one, and how many values there are in all."""
    rows = []
    for name, dtype in FLOATS.items():
        about = torch.finfo(dtype)
        if dtype == torch.float32:  # too many codes to read
            rows.append((name, about.max, 2.0**-149, about.eps, float(2**32 - 2**24 - 1)))
            continue
        values = every_value(dtype)
        above = values[values > 0]
        step = float(values[values > 1][0]) - 1
        rows.append((name, float(values[-1]), float(above[0]), step, float(len(values))))
    rows += [("E2M1 (FP4)", 6.0, 0.5, 0.5, 15.0), ("INT8", 127.0, 1.0, 1.0, 255.0), ("INT4", 7.0, 1.0, 1.0, 15.0)]
    names = ("format", "largest_difference", "smallest_difference", "step_difference", "values_count")
    return {column: list(content) for column, content in zip(names, zip(*rows, strict=True), strict=True)}


# --8<-- [start:casts]
def cast(value: float, dtype: torch.dtype) -> float:
    """What a number becomes in a format, read back in FP32."""
    return float(torch.tensor(value).to(dtype).float())


def range_values() -> dict[str, int]:
    """Ends of the formats, by reading every code and from `torch.finfo`; what lies beyond them and between steps."""
    values = {}
    for short, name in {"fp16": "FP16", "e5m2": "E5M2", "e4m3": "E4M3", "fnuz": "E4M3 FNUZ"}.items():
        values[f"{short}_largest_count"] = int(every_value(FLOATS[name])[-1])
        values[f"{short}_finfo_count"] = int(torch.finfo(FLOATS[name]).max)
    sixteen = torch.full((4096,), 16.0)
    return values | {
        "tried_count": 1,
        "fp16_infinite_count": int(sixteen.half().square().sum().isinf()),  # a norm's sum of squares
        "bf16_squares_count": int(sixteen.bfloat16().square().sum()),
        "fp32_squares_count": int(sixteen.square().sum()),
        "fp16_lost_count": int(cast(1e-8, torch.float16) == 0),
        "bf16_kept_count": int(cast(1e-8, torch.bfloat16) > 0),
        "bf16_added_count": int(torch.tensor(256.0).bfloat16() + torch.tensor(1.0).bfloat16()),
        "fp16_added_count": int(torch.tensor(256.0).half() + torch.tensor(1.0).half()),
        "fnuz_nan_count": int(cast(300.0, torch.float8_e4m3fnuz) != cast(300.0, torch.float8_e4m3fnuz)),
    }


def cast_columns(numbers: tuple[float, ...] = (1e-8, 0.003, 1.01, 300.0, 500.0, 70_000.0)) -> dict[str, list]:
    """A table's columns: numbers, and what each becomes in each format, in words of the format."""
    shown = {name: [f"{cast(n, dtype):.6g}" for n in numbers] for name, dtype in FLOATS.items() if name != "FP32"}
    # Beyond its end E4M3 becomes its largest value or NaN: PyTorch has done either.
    shown["E4M3"] = ["by version" if n > 464 else word for n, word in zip(numbers, shown["E4M3"], strict=True)]
    return {"number": [f"{n:g}" for n in numbers]} | shown


def e4m3_saturated() -> int:
    """How many of two numbers beyond E4M3's end this PyTorch casts to its largest value and not to NaN."""
    return sum(cast(number, torch.float8_e4m3fn) == 448 for number in (500.0, 70_000.0))


# --8<-- [end:casts]


# --8<-- [start:rates]
ACCELERATORS = KINDS[:-1]  # whose units are named by the device
INSTRUCTIONS = {
    "FP32": ("avx512", "avx2", "neon", *ACCELERATORS),
    "BF16": ("amx-bf16", "avx512-bf16", "neon-bf16", "cuda-bf16"),
    "FP16": ("amx-fp16", "avx512-fp16", "neon", *ACCELERATORS),
    "INT8": ("amx-int8", "avx512-vnni", "vnni", "neon-i8mm", *ACCELERATORS),
    "INT8, general operator": (),
    "E4M3": ("cuda-fp8",),
}


def products(rows: int, device: torch.device) -> dict[str, Callable[[], Tensor]]:
    """The same product, (rows, INNER) by (INNER, INNER), in each format that this device multiplies at all."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-4, 5, (n, INNER), generator=generator).float().to(device) for n in (rows, INNER))
    small = {name: (a.to(FLOATS[name]), b.to(FLOATS[name])) for name in ("FP32", "BF16", "FP16", "E4M3")}
    calls: dict[str, Callable[[], Tensor]] = {name: partial(torch.matmul, *pair) for name, pair in small.items()}
    if operators.has_fp8(device):
        one = torch.ones((), device=device)
        eight = small["E4M3"][0], operators.column_major(small["E4M3"][1])
        calls["E4M3"] = lambda: operators.fp8_product(*eight, one, one)
    codes = a.to(torch.int8), b.to(torch.int8)
    calls["INT8"] = lambda: operators.int8_product(*codes)
    calls["INT8, general operator"] = lambda: codes[0] @ codes[1]
    return {name: call for name, call in calls.items() if _works(call)}


# --8<-- [end:rates]


def _works(call: Callable[[], Tensor]) -> bool:
    try:
        call()
    except (RuntimeError, NotImplementedError):
        return False
    return True


@dataclass(frozen=True)
class Rates:
    """Operations a second by format, and FP32's seconds over the format's: the median over the rounds."""

    flops_per_second: Mapping[str, float]
    speed: Mapping[str, float]


def rates(calls: Mapping[str, Callable[[], Tensor]], rows: int, rounds: int, device: torch.device) -> Rates:
    """Every format in turn, in each round."""
    clock.fix_allocator()
    with torch.inference_mode():
        taken = clock.interleave(calls, device=device, rounds=rounds, blocks=max(1, rounds // 3))
    flops = 2.0 * rows * INNER**2
    for name in calls:
        dtype = torch.int8 if name.startswith("INT8") else FLOATS[name]
        clock.refuse_beyond_peak(taken.seconds(name), flops=flops, device=device, dtype=dtype)
    return Rates(
        {name: flops / taken.seconds(name) for name in calls}, {name: taken.ratio("FP32", name) for name in calls}
    )


def rate_columns(found: Rates, device: torch.device) -> dict[str, list]:
    """A table's columns: format, the instructions this device has for it, rate, share of the fastest."""
    best, have = max(found.flops_per_second.values()), capabilities(device)
    return {
        "format": list(found.speed),
        "instructions": [next((i for i in INSTRUCTIONS[name] if i in have), "none") for name in found.speed],
        "product_flops_per_second": list(found.flops_per_second.values()),
        "best_share": [rate / best for rate in found.flops_per_second.values()],
        "fp32_ratio": list(found.speed.values()),
    }


def rate_values(found: Rates) -> tuple[dict[str, float], dict[str, float]]:
    """(ratios that claims rest on, a ratio that is only shown) of the formats that ran."""
    speed = found.speed
    gated = {"bf16_speed_ratio": speed["BF16"]}
    if "INT8" in speed:
        gated["int8_speed_ratio"] = speed["INT8"]
    if "E4M3" in speed:
        gated["e4m3_slower_ratio"] = 1 / speed["E4M3"]
    if "INT8, general operator" in speed:
        gated["int8_general_slower_ratio"] = speed["INT8"] / speed["INT8, general operator"]
    return gated, {"fp16_speed_ratio": speed["FP16"]}


def nf4_values(levels: list[float]) -> dict[str, float]:
    """How far derived levels lie from the published ones at most."""
    apart = (abs(a - b) for a, b in zip(levels, NF4_PUBLISHED, strict=True))
    return {"nf4_apart_difference": max(apart)}


def cast_values() -> dict[str, int]:
    """`range_values`, and what differs between versions of PyTorch."""
    return {**range_values(), "e4m3_saturated_count": e4m3_saturated()}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page. `small` times fewer rounds of a smaller product; `dtype` is not used."""
    target, rows = pick(device), 64 if small else 256
    bits, noise = stored_values(minilm.load_state()[MATRIX])
    gated, shown = rate_values(rates(products(rows, target), rows, 5 if small else 21, target))
    return {
        **range_values(),
        "e4m3_saturated_count": e4m3_saturated(),
        **nf4_values(normal_float()),
        **bits,
        **noise,
        **gated,
        **shown,
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same where no format is special: every product is FP32's, every rounding is INT4's, levels are even."""
    target, rows = pick(device), 64 if small else 256
    weight = minilm.load_state()[MATRIX]
    bits, noise = stored_values(weight)
    calls = products(rows, target)
    gated, shown = rate_values(rates(dict.fromkeys(calls, calls["FP32"]), rows, 5 if small else 21, target))
    noise = dict.fromkeys(noise, noise["int4_snr_db"])
    even = [-1 + step / 7.5 for step in range(16)]
    return {
        **range_values(),
        "e4m3_saturated_count": e4m3_saturated(),
        **nf4_values(even),
        **bits,
        **noise,
        **gated,
        **shown,
    }


if __name__ == "__main__":
    report("quantization/formats_and_fast_paths", measure())
