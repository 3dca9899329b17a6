"""Which caches exist, and what does each save? Hit rates against plain loops and formulas, traps shown wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch

from snippets.models import queueing
from snippets.models.encoder import Encoder, encoder
from snippets.throughput import caching as snippet
from snippets.throughput.caching import SMALL, Cache, Nothing
from tests.small import controlled, failing_small, measured_small

NAME = "throughput/caching"


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return encoder()


def drawn(distinct: int = 31, count: int = 900, exponent: float = 0.9, seed: int = 5) -> list[int]:
    return snippet.requests(snippet.shares(distinct, exponent), count, seed)


def slow_lru(asked: Sequence[int], entries: int) -> list[bool]:
    """A hit is a question among the last so many distinct ones."""
    hits = []
    for place, question in enumerate(asked):
        recent: list[int] = []
        for earlier in reversed(asked[:place]):
            if len(recent) == entries:
                break
            if earlier not in recent:
                recent.append(earlier)
        hits.append(question in recent)
    return hits


def slow_lfu(asked: Sequence[int], entries: int) -> list[bool]:
    """Counts of everything; the held one with the lowest count (then the lowest name) makes room, if not above."""
    held: list[int] = []
    hits = []
    for place, question in enumerate(asked):
        counts = {name: asked[: place + 1].count(name) for name in [*held, question]}
        hits.append(question in held)
        if question in held:
            continue
        if len(held) == entries:
            lowest = min(held, key=lambda name: (counts[name], name))
            if counts[lowest] > counts[question]:
                continue
            held.remove(lowest)
        held.append(question)
    return hits


@pytest.mark.parametrize("entries", [1, 2, 3, 5, 7])
@pytest.mark.parametrize(("fast", "slow"), [(snippet.lru, slow_lru), (snippet.lfu, slow_lfu)])
def test_policies_are_what_a_loop_computes(
    fast: Callable[[Sequence[int], int], list[bool]],
    slow: Callable[[Sequence[int], int], list[bool]],
    entries: int,
) -> None:
    asked = drawn(11, 300)
    assert fast(asked, entries) == slow(asked, entries)
    assert 0 < sum(fast(asked, entries)) < len(asked)


def test_a_cache_of_nothing_hits_nothing_and_one_of_everything_misses_only_once() -> None:
    asked = drawn()
    for policy in (snippet.lru, snippet.lfu):
        assert not any(policy(asked, 0))
        assert policy(asked, 31).count(False) == len(set(asked))


def test_popularity_sums_to_one_and_is_drawn_as_stated() -> None:
    popularity = snippet.shares(7, 0.5)
    assert sum(popularity) == pytest.approx(1) and popularity[0] / popularity[3] == pytest.approx(2)
    asked = snippet.requests(popularity, 50_000)
    for rank, share in enumerate(popularity):
        assert asked.count(rank) / len(asked) == pytest.approx(share, abs=4 * math.sqrt(share / len(asked)))


@pytest.mark.parametrize("entries", [3, 11, 29])
def test_the_formula_is_what_lru_does(entries: int) -> None:
    popularity = snippet.shares(101, 0.7)
    hits = snippet.lru(snippet.requests(popularity, 60_000), entries)
    assert snippet.hit_share(hits, 5_000) == pytest.approx(snippet.che(popularity, entries), abs=0.012)
    assert snippet.che(snippet.shares(101, 0.0), entries) == pytest.approx(entries / 101, abs=1e-6)


def test_the_queue_without_hits_is_a_queue_and_with_hits_alone_is_none() -> None:
    arrivals = queueing.poisson(0.7, 300, 2)
    assert snippet.waits([False] * 300, 0.7) == queueing.latencies(arrivals, lambda rows: 1.0)
    assert snippet.waits([True] * 5, 0.9) == [snippet.HIT_COST] * 5
    assert snippet.expected(0.5, 0.0) == pytest.approx(1.5)  # M/D/1: half a service of waiting at half load
    assert snippet.tail(list(range(1000))) == 990


def test_gains_agree_with_amdahl_and_with_the_queue() -> None:
    found = measured_small(NAME)
    hit = found["hit_share"]
    assert found["gain_ratio"] == pytest.approx(1 / (1 - hit * 0.99))
    assert found["busy_mean_ratio"] > 2 * found["gain_ratio"] > found["gain_ratio"] > found["quiet_tail_ratio"]
    assert found["hit_share"] == found["lru_hit_share"] < found["lfu_hit_share"] <= found["best_hit_share"] + 0.02


def test_trap_a_busy_batching_server_saves_no_time() -> None:
    """The busy time of both, from a queue whose batches cost what their rows do: then hits save their share."""
    found = measured_small(NAME)
    assert 0 <= found["batched_saved_share"] < 0.05
    arrivals = queueing.poisson(0.7, 200, 3)
    spent: list[int] = []
    queueing.latencies(arrivals, lambda rows: spent.append(rows) or float(rows), most=16)  # type: ignore[func-returns-value]
    assert sum(spent) == len(arrivals)


def test_keys_hold_version_and_text_apart() -> None:
    computed: list[str] = []
    cache = Cache(lambda text: computed.append(text) or text.upper(), "one")  # type: ignore[func-returns-value]
    assert [cache("a"), cache("a"), cache("b")] == ["A", "A", "B"] and computed == ["a", "b"]
    cache.version = "two"
    assert cache("a") == "A" and computed == ["a", "b", "a"]
    mixed = Cache(len, "x")
    mixed("yz")
    mixed.version = "xy"
    mixed("z")
    assert len(mixed.held) == 2


def test_a_cache_that_holds_nothing_computes_each_time() -> None:
    computed: list[str] = []
    cache = Nothing(computed.append, "one")
    cache("a"), cache("a")
    assert computed == ["a", "a"]


def test_trap_without_the_version_old_answers_are_served() -> None:
    asked = [1, 2, 1, 3, 1, 2, 4, 4]  # the change comes in front of the second 1
    assert snippet.stale_count(asked, lambda version, question: question) == 2
    assert snippet.stale_count(asked, lambda version, question: (version, question)) == 0


@pytest.mark.parametrize(
    ("question", "year", "opposite"),
    [
        ("Who won in 1998?", "Who won in 1999?", None),
        ("Who was elected in 2019?", "Who was elected in 2018?", "Who was not elected in 2019?"),
        ("Is 3000 more?", None, None),
    ],
)
def test_questions_are_changed_in_one_word(question: str, year: str | None, opposite: str | None) -> None:
    assert snippet.other_year(question) == (year or question)
    assert snippet.negated(question) == (opposite or question)


def test_trap_opposites_are_nearer_than_paraphrases(minilm: Encoder) -> None:
    similar = snippet.cosine_by(minilm)
    paraphrase = similar(["How do I reset my password?"], ["I forgot my login secret, what now?"])
    opposite = similar(["Is the museum open on Sunday?"], ["Is the museum not open on Sunday?"])
    assert float(opposite) > 0.9 > float(paraphrase)
    assert snippet.equality(["a", "b"], ["a", "c"]).tolist() == [1.0, 0.0]


def test_the_stream_looks_back_and_never_ahead(minilm: Encoder) -> None:
    nearest, right = snippet.nearest_before(minilm, SMALL)
    assert len(nearest) == len(right) == SMALL.stream and float(nearest[0]) == 0
    vectors = snippet.sentence_vectors(minilm, list(snippet.asked_questions())[: SMALL.stream]).double()
    for i in (1, 7, 31):
        assert float(nearest[i]) == pytest.approx(max(float(vectors[i] @ v) for v in vectors[:i]), abs=1e-5)
    columns = snippet.threshold_columns({"pairs": torch.tensor([0.72, 0.91, 0.99])}, nearest, right)
    served = [s for s, line in zip(columns["of_share"], columns["line"], strict=True) if line == "served: pairs"]
    assert served == sorted(served, reverse=True) and served[0] == 1


def test_one_answer_for_all_is_no_sample() -> None:
    found, greedy = measured_small(NAME), controlled(NAME)
    assert found["cached_distinct_count"] == greedy["fresh_distinct_count"] == 1 < found["fresh_distinct_count"]


def test_claims_hold_at_small_scale() -> None:
    assert failing_small(NAME) == []
