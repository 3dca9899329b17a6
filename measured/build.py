"""Files that the site needs beside its pages: notebooks to view and download, claims for machines, the quiz's cards."""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import Any

from markdown import markdown

from measured import cards, claims, project, recording, weave
from measured.page import read_page

CLAIMS_VERSION = 1
CARDS_VERSION = 1


def build() -> list[Path]:
    """Write `docs/notebooks/`, `docs/claims.json` and the quiz's cards; files that would not change are left alone.

    Returns:
        What was written or removed.
    """
    docs = project.root() / "docs"
    wanted: dict[Path, str] = {
        docs / "claims.json": json.dumps(claims_document(), indent=1, ensure_ascii=False) + "\n",
        docs / "assets" / "quiz" / "cards.json": json.dumps(cards_document(), ensure_ascii=False) + "\n",
    }
    for name in project.page_names():
        for each in recording.recordings(name):
            wanted[docs / "notebooks" / each.machine / f"{name}.ipynb"] = each.path.read_text(encoding="utf-8")
    touched = []
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            project.write_atomically(path, text)
            touched.append(path)
    for path in sorted((docs / "notebooks").rglob("*.ipynb")):
        if path not in wanted:
            path.unlink()
            touched.append(path)
    for folder, _, _ in os.walk(docs / "notebooks", topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)
    return touched


def claims_document() -> dict[str, Any]:
    """Every claim with its bound, class and recorded values by machine: the content of `claims.json`."""
    entries = []
    for claim in claims.all_claims():
        values = {
            each.machine: {n: each.values[n] for n in sorted(claims.expression.names(claim.check)) if n in each.values}
            for each in recording.recordings(claim.page)
            if not recording.staleness(read_page(claim.page), each)
        }
        entry = {
            "id": claim.id,
            "page": claim.page,
            "sentence": claim.text,
            "class": claim.value_class,
            "check": claim.check,
            "null": claim.null,
            "needs": claim.needs.split(),
            "tolerance": claim.tolerance,
            "state": weave.claim_state(claim),
            "values": values,
        }
        entries.append(entry)
    return {"version": CLAIMS_VERSION, "primary": project.primary_machine(), "claims": entries}


def cards_document() -> dict[str, Any]:
    """Every card with its texts as HTML: the content of the quiz's `cards.json`."""
    found = []
    for card in cards.all_cards():
        options = [{"text": _line(each.text), "right": each.right} for each in card.options]
        slots = [{"step": s.step, "right": _line(s.right), "wrong": [_line(w) for w in s.wrong]} for s in card.slots]
        entry = card.as_json() | {
            "title": read_page(card.page).heading[0],
            "front": _html(card.front),
            "back": _html(card.back),
            "options": options,
            "steps": [_line(step) for step in card.steps],
            "slots": slots,
        }
        found.append({key: value for key, value in entry.items() if value not in ([], "")})
    return {"version": CARDS_VERSION, "cards": found}


def _html(text: str) -> str:
    """Markdown as HTML, formulas in it as MathML."""
    from latex2mathml.converter import convert

    return re.sub(r"\$([^$\n]+)\$", lambda match: convert(html.unescape(match[1])), markdown(text))


def _line(text: str) -> str:
    """Markdown of one line as HTML without a paragraph around it."""
    return _html(text).removeprefix("<p>").removesuffix("</p>")
