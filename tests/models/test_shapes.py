"""Counts from the shapes equal the published totals and what transformers and our decoder allocate."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

from snippets.models import shapes
from snippets.models.decoder import Block, Decoder
from snippets.models.shapes import Geometry, parameters

pytestmark = pytest.mark.models

PUBLISHED = {
    shapes.LLAMA_3_8B: 8_030_261_248,
    shapes.LLAMA_3_70B: 70_553_706_496,
    shapes.LLAMA_2_7B: 6_738_415_616,
    shapes.MISTRAL_7B: 7_241_732_096,
    shapes.GEMMA_7B: 8_537_680_896,
    shapes.QWEN3_0_6B: 596_049_920,
    shapes.SMOLLM2_135M: 134_515_008,
}
CONFIGS = {
    shapes.GEMMA_7B: transformers.GemmaConfig,
    shapes.QWEN3_0_6B: transformers.Qwen3Config,
    shapes.MISTRAL_7B: transformers.MistralConfig,
}


def by_name(geometry: Geometry) -> str:
    return geometry.name


@pytest.mark.parametrize("geometry", PUBLISHED, ids=by_name)
def test_total_is_the_published_one(geometry: Geometry) -> None:
    assert parameters(geometry).total == PUBLISHED[geometry]


@pytest.mark.parametrize("geometry", PUBLISHED, ids=by_name)
def test_total_is_what_transformers_allocates(geometry: Geometry) -> None:
    config = CONFIGS.get(geometry, transformers.LlamaConfig)(
        num_hidden_layers=geometry.layers,
        hidden_size=geometry.hidden,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        intermediate_size=geometry.ffn,
        vocab_size=geometry.vocabulary,
        tie_word_embeddings=geometry.tied,
        pad_token_id=None,
    )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    if geometry.tied:
        model.tie_weights()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters(geometry).total


@pytest.mark.parametrize("geometry", [g for g in PUBLISHED if not g.qk_norm], ids=by_name)
def test_parts_are_what_our_decoder_allocates(geometry: Geometry) -> None:
    with torch.device("meta"):
        decoder = Decoder(geometry)
    counted = parameters(geometry)
    linear = [m.weight for block in decoder.layers for m in block.modules() if isinstance(m, torch.nn.Linear)]
    assert sum(weight.numel() for weight in linear) == counted.linear
    assert decoder.embed_tokens.weight.numel() == counted.embedding
    assert (0 if geometry.tied else decoder.lm_head.weight.numel()) == counted.head
    assert sum(parameter.numel() for parameter in decoder.parameters()) == counted.total


def test_linear_shapes_are_those_of_a_block() -> None:
    with torch.device("meta"):
        block = Block(shapes.LLAMA_3_8B)
    built = {n: tuple(m.weight.shape) for n, m in block.named_modules() if isinstance(m, torch.nn.Linear)}
    assert built == shapes.LLAMA_3_8B.linear_shapes


@pytest.mark.parametrize(("geometry", "quotient"), [(shapes.GEMMA_7B, 192), (shapes.QWEN3_0_6B, 64)])
def test_hidden_over_heads_is_not_head_dim(geometry: Geometry, quotient: int) -> None:
    assert geometry.hidden // geometry.heads == quotient != geometry.head_dim


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="no multiple of 5 kv_heads"):
        dataclasses.replace(shapes.SMOLLM2_135M, kv_heads=5)


def test_every_shape_names_its_source() -> None:
    from measured import sources

    found = [g for g in vars(shapes).values() if isinstance(g, shapes.Geometry)]
    assert len(found) >= 7
    assert not [g.name for g in found if g.source not in sources.load()]
