"""FP32, INT8, binary, PQ or truncated vectors?

Claim: at equal bytes, fewer bits of all dimensions beat all bits of few dimensions, unless the model was trained to be
cut; codes learned from the vectors beat signs; signs find candidates that a better copy then orders. Recall of the
exact neighbours falls much sooner than the share of questions that find their title.

Run: python -m snippets.embeddings.compressed_vectors
Cost: `measured list` shows the seconds of each recording.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.instruments.device import pick
from snippets.instruments.memory import storage_bytes
from snippets.models import retrieval
from snippets.models.retrieval import Vectors, exact, hits, mean_error, recalls

# isort: split
from measured.values import report

K, CANDIDATES, SIZES, SMALL = 10, 100, (768, None), (60, 400)  # (questions, titles)


# --8<-- [start:codes]
def int8_codes(vectors: Tensor) -> Tensor:
    """INT8 codes (n, d) on one grid for all vectors; its step cancels in a ranking, so only codes are kept."""
    return (vectors * (127 / vectors.abs().max())).round().to(torch.int8)


def sign_codes(vectors: Tensor) -> Tensor:
    """A bit a dimension, set where it is above zero, eight to a byte: (n, d over eight), UINT8."""
    bits = (vectors > 0).unflatten(1, (-1, 8))
    return (bits * (1 << torch.arange(8, device=vectors.device))).sum(2).to(torch.uint8)


def hamming(queries: Tensor, codes: Tensor) -> Tensor:
    """Differing bits of packed codes, (queries, n) INT32: exclusive or, then bits counted by table."""
    table = torch.tensor([i.bit_count() for i in range(256)], dtype=torch.int32, device=codes.device)
    rows = [table[(query ^ codes).int()].sum(1, dtype=torch.int32) for query in queries]
    return torch.stack(rows)


def signs(codes: Tensor) -> Tensor:
    """Packed signs as numbers, one and minus one: (n, d)."""
    bits = codes[:, :, None] >> torch.arange(8, device=codes.device) & 1
    return bits.flatten(1).float() * 2 - 1


def cut(vectors: Tensor, dims: int) -> Tensor:
    """The first so many dimensions, normalised again."""
    return F.normalize(vectors[:, :dims], dim=1)


def principal(corpus: Tensor, dims: int) -> Tensor:
    """The directions (d, dims) that keep most of the corpus's inner products: of its second moment."""
    return torch.linalg.eigh(corpus.T @ corpus).eigenvectors[:, -dims:]


