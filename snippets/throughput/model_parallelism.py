"""Tensor or pipeline parallel: which cuts latency?

Claim: tensor parallelism divides what each process reads for a token, at the price of all-reduces in every layer, and
shortens a token where the link is fast. A pipeline divides the layers: a token still passes all of them in turn, so it
raises throughput and leaves one request as slow as it was. Outputs are those of one process.

Run: python -m snippets.throughput.model_parallelism
Over machines, once on each: torchrun --nnodes N --nproc-per-node M --rdzv-backend c10d --rdzv-endpoint HOST:PORT
    -m snippets.throughput.model_parallelism
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn

from snippets.instruments import clock
from snippets.instruments.datasheets import Peak, gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.instruments.roofline import predict_seconds
from snippets.models import files, smollm2, texts
from snippets.models.cards import CARDS
from snippets.models.decoder import Decoder, KVCache, from_state, rotation
from snippets.models.shapes import LLAMA_3_8B, LLAMA_3_70B, Geometry, parameters

Values = dict[str, float]
Found = TypeVar("Found")
LOCAL_RANKS = 3  # SmolLM2 has as many KV heads
LIMIT_SECONDS = 100.0  # after which processes that wait for each other are ended


@dataclass(frozen=True)
class Scale:
    """How much is measured; `real` without it runs no model, `overlapped` without it never fills the pipeline."""

    prompt_tokens: int = 48
    new_tokens: int = 16
    step_rounds: int = 9
    rounds: int = 7
    stage_seconds: float = 10e-3
    microbatches: tuple[int, ...] = (1, 2, 4, 8, 16)
    timed_microbatches: int = 12
    real: bool = True
    overlapped: bool = True


SMALL = Scale(prompt_tokens=16, new_tokens=4, step_rounds=2, stage_seconds=3e-3, microbatches=(1, 4))
CONTROL = replace(SMALL, stage_seconds=2e-3, microbatches=(1,), real=False, overlapped=False)


class Wire:
    """What this process hands over, counted on the way to `torch.distributed`."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.reset()

    def reset(self) -> None:
        """Count from nothing again."""
        self.reduces, self.reduced_bytes, self.sends, self.sent_bytes = 0, 0, 0, 0

    def all_reduce(self, x: Tensor) -> Tensor:
        """Sum x over all processes, in place."""
        self.reduces, self.reduced_bytes = self.reduces + 1, self.reduced_bytes + x.nbytes
        dist.all_reduce(x)
        return x

    def send(self, x: Tensor, to: int) -> None:
        """Hand x to another rank and wait until it is gone."""
        self.sends, self.sent_bytes = self.sends + 1, self.sent_bytes + x.nbytes
        dist.send(x, to)

    def exchange(self, out: Tensor, to: int, like: Tensor, source: int) -> Tensor:
        """Send to one rank while receiving from another."""
        self.sends, self.sent_bytes = self.sends + 1, self.sent_bytes + out.nbytes
        got = torch.empty_like(like)
        for work in dist.batch_isend_irecv([dist.P2POp(dist.isend, out, to), dist.P2POp(dist.irecv, got, source)]):
            work.wait()
        return got


# --8<-- [start:tensor]
COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # split by outputs: whole heads, whole FFN units
ROW = ("o_proj", "down_proj")  # split by inputs: each process has a partial sum of all outputs


def shard_geometry(geometry: Geometry, ranks: int) -> Geometry:
    """One process's share: a model with fewer heads and a narrower FFN. ValueError if they do not divide."""
    if geometry.kv_heads % ranks or geometry.ffn % ranks:
        sizes = f"{geometry.kv_heads} KV heads and an FFN of {geometry.ffn}"
        raise ValueError(f"{geometry.name}: {sizes} do not divide by {ranks} processes")
    return replace(
        geometry, heads=geometry.heads // ranks, kv_heads=geometry.kv_heads // ranks, ffn=geometry.ffn // ranks
    )


