"""Put it together: how fast can it get?

Cache, compiled graph, fewer bytes a weight, proposals from the prompt, batch: stacked on one model, each rung with its
bytes, its operations, its share of the roofline and whether it still writes the same tokens.

Run: python -m snippets.throughput.the_ladder
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

# --8<-- [start:imports]
import torch
from torch import Tensor

from snippets.instruments import clock
from snippets.instruments.device import declared_peak, pick
from snippets.instruments.memory import storage_bytes
from snippets.models import fast_decoder as fast
from snippets.models import smollm2, texts
from snippets.models.decoder import KVCache, generate

# --8<-- [end:imports]

RECORDED_PEERS = Path(__file__).with_name("recorded_peers.json")  # by `make peers`
G = smollm2.GEOMETRY
CONTEXT, NEW, ROOM, BATCH, PREFILL, LOOKED = 64, 48, 128, 32, 512, 7

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

    def decode_rate(self, ids: Tensor, new_tokens: int) -> float:
        """Tokens a second of decoding alone, after the prompt."""
        token = self.read(ids)
        began = time.perf_counter()
        self.written(ids, token, new_tokens)
        return len(ids) * (new_tokens - 1) / (time.perf_counter() - began)


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
    weights = fast.stored({n: tensor.to(device) for n, tensor in state.items()}, G, make, head, dtype)
    cache = fast.empty_cache(G, batch, room, dtype, device)
    ids = torch.zeros(batch, new, dtype=torch.long, device=device)
    return Rung(fast.compiled(fast.Greedy(G, every=lookup), ids, weights, cache), weights, cache, new)


def prepare() -> None:
    """Compile every step that the page loads, into the cache folder: two at a time, most of it is one thread's work."""
    steps: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in RUNGS]
    steps += [("INT8 rows", {"lookup": True}), ("INT8 rows", {"batch": BATCH})]
    threads = [torch.get_num_threads()] * len(steps)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(_compile, *zip(*steps, strict=True), threads):
            pass


