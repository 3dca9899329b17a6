"""Why cache keys and values at all, and does it change the output?

Claim: without a cache a step repeats the work of every earlier token, so its operations grow with the context and
those of a step with a cache hardly do. The answer stays the same to rounding.

Run: python -m snippets.kv_cache.speedup_over_recompute
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from snippets.instruments import clock
from snippets.instruments.device import pick
from snippets.models import smollm2, texts
from snippets.models.decoder import Decoder, KVCache, generate
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry, parameters

# isort: split
from measured.values import report

LENGTHS = (64, 128, 256, 512, 1024, 2048)


# --8<-- [start:operations]
def forward_flops(geometry: Geometry, new: int, context: int) -> int:
    """Operations to run `new` tokens that attend to `context` tokens, themselves among them; logits of the last one.

    A multiplication and an addition for each weight and token, and for each pair of a query head's and a key's
    elements, twice: scores, then the weighted sum. Counted unmasked, as kernels report it.
    """
    linear = 2 * parameters(geometry).linear * new
    attention = 4 * geometry.layers * geometry.heads * geometry.head_dim * new * context
    return linear + attention + 2 * geometry.vocabulary * geometry.hidden


def cached_flops(geometry: Geometry, context: int) -> int:
    """One step with a cache: one new token."""
    return forward_flops(geometry, 1, context)


def recomputed_flops(geometry: Geometry, context: int) -> int:
    """The same step without one: every token again."""
    return forward_flops(geometry, context, context)


# --8<-- [end:operations]


def operation_values(geometry: Geometry = LLAMA_3_8B, context: int = 1024, answer: int = 256) -> dict[str, int]:
    """A step and a whole answer, with a cache and without."""
    whole = range(context, context + answer)
    return {
        "context_tokens": context,
        "answer_tokens": answer,
        "linear_weights_count": parameters(geometry).linear,
        "cached_step_flops": cached_flops(geometry, context),
        "recomputed_step_flops": recomputed_flops(geometry, context),
        "cached_answer_flops": forward_flops(geometry, context, context)
        + sum(cached_flops(geometry, n) for n in whole[1:]),
        "recomputed_answer_flops": sum(recomputed_flops(geometry, n) for n in whole),
    }


def counted_values(geometry: Geometry = SMOLLM2_135M, context: int = LENGTHS[0]) -> dict[str, int]:
    """The formula beside PyTorch's own counter, on its meta device: a CPU's fused attention it would not see."""
    with torch.device("meta"):
        decoder, ids = Decoder(geometry).requires_grad_(False), torch.zeros(1, context, dtype=torch.long)
    cache = filled_cache(decoder, ids[:, :-1], context)
    counts = []
    for run in (lambda: decoder(ids[:, -1:], cache, last_only=True), lambda: decoder(ids, last_only=True)):
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            run()
        counts.append(counter.get_total_flops())
    return {
        "counted_context_tokens": context,
        "counted_cached_flops": counts[0],
        "counted_recomputed_flops": counts[1],
        "formula_cached_flops": cached_flops(geometry, context),
        "formula_recomputed_flops": recomputed_flops(geometry, context),
    }


@torch.inference_mode()
def filled_cache(decoder: Decoder, ids: Tensor, tokens: int) -> KVCache:
    """A cache with room for `tokens` that holds those of ids (batch, fewer)."""
    weight = decoder.embed_tokens.weight
    cache = KVCache(decoder.geometry, len(ids), tokens, weight.dtype, weight.device)
    decoder(ids, cache, last_only=True)
    return cache


# --8<-- [start:same]
def text_ids(tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """The first tokens of a real text, (batch of one, tokens)."""
    return smollm2.encode(texts.address(), device)[:, :tokens]


@torch.inference_mode()
def same_values(decoder: Decoder, tokens: int = 128, new: int = 32) -> dict[str, float]:
    """Logits of every position token by token against all at once, and greedy answers with a cache and without."""
    ids = text_ids(tokens, decoder.embed_tokens.weight.device)
    cache = KVCache(decoder.geometry, 1, tokens, torch.float32, ids.device)
    stepwise = torch.cat([decoder(ids[:, t : t + 1], cache) for t in range(tokens)], dim=1)
    difference = (stepwise - decoder(ids)).abs().max() / stepwise.abs().max()
    answers = [generate(decoder, ids[:, :64], new, cached=cached) for cached in (True, False)]
    return {
        "logits_difference": float(difference),
        "compared_tokens": tokens,
        "new_tokens": new,
        "equal_tokens": int((answers[0] == answers[1]).sum()),
    }


@torch.inference_mode()
def edit_values(decoder: Decoder, tokens: int = 32) -> dict[str, int]:
    """How many later tokens' keys an edit of the first token changes, in the first layer and in the last."""
    ids = text_ids(tokens, decoder.embed_tokens.weight.device)
    edited = ids.clone()
    edited[0, 0] = (edited[0, 0] + 1) % decoder.geometry.vocabulary
    before, after = (filled_cache(decoder, each, tokens).keys[:, 0, :, 1:] for each in (ids, edited))
    changed = (before != after).flatten(3).any(-1).any(1)  # (layers, tokens - 1)
    return {
        "later_tokens": tokens - 1,
        "first_layer_tokens": int(changed[0].sum()),
        "last_layer_tokens": int(changed[-1].sum()),
    }


# --8<-- [end:same]


