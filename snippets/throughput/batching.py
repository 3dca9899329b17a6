"""What does batching buy and cost?

Claim: a decode step reads the weights once for the whole batch, so a batch multiplies tokens/s until operations cost
more than that read. Each step takes longer meanwhile: a lone request gains nothing, a queue gains its waiting time.

Run: python -m snippets.throughput.batching
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, quantiles
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from snippets.instruments import clock
from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.models import smollm2, texts
from snippets.models.decoder import Block, Decoder, KVCache, generate, random_block, rotation
from snippets.models.queueing import latencies, poisson
from snippets.models.shapes import LLAMA_3_8B, SMOLLM2_135M, Geometry

# isort: split
from measured.values import report

LAYER = replace(LLAMA_3_8B, name="one layer of Llama-3-8B", layers=1)
IDLE, BUSY = 0.2, 2.0  # arrivals, as a multiple of what a server of one request at a time can answer
WINDOW = 4.0  # how long a waiting server waits, in a lone request's seconds


@dataclass(frozen=True)
class Scale:
    """How much is measured: batches, contexts, rounds of timing, tokens compared, requests of a simulated queue."""

    batches: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    context: int = 256
    long_context: int = 4096
    rounds: int = 21
    prompt_tokens: int = 24
    checked_tokens: int = 8
    every: int = 8
    answer_tokens: int = 16
    requests: int = 1024
    loads: Sequence[float] = (0.2, 0.5, 0.8, 0.95, 2.0, 4.0, 8.0)

    def counts(self) -> dict[str, int]:
        """What the page states of it."""
        return {
            "model_context_tokens": self.prompt_tokens + 1,
            "long_context_tokens": self.long_context,
            "answer_tokens": self.answer_tokens,
            "requests_count": self.requests,
        }


# --8<-- [start:work]
class Work(NamedTuple):
    """What one decode step computes and reads: FLOP of its products, bytes of its matrices and of its cache."""

    flops: int
    weight_bytes: int
    cache_bytes: int

    @property
    def flops_per_byte(self) -> float:
        """Operations for each byte read (Williams et al., Roofline)."""
        return self.flops / (self.weight_bytes + self.cache_bytes)


def step_work(geometry: Geometry, batch: int, context: int, element_bytes: int, head: bool = False) -> Work:
    """One new token for each of `batch` sequences, each attending to `context` tokens, itself among them.

    Every matrix is read once for the batch; every sequence has a cache of its own. Norms and rotations are left out.
    """
    weights = geometry.layers * sum(rows * columns for rows, columns in geometry.linear_shapes.values())
    weights += geometry.vocabulary * geometry.hidden if head else 0
    attention = 2 * geometry.layers * geometry.heads * geometry.head_dim * context  # scores, then the weighted sum
    cached = 2 * geometry.layers * geometry.kv_heads * geometry.head_dim * context  # keys and values
    return Work(2 * batch * (weights + attention), weights * element_bytes, batch * cached * element_bytes)


Works = Mapping[int, Work]  # by batch


def works(geometry: Geometry, batches: Sequence[int], context: int, dtype: torch.dtype, head: bool = False) -> Works:
    """The work of a step by batch."""
    return {batch: step_work(geometry, batch, context, dtype.itemsize, head) for batch in batches}


# --8<-- [end:work]


# --8<-- [start:step]
def layer_step(block: Block, geometry: Geometry, batch: int, context: int) -> Callable[[], object]:
    """A decode step of one layer for a batch whose caches hold all but the newest of `context` tokens."""
    weight = block.mlp.up_proj.weight
    cache = KVCache(geometry, batch, context, weight.dtype, weight.device)
    cache.length = context - 1
    hidden = torch.ones(batch, 1, geometry.hidden, dtype=weight.dtype, device=weight.device)
    cos, sin = rotation(geometry, cache.length, 1, hidden)
    return torch.inference_mode()(lambda: block(hidden, cos, sin, cache))


# --8<-- [end:step]


class CallCounter(TorchDispatchMode):
    """Counts the operations that Python hands to PyTorch: each one costs its launch, whatever its size."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def counted(geometry: Geometry, batch: int, context: int) -> tuple[int, int]:
    """(FLOP, calls) of a step of one layer as PyTorch itself counts them, on its meta device: shapes, no memory."""
    with torch.device("meta"):
        block = Block(geometry).requires_grad_(False)
    counts = []
    for counter in (FlopCounterMode(display=False), CallCounter()):
        step = layer_step(block, geometry, batch, context)
        with counter:
            step()
        counts.append(counter.get_total_flops() if isinstance(counter, FlopCounterMode) else counter.count)
    return counts[0], counts[1]


