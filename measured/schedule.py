"""When a card comes back: FSRS, and the state of a reader's cards in one file.

The file is JSON, versioned, and the same that the browser exports:

    {"format": "measured-answers-quiz", "version": 1,
     "cards": {id: {"state", "step", "stability", "difficulty", "due", "last_review"}},
     "log": [[time, id, rating], …]}

Times are UTC in ISO format, ratings run from one (again) to four (easy). Cards that left the site stay in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsrs
from filelock import FileLock
from platformdirs import user_data_path

from measured import project

FORMAT, VERSION = "measured-answers-quiz", 1
# No steps within a day: a round brings its misses back itself. No fuzz: browser and terminal must name the same day.
SCHEDULER = fsrs.Scheduler(learning_steps=(), relearning_steps=(), enable_fuzzing=False)
_FIELDS = {"state", "step", "stability", "difficulty", "due", "last_review"}


class StateError(ValueError):
    """A state that cannot be read; it is refused whole, and nothing is overwritten."""


@dataclass
class State:
    """What a reader has answered: each card's place in its schedule, and every answer in order."""

    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[tuple[str, str, int]] = field(default_factory=list)

    def due(self, card_id: str) -> datetime | None:
        """When a card comes back; None for one never answered."""
        entry = self.cards.get(card_id)
        return datetime.fromisoformat(entry["due"]) if entry else None

    def answer(self, card_id: str, rating: int, now: datetime) -> datetime:
        """Schedule a card by an answer; returns when it comes back."""
        now = now.replace(microsecond=now.microsecond // 1000 * 1000)  # what a browser keeps of a time
        entry = self.cards.get(card_id)
        card = fsrs.Card.from_dict({"card_id": 0, **entry}) if entry else fsrs.Card(card_id=0)  # type: ignore[typeddict-item]
        card, _ = SCHEDULER.review_card(card, fsrs.Rating(rating), now)
        self.cards[card_id] = {key: value for key, value in card.to_dict().items() if key in _FIELDS}
        self.log.append((now.isoformat(), card_id, rating))
        return card.due

    def undo(self) -> str | None:
        """Take back the last answer: its card is scheduled anew from the answers before; returns its id."""
        if not self.log:
            return None
        card_id = self.log.pop()[1]
        self._replay(card_id)
        return card_id

    def _replay(self, card_id: str) -> None:
        """Schedule a card anew from its answers."""
        self.cards.pop(card_id, None)
        whole, self.log = self.log, []
        for time, each, rating in whole:
            if each == card_id:
                self.answer(card_id, rating, datetime.fromisoformat(time))
        self.log = whole

    def merge(self, other: State) -> None:
        """Take in another device's state: every answer of both, each card scheduled by all of its answers."""
        both = set(self.cards) & set(other.cards)
        self.cards = {**other.cards, **self.cards}
        self.log = sorted({*self.log, *other.log})
        for card_id in both:
            self._replay(card_id)

    def as_text(self) -> str:
        """The file's content."""
        document = {"format": FORMAT, "version": VERSION, "cards": self.cards, "log": self.log}
        return json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def read(text: str, where: str) -> State:
    """A state from a file's content.

    Raises:
        StateError: It is broken, of another program, or of a later version; says what and where.
    """
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise StateError(f"{where} is no JSON ({error.msg}, line {error.lineno}): nothing was changed") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise StateError(f"{where} is not a quiz state of Measured Answers: nothing was changed")
    if document.get("version") != VERSION:
        raise StateError(
            f"{where} is of version {document.get('version')}, this program reads {VERSION}: nothing was changed"
        )
    try:
        cards = {str(card_id): _entry(entry) for card_id, entry in document["cards"].items()}
        log = [(_time(time), str(card_id), int(fsrs.Rating(rating))) for time, card_id, rating in document["log"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{where} has an entry that cannot be read ({error}): nothing was changed") from None
    return State(cards, log)


def _entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """One card's schedule, if it has every field and the scheduler takes it."""
    if set(entry) != _FIELDS:
        raise ValueError(f"fields {', '.join(sorted(set(entry) ^ _FIELDS))}")
    fsrs.Card.from_dict({"card_id": 0, **entry})  # type: ignore[typeddict-item]
    return {**entry, "due": _time(entry["due"]), "last_review": entry["last_review"] and _time(entry["last_review"])}


def _time(text: str) -> str:
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError(f"time {text} names no zone")
    return found.astimezone(UTC).isoformat()


class StateFile:
    """The state in the user's data folder. Each change reads the file, changes and replaces it under a lock, so that
    two terminals lose nothing and a crash loses nothing that was answered."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or user_data_path("measured-answers") / "quiz.json"

    def load(self) -> State:
        """The state as it is; empty before the first answer.

        Raises:
            StateError: The file cannot be read.
        """
        if not self.path.exists():
            return State()
        return read(self.path.read_text(encoding="utf-8"), str(self.path))

    def answer(self, card_id: str, rating: int, now: datetime) -> datetime:
        """Schedule a card and keep it; returns when it comes back."""
        with self._held() as state:
            return state.answer(card_id, rating, now)

    def undo(self) -> str | None:
        """Take back the last answer and keep that; returns its card."""
        with self._held() as state:
            return state.undo()

    def merge(self, text: str, where: str) -> int:
        """Take in an exported state; returns how many answers are new."""
        other = read(text, where)
        with self._held() as state:
            before = len(state.log)
            state.merge(other)
            return len(state.log) - before

    @contextmanager
    def _held(self) -> Iterator[State]:
        """The state under the file's lock, written back unless something was raised."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            state = self.load()
            yield state
            project.write_atomically(self.path, state.as_text())