# --8<-- [start:steps]
def cached_step(decoder: Decoder, ids: Tensor) -> Callable[[], object]:
    """One step with a cache that holds all but the last of ids (batch of one, tokens)."""
    cache = filled_cache(decoder, ids[:, :-1], ids.shape[1])

    @torch.inference_mode()
    def step() -> None:
        cache.length = ids.shape[1] - 1
        decoder(ids[:, -1:], cache, last_only=True)

    return step


def uncached_step(decoder: Decoder, ids: Tensor) -> Callable[[], object]:
    """The same step from nothing: all of ids (batch of one, tokens)."""
    return torch.inference_mode()(lambda: decoder(ids, last_only=True))


# --8<-- [end:steps]


def timed(decoder: Decoder, lengths: Sequence[int], rounds: int) -> clock.Interleaved:
    """Both steps at every length, in turn."""
    ids = text_ids(max(lengths), decoder.embed_tokens.weight.device)
    calls = {f"cached {n}": cached_step(decoder, ids[:, :n]) for n in lengths}
    calls |= {f"uncached {n}": uncached_step(decoder, ids[:, :n]) for n in lengths}
    clock.fix_allocator()
    return clock.interleave(calls, rounds=rounds, blocks=min(3, rounds))


def time_columns(taken: clock.Interleaved, lengths: Sequence[int], geometry: Geometry) -> dict[str, list]:
    """Seconds of both steps by length, how often faster, and how often fewer operations."""
    return {
        "context_tokens": list(lengths),
        "cached_seconds": [taken.seconds(f"cached {n}") for n in lengths],
        "uncached_seconds": [taken.seconds(f"uncached {n}") for n in lengths],
        "time_ratio": [taken.ratio(f"uncached {n}", f"cached {n}") for n in lengths],
        "operations_ratio": [recomputed_flops(geometry, n) / cached_flops(geometry, n) for n in lengths],
    }


# --8<-- [start:fit]
def fit(lengths: Sequence[int], seconds: Sequence[float]) -> tuple[float, float, float]:
    """a, b, c of seconds = a + b·n + c·n², least squares of the relative errors, none of the three negative."""
    n, t = torch.tensor(lengths, dtype=torch.float64), torch.tensor(seconds, dtype=torch.float64)
    terms = torch.stack((torch.ones_like(n), n, n * n), dim=1) / t[:, None]
    best = (float("inf"), torch.zeros(3, dtype=torch.float64))
    for kept in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):  # few enough to try every set of terms
        found = torch.linalg.lstsq(terms[:, kept], torch.ones(len(t), 1, dtype=torch.float64)).solution[:, 0]
        error = float((terms[:, kept] @ found - 1).square().sum())
        if (found >= 0).all() and error < best[0]:
            best = (error, torch.zeros(3, dtype=torch.float64).index_copy(0, torch.tensor(kept), found))
    a, b, c = best[1].tolist()
    return a, b, c


# --8<-- [end:fit]


def fit_values(columns: dict[str, list]) -> dict[str, float]:
    """The three terms of a step without a cache at the longest context, and a cached step's own intercept."""
    longest = columns["context_tokens"][-1]
    a, b, c = fit(columns["context_tokens"], columns["uncached_seconds"])
    whole = a + b * longest + c * longest**2
    cached_a, cached_b, cached_c = fit(columns["context_tokens"], columns["cached_seconds"])
    cached = cached_a + cached_b * longest + cached_c * longest**2
    return {
        "intercept_seconds": a,
        "linear_share": b * longest / whole,
        "quadratic_share": c * longest**2 / whole,
        "cached_intercept_seconds": cached_a,
        "cached_intercept_share": cached_a / cached,
    }


def ratio_values(columns: dict[str, list]) -> dict[str, float]:
    """How many times longer a step takes without a cache, at the shortest and the longest context measured."""
    return {"short_time_ratio": columns["time_ratio"][0], "long_time_ratio": columns["time_ratio"][-1]}


def models(device: str | None = None, dtype: torch.dtype = torch.bfloat16) -> tuple[Decoder, Decoder]:
    """SmolLM2 in FP32, to compare outputs, and in `dtype`, to time."""
    return smollm2.decoder(torch.float32, pick(device)), smollm2.decoder(dtype, pick(device))


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` stops at shorter contexts and compares fewer tokens."""
    exact, fast = models(device, dtype or torch.bfloat16)
    lengths = (64, 256, 768) if small else LENGTHS
    columns = time_columns(timed(fast, lengths, rounds=3 if small else 5), lengths, SMOLLM2_135M)
    same = same_values(exact, 64, 32) if small else same_values(exact)
    return {
        **operation_values(),
        **counted_values(),
        **same,
        **edit_values(exact),
        **ratio_values(columns),
        **fit_values(columns),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Caching off: the step that should use the cache recomputes; and a cache that forgot its values."""
    decoder = smollm2.decoder(torch.float32, pick(device))
    ids = text_ids(48, decoder.embed_tokens.weight.device)
    step = uncached_step(decoder, ids)
    taken = clock.interleave({"cached": step, "uncached": step}, rounds=3)
    ratio = taken.ratio("uncached", "cached")
    cache = filled_cache(decoder, ids[:, :-1], 48)
    cache.values = torch.zeros_like(cache.values)
    with torch.inference_mode():
        right = decoder(ids, last_only=True)
        lost = (decoder(ids[:, -1:], cache, last_only=True) - right).abs().max() / right.abs().max()
    same = operation_values()["recomputed_step_flops"]
    return {
        "short_time_ratio": ratio,
        "long_time_ratio": ratio,
        "logits_difference": float(lost),
        "cached_step_flops": same,
    }


if __name__ == "__main__":
    report("kv_cache/speedup_over_recompute", measure())
