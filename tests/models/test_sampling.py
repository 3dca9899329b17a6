"""Top-p: a hand's case, the library's warper, and what must not be cut."""

from __future__ import annotations

import pytest
import torch

from snippets.models.sampling import top_p

pytestmark = pytest.mark.models


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.4, [0, 1, 0, 0]), (0.5, [0, 1, 0, 0]), (0.51, [0, 5, 3, 0]), (0.85, [0, 5, 3, 1.5]), (1.0, [0.5, 5, 3, 1.5])],
)
def test_by_hand(p: float, kept: list[float]) -> None:
    chances = torch.tensor([0.05, 0.5, 0.3, 0.15], dtype=torch.float64)
    wanted = torch.tensor(kept, dtype=torch.float64)
    assert torch.allclose(top_p(chances, p), wanted / wanted.sum())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("vocabulary", [1, 2, 7, 53])
def test_equals_the_librarys_warper(vocabulary: int, p: float) -> None:
    from transformers import TopPLogitsWarper

    logits = 3 * torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    wanted = TopPLogitsWarper(p)(torch.zeros(5, 1, dtype=torch.long), logits).softmax(-1)
    assert torch.allclose(top_p(logits.softmax(-1), p), wanted, atol=1e-6)


def test_rows_are_cut_apart_and_the_likeliest_always_stays() -> None:
    rows = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.3, 0.3]])
    assert top_p(rows, 0.5).count_nonzero(dim=-1).tolist() == [1, 2]
    assert torch.equal(top_p(rows, 1e-9).argmax(-1), rows.argmax(-1))


@pytest.mark.parametrize("p", [0.0, -0.5, 1.01])
def test_a_share_that_is_none_is_refused(p: float) -> None:
    with pytest.raises(ValueError, match="top-p keeps"):
        top_p(torch.tensor([0.5, 0.5]), p)
