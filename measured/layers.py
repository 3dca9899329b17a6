"""A question page's layers: a link to each, other wordings, levels of follow-ups, and terms led to the glossary."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element, SubElement

from markdown.extensions.toc import slugify

from measured import glossary
from measured.page import Page

HEADLINE = "in-10-seconds"
# (anchor, what the bar calls it), in the order in which an answer unfolds.
LAYERS = (
    (HEADLINE, "10 s"),
    ("in-30-seconds", "30 s"),
    ("the-formula", "Formula"),
    ("on-a-whiteboard", "Whiteboard"),
    ("measured", "Measured"),
    ("when-is-it-false", "When false"),
    ("follow-ups", "Follow-ups"),
    ("say", "Say"),
)
_BOXES = {"answer": "in-30-seconds", "say": "say", "dont-say": "dont-say"}
_LEVELS = {f"{level}.": level.lower() for level in ("Junior", "Senior", "Staff")}
_PROSE = {"p", "li", "td", "em", "strong"}
_MARKS = {"m", "claim", "exact", "cited"}


def mark(root: Element, page: Page) -> None:
    """Give a question page's tree its anchors, bar, other wordings, levels and links to terms, in place."""
    for box in root.iter("div"):
        for kind in _classes(box) & _BOXES.keys():
            box.attrib.setdefault("id", _BOXES[kind])
    _mark_levels(root)
    _link_terms(root, page)
    heading = next((at for at, element in enumerate(root) if element.tag == "h1"), None)
    if heading is None or heading + 1 == len(root) or root[heading + 1].tag != "p":
        return
    root[heading + 1].set("id", HEADLINE)
    known = {element.get("id") for element in root.iter()}
    # Headings get their ids from the table of contents, which comes after.
    known |= {slugify("".join(element.itertext()), "-") for element in root.iter("h2")}
    root[heading + 2 : heading + 2] = [*_also(page), _bar([layer for layer in LAYERS if layer[0] in known])]


def also_asked(page: Page) -> list[str]:
    """Other words that a page's question comes in, as its front matter lists them under `also`.

    Raises:
        ValueError: `also` is no list of texts.
    """
    listed = page.meta.get("also", [])
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise ValueError(f"{page.path}: `also` is a list of texts; quote what holds a colon or is a number")
    return listed


def _also(page: Page) -> Iterator[Element]:
    if listed := also_asked(page):
        line = Element("p", {"class": "ma-also"})
        line.text = f"Also asked as: {'; '.join(listed)}."
        yield line


def _bar(layers: list[tuple[str, str]]) -> Element:
    bar = Element("nav", {"class": "ma-layers", "aria-label": "Layers", "data-search-exclude": ""})
    for anchor, name in layers:
        SubElement(bar, "a", {"href": f"#{anchor}"}).text = name
    return bar


def _mark_levels(root: Element) -> None:
    """`**Junior.** Why?` becomes a tag that links to its own follow-up."""
    count = 0
    for item in root.iter("li"):
        holder = item[0] if len(item) and item[0].tag == "p" else item
        if (holder.text or "").strip() or not len(holder) or holder[0].tag != "strong":
            continue
        if level := _LEVELS.get(holder[0].text or ""):
            count += 1
            item.set("id", f"follow-up-{count}")
            tag = holder[0]
            tag.tag, tag.text = "a", level.capitalize()
            tag.attrib = {"class": f"ma-level {level}", "href": f"#follow-up-{count}"}


def _link_terms(root: Element, page: Page) -> None:
    """The first time that a term stands in prose, it leads to the glossary."""
    terms = {spelling: term for term in glossary.load() for spelling in term.spellings if term.page != page.name}
    if not terms:
        return
    longest_first = sorted(terms, key=len, reverse=True)
    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w-])")
    seen: set[str] = set()
    up = "../" * page.name.count("/")
    for parent in list(_prose(root)):
        at = -1  # the text before the first child, then what follows each child
        while at < len(parent):
            text = (parent.text if at < 0 else parent[at].tail) or ""
            found = next((m for m in pattern.finditer(text) if terms[m[0]].id not in seen), None)
            at += 1
            if found is None:
                continue
            term = terms[found[0]]
            seen.add(term.id)
            link = Element("a", {"class": "ma-term", "href": f"{up}glossary.md#{term.id}"})
            link.text, link.tail = found[0], text[found.end() :]
            if at == 0:
                parent.text = text[: found.start()]
            else:
                parent[at - 1].tail = text[: found.start()]
            parent.insert(at, link)


def _prose(root: Element) -> Iterator[Element]:
    """Elements whose own text is prose: no heading, link, code, number or title of a box."""
    for element in root:
        classes = _classes(element)
        if element.tag in ("h1", "h2", "h3", "h4", "a", "code", "pre", "th", "nav", "summary") or classes & (
            _MARKS | {"admonition-title", "verdict", "arithmatex", "estimate"}
        ):
            continue
        if element.tag in _PROSE:
            yield element
        yield from _prose(element)


def _classes(element: Element) -> set[str]:
    return set((element.get("class") or "").split())
