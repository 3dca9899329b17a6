"""The quiz in the browser: every kind of card by keyboard, Python's schedule, and no answer lost."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from measured.schedule import State, read

pytestmark = pytest.mark.browser
ASSETS = Path(__file__).resolve().parents[2] / "docs" / "assets" / "quiz"
START = datetime(2026, 1, 1, 9, tzinfo=UTC)
KEY = "measured-answers-quiz"


@pytest.fixture
def quiz(visitor: Any) -> Page:
    """The quiz at a fixed hour."""
    visit = visitor()
    visit.page.clock.set_fixed_time(START)
    page = visit.open("quiz")
    expect(page.get_by_role("button", name="Until it sits")).to_be_visible()
    return page


def kept(page: Page) -> State:
    return read(page.evaluate(f"localStorage.getItem('{KEY}')") or State().as_text(), "the browser")


def front(page: Page) -> str:
    return page.locator(".ma-quiz-front").inner_text()


def kind(page: Page) -> str:
    return page.locator(".ma-quiz-kind").inner_text().partition(" · ")[2]


RIGHT = """async () => {
    const { cards } = await (await fetch("assets/quiz/cards.json")).json()
    const html = text => Object.assign(document.createElement("div"), { innerHTML: text }).innerHTML
    const front = document.querySelector(".ma-quiz-front > div").innerHTML
    const card = cards.find(each => each.kind !== "recall" && html(each.front) === front)
    const shown = [...document.querySelectorAll(".ma-quiz-option > :last-child")].map(e => e.innerHTML)
    return card.kind === "spot" ? shown.findIndex((text, at) => text !== html(card.steps[at]))
        : shown.indexOf(html(card.options.find(option => option.right).text))
}"""


def answer(page: Page, right: bool) -> str:
    """Answer the card that is shown by keys alone; returns its kind."""
    asked, before = kind(page), len(kept(page).log)
    if asked == "say it aloud":
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Good (3)")).to_be_focused()
        page.keyboard.press("3" if right else "1")
    else:
        at = page.evaluate(RIGHT)
        page.keyboard.press(str(at + 1 if right else (2 if at == 0 else 1)))
        expect(page.locator(".ma-quiz-judged")).to_have_text("Right." if right else f"Wrong: it is {at + 1}.")
        assert page.locator(".ma-quiz-option.right").count() == 1
        assert page.locator(".ma-quiz-option.wrong").count() == (not right)
        page.keyboard.press("Enter")
    page.wait_for_function(f"JSON.parse(localStorage.getItem('{KEY}') ?? '{{\"log\":[]}}').log.length > {before}")
    return asked


def test_every_kind_by_keyboard_over_two_sessions(quiz: Page) -> None:
    """An evening until each kind was asked; a month later, what is due comes first and knows what was answered."""
    quiz.get_by_role("button", name="Tonight: 120").focus()
    quiz.keyboard.press("Enter")
    kinds = set()
    for number in range(160):
        kinds.add(answer(quiz, right=number % 7 != 6))
        if len(kinds) == 4:
            break
    assert kinds == {"say it aloud", "which would you say?", "people say", "spot the wrong number"}
    quiz.keyboard.press("q")
    expect(quiz.get_by_role("heading", name="right")).to_be_focused()
    before = kept(quiz)
    quiz.clock.set_fixed_time(START + timedelta(days=30))
    quiz.reload()
    quiz.get_by_role("button", name="Until it sits").click()
    answer(quiz, right=True)
    after = kept(quiz)
    assert after.log[:-1] == before.log and after.log[-1][1] in before.cards
    assert before.cards[after.log[-1][1]]["due"] == min(card["due"] for card in before.cards.values())


def test_a_miss_comes_back_and_undo_takes_it_back(quiz: Page) -> None:
    quiz.get_by_role("button", name="Tonight: 20").click()
    first = front(quiz)
    answer(quiz, right=False)
    seen = []
    for _ in range(3):
        seen.append(front(quiz))
        answer(quiz, right=True)
    assert first not in seen and front(quiz) == first
    quiz.keyboard.press("u")
    expect(quiz.locator(".ma-quiz-front")).to_have_text(re.compile(re.escape(seen[-1].split("\n")[0])))
    assert len(kept(quiz).log) == 3
    for _ in range(4):
        quiz.keyboard.press("u")
        quiz.wait_for_timeout(50)
    assert front(quiz) == first and kept(quiz).as_text() == State().as_text()
    expect(quiz.locator("#ma-quiz-status")).to_have_text("Nothing to take back in this round.")


def test_the_time_ends_an_evening(quiz: Page) -> None:
    quiz.get_by_role("button", name="Tonight: 20").click()
    answer(quiz, right=False)
    quiz.clock.set_fixed_time(START + timedelta(minutes=20))
    answer(quiz, right=True)
    expect(quiz.get_by_role("heading", name="1 right, 1 missed")).to_be_visible()
    expect(quiz.locator("#ma-quiz li a").first).to_have_attribute("href", re.compile(r"^\w+/\w+\.html$"))


def test_two_tabs_lose_nothing(quiz: Page) -> None:
    other = quiz.context.new_page()
    other.clock.set_fixed_time(START + timedelta(seconds=5))
    other.goto(quiz.url)
    for page in (quiz, other):
        page.get_by_role("button", name="Tonight: 20").click()
    for count in range(3):
        for page in (quiz, other):
            answer(page, right=count > 0)
    assert len(kept(quiz).log) == 6 == len(kept(other).log)


def test_export_and_import_carry_everything(quiz: Page, tmp_path: Path, visitor: Any) -> None:
    quiz.get_by_role("button", name="Tonight: 20").click()
    for _ in range(2):
        answer(quiz, right=True)
    quiz.keyboard.press("q")
    quiz.get_by_role("button", name="Back to the start").click()
    with quiz.expect_download() as download:
        quiz.get_by_role("button", name="Export").click()
    path = tmp_path / "mine.json"
    download.value.save_as(path)
    state = read(path.read_text(encoding="utf-8"), "the export")
    assert len(state.log) == 2 and state.as_text() == kept(quiz).as_text()
    state.answer("kv_cache/left_the_site:recall", 3, START + timedelta(hours=1))
    path.write_text(state.as_text(), encoding="utf-8")
    fresh = visitor().open("quiz")
    for told in ("3 answers are new.", "0 answers are new."):
        with fresh.expect_file_chooser() as chooser:
            fresh.get_by_role("button", name="Import").click()
        chooser.value.set_files(path)
        expect(fresh.locator("#ma-quiz-status")).to_have_text(told)
    assert kept(fresh).log == state.log
    assert {card: entry["due"] for card, entry in kept(fresh).cards.items()} == {
        card: entry["due"] for card, entry in state.cards.items()
    }
    fresh.get_by_role("button", name="Until it sits").click()
    answer(fresh, right=True)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{broken", "is no JSON"),
        ('{"format": "another"}', "is not a quiz state"),
        (f'{{"format": "{KEY}"}}', "version"),
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(quiz: Page, tmp_path: Path, content: str, told: str) -> None:
    path = tmp_path / "foreign.json"
    path.write_text(content, encoding="utf-8")
    with quiz.expect_file_chooser() as chooser:
        quiz.get_by_role("button", name="Import").click()
    chooser.value.set_files(path)
    expect(quiz.locator("#ma-quiz-status")).to_contain_text(told)
    quiz.evaluate(f"text => localStorage.setItem('{KEY}', text)", content)
    quiz.reload()
    expect(quiz.get_by_role("heading", name="cannot be read")).to_be_focused()
    assert quiz.evaluate(f"localStorage.getItem('{KEY}')") == content
    with quiz.expect_download() as download:
        quiz.get_by_role("button", name="Save it as a file").click()
    assert Path(download.value.path()).read_text(encoding="utf-8") == content


def test_a_full_storage_is_said_and_nothing_is_lost(quiz: Page) -> None:
    quiz.evaluate("() => { Storage.prototype.setItem = () => { throw new DOMException('full') } }")
    quiz.get_by_role("button", name="Tonight: 20").click()
    quiz.keyboard.press("Enter")
    quiz.keyboard.press("3")
    expect(quiz.locator("#ma-quiz-status")).to_contain_text("no room")
    quiz.keyboard.press("q")
    quiz.get_by_role("button", name="Back to the start").click()
    with quiz.expect_download() as download:
        quiz.get_by_role("button", name="Export").click()
    assert len(read(Path(download.value.path()).read_text(encoding="utf-8"), "the export").log) == 1


def test_reset_asks_first(quiz: Page) -> None:
    quiz.get_by_role("button", name="Tonight: 20").click()
    answer(quiz, right=True)
    quiz.keyboard.press("q")
    quiz.get_by_role("button", name="Back to the start").click()
    quiz.once("dialog", lambda dialog: dialog.dismiss())
    quiz.get_by_role("button", name="Reset").click()
    assert len(kept(quiz).log) == 1
    quiz.once("dialog", lambda dialog: dialog.accept())
    quiz.get_by_role("button", name="Reset").click()
    assert kept(quiz).log == []


def test_a_thousand_histories_are_scheduled_as_in_python(quiz: Page) -> None:
    """Each answer's next date, to the second, and the other side can go on from either's state."""
    dice = random.Random(0)
    histories = []
    for _ in range(1000):
        now, answers = START, []
        for _ in range(dice.randint(1, 10)):
            answers.append((now.isoformat(), dice.choices((1, 2, 3, 4), (2, 1, 5, 1))[0]))
            now += timedelta(minutes=dice.choice((5, 30, 600, 3000, 20000, 90000)))
        histories.append(answers)
    found = quiz.evaluate(
        """async histories => {
            const { State, read } = await import(new URL("assets/quiz/state.js", location.href))
            return histories.map(answers => {
                let state = new State()
                const due = answers.map(([time, rating]) => {
                    state = read(state.asText(), "here")
                    return state.answer("a", rating, new Date(time)).toISOString()
                })
                return [due, state.asText()]
            })
        }""",
        histories,
    )
    for answers, (dates, text) in zip(histories, found, strict=True):
        state = State()
        for (time, rating), date in zip(answers, dates, strict=True):
            assert abs(
                state.answer("a", rating, datetime.fromisoformat(time)) - datetime.fromisoformat(date)
            ) < timedelta(seconds=1)
        theirs = read(text, "the browser's")
        assert theirs.log == state.log
        later = datetime.fromisoformat(answers[-1][0]) + timedelta(days=40)
        assert abs(theirs.answer("a", 3, later) - state.answer("a", 3, later)) < timedelta(seconds=1)


def test_assets_are_light() -> None:
    sizes = {path.name: path.stat().st_size for path in ASSETS.iterdir() if path.suffix in (".js", ".css")}
    assert {"quiz.js", "state.js", "round.js", "ts-fsrs.js", "quiz.css"} <= set(sizes)
    assert sum(sizes.values()) < 150_000


def test_cards_are_the_pages_cards(quiz: Page) -> None:
    from measured.build import cards_document

    shown = quiz.evaluate("fetch('assets/quiz/cards.json').then(response => response.json())")
    assert shown == json.loads(json.dumps(cards_document()))
    assert not [card["id"] for card in shown["cards"] if re.search(r"\$|\{ ?\.|\]\(", json.dumps(card))]
