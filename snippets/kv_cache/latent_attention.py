"""What does MLA store?

Claim: multi-head latent attention caches one latent and one rotary key a token and layer, shared by all heads.
Attention over the latent gives the same output as attention over the keys and values it expands to, with more
operations and far fewer bytes; every rank of a tensor-parallel group holds the whole latent.

Run: python -m snippets.kv_cache.latent_attention
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

# --8<-- [start:imports]
from dataclasses import dataclass

import torch
from torch import Tensor

from snippets.instruments.memory import storage_bytes

# --8<-- [end:imports]


# --8<-- [start:shape]
@dataclass(frozen=True)
class LatentShape:
    """An MLA model's shape, under the names of DeepSeek's configuration (arXiv:2405.04434)."""

    layers: int
    heads: int
    kv_lora_rank: int  # width of the latent that keys and values are expanded from
    qk_nope_head_dim: int  # part of a key that comes from the latent
    qk_rope_head_dim: int  # part of a key that carries the position, shared by all heads
    v_head_dim: int


DEEPSEEK_V3 = LatentShape(61, 128, 512, 128, 64, 128)


def latent_token_bytes(shape: LatentShape, element_bytes: int) -> int:
    """Bytes a token of what MLA caches: a latent and a rotary key in every layer."""
    return shape.layers * (shape.kv_lora_rank + shape.qk_rope_head_dim) * element_bytes


def expanded_token_bytes(shape: LatentShape, element_bytes: int) -> int:
    """Bytes a token of the keys and values of all heads that the latent stands for."""
    key = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    return shape.layers * shape.heads * (key + shape.v_head_dim) * element_bytes


def shape_values(shape: LatentShape = DEEPSEEK_V3, element_bytes: int = 2) -> dict[str, int]:
    """The shape's numbers and both products."""
    return {
        "element_bytes": element_bytes,
        "layers_count": shape.layers,
        "heads_count": shape.heads,
        "latent_rank_count": shape.kv_lora_rank,
        "rope_dim_count": shape.qk_rope_head_dim,
        "nope_dim_count": shape.qk_nope_head_dim,
        "value_dim_count": shape.v_head_dim,
        "latent_token_bytes": latent_token_bytes(shape, element_bytes),
        "expanded_token_bytes": expanded_token_bytes(shape, element_bytes),
    }


# --8<-- [end:shape]


# --8<-- [start:allocated]
def allocated_values(
    tokens: int, shape: LatentShape = DEEPSEEK_V3, dtype: torch.dtype = torch.bfloat16
) -> dict[str, int]:
    """Real tensors at the model's shape: what either cache holds for `tokens` of one sequence."""
    key = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    latent = torch.empty(shape.layers, tokens, shape.kv_lora_rank + shape.qk_rope_head_dim, dtype=dtype)
    keys = torch.empty(shape.layers, shape.heads, tokens, key, dtype=dtype)
    values = torch.empty(shape.layers, shape.heads, tokens, shape.v_head_dim, dtype=dtype)
    return {
        "held_tokens": tokens,
        "latent_cache_bytes": storage_bytes(latent),
        "expanded_cache_bytes": storage_bytes([keys, values]),
    }


# --8<-- [end:allocated]


# --8<-- [start:attention]
@dataclass(frozen=True)
class LatentLayer:
    """What one new token attends with: its query, the cache, and the two expansions of one layer.

    Every tensor is of one dtype; tokens are those cached so far.
    """

    query_nope: Tensor  # (heads, nope)
    query_rope: Tensor  # (heads, rope), rotated to its position
    latent: Tensor  # (tokens, rank): cached
    key_rope: Tensor  # (tokens, rope), rotated to its positions: cached
    key_expansion: Tensor  # (heads, nope, rank)
    value_expansion: Tensor  # (heads, value, rank)

    @property
    def scale(self) -> float:
        """One over the root of a key's width."""
        return float(self.query_nope.shape[-1] + self.query_rope.shape[-1]) ** -0.5


def attend_expanded(layer: LatentLayer) -> Tensor:
    """Expand keys and values of every token, then attend as usual: (heads, value)."""
    keys = torch.einsum("tr,hnr->htn", layer.latent, layer.key_expansion)
    values = torch.einsum("tr,hvr->htv", layer.latent, layer.value_expansion)
    rotary = torch.einsum("hp,tp->ht", layer.query_rope, layer.key_rope)
    scores = torch.einsum("hn,htn->ht", layer.query_nope, keys) + rotary
    return torch.einsum("ht,htv->hv", (scores * layer.scale).softmax(-1), values)


