"""Cards: what the quiz asks, made from the pages alone, so that nothing is kept twice and no number is typed.

Five kinds come from what question pages have:

- *recall*: the question, and its 30-second answer.
- *statement*: what people say, and whether it holds, holds if, or is refuted.
- *choice*: what to say, beside what not to say and what refutes that.
- *spot*: the steps of the whiteboard with one number falsified.
- *estimate*: a number to derive, from fresh inputs each time (see `measured.estimates`).

An id is the page's name and the card's kind or statement: it outlives every rewording. Values of one machine (R and H)
stand on the back of a card alone: who drills elsewhere cannot know them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from measured import claims, expression, project, recording, sources
from measured.estimates import Estimate, estimates
from measured.expression import ExpressionError
from measured.page import MARK, MARK_KINDS, Mark, Page, attributes, read_page

KINDS = ("recall", "statement", "choice", "spot", "estimate")
VERDICT_WORDS = {"holds": "holds", "holds-if": "holds if", "refuted": "refuted"}
STEPS_TITLE = "On a whiteboard"
# Mistakes a reader could make: a factor of two each way, of ten each way.
FACTORS = (2.0, 0.5, 10.0, 0.1)
ROUNDED = 0.15  # a falsified number that few digits bring further off is not offered
_ASKABLE = ("D", "T")
_LISTED = re.compile(r"^\d+\. +")
_QUOTE = re.compile(r"“(?P<quote>.+?)”(?P<rest>.*)", re.S)


@dataclass(frozen=True)
class Option:
    """One answer to choose, in Markdown, and what is said to who chose it."""

    text: str
    right: bool
    feedback: str = ""


@dataclass(frozen=True)
class Slot:
    """A number of a step that may be falsified: as it stands, and as it would stand wrong."""

    step: int
    right: str
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """One card. Texts are Markdown without marks; `page` and `anchor` lead to the evidence."""

    id: str
    kind: str
    page: str
    anchor: str
    asked: int  # how often interviewers ask, from one (often) to three
    front: str
    back: str
    options: tuple[Option, ...] = ()
    steps: tuple[str, ...] = ()
    slots: tuple[Slot, ...] = ()
    estimate: Estimate | None = None

    @property
    def topic(self) -> str:
        return self.page.split("/")[0]

    def as_json(self) -> dict[str, Any]:
        """The card for other programs: plain lists and texts, empty fields left out."""
        found = {key: value for key, value in asdict(self).items() if value not in ((), "", None)}
        return found | {"topic": self.topic}


def all_cards(topics: list[str] | None = None) -> list[Card]:
    """Cards of the topics, or of all: most asked first, and a page's cards apart, since one gives the next away."""
    names = [name for topic in topics or project.TOPICS for name in project.question_names(topic)]
    placed = [(card.asked, at, card) for name in names for at, card in enumerate(cards_of(name))]
    return [card for _, _, card in sorted(placed, key=lambda each: each[:2])]


def cards_of(name: str) -> list[Card]:
    """A question page's cards."""
    return list(_cards(read_page(name)))


def _cards(page: Page) -> Iterator[Card]:
    asked = page.meta.get("asked")
    asked = asked if isinstance(asked, int) else 3  # a page just begun says nothing yet
    question = page.heading[0]

    def card(kind: str, anchor: str, front: str, back: str, own: str = "", **rest: Any) -> Card:
        return Card(f"{page.name}:{own or kind}", kind, page.name, anchor, asked, front, back, **rest)

    yield card("recall", "", question, plain(page.answer))
    for verdict in page.verdicts:
        if verdict.status in VERDICT_WORDS:
            said = verdict.title.partition(":")[2].strip()
            options = tuple(Option(word, status == verdict.status) for status, word in VERDICT_WORDS.items())
            yield card("statement", "what-people-say", said, plain(verdict.body), verdict.statement, options=options)
    yield from _choice(page, card)
    yield from _spot(page, card)
    for each in estimates(page):
        yield card("estimate", each.id, each.ask, "", each.id, estimate=each)


