"""Numbers to know: for each question of a topic its formula, and the sentence with its number and condition."""

from __future__ import annotations

import re

from measured import project, weave
from measured.page import MARK, Page, attributes, read_page
from measured.quotes import quote, sentences

# Between equations that stand side by side; what follows in parentheses belongs to the one before.
_APART = re.compile(r"\\qquad(?!\s*(?:\\text\{)?\s*\()")
_SUM = re.compile(r" (?=\+ )")
# Letters of a formula that a column of the printed sheet, or a phone held upright, has room for.
COLUMN_LETTERS = 105


def number_list(topic: str) -> str:
    """What `<!-- pull numbers TOPIC -->` becomes on a page in a folder beside the topics'.

    Raises:
        project.UnknownNameError: There is no such topic.
    """
    parts = []
    for name in weave.question_order(project.topic_or_fail(topic)):
        page = read_page(name)
        address = f"../{name}.md"
        parts += [
            '<section class="ma-number" markdown>',
            "",
            f"## [{page.heading[0]}]({address}) {{ #{name.split('/')[1].replace('_', '-')} }}",
            "",
            *(row for each in formulas(page) for row in (weave.formula(each), "")),
            quote(key_sentence(page), name, address),
            "",
            "</section>",
            "",
        ]
    return "\n".join(parts) if parts else "No question has a page yet."


def key_sentence(page: Page) -> str:
    """The first sentence of the short answer with a claim and a number in digits, else with such a number alone."""
    spoken = [sentence for paragraph in page.answer.split("\n\n") for sentence in sentences(paragraph)]
    numbers = [s for s in spoken if any(re.search(r"\d", mark["text"]) for mark in MARK.finditer(s))]
    claimed = [s for s in numbers if any(_is_claim(mark) for mark in MARK.finditer(s))]
    return next(iter([*claimed, *numbers, *spoken]), "")


def formulas(page: Page) -> list[str]:
    """The page's first formula in lines: equations that stand side by side apart, a long sum term by term."""
    first = next((fence.body for fence in page.fences if fence.language == "math"), "")
    lines = []
    for equation in _split(first, _APART):
        lines += [equation] if _letters(equation) <= COLUMN_LETTERS else _split(equation, _SUM)
    return [line.strip().rstrip(",") for line in lines if line.strip()]


def _split(tex: str, gaps: re.Pattern[str]) -> list[str]:
    """TeX in parts, cut at gaps that lie within no braces or parentheses."""
    parts, start = [], 0
    for gap in gaps.finditer(tex):
        before = tex[start : gap.start()]
        if all(before.count(left) == before.count(right) for left, right in ("{}", "()", (r"\left", r"\right"))):
            parts.append(before)
            start = gap.end()
    return [*parts, tex[start:]]


def _letters(tex: str) -> int:
    """Roughly how wide a formula is; of a fraction both lines count."""
    return len(re.sub(r"\\(?:text|mathrm)\b|\\[a-zA-Z]+\b|[{}^_\s]", " ", tex).replace("  ", " "))


def _is_claim(mark: re.Match[str]) -> bool:
    return "claim" in attributes(mark["attrs"]).get("class", "").split()
