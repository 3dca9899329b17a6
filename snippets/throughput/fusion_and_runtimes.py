"""What do fusion, compilers, CUDA graphs and runtimes change?

Claim: fusing saves launches and the bytes between operations, never a product or its weights. So a chain of small
operations gains, a matrix product does not, and a decode step gains where launches or the library's products were slow.

Run: python -m snippets.throughput.fusion_and_runtimes
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.roofline import LAUNCH_SECONDS, predict_seconds
from snippets.models import runtimes, smollm2
from snippets.models.compiled import (
    Counted,
    StaticStep,
    compiled,
    compiled_whole,
    counted,
    counted_compiled,
    layer_step,
)
from snippets.models.decoder import Decoder
from snippets.models.runtimes import Eager, OnnxRuntime, OpenVino, Runner
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry, parameters
from snippets.models.texts import address

# isort: split
from measured.values import report

THIN = replace(SMOLLM2_135M, name="thin", hidden=18, head_dim=2, ffn=16, vocabulary=64)
"""SmolLM2's layers and calls with next to no width: what launching costs."""
PRODUCTS = ("aten::mm", "aten::addmm", "aten::bmm")
NO_WORK = {"Reshape", "Unsqueeze", "Shape", "ShapeOf", "Const", "Input", "Output"}
"""What a runtime lists as nodes and a framework does without a kernel: another shape for the same memory."""
Watch = Callable[..., Counted]
Compile = Callable[[Callable], Callable]


@dataclass(frozen=True)
class Scale:
    """Layers of SmolLM2, rows of the chain, how often things are timed, and what is written to compare tokens."""

    layers: int = SMOLLM2_135M.layers
    rows: int = 512
    rounds: int = 21
    product_rounds: int = 7
    prompt_tokens: int = 24
    batch: int = 4
    new_tokens: int = 16


SMALL = Scale(layers=4, rows=128, rounds=7, prompt_tokens=8, new_tokens=4)


# --8<-- [start:chain]
def glue(x: Tensor, added: Tensor, weight: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a decoder layer does between its products: residual, RMSNorm, SiLU times up; line by line."""
    x = x + added
    wide = x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    return x, (wide * scale).to(x.dtype) * weight, F.silu(gate) * up


def glue_bytes(rows: int, hidden: int, ffn: int, size: int = 2) -> dict[str, int]:
    """Bytes read and written: operation by operation, and with nothing between going through memory."""
    row, narrow = rows * hidden, 4 * rows  # one number a row, FP32
    eager = {
        "residual": 3 * size * row,
        "to FP32": (size + 4) * row,
        "square": 8 * row,
        "mean": 4 * row + narrow,
        "epsilon, root": 4 * narrow,
        "scale": 8 * row + narrow,
        "back": (4 + size) * row,
        "weight": 2 * size * row + size * hidden,
        "SiLU": 2 * size * rows * ffn,
        "times up": 3 * size * rows * ffn,
    }
    return {"eager": sum(eager.values()), "least": 4 * size * row + size * hidden + 3 * size * rows * ffn}


# --8<-- [end:chain]


def chain_inputs(rows: int, device: torch.device, geometry: Geometry = LLAMA_3_8B) -> tuple[Tensor, ...]:
    """x, what is added, the norm's weight, gate and up, BF16, random."""
    shapes = ((rows, geometry.hidden),) * 2, ((geometry.hidden,),), ((rows, geometry.ffn),) * 2
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(s, generator=generator).to(device, torch.bfloat16) for group in shapes for s in group)


def chain_values(scale: Scale, device: torch.device, watch: Watch = counted_compiled) -> dict[str, int]:
    """Calls and bytes of the chain: eager counted and by formula, and as compiled."""
    given = chain_inputs(scale.rows, device)
    eager, fused = counted(glue, *given), watch(glue, *given)
    by_hand = glue_bytes(scale.rows, LLAMA_3_8B.hidden, LLAMA_3_8B.ffn)
    return {
        "chain_rows_count": scale.rows,
        "hidden_count": LLAMA_3_8B.hidden,
        "ffn_count": LLAMA_3_8B.ffn,
        "eager_chain_count": eager.calls.total(),
        "eager_chain_bytes": eager.bytes.total(),
        "eager_formula_bytes": by_hand["eager"],
        "least_chain_bytes": by_hand["least"],
        "compiled_chain_count": fused.calls.total(),
        "compiled_chain_bytes": fused.bytes.total(),
    }


