"""Which model fits which card?

Claim: what a card must hold is weights, runtime, one step's activations and the KV cache; each is a product of the
model's shape, equal to what real tensors take. Lower precision shrinks the first of them and no other.

Run: python -m snippets.quantization.which_model_fits
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from snippets.instruments.memory import peak_allocated_by, storage_bytes
from snippets.models import smollm2
from snippets.models.capacity import GB, GIB, SCHEMES, budget, row_bytes, shard, token_bytes, weights_bytes
from snippets.models.cards import CARDS, MODELS, on_card
from snippets.models.decoder import Decoder, KVCache
from snippets.models.quantized import quantize_groups_int4, quantize_rows_int8
from snippets.models.shapes import LLAMA_3_8B, LLAMA_3_70B, Geometry

# --8<-- [end:imports]

SHOWN = ("llama-3-8b", "llama-3-70b", "llama-2-7b", "mistral-7b", "gemma-7b", "qwen3-0.6b", "smollm2-135m")
SIZES = ("8", "16", "24", "80")


# --8<-- [start:ways]
def held_bytes(geometry: Geometry, weights: str, group: int = 128) -> int:
    """Bytes of our decoder's own tensors, quantized by our own quantizers: on the meta device, so none are taken."""
    with torch.device("meta"):
        decoder = Decoder(geometry).to(torch.bfloat16)
    total = 0
    for name, weight in decoder.named_parameters():  # a tied head once
        vocabulary = name.startswith(("embed_tokens", "lm_head"))
        if weights == "bf16" or weight.ndim == 1 or (vocabulary and not SCHEMES[weights].vocabulary):
            total += weight.nbytes
        else:
            matrix = weight.detach()
            total += (quantize_rows_int8(matrix) if weights == "int8" else quantize_groups_int4(matrix, group)).nbytes
    return total


def step_bytes(tokens: int, device: torch.device | str = "cpu", *, fused: bool = True) -> tuple[int, int, int]:
    """Of SmolLM2 in BF16: what its weights hold, its cache, and what one step of `tokens` allocates at its peak."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each thread brings scratch of its own to attention on a CPU
    try:
        model = smollm2.decoder(torch.bfloat16, device)
        cache = KVCache(smollm2.GEOMETRY, 1, tokens, torch.bfloat16, device)
        ids = torch.zeros(1, tokens, dtype=torch.long, device=device)
        with torch.inference_mode(), sdpa_kernel(SDPBackend.FLASH_ATTENTION if fused else SDPBackend.MATH):
            _, peak = peak_allocated_by(lambda: model(ids, cache, last_only=True), device=device)
    finally:
        torch.set_num_threads(threads)
    return storage_bytes(model), storage_bytes(cache), peak


# --8<-- [end:ways]


def way_values(tokens: int, device: torch.device | str = "cpu") -> dict[str, int]:
    """Terms counted from tensors, and how far the formulas lie from them; of the shapes too big to hold, that alone."""
    weights, cache, step = step_bytes(tokens, device)
    small = smollm2.GEOMETRY
    apart = [weights - weights_bytes(small), cache - tokens * token_bytes(small), step - tokens * row_bytes(small)]
    large = [(LLAMA_3_8B, name) for name in SCHEMES] + [(shard(LLAMA_3_70B, 2), name) for name in ("bf16", "int4")]
    return {
        "step_tokens": tokens,
        "smollm2_weights_bytes": weights,
        "smollm2_step_bytes": step,
        "smollm2_apart_bytes": max(abs(each) for each in apart),
        "shapes_apart_bytes": max(abs(weights_bytes(*each) - held_bytes(*each)) for each in large),
    }


# --8<-- [start:board]
def board_values() -> dict[str, int]:
    """The whiteboard: Llama-3-8B on an RTX-4090 and on a T4, Llama-3-70B over two H100."""
    eight = budget(on_card("llama-3-8b", "24"))
    seventy = budget(on_card("llama-3-70b", "80", cards=2))
    t4 = {name: budget(on_card("llama-3-8b", "16", weights=name)) for name in ("bf16", "int8")}
    return {
        "rtx_4090_bytes": eight.card_bytes,
        "llama_8b_weights_bytes": eight.weights_bytes,
        "llama_8b_step_bytes": eight.activations_bytes,
        "llama_8b_token_bytes": eight.token_bytes,
        "llama_8b_left_tokens": eight.left_tokens,
        "llama_8b_users_count": eight.most_users,
        "t4_bytes": t4["bf16"].card_bytes,
        "t4_bf16_short_bytes": t4["bf16"].short_bytes,
        "t4_int8_left_tokens": t4["int8"].left_tokens,
        "llama_70b_half_bytes": seventy.weights_bytes,
        "llama_70b_left_tokens": seventy.left_tokens,
        "llama_70b_users_count": seventy.most_users,
        "llama_70b_int4_users_count": budget(on_card("llama-3-70b", "80", weights="int4")).most_users,
    }


# --8<-- [end:board]


def keys(models: tuple[str, ...]) -> list[str]:
    """Models as names of columns."""
    return [model.replace("-", "_").replace(".", "_") for model in models]


# --8<-- [start:table]
def fits(model: str, card: str, weights: str) -> bool:
    """Whether one user of a public model fits, with groups that divide; contexts end where Llama-3-8B's does."""
    context = min(8192, MODELS[model].longest_tokens)
    group = 64 if MODELS[model].geometry.hidden % 128 else 128
    return budget(on_card(model, card, weights=weights, group=group, context_tokens=context)).fits


