"""Llama-3-70B on N GPUs: how many users, at what price?

Claim: users are what memory holds, speed is what one read of that memory allows, and the price of a token is the hour's
price over the tokens that are really sold in it. All are counted here, and the method is tried on a model that runs.

Run: python -m snippets.throughput.capacity_and_cost
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random

import torch

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import smollm2, texts
from snippets.models.capacity import GB, Budget, Setting, budget, token_bytes, weights_bytes
from snippets.models.cards import on_card
from snippets.models.decoder import Decoder, KVCache
from snippets.models.queueing import latencies
from snippets.models.shapes import LLAMA_3_70B, Geometry, parameters

# isort: split
from measured.values import report

MODEL, CONTEXT = "llama-3-70b", 4096
CARD_HOUR = 2  # dollars for a card and hour: stated, not quoted from a market
ANSWER, THINK = 512, 60  # tokens of an answer; seconds that a person reads and types before asking again
ASSUMED_MBU = 0.6  # what a real server might reach of the roofline: stated
TPOT_LIMIT_MS = 20  # a stated objective, under what a full card can do
DAY = (
    10,
    5,
    5,
    5,
    5,
    10,
    20,
    40,
    60,
    80,
    90,
    100,
    95,
    90,
    95,
    100,
    95,
    85,
    70,
    60,
    50,
    40,
    25,
    15,
)  # % of the peak hour
FORMATS = {"BF16": ("bf16", "bf16"), "FP8 weights": ("int8", "bf16"), "FP8 weights and cache": ("int8", "fp8")}


# --8<-- [start:step]
def asked(cards: int, stored: str = "BF16") -> Setting:
    """The model on so many H100s by tensor parallelism. FP8 weights have a scale a row: the bytes of INT8 rows."""
    weights, cache = FORMATS[stored]
    return on_card(MODEL, "80", cards=cards, weights=weights, cache=cache, context_tokens=CONTEXT)


def read_bytes(on: Setting) -> int:
    """What one card reads of the weights in a step: all but the embedding, of which a step looks up rows."""
    return weights_bytes(on.shard, on.weights) - 2 * on.shard.vocabulary * on.shard.hidden


def step_seconds(on: Setting, users: int) -> float:
    """The least time of a decode step of one card, all users at full context: its bytes, or its operations in BF16.

    What cards tell each other, and all that no datasheet knows, is left out.
    """
    peak, counted = gpu_peak("H100 SXM", "bfloat16"), parameters(on.geometry)
    assert peak is not None
    moved = read_bytes(on) + users * on.context_tokens * token_bytes(on.shard, on.cache)
    pairs = users * on.context_tokens * on.geometry.layers * on.geometry.heads * on.geometry.head_dim
    flops = 2 * users * (counted.linear + counted.head) + 4 * pairs
    return predict_seconds(flops=flops / on.cards, bytes=moved, peak=peak, launches=0)


def dollars(cards: int, tokens_per_second: float) -> float:
    """Dollars for a million tokens of output."""
    return cards * CARD_HOUR / (tokens_per_second * 3600) * 10**6


# --8<-- [end:step]


@dataclass(frozen=True)
class Node:
    """A setting filled with users."""

    on: Setting
    plan: Budget

    @property
    def users(self) -> int:
        return self.plan.most_users

    @property
    def seconds(self) -> float:
        return step_seconds(self.on, self.users)

    @property
    def speed(self) -> float:
        return self.users / self.seconds

    @property
    def price(self) -> float:
        return dollars(self.on.cards, self.speed)


def node(cards: int, stored: str = "BF16") -> Node:
    """So many cards, filled."""
    return Node(asked(cards, stored), budget(asked(cards, stored)))


def node_columns(counts: Sequence[int] = (1, 2, 4, 8)) -> dict[str, list]:
    """Every setting that fits at all: users, step, speed and price."""
    every = [(stored, node(cards, stored)) for stored in FORMATS for cards in counts]
    rows = [
        (stored, n.on.cards, n.plan.weights_bytes, n.plan.left_bytes, n.users, n.seconds, n.speed, n.price)
        for stored, n in every
        if n.users
    ]
    sizes, speeds = ("weights_bytes", "left_bytes"), ("step_seconds", "speed_tokens_per_second", "price_dollars_count")
    names = ("stored", "cards_count", *sizes, "users_count", *speeds)
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


def price_columns(counts: Sequence[int] = (2, 4, 8)) -> dict[str, list]:
    """Price by users who are really there, BF16, up to what fits."""
    rows = []
    for cards in counts:
        most = node(cards).users
        for users in sorted({2**k for k in range(10) if 2**k < most} | {most}):
            rows.append((users, dollars(cards, users / step_seconds(asked(cards), users)), f"{cards} cards"))
    return dict(zip(("users_count", "price_dollars_count", "node"), map(list, zip(*rows, strict=True)), strict=True))


def board_values(cards: int = 4) -> dict[str, int]:
    """The whiteboard, in whole numbers: a card's memory, what is left, users; users with the label read as GB."""
    found = node(cards)
    labelled = budget(replace(found.on, card_bytes=80 * GB))
    by_speed = (TPOT_LIMIT_MS * 3_350_000_000 - read_bytes(found.on)) // (CONTEXT * found.plan.token_bytes)
    return {
        "cards_count": cards,
        "context_tokens": CONTEXT,
        "card_bytes": found.plan.card_bytes,
        "all_weights_bytes": weights_bytes(LLAMA_3_70B),
        "card_weights_bytes": found.plan.weights_bytes,
        "left_bytes": found.plan.left_bytes,
        "user_bytes": found.plan.user_bytes,
        "card_token_bytes": found.plan.token_bytes,
        "users_count": found.users,
        "label_users_count": labelled.most_users,
        "halves_users_count": 2 * node(cards // 2).users,
        "card_hour_dollars_count": CARD_HOUR,
        "limit_milliseconds_count": TPOT_LIMIT_MS,
        "limit_users_count": by_speed,
        "answer_tokens": ANSWER,
        "think_seconds": THINK,
    }


def price_values() -> dict[str, float]:
    """The whiteboard's step, speed and price, those of the smallest and the largest node, and of a prompt token."""
    few, some, many = node(2), node(4), node(8)
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    prompt = 2 * parameters(LLAMA_3_70B).linear / (some.on.cards * peak.flops_per_second)
    one = step_seconds(some.on, 1)
    return {
        "step_seconds": some.seconds,
        "node_tokens_per_second": some.speed,
        "price_dollars_count": some.price,
        "two_cards_price_dollars_count": few.price,
        "eight_cards_price_dollars_count": many.price,
        "lone_price_dollars_count": dollars(some.on.cards, 1 / one),
        "prompt_token_seconds": prompt,
        "output_input_price_ratio": some.seconds / some.users / prompt,
        "lone_output_input_price_ratio": one / prompt,
        "node_mfu_share": some.speed * prompt,
        "assumed_mbu_share": ASSUMED_MBU,
    }


def day_values(day: Sequence[int] = DAY) -> dict[str, int]:
    """A stated day: each hour's load in per cent of the busiest."""
    return {"day_hours_count": len(day), "day_percent_count": sum(day)}


# --8<-- [start:little]
def little_values(requests: int = 400, window: int = 500) -> dict[str, int]:
    """Ticks spent inside a server, counted tick by tick and summed over requests; then the same of a cut trace.

    Requests come in random ticks, faster than the server answers: batches of up to eight, twelve ticks and one each.
    """
    draw, arrivals, now = Random(0), [], 0
    for _ in range(requests):
        while draw.random() >= 1 / 3:
            now += 1
        arrivals.append(now)
    taken = [int(each) for each in latencies(arrivals, lambda batch: 12 + batch, most=8)]
    left = sorted(arrival + each for arrival, each in zip(arrivals, taken, strict=True))
    inside = [bisect_right(arrivals, tick) - bisect_right(left, tick) for tick in range(left[-1])]
    done = [each for arrival, each in zip(arrivals, taken, strict=True) if arrival + each <= window]
    return {
        "trace_ticks_count": left[-1],
        "inside_ticks_count": sum(inside),
        "latencies_ticks_count": sum(taken),
        "window_ticks_count": window,
        "window_inside_ticks_count": sum(inside[:window]),
        "window_done_ticks_count": sum(done),
    }


# --8<-- [end:little]


@dataclass(frozen=True)
class Scale:
    """How much is run: batches of decode, their context, tokens of a prompt, rounds of timing."""

    batches: Sequence[int] = (1, 16)
    context: int = 256
    prompt: int = 256
    rounds: int = 9


SMALL = Scale(batches=(1, 2), context=32, prompt=64, rounds=3)


# --8<-- [start:work]
def model_flops(geometry: Geometry, rows: int, new: int, context: int) -> int:
    """Operations that the model needs, whatever is spent: two a weight and token, four a pair that attends.

    `rows` sequences of `context` tokens, of which the last `new` are computed; logits of the last alone.
    """
    counted, head = parameters(geometry), geometry.vocabulary * geometry.hidden
    pairs = new * context - new * (new - 1) // 2
    attention = 4 * geometry.layers * geometry.heads * geometry.head_dim * pairs
    return rows * (2 * new * counted.linear + 2 * head + attention)


def model_bytes(geometry: Geometry, rows: int, context: int, element_bytes: int) -> int:
    """Bytes that a decode step must read: matrices and head once, each sequence's cache once."""
    matrices = parameters(geometry).linear + geometry.vocabulary * geometry.hidden
    cached = rows * context * geometry.layers * 2 * geometry.kv_heads * geometry.head_dim
    return element_bytes * (matrices + cached)


# --8<-- [end:work]


@torch.inference_mode()
def model_calls(decoder: Decoder, scale: Scale) -> dict[str, Callable[[], object]]:
    """Decode steps by batch, at a full context, and the prefill of one prompt."""
    weight = decoder.embed_tokens.weight
    text = smollm2.encode(texts.address(), weight.device)

    def call(rows: int, new: int, context: int) -> Callable[[], object]:
        cache = KVCache(decoder.geometry, rows, context, weight.dtype, weight.device)
        ids = text[:, :new].expand(rows, new)

        def one() -> object:
            cache.length = context - new
            return decoder(ids, cache, last_only=True)

        return torch.inference_mode()(one)

    found = {f"decode, batch {rows}": call(rows, 1, scale.context) for rows in scale.batches}
    return found | {"prefill": call(1, scale.prompt, scale.prompt)}


Arrange = Callable[[dict[str, Callable[[], object]], int], dict[str, Callable[[], object]]]


def as_it_is(calls: dict[str, Callable[[], object]], prompt: int) -> dict[str, Callable[[], object]]:
    """Prefill in one go."""
    return calls


def token_by_token(calls: dict[str, Callable[[], object]], prompt: int) -> dict[str, Callable[[], object]]:
    """The baseline: a prompt computed a token a step."""
    step = next(iter(calls.values()))
    return calls | {"prefill": lambda: [step() for _ in range(prompt)]}


@dataclass(frozen=True)
class Measured:
    """What ran, with its work, its time, and the device's own read and product from the same rounds."""

    name: list[str]
    tokens: list[int]
    flops: list[int]
    moved: list[int]
    seconds: list[float]
    read_bytes_per_second: float
    product_flops_per_second: float

    def columns(self) -> dict[str, list]:
        """Speed, MBU and MFU of each, against the measured read and product."""
        return {
            "work": self.name,
            "step_seconds": self.seconds,
            "speed_tokens_per_second": [n / t for n, t in zip(self.tokens, self.seconds, strict=True)],
            "predicted_tokens_per_second": [n * self._least(i) for i, n in enumerate(self.tokens)],
            "mbu_share": [b / t / self.read_bytes_per_second for b, t in zip(self.moved, self.seconds, strict=True)],
            "mfu_share": [f / t / self.product_flops_per_second for f, t in zip(self.flops, self.seconds, strict=True)],
        }

    def _least(self, i: int) -> float:
        return 1 / max(self.moved[i] / self.read_bytes_per_second, self.flops[i] / self.product_flops_per_second)


def run_model(decoder: Decoder, scale: Scale, arrange: Arrange = as_it_is) -> Measured:
    """Time decode and prefill in turn with a plain read and a plain product of the same dtype."""
    clock.fix_allocator()
    weight, geometry = decoder.embed_tokens.weight, decoder.geometry
    device, dtype = weight.device, weight.dtype
    buffer = torch.ones(2**26, device=device)
    rows, matrix = torch.ones(256, 4096, dtype=dtype, device=device), torch.ones(4096, 4096, dtype=dtype, device=device)
    calls = arrange(model_calls(decoder, scale), scale.prompt)
    beside: dict[str, Callable[[], object]] = {"read": buffer.sum, "product": lambda: rows @ matrix}
    taken = clock.interleave(calls | beside, device=device, rounds=scale.rounds, blocks=max(1, scale.rounds // 3))
    shapes = [(batch, 1, scale.context) for batch in scale.batches] + [(1, scale.prompt, scale.prompt)]
    found = Measured(
        name=list(calls),
        tokens=[batch * new for batch, new, _ in shapes],
        flops=[model_flops(geometry, *shape) for shape in shapes],
        moved=[model_bytes(geometry, batch, context, dtype.itemsize) for batch, _, context in shapes],
        seconds=[taken.seconds(name) for name in calls],
        read_bytes_per_second=buffer.nbytes / taken.seconds("read"),
        product_flops_per_second=2 * rows.shape[0] * matrix.numel() / taken.seconds("product"),
    )
    for flops, moved, seconds in zip(found.flops, found.moved, found.seconds, strict=True):
        clock.refuse_beyond_peak(seconds, flops=flops, bytes=moved, device=device, dtype=dtype)
    return found


def model_values(found: Measured) -> dict[str, float]:
    """What the page says of the run; a token of decode against a token of the prompt comes first."""
    columns = found.columns()
    return {
        "decode_prefill_cost_ratio": found.seconds[0] / (found.seconds[-1] / found.tokens[-1]),
        "decode_tokens_per_second": columns["speed_tokens_per_second"][0],
        "predicted_decode_tokens_per_second": columns["predicted_tokens_per_second"][0],
        "decode_mbu_share": columns["mbu_share"][0],
        "decode_mfu_share": columns["mfu_share"][0],
        "prefill_mfu_share": columns["mfu_share"][-1],
        "device_read_bytes_per_second": found.read_bytes_per_second,
        "device_product_flops_per_second": found.product_flops_per_second,
    }


def work_values(scale: Scale) -> dict[str, int]:
    """Bytes that the first decode step must read, and tokens of the prompt."""
    return {
        "decode_bytes": model_bytes(smollm2.GEOMETRY, 1, scale.context, 2),
        "prompt_tokens": scale.prompt,
    }


def _values(scale: Scale, device: str | None, dtype: torch.dtype | None, arrange: Arrange) -> dict[str, float]:
    decoder = smollm2.decoder(dtype or torch.bfloat16, pick(device))
    return {
        **board_values(),
        **price_values(),
        **day_values(),
        **little_values(),
        **work_values(scale),
        **model_values(run_model(decoder, scale, arrange)),
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page; the model that runs is SmolLM2, in BF16 unless `dtype` says otherwise."""
    return _values(SMALL if small else Scale(), device, dtype, as_it_is)


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same with prompts computed token by token, and with every node as large as the smallest."""
    found = _values(SMALL if small else Scale(), device, dtype, token_by_token)
    same = found["two_cards_price_dollars_count"]
    return found | {"eight_cards_price_dollars_count": same, "price_dollars_count": same}


if __name__ == "__main__":
    report("throughput/capacity_and_cost", measure())
