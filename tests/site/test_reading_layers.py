"""A question page in layers: anchors, folded code, a number's evidence, terms, paper, no script, nothing that moves."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

PAGE = "kv_cache/bytes_per_token"
CLAIM = "#kv-8b-bytes"
LAYERS = (
    "in-10-seconds",
    "in-30-seconds",
    "the-formula",
    "on-a-whiteboard",
    "measured",
    "when-is-it-false",
    "follow-ups",
    "say",
)
BARS = "article > .highlight > .ma-fold"
ONE_OF_EACH = (PAGE, "quantization/inference_speed", "embeddings/lookup", "throughput/the_ladder")


def _questions(source: Any) -> list[str]:
    texts = {name: (source.root / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in source.pages()}
    return [name for name, text in texts.items() if re.search(r"^asked: ", text, re.M)]


def test_every_question_has_a_link_to_each_layer(visitor: Any, source: Any) -> None:
    context = visitor().context
    for name in _questions(source):
        text = context.request.get(f"{visitor.base_url}/{name}.html").text()
        bar = re.search(r'<nav [^>]*class="ma-layers".*?</nav>', text, re.S)
        assert bar, name
        linked = re.findall(r'href="#([\w-]+)"', bar[0])
        assert linked == list(LAYERS), name
        assert [anchor for anchor in linked if text.count(f'id="{anchor}"') != 1] == [], name
        levels = re.findall(r'<a class="ma-level (junior|senior|staff)" href="#(follow-up-\d+)"', text)
        assert len(levels) >= 3 and {level for level, _ in levels} >= {"junior", "senior", "staff"}, name
        assert [anchor for _, anchor in levels if text.count(f'id="{anchor}"') != 1] == [], name


def test_code_is_folded_and_its_output_is_not(visitor: Any) -> None:
    page = visitor().open(PAGE)
    bars = page.locator(BARS)
    assert bars.count() > 3
    code = page.locator("article > .highlight > pre")
    assert all(height == 0 for height in code.evaluate_all("all => all.map(e => e.offsetHeight)"))
    for output in page.locator(".ma-out").all():
        expect(output).to_be_visible()
    expect(bars.first).to_have_attribute("aria-expanded", "false")
    assert "token_bytes" in bars.first.inner_text() and re.search(r"\d+ lines", bars.first.inner_text())
    bars.first.focus()
    page.keyboard.press("Enter")
    expect(bars.first).to_have_attribute("aria-expanded", "true")
    assert code.first.evaluate("e => e.offsetHeight") > 50
    assert code.last.evaluate("e => e.offsetHeight") == 0


def test_all_code_stays_open_once_it_was_wanted(visitor: Any) -> None:
    visit = visitor()
    switch = visit.open(PAGE).get_by_role("button", name="Show all code")
    switch.click()
    heights = "all => all.map(e => e.offsetHeight)"
    assert min(visit.page.locator("article > .highlight > pre").evaluate_all(heights)) > 10
    other = visit.open("embeddings/lookup")
    assert min(other.locator("article > .highlight > pre").evaluate_all(heights)) > 10
    other.get_by_role("button", name="Hide all code").click()
    assert max(other.locator("article > .highlight > pre").evaluate_all(heights)) == 0


def test_a_link_into_folded_code_opens_it(visitor: Any) -> None:
    visit = visitor()
    page = visit.open(PAGE)
    anchor = page.locator("article > .highlight").last.get_attribute("id")
    page.goto("about:blank")
    page.goto(f"{visit.base_url}/{PAGE}.html#{anchor}")
    expect(page.locator(f"#{anchor}")).to_have_attribute("data-fold", "open")
    expect(page.locator(f"#{anchor} > pre")).to_be_in_viewport()


def test_evidence_opens_on_focus_and_escape_closes_it(visitor: Any) -> None:
    page = visitor().open(PAGE)
    claim, box = page.locator(CLAIM), page.locator("#ma-evidence")
    title = claim.get_attribute("title")
    page.locator(".ma-layers button").focus()
    page.keyboard.press("Tab")
    expect(claim).to_be_focused()
    expect(box).to_be_visible()
    for told in ("exact", "kv_8b_token_bytes == 131072", "131,072", "holds", "Python"):
        expect(box).to_contain_text(told)
    expect(claim).to_have_attribute("aria-describedby", "ma-evidence")
    page.keyboard.press("Tab")
    expect(box.get_by_role("button", name="Copy link")).to_be_focused()
    page.keyboard.press("Escape")
    expect(box).to_have_count(0)
    expect(claim).to_be_focused()
    assert claim.get_attribute("title") == title
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")  # on to a number that is no claim
    expect(box).to_contain_text(re.compile("measured|derived"))


def test_evidence_opens_on_hover_and_fits_a_phone(visitor: Any) -> None:
    page = visitor().open(PAGE)
    page.locator(CLAIM).hover()
    expect(page.locator("#ma-evidence")).to_be_visible()
    page.mouse.move(5, 5)
    expect(page.locator("#ma-evidence")).to_have_count(0)
    page = visitor(width=360).open("quantization/inference_speed")
    for claim in page.locator("article > p strong.claim").all():
        claim.dispatch_event("click")  # as a tap on any line of it does
        edges = page.locator("#ma-evidence").evaluate(
            "e => { const r = e.getBoundingClientRect(); return [r.left, r.right] }"
        )
        assert 0 <= edges[0] < edges[1] <= 360
        assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_a_claims_link_is_copied(visitor: Any) -> None:
    visit = visitor()
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = visit.open(PAGE)
    page.locator(CLAIM).click()
    page.get_by_role("button", name="Copy link").click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == f"{visit.base_url}/{PAGE}.html{CLAIM}"
    page.goto("about:blank")
    page.goto(copied)
    expect(page.locator(CLAIM)).to_be_in_viewport()


def test_a_wrong_number_is_reported(visitor: Any) -> None:
    """With a place configured, as an issue filled in; without one, as a text to copy."""
    visit = visitor()
    page = visit.open(PAGE)
    page.locator(CLAIM).click()
    page.get_by_role("button", name="Report a wrong number").click()
    dialog = page.get_by_role("dialog", name="Report a wrong number")
    text = dialog.locator("textarea").input_value()
    for told in (f"{PAGE}.html", "kv-8b-bytes", "kv_8b_token_bytes == 131072", "machine: AMD", "torch", "seen:"):
        assert told in text
    page.keyboard.press("Escape")
    expect(dialog).to_have_count(0)
    page.evaluate(
        """() => {
            const meta = document.createElement("meta")
            meta.name = "ma-issues"
            meta.content = "https://example.org/issues/new"
            document.head.append(meta)
            window.open = (address) => { window.opened = String(address) }
        }"""
    )
    page.locator(CLAIM).click()
    page.get_by_role("button", name="Report a wrong number").click()
    address = urlsplit(page.evaluate("window.opened"))
    fields = {name: value for name, (value,) in parse_qs(address.query).items()}
    assert address.netloc == "example.org" and fields["template"] == "wrong-number.yml"
    assert fields["page"].endswith(f"{PAGE}.html") and "kv-8b-bytes" in fields["claim"]
    assert fields["machine"].startswith("AMD") and "torch" in fields["versions"]


def test_a_term_says_what_it_is_and_leads_to_the_glossary(visitor: Any) -> None:
    visit = visitor()
    page = visit.open("quantization/inference_speed")
    term = page.locator("a.ma-term").first
    name = term.inner_text()
    term.hover()
    told = page.locator("#ma-evidence p")
    expect(told).to_contain_text(re.compile(r"\w+ \w+ \w+ .*\."))
    means = told.inner_text()
    term.click()
    page.wait_for_url("**/glossary.html#*")
    entry = page.locator("dt:target")
    assert name in entry.inner_text()
    assert page.locator("dt:target + dd").inner_text().startswith(means)


def test_paper_has_the_answer_and_no_code(visitor: Any) -> None:
    visit = visitor()
    page = visit.open(PAGE)
    page.emulate_media(media="print")
    expect(page.locator("article > .highlight").first).to_be_hidden()
    for shown in (
        ".answer",
        ".ma-formula",
        "#on-a-whiteboard",
        ".ma-out",
        ".ma-level",
        ".say",
        ".dont-say",
        ".verdict",
    ):
        expect(page.locator(shown).first).to_be_visible()
    assert page.locator(CLAIM).evaluate("e => getComputedStyle(e, '::after').content") == '"D"'
    expect(page.locator(".ma-layers")).to_be_hidden()
    page.goto(f"{visit.base_url}/{PAGE}.html?print=all")
    page.wait_for_function("document.querySelector('.ma-fold')")
    assert min(page.locator("article > .highlight > pre").evaluate_all("all => all.map(e => e.offsetHeight)")) > 10


def test_without_scripts_everything_is_there(chromium: Any, base_url: str) -> None:
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 360, "height": 800})
    page = context.new_page()
    page.goto(f"{base_url}/{PAGE}.html")
    for box in page.locator("article > .highlight > pre").all():
        expect(box).to_be_visible()
    assert "kv_8b_token_bytes == 131072" in (page.locator(CLAIM).get_attribute("title") or "")
    for shown in (".answer", ".ma-layers", ".ma-also", ".say", ".ma-out"):
        expect(page.locator(shown).first).to_be_visible()
    page.locator(".ma-layers a", has_text="Say").click()
    expect(page.locator("#say")).to_be_in_viewport()
    context.close()


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_moves_while_a_page_loads(visitor: Any, name: str, width: int) -> None:
    visit = visitor(width=width)
    visit.context.add_init_script(
        """window.moved = 0
        new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.moved += entry.value
        }).observe({ type: "layout-shift", buffered: true })"""
    )
    page = visit.open(name)
    page.wait_for_selector(BARS, state="attached")
    page.wait_for_timeout(300)
    assert page.evaluate("window.moved") < 0.02


def test_pages_follow_one_another_as_their_topic_has_them(site: Any, source: Any) -> None:
    """Next on each page is the next question on the topic's page."""
    for topic in ("quantization", "kv_cache", "embeddings", "throughput"):
        text = (site / topic / "index.html").read_text(encoding="utf-8")
        asked = re.findall(r'<section class="ma-question" id="q-([\w-]+)"', text)
        assert len(asked) > 8
        for name, then in zip(["index", *asked], asked, strict=False):
            page = (site / topic / f"{name.replace('-', '_')}.html").read_text(encoding="utf-8")
            following = re.search(r'<a href="([\w.]+)" class="md-footer__link md-footer__link--next"', page)
            assert following and following[1] == f"{then.replace('-', '_')}.html", f"{topic}/{name}"
