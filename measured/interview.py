"""Mock interviews: what they ask, made from the pages alone.

Every question page is one interview. Its key points are the sentences of the 30-second answer, its follow-ups those of
the page, and which follow-up comes depends on the points that were missed. How a round goes in a terminal is
`measured.mock`'s business; the browser has its twin of `choose`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from measured import project
from measured.cards import plain
from measured.page import Page, read_page

LEVELS = ("junior", "senior", "staff")
SECTION = "Follow-ups"
_BULLET = re.compile(r"^- +\*\*(?P<level>\w+)\.\*\* +(?P<text>.*)$")
_OPAQUE = re.compile(r"\$[^$]+\$|`[^`]+`")  # what stands in a formula or in code ends no sentence
_ABBREVIATED = re.compile(r"\b(?:e\.g|i\.e|cf|vs|al|approx|incl|resp)\.$", re.I)
_END = re.compile(r"[.!?]+[”’\"')*_]*(?=\s+[^a-z\s])")
_ASKED = re.compile(r"\?[”’\"')*_]*(?=\s|$)")
_WORD = re.compile(r"[^\W\d_][\w-]+")


@dataclass(frozen=True)
class Followup:
    """A follow-up in Markdown; `points` says how much it has in common with each key point of its page."""

    level: str
    question: str
    answer: str
    points: tuple[int, ...] = ()


@dataclass(frozen=True)
class Interview:
    """One question page as an interviewer uses it; texts are Markdown without marks."""

    page: str
    topic: str
    asked: int  # how often interviewers ask, from one (often) to three
    question: str
    points: tuple[str, ...]
    followups: tuple[Followup, ...]


def interviews(topics: Sequence[str] | None = None) -> list[Interview]:
    """Interviews of the topics, or of all: most asked first, then in the pages' order.

    A page without an answer or without a follow-up, one just begun, is left out.
    """
    weights = _weights([read_page(name) for name in project.question_names()])
    found = [_interview(read_page(n), weights) for t in topics or project.TOPICS for n in project.question_names(t)]
    return sorted((each for each in found if each.points and each.followups), key=lambda each: each.asked)


def choose(followups: Sequence[Followup], missed: Collection[int], ticked: Collection[int]) -> Followup:
    """The follow-up that an interviewer would ask next.

    Its level follows from how much was missed: more than half, junior; something, senior; nothing, staff; the nearest
    level that the page has, the easier of two. Of that level's it is the one nearest to the missed points, then to
    those that were made; the page's order decides between equals.

    Args:
        followups: A page's follow-ups, at least one.
        missed: Indices of the key points that were missed.
        ticked: Indices of those that were made.
    """
    wanted = 0 if 2 * len(missed) > len(missed) + len(ticked) else 1 if missed else 2
    level = min({LEVELS.index(each.level) for each in followups}, key=lambda at: (abs(at - wanted), at))
    return max(
        (each for each in followups if each.level == LEVELS[level]),
        key=lambda each: (sum(each.points[at] for at in missed), sum(each.points[at] for at in ticked)),
    )


def sentences(text: str) -> list[str]:
    """A paragraph's sentences. Abbreviations, numbers, formulas and code do not end one."""
    text = " ".join(text.split())
    hidden = _hidden(text)
    ends = [match.end() for match in _END.finditer(hidden) if not _ABBREVIATED.search(hidden[: match.end()])]
    cut = [text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [sentence for sentence in cut if sentence]


def followups(page: Page) -> list[Followup]:
    """A page's tagged follow-ups; the question of one ends at its first question mark."""
    found = []
    for level, text in _bullets(page):
        said = " ".join(plain(text).split())
        end = _ASKED.search(_hidden(said))
        if end and level in LEVELS and (answer := said[end.end() :].strip()):
            found.append(Followup(level, said[: end.end()], answer))
    return found


def _bullets(page: Page) -> list[tuple[str, str]]:
    """`(level, text)` of every follow-up, its lines joined."""
    found: list[tuple[str, str]] = []
    inside = open_ = False
    for _, line in page.prose:
        if line.startswith("## "):
            inside, open_ = line.removeprefix("## ").strip() == SECTION, False
        elif inside and (match := _BULLET.match(line)):
            found.append((match["level"].lower(), match["text"]))
            open_ = True
        elif open_ and line.startswith("  ") and line.strip():
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        else:
            open_ = False
    return found


def _hidden(text: str) -> str:
    """The text with formulas and code as so many letters."""
    return _OPAQUE.sub(lambda match: "X" * len(match[0]), text)


def _interview(page: Page, weights: dict[str, int]) -> Interview:
    points = sentences(plain(page.answer))
    of_points = [_words(point) for point in points]
    found = []
    for each in followups(page):
        own = _words(f"{each.question} {each.answer}")
        common = tuple(sum(weights[word] for word in own & words) for words in of_points)
        found.append(replace(each, points=common))
    topic, asked = page.name.split("/")[0], page.meta.get("asked")
    asked = asked if isinstance(asked, int) else 3  # a page just begun says nothing yet
    return Interview(page.name, topic, asked, page.heading[0], tuple(points), tuple(found))


def _weights(pages: Iterable[Page]) -> dict[str, int]:
    """How distinctive each word is: its inverse document frequency over the pages, in hundredths of a nat.

    Whole numbers, so that sums are the same in every language. Words that stand on every page weigh nothing.
    """
    texts = [f"{page.answer} {' '.join(text for _, text in _bullets(page))}" for page in pages]
    counts = Counter(word for text in texts for word in _words(plain(text)))
    return {word: round(100 * math.log(len(texts) / count)) for word, count in counts.items()}


def _words(text: str) -> frozenset[str]:
    """Words in lower case, without the plural's s."""
    return frozenset(word.lower().removesuffix("s") for word in _WORD.findall(text))
