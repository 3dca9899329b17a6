"""A mock interview in a terminal: question, time to speak, points to tick, a follow-up; and its report.

What is asked is `measured.interview`'s business. Nothing here touches what the quiz keeps: a point that one ticks for
oneself says little about when a card should come back.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from measured.interview import Followup, Interview, choose
from measured.quiz import Ask, Clock, Stopped, panel

MINUTES = 20
SPEAK_SECONDS = 120
REREAD = 5  # pages that a report sends back to


@dataclass
class Asked:
    """One question as it went. `followup` and `held` stay None where the reader stopped before."""

    interview: Interview
    seconds: int
    ticked: tuple[int, ...]
    followup: Followup | None = None
    held: bool | None = None

    @property
    def missed(self) -> tuple[int, ...]:
        return tuple(at for at in range(len(self.interview.points)) if at not in self.ticked)


def shuffled(interviews: Sequence[Interview], dice: random.Random) -> list[Interview]:
    """Most asked first, and in another order each evening among those that are asked as often."""
    return sorted(interviews, key=lambda each: (each.asked, dice.random()))


def run(interviews: Sequence[Interview], minutes: int, console: Console, ask: Ask, *, clock: Clock) -> list[Asked]:
    """Ask until the time is over, which ends no question, or until the reader stops; returns what was answered."""
    until = clock() + timedelta(minutes=minutes)
    done: list[Asked] = []
    try:
        for each in interviews:
            if clock() >= until:
                break
            _question(each, console, ask, clock, done)
    except (Stopped, EOFError, KeyboardInterrupt):
        console.print()
    return done


def report(done: Sequence[Asked], started: datetime, ended: datetime) -> str:
    """How it went, as Markdown: a row a question, the points that were missed, and what to reread."""
    title = f"# Mock interview, {started:%Y-%m-%d %H:%M}\n\n"
    if not done:
        return f"{title}No question was answered.\n"
    made, of = sum(len(each.ticked) for each in done), sum(len(each.interview.points) for each in done)
    followed = [each for each in done if each.held is not None]
    minutes = (ended - started).total_seconds() / 60
    total = [
        f"{_count(len(done), 'question')} in {minutes:.0f} min",
        f"{made} of {of} points made",
        f"{sum(each.held is True for each in followed)} of {_count(len(followed), 'follow-up')} held",
    ]
    rows = [f"| {' | '.join(_row(each))} |" for each in done]
    table = ["| question | points | seconds | follow-up | held |", "|---|---|---|---|---|", *rows]
    parts = ["; ".join(total) + ".", "\n".join(table)]
    again = sorted((each for each in done if each.missed or each.held is False), key=_misses, reverse=True)
    for each in again[:REREAD]:
        missed = [f"- {each.interview.points[at]}" for at in each.missed]
        if each.held is False and each.followup:
            missed.append(f"- {each.followup.question} {each.followup.answer}")
        parts.append(f"## Reread docs/{each.interview.page}.md\n\n" + "\n".join(missed))
    return title + "\n\n".join(parts) + "\n"


def _question(each: Interview, console: Console, ask: Ask, clock: Clock, done: list[Asked]) -> None:
    topic = each.topic.replace("_", " ")
    console.print(panel(f"{topic} · speak, or write on paper", each.question))
    began = clock()
    _speak(console, ask, clock)
    seconds = round((clock() - began).total_seconds())
    listed = "\n".join(f"{at}. {point}" for at, point in enumerate(each.points, 1))
    console.print(panel(f"key points · {seconds} s", listed, "green"))
    answered = Asked(each, seconds, _ticked(len(each.points), console, ask))
    done.append(answered)
    chosen = choose(each.followups, answered.missed, answered.ticked)
    console.print(panel(f"follow-up · {chosen.level}", chosen.question))
    _said(ask, "Enter shows the answer")
    console.print(panel("its answer", chosen.answer, "green"))
    while (said := _said(ask, "did you have it? y or n")) not in ("y", "n"):
        console.print("y if you had it, n if not")
    answered.followup, answered.held = chosen, said == "y"


def _speak(console: Console, ask: Ask, clock: Clock) -> None:
    """Wait for Enter; in a terminal beside a countdown. Time that is over is told, and cuts nobody short."""
    until = clock() + timedelta(seconds=SPEAK_SECONDS)
    if not console.is_terminal:
        _said(ask, f"{SPEAK_SECONDS // 60} min to speak; Enter when you are done")
        return

    def left() -> Text:
        seconds = round((until - clock()).total_seconds())
        shown = f"{abs(seconds) // 60}:{abs(seconds) % 60:02}"
        told = f"{shown} left" if seconds >= 0 else f"{shown} over time"
        return Text(f"{told} · Enter when you are done, q and Enter to stop ", "red" if seconds < 0 else "dim")

    with Live(console=console, get_renderable=left, refresh_per_second=2, transient=True):
        said = ask("")
    if said.strip().lower() == "q":
        raise Stopped


def _ticked(points: int, console: Console, ask: Ask) -> tuple[int, ...]:
    """Indices of the points that the reader names, asked again until each is one."""
    while True:
        words = _said(ask, "numbers of the points you made, such as 1 3; Enter for none").replace(",", " ").split()
        if all(word.isdecimal() and 1 <= int(word) <= points for word in words):
            return tuple(sorted({int(word) - 1 for word in words}))
        console.print(f"numbers from 1 to {points}, with spaces between them", highlight=False)


def _said(ask: Ask, prompt: str) -> str:
    said = ask(f"{prompt} (q stop): ").strip().lower()
    if said == "q":
        raise Stopped
    return said


def _row(each: Asked) -> tuple[str, ...]:
    question = each.interview.question.replace("|", "\\|")
    level, held = each.followup.level if each.followup else "–", {True: "yes", False: "no", None: "–"}[each.held]
    return question, f"{len(each.ticked)} of {len(each.interview.points)}", str(each.seconds), level, held


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _misses(each: Asked) -> int:
    return len(each.missed) + (each.held is False)


def show(text: str, console: Console) -> None:
    """A report as a terminal shows it."""
    console.print(Markdown(text))
