"""How are vectors searched?

Claim: exactly, by one product with all of them, or by an index that looks at few and misses some. An index wins one
query at a time over many vectors; over few, in batches and behind a narrow filter the exact product does. How much an
index misses depends on the vectors, and says nothing about whether the nearest vector is the right answer.

Run: python -m snippets.embeddings.vector_search
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from usearch.index import Index

from snippets.instruments import clock
from snippets.instruments.datasheets import gpu_peak
from snippets.instruments.device import pick
from snippets.instruments.roofline import predict_seconds
from snippets.models import retrieval
from snippets.models.retrieval import Vectors, exact, hits, mean_error, recalls

# isort: split
from measured.values import report

K, LINKS, BREADTH, CODE_BYTES, FETCHED = 10, 16, 80, 48, 100


@dataclass(frozen=True)
class Scale:
    """How much is measured: texts, sizes of the corpus, sweeps, queries timed."""

    questions: int = 768
    titles: int | None = None
    counts: Sequence[int] = (256, 1024, 4096, 16_384)
    lists: int = 128
    links: Sequence[int] = (4, 16)
    breadths: Sequence[int] = (10, 20, 40, 80, 160)
    probes: Sequence[int] = (1, 2, 4, 8, 16, 32)
    timed: int = 48
    rounds: int = 9


SMALL = Scale(60, 400, (100, 400, 1200), 16, (4, 16), (10, 80), (1, 8), timed=12, rounds=3)


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch and faiss: a graph built by several is another one each time, and ratios need one count."""
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        faiss.omp_set_num_threads(before[1])


