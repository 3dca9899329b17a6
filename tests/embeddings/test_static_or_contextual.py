"""Same word, two senses? Distances by hand on odd sizes, the corpus as promised, each trap shown wrong."""

from __future__ import annotations

import math
import re

import pytest
import torch

from snippets.embeddings import static_or_contextual as page
from snippets.models import smollm2
from snippets.models.decoder import Decoder, from_state, initialize
from snippets.models.senses import SENSES, TOPICS
from snippets.models.shapes import Geometry

TINY = Geometry("tiny", 3, 30, 3, 1, 10, 45, 53, True, "none")


@pytest.fixture(scope="module")
def tiny() -> Decoder:
    return from_state(TINY, initialize(Decoder(TINY), 3, std=0.2).state_dict(), torch.float32)


def test_states_begin_with_the_lookup_and_end_in_the_decoders_logits(tiny: Decoder) -> None:
    ids = torch.randint(53, (3, 7), generator=torch.Generator().manual_seed(0))
    states = page.states_of(ids, tiny)
    assert states.shape == (4, 3, 7, 30)
    assert torch.equal(states[0], tiny.embed_tokens.weight[ids])
    assert torch.equal(tiny.lm_head(tiny.norm(states[-1])), tiny(ids))


@pytest.mark.parametrize("hidden", [2, 3, 5, 7])
def test_distances_by_hand(hidden: int) -> None:
    states = torch.randn(2, 3, hidden, generator=torch.Generator().manual_seed(hidden))
    found = page.distances(states)
    for depth in range(2):
        rows = states[depth].double().tolist()
        for i, a in enumerate(rows):
            for j, b in enumerate(rows):
                cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
                assert float(found[depth, i, j]) == pytest.approx(1 - cosine, abs=1e-12)
        assert float(found[depth].diagonal().abs().max()) == 0.0


def test_two_groups_by_hand() -> None:
    """One word whose senses are orthogonal: between 1, within 0, every nearest text of the same sense."""
    axes = torch.eye(5)[None, torch.arange(8) // 4]
    found = page.compared(axes)
    assert found["between"].tolist() == [[pytest.approx(1.0)]]
    assert found["within"].tolist() == [[0.0]]
    assert found["hit"].tolist() == [[1.0]]
    mixed = page.compared(page.shuffled_senses(axes))
    assert float(mixed["between"] - mixed["within"]) < 0


def test_standardised_states_have_mean_zero_and_deviation_one() -> None:
    states = torch.randn(3, 11, 5, generator=torch.Generator().manual_seed(0)) * 7 + 3
    found = page.standardised(states)
    assert float(found.mean(1).abs().max()) < 1e-12
    assert found.std(1).flatten().tolist() == pytest.approx([1.0] * 15)


def test_trap_a_large_dimension_hides_who_is_like_whom() -> None:
    """One dimension far larger than the rest brings every raw cosine to one; standardised, strangers are strangers."""
    states = torch.randn(1, 24, 37, generator=torch.Generator().manual_seed(0))
    states[..., 5] += 500
    assert float(page.strangers(states)) > 0.999
    assert abs(float(page.strangers(page.standardised(states)))) < 0.1


def test_gap_values_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    senses, topics = ({k: torch.rand(n, 5, generator=generator) for k in ("between", "within", "hit")} for n in (7, 3))
    found = page.gap_values(senses, topics)
    gaps = [float(senses["between"][w, 2] - senses["within"][w, 2]) for w in range(7)]
    mean = sum(gaps) / 7
    spread = math.sqrt(sum((g - mean) ** 2 for g in gaps) / 6)
    assert found["middle_gap_difference"] == pytest.approx(mean)
    assert found["middle_error_difference"] == pytest.approx(spread / math.sqrt(7))


def test_a_cosine_with_itself_misses_one_and_equality_does_not() -> None:
    rows = torch.randn(999, 577, generator=torch.Generator().manual_seed(0))
    found = page.itself_values(rows)
    assert 0 < found["itself_missed_difference"] < 1e-6 and found["itself_missed_share"] > 0
    assert torch.equal(rows, rows.clone()) and float((rows - rows.clone()).abs().max()) == 0.0
    exact = page.itself_values(torch.ones(3, 4))
    assert exact["itself_missed_share"] == 0.0


def test_later_tokens_change_nothing_in_a_causal_decoder(tiny: Decoder) -> None:
    ids = torch.randint(53, (1, 9), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 5:] = (other[:, 5:] + 1) % 53
    one, two = page.states_of(ids, tiny), page.states_of(other, tiny)
    assert torch.equal(one[:, :, :5], two[:, :, :5])
    assert not torch.equal(one[-1, :, 5:], two[-1, :, 5:])


@pytest.mark.models
@pytest.mark.parametrize("word", [*SENSES, *TOPICS])
def test_contexts_end_in_the_and_the_word_as_one_token(word: str) -> None:
    sides = (SENSES | TOPICS)[word]
    tokenizer = smollm2.tokenizer()
    single = tokenizer.encode(f" {word}").ids
    assert len(single) == 1 and len({*sides[0], *sides[1]}) == 2 * page.EACH
    for text in (*sides[0], *sides[1]):
        assert text.endswith(f" the {word}") and len(re.findall(rf"\b{word}\b", text)) == 1
        assert tokenizer.encode(text).ids[-1:] == single


@pytest.mark.models
def test_padding_behind_a_word_leaves_its_states_alone() -> None:
    decoder = page.model()
    texts = [SENSES["bank"][0][0], SENSES["bank"][1][2], SENSES["star"][1][3]]
    together = page.word_states(texts, decoder)
    for i, text in enumerate(texts):
        alone = page.states_of(smollm2.encode(text), decoder)[:, 0, -1]
        assert float((together[:, i] - alone).norm() / alone.norm()) < 1e-4


@pytest.mark.models
def test_a_letter_finds_its_token_and_nothing_else_does() -> None:
    tokenizer = smollm2.tokenizer()
    for first in (False, True):
        for side in page.told(3, first=first):
            ids, real, places = page.read(tokenizer, side, 40)
            assert ids.shape == (3, 40) and real.sum(1).tolist() == [
                len(tokenizer.encode(text).ids) for text, _ in side
            ]
            tokens = [int(ids[row, place]) for row, place in enumerate(places.tolist())]
            assert [tokenizer.decode([token]) for token in tokens] == [" bank", " spring", " bat"]
    with pytest.raises(ValueError, match="no token"):
        page.read(tokenizer, [("short", 99), ("text", 0)])


@pytest.mark.models
def test_the_telling_words_matter_only_before_the_word_in_a_decoder() -> None:
    after = page.decoder_after(page.told(2), page.model())
    before = page.decoder_after(page.told(2, first=True), page.model())
    assert after["after_equal_count"] == after["after_states_count"] == 2 * 31
    assert after["after_apart_difference"] < 1e-4 < 0.1 < before["after_apart_difference"]
    assert page.encoder_after(page.told(2))["encoder_apart_difference"] > 0.02
