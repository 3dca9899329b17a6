"""The decoder's own weights in other runtimes: ONNX Runtime and OpenVINO, both with a cache, both greedy alike.

The graph is written here operator by operator, in the standard's plain operators: a runtime gets the chance to fuse
that a compiler gets. Every runner is called as the decoder is with `last_only`, and keeps its cache itself.
Both wheels compute on a CPU; neither may report its use.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from snippets.instruments import clock
from snippets.models import smollm2
from snippets.models.decoder import Decoder, KVCache
from snippets.models.files import cache_folder
from snippets.models.shapes import Geometry

OPSET = 17
GRAPH, WEIGHTS = "decoder.onnx", "weights.bin"


class Runner(Protocol):
    """A decoder with a cache of its own."""

    @property
    def length(self) -> int:
        """Tokens in the cache."""

    def __call__(self, ids: Tensor, *, keep: bool = True) -> Tensor:
        """Logits (batch, 1, vocabulary) of the last of ids (batch, new); the same call again where not to `keep`."""

    def reset(self) -> None:
        """Empty the cache."""


@torch.inference_mode()
def generate(runner: Runner, ids: Tensor, new_tokens: int) -> Tensor:
    """Greedy continuation (batch, new_tokens) of ids (batch, tokens), from an empty cache."""
    runner.reset()
    written = [runner(ids).argmax(-1)]
    while len(written) < new_tokens:
        written.append(runner(written[-1]).argmax(-1))
    return torch.cat(written, dim=1)


class Eager:
    """The plain decoder behind the same calls; `forward` takes its place where it is compiled."""

    def __init__(
        self, decoder: Decoder, batch: int = 1, tokens: int = 256, forward: Callable[..., Tensor] | None = None
    ) -> None:
        weight = decoder.embed_tokens.weight
        self._cache = KVCache(decoder.geometry, batch, tokens, weight.dtype, weight.device)
        self._forward = forward or decoder

    @property
    def length(self) -> int:
        return self._cache.length

    @torch.inference_mode()
    def __call__(self, ids: Tensor, *, keep: bool = True) -> Tensor:
        length = self._cache.length
        logits = self._forward(ids, self._cache, last_only=True)
        if not keep:
            self._cache.length = length
        return logits

    def reset(self) -> None:
        self._cache.length = 0


def free_threads() -> int:
    """PyTorch's threads, or free cores' where the clock computes on those: a runtime's number is fixed when made."""
    with clock._free_threads(torch.device("cpu")):
        return torch.get_num_threads()


class OnnxRuntime:
    """The decoder in ONNX Runtime, FP32, on as many threads as PyTorch has."""

    def __init__(self, decoder: Decoder, *, folder: Path | None = None, optimized: Path | None = None) -> None:
        """`folder`: where it was `exported`; `optimized`: where to write the graph as it runs, its fusions done."""
        import onnxruntime

        onnxruntime.disable_telemetry_events()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = free_threads(), 1
        options.log_severity_level = 3
        # Its threads spin for a while when they are done: whoever is timed next would pay for it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if optimized:
            options.optimized_model_filepath = str(optimized)
        self._session = onnxruntime.InferenceSession(
            (folder or exported(decoder)) / GRAPH, options, ["CPUExecutionProvider"]
        )
        self._value = onnxruntime.OrtValue.ortvalue_from_numpy
        self._geometry, self._past, self.length = decoder.geometry, dict[str, Any](), 0
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, ids: Tensor, *, keep: bool = True) -> Tensor:
        past = self._past or _empty_past(self._geometry, len(ids), self._value)
        given = {"ids": self._value(ids.cpu().contiguous().numpy()), **past}
        logits, *present = self._session.run_with_ort_values(self._outputs, given)
        if keep:
            self._past = dict(zip(past, present, strict=True))
            self.length += ids.shape[1]
        return torch.from_numpy(logits.numpy())

    def reset(self) -> None:
        self._past, self.length = {}, 0


