"""A sentence's lookup and its one-hot product: rows read and written, or every row of the matrix, and the launches."""

from __future__ import annotations

import torch

from snippets.embeddings.lookup import lookup
from snippets.instruments.targets import Target
from snippets.models.shapes import SMOLLM2_135M
from snippets.predictions.counting import counted

SENTENCE_TOKENS = 32  # of the page's sentence; its text is not read here


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    rows, hidden = SMOLLM2_135M.vocabulary, SMOLLM2_135M.hidden
    matrix = torch.empty(rows, hidden, dtype=torch.bfloat16, device="meta")
    ids = torch.empty(SENTENCE_TOKENS, dtype=torch.long, device="meta")
    hot = torch.empty(SENTENCE_TOKENS, rows, dtype=matrix.dtype, device="meta")
    found = counted(lookup, ids, matrix).seconds(target, "bfloat16")
    product = counted(torch.matmul, hot, matrix).seconds(target, "bfloat16")
    return {
        "lookup_seconds": found,
        "product_seconds": product,
        "product_over_lookup_ratio": product / found,
        "medium_differing_count": "how an FP32 product rounds its inputs, which a device's library chooses",
    }
