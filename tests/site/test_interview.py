"""The mock interview in the browser: a round by keyboard, Python's follow-ups, a report on paper, and everyone."""

from __future__ import annotations

import json
import random
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from measured.interview import choose, interviews

pytestmark = pytest.mark.browser
START = datetime(2026, 1, 1, 9, tzinfo=UTC)
BUTTON = "Mock interview: 20 min"


def begin(visit: Any) -> Page:
    """The first question, at a fixed hour."""
    visit.page.clock.set_fixed_time(START)
    page: Page = visit.open("quiz")
    page.get_by_role("button", name=BUTTON).click()
    expect(page.locator("textarea")).to_be_visible()
    return page


@pytest.fixture
def mock(visitor: Any) -> Page:
    return begin(visitor())


def pass_time(page: Page, minutes: float) -> None:
    """Let so many minutes go by."""
    page.clock.set_fixed_time(
        datetime.fromtimestamp(page.evaluate("Date.now()") / 1000, UTC) + timedelta(minutes=minutes)
    )


def question(page: Page) -> str:
    return page.get_by_role("heading", level=2).inner_text()


def answer(page: Page, *ticked: int, held: bool = True) -> str:
    """Take the question that is shown from end to end by keys alone; returns the follow-up's level."""
    expect(page.locator("textarea")).to_be_visible()
    page.keyboard.press("Enter")
    expect(page.locator("legend")).to_be_focused()
    for number in ticked:
        page.keyboard.press(str(number))
    page.keyboard.press("Enter")
    level = re.search(r"Follow-up · (\w+)", page.locator(".ma-quiz-kind").inner_text())
    page.keyboard.press("Enter")
    expect(page.locator(".ma-mock-answer")).to_be_focused()
    page.keyboard.press("y" if held else "n")
    assert level
    return level[1]


def test_a_round_by_keyboard_alone(visitor: Any) -> None:
    """From the quiz's start to its start again; the mouse is never used."""
    visit = visitor()
    visit.page.clock.set_fixed_time(START)
    page = visit.open("quiz")
    page.get_by_role("button", name=BUTTON).focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=2)).to_be_focused()
    asked = []
    for ticked, held in (((1, 2, 3, 4, 5, 6), True), ((), False), ((1, 2, 3), True)):
        asked.append(question(page))
        pass_time(page, 1.5)
        page.keyboard.press("Enter")
        expect(page.locator("legend")).to_be_focused()
        boxes = page.get_by_role("checkbox").count()
        for number in range(1, boxes + 1):
            if number in ticked:
                page.keyboard.press(str(number))
        made = page.locator("input:checked").count()
        assert made == min(len(ticked), boxes)
        page.keyboard.press("Enter")
        wanted = "staff" if made == boxes else "junior" if 2 * made < boxes else "senior"
        expect(page.locator(".ma-quiz-kind")).to_have_text(f"Follow-up · {wanted} · {made} of {boxes} points made")
        expect(page.get_by_role("heading", level=2)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator(".ma-mock-answer")).to_be_focused()
        page.keyboard.press("y" if held else "n")
    assert len(set(asked)) == 3
    page.keyboard.press("q")
    expect(page.get_by_role("heading", name="Mock interview, 1 Jan 2026")).to_be_focused()
    report = page.locator(".ma-mock-report")
    expect(report).to_contain_text("3 questions in 5 min;")
    expect(report).to_contain_text("2 of 3 follow-ups held.")
    assert report.locator("tbody th").all_inner_texts() == asked
    assert [cells[1] for cells in (row.split("\t")[1:] for row in report.locator("tbody tr").all_inner_texts())] == [
        "90"
    ] * 3
    links = report.get_by_role("link")
    assert links.first.inner_text() == asked[1] and asked[0] not in links.all_inner_texts()
    assert page.request.get(links.first.evaluate("link => link.href")).ok
    page.keyboard.press("Tab")
    while page.evaluate("document.activeElement.textContent") != "Back to the start":
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("button", name=BUTTON)).to_be_visible()
    assert page.evaluate("localStorage.getItem('measured-answers-quiz')") is None, (
        "a mock interview touches no schedule"
    )
    assert visit.console == [] and visit.foreign == [] and visit.missing == []


def test_the_questions_are_fetched_only_when_they_are_asked(visitor: Any) -> None:
    visit = visitor()
    fetched: list[str] = []
    visit.page.on("request", lambda request: fetched.append(request.url.rpartition("/")[2]))
    page = visit.open("quiz")
    expect(page.get_by_role("button", name=BUTTON)).to_be_visible()
    assert "cards.json" in fetched and "interview.json" not in fetched
    page.get_by_role("button", name=BUTTON).click()
    expect(page.locator("textarea")).to_be_visible()
    assert fetched.count("interview.json") == 1


