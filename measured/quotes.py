"""A page's text on another page: numbers keep their evidence and lead back, and no id stands twice."""

from __future__ import annotations

import posixpath
import re
from itertools import pairwise

from measured import claims
from measured.page import MARK, MARK_KINDS, Page, attributes, read_page

_LINK = re.compile(r"\]\((?P<path>[\w./-]*?\.md)?(?P<anchor>#[\w-]+)?\)")
# What a full stop may stand in without ending the sentence: numbers' attributes, addresses, code.
_KEPT_WHOLE = re.compile(rf"{MARK.pattern}|(`+).+?\3|\[[^\]]*\]\([^)]*\)")
_HELD = re.compile("\ue001(\\d+)\ue002")  # of the private use area: no page has them
_SENTENCE_END = re.compile(r"[.?!](?<!e\.g\.)(?<!i\.e\.)(?<!al\.)[”\"')*_]*\s+(?![a-z])")
# A paragraph ends at an empty line, a list's entry where the next begins.
_PARAGRAPH_END = re.compile(r"\n\s*\n|\n(?= *(?:[-*]|\d+\.) )")
_ENTRY = re.compile(r"^ *(?:[-*]|\d+\.) +")


def quote(markdown: str, name: str, address: str) -> str:
    """Markdown of page `name` for a page from which it is reached at `address`.

    Marks lose their ids and name the page that backs them; claims and links lead there.
    """

    def mark(match: re.Match[str]) -> str:
        attrs = attributes(match["attrs"])
        if not set(attrs.get("class", "").split()) & set(MARK_KINDS):
            return match[0]
        kept = re.sub(r"(^|\s)#[\w-]+", r"\1", match["attrs"])
        bold = f'**{match["text"]}**{{{kept}data-from="{name}" }}'
        return f"[{bold}]({address}#{attrs['id']})" if attrs.get("id") else bold

    def link(match: re.Match[str]) -> str:
        if not (match["path"] or match["anchor"]):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(address), match["path"])) if match["path"] else ""
        return f"]({path or address}{match['anchor'] or ''})"

    return MARK.sub(mark, _LINK.sub(link, markdown))


def sentences(markdown: str) -> list[str]:
    """A paragraph's sentences, each on one line, with their marks."""
    held: list[str] = []

    def hold(match: re.Match[str]) -> str:
        held.append(match[0])
        return f"\ue001{len(held) - 1}\ue002"

    text = " ".join(_KEPT_WHOLE.sub(hold, markdown).split())
    ends = [0, *(found.end() for found in _SENTENCE_END.finditer(text)), len(text)]
    parts = [text[start:end].strip() for start, end in pairwise(ends)]
    return [_HELD.sub(lambda match: held[int(match[1])], part) for part in parts if part]


def claim_mark(claim_id: str) -> tuple[str, str]:
    """The mark of a claim as its page writes it, and that page's name.

    Raises:
        KeyError: No page states a claim of that id.
    """
    claim = claims.find(claim_id)
    if claim is None:
        raise KeyError(f"no page states a claim {claim_id!r}")
    page = read_page(claim.page)
    found = next(m for m in MARK.finditer(page.source) if attributes(m["attrs"]).get("id") == claim_id)
    return found[0], claim.page


def sentence_of(page: Page, claim_id: str) -> str:
    """The sentence of a page that states a claim of its own.

    Raises:
        KeyError: The page states no claim of that id.
    """
    for paragraph in _PARAGRAPH_END.split("\n".join(text for _, text in page.prose)):
        for sentence in sentences(_ENTRY.sub("", paragraph)):
            if any(attributes(m["attrs"]).get("id") == claim_id for m in MARK.finditer(sentence)):
                return sentence
    raise KeyError(f"{page.name} states no claim {claim_id!r}")
