"""The quiz in the browser: every kind of card by keyboard, Python's schedule, and no answer lost."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from measured import cards, estimates
from measured.estimates import Estimate
from measured.schedule import State, read

pytestmark = pytest.mark.browser
ASSETS = Path(__file__).resolve().parents[2] / "docs" / "assets" / "quiz"
START = datetime(2026, 1, 1, 9, tzinfo=UTC)
KEY = "measured-answers-quiz"


# The last random number is the seed of an estimate that is shown.
WATCH_DICE = "Math.random = ((roll) => () => (window.rolled = roll()))(Math.random)"


@pytest.fixture
def quiz(visitor: Any) -> Page:
    """The quiz at a fixed hour."""
    visit = visitor()
    visit.page.add_init_script(WATCH_DICE)
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
    const script = document.querySelector("script[src$='measured.js']").src
    const { cards } = await (await fetch(new URL("quiz/cards.json", script))).json()
    const html = text => Object.assign(document.createElement("div"), { innerHTML: text }).innerHTML
    const front = document.querySelector(".ma-quiz-front > div").innerHTML
    const card = cards.find(each => each.kind !== "recall" && html(each.front) === front)
    const shown = [...document.querySelectorAll(".ma-quiz-option > :last-child")].map(e => e.innerHTML)
    return card.kind === "spot" ? shown.findIndex((text, at) => text !== html(card.steps[at]))
        : shown.indexOf(html(card.options.find(option => option.right).text))
}"""


def drawn(page: Page) -> tuple[Estimate, dict[str, float]]:
    """The estimate that is shown, and its inputs, by Python's own draw."""
    seed = int(page.evaluate("Math.floor(window.rolled * 2 ** 32)"))
    for card in cards.all_cards():
        if card.estimate:
            found = estimates.draw(card.estimate, seed)
            if found.question.replace("**", "") == front(page):
                return card.estimate, found.values
    raise LookupError(front(page))


def guess(page: Page, factor: float = 1.0) -> str:
    """A guess to type: the answer that Python computes, off by a factor."""
    estimate, values = drawn(page)
    unit = next(iter(estimates.units_of(estimate.dimension).items()), ("", 1))
    return f"{estimates.truth(estimate, values) * factor / unit[1]:.6e} {unit[0]}"


def answer(page: Page, right: bool) -> str:
    """Answer the card that is shown by keys alone; returns its kind."""
    asked, before = kind(page), len(kept(page).log)
    if asked == "say it aloud":
        page.keyboard.press("Enter")
        expect(page.get_by_role("button", name="Good (3)")).to_be_focused()
        page.keyboard.press("3" if right else "1")
    elif asked == "estimate":
        expect(page.locator(".ma-quiz-guess")).to_be_focused()
        page.keyboard.type(guess(page, 1 if right else 3.3))
        page.keyboard.press("Enter")
        expect(page.locator(".ma-quiz-judged")).to_have_text("Right." if right else "Wrong: 3.3× too large.")
        page.keyboard.press("Enter")
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
        if len(kinds) == 5:
            break
    assert kinds == {"say it aloud", "which would you say?", "people say", "spot the wrong number", "estimate"}
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


def asked_on(visitor: Any, name: str, **look: Any) -> Page:
    """A question's page with its own cards begun."""
    visit = visitor(**look)
    visit.page.add_init_script(WATCH_DICE)
    page = visit.open(name)
    page.get_by_role("link", name="Drill this page").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".ma-quiz-kind")).to_be_visible()
    return page


def test_a_page_ends_with_its_own_cards(visitor: Any) -> None:
    """They are asked on the page itself, kept in the same state, and their evidence is found from there."""
    name = "kv_cache/bytes_per_token"
    page, own = asked_on(visitor, name), cards.cards_of(name)
    kinds = []
    for _ in own:
        kinds.append(answer(page, right=True))
    expect(page.get_by_role("heading", name=f"{len(own)} right, 0 missed")).to_be_focused()
    assert set(kept(page).cards) == {card.id for card in own} and len(set(kinds)) == len({card.kind for card in own})
    page.get_by_role("button", name="Once more").click()
    page.keyboard.press("Enter")
    link = page.get_by_role("link", name="The evidence").get_attribute("href")
    assert page.request.get(link or "").ok
    page.keyboard.press("q")
    page.get_by_role("link", name="All cards").click()
    expect(page.get_by_role("button", name="Until it sits")).to_be_visible()


def faults(page: Page) -> list[str]:
    """What axe finds serious in the card that is shown."""
    found = Axe().run(page, context="#ma-quiz").response["violations"]
    return [f"{kind(page)}: {each['id']}" for each in found if each["impact"] in ("serious", "critical")]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (360, True)])