def product_codes(corpus: Tensor, code_bytes: int) -> Any:
    """faiss's product quantizer trained on the corpus: a byte names one of a part's centroids (Jégou et al.)."""
    index = faiss.IndexPQ(corpus.shape[1], code_bytes, 8, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1
    index.train(corpus.cpu().numpy())
    index.add(corpus.cpu().numpy())
    return index


# --8<-- [end:codes]


@dataclass(frozen=True)
class Format:
    """What is stored for a vector, and a ranking by it: queries (queries, d) → the k best (queries, k)."""

    vector_bytes: int
    find: Callable[[Tensor, int], Tensor]


def lowest(distances: Tensor, k: int) -> Tensor:
    """The k least of whole numbers, ties in order of place, so that every device agrees."""
    places = torch.arange(distances.shape[1], device=distances.device)
    return (distances.long() * distances.shape[1] + places).topk(k, largest=False).indices


# --8<-- [start:formats]
def formats(corpus: Tensor) -> dict[str, Format]:
    """Every format of the page over these vectors (n, d). Queries stay FP32, but for Hamming distance."""
    width, n = corpus.shape[1], len(corpus)
    codes, bits, product = int8_codes(corpus), sign_codes(corpus), product_codes(corpus, corpus.shape[1] // 8)
    halves, axes = corpus.bfloat16(), principal(corpus, width // 4)
    decoded = torch.from_numpy(product.reconstruct_n(0, n)).to(corpus.device)
    short = int8_codes(cut(corpus, width // 8))
    halved, quartered = cut(corpus, width // 2), cut(corpus, width // 4)

    def by_bits(queries: Tensor, k: int) -> Tensor:
        return lowest(hamming(sign_codes(queries), bits), k)

    def rescored(queries: Tensor, k: int) -> Tensor:
        found = by_bits(queries, CANDIDATES)
        scores = torch.einsum("qd,qkd->qk", queries, codes[found].float())
        return found.gather(1, scores.topk(k).indices)

    def stored(*tensors: Tensor) -> int:
        return storage_bytes(list(tensors)) // n

    return {
        "FP32": Format(stored(corpus), lambda q, k: exact(corpus, q, k)),
        "BF16": Format(stored(halves), lambda q, k: exact(halves.float(), q, k)),
        "half the dimensions": Format(stored(halved), lambda q, k: exact(halved, q[:, : width // 2], k)),
        "INT8": Format(stored(codes), lambda q, k: exact(codes.float(), q, k)),
        "a quarter, by PCA": Format(stored(corpus @ axes), lambda q, k: exact(corpus @ axes, q @ axes, k)),
        "a quarter, the first": Format(stored(quartered), lambda q, k: exact(quartered, q[:, : width // 4], k)),
        "PQ": Format(product.pq.code_size, lambda q, k: exact(decoded, q, k)),
        "binary, query kept": Format(stored(bits), lambda q, k: exact(signs(bits), q, k)),
        "binary": Format(stored(bits), by_bits),
        "an eighth, INT8": Format(stored(short), lambda q, k: exact(short.float(), q[:, : width // 8], k)),
        "binary, rescored by INT8": Format(stored(bits, codes), rescored),
    }


# --8<-- [end:formats]

SHORT = {
    "half the dimensions": "half",
    "INT8": "int8",
    "a quarter, the first": "quarter",
    "a quarter, by PCA": "pca",
    "PQ": "pq",
    "binary": "binary",
    "binary, rescored by INT8": "rescored",
}


@dataclass(frozen=True)
class Found:
    """What every format found: places (questions, K) by name, and the formats."""

    formats: dict[str, Format]
    places: dict[str, Tensor]


def search_all(vectors: Vectors, device: torch.device) -> Found:
    """Every format's ranking of every question."""
    corpus, questions = (part.to(device) for part in vectors)
    made = formats(corpus)
    return Found(made, {name: one.find(questions, K).cpu() for name, one in made.items()})


# --8<-- [start:judged]
def columns(found: Found, answers: Tensor) -> dict[str, list]:
    """A table's columns: bytes, recall of FP32's ten nearest, titles found, and how many more FP32 finds."""
    truth = found.places["FP32"]
    right = {name: hits(places, answers) for name, places in found.places.items()}
    lost = [mean_error(right["FP32"] - one) for one in right.values()]
    return {
        "format": list(found.places),
        "vector_bytes": [one.vector_bytes for one in found.formats.values()],
        "recall_share": [float(recalls(places, truth).mean()) for places in found.places.values()],
        "title_share": [float(one.mean()) for one in right.values()],
        "lost_share": [mean for mean, _ in lost],
        "error_share": [error for _, error in lost],
    }


# --8<-- [end:judged]


def both_measures(shown: dict[str, list]) -> dict[str, list]:
    """A chart's columns: each format's bytes against neighbours kept and against titles found."""
    n = len(shown["format"])
    return {
        "vector_bytes": shown["vector_bytes"] * 2,
        "found_share": shown["recall_share"] + shown["title_share"],
        "measure": ["neighbours kept"] * n + ["titles found"] * n,
    }


def recall_values(shown: dict[str, list]) -> dict[str, float]:
    """Recall by short name, titles found and lost, as the page names them."""
    rows = {name: i for i, name in enumerate(shown["format"])}
    values = {f"{short}_recall_share": shown["recall_share"][rows[name]] for name, short in SHORT.items()}
    for name in ("half the dimensions", "a quarter, the first", "a quarter, by PCA"):
        values[f"{SHORT[name]}_title_share"] = shown["title_share"][rows[name]]
    values |= {f"{SHORT[name]}_lost_share": shown["lost_share"][rows[name]] for name in ("INT8", "binary")}
    return values | {"title_share": shown["title_share"][0]}


# --8<-- [start:bytes]
def library_bytes(corpus: Tensor) -> dict[str, int]:
    """What faiss writes for these vectors: as they are, a byte and a bit a dimension; and product codes' table."""
    width, n = corpus.shape[1], len(corpus)
    flat, scalar = faiss.IndexFlatIP(width), faiss.IndexScalarQuantizer(width, faiss.ScalarQuantizer.QT_8bit)
    scalar.train(corpus.numpy())
    empty = [len(faiss.serialize_index(index)) for index in (flat, scalar)]
    for index in (flat, scalar):
        index.add(corpus.numpy())
    flat_bytes, scalar_bytes = (
        len(faiss.serialize_index(index)) - start for index, start in zip((flat, scalar), empty, strict=True)
    )
    binary = faiss.IndexBinaryFlat(width)
    header = len(faiss.serialize_index_binary(binary))
    binary.add(sign_codes(corpus).numpy())
    codebook = faiss.ProductQuantizer(width, width // 8, 8).centroids
    return {
        "vectors_count": n,
        "dims_count": width,
        "flat_bytes": flat_bytes,
        "scalar_bytes": scalar_bytes,
        "signs_bytes": len(faiss.serialize_index_binary(binary)) - header,
        "codebook_bytes": 4 * codebook.size(),
    }


# --8<-- [end:bytes]


def stored_values(made: dict[str, Format]) -> dict[str, int]:
    """Bytes a vector in a tensor's storage."""
    return {f"{name.lower()}_vector_bytes": made[name].vector_bytes for name in ("FP32", "INT8", "binary", "PQ")} | {
        "rescored_vector_bytes": made["binary, rescored by INT8"].vector_bytes
    }


# --8<-- [start:words]
def word_columns(vectors: Vectors, finding: retrieval.Finding) -> dict[str, list]:
    """A table's columns: titles found by FP32 vectors and by BM25, of all questions, with and without their title."""
    right = hits(exact(*vectors, 1), finding.answers)
    words = hits(retrieval.bm25(finding.titles, finding.questions, 1), finding.answers)
    held = finding.verbatim
    kinds = {"all": torch.ones_like(held), "title in the question": held, "title not in it": ~held}
    gained = [mean_error((right - words)[kind]) for kind in kinds.values()]
    return {
        "questions": list(kinds),
        "asked_count": [int(kind.sum()) for kind in kinds.values()],
        "vectors_share": [float(right[kind].mean()) for kind in kinds.values()],
        "words_share": [float(words[kind].mean()) for kind in kinds.values()],
        "gained_share": [mean for mean, _ in gained],
        "error_share": [error for _, error in gained],
    }


# --8<-- [end:words]


def word_values(shown: dict[str, list]) -> dict[str, float]:
    """What the claims name of it."""
    return {
        "verbatim_share": shown["asked_count"][1] / shown["asked_count"][0],
        "words_share": shown["words_share"][0],
        "words_gained_share": -shown["gained_share"][1],  # BM25 over vectors, where the title is in the question
        "vectors_gained_share": shown["gained_share"][2],  # vectors over BM25, where it is not
    }


def random_like(vectors: Vectors, seed: int = 0) -> Vectors:
    """As many unit vectors, each pointing anywhere."""
    generator = torch.Generator().manual_seed(seed)
    return Vectors(*(F.normalize(torch.randn(part.shape, generator=generator), dim=1) for part in vectors))


def random_values(vectors: Vectors, device: torch.device) -> dict[str, float]:
    """Recall over vectors without structure, by the formats that lean on it."""
    shown = columns(search_all(vectors, device), torch.zeros(len(vectors.questions), dtype=torch.int64))
    recall = dict(zip(shown["format"], shown["recall_share"], strict=True))
    return {f"random_{SHORT[name]}_recall_share": recall[name] for name in ("INT8", "PQ", "binary")}


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """Every value of the page. `dtype` is not used: the formats are the question."""
    size, target = SMALL if small else SIZES, pick(device)
    vectors, finding = retrieval.vectors(*size, str(target)), retrieval.finding(*size)
    found = search_all(vectors, target)
    return {
        **library_bytes(vectors.titles),
        **stored_values(found.formats),
        **recall_values(columns(found, finding.answers)),
        **word_values(word_columns(vectors, finding)),
        **random_values(random_like(vectors), target),
    }


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """The same with every format replaced by as many bytes of FP32's first dimensions, and questions shuffled."""
    size, target = SMALL if small else SIZES, pick(device)
    vectors, finding = retrieval.vectors(*size, str(target)), retrieval.finding(*size)
    whole = formats(vectors.titles)

    def first(one: Format) -> Format:
        dims = one.vector_bytes // 4
        return Format(one.vector_bytes, lambda q, k: exact(cut(vectors.titles, dims), q[:, :dims], k))

    made = {name: first(one) for name, one in whole.items()}
    found = Found(made, {name: one.find(vectors.questions, K) for name, one in made.items()})
    values = recall_values(columns(found, finding.answers))
    shuffled = Vectors(vectors.titles, vectors.questions.flip(0))
    random = {f"random_{short}_recall_share": values[f"{short}_recall_share"] for short in ("int8", "pq", "binary")}
    return {**values, **word_values(word_columns(shuffled, finding)), **random}


if __name__ == "__main__":
    report("embeddings/compressed_vectors", measure())
