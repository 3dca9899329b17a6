"""Can the KV cache be quantized?

Claim: INT8 with a scale a head and token costs next to nothing in quality and about half the bytes. INT4 depends on
what shares a scale: keys have channels that are always large, so keys want a scale a channel. In plain PyTorch a
quantized cache is slower, because it is dequantized into a copy before it is attended to.

Run: python -m snippets.kv_cache.quantized_cache
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.device import capabilities, pick
from snippets.instruments.memory import storage_bytes
from snippets.models import smollm2
from snippets.models.decoder import Decoder, KVCache, attend, rotate, rotation
from snippets.models.language_loss import paired_difference, unseen_windows, window_nats
from snippets.models.quantized_cache import (
    CacheScheme,
    QuantizedCache,
    attend_dequantized,
    attend_fused,
    generate_into,
    token_bytes,
)
from snippets.models.shapes import LLAMA_3_8B, Geometry, parameters

SCHEMES = {
    "int8_token": CacheScheme(8),
    "int4_token": CacheScheme(4),
    "int4_channel": CacheScheme(4, "channel"),
    "int4_channel_unrotated": CacheScheme(4, "channel", before_rotation=True),
    "int4_channel_middle": CacheScheme(4, "channel", zero_point=True),
}
WORDS = {
    "int8_token": "INT8, a scale a head and token",
    "int4_token": "INT4, a scale a head and token",
    "int4_channel": "INT4, keys with a scale a channel and block",
    "int4_channel_unrotated": "… keys without their rotation",
    "int4_channel_middle": "… and with a zero point",
}


def byte_values(tokens: int = 64, geometry: Geometry = LLAMA_3_8B, element_bytes: int = 2) -> dict[str, int]:
    """Bytes a token by formula, and the storage of real caches with room for `tokens` of one sequence."""
    found = {
        "layers_count": geometry.layers,
        "kv_heads_count": geometry.kv_heads,
        "head_dim_count": geometry.head_dim,
        "element_bytes": element_bytes,
        "block_tokens": CacheScheme().block,
        "held_tokens": tokens,
        "plain_token_bytes": 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * element_bytes,
        "weights_bytes": parameters(geometry).total * element_bytes,
    }
    for name in ("int8_token", "int4_token", "int4_channel", "int4_channel_middle"):
        scheme = SCHEMES[name]
        cache = QuantizedCache(geometry, 1, tokens, torch.bfloat16, scheme=scheme)
        found[f"{name}_bytes"] = round(token_bytes(geometry, scheme))
        found[f"{name}_cache_bytes"] = storage_bytes(cache) - cache.recent.nbytes
    found["plain_cache_bytes"] = storage_bytes(KVCache(geometry, 1, tokens, torch.bfloat16))
    found["recent_bytes"] = cache.recent.nbytes
    return found


def step_columns(counts: tuple[int, ...] = (1024, 8192, 65536, 524288)) -> dict[str, list[float]]:
    """What a decode step of Llama-3-8B reads, by tokens cached in all sequences: weights once, and every cache."""
    found = byte_values(tokens=64)
    plain = [found["weights_bytes"] + n * found["plain_token_bytes"] for n in counts]
    small = [found["weights_bytes"] + n * found["int8_token_bytes"] for n in counts]
    return {
        "cached_tokens": list(counts),
        "plain_step_bytes": list(plain),
        "int8_step_bytes": list(small),
        "fewer_ratio": [a / b for a, b in zip(plain, small, strict=True)],
    }


# --8<-- [start:loss]
def reader(decoder: Decoder, scheme: CacheScheme | None, choices: list[Tensor]) -> Callable[[Tensor], Tensor]:
    """Logits of ids (batch, tokens) read through a cache: every token attends to what the codes stand for.

    Appends the likeliest next token at each place to `choices`.
    """

    def read(ids: Tensor) -> Tensor:
        weight, (batch, tokens) = decoder.embed_tokens.weight, ids.shape
        room = (decoder.geometry, batch, tokens, weight.dtype, weight.device)
        logits = decoder(ids, KVCache(*room) if scheme is None else QuantizedCache(*room, scheme))
        choices.append(logits.argmax(-1))
        return logits

    return read


def loss_values(
    decoder: Decoder, windows: Tensor, schemes: Mapping[str, CacheScheme] | None = None
) -> dict[str, float]:
    """What each scheme adds to the loss, its paired standard error, and how often the first choice stays the same."""
    choices: dict[str, list[Tensor]] = {name: [] for name in ("plain", *SCHEMES)}
    plain = window_nats(reader(decoder, None, choices["plain"]), windows)
    losses = {
        name: window_nats(reader(decoder, scheme, choices[name]), windows)
        for name, scheme in (schemes or SCHEMES).items()
    }
    found = {"plain_loss_nats": float(plain.mean())}
    for name, loss in losses.items():
        found[f"{name}_added_nats"], found[f"{name}_error_nats"] = paired_difference(loss, plain)
        same = torch.cat(choices[name], 1) == torch.cat(choices["plain"], 1)
        found[f"{name}_agree_share"] = float(same.double().mean())
    for name, (worse, better) in PAIRS.items() if schemes is None else ():
        found[f"{name}_nats"], found[f"{name}_error_nats"] = paired_difference(losses[worse], losses[better])
    return found


PAIRS = {
    "channel_gain": ("int4_token", "int4_channel"),
    "middle_gain": ("int4_channel", "int4_channel_middle"),
    "rotation_gain": ("int4_channel", "int4_channel_unrotated"),
}


# --8<-- [end:loss]


@torch.inference_mode()
def attention_inputs(decoder: Decoder, ids: Tensor) -> tuple[list[Tensor], KVCache]:
    """What every layer attends with on ids (batch, tokens): rotated queries, and the cache of keys and values."""
    weight, queries = decoder.embed_tokens.weight, list[Tensor]()
    batch, tokens = ids.shape
    cache = KVCache(decoder.geometry, batch, tokens, weight.dtype, weight.device)
    hooks = [
        block.get_submodule("self_attn.q_proj").register_forward_hook(lambda _m, _i, out: queries.append(out))
        for block in decoder.layers
    ]
    decoder(ids, cache)
    for hook in hooks:
        hook.remove()
    cos, sin = rotation(decoder.geometry, 0, tokens, weight)
    heads = (-1, decoder.geometry.head_dim)
    return [rotate(q.unflatten(-1, heads).transpose(1, 2), cos, sin) for q in queries], cache


def layer_columns(decoder: Decoder, ids: Tensor, names: tuple[str, ...]) -> dict[str, list]:
    """Relative error of each layer's attention output when its keys and values alone are rounded, by scheme."""
    (queries, plain), (batch, tokens) = attention_inputs(decoder, ids), ids.shape
    columns: dict[str, list] = {"layer_count": [], "cache": [], "output_difference": []}
    for name in names:
        held = QuantizedCache(decoder.geometry, batch, tokens, plain.keys.dtype, plain.keys.device, SCHEMES[name])
        for layer, query in enumerate(queries):
            keys, values = plain.keys[layer], plain.values[layer]
            exact, found = attend(query, keys, values), attend(query, *held.append(layer, keys, values))
            columns["layer_count"].append(layer)
            columns["cache"].append(WORDS[name])
            columns["output_difference"].append(float((found - exact).norm() / exact.norm()))
    return columns


