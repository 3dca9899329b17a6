"""The calculators: the same answers and refusals as the Python, and a form that everyone can use."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from snippets.models import capacity, cards
from snippets.models.capacity import CapacityError, SettingError
from tests.site.conftest import ROOT

pytestmark = pytest.mark.browser
PAGES = {"fits": "quantization/which_model_fits", "users": "kv_cache/users_per_gpu"}
DATA = cards.calculator_data()


# ---- The functions ----------------------------------------------------------------------------------------


def chosen(model: str, card: str, **asked: Any) -> dict[str, Any]:
    """A plain setting of a public model on a public card."""
    return DATA["models"][model] | {"card_bytes": DATA["cards"][card]["card_bytes"]} | asked


def _drawn(count: int) -> list[dict[str, Any]]:
    """Settings by seed: public ones, odd ones, and many with something wrong."""
    draw = random.Random(20)
    found = []
    for _ in range(count):
        setting = chosen(draw.choice(list(DATA["models"])), draw.choice(list(DATA["cards"])))
        setting |= {
            "context_tokens": draw.choice([1, 7, 512, 4096, 8192, 131_072, draw.randint(1, 200_000)]),
            "users": draw.choice([1, 2, 3, 17, 64, draw.randint(1, 5000)]),
            "cards": draw.choice([1, 1, 1, 2, 3, 4, 8]),
            "weights": draw.choice(list(DATA["schemes"])),
            "cache": draw.choice(list(DATA["caches"])),
            "group": draw.choice([32, 64, 128, 100]),
            "step_tokens": draw.choice([1, 256, 2048, 8192]),
            "runtime_bytes": draw.choice([0, 1, 2**30, 3 * 10**9]),
        }
        if draw.random() < 0.5:
            odd = {n: draw.randint(1, 97) for n in ("layers", "hidden", "kv_heads", "head_dim", "ffn", "vocabulary")}
            setting |= odd | {"heads": odd["kv_heads"] * draw.randint(1, 5), "tied": draw.random() < 0.5}
            setting |= {"card_bytes": draw.randint(1, 4 * 10**6), "runtime_bytes": draw.randint(0, 10**5)}
        if draw.random() < 0.15:
            name = draw.choice([*capacity.SHAPE, "users", "cards", "context_tokens", "card_bytes", "group"])
            setting[name] = draw.choice([0, -1, 1.5, 10**16, None, "7"])
        found.append(setting)
    return found


VECTORS = [
    *[chosen(model, card, context_tokens=4096) for model in DATA["models"] for card in ("8", "24", "80")],
    chosen("llama-3-70b", "80", cards=2, users=9),
    chosen("llama-3-8b", "80", users=62),
    chosen("llama-3-8b", "80", users=63),
    chosen("llama-3.1-8b", "24", context_tokens=131_072, weights="int4_all", cache="fp8"),
    chosen("llama-3-8b", "80", card_bytes=18_436_427_776),  # what is needed, to the byte
    chosen("llama-3-8b", "80", card_bytes=18_436_427_775),
    chosen("llama-3-8b", "80", kv_heads=5),
    chosen("llama-3-8b", "80", context_tokens=8193),
    chosen("llama-3-8b", "80", users=10**9),
    chosen("llama-3-8b", "80", users=10**9, context_tokens=1, card_bytes=2**53 - 1),
    chosen("smollm2-135m", "8", weights="int4"),
    *_drawn(160),
]


def by_python(setting: dict[str, Any]) -> dict[str, Any]:
    """What the Python answers, or how it refuses, as plain data."""
    try:
        made = capacity.setting(setting)
        found = vars(capacity.budget(made))
    except SettingError as error:
        return {"refused": error.name, "reason": error.reason}
    try:
        capacity.admit(made)
    except CapacityError as error:
        told = {"message": str(error), "short_bytes": error.short_bytes}
        return {"budget": found, "admitted": told | {"remedies": [r._asdict() for r in error.remedies]}}
    return {"budget": found, "admitted": True}


BY_JAVASCRIPT = """setting => {
    const { budget, admit, SettingError, CapacityError } = measuredCalculator
    let found
    try { found = budget(setting) } catch (error) {
        if (!(error instanceof SettingError)) throw error
        return { refused: error.field, reason: error.reason }
    }
    try { admit(setting) } catch (error) {
        if (!(error instanceof CapacityError)) throw error
        const { message, short_bytes, remedies } = error
        return { budget: found, admitted: { message, short_bytes, remedies } }
    }
    return { budget: found, admitted: true }
}"""


@pytest.fixture(scope="module")
def functions(chromium: Browser) -> Any:
    """A blank page with the calculator's two scripts and nothing else."""
    context = chromium.new_context()
    page = context.new_page()
    page.set_content("<!doctype html><title>functions</title>")
    for name in ("capacity_data.js", "calculator.js"):
        page.add_script_tag(path=ROOT / "docs" / "assets" / name)
    yield page
    context.close()


