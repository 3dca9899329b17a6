"""SmolLM2 as we load it, and as transformers does from the same GGUF: each once a session."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

from snippets.models import smollm2
from snippets.models.decoder import Decoder
from snippets.models.files import packaged_file
from snippets.models.shapes import Geometry

# No two of these sizes are equal, and hidden / heads is not head_dim: a swapped axis shows.
TINY = Geometry("tiny", 3, 42, 6, 2, 10, 36, 53, True, "none", rope_theta=1_000.0)


@pytest.fixture
def tiny() -> Geometry:
    return TINY


@pytest.fixture
def llama() -> Callable[..., Any]:
    """Builds transformers' Llama of a geometry, with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    def build(geometry: Geometry, **changes: Any) -> Any:
        fields: dict[str, Any] = {
            "num_hidden_layers": geometry.layers,
            "hidden_size": geometry.hidden,
            "num_attention_heads": geometry.heads,
            "num_key_value_heads": geometry.kv_heads,
            "head_dim": geometry.head_dim,
            "intermediate_size": geometry.ffn,
            "vocab_size": geometry.vocabulary,
            "tie_word_embeddings": geometry.tied,
            "rms_norm_eps": geometry.norm_epsilon,
            "rope_parameters": {"rope_type": "default", "rope_theta": geometry.rope_theta},
        }
        torch.manual_seed(5)
        return LlamaForCausalLM(LlamaConfig(**fields | changes)).eval()

    return build


@pytest.fixture(scope="session")
def ours() -> Decoder:
    return smollm2.decoder()


@pytest.fixture(scope="session")
def gguf_folder() -> str:
    return str(packaged_file(smollm2._PACKAGE, smollm2._FILE, smollm2._SHA256).parent)


@pytest.fixture(scope="session")
def theirs(gguf_folder: str) -> Any:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(gguf_folder, gguf_file=smollm2._FILE, dtype=torch.float32).eval()


@pytest.fixture(scope="session")
def their_tokenizer(gguf_folder: str) -> Any:
    from transformers import AutoTokenizer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(gguf_folder, gguf_file=smollm2._FILE)
