"""Which caches exist in serving, and what does each save?

Claim: an exact hit saves all the work behind it, so the mean gains as Amdahl says, and a loaded server more, because
hits leave the queue as well. Popularity decides how many hits there are. A similar question is not the same one: a
threshold that serves paraphrases also serves another year's answer.

Run: python -m snippets.throughput.caching
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush, heapreplace
from itertools import accumulate
from math import exp
from typing import Generic, TypeVar

import torch
from torch import Tensor

from snippets.instruments import clock, memory
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import minilm, queueing, retrieval, similarity, smollm2, texts
from snippets.models.decoder import Decoder, generate
from snippets.models.encoder import Encoder, encoder, sentence_vectors
from snippets.models.shapes import LLAMA_3_8B, parameters

_Answer = TypeVar("_Answer")
_YEAR = re.compile(r"\b(1[5-9]\d\d|20\d\d)\b")
_VERB = re.compile(r"\b(is|was|are|were|did|does|do|has|have)\b")


@dataclass(frozen=True)
class Scale:
    """How much is measured: distinct questions, requests for them, entries held, loads, pairs of sentences."""

    distinct: int = 2000
    requests: int = 40_000
    warm: int = 10_000  # requests before hits are counted
    entries: int = 200
    sizes: Sequence[int] = (20, 50, 100, 200, 500, 1000)
    exponent: float = 0.8
    loads: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.9, 0.95)
    paraphrases: int = 1  # of the pairs that people call the same, every so many
    changed: int = 96
    stream: int = 700
    rounds: int = 21


SMALL = Scale(400, 12_000, 4_000, 40, (10, 40, 160), 0.8, (0.2, 0.9), 8, 16, 60, 7)
HIT_COST = 0.01  # a hit, as a share of the work it saves
QUANTILE = 99


# --8<-- [start:exact]
class Cache(Generic[_Answer]):
    """Answers by an exact key: the version of whatever computes them, and the whole input."""

    def __init__(self, compute: Callable[[str], _Answer], version: str) -> None:
        self.compute, self.version = compute, version
        self.held: dict[bytes, _Answer] = {}

    def __call__(self, text: str) -> _Answer:
        key = hashlib.sha256(f"{self.version}\0{text}".encode()).digest()
        if key not in self.held:
            self.held[key] = self.compute(text)
        return self.held[key]


# --8<-- [end:exact]


class Nothing(Cache[_Answer]):
    """A cache that never holds anything."""

    def __call__(self, text: str) -> _Answer:
        return self.compute(text)


def vector_of(model: Encoder) -> Callable[[str], Tensor]:
    """Computes a text's vector (hidden,) alone, in a batch of one."""
    return lambda text: sentence_vectors(model, [text])[0]


def exact_values(model: Encoder, texts_: Sequence[str]) -> dict[str, int]:
    """Looked-up vectors against computing them once more, bit for bit, and what one holds."""
    cache = Cache(vector_of(model), "MiniLM FP32")
    first = [cache(text) for text in texts_]
    again = [vector_of(model)(text) for text in texts_]
    return {
        "vectors_count": len(texts_),
        "equal_vectors_count": sum(torch.equal(cache(t), a) for t, a in zip(texts_, again, strict=True)),
        "vector_bytes": memory.storage_bytes(first[0]),
        "kv_token_bytes": 2 * LLAMA_3_8B.layers * LLAMA_3_8B.kv_heads * LLAMA_3_8B.head_dim * 2,
    }


def lookup_values(
    model: Encoder, texts_: Sequence[str], scale: Scale, kind: type[Cache] = Cache
) -> tuple[dict[str, float], dict[str, float]]:
    """(computing a vector over looking it up; the seconds of each)."""
    compute = vector_of(model)
    cache = kind(compute, "MiniLM FP32")
    for text in texts_:
        cache(text)
    calls: dict[str, Callable[[], object]] = {
        "compute": lambda: compute(texts_[0]),
        "lookup": lambda: cache(texts_[0]),
    }
    taken = clock.interleave(calls, device=pick(), rounds=scale.rounds, flush_cache=False)
    seconds = {"compute_seconds": taken.seconds("compute"), "lookup_seconds": taken.seconds("lookup")}
    return {"lookup_ratio": taken.ratio("compute", "lookup")}, seconds


