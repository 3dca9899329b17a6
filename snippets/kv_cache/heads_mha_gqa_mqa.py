"""MHA, GQA, MQA: what do fewer key/value heads change?

Claim: the cache shrinks by KV heads over query heads, and decode attention reads that much less, if the query heads of
a group share one read. Attending in groups is exact; merging the heads of a trained model into fewer costs loss.

Run: python -m snippets.kv_cache.heads_mha_gqa_mqa
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from snippets.instruments import clock
from snippets.instruments.device import pick
from snippets.instruments.memory import allocated_by, storage_bytes
from snippets.models import smollm2, trained
from snippets.models.decoder import Decoder, KVCache, attend, from_state
from snippets.models.language_loss import paired_difference, unseen_windows, window_nats
from snippets.models.shapes import LLAMA_3_8B, Geometry, parameters

KV_HEADS = {"mha": LLAMA_3_8B.heads, "gqa": LLAMA_3_8B.kv_heads, "mqa": 1}


# --8<-- [start:bytes]
def token_bytes(kv_heads: int, element_bytes: int, geometry: Geometry = LLAMA_3_8B) -> int:
    """Bytes a token of the cache in all layers: a key and a value for each KV head."""
    return 2 * geometry.layers * kv_heads * geometry.head_dim * element_bytes


def attention_flops(geometry: Geometry = LLAMA_3_8B) -> int:
    """FLOP of decode attention for each cached token: every *query* head scores it and adds its value."""
    return 2 * 2 * geometry.layers * geometry.heads * geometry.head_dim


# --8<-- [end:bytes]


def byte_values(tokens: int, element_bytes: int = 2) -> dict[str, int]:
    """Bytes, operations and their quotient for the three, and the storage of real BF16 caches for `tokens`."""
    values = {
        "heads_count": LLAMA_3_8B.heads,
        "gqa_kv_heads_count": LLAMA_3_8B.kv_heads,
        "layers_count": LLAMA_3_8B.layers,
        "element_bytes": element_bytes,
        "held_tokens": tokens,
        "attention_flops": attention_flops(),
    }
    for name, kv_heads in KV_HEADS.items():
        cache = KVCache(replace(LLAMA_3_8B, kv_heads=kv_heads), 1, tokens, torch.bfloat16)
        values[f"{name}_token_bytes"] = token_bytes(kv_heads, element_bytes)
        values[f"{name}_cache_bytes"] = storage_bytes([cache.keys, cache.values])
        values[f"{name}_flops_per_byte"] = attention_flops() // token_bytes(kv_heads, element_bytes)
    return values


def rank_values(ranks: int = 8, element_bytes: int = 2) -> dict[str, int]:
    """Bytes a token on each rank of a tensor-parallel group: a rank needs at least one head, copied if need be."""
    shares = {name: max(1, kv_heads // ranks) for name, kv_heads in KV_HEADS.items()}
    return {"ranks_count": ranks} | {
        f"{name}_rank_token_bytes": token_bytes(share, element_bytes) for name, share in shares.items()
    }


# --8<-- [start:ways]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (batch, heads, 1, dim), twice (batch, kv_heads, tokens, dim)


def repeated(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Copy each KV head once for every query head of its group, then attend as MHA."""
    group = queries.shape[1] // keys.shape[1]
    return F.scaled_dot_product_attention(
        queries, keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    )


