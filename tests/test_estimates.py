"""Every page's estimates: the stated expression gives what the project's own function gives, on a thousand draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from itertools import accumulate
from operator import or_

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from measured import estimates, project
from measured.estimates import Estimate
from measured.page import read_page
from snippets.embeddings.compressed_vectors import int8_codes, sign_codes
from snippets.embeddings.matrix_share import Shares
from snippets.embeddings.similarity_measures import nearness
from snippets.instruments.datasheets import Peak
from snippets.instruments.roofline import predict_seconds, ridge_flops_per_byte
from snippets.kv_cache.bytes_per_token import token_bytes
from snippets.kv_cache.latent_attention import LatentShape, expanded_token_bytes, latent_token_bytes
from snippets.kv_cache.paged_attention import wasted_tokens
from snippets.kv_cache.prefix_caching import reused_tokens, shared_prompts
from snippets.models import quantized_cache
from snippets.models.capacity import GB, GIB, SCHEMES, Scheme, matrix_bytes
from snippets.models.scheduler import Limits, Request, simulate
from snippets.models.shapes import Geometry
from snippets.quantization.formats_and_fast_paths import every_value
from snippets.quantization.training_memory_and_speed import kept_columns, kept_values
from snippets.quantization.weight_bytes import Format, formula_bytes, int4
from snippets.throughput.caching import expected
from snippets.throughput.capacity_and_cost import CARD_HOUR, dollars
from snippets.throughput.continuous_batching import used_share
from snippets.throughput.speculative_decoding import expected_tokens

Values = Mapping[str, float]
FOUND: dict[str, Estimate] = {
    f"{name}:{each.id}": each for name in project.question_names() for each in estimates.estimates(read_page(name))
}


def geometry(values: Values) -> Geometry:
    """A shape of what a draw names; what it does not name is irrelevant to the answer."""

    def named(field: str) -> int:
        return int(values.get(f"{field}_count", 1))

    layers, hidden, heads, kv_heads = (named(field) for field in ("layers", "hidden", "heads", "kv_heads"))
    return Geometry("drawn", layers, hidden, heads, kv_heads, named("head_dim"), 1, 1, True, "")


@cache
def users_that_fit(free_kib: float, user_kib: float) -> int:
    """Users let in one after the other, as long as the next still fits."""
    users = 0
    while (users + 1) * user_kib <= free_kib:
        users += 1
    return users


@cache
def ring_slots(tokens: int, window: int) -> int:
    """Slots that a ring has written."""
    return len({token % window for token in range(tokens)})


def latent_ratio(v: Values) -> float:
    shape = LatentShape(1, *(int(v[name]) for name in ("heads", "rank", "head_dim", "rotary", "head_dim")))
    return expanded_token_bytes(shape, 2) / latent_token_bytes(shape, 2)


def grouped_bytes(v: Values) -> float:
    """A head of several groups stores what as many heads of a group's width do."""
    heads = int(v["kv_heads"] * v["head_dim"] / v["group"])
    shape = {"layers_count": v["layers"], "head_dim_count": v["group"], "heads_count": heads, "kv_heads_count": heads}
    return quantized_cache.token_bytes(geometry(shape), quantized_cache.CacheScheme(bits=int(v["bits"]))) * v["tokens"]


@cache
def computed_tokens(shared: int, new: int, block: int) -> int:
    first, second = shared_prompts(shared, new)
    return len(second) - reused_tokens(first, second, block)


