"""How big is the KV cache?

Claim: a cache holds one key and one value a layer, key/value head and head dimension for every token, nothing
else; so its bytes are a product of the model's shape, linear in tokens and in batch, with no remainder.

Run: python -m snippets.kv_cache.bytes_per_token
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
import torch

from snippets.instruments.memory import allocated_by, storage_bytes
from snippets.models import shapes, smollm2, texts
from snippets.models.decoder import KVCache
from snippets.models.shapes import Geometry

# --8<-- [end:imports]


# --8<-- [start:formula]
def token_bytes(geometry: Geometry, element_bytes: int) -> int:
    """Bytes that one token of one sequence adds to the cache: a key and a value in every layer."""
    return 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * element_bytes


def formula_values(element_bytes: int = 2) -> dict[str, int]:
    """Llama-3-8B's shape and its product; Llama-3-70B and SmolLM2 beside it."""
    llama = shapes.LLAMA_3_8B
    return {
        "element_bytes": element_bytes,
        "layers_count": llama.layers,
        "kv_heads_count": llama.kv_heads,
        "head_dim_count": llama.head_dim,
        "weights_8b_bytes": shapes.parameters(llama).total * element_bytes,
        "weights_70b_bytes": shapes.parameters(shapes.LLAMA_3_70B).total * element_bytes,
        "kv_8b_token_bytes": token_bytes(llama, element_bytes),
        "gib_8b_tokens": 2**30 // token_bytes(llama, element_bytes),
        "kv_70b_token_bytes": token_bytes(shapes.LLAMA_3_70B, element_bytes),
        "kv_smollm2_token_bytes": token_bytes(smollm2.GEOMETRY, element_bytes),
    }


# --8<-- [end:formula]


# --8<-- [start:slips]
def query_heads_token_bytes(geometry: Geometry, element_bytes: int) -> int:
    """The usual slip: query heads where key/value heads belong."""
    return 2 * geometry.layers * geometry.heads * geometry.head_dim * element_bytes


