"""Counted is every operation that a sentence's vector takes in FP32, on tensors without content; a lookup is one
launch, since it reads next to nothing. Tokenizing and hashing are left out."""

from __future__ import annotations

from functools import cache

import torch

from snippets.instruments.targets import Target
from snippets.models import minilm
from snippets.models.encoder import Encoder, sentence_vectors
from snippets.predictions.counting import Work, counted
from snippets.throughput.caching import asked_questions


def predict(target: Target) -> dict[str, float | str]:
    """Every R and H value of the page."""
    compute = _vector_work().seconds(target, "float32")
    held = minilm.config()["hidden_size"] * torch.float32.itemsize
    lookup = target.seconds("float32", bytes=held, launches=1)
    return {"lookup_ratio": compute / lookup, "compute_seconds": compute, "lookup_seconds": lookup}


@cache
def _vector_work() -> Work:
    """The page's own call: its first question, alone."""
    with torch.device("meta"):
        model = Encoder(minilm.config()).requires_grad_(False)
    return counted(sentence_vectors, model, [next(iter(asked_questions()))])
