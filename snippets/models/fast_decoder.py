"""A Llama decoder written to be compiled: one graph a step, fused projections, a static cache, packed weights.

A product of one row is `(weight * x).sum(-1)` in public operations of torch: its compiler makes one pass over the
packed weight of it, unpacking and scales inside, vectorized, on all threads. Products of more rows go to the library.
Weights are arguments of the graph, so a compiled step is small: it is kept in the cache folder and loads at once.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from filelock import FileLock
from torch import Tensor

from snippets.instruments import device as devices
from snippets.models.decoder import rotation
from snippets.models.files import cache_folder
from snippets.models.operators import int8_product, takes_int8
from snippets.models.shapes import Geometry

Weight = dict[str, Tensor]
"""A stored matrix (rows, columns): which tensors it holds says how it is multiplied."""
Make = Callable[[Tensor], Weight]
Step = Callable[[Tensor, Tensor, Mapping[str, Any], Mapping[str, Any]], Tensor]

BLOCK = 32  # neighbours that share a scale, and in four bits a minimum
PROMPT_BLOCK = 128  # tokens of a prompt that attend together


def fp32(weight: Tensor) -> Weight:
    """The matrix as it is."""
    return {"weight": weight}


def bf16(weight: Tensor) -> Weight:
    """The matrix in half the bytes."""
    return {"weight": weight.to(torch.bfloat16)}


def int8_rows(weight: Tensor) -> Weight:
    """Symmetric INT8, one FP32 scale a row."""
    scale = weight.abs().amax(1) / 127
    return {"codes": (weight / scale[:, None]).round().to(torch.int8), "scale": scale}


def int8_columns(weight: Tensor) -> Weight:
    """The same, laid out column after column: the library's product of many rows reads it faster."""
    stored = int8_rows(weight)
    return stored | {"codes": stored["codes"].T.contiguous().T}


def int8_blocks(weight: Tensor) -> Weight:
    """Symmetric INT8, one scale a block: Q8_0's grid, whose own weights come back as they were."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    scales = blocks.abs().amax(-1) / 127
    codes = torch.where(scales[..., None] > 0, blocks / scales[..., None], 0).round()
    return {"codes": codes.to(torch.int8).unflatten(-1, (2, -1)), "scales": scales}


def int4_blocks(weight: Tensor) -> Weight:
    """Asymmetric INT4, a step and a minimum a block: Q4_1's grid, whose own weights come back as they were."""
    blocks = weight.unflatten(1, (-1, BLOCK))
    lows = blocks.amin(-1)
    steps = (blocks.amax(-1) - lows) / 15
    codes = torch.where(steps[..., None] > 0, (blocks - lows[..., None]) / steps[..., None], 0).round().to(torch.uint8)
    first, second = codes.unflatten(-1, (2, -1)).unbind(2)  # a byte holds codes that lie half a block apart
    return {"packed": first | second << 4, "steps": steps, "lows": lows}


def restored(weight: Weight) -> Tensor:
    """The FP32 matrix that a stored one stands for."""
    if "weight" in weight:
        return weight["weight"].float()
    if "packed" in weight:
        codes = torch.cat((weight["packed"] & 15, weight["packed"] >> 4), -1).float()
        return (codes * weight["steps"][..., None] + weight["lows"][..., None]).flatten(1)
    scale = weight["scales"][..., None, None] if "scales" in weight else weight["scale"][:, None]
    return (weight["codes"].float() * scale).flatten(1)


