"""The site as a reader meets it, in Chromium: outputs, tabs, search, keyboard, phone, paper, both colour schemes."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

pytestmark = pytest.mark.browser


@dataclass(frozen=True)
class Fault:
    """Something axe finds that is the theme's: which rule, on which element, why it stays."""

    rule: str
    target: str
    reason: str


TIMED = "throughput/batching"  # A page whose machines differ, so that it has tabs.

# Empty today: the site's own style sheet and script mend what axe found in the theme.
THEME_FAULTS: tuple[Fault, ...] = ()


def _audit(page: Any, *rules: str) -> list[tuple[str, str, str]]:
    """`(rule, element, what axe says)` of everything serious or critical; of some rules alone if named."""
    found = []
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = list(rules)
    for violation in Axe().run(page, options=options).response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            for node in violation["nodes"]:
                told = "; ".join(check["message"] for check in node["any"] + node["all"])
                found.append((violation["id"], node["html"], told))
    return found


def _is_theme_fault(rule: str, element: str) -> bool:
    return any(fault.rule == rule and fault.target in element[:120] for fault in THEME_FAULTS)


# ---- What a page shows ------------------------------------------------------------------------------------


def test_each_fence_is_followed_by_its_output(visitor: Any, source: Any, code_page: str) -> None:
    """An output's box stands after its own code, before the next, visible and with something in it."""
    page = visitor().open(code_page)
    blocks = page.evaluate(
        """() => [...document.querySelectorAll('.language-python.highlight, .ma-out')].map(e => ({
            out: e.classList.contains('ma-out'), cell: e.dataset.cell, height: e.getBoundingClientRect().height,
            text: e.innerText.trim(), drawn: e.querySelectorAll('svg').length}))"""
    )
    shown = {int(b["cell"]): b for b in blocks if b["out"]}
    machines = source.machines_of(code_page)
    for cell, outputs in enumerate(source.outputs_by_fence(code_page, machines[0])):
        kinds = [set(o.get("data", {"stream": 0})) for o in outputs]
        if all(any("series" in mime for mime in kind) for kind in kinds):
            continue  # Nothing was put out, or a series alone, which its table or chart shows.
        assert cell in shown, f"cell {cell} of {code_page} shows nothing"
        box = shown[cell]
        assert box["height"] > 20
        assert len(box["text"].removeprefix("RECORDED OUTPUT").strip()) > 3 or box["drawn"]
    # In the page's order each box comes right after a block of code.
    for before, block in itertools.pairwise(blocks):
        if block["out"]:
            assert not before["out"], f"two outputs in a row at cell {block['cell']}"


def test_charts_are_drawn_and_told(visitor: Any, source: Any) -> None:
    """Each chart has size, a text alternative with a number in it, and its data as a table that unfolds."""
    visit, seen = visitor(), 0
    for name in source.pages():
        page = visit.open(name)
        for chart in page.locator(".ma-chart:visible").all():
            seen += 1
            image = chart.locator("svg[role=img]")
            assert re.search(r"\d", image.get_attribute("aria-label") or "")
            box = image.bounding_box()
            assert box and box["width"] > 200 and box["height"] > 100
            chart.locator("summary").click()
            expect(chart.locator("table td").first).to_be_visible()
    assert seen > 0, "no page draws a chart"


def _told(outputs: list[dict]) -> list[str]:
    """What of a cell's outputs reaches the page: prints and bundles, but no bare series."""
    said = [
        o.get("text") or {mime: data for mime, data in o.get("data", {}).items() if "series" not in mime}
        for o in outputs
    ]
    return [json.dumps(one, sort_keys=True) for one in said if one]


