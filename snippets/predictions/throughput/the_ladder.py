"""Counted are each rung's stored bytes, operations and launches, on tensors without content; a step of many rows is the
sum of its parts. How well a compiler's passes use the device is left out, and so are the other runtimes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import torch

from snippets.instruments.targets import Target
from snippets.models import fast_decoder as fast
from snippets.models.decoder import Decoder
from snippets.predictions.counting import counted
from snippets.predictions.layers import ceilings
from snippets.predictions.reasons import OWN_H100, TRAINED_LOGITS
from snippets.predictions.throughput import fusion_and_runtimes
from snippets.throughput import the_ladder as page
from snippets.throughput.the_ladder import ASKED, BATCH, COMPILED_LAUNCHES, PARTS, PREFILL, ROOM, G, Rung

PEERS = "recorded of all runtimes together on one processor"
LAUNCHED_APART = "nothing is left of the step: its parts alone take more launches than the step that fuses them"
PASSES_A_BLOCK = 3
"""Launches of a block of a prompt's attention: its scores, their softmax, the weighted sum. One token takes one."""
INT8, INT32, FP32 = 1, 4, 4  # bytes


class Work(NamedTuple):
    """What is queued as one: the units that compute it, operations, bytes, launches."""

    units: str
    flops: float
    bytes: float
    launches: int

    def seconds(self, target: Target) -> float:
        """Least seconds of it. LookupError if the target has no such units."""
        return target.seconds(self.units, flops=self.flops, bytes=self.bytes, launches=self.launches)


@cache
def rung(name: str, batch: int = 1, room: int = ROOM, new: int = 1) -> Rung:
    """Its weights and cache without content; its step cannot be called."""
    make, head, dtype = page.RUNGS[name]
    with torch.device("meta"):
        state = {key: tensor for key, tensor in Decoder(G).state_dict().items() if key != "lm_head.weight"}
    weights = fast.stored(state, G, make, head, dtype)
    return Rung(fast.Greedy(G), weights, fast.empty_cache(G, batch, room, dtype, "meta"), new)


def climbed() -> dict[str, Work]:
    """By rung: its step. A row is multiplied in FP32, many rows in INT8."""
    eager, compiled = int(fusion_and_runtimes.calls()["plain_step_count"]), G.layers * COMPILED_LAUNCHES

    def step(one: Rung, tokens: int, launches: int, units: str = "float32") -> Work:
        return Work(units, page.step_flops(tokens), page.step_bytes(one), launches)

    plain = rung(page.SHORT["fp32"])
    return {
        "recomputed": step(plain, ROOM, eager),
        "cache": step(plain, 1, eager),
        **{name: step(rung(name), 1, compiled) for name in page.RUNGS},
        "batch": step(rung("INT8 rows", BATCH), BATCH, compiled, "int8"),
    }


def step_seconds(target: Target, name: str) -> float:
    """Least seconds of a rung's step. LookupError if the target has no units for it."""
    return climbed()[name].seconds(target)


def first_seconds(target: Target, name: str) -> float:
    """A short prompt's only step: many rows in FP32, the head takes one; packed matrices are restored first."""
    one, restored = rung(name), name == page.SHORT["int4"]
    numbers = G.layers * sum(rows * columns for rows, columns in G.linear_shapes.values())
    return target.seconds(
        "float32",
        flops=page.step_flops(ASKED) - 2 * (ASKED - 1) * G.hidden * G.vocabulary,
        bytes=page.step_bytes(one) + (2 * FP32 * numbers if restored else 0),
        launches=G.layers * (COMPILED_LAUNCHES + (len(PARTS) if restored else 0)),
    )


def response_values(target: Target) -> dict[str, float]:
    """A short prompt and a long answer."""
    first = {name: first_seconds(target, name) for name in page.RESPONDING}
    whole = {name: first[name] + (ROOM - ASKED - 1) * step_seconds(target, name) for name in page.RESPONDING}
    fp32, int4 = page.RESPONDING
    return {
        "response_ratio": whole[fp32] / whole[int4],
        "first_ratio": first[fp32] / first[int4],
        "fp32_response_seconds": whole[fp32],
        "int4_response_seconds": whole[int4],
    }


def unpack_ratio(target: Target) -> float:
    """A batch times a matrix restored from INT4, operation by operation, over the same in BF16."""
    packed = rung(page.SHORT["int4"]).weights["layers"][0]["gate_up"]
    plain = rung("BF16").weights["layers"][0]["gate_up"]
    x = torch.empty(BATCH, G.hidden, device="meta")
    restored = counted(fast.multiply, x, packed).seconds(target, "float32")
    return restored / counted(fast.multiply, x, plain).seconds(target, "bfloat16")


