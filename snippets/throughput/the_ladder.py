"""Put it together: how fast can it get?

Cache, compiled graph, fewer bytes a weight, proposals from the prompt, batch: stacked on one model, each rung with its
bytes, its operations, its share of the roofline and whether it still writes the same tokens. Where the time of many
rows goes, part by part, and what an H100 is predicted to take.

Run: python -m snippets.throughput.the_ladder
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# --8<-- [start:imports]
import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import declared_peak, pick
from snippets.instruments.memory import storage_bytes
from snippets.instruments.roofline import LAUNCH_SECONDS, binding, predict_seconds
from snippets.models import fast_decoder as fast
from snippets.models import smollm2, texts
from snippets.models.compiled import NoCompilerError, compiled_whole, counted
from snippets.models.decoder import KVCache, generate
from snippets.models.operators import int8_product

# --8<-- [end:imports]

RECORDED_PEERS = Path(__file__).with_name("recorded_peers.json")  # by `make peers`
G = smollm2.GEOMETRY
CONTEXT, NEW, ROOM, BATCH, PREFILL, ASKED, LOOKED = 64, 48, 128, 32, 512, 32, 7
SHORT = {"fp32": "FP32 compiled", "bf16": "BF16", "int8": "INT8 rows", "int4": "INT4 blocks, exact"}
RESPONDING = (SHORT["fp32"], SHORT["int4"])
PARTS = ("qkv", "output", "gate_up", "down")  # matrices of a layer
COMPILED_LAUNCHES = 8  # a layer: its products, and a pass between each two of them

# --8<-- [start:rungs]
# name: how matrices, how the head, and in what embedding and cache are stored
RUNGS: dict[str, tuple[fast.Make, fast.Make, torch.dtype]] = {
    "FP32 compiled": (fast.fp32, fast.fp32, torch.float32),
    "BF16": (fast.bf16, fast.bf16, torch.bfloat16),
    "INT8 rows": (fast.int8_rows, fast.int8_rows, torch.bfloat16),
    "INT4 blocks, exact": (fast.int4_blocks, fast.int8_blocks, torch.float32),
}


@dataclass
class Rung:
    """A compiled step with its weights and its cache; it takes `new` tokens a sequence."""

    step: fast.Step
    weights: dict[str, Any]
    cache: dict[str, Any]
    new: int

    def __call__(self, ids: Tensor, start: int) -> Tensor:
        with torch.no_grad():
            return self.step(ids.contiguous(), torch.tensor(start, device=ids.device), self.weights, self.cache)

    def read(self, ids: Tensor) -> Tensor:
        """The whole prompt into the cache → the id that follows."""
        for start in range(0, ids.shape[1], self.new):
            following = self(ids[:, start : start + self.new], start)
        return following[:, -1:]

    def taking(self, new: int) -> Rung:
        """The same weights and cache, with a step that takes `new` tokens."""
        ids = torch.zeros(1, new, dtype=torch.long, device=self.weights["norm"].device)
        return Rung(fast.compiled(fast.Greedy(G), ids, self.weights, self.cache), self.weights, self.cache, new)

    def generate(self, ids: Tensor, new_tokens: int) -> Tensor:
        """Greedy continuation (batch, new_tokens) of ids (batch, tokens)."""
        return self.written(ids, self.read(ids), new_tokens)[0]

    def written(self, ids: Tensor, token: Tensor, new_tokens: int) -> tuple[Tensor, int]:
        """Continuation of a prompt that was read, its first token given; and the steps that it took."""
        if self.new > 1 and new_tokens > 1:
            return self._looked_up(ids, token, new_tokens)
        tokens = [token]
        for place in range(ids.shape[1], ids.shape[1] + new_tokens - 1):
            tokens.append(self(tokens[-1], place))
        return torch.cat(tokens, 1), new_tokens - 1

    def _looked_up(self, ids: Tensor, token: Tensor, new_tokens: int) -> tuple[Tensor, int]:
        known, prompt, steps = [*ids[0].tolist(), int(token)], ids.shape[1], 0
        while len(known) < prompt + new_tokens:
            proposed = proposals(known, self.new - 1)
            given = torch.tensor([[known[-1], *proposed]], device=ids.device)
            checked = self(given, len(known) - 1)[0].tolist()
            right = next((n for n, (a, b) in enumerate(zip(proposed, checked, strict=False)) if a != b), len(proposed))
            known += checked[: right + 1]  # what was proposed rightly, and the token after it
            steps += 1
        return torch.tensor([known[prompt : prompt + new_tokens]]), steps


def proposals(known: list[int], count: int) -> list[int]:
    """What followed the last time that the two newest tokens stood there; the newest again where they never did."""
    for place in range(len(known) - 3, -1, -1):
        if known[place : place + 2] == known[-2:]:
            found = known[place + 2 : place + 2 + count]
            return found + found[-1:] * (count - len(found))
    return known[-1:] * count


# --8<-- [end:rungs]


def rung(
    name: str,
    state: Mapping[str, Tensor],
    *,
    batch: int = 1,
    lookup: bool = False,
    prefill: int = 0,
    device: torch.device | str = "cpu",
) -> Rung:
    """One rung, compiled or loaded: a step of one token, of a proposal and its check, or of a whole prompt."""
    make, head, dtype = RUNGS[name]
    new = prefill or (LOOKED + 1 if lookup else 1)
    room = prefill or (ROOM + 2 * new if lookup else ROOM)
    if batch * new > 1 and make is fast.int8_rows:
        make, head = fast.int8_columns, head if prefill else fast.int8_columns  # of a prompt the head takes one row
    weights = fast.stored({n: tensor.to(device) for n, tensor in state.items()}, G, make, head, dtype)
    cache = fast.empty_cache(G, batch, room, dtype, device)
    ids = torch.zeros(batch, new, dtype=torch.long, device=device)
    return Rung(fast.compiled(fast.Greedy(G, every=lookup), ids, weights, cache), weights, cache, new)


def prepare() -> None:
    """Compile every step that the page loads, into the cache folder: two at a time, most of it is one thread's work."""
    steps: list[tuple[str, dict[str, Any], bool]]
    steps = [("INT8 rows", which, False) for which in ({"prefill": PREFILL}, {"lookup": True}, {"batch": BATCH})]
    steps += [(name, {}, name in RESPONDING) for name in RUNGS]
    threads = [torch.get_num_threads()] * len(steps)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(_compile, *zip(*steps, strict=True), threads))


