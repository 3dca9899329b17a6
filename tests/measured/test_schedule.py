"""The schedule and its file: FSRS's own answers, nothing lost, and a broken or foreign file refused whole."""

from __future__ import annotations

import json
import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsrs
import pytest

from measured.schedule import SCHEDULER, State, StateError, StateFile, read

START = datetime(2026, 1, 1, 9, tzinfo=UTC)


def answered(*ratings: int, card: str = "a", start: datetime = START) -> State:
    state = State()
    for day, rating in enumerate(ratings):
        state.answer(card, rating, start + timedelta(days=day))
    return state


@pytest.mark.parametrize("seed", range(20))
def test_the_file_schedules_as_the_library_does(seed: int) -> None:
    """Through text and back after every answer, a card is where FSRS alone would have it."""
    dice, now = random.Random(seed), START
    card, state = fsrs.Card(card_id=0), State()
    for _ in range(dice.randint(1, 12)):
        rating = dice.choice((1, 2, 3, 4))
        card, _ = SCHEDULER.review_card(card, fsrs.Rating(rating), now)
        state = read(state.as_text(), "here")
        assert state.answer("a", rating, now) == card.due
        now += timedelta(hours=dice.randint(1, 300))
    assert state.cards["a"]["stability"] == card.stability and state.due("a") == card.due


def test_better_answers_come_back_later() -> None:
    due = [answered(3, 3, rating).due("a") for rating in (1, 2, 3, 4)]
    assert due == sorted(due, key=lambda d: d or START) and len(set(due)) == 4
    assert State().due("a") is None


def test_undo_is_as_if_the_answer_never_was() -> None:
    state = answered(3, 1, 4)
    state.answer("b", 3, START + timedelta(days=9))
    assert state.undo() == "b" and state.as_text() == answered(3, 1, 4).as_text()
    assert state.undo() == "a" and state.as_text() == answered(3, 1).as_text()
    assert [state.undo(), state.undo(), state.undo()] == ["a", "a", None]
    assert state.as_text() == State().as_text()


def test_two_devices_merge_to_the_same_whichever_takes_in_the_other() -> None:
    common = answered(3, 3)
    one, other = read(common.as_text(), "one"), read(common.as_text(), "other")
    one.answer("a", 1, START + timedelta(days=5))
    other.answer("a", 4, START + timedelta(days=7))
    other.answer("b", 3, START + timedelta(days=7))
    first, second = read(one.as_text(), ""), read(other.as_text(), "")
    first.merge(other)
    second.merge(one)
    assert first.as_text() == second.as_text()
    assert len(first.log) == 5 and set(first.cards) == {"a", "b"}
    again = read(first.as_text(), "")
    again.merge(other)
    assert again.as_text() == first.as_text()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{broken", "is no JSON"),
        ("[]", "is not a quiz state"),
        ('{"format": "another"}', "is not a quiz state"),
        ('{"format": "measured-answers-quiz", "version": 2}', "is of version 2"),
        ('{"format": "measured-answers-quiz", "version": 1, "cards": {"a": {}}, "log": []}', "cannot be read"),
        ('{"format": "measured-answers-quiz", "version": 1, "cards": {}, "log": [["2026-01-01", "a", 3]]}', "zone"),
        (
            '{"format": "measured-answers-quiz", "version": 1, "cards": {}, "log": [["2026-01-01T00:00Z", "a", 9]]}',
            "9",
        ),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_and_left_alone(tmp_path: Path, text: str, told: str) -> None:
    file = StateFile(tmp_path / "quiz.json")
    file.path.write_text(text, encoding="utf-8")
    for change in (lambda: file.answer("a", 3, START), file.undo, lambda: file.merge(State().as_text(), "mine")):
        with pytest.raises(StateError, match=told):
            change()
    assert file.path.read_text(encoding="utf-8") == text
    whole = StateFile(tmp_path / "whole.json")
    whole.answer("a", 3, START)
    before = whole.path.read_text(encoding="utf-8")
    with pytest.raises(StateError, match=told):
        whole.merge(text, "theirs")
    assert whole.path.read_text(encoding="utf-8") == before


def test_two_terminals_lose_nothing(tmp_path: Path) -> None:
    def drill(name: str) -> None:
        for day in range(15):
            StateFile(tmp_path / "quiz.json").answer(name, 3, START + timedelta(days=day))

    threads = [threading.Thread(target=drill, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = StateFile(tmp_path / "quiz.json").load()
    assert len(state.log) == 30 and state.cards["a"] == state.cards["b"]


def test_a_card_that_left_the_site_breaks_nothing(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "quiz.json")
    file.answer("kv_cache/gone:recall", 3, START)
    file.answer("a", 3, START)
    assert "kv_cache/gone:recall" in json.loads(file.path.read_text(encoding="utf-8"))["cards"]