def test_tabs_of_machines_switch_together(visitor: Any, source: Any, code_page: str) -> None:
    """There are tabs where machines differ and nowhere else; choosing one machine shows it everywhere on the page."""
    page = visitor().open(code_page)
    machines = source.machines_of(code_page)
    by_machine = [source.outputs_by_fence(code_page, machine) for machine in machines]
    by_cell = [[_told(outputs) for outputs in cell] for cell in itertools.zip_longest(*by_machine, fillvalue=[])]
    differing = [str(n) for n, told in enumerate(by_cell) if len(machines) > 1 and told[0] != told[1]]
    agreeing = [str(n) for n, told in enumerate(by_cell) if len(machines) > 1 and told[0] and told[0] == told[1]]
    cells = "nodes => nodes.map(n => n.closest('.ma-out').dataset.cell)"
    assert page.locator(".ma-out .tabbed-set").evaluate_all(cells) == differing
    assert page.locator(".ma-out .ma-same").evaluate_all(cells) == agreeing
    if not differing:
        return
    sets = page.locator(".ma-out .tabbed-set")
    labels = sets.first.locator(".tabbed-labels > label")
    second = labels.nth(1).inner_text()
    expect(sets.first.locator(".tabbed-block").first).to_be_visible()
    labels.nth(1).click()
    for each in sets.all():
        names = each.locator(".tabbed-labels > label").all_inner_texts()
        at = names.index(second)
        expect(each.locator(".tabbed-block").nth(at)).to_be_visible()
        expect(each.locator(".tabbed-block").nth(1 - at)).to_be_hidden()
        assert each.locator(".tabbed-block").nth(at).inner_text().strip() or each.locator("svg").count()