def attend_latent(layer: LatentLayer) -> Tensor:
    """Move the query into the latent's space and attend there; expand one result, not every token: (heads, value)."""
    query = torch.einsum("hn,hnr->hr", layer.query_nope, layer.key_expansion)
    rotary = torch.einsum("hp,tp->ht", layer.query_rope, layer.key_rope)
    scores = torch.einsum("hr,tr->ht", query, layer.latent) + rotary
    mixed = torch.einsum("ht,tr->hr", (scores * layer.scale).softmax(-1), layer.latent)
    return torch.einsum("hr,hvr->hv", mixed, layer.value_expansion)


def random_layer(tokens: int, shape: LatentShape, device: torch.device | str = "cpu", seed: int = 0) -> LatentLayer:
    """One FP32 layer with seeded random tensors: it shows an equality, never a quality."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(device)

    rank = shape.kv_lora_rank
    return LatentLayer(
        draw(shape.heads, shape.qk_nope_head_dim),
        draw(shape.heads, shape.qk_rope_head_dim),
        draw(tokens, rank),
        draw(tokens, shape.qk_rope_head_dim),
        draw(shape.heads, shape.qk_nope_head_dim, rank) * rank**-0.5,
        draw(shape.heads, shape.v_head_dim, rank) * rank**-0.5,
    )


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the other."""
    return float((one - other).double().norm() / other.double().norm())


def equality_values(tokens: int = 300, device: torch.device | str = "cpu") -> dict[str, float]:
    """How far the two ways lie apart in FP32, at DeepSeek-V3's own head shape."""
    layer = random_layer(tokens, DEEPSEEK_V3, device)
    return {"output_difference": relative_difference(attend_latent(layer), attend_expanded(layer))}


# --8<-- [end:attention]


# --8<-- [start:work]
def work_values(shape: LatentShape = DEEPSEEK_V3, element_bytes: int = 2) -> dict[str, int]:
    """Operations and bytes of decode attention for each cached token in one layer: a product is two operations."""
    key = shape.qk_nope_head_dim + shape.qk_rope_head_dim
    latent = shape.kv_lora_rank + shape.qk_rope_head_dim
    return {
        "expanded_attention_flops": 2 * shape.heads * (key + shape.v_head_dim),
        "latent_attention_flops": 2 * shape.heads * (latent + shape.kv_lora_rank),
        "expanded_layer_bytes": expanded_token_bytes(shape, element_bytes) // shape.layers,
        "latent_layer_bytes": latent_token_bytes(shape, element_bytes) // shape.layers,
    }


def rank_values(ranks: int = 8, shape: LatentShape = DEEPSEEK_V3, element_bytes: int = 2) -> dict[str, int]:
    """Bytes a token on each rank when heads are divided: keys and values go with their heads, the latent cannot."""
    heads_of_rank = torch.arange(shape.heads).chunk(ranks)[0].numel()
    share = LatentShape(**{**shape.__dict__, "heads": heads_of_rank})
    return {
        "ranks_count": ranks,
        "expanded_rank_token_bytes": expanded_token_bytes(share, element_bytes),
        "latent_rank_token_bytes": latent_token_bytes(share, element_bytes),
    }


# --8<-- [end:work]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` attends to fewer tokens."""
    return {
        **shape_values(),
        **allocated_values(tokens=16),
        **equality_values(tokens=32 if small else 300, device=device or "cpu"),
        **work_values(),
        **rank_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Plain attention in place of MLA: expanded caches, and a latent cut to half its rank in place of the whole."""
    values = measure(small=small, device=device)
    layer = random_layer(32, DEEPSEEK_V3, device or "cpu")
    half = layer.latent.clone()
    half[:, half.shape[1] // 2 :] = 0
    cut = LatentLayer(**{**layer.__dict__, "latent": half})
    return values | {
        "latent_token_bytes": values["expanded_token_bytes"],
        "latent_cache_bytes": values["expanded_cache_bytes"],
        "latent_attention_flops": values["expanded_attention_flops"],
        "latent_layer_bytes": values["expanded_layer_bytes"],
        "latent_rank_token_bytes": values["expanded_rank_token_bytes"],
        "output_difference": relative_difference(attend_latent(cut), attend_expanded(layer)),
    }


if __name__ == "__main__":
    from measured.values import report

    report("kv_cache/latent_attention", measure())
