"""`docs/glossary.yml`: the field's terms in a sentence each, and the page that answers for them."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml

from measured import project


class GlossaryError(ValueError):
    """An entry that lacks something or names a page that does not exist; says which and what mends it."""


@dataclass(frozen=True)
class Term:
    """A term, how else it is written, what it is in a sentence, and the question page about it."""

    name: str
    also: tuple[str, ...]
    means: str
    page: str

    @property
    def id(self) -> str:
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def spellings(self) -> tuple[str, ...]:
        return (self.name, *self.also)


def load() -> list[Term]:
    """Every term, in the order of the alphabet; none where a project keeps no glossary.

    Raises:
        GlossaryError: An entry is not whole, is listed twice, or names no page.
    """
    path = project.root() / "docs" / "glossary.yml"
    return list(_load(path, path.stat().st_mtime_ns, tuple(project.question_names()))) if path.is_file() else []


@cache
def _load(path: Path, _mtime: int, pages: tuple[str, ...]) -> tuple[Term, ...]:
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    terms: list[Term] = []
    taken: dict[str, str] = {}
    for name, entry in entries.items():
        if not isinstance(entry, dict) or not {"means", "page"} <= entry.keys():
            raise GlossaryError(f"{path}: {name}: write `means:` (a sentence) and `page:` (topic/slug)")
        if entry["page"] not in pages:
            raise GlossaryError(f"{path}: {name}: there is no question page {entry['page']!r}")
        term = Term(str(name), tuple(map(str, entry.get("also", []))), str(entry["means"]).strip(), entry["page"])
        for spelling in (term.id, *term.spellings):
            if taken.setdefault(spelling, term.name) != term.name:
                raise GlossaryError(f"{path}: {spelling!r} stands for {taken[spelling]} and for {term.name}")
        terms.append(term)
    return tuple(sorted(terms, key=lambda term: term.name.lower()))


def pull(_argument: str) -> str:
    """Every term as Markdown for the glossary page: a list of definitions, each with its page."""
    rows = []
    for term in load():
        also = f' <span class="ma-spelling">{html.escape(", ".join(term.also))}</span>' if term.also else ""
        rows += [
            f'<dt id="{term.id}">{html.escape(term.name)}{also}</dt>',
            f'<dd markdown="span">{term.means} [The question]({term.page}.md)</dd>',
        ]
    return "\n".join(['<dl class="ma-glossary" markdown>', *rows, "</dl>"])