def chain_ratios(found: Mapping[str, float]) -> dict[str, float]:
    """Eager over compiled."""
    return {
        "chain_kernels_ratio": found["eager_chain_count"] / found["compiled_chain_count"],
        "chain_bytes_ratio": found["eager_chain_bytes"] / found["compiled_chain_bytes"],
    }


def product_values(watch: Watch = counted_compiled) -> dict[str, int]:
    """Calls of a matrix product alone, eager and compiled."""
    x, weight = torch.ones(8, 64), torch.ones(96, 64)
    return {
        "eager_product_count": counted(F.linear, x, weight).calls.total(),
        "compiled_product_count": watch(F.linear, x, weight).calls.total(),
    }


def fused_times(scale: Scale, device: torch.device, compiled: Compile = compiled_whole) -> dict[str, float]:
    """Times of the chain and of a product between the same widths, eager over compiled; memory as it is kept."""
    given = chain_inputs(scale.rows, device)
    chain = compiled(glue)
    taken = clock.interleave({"eager": partial(glue, *given), "fused": partial(chain, *given)}, device=device,
                             rounds=scale.rounds)  # fmt: skip
    weight = torch.full((LLAMA_3_8B.ffn, LLAMA_3_8B.hidden), 0.01, dtype=torch.bfloat16, device=device)
    product = compiled(F.linear)
    calls = {"eager": partial(F.linear, given[0], weight), "fused": partial(product, given[0], weight)}
    large = clock.interleave(calls, device=device, rounds=scale.product_rounds)
    return {
        "chain_eager_seconds": taken.seconds("eager"),
        "chain_compiled_seconds": taken.seconds("fused"),
        "chain_speed_ratio": taken.ratio("eager", "fused"),
        "product_seconds": large.seconds("eager"),
        "product_speed_ratio": large.ratio("eager", "fused"),
    }


def thin_decoder(device: torch.device) -> Decoder:
    """Random weights at SmolLM2's depth and next to no width."""
    torch.manual_seed(0)
    return Decoder(THIN).to(device).requires_grad_(False).eval()


def step_calls(decoder: Decoder) -> dict[str, Counted]:
    """What one decode step dispatches, plain and with the static cache, after a prompt."""
    device = decoder.embed_tokens.weight.device
    one = torch.zeros(1, 1, dtype=torch.long, device=device)
    found = {}
    for name, runner in (("plain", Eager(decoder, 1, 16)), ("static", StaticStep(decoder, 1, 16))):
        runner(one.repeat(1, 3))
        # Beneath inference mode a linear layer is not taken apart: count what runs, not what is asked for.
        found[name] = counted(inspect.unwrap(type(runner).__call__), runner, one)
    return found


def layer_calls(decoder: Decoder, watch: Watch = counted_compiled) -> tuple[Counted, Counted]:
    """What the static step's first layer dispatches for one token: eager, and compiled."""
    weight, geometry = decoder.norm.weight, decoder.geometry
    cache = [weight.new_zeros(1, geometry.kv_heads, 16, geometry.head_dim) for _ in range(2)]
    x = weight.new_ones(1, 1, geometry.hidden)
    cos, sin = (weight.new_ones(1, geometry.head_dim) for _ in range(2))
    place = torch.tensor([3], device=weight.device)
    seen = torch.arange(16, device=weight.device)[None] <= 3
    given = (decoder.layers[0], x, cos, sin, *cache, place, seen)
    return counted(layer_step, *given), watch(layer_step, *given)


def step_values(decoder: Decoder, watch: Watch = counted_compiled) -> dict[str, float]:
    """Calls a token: the plain step, the static one, the static one compiled; products among them."""
    layers, steps = decoder.geometry.layers, step_calls(decoder)
    eager, fused = layer_calls(decoder, watch)
    outside = steps["static"].calls.total() - layers * eager.calls.total()
    return {
        "layer_eager_count": eager.calls.total(),
        "layer_compiled_count": fused.calls.total(),
        "layer_kernels_ratio": eager.calls.total() / fused.calls.total(),
        "layer_eager_products_count": sum(eager.calls[name] for name in PRODUCTS),
        "layer_compiled_products_count": sum(fused.calls[name] for name in PRODUCTS),
        "plain_step_count": steps["plain"].calls.total(),
        "compiled_step_count": layers * fused.calls.total() + outside,
    }


