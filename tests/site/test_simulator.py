"""The batching simulator: the same schedules and figures as the Python scheduler, and a form that everyone can use."""

from __future__ import annotations

import random
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from snippets.models.scheduler import DISTRIBUTIONS, POLICIES, Cost, Limits, Request, figures, simulate, trace
from snippets.throughput import continuous_batching as batching
from tests.site.conftest import ROOT

pytestmark = pytest.mark.browser
PAGE = "throughput/continuous_batching"


# ---- The functions ----------------------------------------------------------------------------------------


def _trace(asked: list[Any]) -> list[Request]:
    count, gap, prompts, answers, seed, unit = asked
    return trace(count, gap, tuple(prompts), tuple(answers), seed, unit)


def _drawn(count: int) -> list[dict[str, Any]]:
    """Settings by seed, odd ones and some that must be refused among them."""
    draw = random.Random(7)
    found = []
    for number in range(count):
        batch, block_tokens = draw.choice([1, 2, 3, 7, 16]), draw.choice([1, 3, 16])
        lengths = [[draw.choice(DISTRIBUTIONS), draw.choice(means)] for means in ((2, 7, 64), (2, 5, 40))]
        asked = [draw.randint(1, 60), draw.choice([0, 1, 5, 40]), *lengths, number, draw.choice([1, 1000, 10**6])]
        largest = max(-(-(one.prompt + one.answer - 1) // block_tokens) for one in _trace(asked))
        found.append({
            "trace": asked,
            "limits": {
                "policy": (*POLICIES, *["continuous"] * 4)[number % 8], "batch": batch, "block_tokens": block_tokens,
                "budget": batch + draw.choice([-1, 0, 1, 9, 300, 10**6]),
                "blocks": largest + draw.choice([-1, 0, 2, 2, 5, 10**9]),
                "window": draw.choice([0, 10, 10**7]),
            },
            "cost": {
                "step": draw.choice([1, 4480393]), "token": draw.choice([0, 15170]), "context": draw.choice([0, 39])
            },
            "goals": [draw.choice([10, 10**7, 10**9]), draw.choice([1, 5 * 10**6, 10**8])],
        })  # fmt: skip
    return found


VECTORS = _drawn(160)


def by_python(setting: dict[str, Any]) -> dict[str, Any]:
    """What the Python answers, or how it refuses, as plain data."""
    try:
        served = simulate(_trace(setting["trace"]), Limits(**setting["limits"]), Cost(**setting["cost"]))
    except ValueError as error:
        return {"refused": str(error)}
    return figures(served, *setting["goals"])


BY_JAVASCRIPT = """({ trace, limits, cost, goals }) => {
    const { run, SettingError } = measuredScheduler
    try { return run(measuredScheduler.trace(...trace), limits, cost, ...goals) } catch (error) {
        if (!(error instanceof SettingError)) throw error
        return { refused: error.reason }
    }
}"""


@pytest.fixture(scope="module")
def functions(chromium: Browser) -> Any:
    """A blank page with the simulator's script and nothing else."""
    context = chromium.new_context()
    page = context.new_page()
    page.set_content("<!doctype html><title>functions</title>")
    page.add_script_tag(path=ROOT / "docs" / "assets" / "scheduler.js")
    yield page
    context.close()


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_javascript_schedules_as_python_does(functions: Page, number: int) -> None:
    assert functions.evaluate(BY_JAVASCRIPT, VECTORS[number]) == by_python(VECTORS[number])


def test_the_settings_tried_reach_what_can_happen() -> None:
    answers = [by_python(setting) for setting in VECTORS]
    ran = [answer for answer in answers if "refused" not in answer]
    assert len(ran) > 80 and len(answers) - len(ran) > 20
    assert sum(answer["preempted"] > 0 for answer in ran) > 10
    assert sum(0 < answer["good"] < answer["requests"] for answer in ran) > 10


def test_the_simulated_server_is_the_pages(functions: Page) -> None:
    assert functions.evaluate("measuredScheduler.COST") == vars(batching.predicted_cost())
    assert functions.evaluate("measuredScheduler.POLICIES") == list(POLICIES)
    assert functions.evaluate("measuredScheduler.DISTRIBUTIONS") == list(DISTRIBUTIONS)


# ---- The form ---------------------------------------------------------------------------------------------


def shown(page: Page) -> dict[str, list[str]]:
    """The form's table: a row's label, then a cell for each policy."""
    rows = page.locator("[data-simulator] tbody tr").all()
    return {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in rows}


def expected(policy: str, gap: int = batching.BUSY, **changes: int) -> dict[str, int]:
    """The same run in Python."""
    limits = batching.serving_limits(policy, **{"blocks": 65_536 // 16, **changes})
    requests = batching.arrivals(300, gap)
    if policy == "length":
        longest = max(one.prompt for one in requests)
        limits = batching.replace(limits, budget=limits.batch * longest)
    return figures(simulate(requests, limits, batching.predicted_cost()), 10**9, 25 * 10**6)


def test_the_form_begins_with_the_pages_own_case(visitor: Any) -> None:
    page = visitor().open(PAGE)
    cells = shown(page)
    found = [expected(policy) for policy in POLICIES]
    assert cells["Good requests"] == [f"{one['good']} of 300" for one in found]
    assert cells["Steps"] == [f"{one['steps']:,}" for one in found]
    assert cells["Between tokens, p99"] == [f"{one['gap_p99'] / 1e6:.1f} ms" for one in found]
    expect(page.locator("[data-simulator] .ma-calc-out")).to_contain_text("serves 300 of 300 requests well")


def test_the_form_follows_its_fields(visitor: Any) -> None:
    page = visitor().open(PAGE)
    page.get_by_label("Requests a second", exact=True).fill("40")
    page.get_by_label("Batch, requests", exact=True).fill("16")
    page.get_by_label("Cache, tokens", exact=True).fill("14,400")
    found = expected("continuous", gap=25, batch=16, blocks=900)
    assert found["preempted"] > 0
    cells = shown(page)
    assert cells["Good requests"][-1] == f"{found['good']} of 300"
    assert cells["Preempted"] == ["0", "0", "0", f"{found['preempted']}"]


@pytest.mark.parametrize(
    ("label", "text", "told"),
    [
        ("Batch, requests", "0", "a whole number from 1"),
        ("Batch, requests", "many", "a whole number from 1"),
        ("Chunk: tokens a step", "31", "starves a batch of 32"),
        ("Cache, tokens", "100", "does not fit the cache even alone"),
        ("Requests a second", "", "a number from 0.1"),
        ("Answer tokens, mean", "2000", "fewer requests"),
    ],
)
def test_bad_input_is_told_at_its_field(visitor: Any, label: str, text: str, told: str) -> None:
    visit = visitor()
    page = visit.open(PAGE)
    field = page.get_by_label(label, exact=True)
    field.fill(text)
    expect(page.locator("[data-simulator] .ma-calc-out")).to_contain_text(told)
    expect(page.locator("[data-simulator] [aria-invalid=true]")).to_have_count(1)
    expect(page.locator("[data-simulator] table")).to_be_hidden()
    assert _serious(page) == []
    assert visit.console == []


def _serious(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page, context="[data-simulator]", options={"resultTypes": ["violations"]}).response
    return [
        (violation["id"], node["html"])
        for violation in found["violations"]
        if violation["impact"] in ("moderate", "serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_in_the_form(visitor: Any, dark: bool) -> None:
    assert _serious(visitor(dark=dark).open(PAGE)) == []


def test_a_phone_shows_the_form_without_scrolling_the_page_sideways(visitor: Any) -> None:
    page = visitor(width=360).open(PAGE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_without_javascript_the_page_says_what_is_missing(chromium: Browser, base_url: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{base_url}/{PAGE}.html")
    expect(page.locator("[data-simulator]")).to_contain_text("needs JavaScript")
    context.close()
