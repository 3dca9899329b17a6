"""Why is decode slow?

Claim: prefill and decode read the same weights; prefill uses each for every token of the prompt, decode for one token
a sequence. So decode's time is that of a read, and the products that the device could do meanwhile are not there.

Run: python -m snippets.throughput.prefill_and_decode
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from snippets.instruments import clock
from snippets.instruments.datasheets import Peak, gpu_peak
from snippets.instruments.device import capabilities, pick
from snippets.instruments.memory import storage_bytes
from snippets.instruments.roofline import LAUNCH_SECONDS, binding, predict_seconds, ridge_flops_per_byte
from snippets.models import smollm2, texts
from snippets.models.decoder import Block, Decoder, KVCache, random_block, rotation
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry, parameters

# isort: split
from measured.values import report

LAYER = replace(LLAMA_3_8B, name="one layer of Llama-3-8B", layers=1)
CARDS = ("A100 SXM 80GB", "H100 SXM", "H200 SXM", "B200", "MI300X", "L4", "RTX 4090")
GPU = "H100 SXM"
Call = Callable[[], object]


@dataclass(frozen=True)
class Scale:
    """How much is measured: a layer's shape, tokens in a step, a prompt's length, rounds of timing."""

    layer: Geometry = LAYER
    rows: Sequence[int] = (1, 4, 16, 64, 512)
    prompt_tokens: int = 512
    rounds: int = 9


SMALL = Scale(replace(LAYER, hidden=2048, heads=16, kv_heads=4, ffn=7168), (1, 32), 16, 3)


# --8<-- [start:work]
class Work(NamedTuple):
    """What one pass computes and reads. Bytes are those of the matrices and of the KV cache, each read once."""

    layers_flops: int
    head_flops: int
    attention_flops: int
    weight_bytes: int
    cache_bytes: int

    @property
    def flops(self) -> int:
        return self.layers_flops + self.head_flops + self.attention_flops

    @property
    def flops_per_byte(self) -> float:
        return self.flops / (self.weight_bytes + self.cache_bytes)


def work(geometry: Geometry, new: int, context: int = 0, batch: int = 1, element_bytes: int = 2) -> Work:
    """`batch` sequences with `new` tokens each, after `context` cached ones; logits for the last token alone.

    Decode is one new token, prefill a prompt of them. Attention counts every pair, as PyTorch's counter does; a causal
    kernel skips nearly half of a prompt's. Norms, rotations and activations are left out.
    """
    linear, head = parameters(geometry).linear, geometry.vocabulary * geometry.hidden
    tokens, width = context + new, geometry.layers * geometry.head_dim
    return Work(
        layers_flops=2 * batch * new * linear,
        head_flops=2 * batch * head,
        attention_flops=4 * batch * new * tokens * geometry.heads * width,  # scores, then the weighted sum
        weight_bytes=(linear + head) * element_bytes,
        cache_bytes=2 * batch * tokens * geometry.kv_heads * width * element_bytes,  # keys and values
    )


# --8<-- [end:work]


def counted(geometry: Geometry, new: int, context: int = 0, batch: int = 1) -> tuple[int, int, int]:
    """(FLOP by PyTorch's counter, bytes of the layers' matrices, of these and the head), in BF16 on the meta device."""
    with torch.device("meta"):
        decoder = Decoder(geometry).to(torch.bfloat16).requires_grad_(False)
        ids = torch.zeros(batch, new, dtype=torch.long)
    cache = KVCache(geometry, batch, context + new, torch.bfloat16, "meta")
    cache.length = context
    with FlopCounterMode(display=False) as counter:
        decoder(ids, cache, last_only=True)
    layers = sum(weight.nbytes for weight in decoder.layers.parameters() if weight.ndim == 2)
    return counter.get_total_flops(), layers, layers + decoder.lm_head.weight.nbytes


def work_values(prompt: int = 512, batch: int = 64) -> dict[str, int]:
    """Llama-3-8B: a prompt, and a token after it, by formula and as counted; decode attention alone and in a batch."""
    g = LLAMA_3_8B
    prefill, decode, many = work(g, prompt), work(g, 1, prompt - 1), work(g, 1, prompt - 1, batch)
    (prefill_flops, layers_bytes, weights_bytes), decode_flops = counted(g, prompt), counted(g, 1, prompt - 1)[0]
    return {
        "prompt_tokens": prompt,
        "batch_count": batch,
        "layers_weights_count": parameters(g).linear,
        "parameters_count": parameters(g).total,
        "rule_flops": 2 * parameters(g).total * prompt,
        "layers_bytes": layers_bytes,
        "weights_bytes": decode.weight_bytes,
        "stored_weights_bytes": weights_bytes,
        "prefill_layers_flops": prefill.layers_flops,
        "decode_layers_flops": decode.layers_flops,
        "prefill_flops": prefill.flops,
        "decode_flops": decode.flops,
        "counted_prefill_flops": prefill_flops,
        "counted_decode_flops": decode_flops,
        "group_count": g.heads // g.kv_heads,
        "attention_flops": decode.attention_flops,
        "cache_bytes": decode.cache_bytes,
        "batch_attention_flops": many.attention_flops,
        "batch_cache_bytes": many.cache_bytes,
        "balance_tokens": decode.weight_bytes // (decode.cache_bytes // prompt),  # a cache that weighs as much
    }


def peak(name: str) -> Peak:
    """A card's declared dense BF16 peak."""
    found = gpu_peak(name, "bfloat16")
    assert found is not None
    return found


