"""Does the vector carry meaning? Neighbours and analogies by hand on odd sizes, each trap shown wrong."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from snippets.embeddings import semantic_neighbours as page

WORDS = [words for group in (page.CATEGORIES, page.SEMANTIC, page.SYNTACTIC) for words in group.values()]


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    monkeypatch.setattr(page, "NEIGHBOURS", 3)
    return torch.randn(11, 7, generator=torch.Generator().manual_seed(0))


def test_shares_by_hand(toy: torch.Tensor) -> None:
    labels = torch.arange(11) % 2
    rows, own = toy.tolist(), []
    for i in range(11):
        order = sorted((j for j in range(11) if j != i), key=lambda j: -cosine(rows[i], rows[j]))[:3]
        own.append(sum(i % 2 == j % 2 for j in order) / 3)
    assert page.shares(toy, labels).tolist() == pytest.approx(own)


def test_barred_words_are_never_neighbours(toy: torch.Tensor) -> None:
    group = torch.arange(11) // 3
    found = page.nearest(toy, group[:, None] == group)
    assert found.shape == (11, 3)
    assert not (group[found] == group[:, None]).any()


def test_permuted_labels_give_the_chance_of_the_formula(toy: torch.Tensor) -> None:
    labels = torch.arange(10) // 5
    found = page.permuted(toy[:10], labels, 2000)
    assert float(found.mean()) == pytest.approx((5 - 1) / (10 - 1), abs=4 * float(found.std()) / 2000**0.5)


def test_perfect_clusters_are_found_and_shuffled_ones_are_not(toy: torch.Tensor) -> None:
    labels = torch.arange(12) // 4
    rows = F.one_hot(labels, 7) + 0.01 * torch.randn(12, 7, generator=torch.Generator().manual_seed(1))
    assert page.shares(rows, labels).mean() == 1.0
    assert float(page.permuted(rows, labels, 200).mean()) < 0.4


def analogy_by_hand(unit: torch.Tensor, pairs: list[tuple[int, int]], barred: bool) -> list[float]:
    rows, hits = unit.double().tolist(), []
    for c, d in pairs:
        right = []
        for a, b in pairs:
            if (a, b) == (c, d):
                continue
            query = [y - x + z for x, y, z in zip(rows[a], rows[b], rows[c], strict=True)]
            allowed = [v for v in range(len(rows)) if not barred or v not in (a, b, c)]
            right.append(max(allowed, key=lambda v: cosine(query, rows[v])) == d)
        hits.append(sum(right) / len(right))
    return hits


@pytest.mark.parametrize("hidden", [5, 7])
def test_analogies_by_hand(hidden: int) -> None:
    """The sum of cosines that is computed ranks as the cosine with the summed query does."""
    generator = torch.Generator().manual_seed(hidden)
    start, offset = torch.randn(5, hidden, generator=generator), torch.randn(hidden, generator=generator)
    ends = start + offset + 0.3 * torch.randn(5, hidden, generator=generator)
    unit = F.normalize(torch.cat([start, ends, torch.randn(13, hidden, generator=generator)]), dim=1)
    pairs = [(i, i + 5) for i in range(5)]
    found = page.analogies(unit, torch.tensor(pairs))
    assert found["excluded"].tolist() == pytest.approx(analogy_by_hand(unit, pairs, barred=True))
    assert found["free"].tolist() == pytest.approx(analogy_by_hand(unit, pairs, barred=False))
    assert all(float(each.min()) >= 0 and float(each.max()) <= 1 for each in found.values())


def test_trap_barring_the_question_makes_analogies_of_mere_nearness() -> None:
    """Pairs that lie close in random directions share no offset; barred answers find them, free ones echo c."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 64, generator=generator)
    close = start + 0.5 * torch.randn(7, 64, generator=generator)
    unit = F.normalize(torch.cat([start, close, torch.randn(50, 64, generator=generator)]), dim=1)
    found = page.analogies(unit, torch.stack([torch.arange(7), torch.arange(7) + 7], dim=1))
    assert found["excluded"].mean() > 0.9
    assert found["free"].mean() < 0.1
    assert found["alone"].mean() == 1.0


def test_a_true_offset_needs_no_barring() -> None:
    generator = torch.Generator().manual_seed(0)
    start, offset = torch.randn(7, 64, generator=generator), torch.randn(64, generator=generator)
    unit = F.normalize(torch.cat([start, start + 3 * offset]), dim=1)
    found = page.analogies(unit, torch.stack([torch.arange(7), torch.arange(7) + 7], dim=1))
    assert found["free"].mean() > 0.9 and found["echo"].mean() < 0.1


def test_preparing_removes_the_mean_and_the_strongest_direction() -> None:
    direction = F.normalize(torch.arange(1.0, 8.0), dim=0)
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(101, 7, generator=generator) + 20 * torch.randn(101, 1, generator=generator) * direction + 5
    tables = page.prepared(table)
    assert torch.equal(tables["stored"], table)
    assert float(tables["centred"].mean(0).abs().max()) < 1e-4
    assert float((tables["centred"] @ direction).std()) > 10
    assert float((tables["stripped"] @ direction).std()) < 0.5


@pytest.mark.models
@pytest.mark.parametrize("words", WORDS)
def test_listed_words_are_single_tokens_and_differ(words: str) -> None:
    ids = page.token_ids(words)
    assert page.tokenizer().decode(ids.tolist()).split() == words.split()
    if words not in page.SEMANTIC.values():
        assert len(ids.unique()) == len(ids)


@pytest.mark.models
def test_a_word_of_several_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="aardvark"):
        page.token_ids("dog aardvark")


@pytest.mark.models
def test_lists_are_as_long_as_the_page_counts() -> None:
    assert {len(words.split()) for words in page.CATEGORIES.values()} == {12}
    assert all(len(words.split()) == 32 for words in (page.SEMANTIC | page.SYNTACTIC).values())


@pytest.mark.models
def test_the_plane_keeps_what_a_gram_matrix_says() -> None:
    """A second way to the variance of the leading axes: eigenvalues of the words' centred products."""
    ids, _ = page.labelled()
    points, kept = page.plane(page.matrix())
    rows = page.matrix()[ids].double()
    gram = (rows - rows.mean(0)) @ (rows - rows.mean(0)).T
    strengths = torch.linalg.eigvalsh(gram)
    assert kept == pytest.approx(float(strengths[-2:].sum() / strengths.sum()), rel=1e-9)
    assert points.square().sum(0).tolist() == pytest.approx(strengths[-2:].flip(0).tolist(), rel=1e-9)