def test_claims_say_what_backs_them(visitor: Any, source: Any) -> None:
    """Each claim shows its class and, in its tooltip, its check; it holds; its id is the site's only one."""
    visit, ids = visitor(), []
    texts = [(source.root / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in source.pages()]
    stated = set(re.findall(r'data-check="([^"]*)"', "\n".join(texts)))
    for name in source.pages():
        claims = visit.open(name).evaluate(
            """() => [...document.querySelectorAll('strong.claim')].map(e => ({
                id: e.id, title: e.title, kind: e.dataset.class,
                badge: getComputedStyle(e, '::after').content, state: e.className}))"""
        )
        for claim in claims:
            assert claim["badge"].strip('"').split()[0] == claim["kind"] and claim["kind"] in "DTRH"
            checked = re.search(r"; checked: (.*?); recorded: ", claim["title"])
            assert checked and checked[1] in stated, f"{name}: {claim}"
            # A claim whose capability the recorded machine lacks says so; none fails.
            absent = claim["state"] == "claim not-applicable" and "not applicable here" in claim["badge"]
            assert claim["state"] == "claim" or absent, f"{name}: {claim}"
        ids += [claim["id"] for claim in claims if claim["id"]]
        assert visit.page.locator(".verdict.broken").count() == 0
    assert len(ids) >= sum(bool(source.fence_count(n)) and not n.endswith("/index") for n in source.pages()) > 0
    assert len(ids) == len(set(ids))


def test_verdicts_are_words_not_only_colours(visitor: Any, source: Any) -> None:
    words = {"holds": "Holds", "holds-if": "Holds if", "refuted": "Refuted", "not-measured": "Not measured"}
    visit, seen = visitor(), set()
    for name in source.pages():
        verdicts = visit.open(name).evaluate(
            """() => [...document.querySelectorAll('.admonition.verdict > .admonition-title')].map(e => ({
                status: [...e.parentElement.classList], word: getComputedStyle(e, '::after').content,
                icon: getComputedStyle(e, '::before').maskImage}))"""
        )
        for verdict in verdicts:
            (status,) = set(verdict["status"]) & words.keys()
            assert verdict["word"] == f'"{words[status]}"'
            assert verdict["icon"].startswith('url("data:image/svg+xml')
            seen.add(status)
    assert len(seen) >= 2


def test_names_of_values_stay_on_a_line(visitor: Any, code_page: str) -> None:
    """On a desk no recorded name is broken up, and its number stands beside it."""
    rows = (
        visitor()
        .open(code_page)
        .evaluate(
            """() => [...document.querySelectorAll('.ma-values tr')].filter(e => e.checkVisibility()).map(e => ({
            text: e.innerText, height: e.getBoundingClientRect().height,
            line: parseFloat(getComputedStyle(e).lineHeight)}))"""
        )
    )
    assert [row for row in rows if row["height"] > 2.5 * row["line"]] == []


def test_formulas_are_mathml(visitor: Any, source: Any) -> None:
    """Formulas are drawn by the browser: they have a size, and no TeX is left in the text."""
    visit, seen = visitor(), 0
    for name in source.pages():
        sizes = visit.open(name).evaluate(
            """() => [...document.querySelectorAll('.md-content math')].filter(e => e.checkVisibility())
                .map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])"""
        )
        assert all(width > 3 and height > 3 for width, height in sizes)
        seen += len(sizes)
        text = visit.page.locator(".md-content").inner_text()
        assert not re.search(r"\\(?:cdot|frac|text|times|\(|\[)", text), f"{name} shows TeX"
    assert seen > 0


# ---- Getting around ---------------------------------------------------------------------------------------


def test_search_finds_a_claim(visitor: Any, source: Any, code_page: str) -> None:
    """Words of a page's first claim lead to it: among the first three pages."""
    visit = visitor()
    page = visit.open(code_page)
    words = page.locator("h1").evaluate("e => e.firstChild.textContent")
    claim = page.locator(".md-content strong.claim").first
    sentence = claim.evaluate("e => e.closest('p, li, td').innerText")
    words = " ".join(re.findall(r"[A-Za-z][\w-]{4,}", f"{words} {sentence}")[:5])
    page = visit.open("index")
    page.keyboard.press("/")
    expect(page.locator(".md-search__input")).to_be_focused()
    page.keyboard.type(words)
    # Results are drawn again with every key: ask the page itself until they have settled.
    found = """place => [...new Set([...document.querySelectorAll(".md-search-result__link")]
        .map(link => new URL(link.href).pathname))].slice(0, 3).some(path => path.endsWith(place))"""
    page.wait_for_function(found, arg=f"/{code_page}.html", timeout=15_000)
    # A key at a time: no beginning of the words may end in an error of the search engine, as words with digits can.
    assert [told for told in visit.console if "Invalid query" in told] == []


def test_keyboard_skips_to_the_content_and_switches_a_tab(visitor: Any, source: Any) -> None:
    assert len(source.machines_of(TIMED)) >= 2
    page = visitor().open(TIMED)
    page.keyboard.press("Tab")
    skip = page.locator(".md-skip")
    expect(skip).to_be_focused()
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash").startswith("#")
    first = page.locator(".ma-out .tabbed-set").first
    for _ in range(300):
        page.keyboard.press("Tab")
        if first.locator("> input").first.evaluate("e => e === document.activeElement"):
            break
    else:
        pytest.fail("a content tab cannot be reached with the Tab key")
    page.keyboard.press("ArrowRight")
    expect(first.locator(".tabbed-block").nth(1)).to_be_visible()
    expect(first.locator(".tabbed-block").nth(0)).to_be_hidden()


def test_nothing_fails_and_nothing_is_asked_elsewhere(visitor: Any, source: Any) -> None:
    """Every page and one notebook view: no console message, no other host, nothing missing."""
    visit = visitor()
    views = [f"notebooks/{source.machines_of(n)[0]}/{n}" for n in source.pages() if source.fence_count(n)]
    for name in [*source.pages(), *views[:1]]:
        visit.open(name)
        visit.page.wait_for_timeout(150)
    assert visit.console == []
    assert visit.foreign == []
    assert visit.missing == []


def test_theme_toggle_goes_from_the_system_to_light_to_dark(visitor: Any) -> None:
    page = visitor(dark=True).open("index")
    scheme = page.locator("body")
    expect(scheme).to_have_attribute("data-md-color-scheme", "slate")
    page.locator("label[for=__palette_1]").click()
    expect(scheme).to_have_attribute("data-md-color-scheme", "default")
    page.locator("label[for=__palette_2]").click()
    expect(scheme).to_have_attribute("data-md-color-scheme", "slate")


# ---- Everyone, everywhere ---------------------------------------------------------------------------------


def test_axe_finds_nothing_of_ours(visitor: Any, page_name: str) -> None:
    """Everything in light on a desk, colours again in dark, everything again on a phone."""
    page = visitor().open(page_name)
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "default")
    found = [("light", *finding) for finding in _audit(page)]
    page.emulate_media(color_scheme="dark")
    expect(page.locator("body")).to_have_attribute("data-md-color-scheme", "slate")
    found += [("dark", *finding) for finding in _audit(page, "color-contrast")]
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 360, "height": 800})
    page.wait_for_timeout(200)
    found += [("phone", *finding) for finding in _audit(page)]
    assert [finding for finding in found if not _is_theme_fault(*finding[1:3])] == []