def first_columns() -> dict[str, list]:
    """For each card the highest precision of weights in which each model fits."""
    columns: dict[str, list] = {"card": [CARDS[card].label for card in SIZES]}
    for model, key in zip(SHOWN, keys(SHOWN), strict=True):
        columns[key] = [
            next((SCHEMES[weights].label for weights in SCHEMES if fits(model, card, weights)), "–") for card in SIZES
        ]
    return columns


def pair_values() -> dict[str, int]:
    """How many pairs of a model and a card fit, by precision."""
    pairs = [(model, card) for model in SHOWN for card in SIZES]
    counts = {f"{name}_fits_count": sum(fits(*pair, name) for pair in pairs) for name in ("bf16", "int8", "int4")}
    return {"pairs_count": len(pairs), **counts}


# --8<-- [end:table]


def precision_columns() -> dict[str, list]:
    """Llama-3-8B on one card by precision: where the bytes go, and how many users share what is left."""
    found = [budget(on_card("llama-3-8b", "24", weights=name)) for name in SCHEMES]
    return {
        "weights": [scheme.label for scheme in SCHEMES.values()],
        "weights_bytes": [each.weights_bytes for each in found],
        "rest_bytes": [each.runtime_bytes + each.activations_bytes for each in found],
        "left_bytes": [each.left_bytes for each in found],
        "left_tokens": [each.left_tokens for each in found],
        "users_count": [each.most_users for each in found],
    }


def card_columns() -> dict[str, list]:
    """What is printed on cards, read both ways, beside what a program is told."""
    return {
        "card": [card.label for card in CARDS.values()],
        "decimal_bytes": [int(key) * GB for key in CARDS],
        "binary_bytes": [int(key) * GIB for key in CARDS],
        "usable_bytes": [card.usable_bytes for card in CARDS.values()],
    }


# --8<-- [start:false]
def false_values() -> dict[str, int]:
    """Where the precision of the weights does not decide: many users without shared heads, a prompt in one step."""
    crowd = {name: budget(on_card("llama-2-7b", "24", context_tokens=4096, users=32, weights=name)) for name in SCHEMES}
    long = {"context_tokens": 131_072, "weights": "int4_all"}
    at_once = budget(on_card("llama-3.1-8b", "24", **long, step_tokens=131_072))
    return {
        "crowd_cache_bytes": crowd["bf16"].cache_bytes,
        "crowd_saved_bytes": crowd["bf16"].weights_bytes - crowd["int4_all"].weights_bytes,
        "crowd_fitting_count": sum(each.fits for each in crowd.values()),
        "chunked_short_bytes": budget(on_card("llama-3.1-8b", "24", **long)).short_bytes,
        "at_once_step_bytes": at_once.activations_bytes,
        "at_once_short_bytes": at_once.short_bytes,
    }


# --8<-- [end:false]


def unfused_values(tokens: int, device: torch.device | str = "cpu") -> dict[str, int]:
    """The same step with attention that stores its scores."""
    return {"unfused_step_bytes": step_bytes(tokens, device, fused=False)[2]}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` changes nothing, since only sizes are counted. `dtype` must be BF16."""
    if dtype not in (None, torch.bfloat16):
        raise ValueError(f"the reference is BF16, not {dtype}")
    where = device or "cpu"
    return {
        **way_values(256, where),
        **board_values(),
        **pair_values(),
        **false_values(),
        **unfused_values(256, where),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Weights that no format shrinks: every precision takes what BF16 takes."""
    pairs = pair_values()
    short = budget(on_card("llama-3-8b", "16"))
    return {
        "int8_fits_count": pairs["bf16_fits_count"],
        "int4_fits_count": pairs["bf16_fits_count"],
        "t4_int8_left_tokens": short.left_tokens,
        "crowd_saved_bytes": 0,
    }


if __name__ == "__main__":
    from measured.values import report

    report("quantization/which_model_fits", measure())