def graph_values(decoder: Decoder) -> dict[str, float]:
    """Nodes of the exported graph that compute, and those that a runtime is left with once it has loaded it."""
    import onnx

    def working(path: Path) -> int:
        nodes = onnx.load(path, load_external_data=False).graph.node
        return sum(node.op_type not in NO_WORK for node in nodes)

    folder = runtimes.exported(decoder)
    with tempfile.TemporaryDirectory() as scratch:
        OnnxRuntime(decoder, folder=folder, optimized=Path(scratch) / "optimized.onnx")
        kept = working(Path(scratch) / "optimized.onnx")
    ran = OpenVino(decoder, folder=folder).model.get_runtime_model().get_ops()
    kinds = [op.get_rt_info()["layerType"].astype(str) for op in ran]
    return {
        "exported_nodes_count": working(folder / runtimes.GRAPH),
        "onnx_nodes_count": kept,
        "openvino_nodes_count": sum(kind not in NO_WORK for kind in kinds),
    }


# --8<-- [start:runners]
Made = Callable[[], Runner]


def runners(decoder: Decoder, batch: int, folder: Path) -> dict[str, Made]:
    """The same weights behind the same calls: how each is made."""
    return {
        "eager": lambda: Eager(decoder, batch, 128),
        "compiled": lambda: compiled(decoder, batch, 128),
        "ONNX Runtime": lambda: OnnxRuntime(decoder, folder=folder),
        "OpenVINO": lambda: OpenVino(decoder, folder=folder),
    }


# --8<-- [end:runners]


def first_layers(layers: int, device: torch.device) -> Decoder:
    """SmolLM2, or its first layers."""
    decoder = smollm2.decoder(torch.float32, device)
    decoder.layers = decoder.layers[:layers]
    decoder.geometry = replace(decoder.geometry, layers=layers)
    return decoder


def prompts(batch: int, tokens: int, device: torch.device) -> Tensor:
    """Different pieces of one text, (batch, tokens)."""
    ids = smollm2.encode(address()[:20_000], device)[0]
    return torch.stack([ids[200 * row : 200 * row + tokens] for row in range(batch)])


def started(made: Mapping[str, Made], ids: Tensor) -> tuple[dict[str, Runner], dict[str, float]]:
    """Each runner, and the seconds from its making to its second token: what waits for a compiler waits here."""
    found: dict[str, Runner] = {}

    def start(name: str) -> None:
        found[name] = made[name]()
        runtimes.generate(found[name], ids, 2)

    start("eager")  # weights and code are in memory, as they are for the others
    seconds = {name: clock.time_once(partial(start, name), device=ids.device)[1] for name in made}
    return found, seconds


@torch.inference_mode()
def token_values(decoder: Decoder, ready: Mapping[str, Runner], ids: Tensor, new_tokens: int) -> dict[str, float]:
    """How many greedy tokens of each are the plain decoder's own, and the narrowest choice among them."""
    written = {name: runtimes.generate(runner, ids, new_tokens).to(ids.device) for name, runner in ready.items()}
    wanted = written.pop("eager")
    best = decoder(torch.cat((ids, wanted), 1))[:, ids.shape[1] - 1 : -1].topk(2).values
    return {
        "batch_count": len(ids),
        "checked_tokens": wanted.numel(),
        **{f"{short(name)}_equal_tokens": int((found == wanted).sum()) for name, found in written.items()},
        "smallest_gap_difference": float((best[..., 0] - best[..., 1]).min()),
    }


def short(name: str) -> str:
    """A runner's name as it begins the names of its values."""
    return name.split()[0].lower()


def runner_times(ready: Mapping[str, Runner], ids: Tensor, rounds: int) -> clock.Interleaved:
    """A decode step of each after the same prompt, in turn; its token is not kept."""
    for runner in ready.values():
        runner.reset()
        runner(ids)
    calls = {name: partial(runner, ids[:, :1], keep=False) for name, runner in ready.items()}
    return clock.interleave(calls, device=ids.device, rounds=rounds)


