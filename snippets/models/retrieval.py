"""Finding the title that answers a question: real sentence vectors, exact search, BM25, recall.

Questions and Wikipedia titles are those of FanOutQA (arXiv:2402.14116), read where the package is installed: the dev
split names the title that each sub-question needs, the test split names more titles. Vectors are MiniLM's, FP32 as
published. A title often stands in its question word for word, which is why BM25 belongs beside every figure.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, TypeVar

import bm25s
import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.models.encoder import encoder, sentence_vectors
from snippets.models.files import packaged_file

_SHA256 = {
    "dev": "359300b029c6891567816f351bf8786e9b018d7af8a1a44b7da9ba5ef4651288",
    "test": "bb98b76d196842ac239682e4b85bf23470f2351c4f439a08aacf8c2a2ac76b78",
}
_T = TypeVar("_T")


class Finding(NamedTuple):
    """Questions, the place of each one's title in `titles`, and all titles there are to choose from, sorted."""

    questions: list[str]
    answers: Tensor  # (questions,)
    titles: list[str]

    @property
    def verbatim(self) -> Tensor:
        """Whether a question holds its title word for word, in any case: (questions,)."""
        pairs = zip(self.questions, self.answers.tolist(), strict=True)
        return torch.tensor([self.titles[answer].lower() in question.lower() for question, answer in pairs])


class Vectors(NamedTuple):
    """Unit vectors, FP32, on the CPU: of titles (titles, hidden) and of questions (questions, hidden)."""

    titles: Tensor
    questions: Tensor


def _split(split: str) -> list[dict[str, Any]]:
    path = packaged_file("fanoutqa", f"data/fanout-final-{split}.json", _SHA256[split])
    return json.loads(path.read_text(encoding="utf-8"))


def _evidence(steps: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(sub-question, title) of every step that a page answers, steps of steps included."""
    for step in steps:
        if step.get("evidence"):
            yield step["question"], step["evidence"]["title"]
        yield from _evidence(step["decomposition"])


def _spread(things: Sequence[_T], count: int) -> list[_T]:
    """So many of them, evenly spaced."""
    return [things[i * len(things) // count] for i in range(count)]


@cache
def finding(questions: int | None = None, titles: int | None = None) -> Finding:
    """So many of the questions, and their titles among so many; all of either where None.

    A sub-question asked twice with different titles is left out: it has no one answer.

    Raises:
        ValueError: more than there are, or fewer titles than the questions need.
    """
    asked: dict[str, set[str]] = {}
    for row in _split("dev"):
        for question, title in _evidence(row["decomposition"]):
            asked.setdefault(question, set()).add(title)
    single = [(question, next(iter(found))) for question, found in asked.items() if len(found) == 1]
    everything = {title for found in asked.values() for title in found}
    everything |= {page["title"] for row in _split("test") for page in row["necessary_evidence"]}
    chosen = _spread(single, min(len(single), questions or len(single)))
    needed = {title for _, title in chosen}
    wanted = titles or len(everything)
    if (questions or 0) > len(single) or not len(needed) <= wanted <= len(everything):
        raise ValueError(f"{len(single)} questions and {len(needed)} to {len(everything)} titles can be had")
    kept = sorted(needed | set(_spread(sorted(everything - needed), wanted - len(needed))))
    place = {title: i for i, title in enumerate(kept)}
    return Finding([q for q, _ in chosen], torch.tensor([place[title] for _, title in chosen]), kept)


@cache
def vectors(questions: int | None = None, titles: int | None = None, device: str = "cpu") -> Vectors:
    """MiniLM's vectors of `finding(questions, titles)`, computed on `device` once in a process."""
    found, model = finding(questions, titles), encoder(device=device)
    both = [sentence_vectors(model, texts, batch=32).cpu() for texts in (found.titles, found.questions)]
    return Vectors(*both)


def enlarged(real: Tensor, count: int, near: int = 8) -> Tensor:
    """The real unit vectors (n, d), then vectors between neighbours, up to `count`: (count, d).

    As in SMOTE (arXiv:1106.1813): a real vector moved some of the way to one of its `near` nearest, then normalised.
    Shares of the way are multiples of the golden ratio modulo one, so nothing is drawn and nothing needs a seed.
    """
    n, more = len(real), count - len(real)
    if more <= 0:
        return real[:count]
    neighbours = exact(real, real, near + 1)[:, 1:]  # without the vector itself
    added = torch.arange(more)
    start, turn = added % n, added // n
    share = ((added + 1).double() * (5**0.5 - 1) / 2 % 1).float()[:, None]
    end = neighbours[start, turn % near]
    return torch.cat([real, F.normalize(real[start] + share * (real[end] - real[start]), dim=1)])


def exact(corpus: Tensor, queries: Tensor, k: int, batch: int = 512) -> Tensor:
    """Indices of the k largest inner products, nearest first: (queries, k). One product, on the tensors' device."""
    return torch.cat([(part @ corpus.T).topk(k).indices for part in queries.split(batch)])


def bm25(titles: Sequence[str], questions: Sequence[str], k: int) -> Tensor:
    """Indices of the k titles that BM25 ranks highest, by the library's own tokens: (questions, k)."""
    tokens = bm25s.tokenize(list(titles), stopwords="en", show_progress=False)
    index = bm25s.BM25()
    index.index(tokens, show_progress=False)
    asked = bm25s.tokenize(list(questions), stopwords="en", show_progress=False)
    return torch.from_numpy(index.retrieve(asked, k=k, show_progress=False).documents.astype("int64"))


def recalls(found: Tensor, nearest: Tensor) -> Tensor:
    """Share of the true `nearest` (queries, k) among those `found` (queries, any): (queries,), FP64."""
    return (nearest[:, :, None] == found[:, None, :]).any(2).double().mean(1)


def hits(found: Tensor, answers: Tensor) -> Tensor:
    """Whether the first one found (queries, any) is the answer (queries,): (queries,), FP64."""
    return (found[:, 0] == answers).double()


def mean_error(values: Tensor) -> tuple[float, float]:
    """Mean over queries and its standard error; of a difference of two searches it is the paired error."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
