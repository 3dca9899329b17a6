"""Cards come from the pages: every question has some, their numbers are the recordings', and wrong ones are wrong."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from measured import cards, project, recording
from measured.page import MARK, read_page

QUESTIONS = [name for name in project.question_names() if recording.primary(name)]
ALL = [card for card in cards.all_cards() if card.page in QUESTIONS]  # a page just begun has no numbers yet


def of_kind(kind: str) -> list[cards.Card]:
    return [card for card in ALL if card.kind == kind]


def test_every_question_has_three_cards_of_two_kinds_or_more() -> None:
    for name in QUESTIONS:
        kinds = [card.kind for card in ALL if card.page == name]
        assert "recall" in kinds and len(set(kinds)) >= 2 and len(kinds) >= 3, name
    assert {card.kind for card in ALL} == set(cards.KINDS)


def test_ids_are_unique_and_name_their_page() -> None:
    ids = [card.id for card in ALL]
    assert len(set(ids)) == len(ids)
    assert all(card.id.partition(":")[0] == card.page for card in ALL)


def test_most_asked_come_first() -> None:
    assert [card.asked for card in ALL] == sorted(card.asked for card in ALL)
    said = [one.id for one, after in pairwise(cards.all_cards()) if one.kind == "recall" and one.page == after.page]
    assert said == [], "an answer gives the next card away"
    assert {card.topic for card in cards.all_cards(["kv_cache"])} == {"kv_cache"}


def test_nothing_of_the_pages_markup_is_left() -> None:
    for card in ALL:
        texts = [card.front, card.back, *card.steps, *(option.text for option in card.options)]
        assert not [text for text in texts if re.search(r"\{ ?[.#]|data-|\]\(", text)], card.id


def test_a_statement_has_the_pages_verdict() -> None:
    verdicts = {(n, v.statement): v.status for n in QUESTIONS for v in read_page(n).verdicts}
    for card in of_kind("statement"):
        (right,) = (option.text for option in card.options if option.right)
        assert right.replace(" ", "-") == verdicts[card.page, card.id.partition(":")[2]]
        assert not card.front.startswith("S") or not card.front[1:2].isdigit()


def test_a_choice_has_one_right_option_and_says_what_refutes_the_others() -> None:
    for card in of_kind("choice"):
        assert sum(option.right for option in card.options) == 1 < len(card.options), card.id
        assert all(option.feedback for option in card.options if not option.right), card.id


def test_values_of_one_machine_are_never_asked() -> None:
    """Whiteboards hold some; none of them can be falsified, and a choice that shows one is no card."""
    slots = {(card.page, slot.step, slot.right) for card in of_kind("spot") for slot in card.slots}
    seen = 0
    for name in QUESTIONS:
        have = recording.primary(name)
        assert have is not None
        bound = {value for value, kind in have.classes.items() if kind in "RH"}
        for at, step in enumerate(cards.whiteboard(read_page(name))):
            for match in MARK.finditer(step):
                if set(re.findall(r"\w+", match["attrs"])) & bound:
                    assert (name, at, f"**{match['text']}**") not in slots
                    seen += 1
    assert seen > 0
    speed = next(c for c in read_page("throughput/batching").claims if c.value_class == "R")
    mark = f'**{speed.text}**{{ .claim data-check="{speed.check}" }}'
    assert not cards._askable(read_page("throughput/batching"), mark)


@pytest.mark.parametrize("card", of_kind("spot"), ids=lambda c: c.id)
def test_each_slot_is_in_its_step_and_its_wrong_numbers_are_wrong(card: cards.Card) -> None:
    for slot in card.slots:
        assert card.steps[slot.step].count(slot.right) == 1
        assert slot.wrong and slot.right not in slot.wrong
        for wrong in slot.wrong:
            unit = re.compile(r"[\d.,\s*+-]+")
            assert unit.sub("", wrong) == unit.sub("", slot.right)
            factor = _number(wrong) / _number(slot.right)
            assert any(abs(factor / each - 1) < cards.ROUNDED for each in cards.FACTORS), (slot.right, wrong)


def _number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text))


def test_each_card_leads_to_a_heading_of_its_page() -> None:
    for card in ALL:
        titles = re.findall(r"^## (.+)$", read_page(card.page).source, re.M)
        assert card.anchor in [
            "",
            *(fence.options.get("id") for fence in read_page(card.page).fences),
            *("-".join(title.lower().split()) for title in titles),
        ], card.id


def test_what_a_share_cannot_be_is_never_offered() -> None:
    assert cards._impossible("180 %") and cards._impossible("0.0 GB") and not cards._impossible("99 %")


def test_a_card_for_other_programs_leaves_out_what_is_empty() -> None:
    recall = next(card for card in ALL if card.kind == "recall").as_json()
    assert set(recall) == {"id", "kind", "page", "asked", "front", "back", "topic"}
