"""MiniLM's BERT encoder in plain PyTorch, and the sentence vectors it is used for.

Parameters are named as in transformers' `BertModel`: weights load by name, and one matrix can be replaced by name.
Formulas: BERT (arXiv:1810.04805), mean pooling over tokens as in Sentence-BERT (arXiv:1908.10084).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from snippets.models import minilm

Device = torch.device | str


class _Embeddings(nn.Module):
    """Token + position + segment (always the first), normed."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden = config["hidden_size"]
        self.word_embeddings = nn.Embedding(config["vocab_size"], hidden)
        self.position_embeddings = nn.Embedding(config["max_position_embeddings"], hidden)
        self.token_type_embeddings = nn.Embedding(config["type_vocab_size"], hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=config["layer_norm_eps"])

    def forward(self, ids: Tensor) -> Tensor:
        places = self.position_embeddings.weight[: ids.shape[1]]
        return self.LayerNorm(self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + places)


class _Projections(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(hidden, hidden) for _ in range(3))


class _Output(nn.Module):
    """A product, the residual, a norm behind both."""

    def __init__(self, columns: int, hidden: int, epsilon: float) -> None:
        super().__init__()
        self.dense = nn.Linear(columns, hidden)
        self.LayerNorm = nn.LayerNorm(hidden, eps=epsilon)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)


class Layer(nn.Module):
    """One encoder layer: hidden states (batch, tokens, hidden) → the same shape."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        hidden, ffn, epsilon = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.heads = config["num_attention_heads"]
        self.attention = nn.ModuleDict({"self": _Projections(hidden), "output": _Output(hidden, hidden, epsilon)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(hidden, ffn)})
        self.output = _Output(ffn, hidden, epsilon)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        project: Any = self.attention["self"]
        queries, keys, values = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (project.query, project.key, project.value)
        )  # (batch, heads, tokens, head_dim)
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen)
        x = self.attention["output"](mixed.transpose(1, 2).flatten(2), x)
        return self.output(F.gelu(self.intermediate["dense"](x)), x)


class Encoder(nn.Module):
    """Token ids → hidden states, bidirectional. The pooler of `BertModel` is left out: nothing here reads it."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.embeddings = _Embeddings(config)
        layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (batch, tokens, hidden) of ids (batch, tokens); `mask`, same shape, is true at real tokens."""
        x, seen = self.embeddings(ids), mask.bool()[:, None, None, :]
        layers: Any = self.encoder.layer
        for layer in layers:
            x = layer(x, seen)
        return x


def encoder(
    dtype: torch.dtype = torch.float32, device: Device = "cpu", state: Mapping[str, Tensor] | None = None
) -> Encoder:
    """MiniLM, frozen; `state` replaces its weights, under the same names (a pooler's are ignored).

    Raises:
        RuntimeError: a name is missing or foreign.
    """
    weights = minilm.load_state() if state is None else state
    with torch.device("meta"):
        built = Encoder(minilm.config())
    kept = {name: tensor.to(device, dtype) for name, tensor in weights.items() if not name.startswith("pooler.")}
    built.load_state_dict(kept, strict=True, assign=True)
    return built.requires_grad_(False).eval()


@cache
def _tokenizer() -> Tokenizer:
    """Padded to the longest of a call, where the stored one pads everything to one length."""
    stored = minilm.tokenizer()
    stored.enable_padding(pad_id=minilm.config()["pad_token_id"], pad_token="[PAD]")
    return stored


@torch.inference_mode()
def sentence_vectors(encoder: Encoder, sentences: Sequence[str], batch: int = 64) -> Tensor:
    """Unit vectors (sentences, hidden), FP32: the mean of a sentence's hidden states, normalised.

    Sentences of like length run together, so that little is padded; the order returned is the order given.
    """
    device = encoder.embeddings.word_embeddings.weight.device
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))
    vectors = torch.empty(len(sentences), encoder.embeddings.word_embeddings.embedding_dim, device=device)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        encodings = _tokenizer().encode_batch([sentences[i] for i in chosen])
        ids = torch.tensor([e.ids for e in encodings], device=device)
        mask = torch.tensor([e.attention_mask for e in encodings], device=device)
        hidden = encoder(ids, mask).float()
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        vectors[torch.tensor(chosen, device=device)] = F.normalize(mean, dim=1)
    return vectors
