"""The plain decoder's decode step, compiled: one layer is compiled once and called for every layer.

Nothing in it changes its shape: the cache is used whole, what is not written yet is masked, and positions are tensors.
A compiler specialises on Python's integers, so a step that took a layer's number or a length would be compiled again
for each of them; a CUDA graph replays fixed shapes at fixed addresses and needs the same. Where the device has such
graphs, a layer's launches are recorded once and replayed as one.
Compiled code is kept in the cache folder, for any number of threads. What runs, compiled or not, can be counted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from snippets.instruments.device import capabilities
from snippets.models.decoder import Block, Decoder, KVCache, rotate, rotation
from snippets.models.files import cache_folder

Layer = Callable[..., Tensor]


class NoCompilerError(RuntimeError):
    """torch.compile generates C++ on a CPU and needs a compiler for it."""


def compile(function: Callable, **told: object) -> Callable:
    """torch.compile with its caches in the cache folder, the code the same for any number of threads.

    Raises:
        NoCompilerError: a CPU without a C++ compiler.
    """
    if not capabilities() & {"compiler", "triton"}:
        raise NoCompilerError("torch.compile writes C++ here: install g++ or clang++, or name one in $CXX")
    import torch._inductor.config as settings

    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / f"inductor-{torch.__version__}"))
    settings.compile_threads = 1  # no pool of processes that outlives the call
    settings.cpp.dynamic_threads = True
    return torch.compile(function, **told)  # type: ignore[call-overload]


def has_graphs(device: torch.device) -> bool:
    """Whether the device records a queue of launches and replays it as one (CUDA graphs)."""
    return hasattr(torch.get_device_module(device), "CUDAGraph")


def compiled_whole(function: Callable, *, graphs: bool = False) -> Callable:
    """torch.compile of one graph at fixed shapes; with `graphs` its launches are replayed."""
    mode = {"mode": "reduce-overhead"} if graphs else {}
    return compile(function, dynamic=False, fullgraph=True, **mode)


# --8<-- [start:layer]
def layer_step(
    block: Block, x: Tensor, cos: Tensor, sin: Tensor, keys: Tensor, values: Tensor, place: Tensor, seen: Tensor
) -> Tensor:
    """One layer, one new token: x (batch, 1, hidden) → the same shape; writes the token into the cache at `place`.

    Keys and values are one layer's whole cache, (batch, kv_heads, tokens, head_dim); `seen` is (1, tokens).
    """
    attention, read = block.self_attn, block.input_layernorm(x)
    queries, new_keys, new_values = (
        project(read).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # (batch, heads or kv_heads, 1, head_dim)
    keys[:, :, place] = rotate(new_keys, cos, sin)
    values[:, :, place] = new_values
    rows = rotate(queries, cos, sin).unflatten(1, (keys.shape[1], -1)).squeeze(3)  # a group's heads are rows
    mixed = F.scaled_dot_product_attention(rows, keys, values, attn_mask=seen)
    x = x + attention.o_proj(mixed.flatten(1)[:, None])
    return x + block.mlp(block.post_attention_layernorm(x))


# --8<-- [end:layer]


class StaticStep:
    """The decoder with a static decode step; its `layer` is called for every layer. A prompt runs as it always does.

    With `graphs` the layer's launches are replayed: it writes to the cache where that lies, and a step is an iteration.
    """

    def __init__(
        self, decoder: Decoder, batch: int = 1, tokens: int = 256, layer: Layer = layer_step, *, graphs: bool = False
    ) -> None:
        weight = decoder.embed_tokens.weight
        self.decoder, self._layer, self._graphs = decoder, layer, graphs
        self._cache = KVCache(decoder.geometry, batch, tokens, weight.dtype, weight.device)
        self._cached = list(zip(self._cache.keys, self._cache.values, strict=True))  # each layer's, the same every step
        self._columns = torch.arange(tokens, device=weight.device)
        if graphs:
            for tensor in tree_leaves(self._cached):
                torch._dynamo.mark_static_address(tensor)

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self._cache.length

    @torch.inference_mode()
    def __call__(self, ids: Tensor, *, keep: bool = True) -> Tensor:
        """Logits (batch, 1, vocabulary) of the last of ids (batch, new); the same call again where not to `keep`."""
        cache, length = self._cache, self._cache.length
        if ids.shape[1] > 1:
            logits = self.decoder(ids, cache, last_only=True)
        else:
            if length == cache.tokens:
                raise ValueError(f"no room: the cache holds {cache.tokens} tokens")
            if self._graphs:
                torch.compiler.cudagraph_mark_step_begin()
            x = self.decoder.embed_tokens(ids)
            cos, sin = rotation(self.decoder.geometry, length, 1, x)
            place, seen = self._columns[length : length + 1], (self._columns <= length)[None]
            for block, (keys, values) in zip(self.decoder.layers, self._cached, strict=True):
                x = self._layer(block, x, cos, sin, keys, values, place, seen)
            logits = self.decoder.lm_head(self.decoder.norm(x))
            cache.length += 1
        if not keep:
            cache.length = length
        return logits

    def reset(self) -> None:
        """Empty the cache."""
        self._cache.length = 0


def compiled(decoder: Decoder, batch: int = 1, tokens: int = 256) -> StaticStep:
    """The same with its layer compiled, on the first decode step: seconds from a warm cache, longer from a cold one."""
    graphs = has_graphs(decoder.embed_tokens.weight.device)
    return StaticStep(decoder, batch, tokens, compiled_whole(layer_step, graphs=graphs), graphs=graphs)


LOOKUPS = ("aten::embedding", "aten::index", "aten::index_select")


# --8<-- [start:counting]
class Counted(TorchDispatchMode):
    """Operations that PyTorch dispatches and that compute something: calls and bytes read or written, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        held = {tensor.untyped_storage().data_ptr() for tensor in given}
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        made = [tensor for tensor in made if tensor.untyped_storage().data_ptr() not in held]  # a view computes nothing
        name = func._schema.name
        if (made or func._schema.is_mutable) and "empty" not in name:
            # A lookup reads the rows that it returns, not its table.
            self.add(name, [*(made if name in LOOKUPS else given), *made])
        return out

    def add(self, name: str, tensors: list[Tensor]) -> None:
        """One call, every tensor gone through once."""
        self.calls[name] += 1
        self.bytes[name] += sum(tensor.nbytes for tensor in tensors)


