"""Home, the most asked, numbers to know and things people say: as a reader has them, with and without JavaScript."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from playwright.sync_api import Browser, ViewportSize, expect

pytestmark = pytest.mark.browser

TOPICS = ("quantization", "kv_cache", "embeddings", "throughput")
PAGES = ["index", "most_asked", "verdicts", "numbers/index", *(f"numbers/{topic}" for topic in TOPICS)]
TIGHT: ViewportSize = {"width": 360, "height": 740}


def soup(site: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((site / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def executed(source: Any) -> list[str]:
    """Topic and question pages."""
    return [name for name in source.pages() if name.split("/")[0] in TOPICS]


def markdown(source: Any) -> str:
    return "\n".join((source.root / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in executed(source))


# ---- Home -------------------------------------------------------------------------------------------------


def test_the_example_shows_what_was_recorded(site: Path, source: Any) -> None:
    """Read from the notebook itself: every value of the claim, the machine and the date."""
    example = soup(site, "index").select_one(".ma-example")
    assert example
    page = str(example.select("dd:last-of-type a")[-1]["href"]).partition(".html")[0]
    book = source.recording(page, source.machines_of(page)[0])
    values: dict[str, float] = {}
    for output in (o for cell in book["cells"] for o in cell.get("outputs", [])):
        for mime, bundle in output.get("data", {}).items():
            values |= bundle["values"] if mime.endswith(".values+json") else {}
    rows = {row.th.get_text(): row.td.get_text() for row in example.select("tr") if row.th and row.td}
    assert rows and all(float(text.replace(",", "")) == pytest.approx(values[name]) for name, text in rows.items())
    about = book["metadata"]["measured"]
    caption = example.select_one("caption")
    assert caption and about["recorded"] in caption.get_text() and about["machine"]["label"] in caption.get_text()
    title = str(example.select("strong.claim")[0]["title"])
    assert all(name in title for name in rows)


def test_what_was_checked_is_counted_alike_in_the_markdown(site: Path, source: Any) -> None:
    text = markdown(source)
    classes = Counter(re.findall(r"\{ ?\.claim [^}\n]*data-class=(\w)", text))
    verdicts = Counter(re.findall(r'^!!! verdict ([\w-]+) "', text, re.M))
    home = soup(site, "index")
    names = [dt.get_text() for dt in home.select(".ma-checked dt")]
    told = dict(zip(names, home.select(".ma-checked dd"), strict=True))
    claims = told["Claims"].get_text()
    assert claims.startswith(f"{sum(classes.values()):,}: ")
    assert {k: int(n.replace(",", "")) for n, k in re.findall(r"([\d,]+) [a-z ,]+\((\w)\)", claims)} == dict(classes)
    links = {str(a["href"]).partition("#")[2]: int(a.get_text().split()[0]) for a in told["Statements"].select("a")}
    assert links == dict(verdicts)


def test_topics_are_counted_and_lead_to_their_most_asked_question(site: Path, source: Any) -> None:
    items = soup(site, "index").select(".ma-topics > ul > li")
    assert len(items) == len(TOPICS)
    for topic, item in zip(TOPICS, items, strict=True):
        questions = [n for n in executed(source) if n.startswith(f"{topic}/") and not n.endswith("/index")]
        assert f"{len(questions)} questions" in item.get_text()
        asked = str(item.select("a")[-1]["href"]).removesuffix(".html")
        assert asked in questions and "asked: 1\n" in (source.root / f"docs/{asked}.md").read_text(encoding="utf-8")


# ---- Things people say ------------------------------------------------------------------------------------


def test_every_row_leads_to_the_verdict_itself(site: Path, source: Any) -> None:
    rows = soup(site, "verdicts").select("li[data-statement]")
    stated = re.findall(r'^!!! verdict [\w-]+ "([\w.]+):', markdown(source), re.M)
    assert sorted(str(row["data-statement"]) for row in rows) == sorted(stated)
    for row in rows:
        page, _, anchor = str(row.select("p > a")[0]["href"]).partition(".html#")
        target = soup(site, page).find(id=anchor)
        assert target and {"verdict", row["data-verdict"]} <= set(target["class"])
        assert target.get_text().strip().startswith(f"{row['data-statement']}:")
        assert row.select("strong.claim") and row.select(".ma-verdict")[0].get_text().strip()


def test_statements_are_chosen_by_keyboard_and_the_address_keeps_it(visitor: Any) -> None:
    page = visitor(width=360).open("verdicts")
    rows, count = page.locator("li[data-verdict]"), page.get_by_role("status").filter(has_text="statement")
    every = rows.count()
    expect(count).to_have_text(f"{every} of {every} statements")
    page.get_by_role("radio", name="All").first.focus()
    page.keyboard.press("ArrowRight")
    wanted = page.evaluate("document.activeElement.value")
    assert wanted == "refuted" and "verdict=refuted" in page.url
    shown = page.locator("li[data-verdict]:visible")
    assert set(shown.evaluate_all("rows => rows.map(row => row.dataset.verdict)")) == {wanted}
    expect(count).to_have_text(f"{shown.count()} of {every} statements")
    page.keyboard.press("Tab")
    for _ in TOPICS:
        page.keyboard.press("ArrowRight")
    expect(count).to_have_text("No statement has this verdict in this topic.")
    page.goto(page.url.replace("refuted", "holds-if"))
    assert set(shown.evaluate_all("rows => rows.map(row => row.dataset.verdict + row.dataset.topic)")) == {
        f"holds-if{TOPICS[-1]}"
    }
    assert page.locator("section.ma-said-group:visible").count() == 1


# ---- Without JavaScript, on a phone, on paper ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["verdicts", "most_asked", "index", "numbers/throughput"])
def test_it_reads_without_javascript(name: str, chromium: Browser, base_url: str) -> None:
    context = chromium.new_context(java_script_enabled=False, viewport=TIGHT)
    page = context.new_page()
    page.goto(f"{base_url}/{name}.html")
    for entry in page.locator(".ma-said > li, .ma-asked, .ma-number, .ma-example").all():
        expect(entry).to_be_visible()
        assert len(entry.inner_text().split()) > 8
    assert page.locator(".ma-said > li, .ma-asked, .ma-number, .ma-example").count() > 0
    context.close()


def test_the_most_asked_holds_every_answer(site: Path, source: Any) -> None:
    entries = soup(site, "most_asked").select(".ma-asked")
    questions = [n for n in executed(source) if not n.endswith("/index")]
    assert sorted(str(e.h3.a["href"]).removesuffix(".html") for e in entries if e.h3 and e.h3.a) == sorted(questions)
    for entry in entries:
        assert len(entry.get_text().split()) > 30 and entry.select("strong[title]")


def test_the_evening_begins_at_the_button(visitor: Any) -> None:
    page = visitor(width=360).open("most_asked")
    page.get_by_role("link", name="Drill them tonight").click()
    expect(page.locator("#ma-quiz .ma-quiz-front, #ma-quiz h2").first).to_be_visible()
    assert page.locator("#ma-quiz").get_by_role("button", name="Until it sits").count() == 0


@pytest.mark.parametrize("name", PAGES)
def test_nothing_scrolls_sideways_on_a_phone(name: str, visitor: Any) -> None:
    page = visitor(width=360).open(name)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("topic", TOPICS)
def test_a_sheet_of_numbers_is_one_page_of_paper(topic: str, chromium: Browser, base_url: str) -> None:
    page = chromium.new_page(viewport={"width": 673, "height": 1002})  # A4 less its margins, in CSS pixels
    page.emulate_media(media="print")
    page.goto(f"{base_url}/numbers/{topic}.html")
    for part in (".md-header", ".md-tabs", ".md-sidebar", ".md-footer"):
        for each in page.locator(part).all():
            expect(each).to_be_hidden()
    cut = page.evaluate(
        """() => [...document.querySelectorAll('.ma-number, .ma-number *')].filter(e =>
            e.getBoundingClientRect().right > innerWidth + 1
            || e.matches('.ma-formula') && e.scrollWidth > e.clientWidth + 1).map(e => e.textContent)"""
    )
    assert cut == [] and page.evaluate("document.documentElement.scrollWidth") <= 673
    assert len(re.findall(rb"/Type\s*/Page[^s]", page.pdf(format="A4"))) == 1
    page.close()


def test_lists_do_not_drown_the_questions_in_search(site: Path) -> None:
    places = [e["location"] for e in json.loads((site / "search" / "search_index.json").read_text())["docs"]]
    assert not [p for p in places if p.startswith(("most_asked", "verdicts", *(f"numbers/{t}" for t in TOPICS)))]
    assert any(p.startswith("kv_cache/") for p in places)