def card_columns() -> dict[str, list]:
    """Declared dense BF16 and bandwidth of public cards, their ridge, and the least time to read Llama-3-8B once."""
    peaks = [peak(name) for name in CARDS]
    return {
        "card": list(CARDS),
        "dense_flops_per_second": [one.flops_per_second for one in peaks],
        "memory_bytes_per_second": [one.bytes_per_second for one in peaks],
        "ridge_flops_per_byte": [ridge_flops_per_byte(one) for one in peaks],
        "token_seconds": [work(LLAMA_3_8B, 1).weight_bytes / one.bytes_per_second for one in peaks],
    }


# --8<-- [start:never]
def ridge_context_tokens(geometry: Geometry, card: Peak) -> int:
    """The longest context at which some batch still brings decode to the card's ridge.

    In an endless batch the weights' read vanishes: FLOP for each byte tend to those of one row over its own cache.
    """
    row = work(geometry, 1)
    cache, attention = row.cache_bytes, row.attention_flops  # of each token of context
    return floor((row.layers_flops + row.head_flops) / (ridge_flops_per_byte(card) * cache - attention))


# --8<-- [end:never]


def scanned_context_tokens(geometry: Geometry, card: Peak, batch: int = 10**9) -> int:
    """The same by trying contexts one by one at a batch as good as endless."""
    context = 1
    while work(geometry, 1, context, batch).flops_per_byte >= ridge_flops_per_byte(card):
        context += 1
    return context


def batch_columns(contexts: Sequence[int] = (128, 1024, 8192)) -> dict[str, list]:
    """FLOP for each byte of a decode step of Llama-3-8B by batch and context, beside the ridge of an H100."""
    batches = [2**power for power in range(12)]
    lines = {f"{c:,} tokens": [work(LLAMA_3_8B, 1, c - 1, b).flops_per_byte for b in batches] for c in contexts}
    lines[f"ridge, {GPU}"] = [ridge_flops_per_byte(peak(GPU))] * len(batches)
    return {
        "batch_count": batches * len(lines),
        "intensity_flops_per_byte": [value for line in lines.values() for value in line],
        "line": [name for name in lines for _ in batches],
    }


@dataclass(frozen=True)
class Timed:
    """Seconds of a layer by rows, how many times less a row of each costs than a lone one, and the device's roof."""

    seconds: dict[int, float]
    row_ratio: dict[int, float]
    read_bytes_per_second: float
    product_flops_per_second: float


def layer_call(block: Block, geometry: Geometry, rows: int) -> Call:
    """A prompt of `rows` tokens through one layer; a single one is a decode step that has no context yet."""
    hidden = torch.ones(1, rows, geometry.hidden, dtype=torch.bfloat16, device=block.mlp.up_proj.weight.device)
    cos, sin = rotation(geometry, 0, rows, hidden)
    return torch.inference_mode()(lambda: block(hidden, cos, sin))


