"""A hook of MkDocs: the theme indents its templates, and a tenth of a page would be blanks that nobody sees.

Nothing depends on it: an engine without hooks builds the same pages, heavier.
"""

from __future__ import annotations

import re
from typing import Any

# Blanks are content in these alone.
_KEPT = re.compile(r"(<(pre|textarea|script|style)\b.*?</\2>)", re.S)


# Lists of links are drawn as blocks, where no line between two tags is seen.
_LISTS = re.compile(r"<nav\b.*?</nav>", re.S)


def on_post_page(output: str, **_: Any) -> str:
    """A page without its indentation and empty lines."""
    parts = _KEPT.split(output)  # text, element, its name, text, …
    parts[::3] = [re.sub(r"\s*\n\s*", "\n", text) for text in parts[::3]]
    del parts[2::3]
    return _LISTS.sub(lambda found: re.sub(r"(?<=>)\n|\n(?=<)", "", found[0]), "".join(parts))