def _compile(name: str, which: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(threads)
    rung(name, smollm2.load_state(), **which)


def prompt(tokens: int = CONTEXT, batch: int = 1, device: torch.device | str = "cpu") -> Tensor:
    """Ids (batch, tokens) of the address."""
    return smollm2.encode(texts.address()[:20_000], device)[0, : batch * tokens].view(batch, tokens).contiguous()


def copying(tokens: int = CONTEXT, device: torch.device | str = "cpu") -> Tensor:
    """A few words of the address again and again: a text that quotes itself."""
    return prompt(24, device=device).repeat(1, tokens // 24 + 1)[:, :tokens].contiguous()


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


def stored_bytes(weights: Mapping[str, Any]) -> int:
    """Bytes of the same, counted in memory."""
    kinds = ("qkv", "output", "gate_up", "down")
    return storage_bytes([[layer[kind] for kind in kinds] for layer in weights["layers"]] + [weights["head"]])


def count_values(rungs: Mapping[str, Rung]) -> dict[str, float]:
    """Bytes by formula and in memory; weights that the exact INT4 rung does not give back."""
    found: dict[str, float] = {}
    weights = G.layers * (G.hidden * G.head_dim * (2 * G.heads + 2 * G.kv_heads) + 3 * G.hidden * G.ffn)
    weights += G.hidden * G.vocabulary
    for short, name in {"fp32": "FP32 compiled", "int8": "INT8 rows", "int4": "INT4 blocks, exact"}.items():
        found |= {
            f"{short}_bytes": stored_bytes(rungs[name].weights),
            f"{short}_formula_bytes": matrix_bytes(weights, name),
        }
    plain, packed = rungs["FP32 compiled"].weights, rungs["INT4 blocks, exact"].weights
    pairs = [(packed["head"], plain["head"])]
    for kind in ("qkv", "output", "gate_up", "down"):
        pairs += [(a[kind], b[kind]) for a, b in zip(packed["layers"], plain["layers"], strict=True)]
    same = sum(int((fast.restored(a) == b["weight"]).sum()) for a, b in pairs)
    return {**found, "weights_count": weights, "restored_count": same}


def token_values(rungs: Mapping[str, Rung], eager: Any, new_tokens: int) -> dict[str, float]:
    """Of how many greedy tokens each rung writes what the plain decoder writes."""
    device = eager.embed_tokens.weight.device
    ids = prompt(device=device)
    expected = generate(eager, ids, new_tokens)
    shorts = {"fp32": "FP32 compiled", "bf16": "BF16", "int8": "INT8 rows", "int4": "INT4 blocks, exact"}
    same = {
        f"{short}_equal_tokens": int((rungs[name].generate(ids, new_tokens) == expected).sum())
        for short, name in shorts.items()
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
    steps = {name: (lambda one=one: one(ids[:, -1:], place)) for name, one in rungs.items()}
    every = {"recomputed": recomputed, "cache": cached, **steps, "batch": lambda: many(batch, place)}
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


def ladder_columns(rungs: Mapping[str, Rung], many: Rung, taken: clock.Interleaved, read: float) -> dict[str, list]:
    """A row a rung: tokens/s, bytes and operations a token, share of the roofline at the measured read rate."""
    device = many.weights["norm"].device
    plain = rungs["FP32 compiled"]
    rows = {"recomputed": (plain, ROOM, 1), "cache": (plain, 1, 1)}
    rows |= {name: (one, 1, 1) for name, one in rungs.items()} | {"batch": (many, BATCH, BATCH)}
    columns = ("rung", "tokens_per_second", "token_bytes", "token_flops", "roofline_share")
    found: dict[str, list] = {name: [] for name in columns}
    for name, (one, computed, made) in rows.items():
        peak = declared_peak(device, torch.int8 if name == "batch" else torch.float32)
        seconds, moved, flops = taken.seconds(name), step_bytes(one), step_flops(computed)
        least = max(moved / read, flops / peak.flops_per_second if peak else 0.0)
        row = (LABELS.get(name, name), made / seconds, moved / made, flops / made, least / seconds)
        for column, value in zip(found.values(), row, strict=True):
            column.append(value)
    return found


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
    columns = ("runtime", "version", *(f"{kind}_rate" for kind in KINDS))
    return {name: list(cells) for name, cells in zip(columns, zip(*rows, strict=True), strict=True)}


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
        mine = rates["ours, INT8 on both sides"][kind]
        found[f"{kind}_peer_ratio"] = mine / max(rate[kind] for rate in theirs.values())
    return found


# All of it.


@dataclass
class Built:
    """Every rung, and the plain decoder that they are compared with."""

    eager: Any
    rungs: dict[str, Rung]
    looked: Rung
    many: Rung


def build(device: torch.device | str | None = None) -> Built:
    """Weights stored for every rung and their steps loaded, or compiled where `measured prepare` has not."""
    target, state = pick(device), smollm2.load_state()
    rungs = {name: rung(name, state, device=target) for name in RUNGS}
    looked = rung("INT8 rows", state, lookup=True, device=target)
    many = rung("INT8 rows", state, batch=BATCH, device=target)
    return Built(smollm2.decoder(torch.float32, target), rungs, looked, many)


def loss_values(rungs: Mapping[str, Rung], tokens: int) -> dict[str, float]:
    """What a rung's rounding costs on unseen text."""
    plain = loss_nats(rungs["FP32 compiled"], tokens)
    return {
        "bf16_loss_nats": loss_nats(rungs["BF16"], tokens) - plain,
        "int8_loss_nats": loss_nats(rungs["INT8 rows"], tokens) - plain,
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; each rung states its own `dtype`."""
    clock.fix_allocator()
    built, new, rounds = build(device), 8 if small else NEW, 7 if small else 21
    taken = timed(built.rungs, built.eager, built.many, rounds)
    target = pick(device)
    read = read_bytes_per_second(target)
    return {
        **count_values(built.rungs),
        **token_values(built.rungs, built.eager, new),
        **loss_values(built.rungs, 32 if small else 512),
        **lookup_values(built.looked, new),
        **time_values(taken),
        "unpack_ratio": unpack_ratio(built.rungs["INT4 blocks, exact"].weights, rounds),
        "read_bytes_per_second": read,
        "fp32_read_share": step_bytes(built.rungs["FP32 compiled"]) / taken.seconds("FP32 compiled") / read,
        **peer_values(peers()),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every faster rung replaced by the one it is compared with."""
    built = build(device)
    taken = timed(built.rungs, built.eager, built.many, 7, baseline=True)
    weights = built.rungs["INT4 blocks, exact"].weights
    return {**time_values(taken, batch=1), "unpack_ratio": unpack_ratio(weights, 7, baseline=True)}


LABELS = {"recomputed": "eager FP32, no cache", "cache": "eager FP32, cache", "batch": "INT8 rows, batch"}
KINDS = ("decode", "prefill", "batch")


if __name__ == "__main__":
    from measured.values import report

    report("throughput/the_ladder", measure())
