"""The cards as an Anki deck. A note's GUID is made from its card's id: importing again updates it, schedules stay."""

from __future__ import annotations

import hashlib
import html
import os
import random
import re
from pathlib import Path
from typing import Any

import genanki
import markdown

from measured import estimates, project, recording
from measured.cards import Card, all_cards
from measured.page import read_page
from measured.slim import slim

TITLES = {
    "quantization": "Quantization",
    "kv_cache": "KV cache",
    "embeddings": "Embeddings",
    "throughput": "Throughput",
}
_STYLE = """.card { font: 20px/1.5 sans-serif; max-width: 40em; margin: auto; text-align: left; }
svg { max-width: 100%; height: auto; } .evidence { font-size: 14px; opacity: .7; }"""
_MODEL = genanki.Model(
    1_607_392_319,  # Anki knows the type by this number: a change would make a new one beside the old
    "Measured Answers",
    fields=[{"name": "Front"}, {"name": "Back"}, {"name": "Evidence"}],
    templates=[
        {
            "name": "Card",
            "qfmt": "{{Front}}",
            "afmt": '{{FrontSide}}<hr id="answer">{{Back}}<p class="evidence">{{Evidence}}</p>',
        }
    ],
    css=_STYLE,
)


class _Note(genanki.Note):
    """A note as old as its page: Anki updates what is newer than its own, and leaves the rest alone."""

    modified = 0.0

    def write_to_db(self, cursor: Any, timestamp: float, deck_id: int, id_gen: Any) -> None:
        super().write_to_db(cursor, self.modified or timestamp, deck_id, id_gen)


def modified(card: Card) -> float:
    """When a card's page or its recording last changed, in seconds."""
    have = recording.primary(card.page)
    paths = [project.page_path(card.page), *([have.path] if have else [])]
    return max(path.stat().st_mtime for path in paths)


def build(path: Path, topics: list[str] | None = None, cards: list[Card] | None = None) -> int:
    """Write the deck of the topics, or of all, by way of a temporary file; returns how many notes it has."""
    decks: dict[str, genanki.Deck] = {}
    for card in all_cards(topics) if cards is None else cards:
        title = f"Measured Answers::{TITLES[card.topic]}"
        deck = decks.setdefault(card.topic, genanki.Deck(_number(card.topic), title))
        deck.add_note(_note(card))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        genanki.Package(list(decks.values())).write_to_file(str(temporary))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return sum(len(deck.notes) for deck in decks.values())


def _note(card: Card) -> genanki.Note:
    front, back = _sides(card)
    evidence = html.escape(f"docs/{card.page}.md" + (f"#{card.anchor}" if card.anchor else ""))
    tags = [card.topic, f"asked-{card.asked}", card.kind]
    note = _Note(_MODEL, [front, back, evidence], guid=guid(card), tags=tags)
    note.modified = modified(card)
    return note


def guid(card: Card) -> str:
    """What Anki knows a note by: from the card's id alone."""
    return genanki.guid_for("measured-answers", card.id)


def _sides(card: Card) -> tuple[str, str]:
    """Front and back as HTML. What a quiz would draw anew each time is drawn once, by the card's id."""
    dice = random.Random(card.id)
    if card.kind == "recall":
        return _html(card.front), _html(card.back) + _formula(card.page) + _chart(card.page)
    if card.kind == "spot":
        slot = dice.choice(card.slots)
        steps = list(card.steps)
        wrong = dice.choice(slot.wrong)
        steps[slot.step] = steps[slot.step].replace(slot.right, wrong)
        told = f"Step {slot.step + 1} says {wrong}; it is {slot.right}."
        return _html(f"{card.front}\n\n{_listed(steps)}"), _html(told)
    if card.estimate:
        drawn = estimates.draw(card.estimate, estimates.example_seed(card.estimate))
        return _html(drawn.question), _html("\n\n".join(estimates.solution(card.estimate, drawn.values)))
    options = list(card.options)
    if card.kind == "choice":
        dice.shuffle(options)
    right = next(option.text for option in options if option.right)
    front = f"{card.front}\n\n{_listed([option.text for option in options])}"
    return _html(front), _html(f"**{right}**\n\n{card.back}")


def _listed(texts: list[str]) -> str:
    return "\n".join(f"{at}. {' '.join(text.split())}" for at, text in enumerate(texts, 1))


def _html(text: str) -> str:
    """Markdown as HTML, formulas in it for MathJax."""
    return re.sub(r"\$([^$\n]+)\$", r"\\(\1\\)", markdown.markdown(text, extensions=["sane_lists"]))


def _formula(name: str) -> str:
    """The page's first formula, for the MathJax that Anki brings."""
    body = next((fence.body for fence in read_page(name).fences if fence.language == "math"), "")
    return f"<p>\\[{html.escape(body.strip())}\\]</p>" if body else ""


def _chart(name: str) -> str:
    """The page's first recorded chart, drawn in the card's own colour."""
    have = recording.primary(name)
    for cell in have.notebook.cells if have else []:
        for output in cell.get("outputs", []):
            if svg := output.get("data", {}).get("image/svg+xml"):
                return slim("".join(svg))
    return ""


def _number(text: str) -> int:
    """A deck's number, from its topic."""
    return int(hashlib.sha256(f"measured-answers/{text}".encode()).hexdigest()[:8], 16)


def default_path() -> Path:
    """Where `make anki` writes."""
    return project.root() / "build" / "measured-answers.apkg"
