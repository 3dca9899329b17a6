"""Choosing the next token from its distribution."""

from __future__ import annotations

from torch import Tensor


def top_p(probabilities: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose chances reach `p`, scaled to sum to one (arXiv:1904.09751).

    Probabilities are (..., vocabulary). The likeliest token always stays.

    Raises:
        ValueError: `p` is not above zero, or above one.
    """
    if not 0 < p <= 1:
        raise ValueError(f"top-p keeps a share above zero and at most one of the chances, not {p}")
    ordered, places = probabilities.sort(dim=-1, descending=True)
    before = ordered.cumsum(dim=-1) - ordered  # a token stays if those before it have not reached p
    kept = ordered.masked_fill(before >= p, 0.0)
    return kept.new_zeros(kept.shape).scatter(-1, places, kept / kept.sum(-1, keepdim=True))
