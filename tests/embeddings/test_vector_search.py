"""Vector search: indexes against brute force, bytes against formulas, the traps shown wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from snippets.embeddings import vector_search as snippet
from snippets.models.retrieval import Vectors, exact, recalls
from tests.small import controlled, measured_small


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def clustered(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    centres = unit(rows // 10 + 1, width, seed)
    return F.normalize(centres.repeat(10, 1)[:rows] + 0.5 * unit(rows, width, seed + 1), dim=1)


@pytest.mark.parametrize(("rows", "width"), [(11, 3), (53, 8), (210, 17)])
def test_a_search_that_may_look_everywhere_is_exact(rows: int, width: int) -> None:
    vectors, queries = unit(rows, width), unit(7, width, seed=1)
    wanted = exact(vectors, queries, snippet.K)
    for index in (snippet.flat(vectors), snippet.hnsw(vectors, 16), snippet.usearch(vectors, 16)):
        assert torch.equal(snippet.search(index, queries, setting=rows), wanted)
    assert snippet.search(snippet.flat(vectors), queries, k=3).shape == (7, 3)


@pytest.mark.parametrize("links", [3, 8, 16])
@pytest.mark.parametrize(("rows", "width"), [(57, 5), (300, 16)])
def test_bytes_of_a_graph_are_its_vectors_its_links_and_its_offsets(rows: int, width: int, links: int) -> None:
    graph = snippet.hnsw(unit(rows, width), links)
    upper = int((snippet.faiss.vector_to_array(graph.hnsw.levels) - 1).sum())
    assert snippet.added_bytes(graph) == rows * (4 * width + 8 * links + 12) + 4 * links * upper
    assert graph.ntotal == rows  # measuring emptied a copy


@pytest.mark.parametrize(("rows", "lists", "code_bytes"), [(300, 3, 4), (410, 7, 8)])
def test_bytes_of_clusters_are_codes_names_and_lengths(rows: int, lists: int, code_bytes: int) -> None:
    vectors = clustered(rows, 16)
    assert snippet.added_bytes(snippet.ivf_pq(vectors, lists, code_bytes)) == rows * (code_bytes + 8) + 8 * lists
    assert snippet.added_bytes(snippet.flat(vectors)) == rows * 16 * 4


def test_usearch_writes_links_too() -> None:
    rows, width, links = 200, 16, 8
    index = snippet.usearch(unit(rows, width), links)
    upper = sum(level.nodes for level in index.levels_stats[1:])
    formula = rows * (4 * width + 16 + 8 * links) + upper * (4 + 4 * links)
    assert 0 <= index.serialized_length - formula < 200  # a header, once


def test_a_graph_built_twice_by_one_thread_is_the_same_graph() -> None:
    vectors, queries = clustered(400, 16), unit(30, 16, seed=2)
    with snippet.one_thread():
        first, second = snippet.hnsw(vectors, 4), snippet.hnsw(vectors, 4)
        assert np.array_equal(snippet.faiss.serialize_index(first), snippet.faiss.serialize_index(second))
        assert torch.equal(snippet.search(first, queries, 10), snippet.search(second, queries, 10))


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads(), snippet.faiss.omp_get_max_threads()
    with snippet.one_thread():
        assert (torch.get_num_threads(), snippet.faiss.omp_get_max_threads()) == (1, 1)
    assert (torch.get_num_threads(), snippet.faiss.omp_get_max_threads()) == before


def test_looking_further_finds_more_and_rescoring_mends_codes() -> None:
    vectors, queries = clustered(3000, 32), clustered(60, 32, seed=5)
    nearest = exact(vectors, queries, snippet.K)
    graph, clusters = snippet.hnsw(vectors, 4, breadth=16), snippet.ivf_pq(vectors, 16, 8)

    def recall(found: torch.Tensor) -> float:
        return float(recalls(found, nearest).mean())

    by_ef = [recall(snippet.search(graph, queries, n)) for n in (10, 40, 400)]
    by_probes = [recall(snippet.search(clusters, queries, n)) for n in (1, 4, 16)]
    mended = [recall(snippet.rescored(clusters, queries, n, vectors)) for n in (1, 4, 16)]
    assert by_ef == sorted(by_ef) and by_ef[0] < by_ef[2] and by_ef[2] > 0.95
    assert by_probes == sorted(by_probes) and by_probes[0] < by_probes[2]
    assert all(better > worse for better, worse in zip(mended, by_probes, strict=True))


@pytest.mark.parametrize("dims", [2, 4, 8])
def test_the_estimate_of_dimensions_finds_those_that_points_spread_in(dims: int) -> None:
    generator = torch.Generator().manual_seed(dims)
    axes = torch.linalg.qr(torch.randn(64, dims + 1, generator=generator)).Q
    points = F.normalize(torch.randn(4000, dims + 1, generator=generator), dim=1) @ axes.T  # a sphere in 64 dimensions
    found = snippet.intrinsic(Vectors(points[300:], points[:300]))
    assert found == pytest.approx(dims, rel=0.2)


def test_trap_random_vectors_are_a_harder_test_than_structured_ones() -> None:
    structured = Vectors(clustered(2000, 64), clustered(50, 64, seed=3))
    random = snippet.random_like(structured)
    easy, hard = (
        recalls(snippet.search(snippet.hnsw(v.titles, 8), v.questions, 20), exact(*v, snippet.K)).mean()
        for v in (structured, random)
    )
    assert easy > hard + 0.1


def test_trap_filtering_what_was_found_finds_little() -> None:
    vectors, queries = clustered(2000, 16), clustered(40, 16, seed=4)
    made = snippet.Built(vectors, queries, exact(vectors, queries, 10), {"HNSW, M 16": snippet.hnsw(vectors)}, {})
    everything = snippet.filter_values(made, every=1)
    few = snippet.filter_values(made, every=50)
    assert everything["after_recall_share"] > 0.95 and everything["inside_recall_share"] > 0.95
    assert everything["allowed_count"] == 2000 and few["allowed_count"] == 40
    assert few["after_recall_share"] < 0.5


def test_predictions_are_bytes_over_bandwidth_scores_counted() -> None:
    one, four = snippet.predicted_values(10**6), snippet.predicted_values(4 * 10**6)
    assert four["h100_query_seconds"] == pytest.approx(4 * one["h100_query_seconds"])
    assert one["h100_vectors_bytes"] == 768_000_000 and one["h100_scores_bytes"] == 4 * 256 * 10**6
    assert one["h100_query_seconds"] == pytest.approx((768e6 + 8e6) / 3.35e12, rel=0.01)
    assert one["h100_batch_seconds"] == pytest.approx((768e6 + 2 * 1024e6) / 3.35e12, rel=0.01)


def test_ratios_are_taken_at_both_ends_of_the_counts() -> None:
    ways = ("exact, one by one", "graph, one by one", "exact, all at once", "graph, all at once")
    seconds = {10: (1.0, 2.0, 0.5, 3.0), 99: (8.0, 4.0, 7.0, 2.0)}
    rows = [(way, count, taken) for count in (10, 99) for way, taken in zip(ways, seconds[count], strict=True)]
    columns = dict(zip(("search", "vectors_count", "query_seconds"), map(list, zip(*rows, strict=True)), strict=True))
    assert snippet.count_values(columns) == {
        "graph_speed_ratio": 2.0,
        "few_speed_ratio": 0.5,
        "batch_speed_ratio": 3.5,
        "product_speed_ratio": 6.0,
    }


@pytest.mark.models
@pytest.mark.timing
def test_values_of_the_small_scale() -> None:
    found, baseline = measured_small("embeddings/vector_search"), controlled("embeddings/vector_search")
    assert baseline.keys() < found.keys()
    assert found["graph_bytes"] == found["vectors_count"] * (4 * 384 + 8 * 16 + 12) + 64 * found["upper_count"]
    assert found["clusters_bytes"] == found["vectors_count"] * 56 + 8 * found["lists_count"]
    assert found["graph_recall_share"] > 0.95 and found["usearch_recall_share"] > 0.95
    assert found["codes_recall_share"] < found["rescored_recall_share"]
    assert found["title_share"] > 0.8 > baseline["title_share"] + 0.5
    assert found["random_intrinsic_count"] > 3 * found["real_intrinsic_count"]
    assert found["after_recall_share"] < 0.3 and baseline["after_recall_share"] > 0.99
