"""The quiz in a terminal: what comes next, each kind of card asked and judged, undo, and its command."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from measured import estimates, quiz
from measured.cards import Card, Option, Slot, all_cards
from measured.cli import app
from measured.estimates import Choice, Estimate, Mistake
from measured.schedule import State, StateFile

START = datetime(2026, 1, 1, 9, tzinfo=UTC)


def card(name: str, kind: str = "recall", **rest: object) -> Card:
    return Card(f"kv_cache/{name}:{kind}", kind, f"kv_cache/{name}", "place", 1, f"front of {name}", "back", **rest)  # type: ignore[arg-type]


STATEMENT = card("b", "statement", options=(Option("holds", False), Option("holds if", True), Option("refuted", False)))
CHOICE = card("c", "choice", options=(Option("right words", True), Option("wrong words", False, "because")))
SPOT = card(
    "d", "spot", steps=("has **2 bytes**", "makes **4 GB**"), slots=(Slot(1, "**4 GB**", ("**8 GB**", "**40 GB**")),)
)


def play(cards: quiz.Round, file: StateFile, *said: str) -> str:
    """What the terminal showed while a reader said these words; running out of them stops."""
    words: Iterator[str] = iter(said)
    out = Console(file=io.StringIO(), width=100)

    def ask(prompt: str) -> str:
        out.print(prompt)
        return next(words, "q")

    quiz.run(cards, file, out, ask, dice=random.Random(0), clock=lambda: START)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "quiz.json")


def evening(*cards: Card) -> quiz.Round:
    return quiz.tonight(cards, 20, START)


def test_recall_shows_the_answer_only_when_asked(file: StateFile) -> None:
    cards = evening(card("a"))
    assert "back" not in play(evening(card("a")), file)
    shown = play(cards, file, "", "4")
    assert "back" in shown and file.load().log == [(START.isoformat(), "kv_cache/a:recall", 4)]
    assert [each.id for each in cards.right] == ["kv_cache/a:recall"]


@pytest.mark.parametrize(("said", "rating"), [("1", quiz.AGAIN), ("2", quiz.GOOD), ("3", quiz.AGAIN)])
def test_a_statement_is_judged_by_its_verdict(file: StateFile, said: str, rating: int) -> None:
    shown = play(evening(STATEMENT), file, said)
    assert "The answer: holds if" in shown and file.load().log[0][2] == rating


def test_a_choice_is_shuffled_and_judged(file: StateFile) -> None:
    orders = set()
    for seed in range(8):
        cards, out = evening(CHOICE), Console(file=io.StringIO(), width=100)
        quiz.run(cards, file, out, lambda _: "1", dice=random.Random(seed), clock=lambda: START) if seed else None
        orders.add(bool(cards.missed))
    assert orders == {True, False}


def test_spot_shows_a_wrong_number_and_tells_the_right_one(file: StateFile) -> None:
    shown = play(evening(SPOT), file, "2")
    assert "4 GB" not in shown.partition("number of the step")[0]
    assert "it is 4 GB" in shown and file.load().log[0][2] == quiz.GOOD
    assert file.load().log[0][2] != play(evening(SPOT), file, "1") and file.load().log[1][2] == quiz.AGAIN


def test_what_is_not_an_answer_is_asked_again(file: StateFile) -> None:
    assert play(evening(STATEMENT), file, "0", "four", "", "2").count("number of your answer") == 4


def test_a_miss_returns_until_it_is_right(file: StateFile) -> None:
    cards = evening(*(card(name) for name in "abcde"))
    play(cards, file, "", "1", *["", "3"] * 5)
    asked = [card_id[9] for _, card_id, _ in file.load().log]
    assert asked == ["a", "b", "c", "d", "a", "e"]
    assert quiz.summary(cards) == "5 right, 1 missed, 0 not reached\nreread: docs/kv_cache/a.md"


def test_undo_asks_the_last_card_again(file: StateFile) -> None:
    cards = evening(card("a"), card("b"))
    play(cards, file, "", "1", "u", "", "4", "", "3")
    assert [(card_id[9], rating) for _, card_id, rating in file.load().log] == [("a", 4), ("b", 3)]
    assert not cards.missed and len(cards.right) == 2


def test_undo_takes_back_nothing_of_an_earlier_round(file: StateFile) -> None:
    file.answer("kv_cache/z:recall", 3, START - timedelta(days=1))
    assert "nothing to take back" in play(evening(card("a")), file, "u", "", "3")
    assert len(file.load().log) == 2


def test_the_time_ends_an_evening() -> None:
    cards = evening(card("a"), card("b"))
    assert cards.next(START + timedelta(minutes=19)) == card("a")
    assert cards.next(START + timedelta(minutes=20)) is None


def test_due_cards_come_before_new_ones_and_those_to_come_wait() -> None:
    state = State()
    for name, days in (("late", 40), ("later", 60), ("soon", 0)):
        state.answer(f"kv_cache/{name}:recall", 4, START - timedelta(days=days))
    cards = [card(name) for name in ("new", "soon", "late", "later")]
    assert [each.page[9:] for each in quiz.until_it_sits(cards, state, START).queue] == ["later", "late", "new"]
    many = [card(f"n{number}") for number in range(50)]
    assert len(quiz.until_it_sits(many, State(), START).queue) == quiz.NEW_A_ROUND


def test_the_forecast_counts_each_card_on_its_day() -> None:
    state = State()
    state.answer("kv_cache/a:recall", 4, START)
    due = state.due("kv_cache/a:recall")
    assert due is not None
    counts = quiz.forecast([card("a"), card("b")], state, START, days=30)
    assert counts[(due.date() - START.date()).days] == 1 == sum(counts)


def _unit(card: Card) -> str:
    return next(iter(estimates.units_of(card.estimate.dimension)), "") if card.estimate else ""


CACHE = Estimate(
    id="estimate-e",
    line=1,
    ask="How large for {n} rows?",
    givens=((Choice({"n": "4"}, {"n": 4}),),),
    fixed={"row_bytes": 2**28},
    name="cache_bytes",
    answer="n * row_bytes",
    mistakes=(Mistake("2 * n * row_bytes", "Once is enough."),),
)


@pytest.mark.parametrize(
    ("typed", "rating", "told"),
    [
        ("1 GiB", 3, "right"),
        ("1.4 GiB", 2, "near: 1.4× too large"),
        ("2 GiB", 1, "Once is enough."),
        ("1 GB", 2, "GiB"),
    ],
)
def test_an_estimate_is_graded_and_worked_out(file: StateFile, typed: str, rating: int, told: str) -> None:
    shown = play(evening(card("e", "estimate", estimate=CACHE)), file, "four", "0 GB", "-1 GB", "1", typed)
    before, _, after = shown.partition("the unit is missing")
    assert "above zero" in before and "row bytes" not in before
    assert told in after and "n × row bytes" in after and "4 × 268,435,456 = 1.07 GB (1 GiB)" in after
    assert [entry[2] for entry in file.load().log] == [rating]


def test_every_card_of_the_site_can_be_asked(file: StateFile) -> None:
    for each in all_cards():
        answers = {"recall": ["", "3"], "estimate": ["no number", f"1e9 {_unit(each)}"]}
        right = answers.get(each.kind, ["1"])
        shown = play(evening(each), file, *right)
        assert len(shown) > 100, each.id
    assert len(file.load().log) == len(all_cards())


def test_the_command_exports_imports_and_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    run = CliRunner().invoke
    played = run(app, ["quiz", "kv_cache", "--tonight", "5"], input="\n3\nq\n")
    assert played.exit_code == 0 and "1 right, 0 missed" in played.output
    exported = tmp_path / "mine.json"
    assert run(app, ["quiz", "--export", str(exported)]).exit_code == 0
    assert "0 answers are new" in run(app, ["quiz", "--import", str(exported)]).output
    exported.write_text("{}", encoding="utf-8")
    refused = run(app, ["quiz", "--import", str(exported)])
    assert refused.exit_code == 1 and "nothing was changed" in " ".join(refused.output.split())
    assert run(app, ["quiz", "--import", str(tmp_path / "none.json")]).exit_code == 2
    unknown = run(app, ["quiz", "kv_cash"])
    assert unknown.exit_code == 2 and "kv_cache" in unknown.output
    assert "kv cache" in run(app, ["quiz", "--progress"]).output