# --8<-- [start:indexes]
def flat(vectors: Tensor) -> Any:
    """Every vector as it is: exact."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors.numpy())
    return index


def hnsw(vectors: Tensor, links: int = LINKS, breadth: int = 64) -> Any:
    """A graph: `links` neighbours a vector and layer, twice as many in the lowest (arXiv:1603.09320)."""
    index = faiss.IndexHNSWFlat(vectors.shape[1], links, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = breadth
    index.add(vectors.numpy())
    return index


def usearch(vectors: Tensor, links: int = LINKS, breadth: int = 64) -> Index:
    """The same kind of graph by another library."""
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=links, expansion_add=breadth)
    index.add(np.arange(len(vectors)), vectors.numpy(), threads=1)
    return index


def ivf_pq(vectors: Tensor, lists: int, code_bytes: int = CODE_BYTES) -> Any:
    """Vectors in `lists` clusters, each coded in `code_bytes`: a byte names the nearest of a part's centroids."""
    width = vectors.shape[1]
    index = faiss.IndexIVFPQ(faiss.IndexFlatIP(width), width, lists, code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    for clustering in (index.cp, index.pq.cp):  # seeded by the library
        clustering.niter, clustering.min_points_per_centroid, clustering.max_points_per_centroid = 8, 1, 16
    index.train(vectors.numpy())
    index.add(vectors.numpy())
    return index


def search(index: Any, queries: Tensor, setting: int = BREADTH, k: int = K, allowed: Any = None) -> Tensor:
    """Places of the k nearest found (queries, k). `setting`: candidates a graph keeps (ef), or clusters probed."""
    if isinstance(index, Index):
        index.expansion_search = setting  # type: ignore[misc]
        return torch.from_numpy(index.search(queries.numpy(), k, threads=1).keys.astype("int64"))
    parameters = None
    if isinstance(index, faiss.IndexHNSW):
        parameters = faiss.SearchParametersHNSW(efSearch=setting, sel=allowed)  # type: ignore[attr-defined]
    elif isinstance(index, faiss.IndexIVF):
        parameters = faiss.SearchParametersIVF(nprobe=setting)  # type: ignore[call-arg]
    return torch.from_numpy(index.search(queries.numpy(), k, params=parameters)[1])


def rescored(index: Any, queries: Tensor, setting: int, vectors: Tensor) -> Tensor:
    """The best of more that were found, by their full vectors."""
    found = search(index, queries, setting, FETCHED)
    scores = torch.einsum("qd,qkd->qk", queries, vectors[found])
    return found.gather(1, scores.topk(K).indices)


# --8<-- [end:indexes]


# --8<-- [start:bytes]
def added_bytes(index: Any) -> int:
    """What the library writes for the vectors: the index less the same one, emptied."""
    full = len(faiss.serialize_index(index))
    empty = faiss.clone_index(index)
    empty.reset()
    return full - len(faiss.serialize_index(empty))


def byte_values(exactly: Any, graph: Any, clusters: Any) -> dict[str, int]:
    """Bytes as serialized, and the terms of their formulas."""
    layers = faiss.vector_to_array(graph.hnsw.levels)
    return {
        "vectors_count": exactly.ntotal,
        "dims_count": exactly.d,
        "links_count": LINKS,
        "upper_count": int((layers - 1).sum()),  # layers above the lowest, of all vectors together
        "lists_count": clusters.nlist,
        "code_bytes": clusters.pq.code_size,
        "flat_bytes": added_bytes(exactly),
        "graph_bytes": added_bytes(graph),
        "clusters_bytes": added_bytes(clusters),
    }


# --8<-- [end:bytes]


@dataclass(frozen=True)
class Built:
    """A corpus of real and enlarged vectors, what is truly nearest, the indexes and the seconds they took."""

    corpus: Tensor
    questions: Tensor
    nearest: Tensor  # (questions, K)
    indexes: dict[str, Any]
    seconds: dict[str, float]


def built(real: Vectors, scale: Scale) -> Built:
    """All indexes over the largest corpus, each by one thread."""
    corpus = retrieval.enlarged(real.titles, scale.counts[-1])
    builders: dict[str, Callable[[Tensor], Any]] = {"exact": flat}
    builders |= {f"HNSW, M {links}": partial(hnsw, links=links) for links in scale.links}
    builders |= {"usearch, M 16": usearch, "IVF-PQ": partial(ivf_pq, lists=scale.lists)}
    indexes, seconds = {}, {}
    with one_thread():
        nearest = exact(corpus, real.questions, K)
        for name, build in builders.items():
            start = time.perf_counter()
            indexes[name] = build(corpus)
            seconds[name] = time.perf_counter() - start
    return Built(corpus, real.questions, nearest, indexes, seconds)


Ways = dict[tuple[str, int], Callable[[Tensor], Tensor]]


def settings(made: Built, scale: Scale) -> Ways:
    """Every index at every setting of its sweep: (index, setting) → queries to places."""
    ways: Ways = {}
    for name, index in made.indexes.items():
        swept = {"exact": [0], "IVF-PQ": scale.probes}.get(name, scale.breadths)
        ways |= {(name, n): partial(search, index, setting=n) for n in swept}
    clusters = made.indexes["IVF-PQ"]
    ways |= {("IVF-PQ, rescored", n): partial(rescored, clusters, setting=n, vectors=made.corpus) for n in scale.probes}
    return ways


# --8<-- [start:speed]
def one_by_one(way: Callable[[Tensor], Tensor], queries: Tensor) -> None:
    """A user's query at a time, not a batch."""
    for query in queries.split(1):
        way(query)


def sweep_columns(made: Built, ways: Ways, scale: Scale) -> dict[str, list]:
    """A chart's columns: for every setting recall over all questions and queries a second, all timed in turn."""
    queries = made.questions[: scale.timed]
    calls = {str(key): partial(one_by_one, way, queries) for key, way in ways.items()}
    clock.fix_allocator()
    with one_thread():
        taken = clock.interleave(calls, device="cpu", rounds=scale.rounds, blocks=max(1, scale.rounds // 3))
        recall = [float(recalls(way(made.questions), made.nearest).mean()) for way in ways.values()]
    return {
        "index": [name for name, _ in ways],
        "setting_count": [setting for _, setting in ways],
        "recall_share": recall,
        "query_requests_per_second": [len(queries) / taken.seconds(str(key)) for key in ways],
    }


# --8<-- [end:speed]


def index_columns(made: Built, sweep: dict[str, list], chosen: dict[str, int]) -> dict[str, list]:
    """A table's columns: each index at one setting, with its bytes a vector and seconds to build."""
    rows = [
        i for i, key in enumerate(zip(sweep["index"], sweep["setting_count"], strict=True)) if key in chosen.items()
    ]
    indexes = [made.indexes[name.removesuffix(", rescored")] for name in chosen]
    held = [x.serialized_length if isinstance(x, Index) else added_bytes(x) for x in indexes]
    return {
        "index": [sweep["index"][row] for row in rows],
        "setting_count": [sweep["setting_count"][row] for row in rows],
        "vector_bytes": [size / len(made.corpus) for size in held],
        "build_seconds": [made.seconds[name.removesuffix(", rescored")] for name in chosen],
        "recall_share": [sweep["recall_share"][row] for row in rows],
        "query_requests_per_second": [sweep["query_requests_per_second"][row] for row in rows],
    }


def recall_values(sweep: dict[str, list]) -> dict[str, float]:
    """Recall over the largest corpus at the settings that the page names: ef as by default here, most clusters."""
    found = dict(zip(zip(sweep["index"], sweep["setting_count"], strict=True), sweep["recall_share"], strict=True))
    most = max(setting for name, setting in found if name == "IVF-PQ")
    return {
        "graph_recall_share": found[f"HNSW, M {LINKS}", BREADTH],
        "usearch_recall_share": found["usearch, M 16", BREADTH],
        "codes_recall_share": found["IVF-PQ", most],
        "rescored_recall_share": found["IVF-PQ, rescored", most],
    }


def text_values(real: Vectors) -> dict[str, int]:
    """Real vectors, and questions asked of them."""
    return {"real_count": len(real.titles), "questions_count": len(real.questions)}


# --8<-- [start:titles]
def title_values(real: Vectors, answers: Tensor) -> dict[str, float]:
    """Real titles alone: the neighbours that a graph finds, and the questions whose own title comes first."""
    exactly, found = exact(*real, K), search(hnsw(real.titles), real.questions)
    lost = hits(exactly, answers) - hits(found, answers)
    return {
        "real_recall_share": float(recalls(found, exactly).mean()),
        "first_share": float(hits(found, exactly[:, 0]).mean()),
        "title_share": float(hits(exactly, answers).mean()),
        "lost_share": mean_error(lost)[0],
        "lost_error_share": mean_error(lost)[1],
    }


# --8<-- [end:titles]


# --8<-- [start:random]
def random_like(real: Vectors, seed: int = 0) -> Vectors:
    """As many vectors of as many dimensions, each pointing anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return Vectors(*(F.normalize(torch.randn(part.shape, generator=generator), dim=1) for part in real))


def intrinsic(vectors: Vectors, near: int = 20) -> float:
    """Dimensions that neighbours spread in: Levina and Bickel's estimate from their distances, mean over queries."""
    cosines = torch.einsum("qd,qkd->qk", vectors.questions, vectors.titles[exact(*vectors, near)]).double()
    distance = (2 - 2 * cosines).sqrt()
    return float((1 / (distance[:, -1:] / distance[:, :-1]).log().mean(1)).mean())


def random_values(random: Vectors) -> dict[str, float]:
    """The same graph with the same settings over random vectors."""
    found = search(hnsw(random.titles), random.questions)
    return {"random_recall_share": float(recalls(found, exact(*random, K)).mean())}


def intrinsic_values(real: Vectors, random: Vectors) -> dict[str, float]:
    """Both estimates."""
    return {"real_intrinsic_count": intrinsic(real), "random_intrinsic_count": intrinsic(random)}


# --8<-- [end:random]


# --8<-- [start:filtered]
def filter_values(made: Built, every: int = 100) -> dict[str, float]:
    """Only every so many a vector may be returned: filter what a graph found, or while it searches."""
    allowed, graph = torch.arange(0, len(made.corpus), every), made.indexes[f"HNSW, M {LINKS}"]
    nearest = allowed[exact(made.corpus[allowed], made.questions, K)]  # filtered before: exact, over few
    selector = faiss.IDSelectorBatch(allowed.numpy())
    found = {
        "after_recall_share": search(graph, made.questions, FETCHED, FETCHED),
        "inside_recall_share": search(graph, made.questions, allowed=selector),
    }
    return {"allowed_count": len(allowed)} | {k: float(recalls(v, nearest).mean()) for k, v in found.items()}


# --8<-- [end:filtered]


# --8<-- [start:counts]
def product(corpus: Tensor, queries: Tensor) -> Tensor:
    """Exact search of all queries at once, fetched to the host: torch's, on the tensors' device."""
    return exact(corpus, queries, K).cpu()


def count_columns(made: Built, scale: Scale, device: torch.device) -> dict[str, list]:
    """A chart's columns: seconds a query over the first so many vectors, by way of searching."""
    queries, rows = made.questions[: scale.timed], []
    for count in scale.counts:
        corpus = made.corpus[:count]
        there, batch = corpus.to(device), made.questions.to(device)
        with one_thread():
            alone, graph = partial(search, flat(corpus)), partial(search, hnsw(corpus))
            ways: dict[str, Callable[[], object]] = {
                "exact, one by one": partial(one_by_one, alone, queries),
                "graph, one by one": partial(one_by_one, graph, queries),
                "exact, all at once": partial(product, there, batch),
                "graph, all at once": partial(graph, made.questions),
            }
            taken = clock.interleave(ways, device="cpu", rounds=scale.rounds, blocks=max(1, scale.rounds // 3))
        sizes = (len(queries), len(queries), len(batch), len(batch))
        rows += [(way, count, taken.seconds(way) / size) for way, size in zip(ways, sizes, strict=True)]
    names = ("search", "vectors_count", "query_seconds")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))


# --8<-- [end:counts]


def count_values(columns: dict[str, list]) -> dict[str, float]:
    """Ratios at the smallest and largest count: which is faster, one query at a time and as a batch."""
    seconds = {(way, count): taken for way, count, taken in zip(*columns.values(), strict=True)}
    least, most = min(columns["vectors_count"]), max(columns["vectors_count"])
    ratios = {}
    for name, count in (("few", least), ("most", most)):
        for way, short in (("one by one", "alone"), ("all at once", "batch")):
            ratios[f"{name}_{short}_speed_ratio"] = seconds[f"exact, {way}", count] / seconds[f"graph, {way}", count]
    return {
        "graph_speed_ratio": ratios["most_alone_speed_ratio"],
        "few_speed_ratio": ratios["few_alone_speed_ratio"],
        "batch_speed_ratio": ratios["most_batch_speed_ratio"],
        "product_speed_ratio": 1 / ratios["few_batch_speed_ratio"],
    }


def predicted_values(vectors: int = 10**6, width: int = 384, batch: int = 256) -> dict[str, float]:
    """An H100's roofline for exact search over BF16 vectors; FP32 scores are written once and read once."""
    peak = gpu_peak("H100 SXM", "bfloat16")
    assert peak is not None
    held, scores = 2 * vectors * width, 4 * vectors  # operations of a query are as many as bytes of the vectors
    one, many = (
        predict_seconds(flops=held * n, bytes=held + 2 * scores * n, peak=peak, launches=2) for n in (1, batch)
    )
    return {
        "h100_vectors_count": vectors,
        "h100_batch_count": batch,
        "h100_vectors_bytes": held,
        "h100_scores_bytes": scores * batch,
        "h100_query_seconds": one,
        "h100_batch_seconds": many,
    }


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page. `dtype` is not used: the graphs and clusters take FP32."""
    scale, target = SMALL if small else Scale(), pick(device)
    real = retrieval.vectors(scale.questions, scale.titles, str(target))
    made = built(real, scale)
    return {
        **text_values(real),
        **byte_values(*(made.indexes[name] for name in ("exact", f"HNSW, M {LINKS}", "IVF-PQ"))),
        **recall_values(sweep_columns(made, settings(made, scale), scale)),
        **title_values(real, retrieval.finding(scale.questions, scale.titles).answers),
        **random_values(random_like(real)),
        **intrinsic_values(real, random_like(real)),
        **filter_values(made),
        **count_values(count_columns(made, scale, target)),
        **predicted_values(),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same without a technique: vectors looked at by chance, titles shuffled, no filter, exact against exact."""
    scale, target = SMALL if small else Scale(), pick(device)
    real = retrieval.vectors(scale.questions, scale.titles, str(target))
    answers = retrieval.finding(scale.questions, scale.titles).answers
    nearest, shuffled = exact(*real, K), torch.randperm(len(real.titles), generator=torch.Generator().manual_seed(0))
    looked_at = recalls(shuffled[:FETCHED].expand(len(answers), -1), nearest).mean()
    unfiltered = recalls(search(flat(real.titles), real.questions), nearest).mean()
    call = partial(one_by_one, partial(search, flat(real.titles)), real.questions[: scale.timed])
    with one_thread():
        taken = clock.interleave({"one": call, "other": call}, device="cpu", rounds=9, blocks=1)
    titles = title_values(Vectors(real.titles[shuffled], real.questions), answers)
    recall = ("graph_recall_share", "usearch_recall_share", "codes_recall_share", "rescored_recall_share")
    speed = ("graph_speed_ratio", "few_speed_ratio", "batch_speed_ratio", "product_speed_ratio")
    return {
        **titles,
        **random_values(real),
        **intrinsic_values(real, real),
        **dict.fromkeys(recall, float(looked_at)),
        **dict.fromkeys(("after_recall_share", "inside_recall_share"), float(unfiltered)),
        **dict.fromkeys(speed, taken.ratio("one", "other")),
    }


if __name__ == "__main__":
    report("embeddings/vector_search", measure())
