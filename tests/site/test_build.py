"""The built files: strict in MkDocs, the same pages in Zensical, nothing fetched from elsewhere, and light."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup

PAGE_BYTES = 100_000


def _soup(folder: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((folder / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def _outputs(folder: Path, name: str) -> dict[str, str]:
    """Text of each recorded output on a built page, by the number of its cell."""
    boxes = _soup(folder, name).select(".ma-out")
    return {str(box["data-cell"]): " ".join(box.get_text(" ").split()) for box in boxes}


def test_every_page_is_built(site: Path, source: Any) -> None:
    assert len(source.pages()) > 4
    assert [name for name in source.pages() if not (site / f"{name}.html").is_file()] == []


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    foreign = []
    for path in site.rglob("*.html"):
        soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        loads = [(tag, tag.get("src")) for tag in soup.select("[src]")]
        loads += [(tag, tag.get("href")) for tag in soup.select("link[href]") if tag.get("rel") != ["canonical"]]
        foreign += [f"{path.name}: {tag.name} {url}" for tag, url in loads if re.match(r"(?i)(https?:)?//", str(url))]
        styles = " ".join(tag.get_text() for tag in soup.select("style"))
        styles += " ".join(str(tag["style"]) for tag in soup.select("[style]"))
        foreign += [f"{path.name}: {url}" for url in _loaded_by_css(styles)]
    for path in site.rglob("*.css"):
        foreign += [f"{path.name}: {url}" for url in _loaded_by_css(path.read_text(encoding="utf-8"))]
    assert foreign == []


def _loaded_by_css(text: str) -> list[str]:
    return re.findall(r"""(?i)(?:@import\s+|url\()\s*["']?((?:https?:)?//[^"')\s]+)""", text)


def test_page_is_light(site: Path, page_name: str) -> None:
    size = (site / f"{page_name}.html").stat().st_size
    # One page lists every prediction of every page for every device, folded: a reference, and 20 KB compressed.
    limit = 2 * PAGE_BYTES if page_name == "predictions" else PAGE_BYTES
    assert size < limit, f"{page_name} is {size:,} bytes"


def test_outputs_stand_in_the_page(site: Path, source: Any, code_page: str) -> None:
    """Every cell with something to show on any machine has its box, in order, with what was printed in it."""
    machines = source.machines_of(code_page)
    assert machines, f"{code_page} has no recording"
    recorded = {machine: source.outputs_by_fence(code_page, machine) for machine in machines}
    shown = _outputs(site, code_page)
    for cell in range(source.fence_count(code_page)):
        printed = [_printed(outputs[cell]) for outputs in recorded.values() if cell < len(outputs)]
        for text in filter(None, printed):
            assert " ".join(text.split()) in shown.get(str(cell), ""), f"cell {cell} does not show {text[:80]!r}"
    assert shown, f"{code_page} shows no output at all"
    assert list(shown) == sorted(shown, key=int)


def _printed(outputs: list[dict]) -> str:
    """What a cell's first print stream said: the part of an output that reaches the page as it is."""
    return next(("".join(o["text"]).strip() for o in outputs if o["output_type"] == "stream"), "")


def test_every_recorded_value_stands_under_its_fence(site: Path, source: Any, code_page: str) -> None:
    shown = _outputs(site, code_page)
    for machine in source.machines_of(code_page):
        for cell, outputs in enumerate(source.outputs_by_fence(code_page, machine)):
            bundles = [o["data"] for o in outputs if "data" in o]
            for bundle in (b[mime] for b in bundles for mime in b if mime.endswith(".values+json")):
                missing = [name for name in bundle["values"] if name not in shown.get(str(cell), "")]
                assert missing == [], f"cell {cell} on {machine}"


def test_no_page_says_that_a_recording_is_missing(site: Path, page_name: str) -> None:
    soup = _soup(site, page_name)
    assert soup.select(".ma-unrecorded") == []
    assert "Not recorded yet" not in soup.get_text()
    assert "measured with earlier code" not in soup.get_text()


def test_zensical_builds_the_same_outputs(site: Path, zensical_site: Path, page_name: str) -> None:
    ours, theirs = _outputs(site, page_name), _outputs(zensical_site, page_name)
    assert theirs == ours
    selectors = ("strong.claim", "strong.m", ".admonition.verdict", ".admonition.answer", "math", ".ma-question")
    ours_count = {s: len(_soup(site, page_name).select(s)) for s in selectors}
    assert {s: len(_soup(zensical_site, page_name).select(s)) for s in selectors} == ours_count


@pytest.mark.parametrize("engine", ["mkdocs", "zensical"])
def test_download_links_lead_to_the_notebook(
    request: pytest.FixtureRequest, source: Any, engine: str, code_page: str
) -> None:
    """The link is a plain file at the same place in both engines, and the file is the recording."""
    folder: Path = request.getfixturevalue("site" if engine == "mkdocs" else "zensical_site")
    here = (folder / f"{code_page}.html").parent
    links = [str(a["href"]) for a in _soup(folder, code_page).select(".ma-recorded a[href$='.ipynb']")]
    assert len(links) == len(source.machines_of(code_page)) > 0
    for link, machine in zip(links, source.machines_of(code_page), strict=True):
        notebook = json.loads((here / link).read_text(encoding="utf-8"))
        assert notebook["nbformat"] == 4
        assert notebook["cells"] == source.recording(code_page, machine)["cells"]


def test_links_of_a_page_lead_somewhere(site: Path, page_name: str) -> None:
    """MkDocs checks the links it wrote; those in woven HTML are ours to check."""
    path, broken = site / f"{page_name}.html", []
    for link in _soup(site, page_name).select("a[href]"):
        target, _, anchor = str(link["href"]).partition("#")
        target = target.partition("?")[0]
        if re.match(r"(?i)[a-z]+:|//", target):
            continue
        file = path.parent / target if target else path
        file = file / "index.html" if file.is_dir() else file
        if not file.is_file() or (anchor and file.suffix == ".html" and not _has_anchor(file, anchor)):
            broken.append(link["href"])
    assert broken == []


_ANCHORS: dict[Path, set[str]] = {}


def _has_anchor(file: Path, anchor: str) -> bool:
    file = file.resolve()
    if file not in _ANCHORS:
        text = file.read_text(encoding="utf-8")
        _ANCHORS[file] = set(re.findall(r"""\b(?:id|name)="([^"]+)\"""", text))
    return anchor in _ANCHORS[file] or anchor.startswith("__")


def test_notebook_views_are_out_of_search(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    places = [entry["location"] for entry in index["docs"]]
    assert any(place.startswith("kv_cache/") for place in places)
    assert [place for place in places if place.startswith("notebooks/")] == []


def test_notebook_views_share_one_style_sheet(site: Path) -> None:
    views = list((site / "notebooks").rglob("*.html"))
    assert views
    sheets = {link["href"] for v in views for link in _soup(v.parent, v.stem).select("link[href*='notebook.']")}
    assert len({str(s).rsplit("/", 1)[-1] for s in sheets}) == 1
    assert max(v.stat().st_size for v in views) < 5 * PAGE_BYTES