def layer_values(columns: Mapping[str, list], names: tuple[str, ...]) -> dict[str, float]:
    """Median over the layers, by scheme."""
    rows = list(zip(columns["cache"], columns["output_difference"], strict=True))
    return {
        f"{name}_output_difference": float(torch.tensor([x for cache, x in rows if cache == WORDS[name]]).median())
        for name in names
    }


def outlier_values(decoder: Decoder, ids: Tensor) -> dict[str, float]:
    """Largest channel over the middle one, by their largest magnitudes: median over layers and heads."""
    _, cache = attention_inputs(decoder, ids)

    def ratio(x: Tensor) -> float:  # (layers, batch, kv_heads, tokens, head_dim)
        reach = x.abs().amax(3)
        return float((reach.amax(-1) / reach.median(-1).values).median())

    cos, sin = rotation(decoder.geometry, 0, ids.shape[1], cache.keys)
    return {
        "key_outlier_ratio": ratio(cache.keys),
        "unrotated_key_outlier_ratio": ratio(rotate(cache.keys, cos, -sin)),
        "value_outlier_ratio": ratio(cache.values),
    }


def greedy_columns(decoder: Decoder, prompts: Tensor, new_tokens: int, names: tuple[str, ...]) -> dict[str, list]:
    """Tokens written before the first that differs from the plain cache's, by scheme: fewest and mean over prompts."""
    room = (decoder.geometry, len(prompts), prompts.shape[1] + new_tokens, torch.float32, prompts.device)
    plain = generate_into(decoder, prompts, new_tokens, KVCache(*room))
    columns: dict[str, list] = {"cache": [], "fewest_tokens": [], "mean_tokens": []}
    for name in names:
        found = generate_into(decoder, prompts, new_tokens, QuantizedCache(*room, SCHEMES[name]))
        same = (found == plain).long().cumprod(1).sum(1)
        columns["cache"].append(WORDS[name])
        columns["fewest_tokens"].append(int(same.min()))
        columns["mean_tokens"].append(float(same.double().mean()))
    return columns