def flagged(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Leave the grouping to the library."""
    return F.scaled_dot_product_attention(queries, keys, values, enable_gqa=True)


def grouped(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """One new token: the query heads of a group become the rows of one product with their KV head."""
    batch, heads, _, head_dim = queries.shape
    rows = queries.reshape(batch, keys.shape[1], heads // keys.shape[1], head_dim)
    return F.scaled_dot_product_attention(rows, keys, values).reshape(queries.shape)


WAYS: dict[str, Attend] = {"repeat_interleave": repeated, "enable_gqa": flagged, "grouped": grouped}
# --8<-- [end:ways]


def draw(
    kv_heads: int, tokens: int, dtype: torch.dtype, device: torch.device, heads: int = 32, head_dim: int = 128
) -> tuple[Tensor, Tensor, Tensor]:
    """Seeded random queries of one new token, keys and values: they show speed and equality, never quality."""
    generator = torch.Generator().manual_seed(kv_heads)
    shapes = ((1, heads, 1, head_dim), (1, kv_heads, tokens, head_dim), (1, kv_heads, tokens, head_dim))
    queries, keys, values = (torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes)
    return queries, keys, values


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the other."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def equality_values(tokens: int, device: torch.device, ways: Mapping[str, Attend] = WAYS) -> dict[str, float]:
    """The largest distance of any way from repeated heads, FP32; and what repeating allocates in BF16."""
    far = []
    for kv_heads in KV_HEADS.values():
        tensors = draw(kv_heads, tokens, torch.float32, device)
        far += [relative_difference(way(*tensors), repeated(*tensors)) for way in ways.values()]
    queries, keys, values = draw(KV_HEADS["gqa"], tokens, torch.bfloat16, device)
    group = queries.shape[1] // keys.shape[1]
    _, copied = allocated_by(lambda: [x.repeat_interleave(group, dim=1) for x in (keys, values)], device=device)
    return {"ways_difference": max(far), "copied_bytes": copied, "copied_tokens": tokens}


def decode_times(
    tokens: int, dtype: torch.dtype, rounds: int, device: torch.device, ways: Mapping[str, Attend] = WAYS
) -> clock.Interleaved:
    """One token's attention in one layer, every way and number of KV heads in turn; names are "gqa grouped"."""
    calls = {}
    for name, kv_heads in KV_HEADS.items():
        tensors = draw(kv_heads, tokens, dtype, device)
        for way in ways if name != "mha" else ["enable_gqa"]:  # without groups all ways are one
            calls[f"{name} {way}"] = torch.inference_mode()(lambda t=tensors, w=ways[way]: w(*t))
    return clock.interleave(calls, device=device, rounds=rounds)


PLAIN = "mha enable_gqa"


def speed_values(taken: clock.Interleaved) -> dict[str, float]:
    """How many times as fast as MHA; and GQA by copies over GQA in groups."""
    return {
        "gqa_grouped_speed_ratio": taken.ratio(PLAIN, "gqa grouped"),
        "mqa_grouped_speed_ratio": taken.ratio(PLAIN, "mqa grouped"),
        "gqa_flag_speed_ratio": taken.ratio(PLAIN, "gqa enable_gqa"),
        "gqa_repeat_speed_ratio": taken.ratio(PLAIN, "gqa repeat_interleave"),
        "gqa_copy_cost_ratio": taken.ratio("gqa repeat_interleave", "gqa grouped"),
    }


def time_columns(times: Mapping[str, clock.Interleaved]) -> dict[str, list]:
    """A table's columns from measurements by dtype: heads, way, seconds and speed against MHA in that dtype."""
    rows = [(dtype, name, taken) for dtype, taken in times.items() for name in taken.samples]
    return {
        "heads": [f"{name.split()[0].upper()}, {dtype}" for dtype, name, _ in rows],
        "way": ["plain" if name == PLAIN else name.split()[1] for _, name, _ in rows],
        "step_seconds": [taken.seconds(name) for _, name, taken in rows],
        "speed_ratio": [taken.ratio(PLAIN, name) for _, name, taken in rows],
    }


def prefill_values(tokens: int, rounds: int, device: torch.device) -> dict[str, float]:
    """A whole prompt's attention in one layer: FLOP as PyTorch counts them, and seconds of MHA over the others'."""
    calls, values = {}, {"prefill_tokens": float(tokens)}
    for name, kv_heads in KV_HEADS.items():
        _, keys, vals = draw(kv_heads, tokens, torch.float32, device)
        queries = draw(LLAMA_3_8B.heads, tokens, torch.float32, device)[1]
        on_meta = [tensor.to("meta") for tensor in (queries, keys, vals)]
        with FlopCounterMode(display=False) as counter:
            attend(*on_meta)
        values[f"{name}_prefill_flops"] = counter.get_total_flops()
        calls[name] = torch.inference_mode()(lambda t=(queries, keys, vals): attend(*t))
    taken = clock.interleave(calls, device=device, rounds=rounds)
    return values | {f"{name}_prefill_speed_ratio": taken.ratio("mha", name) for name in ("gqa", "mqa")}


def step_columns(element_bytes: int = 2) -> dict[str, list]:
    """Bytes that a decode step reads, same weights for all: batches and contexts, MHA's over the others'."""
    counts = parameters(LLAMA_3_8B)
    weights = (counts.linear + counts.head) * element_bytes
    cases = [(1, 256), (1, 8192), (32, 256), (32, 8192)]
    read = {n: [weights + b * t * token_bytes(kv, element_bytes) for b, t in cases] for n, kv in KV_HEADS.items()}
    return {
        "batch": [f"{batch}" for batch, _ in cases],
        "context_tokens": [tokens for _, tokens in cases],
        "mha_bytes": read["mha"],
        "gqa_ratio": [mha / gqa for mha, gqa in zip(read["mha"], read["gqa"], strict=True)],
        "mqa_ratio": [mha / mqa for mha, mqa in zip(read["mha"], read["mqa"], strict=True)],
    }


# --8<-- [start:conversion]
Merge = Callable[[Tensor], Tensor]  # (kv_heads, head_dim, hidden) → the same with another number of heads


def converted(decoder: Decoder, merge: Merge) -> Decoder:
    """The decoder with the KV heads that `merge` makes of each layer's; all other weights as they were."""
    geometry, state = decoder.geometry, dict(decoder.state_dict())
    kv_heads = geometry.kv_heads
    for name, weight in state.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            merged = merge(weight.view(geometry.kv_heads, geometry.head_dim, -1))
            state[name], kv_heads = merged.flatten(0, 1).contiguous(), len(merged)
    return from_state(replace(geometry, kv_heads=kv_heads), state, torch.float32, decoder.norm.weight.device)


def pooled(heads: Tensor) -> Tensor:
    """One head, the mean of all: where the uptraining of arXiv:2305.13245 starts."""
    return heads.mean(0, keepdim=True)


# --8<-- [end:conversion]


def picked(position: int) -> Merge:
    """One head, kept as it is."""
    return lambda heads: heads[position : position + 1]


COPIES, MEAN, ALONE = "each head copied for its group", "mean of all heads", "head {} alone"


def merges(geometry: Geometry) -> dict[str, Merge]:
    """The ways to other KV heads: a copy for each query head changes nothing, one head for all loses something."""
    group = geometry.heads // geometry.kv_heads
    alone = {ALONE.format("ABCDEFGH"[i]): picked(i) for i in range(geometry.kv_heads)}
    return {COPIES: lambda heads: heads.repeat_interleave(group, dim=0), MEAN: pooled, **alone}


def loss_columns(decoder: Decoder, windows: Tensor, ways: Mapping[str, Merge]) -> dict[str, list]:
    """Losses of a decoder as trained and after each conversion, and what each adds, with paired standard errors."""
    losses = {"as trained": window_nats(decoder, windows)}
    losses |= {name: window_nats(converted(decoder, merge), windows) for name, merge in ways.items()}
    added = [paired_difference(loss, losses["as trained"]) for loss in losses.values()]
    over_mean = [paired_difference(loss, losses[MEAN]) for loss in losses.values()]
    return {
        "heads": list(losses),
        "loss_nats": [float(loss.mean()) for loss in losses.values()],
        "added_nats": [mean for mean, _ in added],
        "error_nats": [error for _, error in added],
        "over_mean_nats": [mean for mean, _ in over_mean],
        "over_mean_error_nats": [error for _, error in over_mean],
    }


def loss_values(columns: Mapping[str, list]) -> dict[str, float]:
    """What the page states of SmolLM2's conversions."""
    place = {name: position for position, name in enumerate(columns["heads"])}
    alone = [position for name, position in place.items() if name.endswith("alone")]
    best = min(alone, key=lambda position: columns["over_mean_nats"][position])
    return {
        "copied_loss_difference": abs(columns["added_nats"][place[COPIES]]),
        "pooled_added_nats": columns["added_nats"][place[MEAN]],
        "pooled_error_nats": columns["error_nats"][place[MEAN]],
        "picked_over_pooled_nats": columns["over_mean_nats"][best],
        "picked_over_pooled_error_nats": columns["over_mean_error_nats"][best],
    }


def uptrained(seed: int) -> Decoder:
    """The small decoder of that seed, pooled, then trained on the text that `trained.continued` reads; kept like it."""
    geometry = replace(trained.GEOMETRIES["small"], kv_heads=1)
    how = inspect.getsource(converted) + inspect.getsource(pooled)
    return trained.further(
        f"small-{seed}-pooled", geometry, seed, lambda: converted(trained.decoder("small", seed), pooled), how=how
    )


def prepare() -> None:
    """The uptraining that the page evaluates; returns at once where it is done."""
    uptrained(trained.SEEDS[0])


def small_values(
    seeds: Sequence[int], windows: Tensor, ways: Mapping[str, Merge], finished: Callable[[int], Decoder] = uptrained
) -> dict[str, float]:
    """Small decoders trained here, their KV heads made one; the first of them pooled and trained on: `finished`."""
    found = [loss_columns(trained.decoder("small", seed), windows, ways)["added_nats"][2:] for seed in seeds]
    original = trained.decoder("small", seeds[0])
    after = window_nats(finished(seeds[0]), windows)
    added, _ = paired_difference(after, window_nats(original, windows))
    left, left_error = paired_difference(after, window_nats(trained.continued(seeds[0]), windows))
    return {
        "seeds_count": len(seeds),
        "uptraining_count": trained.FURTHER_STEPS,
        "training_count": trained.STEPS,
        "small_pooled_added_nats": fmean(mean for mean, *_ in found),
        "small_least_pooled_nats": min(mean for mean, *_ in found),
        "small_picked_added_nats": fmean(min(alone) for _, *alone in found),
        "small_first_pooled_nats": found[0][0],
        "small_uptrained_added_nats": added,
        "small_left_nats": left,
        "small_left_error_nats": left_error,
    }


def _measured(
    small: bool,
    device: torch.device,
    ways: Mapping[str, Attend],
    conversions: Callable[[Geometry], Mapping[str, Merge]],
    finished: Callable[[int], Decoder] = uptrained,
) -> dict[str, float]:
    clock.fix_allocator()
    tokens, rounds = (2048, 9) if small else (8192, 21)
    decoder, seeds = smollm2.decoder(torch.float32, device), (0,) if small else trained.SEEDS
    windows = unseen_windows(2, 96) if small else unseen_windows(8, 128)
    held_out = trained.held_out_windows(4 if small else 16, 256)
    return {
        **byte_values(tokens=64),
        **rank_values(),
        **equality_values(2049, device, ways),
        "decode_tokens": tokens,
        **speed_values(decode_times(tokens, torch.float32, rounds, device, ways)),
        **prefill_values(256 if small else 1024, rounds, device),
        **loss_values(loss_columns(decoder, windows.to(device), conversions(decoder.geometry))),
        **small_values(seeds, held_out, conversions(trained.GEOMETRIES["small"]), finished),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` takes fewer tokens, rounds, windows and seeds. All that it times is FP32."""
    return _measured(small, pick(device), WAYS, merges)


def tiled(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Heads copied in the wrong order, A B A B where A A B B is meant: some query heads meet another's keys."""
    group = queries.shape[1] // keys.shape[1]
    return F.scaled_dot_product_attention(queries, keys.repeat(1, group, 1, 1), values.repeat(1, group, 1, 1))


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """No grouping, only copies, in the wrong order; heads stay where they were merged, and merge where they stayed."""

    def swapped(geometry: Geometry) -> dict[str, Merge]:
        return {name: pooled if name == COPIES else lambda heads: heads for name in merges(geometry)}

    def left_alone(seed: int) -> Decoder:
        ways = swapped(trained.GEOMETRIES["small"])
        return converted(trained.decoder("small", seed), ways[MEAN])

    return _measured(small, pick(device), dict.fromkeys(WAYS, tiled), swapped, left_alone)


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/heads_mha_gqa_mqa", measure())
