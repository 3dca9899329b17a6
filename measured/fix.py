"""Rewrite numbers of the prose that the recording has moved past; claims are for people to reword."""

from __future__ import annotations

import re

from measured import claims, project, recording, sources
from measured import page as pages
from measured.expression import ExpressionError
from measured.page import Mark, Page


def fix_page(page: Page) -> list[tuple[int, str, str]]:
    """Rewrite stale measured, derived and cited numbers in a page's file.

    Returns:
        `(line, before, after)` of each number rewritten.

    Raises:
        ValueError: A mark names no recorded value, or its unit does not fit; nothing is written then.
    """
    have = recording.primary(page.name)
    values = have.values if have else {}
    changed: list[tuple[int, str, str]] = []
    lines = page.source.splitlines(keepends=True)
    for line in sorted({m.line for m in page.marks}):

        def one(match: re.Match[str], line: int = line) -> str:
            attrs = pages.attributes(match["attrs"])
            kinds = [k for k in attrs.get("class", "").split() if k in ("m", "exact", "cited")]
            if not kinds:
                return match[0]
            mark = Mark(kinds[0], match["text"], attrs, line)
            try:
                wanted = claims.expected_text(mark, values, sources.load())
            except (ExpressionError, ValueError, KeyError) as error:
                raise ValueError(f"docs/{page.name}.md:{line}: “{mark.text}”: {error}") from None
            if claims.mark_problem(mark, values, sources.load()) is None:
                return match[0]
            changed.append((line, mark.text, wanted))
            return f"**{wanted}**{{{match['attrs']}}}"

        lines[line - 1] = re.sub(r"\*\*(?P<text>[^*\n]+?)\*\*\{(?P<attrs>[^}\n]*)\}", one, lines[line - 1])
    if changed:
        project.write_atomically(page.path, "".join(lines))
    return changed
