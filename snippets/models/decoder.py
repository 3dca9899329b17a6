"""A plain Llama-style decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, a static KV cache.

Parameters are named as in transformers, without its "model." prefix: weights load by name, and one projection
can be replaced by name. Every call runs on any device and in any floating dtype; without a cache it trains.
Formulas: Llama (arXiv:2302.13971), rotary positions (arXiv:2104.09864), grouped queries (arXiv:2305.13245).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from snippets.models.shapes import Geometry

Device = torch.device | str


class KVCache:
    """Keys and values of all layers, allocated once: (layers, batch, kv_heads, tokens, head_dim) each.

    `length` tokens are filled. `append` writes behind them; `Decoder.forward`, or the caller, moves `length`.
    """

    def __init__(self, geometry: Geometry, batch: int, tokens: int, dtype: torch.dtype, device: Device = "cpu") -> None:
        shape = (geometry.layers, batch, geometry.kv_heads, tokens, geometry.head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def tokens(self) -> int:
        """Tokens that it has room for, a sequence."""
        return self.keys.shape[3]

    @property
    def nbytes(self) -> int:
        """Bytes allocated, filled or not."""
        return self.keys.nbytes + self.values.nbytes

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (batch, kv_heads, new, head_dim) behind `length`; return views of all tokens so far.

        Raises:
            ValueError: no room for the new tokens.
        """
        end = self.length + keys.shape[2]
        if end > self.tokens:
            raise ValueError(f"{end} tokens do not fit into a cache of {self.tokens}")
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


