from __future__ import annotations

import pytest
import torch

from snippets.models import files, similarity
from snippets.models.encoder import encoder
from snippets.models.similarity import jackknife_error, left_out, paired_spearman, parse, ranks, spearman


def row(score: str = "2.5", first: str = "one", second: str = "two", more: str = "") -> str:
    return f"genre\tfile\tyear\t1\t{score}\t{first}\t{second}{more}"


@pytest.mark.models
@pytest.mark.parametrize(("split", "rows"), [("train", 5749), ("dev", 1500), ("test", 1379)])
def test_every_row_of_every_split_is_read(split: str, rows: int) -> None:
    found = similarity.pairs(split)
    assert len(found.first) == len(found.second) == len(found.score) == rows
    assert all(found.first) and all(found.second)
    assert 0 <= found.score.min() < 0.5 < 4.5 < found.score.max() <= 5


@pytest.mark.models
def test_test_rows_are_not_dev_rows() -> None:
    # The package's own loader hands out dev for test.
    test, dev = similarity.pairs("test"), similarity.pairs("dev")
    assert len(set(zip(test.first, test.second, strict=True)) & set(zip(dev.first, dev.second, strict=True))) < 10


@pytest.mark.models
def test_a_changed_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(similarity._SHA256, "test", "0" * 64)
    with pytest.raises(files.ModelFileError, match="pinned"):
        similarity.pairs("test")


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="no split 'validation'; there are train, dev, test"):
        similarity.pairs("validation")


def test_parse_takes_rows_with_sources_and_keeps_quotation_marks() -> None:
    text = row(first='"Quoted, with a comma', more="\tsource\tsource") + "\n" + row("5.000", "a", " b ") + "\n"
    found = parse(text)
    assert (found.first, found.second) == (['"Quoted, with a comma', "a"], ["two", "b"])
    assert found.score.tolist() == [2.5, 5.0]


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("a\tb\tc", "row 2 has 3 fields"),
        (row(more="\tx"), "row 2 has 8 fields"),
        ("", "row 2 has 1 fields"),
        (row("5.1"), "row 2 has score 5.1"),
        (row("nan"), "row 2 has score nan"),
        (row(second=" "), "row 2 .* empty sentence"),
        (row("high"), "could not convert"),
    ],
)
def test_a_wrong_row_is_refused(bad: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(f"{row()}\n{bad}\n{row()}\n")


def test_ranks_by_hand_with_ties() -> None:
    assert ranks(torch.tensor([30.0, 10.0, 20.0, 10.0, 30.0, 30.0])).tolist() == [5.0, 1.5, 3.0, 1.5, 5.0, 5.0]
    assert ranks(torch.tensor([[2.0, 1.0], [1.0, 1.0]])).tolist() == [[2.0, 1.0], [1.5, 1.5]]


def test_spearman_by_hand() -> None:
    # No ties: 1 - 6 Σd² / (n(n² - 1)), with d = (1, -1, 0, 1, -1).
    a, b = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0]), torch.tensor([2.0, 1.0, 3.0, 5.0, 4.0])
    assert float(spearman(a, b)) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # Ties: ranks (1.5, 1.5, 3, 4) and (1, 2.5, 2.5, 4): Pearson by hand is 3.75 / 4.5.
    c, d = torch.tensor([1.0, 1.0, 2.0, 9.0]), torch.tensor([0.0, 5.0, 5.0, 6.0])
    assert float(spearman(c, d)) == pytest.approx(3.75 / 4.5)
    assert float(spearman(a, -a)) == pytest.approx(-1)
    assert float(spearman(a, a.exp2())) == pytest.approx(1)  # only the order counts


def test_spearman_is_pearsons_of_counted_ranks() -> None:
    generator = torch.Generator().manual_seed(1)
    for n in (3, 5, 7, 200):
        a = torch.randint(0, 5, (n,), generator=generator).double()
        b = a + torch.randint(0, 4, (n,), generator=generator).double() + torch.arange(n) % 2
        counted = [
            torch.tensor([sum(float(v < x) + float(v == x) / 2 for v in values) + 0.5 for x in values])
            for values in (a.tolist(), b.tolist())
        ]
        assert float(spearman(a, b)) == pytest.approx(float(torch.corrcoef(torch.stack(counted))[0, 1]), abs=1e-6)


def test_left_out_drops_one_each() -> None:
    assert left_out(torch.tensor([1.0, 2.0, 3.0])).tolist() == [[2.0, 3.0], [1.0, 3.0], [1.0, 2.0]]


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    draws = torch.randn(57, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert jackknife_error(left_out(draws).mean(1)) == pytest.approx(float(draws.std() / 57**0.5))


def test_jackknife_of_spearman_is_near_the_bootstrap() -> None:
    generator = torch.Generator().manual_seed(3)
    score = torch.randn(300, dtype=torch.float64, generator=generator)
    a = score + 0.6 * torch.randn(300, dtype=torch.float64, generator=generator)
    b = score + 0.8 * torch.randn(300, dtype=torch.float64, generator=generator)
    drawn = torch.randint(0, 300, (2000, 300), generator=generator)
    differences = spearman(a[drawn], score[drawn]) - spearman(b[drawn], score[drawn])
    difference, error = paired_spearman(a, b, score)
    assert difference == pytest.approx(float(spearman(a, score)) - float(spearman(b, score)))
    assert error == pytest.approx(float(differences.std()), rel=0.12)
    assert similarity.spearman_error(a, score)[1] == pytest.approx(
        float(spearman(a[drawn], score[drawn]).std()), rel=0.12
    )


def test_pairing_removes_what_both_share() -> None:
    generator = torch.Generator().manual_seed(4)
    score = torch.randn(400, dtype=torch.float64, generator=generator)
    a = score + torch.randn(400, dtype=torch.float64, generator=generator)
    nearly = a + 0.02 * torch.randn(400, dtype=torch.float64, generator=generator)
    assert paired_spearman(a, nearly, score)[1] < similarity.spearman_error(a, score)[1] / 10
    assert paired_spearman(a, a, score) == (0.0, 0.0)


@pytest.mark.models
def test_minilm_agrees_with_people_and_order_of_sides_does_not_matter() -> None:
    test = similarity.pairs("test")
    some = similarity.thinned(test, 9)
    assert (some.first[1], some.second[1], some.score[1]) == (test.first[9], test.second[9], test.score[9])
    model = encoder()
    found = similarity.similarities(model, some)
    assert found.shape == some.score.shape
    assert float(spearman(found, some.score)) > 0.75
    turned = similarity.similarities(model, similarity.Pairs(some.second, some.first, some.score))
    assert torch.allclose(found, turned, atol=1e-6)
