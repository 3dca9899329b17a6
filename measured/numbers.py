"""Naked numbers: digits and number words that no measurement, derivation or source stands behind."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from measured.page import MARK_KINDS, Fence, Page, attributes

# Titles of a page's layers, the same everywhere; nothing else may carry a bare number.
LAYER_TITLES = ("In 30 seconds",)
_WORDS = re.compile(
    r"\b(two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozens?|hundreds?|thousands?|millions?|billions?"
    r"|twice|thrice|double[ds]?|triple[ds]?|quadruple[ds]?|half|halve[ds]?|halving|thirds?|quarters?|(?:two|three|four|ten)fold)\b",
    re.I,
)
_MARKED = re.compile(r"\*\*[^*\n]+?\*\*\{(?P<attrs>[^}\n]*)\}")
_DISPLAY_MATH = re.compile(r"\$\$.*?\$\$|\$(?!\s)[^$\n]+?(?<!\s)\$")


def naked(page: Page) -> Iterator[tuple[int, str, str]]:
    """`(line, what, mend)` of every number on a page that nothing backs."""
    mend = "mark it: measured {.m}, {.claim}, {.exact} or {.cited}"
    for key in ("title", "description"):
        for found in quantities(str(page.meta.get(key, ""))):
            yield 1, f"naked number “{found}” in the front matter's {key}", "say it without a number"
    for line, text in page.prose:
        for found in quantities(strip_marks(text)):
            yield line, f"naked number “{found}”", mend
    for fence in page.fences:
        for found in quantities(fence.options.get("title", "")):
            yield fence.line, f"naked number “{found}” in a fence's title", "say it without a number"
        if fence.language in ("text", ""):
            for offset, row in enumerate(fence.body.splitlines(), 1):
                for found in quantities(row):
                    yield fence.line + offset, f"naked number “{found}” in a {fence.language or 'bare'} fence", mend
        elif page.cells and not fence.executed and fence.language not in ("math", "mermaid", "estimate"):
            for offset, row in enumerate(fence.body.splitlines(), 1):
                for found in measures(row):
                    yield fence.line + offset, f"naked quantity “{found}” in a fence that runs nothing", mend
        if fence.language == "mermaid":
            for found in quantities(fence.body):
                yield fence.line, f"naked number “{found}” in a diagram", mend
    yield from _number_words(page)


def _number_words(page: Page) -> Iterator[tuple[int, str, str]]:
    for line, types, title, body in page.admonitions:
        if types[0] not in ("answer", "verdict"):
            continue
        for offset, text in enumerate([title, *_body_lines(page, line, body)]):
            for match in _WORDS.finditer(strip_marks(text)):
                yield (
                    line + offset,
                    f"number word “{match[0]}” outside a claim",
                    "put it inside a claim, or say it plainly",
                )


def _body_lines(page: Page, line: int, body: str) -> list[str]:
    """The admonition's own lines as they stand below its head, so that offsets are line numbers."""
    count = len(body.splitlines()) + 2
    return [
        row.strip() for row in page.lines[line : line + count] if not row or row.startswith("    ") or not row.strip()
    ]


def strip_marks(text: str) -> str:
    """A prose line without marked numbers, attribute lists, addresses, code and names of layers."""
    for title in LAYER_TITLES:
        text = text.replace(f'"{title}"', '""')

    def marked(match: re.Match[str]) -> str:
        return " " if set(attributes(match["attrs"]).get("class", "").split()) & set(MARK_KINDS) else match[0]

    text = _MARKED.sub(marked, text)
    text = re.sub(r"\{:? *(?:[.#][\w-]+|[\w-]+=(?:\"[^\"]*\"|[^\s{}\"]+))[^{}\n]*\}", " ", text)
    text = re.sub(r"(`+)(.+?)\1", _code, text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r" \1 ", text)
    text = re.sub(r"!?\[([^\]]*)\]\[[^\]]*\]", r" \1 ", text)
    text = re.sub(r"^\[(?!\^)[^\]]+\]:.*$|<https?://[^>]*>|https?://\S+|\[\^[^\]]+\]:?", " ", text)
    text = re.sub(r"</?[a-zA-Z][^>]*>", _told, text)
    text = re.sub(r"&#?\w+;", " ", text)
    text = re.sub(r"\b(?:Python |CC BY |arXiv:)\d+(?:\.\d+)*", " ", text)  # Versions are names.
    text = re.sub(r"^\s*\d+[.)]\s", " ", text)
    return _DISPLAY_MATH.sub(lambda m: f" {_bare_math(m[0])} ", text)


def _told(match: re.Match[str]) -> str:
    """What an HTML tag says to a reader."""
    return " ".join(["", *re.findall(r"\b(?:alt|title|aria-label)=\"([^\"]*)\"", match[0]), ""])


def _code(match: re.Match[str]) -> str:
    """Code in a line is a name, unless all of it is a quantity: then it is a number in disguise."""
    content = match[2].strip()
    found = quantities(content)
    return f" {content} " if found and "".join(found).replace(" ", "") == content.replace(" ", "") else " code "


def _bare_math(text: str) -> str:
    """A formula's numerals: indices and exponents are notation, words in it are names, their numbers are not."""
    words = r"\\(?:text\w*|mathrm|operatorname|mathit)\{([^}]*)\}"
    text = re.sub(words, lambda m: " ".join(["", *quantities(m[1]), ""]), text)
    text = re.sub(r"[_^](?:\{[^{}]*\}|\\?\w)", " ", text)
    return re.sub(r"\\[a-zA-Z]+|[^\d.,\s]", " ", text)


def quantities(text: str) -> list[str]:
    """Numbers of a text, as it states them; names such as INT8 or Llama-3-8B are none."""
    from snippets.instruments.units import parse_quantities

    return [q.text for q in parse_quantities(text)]


def measures(text: str) -> list[str]:
    """Numbers of a text that have a unit: code and commands hold others by right."""
    from snippets.instruments.units import parse_quantities

    return [q.text for q in parse_quantities(text) if q.unit is not None]


def formula_numerals(fence: Fence) -> list[str]:
    """Numerals of a `math` fence that its check must hold."""
    return re.findall(r"\d+(?:\.\d+)?", _bare_math(fence.body))


def naked_in_module(path: Path) -> Iterator[tuple[int, str]]:
    """`(line, number)` in the docstrings of a snippet; readers see them, and nothing checks them."""
    yield from naked_in_docstrings(path.read_text(encoding="utf-8"))


def naked_in_docstrings(code: str) -> Iterator[tuple[int, str]]:
    """`(line, number)` in the docstrings of a module or a cell."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
            text := ast.get_docstring(node, clean=False)
        ):
            first = node.body[0].lineno
            for offset, row in enumerate(text.splitlines()):
                for found in quantities(strip_marks(row)):
                    yield first + offset, found


def naked_in_comments(code: str) -> Iterator[tuple[int, str]]:
    """`(line, quantity)` in the comments of a cell: a number with a unit there is a result typed by hand."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            for found in measures(token.string):
                yield token.start[0], found
