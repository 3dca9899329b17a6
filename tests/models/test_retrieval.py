"""Retrieval: the pinned questions and titles, vectors between neighbours, exact search and BM25 against definitions."""

from __future__ import annotations

import json
import math
from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from snippets.models import retrieval
from snippets.models.files import loaded


def unit(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.models
def test_every_question_points_at_the_title_its_dataset_names() -> None:
    found = retrieval.finding()
    assert len(found.questions) == len(set(found.questions)) == len(found.answers) == 2103
    assert found.titles == sorted(set(found.titles)) and len(found.titles) == 4122
    assert {"fanoutqa/data/fanout-final-dev.json", "fanoutqa/data/fanout-final-test.json"} <= loaded().keys()
    named = dict(zip(found.questions, (found.titles[i] for i in found.answers), strict=True))
    assert named["What is the batting hand of Mark Mulder?"] == "Mark Mulder"
    assert named["What is the population of Macau?"] == "Macau"  # a step of a step


@pytest.mark.models
@pytest.mark.parametrize(("questions", "titles"), [(1, 1), (7, 31), (60, 400)])
def test_fewer_questions_keep_their_titles(questions: int, titles: int) -> None:
    everything, found = retrieval.finding(), retrieval.finding(questions, titles)
    named = dict(zip(everything.questions, (everything.titles[i] for i in everything.answers), strict=True))
    assert len(found.questions) == questions and len(found.titles) == titles
    assert [found.titles[i] for i in found.answers] == [named[q] for q in found.questions]
    assert set(found.titles) <= set(everything.titles)


@pytest.mark.models
@pytest.mark.parametrize(("questions", "titles"), [(3000, None), (10, 5), (10, 5000)])
def test_what_cannot_be_had_is_refused(questions: int, titles: int | None) -> None:
    with pytest.raises(ValueError, match="can be had"):
        retrieval.finding(questions, titles)


def test_a_question_asked_with_two_titles_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(question: str, title: str) -> dict:
        return {"question": question, "evidence": {"title": title}, "decomposition": []}

    rows = [{"decomposition": [step("a?", "A"), step("same?", "A"), step("same?", "B"), step("c?", "C")]}]
    splits = {"dev": rows, "test": [{"necessary_evidence": [{"title": "D"}]}]}
    monkeypatch.setattr(retrieval, "_split", lambda split: json.loads(json.dumps(splits[split])))
    found = retrieval.finding.__wrapped__()
    assert found.questions == ["a?", "c?"] and found.titles == ["A", "B", "C", "D"]
    assert found.answers.tolist() == [0, 2]
    assert found.verbatim.tolist() == [True, True]  # "a" and "c" stand in their questions


@pytest.mark.models
def test_vectors_are_the_encoders_in_order_and_of_unit_length() -> None:
    found, vectors = retrieval.finding(7, 31), retrieval.vectors(7, 31)
    assert vectors.titles.shape == (31, 384) and vectors.questions.shape == (7, 384)
    assert torch.allclose(vectors.titles.norm(dim=1), torch.ones(31), atol=1e-5)
    from snippets.models.encoder import encoder, sentence_vectors

    alone = sentence_vectors(encoder(), [found.titles[13], found.questions[5]])
    assert torch.allclose(alone, torch.stack([vectors.titles[13], vectors.questions[5]]), atol=1e-5)


@pytest.mark.parametrize(("n", "count"), [(5, 3), (7, 7), (11, 101), (30, 64)])
def test_enlarged_vectors_lie_between_neighbours(n: int, count: int) -> None:
    real = unit(n, 6)
    more = retrieval.enlarged(real, count, near=3)
    assert more.shape == (count, 6)
    assert torch.equal(more[:n], real[:count])
    assert torch.allclose(more.norm(dim=1), torch.ones(count), atol=1e-5)
    neighbours = retrieval.exact(real, real, 4)[:, 1:]
    for i in range(n, count):
        start = (i - n) % n
        # In the plane of a real vector and one of its neighbours, and between the two.
        fits = [
            torch.linalg.lstsq(real[[start, end]].T, more[i, :, None]).solution for end in neighbours[start].tolist()
        ]
        off = [
            (real[[start, end]].T @ f - more[i, :, None]).norm()
            for end, f in zip(neighbours[start].tolist(), fits, strict=True)
        ]
        best = fits[int(torch.stack(off).argmin())]
        assert min(off) < 1e-5 and (best > -1e-5).all()
    assert len(torch.unique(more, dim=0)) == count


@pytest.mark.parametrize(("n", "queries", "k", "batch"), [(3, 2, 1, 1), (7, 5, 3, 2), (53, 11, 7, 4)])
def test_exact_search_is_the_full_sort(n: int, queries: int, k: int, batch: int) -> None:
    corpus, asked = unit(n, 5), unit(queries, 5, seed=1)
    for row, question in zip(retrieval.exact(corpus, asked, k, batch), asked, strict=True):
        products = [float((question * vector).sum()) for vector in corpus]
        assert row.tolist() == sorted(range(n), key=lambda i: -products[i])[:k]


def test_bm25_ranks_as_its_formula() -> None:
    titles = [
        "Mark Mulder",
        "Mark Twain prize",
        "Macau",
        "World Car Awards",
        "List of car brands of the world",
        "Twain",
    ]
    asked = ["population macau", "mark twain", "world car brands", "car"]
    words = [[w for w in t.lower().split() if w not in ("of", "the")] for t in titles]
    mean = sum(map(len, words)) / len(words)
    k1, b = 1.5, 0.75

    def score(question: str, document: list[str]) -> float:
        counts, total = Counter(document), 0.0
        for word in question.split():
            holding = sum(word in other for other in words)
            idf = math.log(1 + (len(words) - holding + 0.5) / (holding + 0.5))
            total += idf * counts[word] / (counts[word] + k1 * (1 - b + b * len(document) / mean))
        return total

    found = retrieval.bm25(titles, asked, 1)[:, 0].tolist()
    assert found == [max(range(len(titles)), key=lambda i: score(q, words[i])) for q in asked]


def test_recalls_hits_and_errors_by_hand() -> None:
    nearest, found = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[3, 9, 1, 8], [7, 7, 7, 7]])
    assert retrieval.recalls(found, nearest).tolist() == pytest.approx([2 / 3, 0])
    assert retrieval.recalls(nearest, nearest).tolist() == [1, 1]
    assert retrieval.hits(found, torch.tensor([3, 4])).tolist() == [1, 0]
    mean, error = retrieval.mean_error(torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0]))
    assert mean == pytest.approx(0.6) and error == pytest.approx(math.sqrt(0.3 / 5))
