"""Naked numbers: where one is found, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from measured import numbers
from measured.page import Page


def naked(text: str, head: str = "title: A\ndescription: B") -> list[tuple[int, str]]:
    page = Page("x", Path("x.md"), f"---\n{head}\n---\n\n# Title\n\n{text}\n")
    return [(line, what) for line, what, _ in numbers.naked(page)]


@pytest.mark.parametrize(
    "text",
    [
        "It takes 5 GB.",
        "It takes 5GB, **5 GB** or *5 GB* or **5 GB**{ .big }.",
        "About 50 % of it.",
        "a 4-bit weight",
        "an 8B-shaped layer",
        "1e9 of them, 10⁹ or 2³",
        "x < 5 and y > 3",
        "where latency < 5 ms and tokens > any",
        "{5 GB}",
        "| a | 12 |",
        "- 12 layers",
        "## In 12 layers",
        "> 12 layers",
        "`5 GB`",
        "[5 GB](https://example.org)",
        "[5 GB][key]",
        "![a chart of 5 GB](chart.svg)",
        '<img src="chart.svg" alt="a chart of 5 GB">',
        '<img alt="a chart of 5 GB" src="chart.svg"/>',
        '<abbr title="5 GB">x</abbr>',
        "<td>5 GB</td>",
        "$5$",
        r"$\text{5 GB}$",
        r"$x = 2 \times y$",
        "$$x = 2 y$$",
        "[^note]: It takes 5 GB.",
        '!!! note "5 GB"',
        '=== "5 GB"',
        "!!! note\n\n    It takes 5 GB.",
        "```text\n5 GB\n```",
        "```\n5 GB\n```",
        "```mermaid\ngraph LR; A[5 GB] --> B\n```",
        '```python title="5 GB"\nx = 1\n```',
    ],
)
def test_naked_numbers_are_found(text: str) -> None:
    assert naked(text), text


@pytest.mark.parametrize(
    "text",
    [
        'It takes **5 GB**{ .m data-m="a_bytes:.0f GB" }.',
        'It takes **5 GB**{ .claim #a data-class=D data-check="a_bytes == 5000000000" }.',
        'It takes **5 GB**{ .exact data-expr="5e9:.0f GB" } and **7 s**{ .cited data-src="x" }.',
        "INT8, FP32, Llama-3-8B, g128, H100, S0.4a, L2, Qwen2.5 and MobileLLM-125M are names.",
        "1. An ordered\n2. list",
        "`x[5]` and `--port 8000` are code",
        "[text](https://example.org/2024/5) and <https://example.org/5> and https://example.org/5",
        "[key]: https://example.org/5",
        "A word with a note[^5].",
        "$x_{5}^{2}$ has an index and an exponent",
        r"$\text{INT8}$",
        "![a chart](chart5.svg){ width=300 }",
        "<!-- 5 GB -->",
        "<!-- 5 GB\nand 6 GB -->",
        "```python\nx = 5\n```",
        "```console\n$ head -5 file\n```",
        '!!! answer "In 30 seconds"',
        "<span id=a5>x</span>",
    ],
)
def test_backed_numbers_and_names_are_none(text: str) -> None:
    assert naked(text) == []


def test_the_front_matter_that_readers_see() -> None:
    assert naked("", "title: In 5 GB\ndescription: B") == [(1, "naked number “5 GB” in the front matter's title")]
    assert len(naked("", "title: A\ndescription: takes 5 GB")) == 1


def test_lines_are_those_of_the_file() -> None:
    assert [line for line, _ in naked("one line\n\ntakes 5 GB\n\n```text\nfoo\n7 s\n```")] == [10, 14]


@pytest.mark.parametrize("word", ["two", "Twice", "half", "doubles", "halving", "a third", "thousand", "tenfold"])
def test_number_words_in_answers_and_verdicts_stand_in_a_claim(word: str) -> None:
    for head in ('!!! answer "In 30 seconds"', '!!! verdict holds "S1.1: it is so"'):
        assert len(naked(f"{head}\n\n    It needs {word} of it.")) == 1
        backed = f'**{word}**{{ .exact data-expr="2" }}'
        assert naked(f"{head}\n\n    It needs {backed} of it.") == []
    assert len(naked(f'!!! verdict holds "S1.1: {word} of it"')) == 1
    assert naked(f"It needs {word} of it.") == []


def test_number_words_are_found_on_their_line() -> None:
    text = '!!! answer "In 30 seconds"\n\n    First line.\n    Then half of it.\n\nAfter.'
    assert naked(text) == [(11, "number word “half” outside a claim")]


def test_formula_numerals() -> None:
    page = Page("x", Path("x.md"), "```math\n\\text{bytes} = 2 \\times n_{3} + 0.5^{4} \\text{INT8}\n```\n")
    assert numbers.formula_numerals(page.fences[0]) == ["2", "0.5"]


def test_docstrings_of_a_module(tmp_path: Path) -> None:
    path = tmp_path / "s.py"
    path.write_text(
        '"""Takes 5 GB.\n\nINT8 is a name.\n"""\n\n\n'
        'def f():\n    """One.\n\n    Two takes 7 ms.\n    """\n    return 8\n',
        encoding="utf-8",
    )
    assert list(numbers.naked_in_module(path)) == [(1, "5 GB"), (10, "7 ms")]


def test_comments_with_a_unit() -> None:
    code = "x = 5  # takes 5 GB\n# (2, 3) and 7\ny = '# 9 ms'\n"
    assert list(numbers.naked_in_comments(code)) == [(1, "5 GB")]
