"""A decoder of odd sizes, and tokens for it: a swapped axis or a forgotten factor shows."""

from __future__ import annotations

import torch
from torch import Tensor

from snippets.models.decoder import Decoder, initialize
from snippets.models.shapes import Geometry

# No two sizes are equal, and hidden / heads is not head_dim.
ODD = Geometry("odd", 3, 35, 6, 3, 14, 22, 53, True, "none", rope_theta=1_000.0)


def odd_decoder() -> Decoder:
    """With random weights, frozen."""
    decoder = Decoder(ODD)
    initialize(decoder, seed=3, std=0.3)
    return decoder.requires_grad_(False).eval()


def odd_ids(batch: int, tokens: int, seed: int = 7) -> Tensor:
    """Tokens (batch, tokens)."""
    return torch.randint(ODD.vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))