def hidden_token_bytes(geometry: Geometry, element_bytes: int) -> int:
    """The other slip: head_dim taken as hidden / heads, which some models do not keep."""
    return 2 * geometry.layers * geometry.kv_heads * (geometry.hidden // geometry.heads) * element_bytes


def slip_values(element_bytes: int = 2) -> dict[str, int]:
    """What each slip makes of a shape that it does not fit, beside the truth."""
    return {
        "query_heads_8b_token_bytes": query_heads_token_bytes(shapes.LLAMA_3_8B, element_bytes),
        "hidden_gemma_token_bytes": hidden_token_bytes(shapes.GEMMA_7B, element_bytes),
        "kv_gemma_token_bytes": token_bytes(shapes.GEMMA_7B, element_bytes),
    }


# --8<-- [end:slips]


# --8<-- [start:filled]
@torch.inference_mode()
def filled_cache(tokens: int, batch: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> KVCache:
    """A cache that SmolLM2 filled with the first `tokens` of a real text, the same in every row."""
    model = smollm2.decoder(dtype, device)
    cache = KVCache(smollm2.GEOMETRY, batch, tokens, dtype, device)
    ids = smollm2.encode(texts.address(), device)[:, :tokens].expand(batch, tokens)
    model(ids, cache, last_only=True)
    return cache


def unwritten_count(cache: KVCache) -> int:
    """Token slots in which some layer's key or value is all zero: nothing was stored there."""
    written = (cache.keys != 0).any(-1) & (cache.values != 0).any(-1)  # (layers, batch, kv_heads, tokens)
    return int((~written.all(0).all(1)).sum())


def filled_values(tokens: int, batch: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict[str, int]:
    """Bytes of a filled cache counted in ways that know nothing of each other."""
    cache = filled_cache(tokens, batch, dtype, device)
    _, allocated = allocated_by(lambda: KVCache(smollm2.GEOMETRY, batch, tokens, dtype, device), device=device)
    return {
        "filled_tokens": tokens,
        "filled_batch_count": batch,
        "filled_formula_bytes": tokens * batch * token_bytes(smollm2.GEOMETRY, dtype.itemsize),
        "filled_storage_bytes": storage_bytes(cache),
        "filled_allocated_bytes": allocated,
        "unwritten_count": unwritten_count(cache),
    }


# --8<-- [end:filled]


# --8<-- [start:grid]
def grid_columns(token_counts: list[int], batches: list[int], dtype: torch.dtype) -> dict[str, list]:
    """Bytes of real caches over tokens and batch, read from the tensors' storages."""
    grid = [(tokens, batch) for batch in batches for tokens in token_counts]
    found = [storage_bytes(KVCache(smollm2.GEOMETRY, batch, tokens, dtype)) for tokens, batch in grid]
    return {
        "cached_tokens": [tokens for tokens, _ in grid],
        "batch_count": [batch for _, batch in grid],
        "batch": [f"batch {batch}" for _, batch in grid],
        "cache_bytes": found,
    }


def residual_bytes(columns: dict[str, list], bytes_a_token: int) -> int:
    """The largest distance of any cache from the straight line through the origin."""
    rows = zip(columns["cached_tokens"], columns["batch_count"], columns["cache_bytes"], strict=True)
    return max(abs(found - bytes_a_token * tokens * batch) for tokens, batch, found in rows)


# --8<-- [end:grid]


# --8<-- [start:shapes]
def shape_columns(element_bytes: int = 2) -> dict[str, list]:
    """Columns of the table of public shapes, a BF16 cache unless said otherwise."""
    models = [
        shapes.LLAMA_2_7B,
        shapes.LLAMA_3_8B,
        shapes.MISTRAL_7B,
        shapes.LLAMA_3_70B,
        shapes.GEMMA_7B,
        shapes.QWEN3_0_6B,
        shapes.SMOLLM2_135M,
    ]
    return {
        "model": [m.name for m in models],
        "layers_count": [m.layers for m in models],
        "heads_count": [m.heads for m in models],
        "kv_heads_count": [m.kv_heads for m in models],
        "head_dim_count": [m.head_dim for m in models],
        "hidden_over_heads_count": [m.hidden // m.heads for m in models],
        "token_bytes": [token_bytes(m, element_bytes) for m in models],
        "context_bytes": [8192 * token_bytes(m, element_bytes) for m in models],
    }


# --8<-- [end:shapes]


# --8<-- [start:levers]
def int8_token_bytes(geometry: Geometry, scale_bytes: int = 2) -> int:
    """INT8 keys and values with a scale for every head and token."""
    return 2 * geometry.layers * geometry.kv_heads * (geometry.head_dim + scale_bytes)


def lever_values(geometry: Geometry = shapes.LLAMA_3_8B) -> dict[str, int]:
    """Bytes a token without sharing, with shared key/value heads, with one, and with INT8 beside sharing."""
    layer_head_bytes = 2 * geometry.layers * geometry.head_dim * 2
    return {
        "unshared_token_bytes": layer_head_bytes * geometry.heads,
        "shared_token_bytes": layer_head_bytes * geometry.kv_heads,
        "single_token_bytes": layer_head_bytes,
        "int8_token_bytes": int8_token_bytes(geometry),
    }


def lever_columns() -> dict[str, list]:
    """The same as columns of a table."""
    values = list(lever_values().values())
    return {
        "technique": ["MHA, BF16", "GQA, BF16", "MQA, BF16", "GQA, INT8 with scales"],
        "factor": ["none", "KV heads", "KV heads", "bytes an element"],
        "token_bytes": values,
        "of_bf16_ratio": [value / values[1] for value in values],
    }


# --8<-- [end:levers]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` fills fewer tokens."""
    dtype = dtype or torch.bfloat16
    tokens, batch = (16, 2) if small else (256, 4)
    grid = grid_columns([1, 7, 64, 513], [1, 3, 8], dtype)
    return {
        **formula_values(dtype.itemsize),
        **filled_values(tokens, batch, dtype, device or "cpu"),
        "residual_bytes": residual_bytes(grid, token_bytes(smollm2.GEOMETRY, dtype.itemsize)),
        **slip_values(dtype.itemsize),
        **lever_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """A cache with a key and value for every query head, reserved and never filled."""
    dtype = dtype or torch.bfloat16
    values = measure(small=small, device=device, dtype=dtype)
    tokens, batch = int(values["filled_tokens"]), int(values["filled_batch_count"])
    unshared = query_heads_token_bytes(smollm2.GEOMETRY, dtype.itemsize)
    return values | {
        "kv_8b_token_bytes": values["query_heads_8b_token_bytes"],
        "kv_70b_token_bytes": query_heads_token_bytes(shapes.LLAMA_3_70B, dtype.itemsize),
        "kv_smollm2_token_bytes": unshared,
        "filled_formula_bytes": tokens * batch * unshared,
        "unwritten_count": unwritten_count(KVCache(smollm2.GEOMETRY, batch, tokens, dtype)),
        "residual_bytes": residual_bytes(grid_columns([1, 7], [1, 3], dtype), unshared),
    }


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/bytes_per_token", measure())