def test_a_pages_cards_are_accessible_and_fit_a_phone(visitor: Any, width: int, dark: bool) -> None:
    """Every kind that the page has, before and after its answer."""
    page = asked_on(visitor, "kv_cache/bytes_per_token", width=width, dark=dark)
    for _ in cards.cards_of("kv_cache/bytes_per_token"):
        typed = guess(page) if kind(page) == "estimate" else ""  # axe rolls dice of its own
        assert faults(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= width
        if typed:
            page.locator(".ma-quiz-guess").fill(typed)
        page.keyboard.press("Enter" if kind(page) in ("say it aloud", "estimate") else str(page.evaluate(RIGHT) + 1))
        assert faults(page) == [] and page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator(".ma-quiz-go, .ma-quiz-answer:nth-child(3)").first.click()
        page.wait_for_timeout(100)
    expect(page.locator("#ma-quiz h2")).to_be_visible()


def test_a_link_asks_one_pages_cards(visitor: Any) -> None:
    page = visitor().open("quiz")
    page.goto(page.url + "?page=embeddings/lookup")
    first = next(card for card in cards.cards_of("embeddings/lookup"))
    expect(page.locator(".ma-quiz-front")).to_have_text(first.front)
    page.keyboard.press("q")
    page.get_by_role("button", name="Back to the start").click()
    expect(page.get_by_role("button", name="Until it sits")).to_be_visible()


def test_what_is_no_guess_is_refused_and_a_mistake_is_named(visitor: Any) -> None:
    page = asked_on(visitor, "kv_cache/bytes_per_token")
    while kind(page) != "estimate":
        answer(page, right=True)
    field, told = page.locator(".ma-quiz-guess"), page.locator("#ma-quiz-told")
    for typed, reason in (
        ("many", "a number and its unit"),
        ("0 GB", "above zero"),
        ("-2 GB", "above zero"),
        ("4", "unit"),
    ):
        field.fill(typed)
        page.keyboard.press("Enter")
        expect(told).to_contain_text(reason)
    assert not [entry for entry in kept(page).log if "estimate" in entry[1]]
    field.blur()
    page.keyboard.press(".")  # the theme's key for the next page
    assert "bytes_per_token" in page.url
    field.fill(guess(page, 0.5))
    page.keyboard.press("Enter")
    expect(told).to_have_text("Wrong: 2× too small.")
    expect(page.locator("#ma-quiz")).to_contain_text("keys and values are both kept")
    expect(page.locator("#ma-quiz")).to_contain_text("2 × layers × KV heads")
    page.keyboard.press("Enter")
    page.wait_for_function(f"JSON.parse(localStorage.getItem('{KEY}')).log.at(-1)[2] === 1")


TWIN = """async factors => {
    const { compute, draw, grade, guessed, solution } = await import(new URL("assets/quiz/estimate.js", location.href))
    const { cards, units, unitless } = await (await fetch("assets/quiz/cards.json")).json()
    const strip = text => text.replace(/<\\/?strong>/g, "**")
    const one = (stated, seed) => {
        const own = units[stated.dimension], names = Object.keys(own), unit = names[seed % names.length] ?? ""
        const { values } = draw(stated, seed * 7919)
        const right = compute(stated.program, values)
        const typed = (right * factors[seed % factors.length] / (own[unit] ?? 1)).toExponential(12)
        const [base] = guessed(`${typed} ${unit}`, own, unitless.includes(stated.dimension))
        const { rating, error, mistake } = grade(stated, values, base, unit, own)
        return [right, rating, error, strip(mistake), solution(stated, values, own).map(strip)]
    }
    const asked = cards.filter(card => card.estimate)
    const seeds = [...Array(1000).keys()]
    return Object.fromEntries(asked.map(({ id, estimate }) => [id, seeds.map(seed => one(estimate, seed))]))
}"""


def test_a_thousand_estimates_of_each_are_pythons(quiz: Page) -> None:
    """Inputs, answers, solutions and grades: what a browser draws and computes is what Python does."""
    stated = [card for card in cards.all_cards() if card.estimate]
    assert len(stated) >= 10
    factors = [1, 1.05, 1.3, 0.5, 2, 3, 1 / 8, 8, 2**30 / 1e9, 1e9 / 2**30]
    found = quiz.evaluate(TWIN, factors)
    assert set(found) == {card.id for card in stated}
    for card in stated:
        assert card.estimate
        units = estimates.units_of(card.estimate.dimension)
        for seed, (right, rating, error, mistake, solved) in enumerate(found[card.id]):
            values = estimates.draw(card.estimate, seed * 7919).values
            own = estimates.truth(card.estimate, values)
            unit = list(units)[seed % len(units)] if units else ""
            typed = f"{own * factors[seed % len(factors)] / units.get(unit, 1):.12e} {unit}"
            graded = estimates.grade(card.estimate, values, *estimates.guessed(typed, card.estimate.dimension))
            assert right == pytest.approx(own, rel=1e-12), (card.id, seed)
            assert error == pytest.approx(graded.error, abs=1e-9), (card.id, seed)
            assert (rating, mistake) == (graded.rating, graded.mistake), (card.id, seed)
            assert solved == estimates.solution(card.estimate, values), (card.id, seed)


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
    expect(quiz.locator("#ma-quiz li a").first).to_have_attribute(
        "href", re.compile(r"^http://127\.0\.0\.1:\d+/\w+/\w+\.html$")
    )


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
    assert {"quiz.js", "state.js", "round.js", "estimate.js", "ts-fsrs.js", "quiz.css"} <= set(sizes)
    assert sum(sizes.values()) < 150_000


def test_cards_are_the_pages_cards(quiz: Page) -> None:
    from measured.build import cards_document

    shown = quiz.evaluate("fetch('assets/quiz/cards.json').then(response => response.json())")
    assert shown == json.loads(json.dumps(cards_document()))
    read = [{key: text for key, text in card.items() if key != "estimate"} for card in shown["cards"]]
    assert not [card["id"] for card in read if re.search(r"\$|\{ ?\.|\]\(", json.dumps(card))]
