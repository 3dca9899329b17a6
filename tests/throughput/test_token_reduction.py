"""What do fewer tokens cost? Pruning against plain loops, stops against whole answers, traps shown wrong."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from snippets.models import smollm2
from snippets.models.decoder import generate
from snippets.models.encoder import Encoder, encoder, sentence_vectors
from snippets.throughput import token_reduction as snippet
from tests.odd import odd_decoder, odd_ids
from tests.small import controlled, failing_small, measured_small

NAME = "throughput/token_reduction"
SENTENCES = ["Who wrote it?", "What is the capital of the largest country in Europe?", "No.", "Why is the sky so blue?"]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return encoder()


def at_least(end: int, written: list[int]) -> bool:
    return len(written) >= end


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("most", [1, 3, 7])
def test_what_is_written_is_what_generate_writes_until_it_is_done(tokens: int, most: int) -> None:
    decoder, ids = odd_decoder(), odd_ids(1, tokens)
    whole = generate(decoder, ids, most)[0].tolist()
    assert snippet.write(decoder, ids, most, lambda written: False) == whole
    for end in range(most + 1):
        assert snippet.write(decoder, ids, most, partial(at_least, end)) == whole[:end]


def test_rules_say_when_an_answer_is_done() -> None:
    tokenizer = smollm2.tokenizer()
    rules, said = snippet.rules(tokenizer), tokenizer.encode("The capital of France is Paris.<|im_end|>").ids
    first = {name: next((n for n in range(len(said) + 1) if rule(said[:n])), None) for name, rule in rules.items()}
    assert first == {"no stop": None, "end token": len(said), "stop string": len(said) - 1, "limit": 4}


def test_prompts_are_of_one_length_and_capitals_are_in_order() -> None:
    ids = snippet.prompts(smollm2.tokenizer(), 6, "cpu")
    assert ids.shape[0] == len(snippet.CAPITALS) == 6
    assert "Egypt" in smollm2.tokenizer().decode(ids[5].tolist())


def test_trap_a_stop_string_is_no_sequence_of_tokens() -> None:
    found = snippet.boundary_values()
    assert found["text_breaks_count"] > 100 and found["token_breaks_count"] == 0
    assert smollm2.tokenizer().decode(smollm2.tokenizer().encode("one.\n\nTwo").ids).count("\n\n") == 1


def test_everything_kept_is_the_encoder_as_it_is(minilm: Encoder) -> None:
    whole = sentence_vectors(minilm, SENTENCES)
    for way, after in snippet.WAYS.items():
        assert torch.allclose(snippet.vectors(minilm, SENTENCES, way, 1.0, after), whole, atol=1e-5)
        assert (snippet.vectors(minilm, SENTENCES, way, 0.25, after) - whole).norm(dim=1).max() > 0.1


def test_words_cut_are_the_text_without_them(minilm: Encoder) -> None:
    sentence = "red green blue white black gray"
    for way, rest in (("first words", "red green blue"), ("last words", "white black gray")):
        assert snippet.cut_text([sentence], way, 0.5) == [rest]
        cut = snippet.vectors(minilm, [sentence], way, 0.5, 0)
        assert torch.allclose(cut, sentence_vectors(minilm, [rest]), atol=1e-5)


def slow_received(layer: Any, x: Tensor) -> Tensor:
    """Attention received, one head and one query at a time."""
    project, heads = layer.attention["self"], layer.heads
    width = x.shape[-1] // heads
    total = torch.zeros(x.shape[1])
    for head in range(heads):
        rows = slice(head * width, (head + 1) * width)
        keys = x[0] @ project.key.weight[rows].T + project.key.bias[rows]
        for token in x[0]:
            query = project.query.weight[rows] @ token + project.query.bias[rows]
            total += torch.softmax(keys @ query / width**0.5, 0)
    return total / heads / x.shape[1]


@pytest.mark.parametrize("tokens", [2, 3, 7])
def test_attention_received_is_what_a_loop_computes(minilm: Encoder, tokens: int) -> None:
    layer = minilm.encoder["layer"][2]  # type: ignore[index]
    x = torch.randn(1, tokens, 384, generator=torch.Generator().manual_seed(tokens))
    found = snippet.received(layer, x)
    assert torch.allclose(found[0], slow_received(layer, x), atol=1e-5)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)


def test_the_ends_stay_and_the_highest_scores_with_them() -> None:
    scores = torch.tensor([[0.0, 5.0, 1.0, 4.0, 9.0, 0.0], [9.0, 1.0, 2.0, 3.0, 4.0, 9.0]])
    assert snippet.kept_places(scores, 4).tolist() == [[0, 1, 4, 5], [0, 3, 4, 5]]
    x = torch.arange(24.0).view(2, 6, 2)
    assert torch.equal(snippet.take(x, torch.tensor([[0, 4], [1, 5]])), torch.stack((x[0, [0, 4]], x[1, [1, 5]])))
    assert float(scores[0, 0]) == 0  # the caller's scores are as they were


@pytest.mark.parametrize(
    ("tokens", "keep", "kept"), [(2, 0.5, 2), (3, 0.25, 3), (7, 0.5, 5), (12, 0.5, 7), (12, 1.0, 12)]
)
def test_so_many_tokens_are_kept(tokens: int, keep: float, kept: int) -> None:
    assert snippet.kept_count(tokens, keep) == kept


@pytest.mark.parametrize("tokens", [3, 5, 11])
def test_work_is_what_the_products_of_a_layer_take(tokens: int) -> None:
    """Products of (rows x inner) by (inner x columns), one by one, at MiniLM's sizes and odd ones."""
    for hidden, ffn in ((384, 1536), (6, 10)):
        square = [(tokens, hidden, hidden)] * 4
        products = [*square, (tokens, hidden, ffn), (tokens, ffn, hidden)]
        pairs = [(tokens, hidden, tokens), (tokens, tokens, hidden)]  # all heads together
        assert snippet.layer_flops(tokens, hidden, ffn) == sum(2 * a * b * c for a, b, c in [*products, *pairs])
    kept = snippet.kept_count(tokens, 0.5)
    pruned = 2 * snippet.layer_flops(tokens, 384, 1536) + 4 * snippet.layer_flops(kept, 384, 1536)
    assert snippet.work([tokens, tokens], 0.5, 2) == 2 * pruned
    assert snippet.work([tokens], 1.0, 0) == 6 * snippet.layer_flops(tokens, 384, 1536)