class OpenVino:
    """The decoder in OpenVINO, on as many threads as PyTorch has."""

    def __init__(self, decoder: Decoder, *, folder: Path | None = None, precision: str | None = "f32") -> None:
        """`precision` is what it computes in: "f32", "bf16", or None for whatever it prefers on this processor."""
        # Its package that reports use, which otherwise starts as it is imported, is kept out; it has a stub for that.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        import openvino

        told: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": free_threads(),
            "ENABLE_CPU_PINNING": False,
        }
        if precision:
            told["INFERENCE_PRECISION_HINT"] = precision
        core = openvino.Core()
        self.model = core.compile_model(core.read_model((folder or exported(decoder)) / GRAPH), "CPU", told)
        self._tensor = openvino.Tensor
        self._geometry, self._past, self.length = decoder.geometry, dict[str, Any](), 0
        # Two, in turn: what one gave is what the other is given, and is not written over meanwhile.
        self._requests = [self.model.create_infer_request() for _ in range(2)]

    @property
    def precision(self) -> str:
        """What it computes in."""
        return str(self.model.get_property("INFERENCE_PRECISION_HINT").to_string())

    def __call__(self, ids: Tensor, *, keep: bool = True) -> Tensor:
        request = self._requests[0]
        past = self._past or _empty_past(self._geometry, len(ids), self._tensor)
        given = {"ids": self._tensor(ids.cpu().contiguous().numpy(), shared_memory=True), **past}
        request.infer(given, share_inputs=True, share_outputs=True)
        logits = torch.tensor(request.get_output_tensor(0).data)
        if keep:
            present = (request.get_output_tensor(1 + place) for place in range(len(past)))
            self._past = dict(zip(past, present, strict=True))
            self.length += ids.shape[1]
            self._requests.reverse()
        return logits

    def reset(self) -> None:
        self._past, self.length = {}, 0


def prepare() -> None:
    """Write SmolLM2's graph into the cache folder; returns at once where it is there."""
    exported(smollm2.decoder())


def exported(decoder: Decoder) -> Path:
    """Folder with the decoder's graph and its FP32 weights in ONNX; made once, whole or not at all."""
    digest = hashlib.sha256(f"{inspect.getsource(graph)}{inspect.getsource(_Graph)}{decoder.geometry!r}".encode())
    for name, tensor in decoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    folder = cache_folder() / "onnx" / f"{decoder.geometry.name}-{digest.hexdigest()[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                _write(decoder, made)
                os.replace(made, folder)
    return folder


def _write(decoder: Decoder, folder: Path) -> None:
    import onnx

    onnx.save_model(graph(decoder), folder / GRAPH, save_as_external_data=True, location=WEIGHTS, size_threshold=1024)


def _empty_past(geometry: Geometry, batch: int, made: Callable[[np.ndarray], Any]) -> dict[str, Any]:
    shape = (batch, geometry.kv_heads, 0, geometry.head_dim)
    return {name: made(np.zeros(shape, np.float32)) for name in _past_names(geometry)}


def _past_names(geometry: Geometry) -> list[str]:
    return [f"past.{layer}.{part}" for layer in range(geometry.layers) for part in ("keys", "values")]


