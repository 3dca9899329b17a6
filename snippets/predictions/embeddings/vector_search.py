"""Vectors that a search compares a query with: all of them, or those that a graph's candidates link to.

Alone, a search reads them; in a batch they stay in caches, and its operations and the scores that it stores count. What
following a link costs beside its vector is left out.
"""

from __future__ import annotations

from snippets.embeddings.vector_search import BREADTH, LINKS, Scale, predicted_values
from snippets.instruments.targets import Target
from snippets.predictions.counting import Work
from snippets.predictions.kinds import on_cpu
from snippets.predictions.reasons import OWN_H100

SCALE = Scale()
WIDTH = 384  # of MiniLM's vectors
ELEMENT_BYTES = 4  # of a vector's number and of a score: all are FP32
BESIDE = "a graph on the processor against a product on the device beside it"


def compared(count: int) -> int:
    """Vectors that a graph compares with a query: all links of every candidate, in its lowest layer."""
    return min(count, BREADTH * 2 * LINKS)


def work(count: int, looked_at: int, queries: int, *, stored: bool = False) -> Work:
    """Queries against so many each of a corpus that is read once; scores that are stored are written, then read."""
    return Work(
        flops=2 * queries * looked_at * WIDTH,
        product_bytes=ELEMENT_BYTES * WIDTH * (looked_at if queries == 1 else count),
        other_bytes=2 * ELEMENT_BYTES * queries * count if stored else 0,
    )


def graph_speed(target: Target, count: int, queries: int) -> float:
    """Seconds of exact search over those of a graph: alone every vector read, as a batch one product."""
    exact = work(count, count, queries, stored=queries > 1)
    return exact.seconds(target, "float32") / work(count, compared(count), queries).seconds(target, "float32")


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    few, most = min(SCALE.counts), max(SCALE.counts)
    beside = not on_cpu(target)
    return {
        **dict.fromkeys(predicted_values(), OWN_H100),
        "graph_speed_ratio": graph_speed(target, most, 1),  # both on the processor: a ratio of vectors anywhere
        "few_speed_ratio": graph_speed(target, few, 1),
        "batch_speed_ratio": BESIDE if beside else graph_speed(target, most, SCALE.questions),
        "product_speed_ratio": BESIDE if beside else 1 / graph_speed(target, few, SCALE.questions),
    }
