"""Compressed vectors: formats against faiss and definitions, bytes, the traps shown wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from snippets.embeddings import compressed_vectors as snippet
from snippets.models.retrieval import Finding, Vectors, exact, recalls
from tests.small import controlled, measured_small


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def mixed(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    """Vectors that lie near few directions, spread over all dimensions by a rotation."""
    generator = torch.Generator().manual_seed(99)
    axes = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    lengths = 0.8 ** torch.arange(width)
    return F.normalize(unit(rows, width, seed) * lengths @ axes, dim=1)


@pytest.mark.parametrize(("rows", "width"), [(2, 8), (5, 24), (7, 56)])
def test_signs_are_packed_as_numpy_packs_them(rows: int, width: int) -> None:
    vectors = unit(rows, width)
    codes = snippet.sign_codes(vectors)
    assert codes.dtype == torch.uint8 and codes.shape == (rows, width // 8)
    assert np.array_equal(codes.numpy(), np.packbits(vectors.numpy() > 0, axis=1, bitorder="little"))
    assert torch.equal(snippet.signs(codes), torch.where(vectors > 0, 1.0, -1.0))


@pytest.mark.parametrize(("rows", "queries", "width"), [(3, 2, 8), (53, 7, 40), (200, 5, 64)])
def test_hamming_is_faisss_and_that_of_a_product_of_signs(rows: int, queries: int, width: int) -> None:
    corpus, asked = snippet.sign_codes(unit(rows, width)), snippet.sign_codes(unit(queries, width, seed=1))
    found = snippet.hamming(asked, corpus)
    assert torch.equal(found, ((width - snippet.signs(asked) @ snippet.signs(corpus).T) / 2).int())
    index = snippet.faiss.IndexBinaryFlat(width)
    index.add(corpus.numpy())
    nearest, _ = index.search(asked.numpy(), 3)
    assert np.array_equal(found.sort(1).values[:, :3].numpy(), nearest)


def test_ties_are_in_order_of_place() -> None:
    assert snippet.lowest(torch.tensor([[3, 1, 1, 0, 1], [2, 2, 2, 2, 2]]), 3).tolist() == [[3, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("width", [3, 16, 77])
def test_int8_is_within_half_a_step(width: int) -> None:
    vectors = unit(31, width)
    step = float(vectors.abs().max()) / 127
    codes = snippet.int8_codes(vectors)
    assert codes.dtype == torch.int8 and int(codes.abs().max()) == 127
    assert float((codes.float() * step - vectors).abs().max()) <= step / 2 * 1.0001


def test_principal_directions_keep_more_than_any_others() -> None:
    vectors = mixed(400, 24)
    axes = snippet.principal(vectors, 6)
    assert torch.allclose(axes.T @ axes, torch.eye(6), atol=1e-4)
    kept = (vectors @ axes).square().sum()
    singular = torch.linalg.svdvals(vectors)[:6].square().sum()
    assert float(kept) == pytest.approx(float(singular), rel=1e-4)
    assert kept > vectors[:, :6].square().sum()


def test_decoded_product_codes_rank_as_faiss_searches() -> None:
    corpus, queries = mixed(600, 32), mixed(9, 32, seed=1)
    made = snippet.formats(corpus)
    index = snippet.product_codes(corpus, 4)
    _, wanted = index.search(queries.numpy(), 5)
    found = made["PQ"].find(queries, 5)
    assert made["PQ"].vector_bytes == 4
    assert float(recalls(found, torch.from_numpy(wanted)).mean()) > 0.97  # but for ties of codes


@pytest.mark.parametrize(("rows", "width"), [(300, 16), (500, 48)])
def test_bytes_a_vector_are_those_of_the_width(rows: int, width: int) -> None:
    corpus = mixed(rows, width)
    found = {name: one.vector_bytes for name, one in snippet.formats(corpus).items()}
    assert found["FP32"] == 4 * width == 2 * found["BF16"] == 4 * found["INT8"] == 32 * found["binary"]
    assert found["half the dimensions"] == 2 * width and found["PQ"] == found["an eighth, INT8"] == width // 8
    assert found["a quarter, the first"] == found["a quarter, by PCA"] == width
    assert found["binary, rescored by INT8"] == width + width // 8
    library = snippet.library_bytes(corpus)
    assert library["flat_bytes"] == rows * found["FP32"] and library["scalar_bytes"] == rows * found["INT8"]
    assert library["signs_bytes"] == rows * found["binary"] and library["codebook_bytes"] == 4 * 256 * width


def test_every_format_finds_itself_as_far_as_it_can() -> None:
    corpus = mixed(800, 64)
    made = snippet.formats(corpus)
    queries = corpus[:40]
    for name, one in made.items():
        found = one.find(queries, 10)
        assert found.shape == (40, 10), name
        if name not in ("PQ", "an eighth, INT8"):
            assert (found == torch.arange(40)[:, None]).any(1).float().mean() > 0.9, name


def test_trap_cut_dimensions_lose_what_a_rotation_keeps() -> None:
    """The same numbers a vector: the first ones, or those along the directions that matter."""
    corpus, queries = mixed(900, 64), mixed(50, 64, seed=1)
    made, nearest = snippet.formats(corpus), exact(corpus, queries, 10)

    def recall(name: str) -> float:
        return float(recalls(made[name].find(queries, 10), nearest).mean())

    assert made["a quarter, the first"].vector_bytes == made["a quarter, by PCA"].vector_bytes
    assert recall("a quarter, by PCA") > recall("a quarter, the first") + 0.2
    assert recall("BF16") > 0.95 and recall("INT8") > 0.85
    assert recall("binary, rescored by INT8") > recall("binary") + 0.2


def test_words_are_split_by_whether_the_title_is_in_the_question() -> None:
    titles = ["Macau", "Mark Mulder", "Venus"]
    asked = [
        "What is the population of Macau?",
        "Which planet is hot?",
        "Who is Mulder, Mark by name?",
        "Macau's port?",
    ]
    finding = Finding(asked, torch.tensor([0, 2, 1, 0]), titles)
    vectors = Vectors(torch.eye(3), torch.eye(3)[[0, 2, 0, 0]])  # the third one's vector is wrong
    shown = snippet.word_columns(vectors, finding)
    assert shown["asked_count"] == [4, 2, 2]
    assert shown["vectors_share"] == pytest.approx([3 / 4, 1, 1 / 2])
    assert shown["words_share"][1] == 1 and shown["words_share"][2] >= 0.5
    assert snippet.word_values(shown)["verbatim_share"] == 0.5


@pytest.mark.models
def test_values_of_the_small_scale() -> None:
    found, baseline = measured_small("embeddings/compressed_vectors"), controlled("embeddings/compressed_vectors")
    assert baseline.keys() < found.keys()
    assert found["fp32_vector_bytes"] == 1536 and found["binary_vector_bytes"] == found["pq_vector_bytes"] == 48
    assert found["int8_recall_share"] > 0.97 > found["half_recall_share"]
    assert found["binary_recall_share"] < found["pq_recall_share"] < found["rescored_recall_share"]
    assert found["quarter_recall_share"] + 0.2 < found["pca_recall_share"]
    assert baseline["pq_recall_share"] == baseline["binary_recall_share"] < found["binary_recall_share"]
    assert 0.5 < found["verbatim_share"] < 0.75