def part_works(batch: int, new: int, room: int) -> dict[str, Work]:
    """A step of many rows by part; the rest is fused with the passes and has no bytes of its own."""
    one = rung("INT8 rows", batch, room, new)
    flops, tokens, heads = page.part_flops(batch, new, room), batch * new, batch if new == 1 else 0
    read = sum(columns for _, columns in _shapes())
    written = sum(rows for rows, _ in _shapes())
    codes = [part["codes"] for part in page.matrices(one.weights)]
    moved = {
        "INT8 products": sum(part.nbytes for part in (codes if heads else codes[:-1]))
        + G.layers * tokens * (read * INT8 + written * INT32)
        + heads * (G.hidden * INT8 + G.vocabulary * INT32),
        "quantizing": G.layers * tokens * read * (FP32 + INT8),
        "rescaling": G.layers * tokens * written * (INT32 + FP32),
        "attention": page.storage_bytes(one.cache) + 2 * G.layers * tokens * G.heads * G.head_dim * FP32,
        "the rest": 0,
    }
    blocks = -(-new // fast.PROMPT_BLOCK)
    launches = {
        **dict.fromkeys(("INT8 products", "quantizing", "rescaling"), G.layers * len(PARTS)),
        "attention": G.layers * (PASSES_A_BLOCK * blocks if new > 1 else 1),
        "the rest": 0,
    }
    units = {"INT8 products": "int8", "attention": "bfloat16" if new > 1 else "float32"}
    return {part: Work(units.get(part, "float32"), flops[part], moved[part], launches[part]) for part in flops}


def _shapes() -> list[tuple[int, int]]:
    """(rows, columns) of a layer's fused matrices."""
    layer = rung("INT8 rows").weights["layers"][0]
    return [tuple(layer[part]["codes"].shape) for part in PARTS]


def part_values(target: Target) -> dict[str, float]:
    """Shares and rates of the parts of a prompt's step and of a batch's.

    Raises:
        LookupError: the target has no units for INT8.
    """
    rows: list[tuple] = []
    for case, sizes in {"prompt": (1, PREFILL, PREFILL), "batch": (BATCH, 1, ROOM)}.items():
        works = part_works(*sizes)
        seconds = {part: work.seconds(target) for part, work in works.items()}
        inside = sum(work._replace(launches=0).seconds(target) for work in works.values())
        launches = G.layers * (COMPILED_LAUNCHES - 1) + works["attention"].launches  # one of its passes is attention
        whole = max(inside, target.seconds("int8", launches=launches))
        seconds["the rest"] = whole - sum(took for part, took in seconds.items() if part != "the rest")
        for part, took in seconds.items():
            rows.append((case, part, took, took / whole, works[part].flops, works[part].flops / took if took else 0.0))
    names = ("step", "part", "part_seconds", "part_share", "part_flops", "part_flops_per_second")
    found = page.part_values(page.columns(names, rows), torch.device("cpu"))
    return found | {"declared_flops_per_second": target.peak("int8").flops_per_second}


def many_rows_values(target: Target) -> dict[str, float | str]:
    """What INT8 units are for; the reason in place of each where the target has none."""
    try:
        parts = part_values(target)
        many: Mapping[str, float | str] = {
            name: LAUNCHED_APART if name.endswith("rest_share") and value <= 0 else value
            for name, value in parts.items()
        }
        batch: float | str = BATCH * step_seconds(target, "INT8 rows") / step_seconds(target, "batch")
    except LookupError as missing:
        rates = ("prompt_products", "batch_products", "prompt_attention", "declared")
        named = [part.split()[-1] for part in page.part_flops(1, 1, 1)]
        names = [f"{step}_{part}_share" for step in ("prompt", "batch") for part in named]
        many = dict.fromkeys([*names, *(f"{rate}_flops_per_second" for rate in rates)], str(missing))
        batch = str(missing)
    return {"batch_ratio": batch, **many}


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    fp32, int4 = page.RESPONDING
    seconds = {name: step_seconds(target, name) for name in ("recomputed", "cache", fp32, int4)}
    read, _ = ceilings(target, "float32")
    return {
        **many_rows_values(target),
        "cache_ratio": seconds["recomputed"] / seconds["cache"],
        "compiled_ratio": seconds["cache"] / seconds[fp32],
        "int4_ratio": seconds[fp32] / seconds[int4],
        "read_bytes_per_second": read,
        "fp32_read_share": page.step_bytes(rung(fp32)) / seconds[fp32] / read,
        **response_values(target),
        "unpack_ratio": unpack_ratio(target),
        **dict.fromkeys(("bf16_equal_tokens", "int8_equal_tokens"), TRAINED_LOGITS),
        **dict.fromkeys((*page.peer_values(page.peers()), "peer_prompt_flops_per_second"), PEERS),
        **dict.fromkeys(H100, OWN_H100),
        "layer_launches_count": COMPILED_LAUNCHES,
    }


H100 = tuple(f"h100_{name}_seconds" for name in ("compiled", "eager", "fp32_graph", "int4_graph", "launch"))