def test_questions_that_do_not_come_are_told(visitor: Any) -> None:
    page = visitor().open("quiz")
    page.route("**/interview.json", lambda route: route.abort())
    page.get_by_role("button", name=BUTTON).click()
    expect(page.locator("#ma-quiz-status")).to_contain_text("could not be loaded")
    page.unroute("**/interview.json")
    page.get_by_role("button", name=BUTTON).click()
    expect(page.locator("textarea")).to_be_visible()


def test_topics_are_asked_alone(visitor: Any) -> None:
    page = visitor().open("quiz")
    boxes = page.locator("input[name=topic]")
    for box in boxes.all():
        box.uncheck()
    page.get_by_role("button", name=BUTTON).click()
    expect(page.locator("#ma-quiz-status")).to_have_text("Choose a topic to be asked about.")
    boxes.nth(1).check()
    page.get_by_role("button", name=BUTTON).click()
    for _ in range(3):
        expect(page.locator(".ma-quiz-kind")).to_contain_text("KV cache · question")
        answer(page)


def test_the_most_asked_come_first_and_the_order_changes(visitor: Any) -> None:
    asked = {each.question: each.asked for each in interviews()}
    first = set()
    for _ in range(4):
        page = begin(visitor())
        first.add(question(page))
        page.context.close()
    assert len(first) > 1 and {asked[text] for text in first} == {min(asked.values())}


def test_what_is_written_stays_and_keys_write(mock: Page) -> None:
    mock.locator("textarea").focus()
    mock.keyboard.type("1 query, n keys\nquite <b>short</b>")
    mock.keyboard.press("Tab")
    mock.keyboard.press("Enter")
    assert mock.locator(".ma-mock-written").inner_text() == "1 query, n keys\nquite <b>short</b>"
    assert mock.locator(".ma-mock-written").is_visible() and mock.locator("input:checked").count() == 0
    mock.keyboard.press("2")
    mock.keyboard.press("1")
    mock.keyboard.press("2")
    expect(mock.get_by_role("checkbox", name="1", exact=False).first).to_be_checked()
    assert mock.locator("input:checked").count() == 1


def test_a_countdown_tells_when_it_is_over_and_cuts_nobody_short(mock: Page) -> None:
    timer = mock.get_by_role("timer")
    expect(timer).to_have_text("2:00 left")
    assert timer.get_attribute("aria-live") == "off"
    pass_time(mock, 1)
    expect(timer).to_have_text("1:00 left")
    mock.locator("textarea").fill("not yet")
    pass_time(mock, 1.5)
    expect(timer).to_have_text("0:30 over time")
    expect(mock.locator("#ma-quiz-status")).to_have_text("Time to come to an end.")
    assert mock.locator("textarea").input_value() == "not yet"


def test_the_time_ends_after_the_question_at_hand(mock: Page) -> None:
    answer(mock, 1)
    mock.locator("textarea").wait_for()
    pass_time(mock, 21)
    answer(mock, 1, 2, held=False)
    expect(mock.locator(".ma-mock-report")).to_contain_text("2 questions in 21 min;")
    expect(mock.locator(".ma-mock-report")).to_contain_text("1 of 2 follow-ups held.")


@pytest.mark.parametrize("screens", range(4))
def test_stopping_anywhere_reports_what_was_done(mock: Page, screens: int) -> None:
    answer(mock, 1)
    for _ in range(screens):
        mock.keyboard.press("Enter")
    mock.keyboard.press("q")
    told = "2 questions" if screens >= 2 else "1 question in"
    expect(mock.locator(".ma-mock-report")).to_contain_text(told)
    expect(mock.locator(".ma-mock-report")).to_contain_text("1 of 1 follow-up held.")
    assert mock.locator(".ma-mock-report tbody tr").last.inner_text().endswith("–") == (screens >= 2)


def test_keys_are_the_interviews_own_and_only_while_it_lasts(mock: Page) -> None:
    """The theme turns pages at n and p and searches at s; a key of ours does nothing once the report is shown."""
    url = mock.url
    mock.keyboard.press("Enter")
    for key in ("n", "p", "s", "f", ".", ",", "u", "9"):
        mock.keyboard.press(key)
    assert mock.url == url and mock.locator("legend").is_visible()
    expect(mock.locator(".md-search__input")).not_to_be_focused()
    mock.keyboard.press("q")
    report = mock.locator("#ma-quiz").inner_html()
    for key in ("q", "1", "y"):
        mock.keyboard.press(key)
    assert mock.locator("#ma-quiz").inner_html() == report
    mock.keyboard.press("s")
    expect(mock.locator(".md-search__input")).to_be_focused()