@cache
def product_flops(rows: int, weights: int) -> int:
    """What PyTorch counts for so many rows through so many weights; their shape does not matter."""
    width = 10**4
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        torch.empty(rows, width) @ torch.empty(width, weights // width)
    return int(counter.get_total_flops())


def ring_sent_bytes(v: Values) -> float:
    """Every all-reduce, every step of its ring: a chunk of the message, one over the cards."""
    cards, numbers = int(v["cards"]), int(v["tokens"] * v["hidden"])
    chunk = torch.empty(numbers, dtype=torch.uint8, device="meta").chunk(cards)[0].numel()
    rings = [chunk * v["element_bytes"] for _ in range(2 * (cards - 1))]
    return sum(sum(rings) for _ in ("attention", "feed-forward") for _ in range(int(v["layers"])))


@cache
def static_share(places: int, long: int, short: int) -> float:
    """A whole batch, simulated step by step."""
    requests = [Request(0, 1, long), *[Request(0, 1, short)] * (places - 1)]
    return used_share(simulate(requests, Limits("static", batch=places)), places)


def score_bytes(v: Values) -> int:
    """Of a tensor that has a shape and no storage."""
    shape = (int(v["sequences"]), int(v["heads"]), int(v["tokens"]), int(v["tokens"]))
    dtype = {2: torch.bfloat16, 4: torch.float32}[int(v["element_bytes"])]
    return torch.empty(shape, dtype=dtype, device="meta").nbytes


def queue_wait(load: float) -> float:
    """Services that a request waits, without its own."""
    return expected(load, 0) - 1


@cache
def recipe_bytes(name: str) -> float:
    """Bytes a parameter that a trainer holds after a real step, without AdamW's step counters."""
    values = kept_values(recipe_columns())
    return (values[f"{name}_kept_bytes"] - 4 * values["tensors_count"]) / values["weights_count"]


@cache
def recipe_columns() -> dict[str, list]:
    """Every recipe after a real step."""
    return kept_columns()


@cache
def neighbours_apart(mantissa_bits: int, number: float) -> float:
    """The next number of a format above the greatest that is not above `number`, less that one: read from all codes."""
    dtype = {10: torch.float16, 7: torch.bfloat16, 3: torch.float8_e4m3fn, 2: torch.float8_e5m2}[mantissa_bits]
    values = every_value(dtype)
    below = int(torch.searchsorted(values, number, right=True)) - 1
    return float(values[below + 1] - values[below])


def moment_bytes(hidden: int, wide: int) -> int:
    """Bytes of a second moment for each distinct input of a layer, from the shapes of its matrices."""
    shapes = Geometry("drawn", 1, hidden, 1, 1, hidden, wide, 1, True, "").linear_shapes
    read = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")  # one reader of every input
    return sum(torch.empty(shapes[name][1], shapes[name][1], device="meta").nbytes for name in read)


STORED_IN = {16: SCHEMES["bf16"], 8: Scheme("FP8", 8), 4.25: SCHEMES["int4"]}  # by bits a weight, scales counted


def loss_at(v: Values) -> float:
    """Loss that grows with the square of a noise that doubles bit by bit."""
    noise = 1
    for _ in range(int(v["narrow_bits"]), int(v["wide_bits"])):
        noise *= 2
    return v["added_nats"] * noise**2


def share_of_ends(model: Shares) -> float:
    """Share of a model that is not its body."""
    return 1 - model.body / model.total


@cache
def vector_bytes(dims: int, dimension_bits: int) -> int:
    """Bytes of one vector's codes, as they lie in memory."""
    vector = torch.linspace(-1, 1, dims)[None]
    parts = vector.unflatten(1, (-1, 4)).argmax(2).to(torch.uint8)  # any name of a part that fits a byte
    made = {1: [sign_codes(vector)], 2: [parts], 9: [sign_codes(vector), int8_codes(vector)], 16: [vector.bfloat16()]}
    return sum(codes.nbytes for codes in made[dimension_bits])


def unit_distance(cosine: float) -> float:
    """Euclidean distance of two unit vectors at that cosine, FP64."""
    pair = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    return -float(nearness(pair[:1], pair[1:])["l2"])


def message_tokens(v: Values) -> float:
    """Bytes of a text of such characters, over bytes a token."""
    character = {2: "я", 3: "ह"}[int(v["character_bytes"])]
    return len((character * int(v["characters"])).encode()) / v["token_bytes"]


@cache
def changed_vectors(layers: int, tokens: int, before: int) -> int:
    """Vectors behind every layer that a changed token reaches, layer by layer: each position reads those up to it."""
    reached, found = [token == before for token in range(tokens)], 0
    for _ in range(layers):
        reached = list(accumulate(reached, or_))
        found += sum(reached)
    return found


def distances(v: Values) -> float:
    """Distances of a query: every centroid, then the vectors of each probed cluster."""
    cluster = v["million_vectors"] * 10**6 / v["clusters"]
    return v["clusters"] + sum(cluster for _ in range(int(v["probes"])))


# The same number by a function that the page's own tests hold to account, or from first principles.
TRUTHS: dict[str, Callable[[Values], float]] = {
    # kv_cache
    "kv_cache/bytes_per_token:estimate-cache": lambda v: (
        token_bytes(geometry(v), int(v["element_bytes"])) * v["sequences"] * v["tokens"]
    ),
    "kv_cache/users_per_gpu:estimate-users": lambda v: users_that_fit(
        sum([v["card"], -v["weights"], -v["rest"]]) * 2**20, v["context"] * v["kibibytes"]
    ),
    "kv_cache/sliding_window:estimate-window": lambda v: sum(
        layers * ring_slots(int(v["tokens"]), int(kept)) * v["kibibytes"] * 2**10
        for layers, kept in ((v["full_layers"], v["tokens"]), (v["window_layers"], v["window"]))
    ),
    "kv_cache/latent_attention:estimate-latent": latent_ratio,
    "kv_cache/paged_attention:estimate-waste": lambda v: (
        # each rest of the last block equally often
        wasted_tokens(range(1, int(v["block"]) + 1), int(v["block"])) * v["sequences"] * v["kibibytes"] * 2**10
    ),
    "kv_cache/offloading:estimate-load": lambda v: sum(
        v["tokens"] / (v["gigabits"] * 1e9 / (v["kibibytes"] * 2**13)) for _ in range(int(v["users"]))
    ),
    "kv_cache/quantized_cache:estimate-scales": grouped_bytes,
    "kv_cache/prefix_caching:estimate-computed": lambda v: computed_tokens(
        int(v["shared"]), int(v["new"]), int(v["block"])
    ),
    "kv_cache/speedup_over_recompute:estimate-run": lambda v: (
        sum(range(int(v["prompt"]), int(v["prompt"] + v["written"])))
        / (v["prompt"] + sum(1 for _ in range(int(v["written"]) - 1)))
    ),
    # throughput
    "throughput/prefill_and_decode:estimate-prefill": lambda v: (
        product_flops(int(v["tokens"]), int(v["billions"]) * 10**9) / (v["percent"] * v["teraflops"] * 1e10)
    ),
    "throughput/prefill_and_decode:estimate-ridge": lambda v: (
        # a product and a sum for each weight, of so many bytes
        ridge_flops_per_byte(Peak(v["teraflops"] * 1e12 / 2, v["terabytes"] * 1e12, "drawn")) * v["bits"] / 8 / 2
    ),
    "throughput/hardware:estimate-roof": lambda v: (
        v["users"]
        / predict_seconds(
            flops=0,
            bytes=v["weights"] * 1e9 + sum([v["cache"] * 1e6] * int(v["users"])),
            peak=Peak(1, v["terabytes"] * 1e12, "drawn"),
            launches=0,
        )
    ),
    "throughput/latency_numbers:estimate-slowest": lambda v: (
        # the first slow call is the first, the second, …
        sum(v["percent"] / 100 * (1 - v["percent"] / 100) ** fast for fast in range(int(v["calls"])))
    ),
    "throughput/speculative_decoding:estimate-tokens": lambda v: expected_tokens(v["alpha"], int(v["gamma"])),
    "throughput/model_parallelism:estimate-sent": ring_sent_bytes,
    "throughput/capacity_and_cost:estimate-price": lambda v: (
        dollars(int(v["cards"]), v["users"] / (v["milliseconds"] * 1e-3)) * v["card_dollars"] / CARD_HOUR
    ),
    "throughput/continuous_batching:estimate-places": lambda v: static_share(
        int(v["places"]), int(v["long"]), int(v["short"])
    ),
    "throughput/efficient_attention:estimate-scores": score_bytes,
    "throughput/pruning:estimate-half": lambda v: (
        # of four neighbours two values, and for each a number from zero to three
        v["rows"] * (v["columns"] // 4) * 2 * (v["bits"] + (4 - 1).bit_length()) / 8
    ),
    "throughput/caching:estimate-wait": lambda v: queue_wait(v["load"]) / queue_wait(v["load"] * (1 - v["hits"])),
    # quantization
    "quantization/weight_bytes:estimate-model": lambda v: (
        formula_bytes((int((v["billion_weights"] - v["billion_kept"]) * 10**9) // 128, 128), int4(int(v["group"])))
        + formula_bytes((int(v["billion_kept"] * 10**9),), torch.bfloat16)
    ),
    "quantization/scale_granularity:estimate-bits": lambda v: (
        8 / v["group"] * formula_bytes((1, int(v["group"])), Format(int(v["code_bits"]), 2 * int(v["scale_bits"]) // 8))
    ),
    "quantization/training_memory_and_speed:estimate-kept": lambda v: (
        recipe_bytes({2: "narrow", 4: "wide", 6: "both"}[int(v["gradient_bytes"])]) * v["billion_weights"] * 10**9
    ),
    "quantization/which_model_fits:estimate-fits": lambda v: (
        (v["card_gibibytes"] - v["runtime_gibibytes"] - v["tokens"] * v["token_kibibytes"] / 2**20)
        * (GIB / GB)
        / (matrix_bytes(1, 64, STORED_IN[v["weight_bits"]], 64) / 64)
    ),
    "quantization/formats_and_fast_paths:estimate-step": lambda v: neighbours_apart(
        int(v["mantissa_bits"]), v["number"]
    ),
    "quantization/calibration:estimate-moments": lambda v: moment_bytes(
        int(v["hidden"]), int(v["hidden"] * v["widening"])
    ),
    "quantization/redundancy_and_robustness:estimate-loss": loss_at,
    # embeddings
    "embeddings/matrix_share:estimate-share": lambda v: share_of_ends(
        Shares(
            "drawn", int(v["vocabulary"]), int(v["hidden"]), v["matrices"] == 1, int(v["billion_layer_weights"] * 10**9)
        )
    ),
    "embeddings/compressed_vectors:estimate-index": lambda v: (
        v["million_vectors"] * 10**6 * vector_bytes(int(v["dims"]), int(v["dimension_bits"]))
    ),
    "embeddings/similarity_measures:estimate-distance": lambda v: unit_distance(v["cosine"]),
    "embeddings/tokenization_first:estimate-tokens": message_tokens,
    "embeddings/static_or_contextual:estimate-changed": lambda v: changed_vectors(
        int(v["layers"]), int(v["tokens"]), int(v["before"])
    ),
    "embeddings/vector_search:estimate-scanned": distances,
}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_an_estimate_is_what_the_projects_function_gives(name: str) -> None:
    estimate, seen = FOUND[name], set()
    for seed in range(1000):
        drawn = estimates.draw(estimate, seed)
        right = estimates.truth(estimate, drawn.values)
        assert right == pytest.approx(TRUTHS[name](drawn.values), rel=1e-9), drawn.question
        seen.add(right)
    assert len(seen) > 5  # fresh each time


def test_no_truth_is_left_over() -> None:
    assert set(TRUTHS) == set(FOUND)
