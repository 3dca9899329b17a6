"""`claims.json`: every claim for programs, with its bound, its values by machine and what became of it.

The fields are described for readers in docs/claims_json.md and for programs in docs/claims.schema.json.
"""

from __future__ import annotations

import re
from typing import Any

from measured import claims, expression, project, quotes, recording, weave
from measured.page import MARK, Claim, Page, includes, read_page

VERSION = 2
"""Raised when a field goes or changes its meaning; a field that is added raises nothing."""

_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def document() -> dict[str, Any]:
    """The content of `claims.json`; every text in it is plain, every value in its base unit."""
    table = recording.machine_table(project.root())
    return {
        "version": VERSION,
        "primary": project.primary_machine(),
        "machines": {name: table.get(name, {}) for name in recording.machines()},
        "claims": [_entry(claim) for claim in claims.all_claims()],
    }


def _entry(claim: Claim) -> dict[str, Any]:
    page, names = read_page(claim.page), sorted(expression.names(claim.check))
    fresh = [each for each in recording.recordings(claim.page) if not recording.staleness(page, each)]
    return {
        "id": claim.id,
        "page": claim.page,
        "url": f"{claim.page}.html#{claim.id}",
        "claim": claim.text,
        "sentence": sentence(page, claim),
        "class": claim.value_class,
        "bound": claim.check,
        "null": claim.null,
        "needs": claim.needs.split(),
        "tolerance": claim.tolerance,
        "state": weave.claim_state(claim),
        "verdicts": [
            {"statement": verdict.statement, "status": verdict.status, "as": label}
            for verdict in page.verdicts
            for label, claim_id in verdict.evidence
            if claim_id == claim.id
        ],
        "values": {each.machine: {n: each.values[n] for n in names if n in each.values} for each in fresh},
        "source": {"page": f"docs/{claim.page}.md", "line": claim.line, "code": _code(page)},
    }


def _code(page: Page) -> list[str]:
    """What measured a page's values: what it includes and imports of its topic, or models where that is nothing."""
    have = recording.primary(page.name)
    ran = [name for name in (have.about.get("modules", {}) if have else {}) if not name.endswith("__init__.py")]
    own = {name for name in ran if name.startswith(f"snippets/{page.name.split('/')[0]}/")} | set(includes(page))
    return sorted(own) or [name for name in ran if name.startswith("snippets/models/")]


def sentence(page: Page, claim: Claim) -> str:
    """The sentence that a claim stands in, without markup.

    Args:
        page: Where it stands.
        claim: One of the page's claims.
    """
    text = _LINK.sub(r"\1", MARK.sub(r"\g<text>", quotes.sentence_of(page, claim.id)))
    return " ".join(text.replace("**", "").replace("`", "").split())