def _choice(page: Page, card: Any) -> Iterator[Card]:
    """What to say beside what not to, where neither rests on a value of one machine."""
    bodies = {kind: [b for _, types, _, b in page.admonitions if types[0] == kind] for kind in ("say", "dont-say")}
    quoted = {kind: [m for body in each if (m := _QUOTE.search(body))] for kind, each in bodies.items()}
    if not quoted["say"] or not quoted["dont-say"]:
        return
    said = [m["quote"] for each in quoted.values() for m in each]
    if not all(_askable(page, text) for text in said):
        return
    options = [Option(plain(quoted["say"][0]["quote"]), True)]
    options += [Option(plain(m["quote"]), False, plain(m["rest"])) for m in quoted["dont-say"]]
    back = "\n\n".join(option.feedback for option in options if option.feedback)
    yield card("choice", "follow-ups", f"{page.heading[0]} Which would you say?", back, options=tuple(options))


def _spot(page: Page, card: Any) -> Iterator[Card]:
    """The whiteboard's steps and the numbers in them that can be falsified; none, no card."""
    steps = whiteboard(page)
    slots = tuple(slot for at, step in enumerate(steps) for slot in _slots(page, at, step))
    if slots:
        front = f"{page.heading[0]} One number is wrong: which step?"
        yield card("spot", "on-a-whiteboard", front, "", steps=tuple(map(plain, steps)), slots=slots)


def whiteboard(page: Page) -> list[str]:
    """The numbered steps of a page's derivation, each on one line."""
    steps: list[str] = []
    inside = False
    for _, line in page.prose:
        if line.startswith("## "):
            inside = line.removeprefix("## ").strip() == STEPS_TITLE
        elif inside and _LISTED.match(line):
            steps.append(_LISTED.sub("", line).strip())
        elif inside and steps and line.startswith("   "):
            steps[-1] += f" {line.strip()}"
    return steps


def _slots(page: Page, at: int, step: str) -> Iterator[Slot]:
    have = recording.primary(page.name)
    for match in MARK.finditer(step):
        attrs = attributes(match["attrs"])
        kind = next((k for k in attrs.get("class", "").split() if k in MARK_KINDS), "")
        if kind not in ("m", "exact") or have is None or not _askable(page, match[0]):
            continue
        mark = Mark(kind, match["text"], attrs, 0)
        wrong = tuple(dict.fromkeys(_falsified(mark, have.values)))
        if wrong and plain(step).count(f"**{mark.text}**") == 1:
            yield Slot(at, f"**{mark.text}**", tuple(f"**{text}**" for text in wrong))


def _falsified(mark: Mark, values: dict[str, float | int]) -> Iterator[str]:
    """The number as it would be shown were it some factor larger or smaller; never what a share cannot be."""
    source = mark.attrs.get("data-m") or mark.attrs.get("data-expr", "")
    written, _, spec = source.partition(":")
    for factor in FACTORS:
        changed = Mark("exact", mark.text, {"data-expr": f"({written}) * {factor}:{spec}"}, 0)
        if mark.kind == "m":
            changed = Mark("m", mark.text, {"data-m": source}, 0)
            moved: dict[str, float | int] = {**values, written: values[written] * factor}
        else:
            moved = values
        try:
            text = claims.expected_text(changed, moved, sources.load())
        except (ExpressionError, ValueError, KeyError):
            continue
        if not _impossible(text) and abs(_number(text) / _number(mark.text) / factor - 1) < ROUNDED:
            yield text


def _impossible(text: str) -> bool:
    """A share above all of it, or a number that was rounded to nothing, gives itself away."""
    return _number(text) == 0 or (text.endswith("%") and _number(text) > 100)


def _number(text: str) -> float:
    return float(re.sub(r"[^\d.]", "", text) or 0)


def _askable(page: Page, text: str) -> bool:
    """Whether no number of a text is one machine's: what it rests on is exact, or within a tolerance anywhere."""
    have = recording.primary(page.name)
    classes = have.classes if have else {}
    for match in MARK.finditer(text):
        attrs = attributes(match["attrs"])
        written = attrs.get("data-m") or attrs.get("data-expr") or attrs.get("data-check") or ""
        try:
            named = expression.names(written.partition(":")[0]) if written else set()
        except ExpressionError:
            return False
        if any(classes.get(name) not in _ASKABLE for name in named):
            return False
    return True


def plain(markdown: str) -> str:
    """A page's Markdown for a card: bold stays, attribute lists go, links become their words."""
    text = MARK.sub(lambda m: f"**{m['text']}**", markdown)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())