def shard_state(state: Mapping[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """Its weights: slices of the matrices; norms, embedding and head whole."""
    axes = {**dict.fromkeys(COLUMN, 0), **dict.fromkeys(ROW, 1)}
    found = {}
    for name, tensor in state.items():
        axis = axes.get(name.removesuffix(".weight").rpartition(".")[2])
        found[name] = tensor if axis is None else tensor.chunk(ranks, axis)[rank].clone()
    return found


def tensor_parallel(geometry: Geometry, state: Mapping[str, Tensor], wire: Wire, device: torch.device) -> Decoder:
    """The plain decoder on its share, with a hook behind each row-split matrix that sums over the processes."""
    own = shard_state(state, wire.rank, wire.ranks)
    decoder = from_state(shard_geometry(geometry, wire.ranks), own, torch.float32, device)
    for name, module in decoder.named_modules():
        if name.endswith(ROW):
            module.register_forward_hook(lambda module, inputs, out: wire.all_reduce(out))
    return decoder


# --8<-- [end:tensor]


# --8<-- [start:stage]
class Stage:
    """Consecutive layers of a decoder: receives hidden states, sends them on; the last one has logits."""

    def __init__(self, whole: Decoder, wire: Wire) -> None:
        rank, ranks = wire.rank, wire.ranks
        self.wire, self.first, self.last = wire, rank == 0, rank == ranks - 1
        layers = whole.geometry.layers
        self.layers = whole.layers[layers * rank // ranks : layers * (rank + 1) // ranks]
        self.geometry = replace(whole.geometry, layers=len(self.layers))
        self.like = whole.norm.weight
        self.embed = whole.embed_tokens if self.first else None
        self.head = nn.Sequential(whole.norm, whole.lm_head) if self.last else None

    def __call__(self, ids: Tensor, cache: KVCache) -> Tensor | None:
        """Logits (batch, new, vocabulary) on the last rank; other ranks need of ids (batch, new) the shape."""
        if self.embed is not None:
            x = self.embed(ids)
        else:
            x = self.like.new_empty(*ids.shape, self.geometry.hidden)
            dist.recv(x, self.wire.rank - 1)
        cos, sin = rotation(self.geometry, cache.length, ids.shape[1], x)
        for layer, block in enumerate(self.layers):
            x = block(x, cos, sin, cache, layer)
        cache.length += ids.shape[1]
        if self.head is not None:
            return self.head(x)
        self.wire.send(x, self.wire.rank + 1)
        return None


# --8<-- [end:stage]


# --8<-- [start:ring]
def ring_all_reduce(x: Tensor, wire: Wire) -> Tensor:
    """Sum contiguous x over all ranks, in place: every rank talks to its neighbours alone.

    First each chunk travels once around and gathers its sum, then the sums travel around. A rank sends
    its share of the tensor, one over the ranks, in every step (Patarasuk and Yuan, Bandwidth optimal all-reduce).
    """
    rank, ranks = wire.rank, wire.ranks
    chunks = x.view(-1).tensor_split(ranks)
    for step in range(2 * (ranks - 1)):
        mine, theirs = chunks[(rank - step) % ranks], chunks[(rank - step - 1) % ranks]
        got = wire.exchange(mine, (rank + 1) % ranks, theirs, (rank - 1) % ranks)
        theirs.copy_(theirs + got if step < ranks - 1 else got)
    return x


# --8<-- [end:ring]


# --8<-- [start:schedule]
def schedule(stages: int, microbatches: int) -> dict[tuple[int, int], int]:
    """The slot in which each (stage, microbatch) runs: after its predecessor's stage and its stage's predecessor."""
    slots: dict[tuple[int, int], int] = {}
    for microbatch in range(microbatches):
        for stage in range(stages):
            before = slots.get((stage - 1, microbatch), -1), slots.get((stage, microbatch - 1), -1)
            slots[stage, microbatch] = max(before) + 1
    return slots


def schedule_values(stages: int = LOCAL_RANKS, microbatches: int = 12) -> Values:
    """Slots of a pipeline whose stages all take one slot, and how many of all stages' slots are idle."""
    slots, alone = schedule(stages, microbatches), schedule(stages, 1)
    length = max(slots.values()) + 1
    return {
        "stages_count": stages,
        "microbatches_count": microbatches,
        "slots_count": length,
        "pipeline_slots_count": stages * length,
        "idle_count": stages * length - len(slots),
        "request_slots_count": max(alone.values()) + 1,
    }


# --8<-- [end:schedule]


# --8<-- [start:predict]
@dataclass(frozen=True)
class Link:
    """What joins the cards: seconds of a step of the ring, bytes/s one way."""

    step_seconds: float
    bytes_per_second: float


BASE_SECONDS = 6.6e-6  # NCCL's tuning table: what an all-reduce costs before its first step (ring, LL)
LINKS = {
    "NVLink": Link(0.6e-6, 900e9 / 2),
    "PCIe": Link(1.0e-6, 128e9 / 2),
    "network": Link(2.7e-6, 400e9 / 8),  # one card a machine
    "free": Link(0.0, float("inf")),
}


def all_reduce_seconds(cards: int, message_bytes: float, link: Link) -> float:
    """NCCL's own model of its ring: a base, then steps; each moves one card's share of the message."""
    if cards == 1:
        return 0.0
    base = BASE_SECONDS if link.step_seconds else 0.0
    return base + 2 * (cards - 1) * (link.step_seconds + message_bytes / cards / link.bytes_per_second)


def tensor_seconds(geometry: Geometry, cards: int, link: Link, tokens: int = 1) -> float:
    """A forward pass on H100s in BF16: roofline of a card's share, then every all-reduce; no cache, no launches."""
    peak, counted = h100(), parameters(geometry)
    head = geometry.vocabulary * geometry.hidden
    flops = 2 * (counted.linear * tokens + head)
    share = predict_seconds(flops=flops / cards, bytes=2 * (counted.linear + head) / cards, peak=peak, launches=0)
    message = tokens * geometry.hidden * 2
    return share + 2 * geometry.layers * all_reduce_seconds(cards, message, link)


# --8<-- [end:predict]


def h100() -> Peak:
    """The declared peak behind every prediction here."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    return peak


def token_columns(geometry: Geometry, counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32)) -> dict[str, list]:
    """Predicted time of a token by link and cards."""
    rows = [(name, n, tensor_seconds(geometry, n, LINKS[name])) for name in LINKS for n in counts]
    names, cards, seconds = zip(*rows, strict=True)
    return {"link": list(names), "cards_count": list(cards), "token_seconds": list(seconds)}


def gain_columns(prompt: int = 4096, cards: int = 8) -> dict[str, list]:
    """How much faster than one card: a token and a prompt, by model and link."""
    rows = [
        (
            geometry.name,
            name,
            *(tensor_seconds(geometry, 1, link, n) / tensor_seconds(geometry, cards, link, n) for n in (1, prompt)),
        )
        for geometry in (LLAMA_3_8B, LLAMA_3_70B)
        for name, link in LINKS.items()
        if name != "free"
    ]
    models, links, decode, prefill = zip(*rows, strict=True)
    return {"model": list(models), "link": list(links), "decode_ratio": list(decode), "prefill_ratio": list(prefill)}


def predicted_values(cards: int = 8, many: int = 16, far: str = "network") -> Values:
    """Registered for Llama-3-8B on H100s, and what one card would take."""
    near, shape = LINKS["NVLink"], LLAMA_3_8B
    counted = parameters(shape)
    one = tensor_seconds(shape, 1, near)
    return {
        "h100_cards_count": cards,
        "h100_bytes_per_second": h100().bytes_per_second,
        "h100_card_seconds": one,
        "h100_nvlink_seconds": tensor_seconds(shape, cards, near),
        "h100_nvlink_ratio": one / tensor_seconds(shape, cards, near),
        "h100_reduce_seconds": all_reduce_seconds(cards, 2 * shape.hidden, near),
        "h100_read_bytes": 2 * (counted.linear + counted.head),
        "h100_layers_count": shape.layers,
        "h100_far_ratio": one / tensor_seconds(shape, many, LINKS[far]),
        "h100_pipeline_seconds": one + (cards - 1) * all_reduce_seconds(2, 2 * shape.hidden, near) / 2,
        # Each launched from Python: the matrices and the all-reduces alone, on every card the same number.
        "h100_launched_seconds": predict_seconds(flops=0, bytes=0, peak=h100(), launches=(7 + 2) * shape.layers),
    }


def card_bytes(geometry: Geometry, cards: int) -> tuple[float, int]:
    """BF16 bytes of weights on a card (vocabulary split as well), and of a token's cache.

    A KV head is not split: where cards outnumber the heads, cards share one and each keeps all of it.
    """
    kv_heads = max(1, geometry.kv_heads // cards)
    return parameters(geometry).total * 2 / cards, geometry.layers * 2 * kv_heads * geometry.head_dim * 2


def fit_columns(geometry: Geometry = LLAMA_3_70B, card: str = "80") -> dict[str, list]:
    """What a card holds, and how many tokens of cache fit beside the weights."""
    usable, counts = CARDS[card].usable_bytes, (1, 2, 4, 8, 16)
    held = [card_bytes(geometry, n) for n in counts]
    return {
        "cards_count": list(counts),
        "card_weights_bytes": [weights for weights, _ in held],
        "card_token_bytes": [token for _, token in held],
        "cached_tokens": [max(0, int((usable - weights) // token)) for weights, token in held],
    }


def fit_values(geometry: Geometry = LLAMA_3_70B, card: str = "80") -> Values:
    """The fewest cards that hold the weights, and the cache of a token on as many cards as KV heads and on more."""
    usable, heads = CARDS[card].usable_bytes, geometry.kv_heads
    return {
        "llama_weights_bytes": parameters(geometry).total * 2,
        "card_usable_bytes": usable,
        "needed_cards_count": next(n for n in range(1, 99) if card_bytes(geometry, n)[0] <= usable),
        "llama_token_bytes": card_bytes(geometry, 1)[1],
        "split_token_bytes": card_bytes(geometry, heads)[1],
        "beyond_token_bytes": card_bytes(geometry, 2 * heads)[1],
        "llama_kv_heads_count": heads,
    }


def prompt_ids(tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """The first tokens of a real text, (batch of one, tokens)."""
    return smollm2.encode(texts.address())[:, :tokens].to(device)


def relative_difference(one: Tensor, other: Tensor) -> float:
    """Norm of the difference over the norm of the other."""
    return float((one - other).double().norm() / other.double().norm())


class Runner:
    """Greedy decoding with a cache of its own, by one process, by a shard, or by a stage."""

    def __init__(self, forward: Callable[[Tensor, KVCache], Tensor | None], geometry: Geometry, device: torch.device):
        self.forward, self.geometry, self.device = forward, geometry, device

    def cache(self, tokens: int) -> KVCache:
        """An FP32 cache of this process's share."""
        return KVCache(self.geometry, 1, tokens, torch.float32, self.device)

    def write(self, ids: Tensor, new_tokens: int, pick_next: Callable[[Tensor | None], Tensor]) -> tuple[Tensor, list]:
        """Tokens (new,), and each step's logits (on ranks that have them)."""
        cache, fresh, tokens, seen = self.cache(ids.shape[1] + new_tokens), ids, [], []
        for _ in range(new_tokens):
            logits = self.forward(fresh, cache)
            fresh = pick_next(logits)
            tokens.append(fresh)
            seen.append(logits)
        return torch.cat(tokens, 1)[0], seen

    def step(self, ids: Tensor) -> Callable[[], object]:
        """One more token behind the prompt, again and again at the same length."""
        cache = self.cache(ids.shape[1] + 1)
        self.forward(ids, cache)
        length, token = cache.length, ids[:, -1:].clone()

        def run() -> object:
            cache.length = length
            return self.forward(token, cache)

        return run


def best(logits: Tensor | None) -> Tensor:
    """The likeliest next token, (batch, one)."""
    assert logits is not None
    return logits[:, -1].argmax(-1, keepdim=True)


def conducted(
    actions: Mapping[str, Callable[[], object]],
    rank: int,
    device: torch.device,
    timed: Callable[[dict[str, Callable[[], object]]], Found],
) -> Found | None:
    """Rank zero times actions in any order and number; before each call it tells the others which one to join."""
    names, code = list(actions), torch.zeros(1, dtype=torch.long, device=device)

    def tell(number: int) -> None:
        dist.broadcast(code.fill_(number), 0)

    def call(number: int) -> None:
        tell(number)
        actions[names[number]]()

    if rank == 0:
        found = timed({name: partial(call, number) for number, name in enumerate(names)})
        tell(-1)
        return found
    while True:
        dist.broadcast(code, 0)
        if int(code) < 0:
            return None
        actions[names[int(code)]]()


def model_values(scale: Scale, wire: Wire, device: torch.device) -> Values:
    """SmolLM2 by one process, by shards and by stages: outputs, bytes held, bytes moved, times."""
    geometry = smollm2.GEOMETRY
    shard_geometry(geometry, wire.ranks)  # refuses before anything is loaded
    state, ids = smollm2.load_state(), prompt_ids(scale.prompt_tokens, device)
    whole = from_state(geometry, state, torch.float32, device)
    alone = Runner(whole, geometry, device)
    tokens, logits = alone.write(ids, scale.new_tokens, best) if wire.rank == 0 else (ids[0, :0], [])
    shard = tensor_parallel(geometry, state, wire, device)
    del state
    split = Runner(shard, shard.geometry, device)
    split_tokens, split_logits = split.write(ids, scale.new_tokens, best)
    everyone = [torch.empty_like(split_tokens) for _ in range(wire.ranks)]
    dist.all_gather(everyone, split_tokens)

    stage = Stage(whole, wire)
    staged, last = Runner(stage, stage.geometry, device), wire.ranks - 1

    def from_last(logits: Tensor | None) -> Tensor:
        token = torch.empty(1, 1, dtype=torch.long, device=device) if logits is None else best(logits)
        dist.broadcast(token, last)
        return token

    staged_tokens, staged_logits = staged.write(ids, scale.new_tokens, from_last)
    prefill = staged_logits[0] if stage.head else torch.empty(*ids.shape, geometry.vocabulary, device=device)
    dist.broadcast(prefill, last)
    moved = moved_values(wire, split, staged, ids)
    values: Values = {**moved, **held_values(whole, shard, stage, split, staged, alone)}
    if wire.rank == 0:
        gaps = [float(step[0, -1].topk(2).values.diff().abs()) for step in logits]
        values |= {
            "written_tokens": scale.new_tokens,
            "tensor_equal_tokens": sum(bool((torch.stack(everyone)[:, i] == t).all()) for i, t in enumerate(tokens)),
            "stages_equal_tokens": int((staged_tokens == tokens).sum()),
            "stages_differing_count": int((prefill != logits[0]).sum()),
            "tensor_logit_difference": relative_difference(split_logits[0], logits[0]),
            "tensor_largest_difference": max(
                float((a - b)[0, -1].abs().max()) for a, b in zip(split_logits, logits, strict=True)
            ),
            "smallest_gap_difference": min(gaps),
        }
    return values | step_values(scale, wire, device, alone, split, staged, ids)


def dispatched_reduces(action: Callable[[], object]) -> int:
    """All-reduces that PyTorch itself was asked for, whoever asked."""
    # Not a TorchDispatchMode, and not Kineto: both keep the process group alive after it was destroyed, and its
    # threads then abort now and then as the interpreter ends (pytorch/pytorch#179291 tells of that end).
    with torch.autograd.profiler.profile(use_kineto=False) as profiler:
        action()
    return sum(event.count for event in profiler.key_averages() if event.key == "c10d::allreduce_")


def moved_values(wire: Wire, split: Runner, staged: Runner, ids: Tensor) -> Values:
    """Messages of a prompt and of one token, counted by the hooks and once more by PyTorch's dispatcher."""
    values: Values = {"ranks_count": wire.ranks, "prompt_tokens": ids.shape[1], "element_bytes": 4}
    values |= {"layers_count": smollm2.GEOMETRY.layers, "hidden_count": smollm2.GEOMETRY.hidden}
    wire.reset()
    step = split.step(ids)  # runs the prompt
    values |= {"prompt_reduces_count": wire.reduces, "prompt_reduce_bytes": wire.reduced_bytes // wire.reduces}
    wire.reset()
    dispatched = dispatched_reduces(step)
    values |= {"token_reduces_count": wire.reduces, "dispatched_reduces_count": dispatched}
    values["token_reduce_bytes"] = wire.reduced_bytes // wire.reduces
    staged_step = staged.step(ids)
    wire.reset()
    staged_step()
    sent = torch.tensor([wire.sends, wire.sent_bytes], device=ids.device)
    dist.all_reduce(sent)
    values |= {"token_sends_count": int(sent[0]), "token_sends_bytes": int(sent[1])}
    ring = torch.arange(split.geometry.hidden, dtype=torch.float32, device=ids.device) * (wire.rank + 1)
    whole = ring.clone()
    wire.reset()
    ring_all_reduce(ring, wire)
    dist.all_reduce(whole)
    return values | {"ring_sent_bytes": wire.sent_bytes, "ring_differing_count": int((ring != whole).sum())}


def held_values(whole: Decoder, shard: Decoder, stage: Stage, split: Runner, staged: Runner, alone: Runner) -> Values:
    """Bytes of weights and of a cache: in one process, in a shard, in the stages."""
    tokens, counted = 100, parameters(whole.geometry)
    ranks = stage.wire.ranks
    mine = storage_bytes([part for part in (stage.layers, stage.embed, stage.head) if part is not None])
    stages = torch.tensor([mine, staged.cache(tokens).nbytes], device=alone.device)
    dist.all_reduce(stages)
    return {
        "weights_bytes": storage_bytes(whole),
        "shard_bytes": storage_bytes(shard),
        "matrices_bytes": counted.linear * 4,
        "embedding_bytes": counted.embedding * 4,
        "norms_bytes": counted.norms * 4,
        "stages_bytes": int(stages[0]),
        "held_cache_bytes": alone.cache(tokens).nbytes,
        "shard_cache_bytes": split.cache(tokens).nbytes,
        "stage_cache_bytes": int(stages[1]) // ranks,
        "heads_count": whole.geometry.heads,
        "kv_heads_count": whole.geometry.kv_heads,
    }


def step_values(
    scale: Scale, wire: Wire, device: torch.device, alone: Runner, split: Runner, staged: Runner, ids: Tensor
) -> Values:
    """Seconds of one more token, in turn: one process while the others wait, shards, stages; and the messages alone."""
    message = torch.zeros(smollm2.GEOMETRY.hidden, device=device)

    through, token = staged.step(ids), torch.zeros(1, 1, dtype=torch.long, device=device)

    def stages() -> None:
        through()
        dist.broadcast(token, wire.ranks - 1)  # the first stage waits for the next token

    single = alone.step(ids) if wire.rank == 0 else (lambda: None)
    actions: dict[str, Callable[[], object]] = {
        "alone": single,
        "split": split.step(ids),
        "staged": stages,
        "reduce": partial(dist.all_reduce, message),
    }
    # The other processes' work is this one's: no foreign load.
    timed = partial(clock.interleave, device=device, rounds=scale.step_rounds, blocks=1, foreign_load_limit=1.0)
    found = conducted(actions, wire.rank, device, timed)
    if found is None:
        return {}
    names = {"alone": "alone_seconds", "split": "split_seconds", "staged": "staged_seconds", "reduce": "reduce_seconds"}
    return {value: found.seconds(name) for name, value in names.items()}


def run_pipeline(wire: Wire, microbatches: int, stage_seconds: float, overlapped: bool, x: Tensor) -> float:
    """Pass microbatches through stages that wait instead of computing; seconds that this stage was busy.

    Messages and processes are real. A waiting stage needs no core, so the schedule shows on any machine.
    """
    busy, sent, rank, last = 0.0, [], wire.rank, wire.ranks - 1
    for _ in range(microbatches):
        if rank:
            dist.recv(x, rank - 1)
        began = time.perf_counter()
        time.sleep(stage_seconds)
        busy += time.perf_counter() - began
        if rank < last:
            sent.append(dist.isend(x.clone(), rank + 1))
        if not overlapped:
            dist.barrier()  # nobody begins the next one before this one is out
    for work in sent:
        if work is not None:
            work.wait()
    return busy


def overlap_values(scale: Scale, wire: Wire, device: torch.device) -> Values:
    """How many times faster microbatches pass with the pipeline filled than one after the other."""
    x, count = torch.zeros(smollm2.GEOMETRY.hidden, device=device), scale.timed_microbatches
    ways = {"one by one": False, "filled": scale.overlapped}

    def run(overlapped: bool) -> None:
        run_pipeline(wire, count, scale.stage_seconds, overlapped, x)
        dist.barrier()

    # Who waits needs no free core.
    timed = partial(clock.interleave, device=device, rounds=scale.rounds, blocks=1, foreign_load_limit=1.0)
    found = conducted({name: partial(run, way) for name, way in ways.items()}, wire.rank, device, timed)
    return {} if found is None else {"filled_ratio": found.ratio("one by one", "filled")}


def bubble_columns(scale: Scale, wire: Wire, device: torch.device, rounds: int = 5) -> dict[str, list]:
    """Share of the stages' time that was idle, by microbatches: by the formula, and over real processes."""
    x, stages = torch.zeros(smollm2.GEOMETRY.hidden, device=device), wire.ranks
    formula = [(stages - 1) / (count + stages - 1) for count in scale.microbatches]
    shares = []
    for count in scale.microbatches:
        idle = []
        for _ in range(rounds):
            dist.barrier()
            began = time.perf_counter()
            busy = torch.tensor(
                [run_pipeline(wire, count, scale.stage_seconds, scale.overlapped, x)],
                device=device,
                dtype=torch.float32,
            )
            dist.all_reduce(busy)
            idle.append(1 - float(busy) / stages / (time.perf_counter() - began))
        shares.append(median(idle))
    counts = list(scale.microbatches)
    return {
        "microbatches_count": counts * 2,
        "idle_share": formula + shares,
        "way": ["formula"] * len(counts) + ["measured"] * len(counts),
    }


@dataclass(frozen=True)
class Group:
    """What a group of processes found: values, the bubble's columns, and the model files it read."""

    values: Values
    bubble: dict[str, list]
    files: dict[str, str]


@torch.inference_mode()
def in_group(scale: Scale, device: torch.device) -> Group:
    """Measure as one process of an initialized group; rank zero's result is the group's."""
    wire = Wire(dist.get_rank(), dist.get_world_size())
    torch.set_num_threads(1)
    values = model_values(scale, wire, device) if scale.real else {}
    values |= overlap_values(scale, wire, device)
    bubble = bubble_columns(scale, wire, device)
    dist.barrier()
    return Group(values, bubble, files.loaded())


def own_device(name: str | None, local_rank: int, local_ranks: int) -> torch.device:
    """An accelerator for each process of this machine where it has enough of them, else the CPU."""
    device = pick(name)
    if device.type == "cpu" or torch.accelerator.device_count() < local_ranks:
        return torch.device("cpu")
    torch.accelerator.set_device_index(local_rank)
    return torch.device(device.type, local_rank)


@contextmanager
def member(device: torch.device, **group: object) -> Iterator[None]:
    """In a process group over the device's own backend: NCCL between GPUs, gloo between CPUs."""
    backend = dist.get_default_backend_for_device(device)
    dist.init_process_group(backend, timeout=timedelta(seconds=LIMIT_SECONDS), **group)  # type: ignore[arg-type]
    try:
        yield
    finally:
        dist.destroy_process_group()


def _child(rank: int, ranks: int, folder: str, scale: Scale, name: str | None) -> None:
    """One process of a local group: meets the others over a file and talks over the loopback interface."""
    os.environ[clock.LOCK_HELD] = "held by the process that waits for this one"
    loopback = next((n for _, n in socket.if_nameindex() if n.startswith("lo")), None)
    if loopback:
        os.environ["GLOO_SOCKET_IFNAME"] = loopback
    device = own_device(name, rank, ranks)
    with member(device, store=dist.FileStore(f"{folder}/store", ranks), rank=rank, world_size=ranks):
        found = in_group(scale, device)
        if rank == 0:
            text = json.dumps([found.values, found.bubble, found.files])
            Path(folder, "found.json").write_text(text, encoding="utf-8")


def launch(scale: Scale, ranks: int = LOCAL_RANKS, device: str | None = None) -> Group:
    """Run the group in processes of this machine; none outlives the call, however it ends.

    Raises:
        TimeoutError: they waited for each other, or for the machine, beyond the limit.
        ProcessRaisedException: one of them failed; its traceback stands in it.
    """
    method = "spawn" if sys.platform == "win32" else "forkserver"
    if method == "forkserver":  # imports torch once for all processes
        multiprocessing.get_context(method).set_forkserver_preload([__name__])
    with clock.timing_lock(), tempfile.TemporaryDirectory() as folder:
        group = processes.start_processes(
            _child, (ranks, folder, scale, device), nprocs=ranks, join=False, daemon=True, start_method=method
        )
        deadline = time.monotonic() + LIMIT_SECONDS
        try:
            while not group.join(timeout=1.0):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{ranks} processes were not done after {LIMIT_SECONDS:.0f} s")
        finally:
            for process in group.processes:
                process.kill()
                process.join()
        values, bubble, read = json.loads(Path(folder, "found.json").read_text(encoding="utf-8"))
    for label, sha256 in read.items():
        files.note(label, sha256)
    return Group(values, bubble, read)


def group_of(scale: Scale, device: str | None = None) -> Group:
    """What processes find: those that torchrun started this one among, else processes of this machine."""
    if not dist.is_torchelastic_launched():
        return launch(scale, device=device)
    own = own_device(device, int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"]))
    with member(own):
        return in_group(scale, own)


def without_the_sum(tokens: int, ranks: int = LOCAL_RANKS) -> float:
    """How far a shard's logits are off when nobody sums: the all-reduce is no detail."""
    state, ids = smollm2.load_state(), prompt_ids(tokens)
    geometry = shard_geometry(smollm2.GEOMETRY, ranks)
    with torch.inference_mode():
        right = from_state(smollm2.GEOMETRY, state, torch.float32)(ids)
        return relative_difference(from_state(geometry, shard_state(state, 0, ranks), torch.float32)(ids), right)


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> Values:
    """Every value of the page; `small` writes fewer tokens and waits less."""
    found = group_of(SMALL if small else Scale(), device)
    return {**found.values, **schedule_values(), **predicted_values(), **fit_values()}


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> Values:
    """No all-reduce, a pipeline that is never filled, one card in place of many, and links that cost nothing."""
    one = predicted_values(cards=1)
    return {
        **launch(CONTROL, device="cpu").values,
        "tensor_logit_difference": without_the_sum(SMALL.prompt_tokens),
        **{name: one[name] for name in ("h100_nvlink_seconds", "h100_nvlink_ratio", "h100_pipeline_seconds")},
        "h100_far_ratio": predicted_values(far="free")["h100_far_ratio"],
    }


if __name__ == "__main__":
    from measured.values import report

    small = "--small" in sys.argv[1:]
    if int(os.environ.get("RANK", "0")):
        measure(small=small)
        sys.exit()  # of processes that torchrun started, rank zero reports
    report("throughput/model_parallelism", measure(small=small))
