"""Files that the site needs beside its pages: notebooks to view and download, claims for machines, the quiz's cards."""

from __future__ import annotations

import html
import json
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markdown import markdown

from measured import cards, claims_document, estimates, interview, project, recording
from measured.estimates import Estimate
from measured.page import read_page

CARDS_VERSION = 1
INTERVIEW_VERSION = 1


def build() -> list[Path]:
    """Write `docs/notebooks/`, `docs/claims.json` and what the quiz asks; files that would not change are left alone.

    Returns:
        What was written or removed.
    """
    docs = project.root() / "docs"
    wanted: dict[Path, str] = {
        docs / "claims.json": json.dumps(claims_document.document(), indent=1, ensure_ascii=False) + "\n",
        docs / "assets" / "quiz" / "cards.json": json.dumps(cards_document(), ensure_ascii=False) + "\n",
        docs / "assets" / "quiz" / "interview.json": json.dumps(interview_document(), ensure_ascii=False) + "\n",
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


def cards_document() -> dict[str, Any]:
    """Every card with its texts as HTML: the content of the quiz's `cards.json`."""
    found = []
    for card in cards.all_cards():
        options = [
            {"text": _line(o.text), "right": o.right} | ({"feedback": _html(o.feedback)} if o.feedback else {})
            for o in card.options
        ]
        slots = [{"step": s.step, "right": _line(s.right), "wrong": [_line(w) for w in s.wrong]} for s in card.slots]
        entry = card.as_json() | {
            "title": read_page(card.page).heading[0],
            "front": _html(card.front),
            "back": _html(card.back),
            "options": options,
            "steps": [_line(step) for step in card.steps],
            "slots": slots,
            "estimate": _estimate(card.estimate) if card.estimate else "",
        }
        if card.kind == "choice":
            entry["back"] = ""  # what is said to each option says it all
        found.append({key: value for key, value in entry.items() if value not in ([], "")})
    asked = sorted({card["estimate"]["dimension"] for card in found if "estimate" in card})
    units = {dimension: estimates.units_of(dimension) for dimension in asked}
    unitless = [dimension for dimension in asked if dimension in estimates.UNITLESS]
    return {"version": CARDS_VERSION, "units": units, "unitless": unitless, "cards": found}


def _estimate(estimate: Estimate) -> dict[str, Any]:
    """An estimate for its twin in the browser: what it draws from, and its expressions as programs for a stack."""
    said = set(re.findall(r"\{(\w+)\}", estimate.ask))
    texts = (estimate.answer, *(mistake.expression for mistake in estimate.mistakes))
    used = set().union(*map(estimates.expression.names, texts))
    givens = [
        [
            {
                "texts": {key: text for key, text in choice.texts.items() if key in said},
                "values": {key: value for key, value in choice.values.items() if key in used},
            }
            for choice in choices
        ]
        for choices in estimate.givens
    ]
    wrong = [{"program": estimates.program(m.expression), "told": _line(m.told)} for m in estimate.mistakes]
    return {
        "givens": givens,
        "fixed": estimate.fixed,
        "dimension": estimate.dimension,
        "program": estimates.program(estimate.answer),
        "infix": estimates.infix(estimate.answer),
        "formula": estimates.formula(estimate.answer),
        "mistakes": wrong,
    }


def interview_document() -> dict[str, Any]:
    """Every mock interview's question with its texts as HTML: the content of `interview.json`."""
    found = []
    for each in interview.interviews():
        entry = asdict(each) | {"question": _line(each.question), "points": [_line(point) for point in each.points]}
        entry["followups"] = [
            asdict(followup) | {"question": _line(followup.question), "answer": _line(followup.answer)}
            for followup in each.followups
        ]
        found.append(entry)
    return {"version": INTERVIEW_VERSION, "interviews": found}


def _html(text: str) -> str:
    """Markdown as HTML, formulas in it as MathML."""
    from latex2mathml.converter import convert

    return re.sub(r"\$([^$\n]+)\$", lambda match: convert(html.unescape(match[1])), markdown(text))


def _line(text: str) -> str:
    """Markdown of one line as HTML without a paragraph around it."""
    return _html(text).removeprefix("<p>").removesuffix("</p>")