@pytest.mark.parametrize("keep", [1, 2, 3, 5, 7])
def test_truncation_keeps_the_newest_or_both_ends(keep: int) -> None:
    ids = list(range(11))
    assert snippet.truncated(ids, keep, "all") == ids
    assert snippet.truncated(ids, keep, "newest") == ids[-keep:]
    both = snippet.truncated(ids, keep, "both ends")
    assert len(both) == keep and both[-1] == 10 and (keep < 2 or both[0] == 0) and both == sorted(set(both))


def test_trap_what_was_cut_is_not_recalled() -> None:
    found = measured_small(NAME)
    assert found["beginning_newest_added_nats"] > 0.5 > found["beginning_ends_added_nats"]
    assert found["later_ends_added_nats"] > 0.5 > found["later_newest_added_nats"]


def test_a_limit_saves_most_and_answers_nothing() -> None:
    found = measured_small(NAME)
    assert found["limited_saved_share"] > found["ended_saved_share"] > 0
    assert found["limited_right_count"] == 0 < found["ended_right_count"] == found["stopped_right_count"]


def test_the_control_saves_nothing() -> None:
    found = controlled(NAME)
    assert found["ended_saved_share"] == found["limited_saved_share"] == found["first_lost_share"] == 0
    assert found["beginning_newest_added_nats"] == 0


def test_vectors_are_of_length_one_and_in_the_order_given(minilm: Encoder) -> None:
    found = snippet.vectors(minilm, SENTENCES, "attention received", 0.5, 2)
    alone = torch.cat([snippet.vectors(minilm, [s], "attention received", 0.5, 2) for s in SENTENCES])
    assert torch.allclose(found, alone, atol=1e-5)
    assert torch.allclose(found, F.normalize(found, dim=1), atol=1e-6)


def test_claims_hold_at_small_scale() -> None:
    assert failing_small(NAME, "D") == []