def speed_values(single: clock.Interleaved, batched: clock.Interleaved) -> dict[str, float]:
    """Eager's seconds of a step over each other's, for one sequence and for a batch."""
    others = [name for name in single.samples if name != "eager"]
    return {
        **{f"{short(name)}_single_ratio": single.ratio("eager", name) for name in others},
        **{f"{short(name)}_batch_ratio": batched.ratio("eager", name) for name in others},
    }


def runner_columns(
    starts: Mapping[str, float], single: clock.Interleaved, batched: clock.Interleaved, batch: int
) -> dict[str, list]:
    """By runner: seconds of a step, tokens a second alone and in a batch, seconds to its start."""
    names = list(single.samples)
    return {
        "runner": names,
        "step_seconds": [single.seconds(name) for name in names],
        "single_tokens_per_second": [1 / single.seconds(name) for name in names],
        "batch_tokens_per_second": [batch / batched.seconds(name) for name in names],
        "start_seconds": [starts[name] for name in names],
    }


def overhead_values(step_seconds: float, scale: Scale, device: torch.device) -> dict[str, float]:
    """A step of the thin decoder, which is calls and little else: its share of the real one's, and its gain."""
    thin, one = thin_decoder(device), torch.zeros(1, 1, dtype=torch.long, device=device)
    ready: dict[str, Runner] = {"eager": Eager(thin, 1, 128), "compiled": compiled(thin, 1, 128)}
    taken = runner_times(ready, one.repeat(1, 3), scale.rounds)
    return {
        "thin_step_seconds": taken.seconds("eager"),
        "overhead_share": taken.seconds("eager") / step_seconds,
        "thin_compiled_ratio": taken.ratio("eager", "compiled"),
    }


def default_values(decoder: Decoder, exact: Runner, ids: Tensor, folder: Path, scale: Scale) -> dict[str, float]:
    """OpenVINO as it comes, against OpenVINO told to compute in FP32: speed and tokens."""
    found: Runner = OpenVino(decoder, folder=folder, precision=None)
    written = [runtimes.generate(one, ids, scale.new_tokens) for one in (exact, found)]
    taken = runner_times({"exact": exact, "default": found}, ids, scale.rounds)
    return {
        "default_ratio": taken.ratio("exact", "default"),
        "default_checked_tokens": written[0].numel(),
        "default_equal_tokens": int((written[0] == written[1]).sum()),
        "default_logit_difference": float((exact(ids, keep=False) - found(ids, keep=False)).abs().max()),
    }