@pytest.mark.parametrize("number", range(len(VECTORS)))
def test_javascript_answers_as_python_does(functions: Page, number: int) -> None:
    assert functions.evaluate(BY_JAVASCRIPT, VECTORS[number]) == by_python(VECTORS[number])


def test_the_settings_tried_reach_every_kind_of_answer() -> None:
    answers = [by_python(setting) for setting in VECTORS]
    assert sum(answer.get("admitted") is True for answer in answers) > 30
    assert sum(isinstance(answer.get("admitted"), dict) for answer in answers) > 30
    refused = {answer["refused"] for answer in answers if "refused" in answer}
    assert refused >= {"kv_heads", "cards", "group", "context_tokens", "users", "card_bytes"}
    told = " ".join(answer["admitted"]["message"] for answer in answers if isinstance(answer.get("admitted"), dict))
    for part in ("No single change", "a context of", "a cache in", "weights in", " cards", " users"):
        assert part in told


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_javascript_refuses_what_json_cannot_say(functions: Page, value: str) -> None:
    found = functions.evaluate(
        f"setting => ({BY_JAVASCRIPT})({{ ...setting, users: {value} }})", chosen("llama-3-8b", "80")
    )
    assert found == by_python(chosen("llama-3-8b", "80", users=math.nan))
    assert found["refused"] == "users"


@pytest.mark.parametrize(
    "count", [0, 14_080, 10**7, 2**28, 2**29, 5_368_709, 2**30 - 1, 995 * 10**7, 12345 * 10**8, 2**53 - 1]
)
def test_sizes_are_written_alike(functions: Page, count: int) -> None:
    assert functions.evaluate("count => measuredCalculator.size(count)", count) == capacity.size(count)


# ---- The form ---------------------------------------------------------------------------------------------


def shown_sizes(page: Page) -> dict[str, str]:
    """The form's table: what it says in both units, by row."""
    rows = page.locator(".ma-calc-table tbody tr").all()
    return {row.locator("th").inner_text(): " ".join(row.locator("td").all_inner_texts()) for row in rows}


def sizes(count: int) -> str:
    """Bytes as the form's table writes them: hundredths of a GiB, then of a GB."""
    return f"{count / 2**30:,.2f} {count / 10**9:,.2f}"


@pytest.mark.parametrize(("mode", "card", "first"), [("fits", "24", "Fits:"), ("users", "80", "At most 62 users")])
def test_a_form_begins_with_the_pages_own_case(visitor: Any, mode: str, card: str, first: str) -> None:
    page = visitor().open(PAGES[mode])
    found = capacity.budget(capacity.setting(chosen("llama-3-8b", card)))
    expect(page.locator(".ma-calc-out")).to_contain_text(first)
    assert shown_sizes(page) == {
        "Weights": sizes(found.weights_bytes),
        "Runtime": sizes(found.runtime_bytes),
        "Activations": sizes(found.activations_bytes),
        "KV cache": sizes(found.cache_bytes),
        "Needed": sizes(found.needed_bytes),
        "Card": sizes(found.card_bytes),
        "Left": sizes(found.card_bytes - found.needed_bytes),
    }
    expect(page.locator(".ma-calc-facts")).to_contain_text(f"{found.crossing_tokens:,} tokens")


def test_a_form_refuses_and_says_what_would_fit(visitor: Any) -> None:
    page = visitor().open(PAGES["users"])
    page.get_by_label("Users at once").fill("80")
    with pytest.raises(CapacityError) as refused:
        capacity.admit(capacity.setting(chosen("llama-3-8b", "80", users=80)))
    expect(page.locator(".ma-calc-out")).to_contain_text(str(refused.value))
    assert "Missing" in shown_sizes(page)


def test_every_input_has_a_label_and_a_place_for_its_error(visitor: Any) -> None:
    page = visitor().open(PAGES["fits"])
    inputs = page.evaluate(
        """() => [...document.querySelectorAll('.ma-calc :is(input, select)')].map(e => ({
            name: e.name, labels: e.labels.length, legend: e.closest('fieldset').querySelector('legend').innerText,
            error: document.getElementById(e.getAttribute('aria-describedby'))?.className}))"""
    )
    assert len(inputs) == 20
    assert [i for i in inputs if i["labels"] != 1 or i["error"] != "ma-calc-error" or not i["legend"]] == []
    status = page.locator(".ma-calc-out")
    assert status.get_attribute("aria-live") == "polite"
    assert status.get_attribute("role") == "status"