def speed_values(tokens: int = 4096, rounds: int = 21, device: torch.device | str | None = None) -> dict[str, float]:
    """Decode attention of one Llama-3-8B-shaped layer in BF16: a plain cache against an INT8 one, random numbers."""
    device, layer = pick(device), replace(LLAMA_3_8B, layers=1)
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, count: int) -> Tensor:
        return torch.randn(1, heads, count, layer.head_dim, generator=generator).to(device, torch.bfloat16)

    queries, keys, values = draw(layer.heads, 1), draw(layer.kv_heads, tokens), draw(layer.kv_heads, tokens)
    held = {bits: QuantizedCache(layer, 1, tokens, torch.bfloat16, device, CacheScheme(bits)) for bits in (8, 4)}
    for cache in held.values():
        cache.append(0, keys, values)
        cache.length = tokens
    calls = {
        "plain": lambda: attend(queries, keys, values),
        "int8": lambda: attend_dequantized(queries, held[8]),
        "int4": lambda: attend_dequantized(queries, held[4]),
    }
    if "triton" in capabilities(device):
        calls["fused"] = lambda: attend_fused(queries, held[8])
    clock.fix_allocator()
    timed = clock.interleave(calls, device=device, rounds=rounds)
    found = {
        "timed_tokens": tokens,
        "slower_ratio": timed.ratio("int8", "plain"),
        "int4_slower_ratio": timed.ratio("int4", "plain"),
    }
    if "fused" in calls:
        found["fused_speed_ratio"] = timed.ratio("plain", "fused")
    return found


SHOWN = ("int8_token", "int4_token", "int4_channel", "int4_channel_middle")


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` reads less text and attends to fewer tokens."""
    target = pick(device)
    decoder = smollm2.decoder(torch.float32, target)
    windows = unseen_windows(count=2 if small else 4, length=128 if small else 384).to(target)
    ids = windows[:1]
    return {
        **byte_values(),
        **loss_values(decoder, windows),
        **layer_values(layer_columns(decoder, ids, SHOWN), SHOWN),
        **outlier_values(decoder, ids),
        **speed_values(tokens=1024 if small else 4096, rounds=6 if small else 21, device=target),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """INT4 with a scale a head and token, whatever the scheme is called; and the plain cache timed as every cache."""
    target = pick(device)
    decoder = smollm2.decoder(torch.float32, target)
    windows = unseen_windows(count=2, length=128).to(target)
    crude = loss_values(decoder, windows, {"int8_token": SCHEMES["int4_token"]})
    columns = layer_columns(decoder, windows[:1], ("int4_token",))
    crude["int8_token_output_difference"] = layer_values(columns, ("int4_token",))["int4_token_output_difference"]
    ones = ("key_outlier_ratio", "value_outlier_ratio", "slower_ratio", "int4_slower_ratio")
    return crude | dict.fromkeys(ones, 1.0) | {f"{name}_nats": 0.0 for name in PAIRS}


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/quantized_cache", measure())
