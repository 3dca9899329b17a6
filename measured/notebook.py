"""A page as a notebook and back: Jupytext Markdown, with includes expanded and Material's blocks made plain."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from typing import Any

import jupytext
import nbformat
from nbformat import NotebookNode

from measured import page as pages
from measured import project
from measured.page import Page, PageError
from measured.values import SERIES_MIME, VALUES_MIME, series_digest

MARKER = "# NBVAL_CHECK_OUTPUT"
_SETUP = """\
# Set-up: installs the project where it is missing, so that this notebook runs from any folder.
import importlib
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("measured") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "{requirement}"], check=True)
    importlib.invalidate_caches()
    subprocess.run([sys.executable, "-m", "measured", "models"], check=True)"""
_SITE_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?:#[\w-]+|[\w./-]*\.md(?:#[\w-]+)?)\)")
_BLOCK = re.compile(r'^(?P<mark>!!!|\?\?\?\+?|===[+!]*) *(?P<types>[\w -]*?) *(?:"(?P<title>.*)")? *$')


def setup_source() -> str:
    """Code of the first cell: installs this version of the project where it is missing."""
    about = project.metadata(project.root())
    return _SETUP.format(requirement=f"{about['name']}[run]=={about['version']}")


def is_setup(source: str) -> bool:
    """Whether a cell is the set-up cell, of this or an earlier version of the project."""
    return re.sub(r"==[\w.]+\"", '=="', source) == re.sub(r"==[\w.]+\"", '=="', setup_source())


def to_notebook(page: Page) -> NotebookNode:
    """The page as an unexecuted notebook that runs by itself after its first cell.

    Raises:
        PageError: An include's file or section is missing, or a fence would become a magic cell.
    """
    fences = iter(page.cells)
    about_page = {"setup": True, "front_matter": page.front_matter}
    cells = [_cell(page, "setup", 0, nbformat.v4.new_code_cell(setup_source()), about_page)]
    for number, cell in enumerate(jupytext.reads(page.source[len(page.front_matter) :], fmt="md").cells):
        if cell.cell_type == "code":
            fence = next(fences, None)
            if fence is None or cell.source.lstrip().startswith("%%"):
                first = cell.source.splitlines()[0] if cell.source else "a cell"
                raise PageError(page.path, 1, f"{first!r} would run as a magic cell", "fence it as `console` or `py`")
            if cell.source.strip() != fence.body.strip():
                raise PageError(page.path, fence.line, "Jupytext reads other code here", "open and close it with ```")
            code = pages.expand(fence.body, page, fence.line)
            fresh = nbformat.v4.new_code_cell(code)
            kept: dict[str, Any] = {"fence": fence.info, "source": fence.body}
        else:
            fresh, kept = nbformat.v4.new_markdown_cell(plain(cell.source)), {"source": cell.source}
        kept["gap"] = cell.metadata.get("lines_to_next_cell", 1)
        cells.append(_cell(page, cell.cell_type, number, fresh, kept))
    if left := next(fences, None):
        raise PageError(page.path, left.line, "Jupytext makes no cell of this fence", "open and close it with ```")
    about: dict[str, Any] = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
        "language_info": {"name": "python"},
    }
    return nbformat.v4.new_notebook(cells=cells, metadata=about)


def to_page(notebook: NotebookNode) -> str:
    """The Markdown that a notebook made by `to_notebook` came from; cells changed since are taken as they now read."""
    text, front_matter, gap = "", "", 0
    for cell in notebook.cells:
        kept = cell.metadata.get("measured", {})
        if kept.get("setup") or kept.get("check"):
            front_matter = front_matter or kept.get("front_matter", "")
            continue
        if cell.cell_type == "code":
            same = kept and _expanded(kept["source"]) == cell.source
            body = kept["source"] if same else cell.source
            part = f"```{kept.get('fence', 'python')}\n{body}\n```\n"
        else:
            part = (kept["source"] if kept and plain(kept["source"]) == cell.source else cell.source) + "\n"
        text += "\n" * gap + part
        gap = kept.get("gap", 1)
    return front_matter + text


def code_sources(notebook: NotebookNode) -> list[str]:
    """Code of the page's own cells: neither set-up nor generated checks."""
    return [
        c.source
        for c in notebook.cells
        if c.cell_type == "code" and not {"setup", "check"} & set(c.metadata.get("measured", {}))
    ]


