"""Contrast of the site's own colours, computed from its style sheet: WCAG 2 AA in both schemes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

SHEET = Path(__file__).resolve().parents[2] / "docs" / "assets" / "measured.css"
TEXT, GRAPHIC = 4.5, 3.0
CODE = (
    "keyword",
    "string",
    "number",
    "function",
    "constant",
    "special",
    "name",
    "operator",
    "punctuation",
    "comment",
    "generic",
    "variable",
)
STATES = ("answer", "holds", "holds-if", "refuted", "unmeasured", "trap")
# (what is written, what it is written on, least ratio)
PAIRS = [
    *[
        (f"--md-{ink}", f"--{paper}", TEXT)
        for ink in (
            "default-fg-color",
            "default-fg-color--light",
            "typeset-color",
            "typeset-a-color",
            "accent-fg-color",
        )
        for paper in ("md-default-bg-color", "ma-tint")
    ],
    *[(f"--md-code-hl-{part}-color", "--md-code-bg-color", TEXT) for part in CODE],
    ("--md-code-fg-color", "--md-code-bg-color", TEXT),
    ("--md-code-fg-color", "--md-default-bg-color", TEXT),
    *[("--md-primary-bg-color", f"--md-primary-fg-color{shade}", TEXT) for shade in ("", "--light", "--dark")],
    ("--md-primary-bg-color--light", "--md-primary-fg-color", TEXT),
    *[
        (f"--md-footer-fg-color{shade}", f"--md-footer-bg-color{depth}", TEXT)
        for shade in ("", "--light", "--lighter")
        for depth in ("", "--dark")
    ],
    ("--md-accent-bg-color", "--md-accent-fg-color", TEXT),
    ("--md-admonition-fg-color", "--md-admonition-bg-color", TEXT),
    ("--md-typeset-color", "--md-typeset-mark-color", TEXT),
    *[(f"--ma-{state}", paper, TEXT) for state in STATES for paper in ("--md-default-bg-color", "--ma-tint")],
    *[(f"--ma-{ink}", paper, TEXT) for ink in ("mark", "muted") for paper in ("--md-default-bg-color", "--ma-tint")],
    *[(f"--ma-series-{number}", "--md-default-bg-color", GRAPHIC) for number in range(1, 7)],
    ("--md-default-fg-color--lighter", "--md-default-bg-color", GRAPHIC),
]


def _scheme(name: str) -> dict[str, str]:
    """Six-digit colours of one scheme's block, by variable."""
    sheet = re.sub(r"/\*.*?\*/", "", SHEET.read_text(encoding="utf-8"), flags=re.S)
    block = re.search(rf'\[data-md-color-scheme="{name}"\]\s*\{{(.*?)\}}', sheet, re.S)
    assert block, f"no block of scheme {name}"
    return dict(re.findall(r"(--[\w-]+):\s*(#[0-9a-f]{6})\s*;", block[1]))


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2: https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, between 1 and 21."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_ratio_is_the_standard_one() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)  # the well-known near miss
    assert contrast("#009485", "#ffffff") == pytest.approx(3.76, abs=0.01)  # the theme's teal, and why it is not ours


@pytest.mark.parametrize("scheme", ["default", "slate"])
@pytest.mark.parametrize(("ink", "paper", "least"), PAIRS, ids=lambda value: str(value).lstrip("-"))
def test_colours_can_be_read(scheme: str, ink: str, paper: str, least: float) -> None:
    colours = _scheme(scheme)
    ratio = contrast(colours[ink], colours[paper])
    assert ratio >= least, f"{ink} {colours[ink]} on {paper} {colours[paper]} in {scheme}: {ratio:.2f} < {least}"


def test_both_schemes_set_the_same_colours() -> None:
    light, dark = _scheme("default"), _scheme("slate")
    assert light.keys() == dark.keys()
    assert {ink for ink, _, _ in PAIRS} | {paper for _, paper, _ in PAIRS} <= light.keys()
