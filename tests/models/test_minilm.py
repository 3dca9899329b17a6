from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from snippets.models import minilm

pytestmark = pytest.mark.models


def test_state_is_all_of_the_bert_model_and_it_understands() -> None:
    model = BertModel(BertConfig(**minilm.config())).eval()
    state = minilm.load_state()
    model.load_state_dict(state, strict=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert sum(tensor.numel() for tensor in state.values()) == 22_713_216

    tokenizer = minilm.tokenizer()
    vectors = []
    for text in ("A cat sleeps on the sofa.", "The kitten naps on a couch.", "Interest rates rose a point."):
        encoding = tokenizer.encode(text)
        with torch.inference_mode():
            hidden = model(
                torch.tensor([encoding.ids]), attention_mask=torch.tensor([encoding.attention_mask])
            ).last_hidden_state[0]
        vectors.append(hidden[torch.tensor(encoding.attention_mask).bool()].mean(0))
    related = torch.cosine_similarity(vectors[0], vectors[1], dim=0)
    unrelated = torch.cosine_similarity(vectors[0], vectors[2], dim=0)
    assert related > unrelated + 0.4


def test_linear_weights_are_six_layers_of_six_matrices_divisible_by_128() -> None:
    weights = minilm.linear_weights()
    assert len(weights) == 6 * 6
    # Four attention matrices of 384 × 384, and 384 ↔ 1,536.
    assert sum(weight.numel() for weight in weights.values()) == 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    assert all(weight.shape[1] % 128 == 0 for weight in weights.values())


def test_weights_were_not_on_an_8_bit_grid() -> None:
    row = minilm.linear_weights()["encoder.layer.0.attention.self.query.weight"][0]
    assert row.unique().numel() > 256