def test_another_tab_does_not_end_it(mock: Page) -> None:
    asked = question(mock)
    mock.evaluate("dispatchEvent(new StorageEvent('storage', { key: 'measured-answers-quiz' }))")
    mock.wait_for_timeout(100)
    assert question(mock) == asked


def test_the_quiz_goes_on_after_it(mock: Page) -> None:
    mock.keyboard.press("q")
    expect(mock.locator(".ma-mock-report")).to_have_text(re.compile("No question was answered"))
    mock.get_by_role("button", name="Back to the start").click()
    mock.get_by_role("button", name="Tonight: 20").click()
    mock.keyboard.press("Enter")
    mock.keyboard.press("3")
    mock.wait_for_function("localStorage.getItem('measured-answers-quiz') !== null")


def test_follow_ups_are_chosen_as_in_python(mock: Page) -> None:
    dice = random.Random(0)
    cases, wanted = [], []
    for each in dice.choices(interviews(), k=500):
        missed = [at for at in range(len(each.points)) if dice.random() < dice.choice((0, 0.3, 0.7, 1))]
        ticked = [at for at in range(len(each.points)) if at not in missed]
        dice.shuffle(missed)
        cases.append([each.page, missed, ticked])
        wanted.append(each.followups.index(choose(each.followups, missed, ticked)))
    found = mock.evaluate(
        """async cases => {
            const { choose } = await import(new URL("assets/quiz/interview.js", location.href))
            const { interviews } = await (await fetch("assets/quiz/interview.json")).json()
            const pages = Object.fromEntries(interviews.map(each => [each.page, each.followups]))
            return cases.map(([page, missed, ticked]) => pages[page].indexOf(choose(pages[page], missed, ticked)))
        }""",
        cases,
    )
    assert found == wanted and len(set(wanted)) > 3


def test_questions_are_the_pages_questions(mock: Page) -> None:
    from measured.build import interview_document

    shown = mock.evaluate("fetch('assets/quiz/interview.json').then(response => response.json())")
    assert shown == json.loads(json.dumps(interview_document()))
    assert not [each["page"] for each in shown["interviews"] if re.search(r"\$|\*\*|\{ ?\.|\]\(", json.dumps(each))]


# ---- Paper, phones, listeners ------------------------------------------------------------------------------


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_paper_shows_the_report_alone_black_on_white(visitor: Any, dark: bool) -> None:
    page = begin(visitor(dark=dark))
    answer(page, 1, held=False)
    page.keyboard.press("q")
    page.evaluate("window.print = () => { window.printed = true }")
    page.get_by_role("button", name="Print").click()
    assert page.evaluate("window.printed")
    page.emulate_media(media="print")
    report = page.locator(".ma-mock-report").inner_text()
    assert page.locator("body").inner_text().split() == report.split()
    colours = page.evaluate(
        """() => [...document.querySelectorAll(".ma-mock-report, .ma-mock-report *")].map(each => {
            const { color, backgroundColor } = getComputedStyle(each)
            return `${color} on ${backgroundColor}`
        })"""
    )
    assert set(colours) == {"rgb(0, 0, 0) on rgb(255, 255, 255)"}


SERIOUS = ("moderate", "serious", "critical")


def wrong(page: Page) -> list[Any]:
    """What a listener, or whoever holds a phone, would stumble over on this screen."""
    found = Axe().run(page, context="#ma-quiz", options={"resultTypes": ["violations"]}).response["violations"]
    faults = [(each["id"], node["html"]) for each in found if each["impact"] in SERIOUS for node in each["nodes"]]
    wide = page.evaluate(
        """() => [...document.querySelectorAll("#ma-quiz *")]
            .filter(e => e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    )
    sideways = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return [*faults, *wide, *(["scrolls sideways"] if sideways else [])]


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (360, False)], ids=["light", "dark", "phone"])
def test_every_screen_is_for_everyone(visitor: Any, width: int, dark: bool) -> None:
    page = begin(visitor(width=width, dark=dark))
    found = {"question": wrong(page)}
    expect(page.get_by_role("textbox", name="Say it aloud, or write it here")).to_be_visible()
    page.locator("textarea").fill("word" * 50)
    page.get_by_role("button", name="Show the key points").click()
    expect(page.get_by_role("group", name="Tick the points that you made")).to_be_visible()
    page.keyboard.press("1")
    found["points"] = wrong(page)
    page.get_by_role("button", name="Go on").click()
    found["follow-up"] = wrong(page)
    page.get_by_role("button", name="Show the answer").click()
    found["answer"] = wrong(page)
    page.get_by_role("button", name="I had not").click()
    for _ in range(3):
        answer(page, 1, held=False)
    page.keyboard.press("q")
    found["report"] = wrong(page)
    assert found == {screen: [] for screen in found}