def multiply(x: Tensor, weight: Weight) -> Tensor:
    """x (tokens, columns) times the transposed matrix, FP32 in and out."""
    if len(x) == 1:
        return _row(x[0], weight)[None]
    if "scale" in weight:  # INT8 on both sides (W8A8)
        codes, scale = quantized(x)
        return rescaled(int8_product(codes, weight["codes"].T), scale, weight["scale"])
    matrix = weight["weight"] if "weight" in weight else restored(weight)
    return F.linear(x.to(matrix.dtype), matrix).float()


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """INT8 codes of activations (tokens, columns), and a scale for every token."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round().to(torch.int8), scale


def rescaled(sums: Tensor, tokens: Tensor, rows: Tensor) -> Tensor:
    """FP32 of integer sums (tokens, rows), by the scales of both."""
    return sums.float() * tokens * rows


def _row(x: Tensor, weight: Weight) -> Tensor:
    """x (columns,) → (rows,)."""
    if "weight" in weight:
        return (weight["weight"].float() * x).sum(-1)
    if "scale" in weight:
        return (weight["codes"].float() * x).sum(-1) * weight["scale"]
    first, second = x.unflatten(0, (-1, 2, BLOCK // 2)).unbind(1)
    if "scales" in weight:
        low, high = weight["codes"].float().unbind(2)
        return ((low * first + high * second) * weight["scales"][..., None]).sum((1, 2))
    codes = weight["packed"].to(torch.int32)  # whole words: a vector of bytes has no multiplication
    low, high = (codes & 15).float(), (codes >> 4).float()
    above = ((low * first + high * second) * weight["steps"][..., None]).sum((1, 2))
    return above + (weight["lows"] * (first + second).sum(-1)).sum(-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The decoder's rotary positions, ending in `cat`: what is concatenated the compiler writes to memory.

    Fused into attention instead, a query would be rotated again for every token that it is compared with.
    """
    (first, second), cos, sin = x.chunk(2, -1), cos.chunk(2, -1)[0], sin.chunk(2, -1)[0]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def attend(queries: Tensor, keys: Tensor, values: Tensor, places: Tensor) -> Tensor:
    """queries (batch, kv_heads, group, new, head_dim) at `places` (new,) to what a static cache holds up to there."""
    new, room = queries.shape[3], keys.shape[2]
    tokens, places = torch.arange(room, device=keys.device, dtype=torch.int32), places.int()  # a vector holds more

    def chances(scores: Tensor, ends: Tensor) -> Tensor:
        later = tokens[: scores.shape[-1]] > ends[:, None]
        return torch.softmax((scores * queries.shape[-1] ** -0.5).masked_fill(later, float("-inf")), -1)

    if new == 1:
        scores = (queries * keys[:, :, None].float()).sum(-1)
        return (chances(scores, places)[..., None] * values[:, :, None].float()).sum(-2, keepdim=True)
    mixed: list[Tensor] = []
    for rows, ends in zip(queries.split(PROMPT_BLOCK, 3), places.split(PROMPT_BLOCK), strict=True):
        # A prompt that fills its cache begins at its first token, and no block of it sees what follows the block.
        end = min(room, PROMPT_BLOCK * (len(mixed) + 1)) if new == room else room
        scores = (rows.flatten(2, 3).to(keys.dtype) @ keys[:, :, :end].mT).float().view(*rows.shape[:-1], end)
        weights = chances(scores, ends).to(keys.dtype).flatten(2, 3)
        mixed.append((weights @ values[:, :, :end]).float().view(rows.shape))
    return torch.cat(mixed, 3)


def forward(ids: Tensor, start: Tensor, weights: Mapping[str, Any], cache: Mapping[str, Any], g: Geometry) -> Tensor:
    """Hidden states (batch, new, hidden), normed, of ids (batch, new) that follow `start` tokens in the cache."""
    batch, new = ids.shape
    places = start + torch.arange(new, device=ids.device)
    cos, sin = weights["cos"][places], weights["sin"][places]

    def norm(x: Tensor, gain: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + g.norm_epsilon) * gain

    x = weights["embedding"][ids.flatten()].float()  # (batch * new, hidden)
    for layer, keys, values in zip(weights["layers"], cache["keys"], cache["values"], strict=True):
        mixed = multiply(norm(x, layer["attention_norm"]), layer["qkv"])
        mixed = mixed.view(batch, new, -1, g.head_dim).transpose(1, 2)
        queries, fresh, news = mixed.split((g.heads, g.kv_heads, g.kv_heads), 1)
        keys[:, :, places] = rotate(fresh, cos, sin).to(keys.dtype)
        values[:, :, places] = news.to(values.dtype)
        queries = rotate(queries, cos, sin).unflatten(1, (g.kv_heads, -1))
        out = attend(queries, keys, values, places).flatten(1, 2).transpose(1, 2).reshape(batch * new, -1)
        x = x + multiply(out, layer["output"])
        gate, up = multiply(norm(x, layer["ffn_norm"]), layer["gate_up"]).chunk(2, -1)
        x = x + multiply(F.silu(gate) * up, layer["down"])
    return norm(x, weights["norm"]).view(batch, new, -1)