def _compile(name: str, which: dict[str, Any], reads: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    made = rung(name, smollm2.load_state(), **which)
    if reads:
        made.taking(ASKED)


def prompt(tokens: int = CONTEXT, batch: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """Ids (batch, tokens) of the address."""
    return smollm2.encode(texts.address()[:20_000], device)[0, : batch * tokens].view(batch, tokens).contiguous()


def copying(tokens: int = CONTEXT, device: torch.device | str = "cpu") -> Tensor:
    """A few words of the address again and again: a text that quotes itself."""
    return prompt(16, device=device).repeat(1, tokens // 16 + 1)[:, :tokens].contiguous()


# --8<-- [start:counts]
def step_bytes(one: Rung) -> int:
    """Bytes that a step reads: matrices, norms, head, and the cache, whose room is read whole."""
    return storage_bytes([one.weights["layers"], one.weights["norm"], one.weights["head"], one.cache])


def step_flops(tokens: int = 1, room: int = ROOM) -> int:
    """Operations of a step: each matrix's weight once a token, and attention over the cache's room."""
    layer = G.hidden * G.head_dim * (2 * G.heads + 2 * G.kv_heads) + 3 * G.hidden * G.ffn
    attention = 2 * G.heads * G.head_dim * room
    return 2 * tokens * (G.layers * (layer + attention) + G.hidden * G.vocabulary)


# --8<-- [end:counts]


def matrix_bytes(weights_count: int, name: str) -> int:
    """Bytes of the layers' matrices and the head by formula, from bits a weight."""
    head = G.hidden * G.vocabulary
    layers = weights_count - head
    rows = G.layers * (G.head_dim * (G.heads + 2 * G.kv_heads) + 2 * G.hidden + 2 * G.ffn) + G.vocabulary
    return {
        "FP32 compiled": 4 * weights_count,
        "BF16": 2 * weights_count,
        "INT8 rows": weights_count + 4 * rows,
        "INT4 blocks, exact": layers // 2 + 2 * 4 * layers // fast.BLOCK + head + 4 * head // fast.BLOCK,
    }[name]


def matrices(weights: Mapping[str, Any]) -> list[fast.Weight]:
    """All that a token is multiplied by."""
    return [layer[part] for layer in weights["layers"] for part in PARTS] + [weights["head"]]


def count_values(rungs: Mapping[str, Rung]) -> dict[str, float]:
    """Bytes by formula and in memory; weights that the exact INT4 rung gives back; lines of what runs."""
    count = step_flops(1, room=0) // 2
    source = "\n".join(inspect.getsource(part) for part in (fast, Rung, proposals, rung))
    found: dict[str, float] = {"weights_count": count, "engine_lines_count": len(re.findall(r"^.*\S", source, re.M))}
    for short, name in SHORT.items():
        found[f"{short}_bytes"] = storage_bytes(matrices(rungs[name].weights))
        found[f"{short}_formula_bytes"] = matrix_bytes(count, name)
    pairs = zip(*(matrices(rungs[name].weights) for name in reversed(RESPONDING)), strict=True)
    same = sum(int((fast.restored(packed) == plain["weight"]).sum()) for packed, plain in pairs)
    return {**found, "restored_count": same}


def token_values(rungs: Mapping[str, Rung], eager: Any, new_tokens: int) -> dict[str, float]:
    """Of how many greedy tokens each rung writes what the plain decoder writes."""
    device = eager.embed_tokens.weight.device
    ids = prompt(device=device)
    expected = generate(eager, ids, new_tokens)
    same = {
        f"{short}_equal_tokens": int((rungs[name].generate(ids, new_tokens) == expected).sum())
        for short, name in SHORT.items()
    }
    return {**same, "compared_tokens": new_tokens}


@torch.no_grad()
def loss_nats(rung_: Rung, tokens: int) -> float:
    """Mean nats a token of unseen text, every product on many rows: INT8 on both sides, as in batches and prompts."""
    ids = prompt(tokens + 1, device=rung_.weights["norm"].device)
    cache = fast.empty_cache(G, 1, tokens, rung_.weights["embedding"].dtype, ids.device)
    hidden = fast.forward(ids[:, :-1], torch.tensor(0, device=ids.device), rung_.weights, cache, G)
    logits = fast.multiply(hidden[0], rung_.weights["head"])
    return float(torch.nn.functional.cross_entropy(logits, ids[0, 1:]))


def lookup_values(looked: Rung, new_tokens: int) -> dict[str, float]:
    """Tokens a step where the text repeats itself and where it does not."""
    found = {}
    for name, ids in {"copying": copying(), "free": prompt()}.items():
        ids = ids.to(looked.weights["norm"].device)
        steps = looked.written(ids, looked.read(ids), new_tokens)[1]
        found[f"{name}_step_tokens"] = (new_tokens - 1) / steps
    return found


def timed(rungs: Mapping[str, Rung], eager: Any, many: Rung, rounds: int, baseline: bool = False) -> clock.Interleaved:
    """A step of every rung after the same context, in turn; the `baseline` has no cache, compiler or batch."""
    device = eager.embed_tokens.weight.device
    place = ROOM - 1
    ids = prompt(ROOM, device=device)
    cache = KVCache(G, 1, ROOM, torch.float32, device)

    def cached() -> None:
        cache.length = place
        with torch.inference_mode():
            eager(ids[:, -1:], cache, last_only=True).argmax(-1)

    def recomputed() -> None:
        with torch.inference_mode():
            eager(ids, last_only=True).argmax(-1)

    batch = ids[:, -1:].repeat(BATCH, 1)
    steps: dict[str, clock.Call] = {name: partial(one, ids[:, -1:], place) for name, one in rungs.items()}
    every: dict[str, clock.Call] = {
        "recomputed": recomputed,
        "cache": cached,
        **steps,
        "batch": partial(many, batch, place),
    }
    if baseline:
        every |= {"cache": recomputed, "FP32 compiled": recomputed, "batch": steps["INT8 rows"]}
        every |= {"INT4 blocks, exact": recomputed}
    return clock.interleave(every, device=device, rounds=rounds)


def time_values(taken: clock.Interleaved, batch: int = BATCH) -> dict[str, float]:
    """How many times as fast one rung is as another."""
    return {
        "cache_ratio": taken.ratio("recomputed", "cache"),
        "compiled_ratio": taken.ratio("cache", "FP32 compiled"),
        "int4_ratio": taken.ratio("FP32 compiled", "INT4 blocks, exact"),
        "batch_ratio": batch * taken.ratio("INT8 rows", "batch"),
    }


def unpack_ratio(weights: Mapping[str, Any], rounds: int, baseline: bool = False) -> float:
    """Time of a batch times a matrix that is unpacked from INT4 first, over that of BF16."""
    packed = weights["layers"][0]["gate_up"]
    plain = fast.bf16(fast.restored(packed))
    x = torch.randn(BATCH, G.hidden, device=plain["weight"].device, generator=torch.Generator().manual_seed(0))
    taken = clock.interleave(
        {"unpacked": lambda: fast.multiply(x, plain if baseline else packed), "BF16": lambda: fast.multiply(x, plain)},
        device=x.device,
        rounds=rounds,
    )
    return taken.ratio("unpacked", "BF16")


def read_bytes_per_second(device: torch.device) -> float:
    """Measured: a sum over more memory than caches hold."""
    block = torch.ones(2**26, device=device)  # FP32
    return block.nbytes / clock.measure_seconds(block.sum, device=device).median_seconds


def columns(names: Sequence[str], rows: Sequence[Sequence]) -> dict[str, list]:
    """Rows as a table's named columns."""
    return {name: list(cells) for name, cells in zip(names, zip(*rows, strict=True), strict=True)}


def climbed(built: Built) -> dict[str, tuple[Rung, int, int, int]]:
    """By rung: what its step reads, the tokens it computes and makes, and what it launches on a GPU."""
    plain, compiled = built.rungs["FP32 compiled"], G.layers * COMPILED_LAUNCHES
    token = torch.zeros(1, 1, dtype=torch.long, device=built.device)
    eager = counted(built.eager, token, KVCache(G, 1, 1, torch.float32, built.device)).calls.total()
    rows = {"recomputed": (plain, ROOM, 1, eager), "cache": (plain, 1, 1, eager)}
    rows |= {name: (one, 1, 1, compiled) for name, one in built.rungs.items()}
    return rows | {"batch": (built.many, BATCH, BATCH, compiled)}


def ladder_columns(built: Built, taken: clock.Interleaved, read: float) -> dict[str, list]:
    """A row a rung: tokens/s, bytes and operations a token, share of the roofline at the measured read rate."""
    rows = []
    for name, (one, computed, made, _) in climbed(built).items():
        peak = declared_peak(built.device, torch.int8 if name == "batch" else torch.float32)
        seconds, moved, flops = taken.seconds(name), step_bytes(one), step_flops(computed)
        least = max(moved / read, flops / peak.flops_per_second if peak else 0.0)
        rows.append((LABELS.get(name, name), made / seconds, moved / made, flops / made, least / seconds))
    return columns(("rung", "tokens_per_second", "token_bytes", "token_flops", "roofline_share"), rows)


def predicted_columns(built: Built) -> dict[str, list]:
    """A row a rung: bytes, operations and launches of a step; an H100's least seconds, what binds, in one graph."""
    peak, rows = gpu_peak("H100 SXM", "bfloat16"), []
    assert peak is not None
    for name, (one, computed, _, launches) in climbed(built).items():
        flops, moved = step_flops(computed), step_bytes(one)
        least, graph = (predict_seconds(flops=flops, bytes=moved, peak=peak, launches=n) for n in (launches, 1))
        bound = binding(flops=flops, bytes=moved, peak=peak, launches=launches)
        rows.append((LABELS.get(name, name), moved, flops, launches, least, bound, graph))
    names = ("rung", "step_bytes", "step_flops", "launches_count", "predicted_seconds", "bound_by", "graph_seconds")
    return columns(names, rows)


def predicted_values(planned: Mapping[str, list]) -> dict[str, float]:
    """Registered before any recording from that device."""
    step, graph = (
        dict(zip(planned["rung"], planned[f"{kind}_seconds"], strict=True)) for kind in ("predicted", "graph")
    )
    fp32, int4 = RESPONDING
    return {
        "h100_eager_seconds": step[LABELS["cache"]],
        "h100_compiled_seconds": step[int4],
        "h100_fp32_graph_seconds": graph[fp32],
        "h100_int4_graph_seconds": graph[int4],
        "h100_launch_seconds": LAUNCH_SECONDS,
        "layer_launches_count": COMPILED_LAUNCHES,
    }


# A whole response.


def response_values(built: Built, rounds: int, baseline: bool = False) -> dict[str, float]:
    """FP32's time over exact INT4's: for a short prompt and a long answer, and for the first token alone."""
    ids, (fp32, int4), calls = prompt(ASKED, device=built.device), RESPONDING, dict[str, clock.Call]()

    def respond(one: Rung, reader: Rung) -> None:
        one.written(ids, reader.read(ids), ROOM - ASKED)

    for name in RESPONDING:
        used = fp32 if baseline else name
        calls[f"first, {name}"] = partial(built.readers[used].read, ids)
        calls[name] = partial(respond, built.rungs[used], built.readers[used])
    taken = clock.interleave(calls, device=ids.device, rounds=rounds)
    return {
        "response_ratio": taken.ratio(fp32, int4),
        "first_ratio": taken.ratio(f"first, {fp32}", f"first, {int4}"),
        "fp32_response_seconds": taken.seconds(fp32),
        "int4_response_seconds": taken.seconds(int4),
    }


# Where the time of many rows goes.


# --8<-- [start:parts]
def part_flops(batch: int, new: int, room: int) -> dict[str, float]:
    """Operations of a step by part: of passes, those on each number that they go through."""
    tokens, wide, heads = batch * new, G.head_dim * (G.heads + 2 * G.kv_heads), batch if new == 1 else 0
    pairs = batch * (room * (room + fast.PROMPT_BLOCK) / 2 if new == room else new * room)  # blocks see no later ones
    return {
        "INT8 products": step_flops(tokens, room=0) - 2 * (tokens - heads) * G.hidden * G.vocabulary,
        "quantizing": G.layers * tokens * 4 * (3 * G.hidden + G.ffn),  # absolute, largest, divided, rounded
        "rescaling": G.layers * tokens * 3 * (wide + 2 * G.hidden + 2 * G.ffn),  # a float, times two scales
        "attention": G.layers * 4 * G.heads * G.head_dim * pairs,
        "the rest": G.layers * tokens * (10 * G.hidden + 3 * wide + 5 * G.ffn),  # norms, positions, SiLU
    }


# --8<-- [end:parts]


def part_calls(one: Rung, batch: int) -> dict[str, clock.Call]:
    """A step's parts alone, through all layers at its shapes: products of the library, passes as compiled."""
    layers, keys, values, new = one.weights["layers"], one.cache["keys"], one.cache["values"], one.new
    device, room = keys[0].device, keys[0].shape[2]
    inputs = [torch.randn(batch * new, layers[0][part]["codes"].shape[1], device=device) for part in PARTS]
    coded = [fast.quantized(x) for x in inputs]
    sums = [int8_product(codes, layers[0][part]["codes"].T) for (codes, _), part in zip(coded, PARTS, strict=True)]
    scales = [(scale, layers[0][part]["scale"]) for (_, scale), part in zip(coded, PARTS, strict=True)]
    queries = torch.randn(batch, G.kv_heads, G.heads // G.kv_heads, new, G.head_dim, device=device)
    places = torch.arange(room - new, room, device=device)
    quantize, rescale, attend = (fused(part) for part in (_quantized, _rescaled, fast.attend))

    def products() -> None:
        for layer in layers:
            for (codes, _), part in zip(coded, PARTS, strict=True):
                int8_product(codes, layer[part]["codes"].T)
        if batch > 1:  # of a prompt the head takes the last token alone
            int8_product(coded[0][0], one.weights["head"]["codes"].T)

    def attention() -> None:
        for layer_keys, layer_values in zip(keys, values, strict=True):
            attend(queries, layer_keys, layer_values, places)

    return {
        "INT8 products": products,
        "quantizing": lambda: [quantize(inputs) for _ in layers],
        "rescaling": lambda: [rescale(sums, scales) for _ in layers],
        "attention": attention,
    }


def _quantized(inputs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [fast.quantized(x) for x in inputs]


def _rescaled(sums: list[Tensor], scales: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    return [fast.rescaled(one, *of) for one, of in zip(sums, scales, strict=True)]


def fused(function: Callable) -> Callable:
    """Compiled where there is a compiler."""
    try:
        return compiled_whole(function)
    except NoCompilerError:
        return function


def part_columns(built: Built, rounds: int) -> dict[str, list]:
    """A row a part of a prompt's step and of a batch's; the rest is what the parts leave of the step."""
    rows: list[tuple] = []
    cases = {"prompt": (built.reading, prompt(PREFILL), 0), "batch": (built.many, prompt(1, BATCH), ROOM - 1)}
    for case, (one, ids, start) in cases.items():
        ids = ids.to(built.device)
        calls = part_calls(one, len(ids)) | {"step": partial(one, ids, start)}
        with torch.no_grad():
            for call in calls.values():
                call()  # compiles
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):  # nor are arguments checked in a step
                taken = clock.interleave(calls, device=built.device, rounds=rounds)
        seconds = {part: taken.seconds(part) for part in taken.samples}
        whole = seconds.pop("step")
        seconds["the rest"] = whole - sum(seconds.values())
        flops = part_flops(len(ids), one.new, one.cache["keys"][0].shape[2])
        rows += [(case, part, took, took / whole, flops[part], flops[part] / took) for part, took in seconds.items()]
    return columns(("step", "part", "part_seconds", "part_share", "part_flops", "part_flops_per_second"), rows)


def part_values(spent: Mapping[str, list], device: torch.device) -> dict[str, float]:
    """What the page says of it; the products' rate beside the declared one, and all that the best peer computes."""
    parts = list(zip(spent["step"], spent["part"], strict=True))
    share = dict(zip(parts, spent["part_share"], strict=True))
    rate = dict(zip(parts, spent["part_flops_per_second"], strict=True))
    found = {f"{step}_{part.split()[-1]}_share": value for (step, part), value in share.items()}
    peak, prompt_flops = declared_peak(device, torch.int8), sum(part_flops(1, PREFILL, PREFILL).values())
    return {
        **found,
        "prompt_products_flops_per_second": rate["prompt", "INT8 products"],
        "batch_products_flops_per_second": rate["batch", "INT8 products"],
        "prompt_attention_flops_per_second": rate["prompt", "attention"],
        "declared_flops_per_second": peak.flops_per_second if peak else 0.0,
        "peer_prompt_flops_per_second": peer_best(peers(), "prefill") * prompt_flops / PREFILL,
    }


# What `make peers` wrote.


def peers() -> dict[str, Any]:
    """The recorded peers, and the machine, threads and date they were recorded with."""
    return json.loads(RECORDED_PEERS.read_text(encoding="utf-8"))


def variants(recorded: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Tokens a second by variant and measure."""
    entries = recorded["runtimes"].values()
    return {name: rates for entry in entries for name, rates in entry.get("tokens_per_second", {}).items()}


def peer_columns(recorded: Mapping[str, Any]) -> dict[str, list]:
    """A row a variant; "not measured" stands where a runtime could not run, a dash where it was not asked."""
    rows = []
    for name, entry in recorded["runtimes"].items():
        for variant, rates in entry.get("tokens_per_second", {}).items():
            cells = (f"{rates[kind]:,.0f}" if kind in rates else "–" for kind in KINDS)
            rows.append((variant, entry["version"], *cells))
        if "not_measured" in entry:
            rows.append((name, entry["version"], *["not measured"] * len(KINDS)))
    return columns(("runtime", "version", *(f"{kind}_rate" for kind in KINDS)), rows)


def peer_run(recorded: Mapping[str, Any]) -> dict[str, list]:
    """When, where and on how many threads, in words."""
    return {name: [str(recorded[name])] for name in ("date", "machine", "threads")}


def peer_values(recorded: Mapping[str, Any]) -> dict[str, float]:
    """Ours over theirs, from one run."""
    rates = variants(recorded)
    theirs = {name: rate for name, rate in rates.items() if not name.startswith("ours")}
    exact, best = rates["ours, INT4 blocks, exact"]["decode"], rates["ours, INT8 and lookup, copying"]["decode"]
    found: dict[str, float] = {}
    for short, start in {"llama": "llama.cpp", "openvino": "OpenVINO"}.items():
        peer = next(rate["decode"] for name, rate in theirs.items() if name.startswith(start))
        found |= {f"exact_{short}_ratio": exact / peer, f"copying_{short}_ratio": best / peer}
    for kind in ("prefill", "batch"):
        found[f"{kind}_peer_ratio"] = rates["ours, INT8 on both sides"][kind] / peer_best(recorded, kind)
    return found


def peer_best(recorded: Mapping[str, Any], kind: str) -> float:
    """Tokens a second of the fastest runtime that is not ours."""
    return max(rate[kind] for name, rate in variants(recorded).items() if not name.startswith("ours"))


# All of it.


@dataclass
class Built:
    """Every rung, and the plain decoder that they are compared with."""

    device: torch.device
    eager: Any
    rungs: dict[str, Rung]  # by name, a token a step
    readers: dict[str, Rung]  # a prompt of `ASKED` tokens a step, into the cache of the rung of that name
    looked: Rung
    many: Rung
    reading: Rung  # a prompt of `PREFILL` tokens a step


def build(device: torch.device | str | None = None) -> Built:
    """Weights stored for every rung and their steps loaded, or compiled where `measured prepare` has not."""
    target, state = pick(device), smollm2.load_state()
    rungs = {name: rung(name, state, device=target) for name in RUNGS}
    return Built(
        target,
        smollm2.decoder(torch.float32, target),
        rungs,
        readers={name: rungs[name].taking(ASKED) for name in RESPONDING},
        looked=rung("INT8 rows", state, lookup=True, device=target),
        many=rung("INT8 rows", state, batch=BATCH, device=target),
        reading=rung("INT8 rows", state, prefill=PREFILL, device=target),
    )


def loss_values(rungs: Mapping[str, Rung], tokens: int) -> dict[str, float]:
    """What a rung's rounding costs on unseen text."""
    plain = loss_nats(rungs["FP32 compiled"], tokens)
    return {f"{short}_loss_nats": loss_nats(rungs[SHORT[short]], tokens) - plain for short in ("bf16", "int8")}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; each rung states its own `dtype`."""
    return _measured(small, pick(device), baseline=False)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every faster rung replaced by the one it is compared with."""
    return _measured(small, pick(device), baseline=True)


def _measured(small: bool, device: torch.device, baseline: bool) -> dict[str, float]:
    clock.fix_allocator()
    built, new, rounds = build(device), 8 if small else NEW, 7 if small else 21
    taken, read = timed(built.rungs, built.eager, built.many, rounds, baseline), read_bytes_per_second(device)
    return {
        **count_values(built.rungs),
        **token_values(built.rungs, built.eager, new),
        **loss_values(built.rungs, 32 if small else 512),
        **lookup_values(built.looked, new),
        **time_values(taken, 1 if baseline else BATCH),
        **response_values(built, rounds, baseline),
        "unpack_ratio": unpack_ratio(built.rungs["INT4 blocks, exact"].weights, rounds, baseline),
        "read_bytes_per_second": read,
        "fp32_read_share": step_bytes(built.rungs["FP32 compiled"]) / taken.seconds("FP32 compiled") / read,
        **part_values(part_columns(built, rounds), device),
        **predicted_values(predicted_columns(built)),
        **peer_values(peers()),
    }


LABELS = {"recomputed": "eager FP32, no cache", "cache": "eager FP32, cache", "batch": "INT8 rows, batch"}
KINDS = ("decode", "prefill", "batch")


if __name__ == "__main__":
    from measured.values import report

    report("throughput/the_ladder", measure())
