"""The quiz in a terminal: which card comes next, how each kind is asked, and what to reread afterwards.

What is asked is `measured.cards`' business, when it comes back `measured.schedule`'s.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from rich.console import Console, Group
from rich.markdown import Markdown
from rich.panel import Panel
from rich.table import Table

from measured import estimates
from measured.cards import Card
from measured.estimates import Estimate, GuessError
from measured.schedule import State, StateFile

AGAIN, GOOD = 1, 3
KNOWN_DAYS = 7  # a card counts as known once it would still be remembered in a week
RATINGS = {"1": "again", "2": "hard", "3": "good", "4": "easy"}
NEW_A_ROUND = 20
RETURN_AFTER = 3  # cards between a miss and its return
Ask = Callable[[str], str]
Clock = Callable[[], datetime]


class Stopped(Exception):
    """The reader wants to stop."""


class Undone(Exception):
    """The reader takes the last answer back."""


@dataclass
class Round:
    """Cards to come, and how they went. A miss returns after some others until it is right."""

    queue: deque[Card]
    until: datetime | None = None
    right: list[Card] = field(default_factory=list)
    missed: Counter[str] = field(default_factory=Counter)  # pages
    last: list[Card] = field(default_factory=list)

    def next(self, now: datetime) -> Card | None:
        """The next card; None when all are right or the time is over."""
        return self.queue.popleft() if self.queue and not (self.until and now >= self.until) else None

    def answered(self, card: Card, rating: int) -> None:
        """A miss goes back into the queue."""
        self.last.append(card)
        if rating == AGAIN:
            self.missed[card.page] += 1
            self.queue.insert(min(RETURN_AFTER, len(self.queue)), card)
        else:
            self.right.append(card)

    def undo(self, current: Card) -> None:
        """Ask the last card again, then the current one."""
        self.queue.appendleft(current)
        if not self.last:
            return
        card = self.last.pop()
        if card in self.right:
            self.right.remove(card)
        else:
            self.queue.remove(card)
            self.missed -= Counter({card.page: 1})
        self.queue.appendleft(card)


def tonight(cards: Sequence[Card], minutes: int, now: datetime) -> Round:
    """An evening's round: the most asked first, whatever was answered before."""
    return Round(deque(cards), now + timedelta(minutes=minutes))


def until_it_sits(cards: Sequence[Card], state: State, now: datetime) -> Round:
    """What is due, longest overdue first, then new cards, the most asked first."""
    back = {card: due for card in cards if (due := state.due(card.id)) and due <= now}
    fresh = [card for card in cards if card.id not in state.cards]
    return Round(deque([*sorted(back, key=back.__getitem__), *fresh[: max(0, NEW_A_ROUND - len(back))]]))


def forecast(cards: Sequence[Card], state: State, now: datetime, days: int = 7) -> list[int]:
    """Cards that come back on each of the next days, from today."""
    counts = [0] * days
    for card in cards:
        if due := state.due(card.id):
            day = max(0, (due.date() - now.date()).days)
            if day < days:
                counts[day] += 1
    return counts


def progress(cards: Sequence[Card], state: State, now: datetime) -> Table:
    """By topic: how many cards were answered, how many sit, and how many come back on each of the next days."""
    days = [f"+{day}" if day else "today" for day in range(7)]
    table = Table("topic", "cards", "seen", "known", *days)
    for topic in dict.fromkeys(card.topic for card in cards):
        own = [card for card in cards if card.topic == topic]
        seen = [card for card in own if card.id in state.cards]
        known = [card for card in seen if state.cards[card.id]["stability"] >= KNOWN_DAYS]
        counts = (len(own), len(seen), len(known), *forecast(own, state, now))
        table.add_row(topic.replace("_", " "), *(str(count) for count in counts))
    return table


def run(cards: Round, file: StateFile, console: Console, ask: Ask, *, dice: random.Random, clock: Clock) -> None:
    """Ask until the round is over or the reader stops; each answer is kept at once."""
    while card := cards.next(clock()):
        try:
            rating = _asked(card, console, ask, dice)
        except Undone:
            if cards.last:
                file.undo()
            else:
                console.print("nothing to take back in this round")
            cards.undo(card)
            continue
        except Stopped:
            break
        due = file.answer(card.id, rating, clock())
        cards.answered(card, rating)
        console.print(f"[dim]{RATINGS[str(rating)]}; back {_when(due, clock())}; {len(cards.queue)} to come[/dim]\n")


def summary(cards: Round) -> str:
    """How it went, and what to reread: pages by misses."""
    told = f"{len(cards.right)} right, {sum(cards.missed.values())} missed, {len(cards.queue)} not reached"
    if cards.missed:
        told += "\nreread: " + ", ".join(f"docs/{page}.md" for page, _ in cards.missed.most_common(5))
    return told


