from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from snippets.models import minilm
from snippets.models.encoder import encoder, sentence_vectors

pytestmark = pytest.mark.models

SENTENCES = [
    "A cat sleeps on the sofa.",
    "Rates rose.",
    "The kitten naps on a couch, and nobody in the house has the heart to wake it before the evening.",
    "naïve café — 東京 🙂",
    "",
]


@pytest.fixture(scope="module")
def theirs() -> BertModel:
    model = BertModel(BertConfig(**minilm.config())).eval()
    model.load_state_dict(minilm.load_state(), strict=True)
    return model


def their_vectors(model: BertModel, sentences: list[str]) -> torch.Tensor:
    """One sentence at a time, so nothing is padded: no mask can hide a mistake."""
    rows = []
    for sentence in sentences:
        tokenizer = minilm.tokenizer()
        tokenizer.no_padding()
        with torch.inference_mode():
            hidden = model(torch.tensor([tokenizer.encode(sentence).ids])).last_hidden_state[0]
        rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0))
    return torch.stack(rows)


def test_hidden_states_are_those_of_transformers(theirs: BertModel) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 20_000, (3, 17), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    with torch.inference_mode():
        wanted = theirs(ids, attention_mask=mask).last_hidden_state
        got = encoder()(ids, mask)
    real = mask.bool()
    assert (got - wanted)[real].abs().max() <= 1e-5
    assert wanted[real].abs().max() > 1


@pytest.mark.parametrize("batch", [1, 2, 64])
def test_sentence_vectors_are_in_order_whatever_the_batch(theirs: BertModel, batch: int) -> None:
    vectors = sentence_vectors(encoder(), SENTENCES, batch=batch)
    assert vectors.shape == (len(SENTENCES), 384) and vectors.dtype == torch.float32
    assert (vectors - their_vectors(theirs, SENTENCES)).abs().max() <= 1e-5
    assert torch.allclose(vectors.norm(dim=1), torch.ones(len(SENTENCES)), atol=1e-6)


def test_without_the_mask_padding_would_change_the_answer() -> None:
    model = encoder()
    ids = torch.tensor([[101, 6016, 3123, 102, 0, 0, 0]])
    with torch.inference_mode():
        masked = model(ids, (ids > 0).long())[0, :4]
        unmasked = model(ids, torch.ones_like(ids))[0, :4]
    assert (masked - unmasked).abs().max() > 0.01


def test_replaced_weights_are_used_and_a_missing_one_is_refused() -> None:
    state = minilm.load_state()
    name = "encoder.layer.2.output.dense.weight"
    changed = sentence_vectors(encoder(state=state | {name: torch.zeros_like(state[name])}), SENTENCES[:1])
    assert (changed - sentence_vectors(encoder(), SENTENCES[:1])).abs().max() > 0.01
    with pytest.raises(RuntimeError, match=r"output\.dense\.weight"):
        encoder(state={key: value for key, value in state.items() if key != name})


def test_bf16_stays_near_fp32() -> None:
    model = encoder(torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    cosine = (sentence_vectors(model, SENTENCES) * sentence_vectors(encoder(), SENTENCES)).sum(1)
    assert cosine.min() > 0.999