def rotation(geometry: Geometry, start: int, tokens: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (tokens, head_dim) each, of positions from `start`, on `like`'s device and dtype."""
    pairs = torch.arange(0, geometry.head_dim, 2, device=like.device, dtype=torch.float32)
    positions = torch.arange(start, start + tokens, device=like.device, dtype=torch.float32)
    angles = torch.outer(positions, 1.0 / geometry.rope_theta ** (pairs / geometry.head_dim)).repeat(1, 2)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x (..., tokens, head_dim). A pair is a feature and that half a head further on (half-split)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Causal attention of the newest tokens to all so far, (batch, heads, new, head_dim).

    Keys and values are (batch, kv_heads, tokens, head_dim), the new tokens last.
    """
    batch, heads, new, head_dim = queries.shape
    kv_heads, tokens = keys.shape[1:3]
    if new == 1:
        # One token sees everything, so the query heads of a group can be the rows of one product: each key is
        # read once, where enable_gqa reads it once for every query head on a CPU.
        rows = queries.reshape(batch, kv_heads, heads // kv_heads, head_dim)
        return F.scaled_dot_product_attention(rows, keys, values).reshape(batch, heads, new, head_dim)
    if new == tokens:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    seen = torch.ones(new, tokens, dtype=torch.bool, device=queries.device).tril(tokens - new)
    return F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen, enable_gqa=True)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.head_dim = geometry.head_dim
        queries, keys = geometry.heads * geometry.head_dim, geometry.kv_heads * geometry.head_dim
        self.q_proj = nn.Linear(geometry.hidden, queries, bias=False)
        self.k_proj = nn.Linear(geometry.hidden, keys, bias=False)
        self.v_proj = nn.Linear(geometry.hidden, keys, bias=False)
        self.o_proj = nn.Linear(queries, geometry.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None, layer: int) -> Tensor:
        batch, new, _ = x.shape
        queries, keys, values = (
            project(x).view(batch, new, -1, self.head_dim).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # (batch, heads or kv_heads, new, head_dim)
        queries, keys = rotate(queries, cos, sin), rotate(keys, cos, sin)
        if cache is not None:
            keys, values = cache.append(layer, keys, values)
        return self.o_proj(attend(queries, keys, values).transpose(1, 2).reshape(batch, new, -1))


class FeedForward(nn.Module):
    """SwiGLU (arXiv:2002.05202)."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(geometry.hidden, geometry.ffn, bias=False)
        self.up_proj = nn.Linear(geometry.hidden, geometry.ffn, bias=False)
        self.down_proj = nn.Linear(geometry.ffn, geometry.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: hidden states (batch, new, hidden) → the same shape."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(geometry.hidden, eps=geometry.norm_epsilon)
        self.self_attn = Attention(geometry)
        self.post_attention_layernorm = nn.RMSNorm(geometry.hidden, eps=geometry.norm_epsilon)
        self.mlp = FeedForward(geometry)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token ids → logits. A tied head shares the embedding's parameter."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        if geometry.qk_norm:
            raise ValueError(f"{geometry.name} norms its queries and keys, which this decoder does not do")
        self.geometry = geometry
        self.embed_tokens = nn.Embedding(geometry.vocabulary, geometry.hidden)
        self.layers = nn.ModuleList(Block(geometry) for _ in range(geometry.layers))
        self.norm = nn.RMSNorm(geometry.hidden, eps=geometry.norm_epsilon)
        self.lm_head = nn.Linear(geometry.hidden, geometry.vocabulary, bias=False)
        self.tie()

    def tie(self) -> None:
        """Make a tied head the embedding's own parameter (again, after weights were assigned)."""
        if self.geometry.tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids: Tensor, cache: KVCache | None = None, *, last_only: bool = False) -> Tensor:
        """Logits (batch, new, vocabulary) of ids (batch, new); with `last_only` of the last token alone.

        With a cache, `ids` follow the tokens in it, and are in it afterwards.
        """
        x = self.embed_tokens(ids)
        cos, sin = rotation(self.geometry, 0 if cache is None else cache.length, ids.shape[1], x)
        for layer, block in enumerate(self.layers):
            x = block(x, cos, sin, cache, layer)
        if cache is not None:
            cache.length += ids.shape[1]
        return self.lm_head(self.norm(x[:, -1:] if last_only else x))


def from_state(geometry: Geometry, state: Mapping[str, Tensor], dtype: torch.dtype, device: Device = "cpu") -> Decoder:
    """A frozen decoder from weights under transformers' names; RuntimeError on a missing or foreign name."""
    with torch.device("meta"):
        decoder = Decoder(geometry)
    weights = {name.removeprefix("model."): tensor.to(device, dtype) for name, tensor in state.items()}
    if geometry.tied:
        weights["lm_head.weight"] = weights["embed_tokens.weight"]
    decoder.load_state_dict(weights, strict=True, assign=True)
    decoder.tie()
    return decoder.requires_grad_(False).eval()


def initialize(module: nn.Module, seed: int, std: float = 0.02) -> nn.Module:
    """Fill matrices with seeded normal draws, norms with ones: such weights say nothing of quality."""
    for position, parameter in enumerate(module.parameters()):
        generator = torch.Generator(parameter.device).manual_seed(seed + position)
        with torch.no_grad():
            parameter.normal_(0.0, std, generator=generator) if parameter.ndim > 1 else parameter.fill_(1.0)
    return module


def random_block(
    geometry: Geometry, dtype: torch.dtype = torch.float32, device: Device = "cpu", seed: int = 0
) -> Block:
    """One frozen layer with random weights, at the real shape of a model too big to load whole."""
    with torch.device("meta"):
        block = Block(geometry)
    block = block.to(dtype).to_empty(device=device)
    initialize(block, seed)
    return block.requires_grad_(False).eval()


@torch.inference_mode()
def generate(decoder: Decoder, ids: Tensor, new_tokens: int, *, cached: bool = True) -> Tensor:
    """Greedy continuation (batch, new_tokens) of prompts of one length (batch, tokens). No token ends it.

    Without `cached`, every step runs over all tokens again.
    """
    parameter = decoder.embed_tokens.weight
    tokens = ids.shape[1] + new_tokens - 1  # the last new one is never read
    cache = KVCache(decoder.geometry, len(ids), tokens, parameter.dtype, parameter.device) if cached else None
    sequence = fresh = ids
    for _ in range(new_tokens):
        fresh = decoder(fresh if cached else sequence, cache, last_only=True)[:, -1].argmax(-1, keepdim=True)
        sequence = torch.cat((sequence, fresh), dim=1)
    return sequence[:, ids.shape[1] :]