def _asked(card: Card, console: Console, ask: Ask, dice: random.Random) -> int:
    topic = card.topic.replace("_", " ")
    match card.kind:
        case "recall":
            console.print(panel(f"{topic} · say it aloud", card.front))
            _answer(ask, "Enter shows the answer", {""})
            console.print(panel("In 30 seconds", card.back, "green"))
            return int(_answer(ask, "1 again · 2 hard · 3 good · 4 easy", set(RATINGS)))
        case "spot":
            return _spot(card, console, ask, dice)
        case "estimate" if card.estimate:
            return _estimate(card, card.estimate, console, ask, dice)
    options = list(card.options)
    if card.kind == "choice":
        dice.shuffle(options)
    body = "\n".join(f"{at}. {option.text}" for at, option in enumerate(options, 1))
    heading = f"{topic} · people say" if card.kind == "statement" else topic
    console.print(panel(heading, f"{card.front}\n\n{body}"))
    chosen = options[int(_answer(ask, "number of your answer", {str(n + 1) for n in range(len(options))})) - 1]
    right = next(option.text for option in options if option.right)
    return _judged(card, console, chosen.right, "" if card.kind == "choice" and chosen.right else right, card.back)


def _spot(card: Card, console: Console, ask: Ask, dice: random.Random) -> int:
    slot = dice.choice(card.slots)
    wrong = dice.choice(slot.wrong)
    steps = list(card.steps)
    steps[slot.step] = steps[slot.step].replace(slot.right, wrong)
    body = "\n".join(f"{at}. {step}" for at, step in enumerate(steps, 1))
    console.print(panel(card.topic.replace("_", " "), f"{card.front}\n\n{body}"))
    chosen = int(_answer(ask, "number of the step", {str(n + 1) for n in range(len(steps))})) - 1
    told = f"Step {slot.step + 1} said {wrong}; it is {slot.right}."
    return _judged(card, console, chosen == slot.step, "", told)


def _estimate(card: Card, estimate: Estimate, console: Console, ask: Ask, dice: random.Random) -> int:
    drawn = estimates.draw(estimate, dice.getrandbits(32))
    console.print(panel(f"{card.topic.replace('_', ' ')} · estimate", drawn.question))
    while True:
        try:
            guess, unit = estimates.guessed(_typed(ask, "number and unit"), estimate.dimension)
            break
        except GuessError as error:
            console.print(f"{error}", style="yellow", markup=False, highlight=False)
    found = estimates.grade(estimate, drawn.values, guess, unit)
    title = {1: f"wrong: {estimates.off(found.error)}", 2: f"near: {estimates.off(found.error)}", 3: "right"}[
        found.rating
    ]
    parts = [found.mistake, *estimates.solution(estimate, drawn.values), f"Evidence: docs/{card.page}.md#{card.anchor}"]
    style = "red" if found.rating == AGAIN else "green"
    console.print(panel(title, "\n\n".join(filter(None, parts)), style))
    return found.rating


def _judged(card: Card, console: Console, right: bool, answer: str, back: str) -> int:
    parts = [*([f"The answer: **{answer}**."] if answer else []), back, f"Evidence: docs/{card.page}.md#{card.anchor}"]
    console.print(panel("right" if right else "wrong", "\n\n".join(filter(None, parts)), "green" if right else "red"))
    return GOOD if right else AGAIN


def _answer(ask: Ask, prompt: str, allowed: set[str]) -> str:
    """What the reader typed, asked again until it is one of those allowed."""
    while (said := _typed(ask, prompt).lower()) not in allowed:
        pass
    return said


def _typed(ask: Ask, prompt: str) -> str:
    """What the reader typed; q stops, u undoes."""
    said = ask(f"{prompt} (u undo, q stop): ").strip()
    if said.lower() == "q":
        raise Stopped
    if said.lower() == "u":
        raise Undone
    return said


def panel(title: str, text: str, style: str = "cyan") -> Panel:
    """Markdown in a frame, as every question and answer is shown."""
    return Panel(Group(Markdown(text)), title=title, border_style=style, title_align="left")


def _when(due: datetime, now: datetime) -> str:
    minutes = (due - now).total_seconds() / 60
    if minutes < 60:
        return f"in {max(1, round(minutes))} min"
    return f"in {round(minutes / 60)} h" if minutes < 24 * 60 else f"in {round(minutes / 60 / 24)} days"


def utc_now() -> datetime:
    """The time now, with its zone."""
    return datetime.now(UTC)