class _Graph:
    """Nodes and constants as they are written down; a call adds a node and returns its output's name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def __call__(
        self, operator: str, *inputs: str, outputs: int = 1, name: str | None = None, **attributes: Any
    ) -> Any:
        import onnx

        names = [name] if name else [f"{operator}.{len(self.nodes)}.{place}" for place in range(outputs)]
        self.nodes.append(onnx.helper.make_node(operator, inputs, names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = np.int64) -> str:
        array = np.asarray(value, dtype)
        name = f"constant.{array.dtype}.{array.tolist()}"
        self.constants[name] = array
        return name

    def weight(self, name: str, tensor: Tensor, *, transposed: bool = False) -> str:
        array = tensor.detach().to("cpu", torch.float32)
        self.constants[name] = np.ascontiguousarray((array.mT if transposed else array).numpy())
        return name


def graph(decoder: Decoder) -> Any:
    """The decoder as an ONNX model: ids and every layer's past → the last token's logits and every layer's present."""
    from onnx import TensorProto, helper, numpy_helper

    geometry, state, g = decoder.geometry, decoder.state_dict(), _Graph()
    width, groups = geometry.head_dim, geometry.heads // geometry.kv_heads
    zero, one = g.constant(0), g.constant(1)
    past = g("Gather", g("Shape", "past.0.keys"), g.constant(2), axis=0)
    end = g("Add", past, g("Gather", g("Shape", "ids"), one, axis=0))
    rows = g("Unsqueeze", g("Range", past, end, one), g.constant([1]))  # positions of the new tokens, (new, 1)
    seen = g("LessOrEqual", g("Range", zero, end, one), rows)
    bias = g("Where", seen, g.constant(0, np.float32), g.constant(-1e9, np.float32))  # (new, tokens)
    rates = 1.0 / geometry.rope_theta ** (torch.arange(0, width, 2).double() / width)
    angles = g("Mul", g("Cast", rows, to=TensorProto.FLOAT), g.weight("rates", rates.float()[None].repeat(1, 2)))
    cos, sin = g("Cos", angles), g("Sin", angles)

    def norm(x: str, name: str) -> str:
        mean = g("ReduceMean", g("Pow", x, g.constant(2, np.float32)), axes=[-1], keepdims=1)
        root = g("Sqrt", g("Add", mean, g.constant(geometry.norm_epsilon, np.float32)))
        return g("Mul", g("Div", x, root), g.weight(name, state[name]))

    def product(x: str, name: str) -> str:
        return g("MatMul", x, g.weight(name, state[name], transposed=True))

    def heads(x: str, shape: tuple[int, ...], order: tuple[int, ...]) -> str:
        return g("Transpose", g("Reshape", x, g.constant((0, 0, *shape, width))), perm=order)

    def rotated(x: str) -> str:
        first, second = g("Split", x, g.constant([width // 2] * 2), outputs=2, axis=-1)
        return g("Add", g("Mul", x, cos), g("Mul", g("Concat", g("Neg", second), first, axis=-1), sin))

    def layer(x: str, number: int) -> str:
        at = f"layers.{number}"
        read = norm(x, f"{at}.input_layernorm.weight")
        queries, keys, values = (product(read, f"{at}.self_attn.{part}_proj.weight") for part in "qkv")
        queries = rotated(heads(queries, (geometry.kv_heads, groups), (0, 2, 3, 1, 4)))
        keys = rotated(heads(keys, (geometry.kv_heads,), (0, 2, 1, 3)))
        values = heads(values, (geometry.kv_heads,), (0, 2, 1, 3))
        keys, values = (
            g("Concat", f"past.{number}.{part}", new, name=f"present.{number}.{part}", axis=2)
            for part, new in (("keys", keys), ("values", values))
        )  # (batch, kv_heads, tokens, head_dim)
        queries = g("Mul", queries, g.constant(width**-0.5, np.float32))
        group = g.constant([2])
        scores = g("MatMul", queries, g("Unsqueeze", g("Transpose", keys, perm=(0, 1, 3, 2)), group))
        mixed = g("MatMul", g("Softmax", g("Add", scores, bias), axis=-1), g("Unsqueeze", values, group))
        together = g("Reshape", g("Transpose", mixed, perm=(0, 3, 1, 2, 4)), g.constant((0, 0, -1)))
        x = g("Add", x, product(together, f"{at}.self_attn.o_proj.weight"))
        read = norm(x, f"{at}.post_attention_layernorm.weight")
        gate = product(read, f"{at}.mlp.gate_proj.weight")
        gated = g("Mul", g("Mul", gate, g("Sigmoid", gate)), product(read, f"{at}.mlp.up_proj.weight"))
        return g("Add", x, product(gated, f"{at}.mlp.down_proj.weight"))

    embedding = g.weight("embed_tokens.weight", state["embed_tokens.weight"])
    x = g("Gather", embedding, "ids")
    for number in range(geometry.layers):
        x = layer(x, number)
    x = norm(g("Gather", x, g.constant([-1]), axis=1), "norm.weight")
    # A tied head is the embedding's own constant: a runtime turns it once, as it loads.
    head = embedding if geometry.tied else g.weight("lm_head.weight", state["lm_head.weight"])
    g("MatMul", x, g("Transpose", head, perm=(1, 0)), name="logits")

    def described(name: str, kind: int, *shape: str | int) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    cached = ("batch", geometry.kv_heads)
    names = _past_names(geometry)
    made = helper.make_graph(
        g.nodes,
        "decoder",
        [described("ids", TensorProto.INT64, "batch", "new")]
        + [described(name, TensorProto.FLOAT, *cached, "past", width) for name in names],
        [described("logits", TensorProto.FLOAT, "batch", 1, geometry.vocabulary)]
        + [described(name.replace("past", "present"), TensorProto.FLOAT, *cached, "tokens", width) for name in names],
        [numpy_helper.from_array(array, name) for name, array in g.constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