def test_the_keyboard_alone_gets_an_answer(visitor: Any) -> None:
    page = visitor().open(PAGES["fits"])
    page.locator("#calc-model").focus()
    page.keyboard.press("End")  # the own shape: nothing changes but the name
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    expect(page.locator("#calc-model")).to_have_value("llama-3.1-8b")
    page.keyboard.press("Tab")  # the shape's fold
    page.keyboard.press("Enter")
    expect(page.locator("#calc-layers")).to_be_visible()
    order = []
    for _ in range(20):
        page.keyboard.press("Tab")
        order.append(page.evaluate("document.activeElement.name"))
    assert order[:3] == ["layers", "hidden", "heads"]
    assert order[9:] == [
        "card", "card_bytes", "cards", "weights", "group", "cache",
        "context_tokens", "users", "step_tokens", "runtime_bytes", order[-1],
    ]  # fmt: skip
    page.locator("#calc-users").focus()
    page.keyboard.press("ControlOrMeta+a")
    page.keyboard.type("3")
    found = capacity.budget(capacity.setting(chosen("llama-3.1-8b", "24", users=3)))
    assert shown_sizes(page)["KV cache"] == sizes(found.cache_bytes)


@pytest.mark.parametrize(
    ("label", "text", "told"),
    [
        ("Users at once", "0", "a whole number from 1"),
        ("Users at once", "-4", "a whole number from 1"),
        ("Users at once", "many", "a whole number from 1"),
        ("Users at once", "", "a whole number from 1"),
        ("Context of a user, tokens", "9,000", "the model's longest context is 8,192 tokens"),
        ("Cards (tensor parallel)", "3", "32 heads do not divide by 3"),
        ("Runtime, GiB a card", "x", "a number of GiB is needed"),
        ("KV heads", "5", "32 heads do not divide by 5"),
    ],
)
def test_bad_input_is_told_at_its_field(visitor: Any, label: str, text: str, told: str) -> None:
    visit = visitor()
    page = visit.open(PAGES["users"])
    field = page.get_by_label(label, exact=True)
    if not field.is_visible():
        page.locator(".ma-calc summary").click()
    field.fill(text)
    expect(field).to_have_attribute("aria-invalid", "true")
    error = page.locator(f"[id='{field.get_attribute('aria-describedby')}']")
    expect(error).to_contain_text(told)
    expect(error).to_be_visible()
    expect(page.locator(".ma-calc-out")).to_contain_text(told)
    expect(page.locator(".ma-calc-table")).to_be_hidden()
    assert _serious(page) == []
    field.fill("1")
    expect(field).not_to_have_attribute("aria-invalid", "true")
    expect(page.locator(".ma-calc-table")).to_be_visible()
    assert visit.console == []


def test_a_setting_travels_in_the_address(visitor: Any) -> None:
    visit = visitor()
    page = visit.open(PAGES["users"])
    page.get_by_label("Public shape").select_option("llama-3-70b")
    page.get_by_label("Cards (tensor parallel)").fill("2")
    page.get_by_label("KV cache in").select_option("fp8")
    page.locator(".ma-calc summary").click()
    page.get_by_role("textbox", name="Layers").fill("79")
    before, address = shown_sizes(page), page.url
    assert "users=" not in address and "layers=79" in address
    other = visitor().page
    other.goto(address)
    expect(other.locator(".ma-calc-out")).to_contain_text("At most")
    assert shown_sizes(other) == before
    expect(other.locator("#calc-model")).to_have_value("own")


def test_a_models_longest_context_bounds_what_is_asked(visitor: Any) -> None:
    page = visitor().open(PAGES["users"])
    page.get_by_label("Public shape").select_option("llama-2-7b")
    expect(page.get_by_label("Context of a user, tokens")).to_have_value("4,096")
    expect(page.locator(".ma-calc-out")).to_contain_text("At most")


def _serious(page: Page) -> list[tuple[str, str]]:
    found = Axe().run(page, context="[data-calculator]", options={"resultTypes": ["violations"]}).response
    return [
        (violation["id"], node["html"])
        for violation in found["violations"]
        if violation["impact"] in ("moderate", "serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("mode", PAGES)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_in_the_form(visitor: Any, mode: str, dark: bool) -> None:
    page = visitor(dark=dark).open(PAGES[mode])
    page.locator(".ma-calc summary").click()
    assert _serious(page) == []


@pytest.mark.parametrize("mode", PAGES)
def test_a_phone_shows_the_form_without_scrolling_sideways(visitor: Any, mode: str) -> None:
    page = visitor(width=360).open(PAGES[mode])
    page.locator(".ma-calc summary").click()
    page.get_by_label("Users at once").fill("5000")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    wide = page.evaluate(
        """() => [...document.querySelectorAll('[data-calculator] *')]
            .filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert wide == []


@pytest.mark.parametrize("mode", PAGES)
def test_without_javascript_the_page_says_what_is_missing(chromium: Browser, base_url: str, mode: str) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{base_url}/{PAGES[mode]}.html")
    expect(page.locator("[data-calculator]")).to_contain_text("needs JavaScript")
    expect(page.locator(".ma-table table").first).to_be_visible()
    context.close()