def work_values(batch: int, context: int, dtype: torch.dtype) -> dict[str, int]:
    """A layer's work for one sequence and for a batch, by formula and by PyTorch's own counters."""
    one, many = (step_work(LAYER, size, context, dtype.itemsize) for size in (1, batch))
    (one_flops, one_calls), (many_flops, many_calls) = (counted(LAYER, size, context) for size in (1, batch))
    return {
        "batch_count": batch,
        "context_tokens": context,
        "layer_weight_bytes": one.weight_bytes,
        "single_cache_bytes": one.cache_bytes,
        "single_flops": one.flops,
        "batch_flops": many.flops,
        "counted_single_flops": one_flops,
        "counted_batch_flops": many_flops,
        "added_calls_count": many_calls - one_calls,
        "balance_tokens": one.weight_bytes * context // one.cache_bytes,  # cached tokens that cost a weights' read
    }


Steps = dict[int, Callable[[], object]]  # batch → its decode step
Arrange = Callable[[Steps], Steps]


@dataclass(frozen=True)
class Curve:
    """Seconds of a step by batch, and what the device did in the same rounds with nothing but reading or products."""

    step_seconds: dict[int, float]
    step_ratio: dict[int, float]  # of a batch of one: the median over the rounds
    read_bytes_per_second: float
    product_flops_per_second: float
    threads: int

    def speed_ratio(self, batch: int) -> float:
        """Tokens/s of a batch over those of a batch of one."""
        return batch / self.step_ratio[batch]

    @property
    def knee(self) -> int:
        """Our rule: the largest batch measured whose step takes less than two steps of a batch of one."""
        return max(batch for batch, ratio in self.step_ratio.items() if ratio < 2)