def test_axe_is_not_asleep(visitor: Any) -> None:
    """The audit above finds a fault that is put there."""
    page = visitor().open("index")
    page.evaluate("document.querySelector('.md-content p').style.color = '#bbbbbb'")
    assert "color-contrast" in {rule for rule, _, _ in _audit(page, "color-contrast")}


def test_listed_theme_faults_still_occur(visitor: Any, source: Any) -> None:
    """A fault that the theme has mended leaves the list."""
    left, visit = set(THEME_FAULTS), visitor(width=360)
    for name in source.pages():
        if not left:
            break
        page = visit.open(name)
        page.wait_for_timeout(200)
        for rule, element, _ in _audit(page, *{fault.rule for fault in left}):
            left -= {f for f in left if f.rule == rule and f.target in element[:120]}
    assert left == set(), "remove these from THEME_FAULTS"


def test_phone_does_not_scroll_sideways(visitor: Any, page_name: str) -> None:
    page = visitor(width=360).open(page_name)
    page.wait_for_timeout(100)
    width = page.evaluate("document.documentElement.scrollWidth")
    wide = page.evaluate(
        """() => [...document.querySelectorAll('.md-content *')].filter(e => {
            const right = e.getBoundingClientRect().right;
            if (right <= innerWidth + 1) return false;
            for (let p = e.parentElement; p; p = p.parentElement)
              if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return false;
            return true;
        }).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert width <= 360
    assert wide == []


def test_paper_shows_every_answer(visitor: Any, source: Any) -> None:
    """A printed topic page holds each question's answer and verdicts in full, with nothing folded."""
    topics = [name for name in source.pages() if name.endswith("/index") and source.fence_count(name)]
    assert len(topics) == 4
    visit = visitor()
    visit.page.emulate_media(media="print")
    for name in topics:
        page = visit.open(name)
        folder = name.split("/")[0]
        questions = [n for n in source.pages() if n.startswith(f"{folder}/") and n != name]
        sections = page.locator(".ma-question")
        assert sections.count() == len(questions) > 0
        for section in sections.all():
            answer = section.locator(".admonition.answer, .admonition.answer ~ p, > p").first
            expect(answer).to_be_visible()
            assert len(answer.inner_text().split()) > 15
            for verdict in section.locator(".admonition.verdict").all():
                expect(verdict.locator("> :not(.admonition-title)").first).to_be_visible()
        hidden = page.evaluate(
            """() => [...document.querySelectorAll('.md-content .tabbed-block, .md-content details > *')]
                .filter(e => e.getBoundingClientRect().height === 0).map(e => e.outerHTML.slice(0, 80))"""
        )
        assert hidden == []
        expect(page.locator(".md-header")).to_be_hidden()
        expect(page.locator(".md-footer")).to_be_hidden()


def test_notebook_view_and_download(visitor: Any, source: Any, code_page: str, tmp_path: Path) -> None:
    """The foot of a page leads to the notebook to read, and to the file to run."""
    visit = visitor()
    page = visit.open(code_page)
    foot = page.locator(".ma-recorded")
    with page.expect_download() as started:
        foot.locator("a[href$='.ipynb']").first.click()
    file = tmp_path / "downloaded.ipynb"
    started.value.save_as(file)
    notebook = json.loads(file.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    assert sum(cell["cell_type"] == "code" for cell in notebook["cells"]) > source.fence_count(code_page)
    assert started.value.suggested_filename == f"{code_page.split('/')[1]}.ipynb"
    foot.locator("a[href*='notebooks/']:not([href$='.ipynb'])").first.click()
    expect(page.locator(".jp-Notebook")).to_be_visible()
    assert page.locator(".jp-CodeCell").count() > source.fence_count(code_page)
    page.locator(".ma-notebook-bar a").first.click()
    expect(page.locator("h1")).to_be_visible()
    assert page.url.endswith(f"/{code_page}.html")
    assert visit.missing == [] and visit.foreign == [] and visit.console == []