class Greedy(torch.nn.Module):
    """ids (batch, new), start, weights, cache → the ids that follow: of every new token, or (batch, 1) of the last."""

    def __init__(self, geometry: Geometry, every: bool = False) -> None:
        super().__init__()
        self.geometry, self.every = geometry, every

    def forward(self, ids: Tensor, start: Tensor, weights: Mapping[str, Any], cache: Mapping[str, Any]) -> Tensor:
        hidden = forward(ids, start, weights, cache, self.geometry)
        hidden = hidden if self.every else hidden[:, -1:]
        return multiply(hidden.flatten(0, 1), weights["head"]).argmax(-1).view(len(ids), -1)


def stored(state: Mapping[str, Tensor], g: Geometry, make: Make, head: Make, dtype: torch.dtype) -> dict[str, Any]:
    """All weights: matrices as `make` stores them, a tied head as `head` does, the embedding in `dtype`."""
    state = {name.removeprefix("model."): tensor for name, tensor in state.items()}

    def layer(number: int) -> dict[str, Any]:
        def fused(*names: str) -> Weight:
            return make(torch.cat([state[f"layers.{number}.{name}_proj.weight"] for name in names]))

        return {
            "attention_norm": state[f"layers.{number}.input_layernorm.weight"],
            "qkv": fused("self_attn.q", "self_attn.k", "self_attn.v"),
            "output": fused("self_attn.o"),
            "ffn_norm": state[f"layers.{number}.post_attention_layernorm.weight"],
            "gate_up": fused("mlp.gate", "mlp.up"),
            "down": fused("mlp.down"),
        }

    embedding = state["embed_tokens.weight"]
    cos, sin = rotation(g, 0, 2048, embedding)
    made = {"embedding": embedding.to(dtype), "head": head(embedding), "norm": state["norm.weight"]}
    return {**made, "cos": cos, "sin": sin, "layers": [layer(number) for number in range(g.layers)]}


def empty_cache(g: Geometry, batch: int, tokens: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> dict:
    """Keys and values, (batch, kv_heads, tokens, head_dim) a layer."""
    shape = (batch, g.kv_heads, tokens, g.head_dim)
    return {
        part: [torch.zeros(shape, dtype=dtype, device=device) for _ in range(g.layers)] for part in ("keys", "values")
    }


def compiled(step: Greedy, ids: Tensor, weights: Mapping[str, Any], cache: Mapping[str, Any]) -> Step:
    """The step compiled ahead of time for tensors of these shapes; the step itself, and a word, without a compiler.

    The package is made once a machine, threads, torch and source, and loads in a moment.
    """
    folder = cache_folder() / "compiled"
    path = folder / f"{_key(step, ids, weights, cache)}.pt2"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            try:
                _package(step, (ids, torch.tensor(0, device=ids.device), weights, cache), path)
            except Exception as error:  # no compiler, or one that this graph is too much for
                warnings.warn(f"not compiled, run eagerly: {error} (Debian: apt-get install g++)", stacklevel=2)
                return step
    return torch._inductor.aoti_load_package(str(path))


def _package(step: Greedy, arguments: tuple[Any, ...], path: Path) -> None:
    with torch.no_grad(), tempfile.TemporaryDirectory(dir=path.parent) as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, on its own code
        exported = torch.export.export(step, arguments)
        made = torch._inductor.aoti_compile_and_package(exported, package_path=f"{scratch}/made.pt2")
        os.replace(made, path)


def _key(step: Greedy, ids: Tensor, *trees: Mapping[str, Any]) -> str:
    leaves = torch.utils._pytree.tree_leaves(trees)
    parts = (multiply, takes_int8, int8_product, quantized, rescaled, _row, restored, rotate, attend, forward, Greedy)
    described = [
        *(inspect.getsource(part) for part in parts),
        torch.__version__,
        devices.describe(ids.device)["class"],
        str(torch.get_num_threads()),
        f"{step.geometry} {step.every} {PROMPT_BLOCK}",
        *(f"{tuple(leaf.shape)} {leaf.stride()} {leaf.dtype}" for leaf in (ids, *leaves)),
    ]
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:24]
