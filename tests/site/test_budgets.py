"""What a reader's first page costs: bytes on their way, and whether anything moves once it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from benchmarks.compressed_server import serve

pytestmark = pytest.mark.browser

FIRST_PAGE_BYTES = 150_000
PAGES = ["index", "quantization/weight_bytes", "kv_cache/bytes_per_token", "embeddings/lookup", "throughput/batching"]
# Cumulative layout shift: what Lighthouse calls good is 0.1; nothing here has a reason to move at all.
SHIFT = 0.01

_OBSERVE = """() => {
  window.shifted = 0
  new PerformanceObserver(list => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value
  }).observe({ type: "layout-shift", buffered: true })
}"""


@pytest.fixture(scope="module")
def compressed(site: Path) -> Iterator[str]:
    with serve(site) as address:
        yield address


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    made = chromium.new_context(viewport={"width": 360, "height": 800})  # a fresh one: nothing is cached
    yield made
    made.close()


def transfers(page: Page) -> dict[str, float]:
    """Bytes on their way by address, headers and compression counted, filled while the page loads."""
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    names: dict[str, str] = {}
    found: dict[str, float] = {}
    session.on("Network.requestWillBeSent", lambda e: names.__setitem__(e["requestId"], e["request"]["url"]))
    session.on(
        "Network.loadingFinished",
        lambda e: found.__setitem__(names.get(e["requestId"], e["requestId"]), e["encodedDataLength"]),
    )
    return found


@pytest.mark.parametrize("name", PAGES)
def test_a_first_page_is_light(name: str, compressed: str, context: BrowserContext) -> None:
    page = context.new_page()
    found = transfers(page)
    page.goto(f"{compressed}/{name}.html", wait_until="networkidle")
    sent = {url: size for url, size in found.items() if url.startswith("http")}
    assert any(url.endswith(f"{name}.html") for url in sent) and len(sent) > 5
    heaviest = sorted(sent.items(), key=lambda item: -item[1])[:4]
    assert sum(sent.values()) <= FIRST_PAGE_BYTES, heaviest
    assert not any("search_index" in url for url in sent), "the index is fetched before anybody searches"


def test_the_index_comes_with_the_search(compressed: str, context: BrowserContext) -> None:
    page = context.new_page()
    found = transfers(page)
    page.goto(f"{compressed}/kv_cache/bytes_per_token.html", wait_until="networkidle")
    page.keyboard.press("/")
    page.keyboard.type("kv cache")
    page.wait_for_selector(".md-search-result__item")
    assert sum("search_index" in url for url in found) == 1


def test_a_result_that_was_followed_shows_its_words(compressed: str, context: BrowserContext) -> None:
    """The address of a result says what was searched: marking it needs the index."""
    page = context.new_page()
    page.goto(f"{compressed}/kv_cache/bytes_per_token.html?h=cache", wait_until="networkidle")
    assert page.locator("mark[data-md-highlight]").count() > 0


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_moves_once_it_is_shown(name: str, width: int, compressed: str, context: BrowserContext) -> None:
    page = context.new_page()
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(f"{compressed}/{name}.html", wait_until="networkidle")
    page.evaluate(_OBSERVE)
    page.wait_for_timeout(200)
    assert page.evaluate("window.shifted") <= SHIFT


def test_what_moves_is_seen(compressed: str, context: BrowserContext) -> None:
    """The measure itself: a block that comes late at the top of a page counts."""
    page = context.new_page()
    page.goto(f"{compressed}/index.html", wait_until="networkidle")
    page.evaluate(_OBSERVE)
    page.evaluate(
        "() => { const late = document.createElement('div'); late.style.height = '300px'; document.body.prepend(late) }"
    )
    page.wait_for_function(f"window.shifted > {SHIFT}")