def page_outputs(notebook: NotebookNode) -> list[list[NotebookNode]]:
    """Outputs of the page's own cells, one list a fence."""
    return [
        c.outputs
        for c in notebook.cells
        if c.cell_type == "code" and not {"setup", "check"} & set(c.metadata.get("measured", {}))
    ]


def bundles(notebook: NotebookNode, mime: str) -> Iterator[dict[str, Any]]:
    """Every bundle of a MIME type in the notebook's outputs, in order."""
    for outputs in page_outputs(notebook):
        for output in outputs:
            if mime in output.get("data", {}):
                yield output["data"][mime]


def recorded_values(notebook: NotebookNode) -> dict[str, float | int]:
    """Every value of a recording, by name."""
    return {name: b["values"][name] for b in bundles(notebook, VALUES_MIME) for name in b["names"]}


def check_cells(page: Page, notebook: NotebookNode, machine_class: str) -> list[NotebookNode]:
    """The generated cells that compare a new run with this recording and assert every claim."""
    sources: list[tuple[str, str, str, str]] = []  # (check, name, class, code)
    for bundle in bundles(notebook, VALUES_MIME):
        value_class = bundle["class"]
        extra = {"T": f", tolerance={bundle.get('tolerance')!r}", "R": f", machine_class={machine_class!r}"}.get(
            value_class, ""
        )
        for name in bundle["names"]:
            value = bundle["values"][name]
            sources.append(("value", name, value_class, f'check_value("{name}", "{value_class}", {value!r}{extra})'))
    for bundle in bundles(notebook, SERIES_MIME):
        name, value_class = bundle["name"], bundle["class"]
        digest = series_digest(value_class, bundle["columns"])
        sources.append(("series", name, value_class, f'check_series("{name}", "{value_class}", "{digest}")'))
    for claim in page.claims:
        if claim.gated:
            needs = f", needs={claim.needs!r}" if claim.needs else ""
            code = f"check_claim({claim.id!r}, {claim.check!r}{needs})"
            sources.append(("claim", claim.id, claim.value_class, code))
    cells = []
    for number, (check, name, value_class, code) in enumerate(sources):
        text = f"{MARKER}\nfrom measured.values import check_{check}\n\n{code}"
        about = {"check": check, "name": name, "class": value_class}
        cells.append(_cell(page, check, number, nbformat.v4.new_code_cell(text), about))
    return cells


def plain(markdown: str) -> str:
    """Material's blocks and attribute lists as Markdown that Jupyter, Colab and GitHub read.

    Admonitions become quotes, content tabs bold titles, `math` fences display formulas; estimates are left out.
    """
    out: list[str] = []
    lines = markdown.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if re.match(r"^```math\b", line):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```")
            out += ["$$", *lines[at + 1 : end], "$$"]
            at = end + 1
            continue
        if re.match(r"^```estimate\b", line):  # the site and the quiz draw its numbers
            at = next(i for i in range(at + 1, len(lines)) if lines[i].strip() == "```") + 1
            continue
        block = _BLOCK.match(line)
        if not block or not (block["types"] or block["title"]):
            out.append(_without_attributes(line))
            at += 1
            continue
        end = at + 1
        while end < len(lines) and (not lines[end].strip() or lines[end].startswith("    ")):
            end += 1
        body = plain("\n".join(row[4:] for row in lines[at + 1 : end]).strip("\n")).splitlines()
        title = f"**{block['title'] or block['types'].split()[0].capitalize()}**"
        if block["mark"].startswith("==="):
            out += [title, "", *body, ""]
        else:
            out += [f"> {title}", ">", *[f"> {row}".rstrip() for row in body], ""]
        at = end
    return "\n".join(out).rstrip("\n")


def _without_attributes(line: str) -> str:
    # Anchors and other pages exist on the site alone.
    line = _SITE_LINK.sub(r"\1", line)
    return re.sub(r" *\{ *[.#:\w][^{}\n]*\}(?=\s|$|[.,;:!?)|*])", "", line) if "{" in line and "$" not in line else line


def _expanded(body: str) -> str:
    blank = Page("", project.root() / "docs" / "notebook.md", "")
    return pages.expand(body, blank, 0)


def _cell(page: Page, kind: str, number: int, cell: NotebookNode, about: dict[str, Any]) -> NotebookNode:
    cell["id"] = hashlib.sha256(f"{page.name}/{kind}/{number}".encode()).hexdigest()[:8]
    cell.metadata["measured"] = about
    return cell