# --8<-- [end:counting]


def counted(function: Callable[..., object], *args: Any) -> Counted:
    """What eager PyTorch dispatches."""
    with torch.no_grad(), Counted() as work:
        function(*args)
    return work


def counted_compiled(function: Callable[..., object], *args: Any) -> Counted:
    """What its compiled form runs: library calls as they are dispatched, generated kernels as they are called."""
    work = Counted()

    def backend(graph: Any, inputs: list) -> Callable:
        made = torch._dynamo.lookup_backend("inductor")(graph, inputs)

        def watched(*given: Any) -> Any:
            with _generated(work), work:
                return made(*given)

        return watched

    with torch.no_grad():
        compile(function, backend=backend, dynamic=False, fullgraph=True)(*args)
    return work


class _Watched:
    """A generated kernel that counts its calls, and the tensors it is given, each once."""

    def __init__(self, name: str, kernel: Any, work: Counted) -> None:
        self.name, self.kernel, self.work = name, kernel, work

    def __call__(self, *args: Any, **told: Any) -> Any:
        self.work.add(self.name, [arg for arg in args if isinstance(arg, Tensor)])
        return self.kernel(*args, **told)

    def run(self, *args: Any, **told: Any) -> Any:
        self.work.add(self.name, [arg for arg in args if isinstance(arg, Tensor)])
        return self.kernel.run(*args, **told)


@contextmanager
def _generated(work: Counted) -> Iterator[None]:
    """Every kernel that Inductor has generated in this process counts itself: C++ on a CPU, Triton on a GPU."""
    from torch._inductor.codecache import PyCodeCache

    found = [
        (vars(module), name, kernel)
        for module in PyCodeCache.modules
        for name, kernel in vars(module).items()
        if name.startswith(("cpp_fused", "triton_")) and (callable(kernel) or hasattr(kernel, "run"))
    ]
    for names, name, kernel in found:
        names[name] = _Watched(name, kernel, work)
    try:
        yield
    finally:
        for names, name, kernel in found:
            names[name] = kernel