def curve(steps: Steps, work: Works, dtype: torch.dtype, device: torch.device, rounds: int) -> Curve:
    """Time every batch in turn, with a read and a product of known size beside them; refuse what cannot be."""
    clock.fix_allocator()
    buffer = torch.ones(2**26, device=device)
    rows, matrix = torch.ones(256, 4096, dtype=dtype, device=device), torch.ones(4096, 4096, dtype=dtype, device=device)
    calls: dict[str, Callable[[], object]] = {str(batch): step for batch, step in steps.items()}
    calls |= {"read": buffer.sum, "product": lambda: rows @ matrix}
    # Short blocks: a round takes long, and a neighbour spoils a whole block.
    taken = clock.interleave(calls, device=device, rounds=rounds, blocks=max(1, rounds // 3))
    seconds = {batch: taken.seconds(str(batch)) for batch in steps}
    product_flops = 2.0 * rows.shape[0] * matrix.numel()
    for batch, one in work.items():
        read = one.weight_bytes + one.cache_bytes
        clock.refuse_beyond_peak(seconds[batch], flops=one.flops, bytes=read, device=device, dtype=dtype)
    clock.refuse_beyond_peak(taken.seconds("read"), bytes=buffer.nbytes, device=device, dtype=dtype)
    clock.refuse_beyond_peak(taken.seconds("product"), flops=product_flops, device=device, dtype=dtype)
    return Curve(
        step_seconds=seconds,
        step_ratio={batch: taken.ratio(str(batch), "1") for batch in steps},
        read_bytes_per_second=buffer.nbytes / taken.seconds("read"),
        product_flops_per_second=product_flops / taken.seconds("product"),
        threads=taken.threads,
    )


def curve_columns(curve: Curve, work: Works) -> dict[str, list]:
    """A table's columns: each batch's step and speed, and the least time for its bytes and for its operations."""
    return {
        "batch_count": list(work),
        "step_seconds": [curve.step_seconds[batch] for batch in work],
        "step_ratio": [curve.step_ratio[batch] for batch in work],
        "speed_tokens_per_second": [batch / curve.step_seconds[batch] for batch in work],
        "intensity_flops_per_byte": [one.flops_per_byte for one in work.values()],
        "bytes_seconds": [(w.weight_bytes + w.cache_bytes) / curve.read_bytes_per_second for w in work.values()],
        "flops_seconds": [w.flops / curve.product_flops_per_second for w in work.values()],
    }


def layer_curve(block: Block, batches: Sequence[int], context: int, rounds: int, arrange: Arrange = dict) -> Curve:
    """Steps of one layer at the real shape by batch, every batch at the same context."""
    weight = block.mlp.up_proj.weight
    steps = arrange({batch: layer_step(block, LAYER, batch, context) for batch in batches})
    return curve(steps, works(LAYER, batches, context, weight.dtype), weight.dtype, weight.device, rounds)


def matrix_bytes(block: Block) -> int:
    """Bytes of the storage behind a layer's matrices."""
    return storage_bytes([weight for weight in block.parameters() if weight.ndim == 2])


def prompts(batch: int, tokens: int, device: torch.device) -> Tensor:
    """Different pieces of one real text, (batch, tokens)."""
    return smollm2.encode(texts.address(), device)[0, : batch * tokens].view(batch, tokens)


@torch.inference_mode()
def equal_values(decoder: Decoder, ids: Tensor, new_tokens: int, every: int) -> dict[str, float]:
    """Greedy tokens of some rows of the batch against each row alone, and how near any choice was to another."""
    together = generate(decoder, ids, new_tokens)[::every]
    alone = torch.cat([generate(decoder, row[None], new_tokens) for row in ids[::every]])
    logits = decoder(torch.cat((ids[::every], alone), dim=1))[:, ids.shape[1] - 1 : -1]
    best, second = logits.topk(2).values.unbind(-1)
    return {
        "checked_tokens": alone.numel(),
        "equal_tokens": int((together == alone).sum()),
        "smallest_gap_difference": float((best - second).min()),
    }


@torch.inference_mode()
def model_steps(decoder: Decoder, ids: Tensor, batches: Sequence[int]) -> Steps:
    """One greedy step of the whole model, ids to next ids, by batch: the first rows of one prefilled batch."""
    tokens, weight = ids.shape[1], decoder.embed_tokens.weight

    def room(batch: int) -> KVCache:
        return KVCache(decoder.geometry, batch, tokens + 1, weight.dtype, weight.device)

    filled = room(len(ids))
    first = decoder(ids, filled, last_only=True)[:, -1].argmax(-1, keepdim=True)

    def step(batch: int) -> Callable[[], object]:
        cache, fresh = room(batch), first[:batch]
        cache.keys.copy_(filled.keys[:, :batch])
        cache.values.copy_(filled.values[:, :batch])

        @torch.inference_mode()
        def one() -> Tensor:
            cache.length = tokens  # every call repeats this step, at this context
            return decoder(fresh, cache, last_only=True)[:, -1].argmax(-1)

        return one

    return {batch: step(batch) for batch in batches}


def model_curve(decoder: Decoder, ids: Tensor, batches: Sequence[int], rounds: int, arrange: Arrange = dict) -> Curve:
    """Steps of the whole model by batch, its head among the weights read; the new token is in the context."""
    weight = decoder.embed_tokens.weight
    work = works(decoder.geometry, batches, ids.shape[1] + 1, weight.dtype, head=True)
    return curve(arrange(model_steps(decoder, ids, batches)), work, weight.dtype, weight.device, rounds)


def launch_seconds(device: torch.device, rounds: int) -> float:
    """A step of a model with SmolLM2's layers and calls and next to no width: what launching alone costs."""
    thin = replace(SMOLLM2_135M, hidden=18, head_dim=2, ffn=16, vocabulary=64)
    decoder = Decoder(thin).to(device).requires_grad_(False)
    step = model_steps(decoder, torch.zeros(1, 1, dtype=torch.long, device=device), [1])[1]
    return clock.interleave({"step": step}, device=device, rounds=rounds).seconds("step")


def between(step_seconds: Mapping[int, float], batch: int) -> float:
    """Seconds of a step at any batch: on the straight line between the measured ones around it."""
    below = max(known for known in step_seconds if known <= batch)
    above = min(known for known in step_seconds if known >= batch)
    share = (batch - below) / (above - below) if above > below else 0.0
    return step_seconds[below] + share * (step_seconds[above] - step_seconds[below])


def load_columns(
    step_seconds: Mapping[int, float],
    loads: Sequence[float],
    new_tokens: int,
    requests: int,
    window: float = WINDOW,
    seed: int = 0,
) -> dict[str, list]:
    """Mean and tail latency by load and policy, every request asking for `new_tokens`; service times as measured.

    `loads` are multiples of what a server of one request at a time can answer, `window` of a lone request's seconds.
    """
    lone, most = new_tokens * step_seconds[1], max(step_seconds)
    policies = {"one at a time": (1, 0.0), "all who wait": (most, 0.0), "wait for more": (most, window * lone)}
    rows = []
    for load in loads:
        arrivals = poisson(load / lone, requests, seed)
        for policy, (size, wait) in policies.items():
            taken = latencies(arrivals, lambda batch: new_tokens * between(step_seconds, batch), size, wait)
            rows.append((load, policy, fmean(taken), quantiles(taken, n=100)[-1]))
    names = ("load_ratio", "policy", "mean_seconds", "p99_seconds")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def queue_values(columns: Mapping[str, list], idle: float = IDLE, busy: float = BUSY) -> dict[str, float]:
    """Latencies of the policies against each other at an idle and at a busy load."""
    rows = zip(*(columns[name] for name in ("load_ratio", "policy", "mean_seconds", "p99_seconds")), strict=True)
    found = {(load, policy): (mean, p99) for load, policy, mean, p99 in rows}
    alone, together, waited = "one at a time", "all who wait", "wait for more"
    return {
        "idle_together_ratio": found[idle, together][0] / found[idle, alone][0],
        "idle_waited_ratio": found[idle, waited][0] / found[idle, alone][0],
        "busy_gain_ratio": found[busy, alone][0] / found[busy, together][0],
        "busy_p99_gain_ratio": found[busy, alone][1] / found[busy, together][1],
    }


# --8<-- [start:little]
def little_values(arrivals: Sequence[int], batch_seconds: int, most: int) -> dict[str, float]:
    """Little's law on a run in whole seconds: who is inside, counted second by second, against the latencies' sum."""
    taken = latencies(arrivals, lambda batch: batch_seconds, most)
    answered = [arrival + latency for arrival, latency in zip(arrivals, taken, strict=True)]
    inside = [sum(a <= now < b for a, b in zip(arrivals, answered, strict=True)) for now in range(int(max(answered)))]
    return {"inside_seconds": sum(inside), "latencies_seconds": sum(taken), "busiest_count": max(inside)}


# --8<-- [end:little]


def ratio_values(name: str, curve: Curve) -> dict[str, float]:
    """The largest batch against a batch of one: tokens/s, and seconds of a step."""
    batch = max(curve.step_ratio)
    return {f"{name}_speed_ratio": curve.speed_ratio(batch), f"{name}_step_ratio": curve.step_ratio[batch]}


def shown_values(name: str, curve: Curve) -> dict[str, float]:
    """What this device did: seconds, its knee, its own ceilings and where they meet."""
    return {
        f"{name}_single_seconds": curve.step_seconds[1],
        f"{name}_batch_seconds": curve.step_seconds[max(curve.step_seconds)],
        f"{name}_knee_count": curve.knee,
        f"{name}_read_bytes_per_second": curve.read_bytes_per_second,
        f"{name}_product_flops_per_second": curve.product_flops_per_second,
        f"{name}_ridge_flops_per_byte": curve.product_flops_per_second / curve.read_bytes_per_second,
        f"{name}_threads_count": curve.threads,
    }


def one_by_one(steps: Steps) -> Steps:
    """The batch not batched: the rows in a loop, each as a batch of one."""

    def loop(batch: int) -> Callable[[], object]:
        return lambda: [steps[1]() for _ in range(batch)]

    return {batch: loop(batch) for batch in steps}


# The page's own batches at the ends, in the fewest rounds: for judging the claims many times over.
BRIEF = Scale((1, 64), rounds=3, checked_tokens=2, every=32)
SMALL = Scale((1, 4), context=64, long_context=256, rounds=9, prompt_tokens=8, checked_tokens=4, every=2, requests=256)


def _measured(
    scale: Scale, device: torch.device, dtype: torch.dtype, arrange: Arrange, window: float
) -> dict[str, float]:
    clock.fix_allocator()
    block, most = random_block(LAYER, dtype, device), max(scale.batches)
    layer = layer_curve(block, scale.batches, scale.context, scale.rounds, arrange)
    long = layer_curve(block, (1, most), scale.long_context, scale.rounds, arrange)
    stored = matrix_bytes(block)
    del block
    decoder, ids = smollm2.decoder(torch.float32, device), prompts(most, scale.prompt_tokens, device)
    model = model_curve(decoder, ids, scale.batches, scale.rounds, arrange)
    loads = load_columns(model.step_seconds, scale.loads, scale.answer_tokens, scale.requests, window)
    return {
        **scale.counts(),
        **work_values(most, scale.context, dtype),
        "layer_calls_count": counted(LAYER, 1, scale.context)[1],
        "layer_storage_bytes": stored,
        **ratio_values("layer", layer),
        **shown_values("layer", layer),
        "long_speed_ratio": long.speed_ratio(most),
        "long_loss_ratio": layer.speed_ratio(most) / long.speed_ratio(most),
        **equal_values(decoder, ids, scale.checked_tokens, scale.every),
        **ratio_values("model", model),
        **shown_values("model", model),
        "launch_seconds": launch_seconds(device, scale.rounds),
        "idle_load_ratio": IDLE,
        "busy_load_ratio": BUSY,
        "window_ratio": WINDOW,
        **queue_values(loads),
    }


def measure(
    *, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None, scale: Scale | None = None
) -> dict[str, float]:
    """All values of the page; `dtype` is the layer's, the whole model runs in FP32, in which equality was shown."""
    return _measured(scale or (SMALL if small else Scale()), pick(device), dtype or torch.bfloat16, dict, WINDOW)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same without batching: rows in a loop, and no waiting for company."""
    return _measured(SMALL if small else Scale(), pick(device), dtype or torch.bfloat16, one_by_one, 0.0)


if __name__ == "__main__":
    report("throughput/batching", measure())