def predicted_values(tokens: int = 16, answer: int = 128) -> dict[str, float]:
    """What a hit would save on an H100, by declared peaks: a question's vector, an answer decoded alone, in BF16."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    encoder_weights = sum(weight.numel() for weight in minilm.linear_weights().values())
    launches = 12 * minilm.config()["num_hidden_layers"]
    vector = predict_seconds(
        flops=2 * encoder_weights * tokens, bytes=2 * encoder_weights, peak=peak, launches=launches
    )
    read = parameters(LLAMA_3_8B)
    weights = read.linear + read.head
    step = predict_seconds(flops=2 * weights, bytes=2 * weights, peak=peak)
    return {"h100_vector_seconds": vector, "h100_answer_seconds": answer * step, "h100_answer_tokens": answer}


# --8<-- [start:popularity]
def shares(distinct: int, exponent: float) -> list[float]:
    """Zipf-like popularity: the question of rank r is asked in proportion to r to the minus exponent."""
    weights = [rank**-exponent for rank in range(1, distinct + 1)]
    return [weight / sum(weights) for weight in weights]


def lru(requests: Sequence[int], entries: int) -> list[bool]:
    """Whether each request is a hit; the entry that was asked for longest ago leaves."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = []
    for question in requests:
        hits.append(question in held)
        held[question] = None
        held.move_to_end(question)
        if len(held) > entries:
            held.popitem(last=False)
    return hits


def che(popularity: Sequence[float], entries: int) -> float:
    """LRU's hit share by Che's approximation: an entry stays for a time t in which `entries` questions are asked."""
    low, high = 0.0, 1e9
    for _ in range(100):
        t = (low + high) / 2
        held = sum(1 - exp(-share * t) for share in popularity)
        low, high = (t, high) if held < entries else (low, t)
    return sum(share * (1 - exp(-share * t)) for share in popularity)


# --8<-- [end:popularity]


def lfu(requests: Sequence[int], entries: int) -> list[bool]:
    """Whether each request is a hit; of an entry and a newcomer, the one asked for less often so far stays out."""
    counts: Counter[int] = Counter()
    held: set[int] = set()
    heap: list[tuple[int, int]] = []
    hits = []
    for question in requests:
        counts[question] += 1
        hits.append(question in held)
        if question in held or not entries:
            continue
        if len(held) == entries:
            while counts[heap[0][1]] != heap[0][0]:  # its count has grown since
                heapreplace(heap, (counts[heap[0][1]], heap[0][1]))
            if heap[0][0] > counts[question]:
                continue
            held.remove(heappop(heap)[1])
        held.add(question)
        heappush(heap, (counts[question], question))
    return hits


def requests(popularity: Sequence[float], count: int, seed: int = 0) -> list[int]:
    """Independent requests by popularity: plain arithmetic on Python's own generator, the same on every machine."""
    draw, edges = random.Random(seed), list(accumulate(popularity))
    return [min(bisect_left(edges, draw.random()), len(edges) - 1) for _ in range(count)]


def hit_share(hits: Sequence[bool], warm: int) -> float:
    """Share of hits behind the warm-up."""
    return sum(hits[warm:]) / len(hits[warm:])


def popularity_columns(scale: Scale) -> dict[str, list]:
    """A chart's columns: hit share by entries held; LRU and LFU simulated, Che's formula, and equal popularity."""
    zipf, even = shares(scale.distinct, scale.exponent), shares(scale.distinct, 0.0)
    asked, evenly = requests(zipf, scale.requests), requests(even, scale.requests, seed=1)
    ways: dict[str, Callable[[int], float]] = {
        "LFU": lambda size: hit_share(lfu(asked, size), scale.warm),
        "LRU": lambda size: hit_share(lru(asked, size), scale.warm),
        "LRU by formula": lambda size: che(zipf, size),
        "LRU, all asked alike": lambda size: hit_share(lru(evenly, size), scale.warm),
    }
    rows = [(size, way, of(size)) for way, of in ways.items() for size in scale.sizes]
    names = ("entries_count", "way", "hit_share")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def popularity_values(scale: Scale, held: int | None = None) -> dict[str, float]:
    """Hit shares at the size that the page speaks of, simulated and by formula; `held` entries in the simulation."""
    zipf, even = shares(scale.distinct, scale.exponent), shares(scale.distinct, 0.0)
    asked, evenly = requests(zipf, scale.requests), requests(even, scale.requests, seed=1)
    size = scale.entries if held is None else held
    return {
        "entries_share": scale.entries / scale.distinct,
        "lru_hit_share": hit_share(lru(asked, size), scale.warm),
        "lfu_hit_share": hit_share(lfu(asked, size), scale.warm),
        "best_hit_share": sum(zipf[: scale.entries]),
        "formula_hit_share": che(zipf, scale.entries),
        "even_hit_share": hit_share(lru(evenly, size), scale.warm),
    }