# --8<-- [start:prediction]
def predicted_seconds(geometry: Geometry, bits: float, launches: int) -> float:
    """Least seconds of one decode step on an H100: every weight but the embedding read once, launches queued."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    weights = step_weights(geometry)
    return predict_seconds(flops=2 * weights, bytes=weights * bits / 8, peak=peak, launches=launches)


# --8<-- [end:prediction]


def step_weights(geometry: Geometry) -> int:
    """Weights that a step reads: a tied embedding is read as the head."""
    counted = parameters(geometry)
    return counted.total - (0 if geometry.tied else counted.embedding)


def prediction_columns(layer: Mapping[str, float], ways: Mapping[str, str] | None = None) -> dict[str, list]:
    """By model: least seconds of a step launched call by call, as compiled, and as one CUDA graph."""
    models = (("Llama-3-8B, BF16", LLAMA_3_8B, 16.0), ("Llama-3-8B, INT4-g128", LLAMA_3_8B, 4.125),
              ("SmolLM2-135M, BF16", SMOLLM2_135M, 16.0))  # fmt: skip
    columns: dict[str, list] = {"model": [], "eager_count": [], "compiled_count": []}
    columns |= {f"{way}_seconds": [] for way in ("eager", "compiled", "graph")} | {"graph_ratio": []}
    for name, geometry, bits in models:
        launches = {way: int(geometry.layers * layer[f"layer_{way}_count"]) for way in ("eager", "compiled")}
        launches["graph"] = 1
        seconds = {way: predicted_seconds(geometry, bits, count) for way, count in launches.items()}
        columns["model"].append(name)
        for way in ("eager", "compiled"):
            columns[f"{way}_count"].append(launches[way])
        for way, least in seconds.items():
            columns[f"{way}_seconds"].append(least)
        columns["graph_ratio"].append(seconds["eager"] / seconds[(ways or {}).get("graph", "graph")])
    return columns


def prediction_values(columns: Mapping[str, list]) -> dict[str, float]:
    """Eager over graph, as predicted, in the order of the columns."""
    large, packed, little = columns["graph_ratio"]
    return {
        "h100_launch_seconds": LAUNCH_SECONDS,
        "h100_large_graph_ratio": large,
        "h100_packed_graph_ratio": packed,
        "h100_little_graph_ratio": little,
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; `small` has fewer rows, rounds and tokens."""
    scale, where = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    chain, thin = chain_values(scale, where), thin_decoder(where)
    layer = step_values(thin)
    found: dict[str, float] = {**chain, **chain_ratios(chain), **product_values(), **layer, **graph_values(thin)}
    found |= prediction_values(prediction_columns(layer))
    found |= fused_times(scale, where)
    decoder = first_layers(scale.layers, where)
    found["product_bytes_share"] = product_share(decoder)
    folder, ids = runtimes.exported(decoder), prompts(scale.batch, scale.prompt_tokens, where)
    ready, starts = started(runners(decoder, 1, folder), ids[:1])
    single = runner_times(ready, ids[:1], scale.rounds)
    found |= start_values(starts) | overhead_values(single.seconds("eager"), scale, where)
    found |= default_values(decoder, ready["OpenVINO"], ids[:1], folder, scale)
    made = runners(decoder, scale.batch, folder)
    ready |= {name: made[name]() for name in ("eager", "compiled")}  # their caches have one size
    found |= token_values(decoder, ready, ids, scale.new_tokens)
    return found | speed_values(single, runner_times(ready, ids, scale.rounds))


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Nothing compiled and no other runtime: eager PyTorch in their place, and a decoder of calls alone."""
    scale, where = SMALL if small else Scale(), pick(device)
    clock.fix_allocator()
    thin, ids = thin_decoder(where), torch.zeros(1, 3, dtype=torch.long, device=where)
    chain, layer = chain_values(scale, where, counted), step_values(thin, counted)
    ready: dict[str, Runner] = {name: Eager(thin, 1, 16) for name in ("eager", "compiled", "ONNX Runtime", "OpenVINO")}
    taken = runner_times(ready, ids, scale.rounds)
    _, starts = started({name: lambda: Eager(thin, 1, 16) for name in ready}, ids)
    return {
        **chain,
        **chain_ratios(chain),
        **layer,
        "product_bytes_share": product_share(thin),
        **fused_times(scale, where, lambda function: function),
        **speed_values(taken, taken),
        **start_values(starts),
        **prediction_values(prediction_columns(layer, {"graph": "eager"})),
    }


def start_values(starts: Mapping[str, float]) -> dict[str, float]:
    """Seconds to the second token from a standing start, over eager's."""
    return {f"{short(name)}_start_ratio": one / starts["eager"] for name, one in starts.items() if name != "eager"}


def product_share(decoder: Decoder) -> float:
    """Of the bytes that a plain decode step reads and writes, operation by operation: the products' share."""
    work = step_calls(decoder)["plain"]
    return sum(work.bytes[name] for name in PRODUCTS) / work.bytes.total()


def prepare() -> None:
    """Warm what the page waits for otherwise: the exported graph, and the compiler's cache."""
    device = torch.device("cpu")
    for scale in (Scale(), SMALL):
        chain_values(scale, device)
        given = chain_inputs(scale.rows, device)
        compiled_whole(glue)(*given)
        weight = torch.zeros(LLAMA_3_8B.ffn, LLAMA_3_8B.hidden, dtype=torch.bfloat16)
        compiled_whole(F.linear)(given[0], weight)
        decoder = first_layers(scale.layers, device)
        runtimes.exported(decoder)
        for batch in (1, scale.batch):
            runtimes.generate(compiled(decoder, batch, 128), prompts(batch, 4, device), 2)
    thin = thin_decoder(device)
    step_values(thin)
    runtimes.exported(thin)
    runtimes.generate(compiled(thin, 1, 128), torch.zeros(1, 3, dtype=torch.long), 2)


if __name__ == "__main__":
    report("throughput/fusion_and_runtimes", measure())