def time_layer(block: Block, scale: Scale, arrange: Callable[[dict[int, Call]], dict[int, Call]] = dict) -> Timed:
    """All rows in turn, and beside them a plain read and one plain product of the most rows: this device's roof."""
    clock.fix_allocator()
    up, most = block.mlp.up_proj.weight, max(scale.rows)
    buffer, wide = torch.ones(2**26, device=up.device), torch.ones(most, up.shape[1], dtype=up.dtype, device=up.device)
    steps = arrange({rows: layer_call(block, scale.layer, rows) for rows in scale.rows})
    calls: dict[str, Call] = {str(rows): step for rows, step in steps.items()}
    calls |= {"read": buffer.sum, "product": lambda: F.linear(wide, up)}
    # Short blocks: a neighbour spoils a whole one.
    taken = clock.interleave(calls, device=up.device, rounds=scale.rounds, blocks=max(1, scale.rounds // 3))
    geometry = replace(scale.layer, vocabulary=0)  # a layer has no head
    for rows in scale.rows:
        one = work(geometry, rows)
        clock.refuse_beyond_peak(
            taken.seconds(str(rows)), flops=one.layers_flops, bytes=one.weight_bytes, device=up.device, dtype=up.dtype
        )
    return Timed(
        seconds={rows: taken.seconds(str(rows)) for rows in scale.rows},
        row_ratio={rows: rows * taken.ratio("1", str(rows)) for rows in scale.rows},
        read_bytes_per_second=buffer.nbytes / taken.seconds("read"),
        product_flops_per_second=2 * most * up.numel() / taken.seconds("product"),
    )


def layer_values(found: Timed, scale: Scale) -> tuple[dict[str, float], dict[str, float]]:
    """(what is gated: how much less a row costs in the largest step; what this device showed)."""
    most, geometry = max(scale.rows), replace(scale.layer, vocabulary=0)
    alone, prompt = work(geometry, 1), work(geometry, most)
    shown = {
        "read_bytes_per_second": found.read_bytes_per_second,
        "product_flops_per_second": found.product_flops_per_second,
        "device_ridge_flops_per_byte": found.product_flops_per_second / found.read_bytes_per_second,
        "alone_read_share": alone.weight_bytes / found.seconds[1] / found.read_bytes_per_second,
        "alone_product_share": alone.layers_flops / found.seconds[1] / found.product_flops_per_second,
        "most_product_share": prompt.layers_flops / found.seconds[most] / found.product_flops_per_second,
        "short_step_ratio": found.seconds[scale.rows[1]] / found.seconds[1],
        "short_tokens": scale.rows[1],
        "most_tokens": most,
    }
    return {"row_speed_ratio": found.row_ratio[most]}, shown


def layer_columns(found: Timed, scale: Scale) -> dict[str, list]:
    """A table's columns: a layer's step by rows, and each row's part of it."""
    works = {rows: work(replace(scale.layer, vocabulary=0), rows) for rows in scale.rows}
    return {
        "rows_tokens": list(works),
        "intensity_flops_per_byte": [one.layers_flops / one.weight_bytes for one in works.values()],
        "step_seconds": [found.seconds[rows] for rows in works],
        "row_seconds": [found.seconds[rows] / rows for rows in works],
        "read_share": [one.weight_bytes / found.seconds[n] / found.read_bytes_per_second for n, one in works.items()],
        "product_share": [
            one.layers_flops / found.seconds[n] / found.product_flops_per_second for n, one in works.items()
        ],
    }


def roof_columns(found: Timed, scale: Scale) -> dict[str, list]:
    """The roofline of this device, and the layer's measured rates below it."""
    ridge = found.product_flops_per_second / found.read_bytes_per_second
    corners = sorted({1.0, ridge, float(max(scale.rows))})
    works = {rows: work(replace(scale.layer, vocabulary=0), rows) for rows in scale.rows}
    rates = [one.layers_flops / found.seconds[rows] for rows, one in works.items()]
    roof = [min(found.product_flops_per_second, at * found.read_bytes_per_second) for at in corners]
    return {
        "intensity_flops_per_byte": [*corners, *(one.layers_flops / one.weight_bytes for one in works.values())],
        "rate_flops_per_second": [*roof, *rates],
        "line": ["roof of this device"] * len(corners) + ["layer, measured"] * len(rates),
    }


def fast_dtype(device: torch.device) -> torch.dtype:
    """BF16 where the device multiplies it with instructions of its own, else FP32."""
    return torch.bfloat16 if "fast-bf16" in capabilities(device) else torch.float32


@torch.inference_mode()
def model_calls(decoder: Decoder, tokens: int) -> dict[str, Call]:
    """Prefill of a real text, and a decode step right after it."""
    weight = decoder.embed_tokens.weight
    ids = smollm2.encode(texts.address(), weight.device)[:, :tokens]
    caches = [KVCache(decoder.geometry, 1, tokens + 1, weight.dtype, weight.device) for _ in range(2)]

    @torch.inference_mode()
    def run(cache: KVCache, new: torch.Tensor, start: int) -> torch.Tensor:
        cache.length = start  # every call repeats this pass, at this context
        return decoder(new, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)

    fresh = run(caches[1], ids, 0)
    return {"prefill": lambda: run(caches[0], ids, 0), "decode": lambda: run(caches[1], fresh, tokens)}


def time_model(calls: Mapping[str, Call], tokens: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Tokens/s of both phases, in turn."""
    clock.fix_allocator()
    taken = clock.interleave(calls, device=device, rounds=rounds, blocks=max(1, rounds // 3))
    return {
        "model_speed_ratio": tokens * taken.ratio("decode", "prefill"),
        "prefill_seconds": taken.seconds("prefill"),
        "decode_seconds": taken.seconds("decode"),
    }


class KernelCounter(TorchDispatchMode):
    """Counts what would be launched: operations handed to PyTorch that are no mere views."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        aliases = [found.alias_info for found in func._schema.returns]
        view = any(alias is not None and not alias.is_write for alias in aliases) or "view" in func.__name__
        self.count += not view
        return func(*args, **(kwargs or {}))


def kernels(geometry: Geometry) -> int:
    """Operations of a decode step, counted on a model with these layers and next to no width, on the CPU."""
    thin = replace(geometry, hidden=2 * geometry.heads, head_dim=2, ffn=8, vocabulary=16)
    decoder, cache = Decoder(thin).requires_grad_(False), KVCache(thin, 1, 2, torch.float32)
    cache.length = 1
    with torch.inference_mode(), KernelCounter() as counter:
        decoder(torch.zeros(1, 1, dtype=torch.long), cache, last_only=True)
    return counter.count


# --8<-- [start:predict]
def predicted_columns(prompt: int = 512) -> dict[str, list]:
    """Both phases on an H100 from its declared peaks, queued operation by operation or as one graph."""
    rows = []
    for geometry in (LLAMA_3_8B, SMOLLM2_135M):
        for phase, one, tokens in (
            ("decode", work(geometry, 1, prompt - 1), 1),
            ("prefill", work(geometry, prompt), prompt),
        ):
            for queued, launches in (("one by one", kernels(geometry)), ("as a graph", 1)):
                asked = {"flops": one.flops, "bytes": one.weight_bytes + one.cache_bytes, "launches": launches}
                seconds = predict_seconds(peak=peak(GPU), **asked)
                rows.append((geometry.name, phase, queued, binding(peak=peak(GPU), **asked), seconds, tokens / seconds))
    names = ("model", "phase", "queued", "bound", "step_seconds", "speed_tokens_per_second")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


# --8<-- [end:predict]


def card_values(prompt: int = 512) -> dict[str, float]:
    """An H100's ridge, contexts at which no batch reaches it, and how many launches a read of the weights is worth."""
    card, small = peak(GPU), work(SMOLLM2_135M, 1)
    return {
        "h100_flops_per_second": card.flops_per_second,
        "h100_bytes_per_second": card.bytes_per_second,
        "ridge_context_tokens": ridge_context_tokens(LLAMA_3_8B, card),
        "scanned_context_tokens": scanned_context_tokens(LLAMA_3_8B, card),
        "smollm2_weights_bytes": small.weight_bytes,
        "smollm2_prefill_flops": work(SMOLLM2_135M, prompt).flops,
    }


def call_values() -> dict[str, float]:
    """Operations of a decode step as this PyTorch dispatches them, and what each is assumed to cost a GPU's queue."""
    return {
        "llama_calls_count": kernels(LLAMA_3_8B),
        "smollm2_calls_count": kernels(SMOLLM2_135M),
        "launch_seconds": LAUNCH_SECONDS,
    }


def one_by_one(steps: dict[int, Call]) -> dict[int, Call]:
    """No token shares a read: as many lone rows in a loop."""

    def loop(rows: int) -> Call:
        return lambda: [steps[1]() for _ in range(rows)]

    return {rows: loop(rows) for rows in steps}


def _measured(scale: Scale, device: torch.device, shared: bool) -> dict[str, float]:
    block = random_block(scale.layer, torch.bfloat16, device)
    gated, shown = layer_values(time_layer(block, scale, dict if shared else one_by_one), scale)
    stored = storage_bytes([weight for weight in block.parameters() if weight.ndim == 2])
    del block
    decoder, tokens = smollm2.decoder(fast_dtype(device), device), scale.prompt_tokens
    calls = model_calls(decoder, tokens)
    if not shared:
        one = calls["decode"]
        calls["prefill"] = lambda: [one() for _ in range(tokens)]
    return {
        **work_values(),
        **card_values(),
        **call_values(),
        "layer_storage_bytes": stored,
        **gated,
        **shown,
        **time_model(calls, tokens, scale.rounds, device),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` times a narrower layer and a shorter prompt. `dtype` is the page's own."""
    return _measured(SMALL if small else Scale(), pick(device), shared=True)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same where no token shares a read: the rows of a layer in a loop, a prompt decoded token by token."""
    return _measured(SMALL if small else Scale(), pick(device), shared=False)


if __name__ == "__main__":
    report("throughput/prefill_and_decode", measure())