# --8<-- [start:queue]
def waits(hits: Sequence[bool], load: float, seed: int = 2) -> list[float]:
    """Seconds to each answer at one server that takes one second a request; hits never reach its queue."""
    arrivals = queueing.poisson(load, len(hits), seed)
    missed = [arrival for arrival, hit in zip(arrivals, hits, strict=True) if not hit]
    served = iter(queueing.latencies(missed, lambda batch: 1.0))
    return [HIT_COST if hit else next(served) for hit in hits]


def expected(load: float, hit: float) -> float:
    """The same in the mean by formula (M/D/1): the load on the server is what the cache leaves of it."""
    left = load * (1 - hit)
    return hit * HIT_COST + (1 - hit) * (1 + left / (2 * (1 - left)))


# --8<-- [end:queue]


def mean(numbers: Sequence[float]) -> float:
    """The plain average."""
    return sum(numbers) / len(numbers)


def tail(numbers: Sequence[float]) -> float:
    """The percentile that objectives are written in."""
    return sorted(numbers)[len(numbers) * QUANTILE // 100]


def load_columns(scale: Scale, held: int | None = None) -> dict[str, list]:
    """A chart's columns: mean and p99 of the answers' seconds by load, without a cache and with it."""
    asked = requests(shares(scale.distinct, scale.exponent), scale.requests)
    cached = lru(asked, scale.entries if held is None else held)[scale.warm :]
    rows = []
    for name, hits in (("no cache", [False] * len(cached)), ("response cache", cached)):
        for load in scale.loads:
            seconds = waits(hits, load)
            rows.append((load, name, mean(seconds), tail(seconds), expected(load, mean(hits))))
    names = ("load_share", "server", "mean_seconds", "tail_seconds", "formula_seconds")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def load_values(columns: dict[str, list]) -> dict[str, float]:
    """Gains at the highest load and at the lowest, and how far the formula is off with the cache."""
    half = len(columns["load_share"]) // 2
    gain = {
        name: [a / b for a, b in zip(columns[f"{name}_seconds"][:half], columns[f"{name}_seconds"][half:], strict=True)]
        for name in ("mean", "tail")
    }
    busy = columns["load_share"].index(0.9)
    formula, found = columns["formula_seconds"][half + busy], columns["mean_seconds"][half + busy]
    return {
        "busy_load_share": columns["load_share"][busy],
        "quiet_load_share": columns["load_share"][0],
        "busy_mean_ratio": gain["mean"][busy],
        "busy_tail_ratio": gain["tail"][busy],
        "quiet_mean_ratio": gain["mean"][0],
        "quiet_tail_ratio": gain["tail"][0],
        "queue_formula_error_share": abs(found / formula - 1),
    }


def gain_values(scale: Scale, held: int | None = None) -> dict[str, float]:
    """Work with the cache against without, request by request, and the shares that the formula takes."""
    asked = requests(shares(scale.distinct, scale.exponent), scale.requests)
    hits = lru(asked, scale.entries if held is None else held)[scale.warm :]
    work = sum(HIT_COST if hit else 1.0 for hit in hits)
    return {"gain_ratio": len(hits) / work, "hit_share": mean(hits), "hit_cost_share": HIT_COST}


def batch_values(scale: Scale, held: int | None = None) -> dict[str, float]:
    """Busy seconds that hits save a server of batches, where most of a step is paid whatever the batch."""
    asked = requests(shares(scale.distinct, scale.exponent), scale.requests)
    hits = lru(asked, scale.entries if held is None else held)[scale.warm :]
    arrivals = queueing.poisson(5.0, len(hits), 3)
    busy = []
    for left in (arrivals, [arrival for arrival, hit in zip(arrivals, hits, strict=True) if not hit]):
        spent: list[float] = []

        def batch(rows: int, spent: list[float] = spent) -> float:
            spent.append(0.9 + 0.1 * rows)
            return spent[-1]

        queueing.latencies(left, batch, most=16)
        busy.append(sum(spent))
    return {"batched_saved_share": 1 - busy[1] / busy[0]}


# --8<-- [start:stale]
def stale_count(asked: Sequence[int], key: Callable[[int, int], object]) -> int:
    """Answers of the old version served after a change of the model in the middle; `key(version, question)`."""
    held: dict[object, int] = {}
    stale = 0
    for place, question in enumerate(asked):
        version = int(place >= len(asked) // 2)
        stale += held.setdefault(key(version, question), version) != version
    return stale


# --8<-- [end:stale]


def stale_values(scale: Scale) -> dict[str, float]:
    """Stale answers as a share of the requests behind the change, with the version in the key and without."""
    asked = requests(shares(scale.distinct, scale.exponent), scale.requests)
    return {
        "stale_versioned_count": stale_count(asked, lambda version, question: (version, question)),
        "stale_share": stale_count(asked, lambda version, question: question) / (len(asked) - len(asked) // 2),
    }


# --8<-- [start:similar]
def other_year(question: str) -> str:
    """The same question about the year before or after."""
    return _YEAR.sub(lambda year: str(int(year[0]) + (-1 if year[0].endswith("9") else 1)), question)


def negated(question: str) -> str:
    """The opposite question: “not” behind its first verb."""
    return _VERB.sub(r"\1 not", question, count=1)


def served(cosines: Tensor, threshold: float) -> float:
    """Share of the questions that a semantic cache answers with the other one's answer."""
    return float((cosines >= threshold).double().mean())


# --8<-- [end:similar]

Similarity = Callable[[Sequence[str], Sequence[str]], Tensor]


def cosine_by(model: Encoder) -> Similarity:
    """Cosines of texts side by side, (pairs,), FP64."""

    def similar(one: Sequence[str], other: Sequence[str]) -> Tensor:
        vectors = sentence_vectors(model, [*one, *other]).double().cpu()
        return (vectors[: len(one)] * vectors[len(one) :]).sum(1)

    return similar


def equality(one: Sequence[str], other: Sequence[str]) -> Tensor:
    """An exact cache's notion of similar: the same text or not."""
    return torch.tensor([float(a == b) for a, b in zip(one, other, strict=True)], dtype=torch.float64)


def _steps(parts: Sequence[dict]) -> list[tuple[str, str]]:
    found = []
    for part in parts:
        if part.get("evidence"):
            found.append((part["question"], json.dumps(part["answer"])))
        found += _steps(part["decomposition"])
    return found


def asked_questions() -> dict[str, frozenset[str]]:
    """FanOutQA's sub-questions in the file's order, each with the words of its recorded answer."""
    steps = [step for row in retrieval._split("dev") for step in _steps(row["decomposition"])]
    return {question: frozenset(re.findall(r"\w+", answer.lower())) for question, answer in reversed(steps)}


def spread(things: Sequence[str], count: int) -> list[str]:
    """At most `count` of them, evenly apart."""
    return [things[i * len(things) // count] for i in range(min(count, len(things)))]


def similar_pairs(similar: Similarity, scale: Scale) -> dict[str, Tensor]:
    """Cosines (pairs,) of sentences that people call the same, and of questions with their changed selves."""
    rows = similarity.pairs("test")
    same = (rows.score >= 4.5).nonzero()[:: scale.paraphrases, 0].tolist()
    asked = list(asked_questions())
    dated = spread([question for question in asked if _YEAR.search(question)], scale.changed)
    plain = spread([question for question in asked if _VERB.search(question)], scale.changed)
    return {
        "paraphrase": similar([rows.first[i] for i in same], [rows.second[i] for i in same]),
        "another year": similar(dated, [other_year(question) for question in dated]),
        "the opposite": similar(plain, [negated(question) for question in plain]),
    }


def nearest_before(model: Encoder, scale: Scale) -> tuple[Tensor, Tensor]:
    """Questions in their order: cosine to the nearest earlier one, and whether that has the same recorded answer."""
    asked = list(asked_questions().items())[: scale.stream]
    vectors = sentence_vectors(model, [question for question, _ in asked]).double().cpu()
    nearest = (vectors @ vectors.T).tril(-1).max(1)
    pairs = enumerate(nearest.indices.tolist())
    return nearest.values, torch.tensor([asked[i][1] == asked[j][1] for i, j in pairs])


THRESHOLDS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975)


def threshold_columns(pairs: dict[str, Tensor], nearest: Tensor, right: Tensor) -> dict[str, list]:
    """A chart's columns: by threshold, who is served another one's answer, and which share of a stream's hits errs."""
    rows = [(at, f"served: {name}", served(cosines, at)) for name, cosines in pairs.items() for at in THRESHOLDS]
    for at in THRESHOLDS:
        hits = nearest >= at
        if hits.any():
            rows.append((at, "wrong, of a stream's hits", float((~right)[hits].double().mean())))
    names = ("threshold_difference", "line", "of_share")
    return {name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def threshold_values(pairs: dict[str, Tensor], threshold: float | None = None) -> dict[str, float]:
    """At the threshold that serves half of the paraphrases, or at another one: who else is served."""
    middle = float(pairs["paraphrase"].median()) if threshold is None else threshold
    return {
        "middle_difference": middle,
        "paraphrases_count": len(pairs["paraphrase"]),
        "changed_count": len(pairs["another year"]),
        "paraphrase_share": served(pairs["paraphrase"], middle),
        "year_share": served(pairs["another year"], middle),
        "opposite_share": served(pairs["the opposite"], middle),
    }


def stream_values(nearest: Tensor, right: Tensor, threshold: float = 0.9) -> dict[str, float]:
    """Hits of the stream at a threshold often advised, and the share of them with another recorded answer."""
    hits = nearest >= threshold
    return {
        "stream_count": len(nearest),
        "advised_difference": threshold,
        "stream_hit_share": float(hits.double().mean()),
        "stream_wrong_share": float((~right)[hits].double().mean()) if hits.any() else 0.0,
    }


# --8<-- [start:sampled]
@torch.inference_mode()
def distinct_values(model: Decoder, ids: Tensor, temperature: float = 1.0, draws: int = 64) -> dict[str, int]:
    """How many different first tokens as many users get: each one's own draw, or the one draw that was cached."""
    logits = model(ids, last_only=True)[0, -1].float()
    chances = (logits / max(temperature, 1e-6)).softmax(0)
    generator = torch.Generator(chances.device).manual_seed(0)
    fresh = torch.multinomial(chances, draws, replacement=True, generator=generator)
    cache = Cache(lambda _: int(fresh[0]), "model, prompt template, temperature")
    cached = [cache("the prompt") for _ in range(draws)]
    return {
        "draws_count": draws,
        "fresh_distinct_count": len(fresh.unique()),
        "cached_distinct_count": len(set(cached)),
    }


# --8<-- [end:sampled]


def token_values(model: Decoder, ids: Tensor, new_tokens: int = 8) -> dict[str, int]:
    """Greedy tokens with the KV cache and without it, and the answer of a response cache against a fresh run."""
    plain = generate(model, ids, new_tokens, cached=False)
    answer = Cache(lambda _: generate(model, ids, new_tokens), "SmolLM2, greedy")
    answer("the prompt")
    return {
        "answer_tokens": new_tokens,
        "kv_equal_tokens": int((generate(model, ids, new_tokens) == plain).sum()),
        "response_equal_tokens": int((answer("the prompt") == plain).sum()),
    }


def prompt_ids(device: torch.device, tokens: int = 24) -> Tensor:
    """The first tokens of a real text."""
    return smollm2.encode(texts.address(), device)[:, :tokens]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page."""
    scale, target = SMALL if small else Scale(), pick(device)
    model = encoder(dtype or torch.float32, target)
    questions = list(asked_questions())[:16]
    ratio, seconds = lookup_values(model, questions, scale)
    pairs, (nearest, right) = similar_pairs(cosine_by(model), scale), nearest_before(model, scale)
    writer = smollm2.decoder(dtype or torch.float32, target)
    found = {**exact_values(model, questions), **ratio, **seconds, **predicted_values()}
    found |= {"distinct_count": scale.distinct, "requests_count": scale.requests - scale.warm}
    found |= {**popularity_values(scale), **gain_values(scale), **load_values(load_columns(scale))}
    found |= {**batch_values(scale), **stale_values(scale), **threshold_values(pairs), **stream_values(nearest, right)}
    return found | distinct_values(writer, prompt_ids(target)) | token_values(writer, prompt_ids(target))


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Nothing is held: no entry, no vector. Only equal texts are similar, and everybody gets the greedy token."""
    scale, target = SMALL if small else Scale(), pick(device)
    model = encoder(dtype or torch.float32, target)
    ratio, _ = lookup_values(model, list(asked_questions())[:2], replace(scale, rounds=7), Nothing)
    pairs = similar_pairs(equality, scale)
    found = {**ratio, **popularity_values(scale, 0), **gain_values(scale, 0), **load_values(load_columns(scale, 0))}
    nothing = stream_values(torch.zeros(scale.stream, dtype=torch.float64), torch.zeros(scale.stream, dtype=torch.bool))
    writer = smollm2.decoder(dtype or torch.float32, target)
    found |= {**batch_values(scale, 0), **threshold_values(pairs, 1.0), **nothing}
    return found | distinct_values(writer, prompt_ids(target), temperature=0)


if __name__ == "__main__":
    from measured.values import report

    report("throughput/caching", measure())
