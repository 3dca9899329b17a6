"""Files that the site needs beside its pages: notebooks to view and download, and the claims for machines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from measured import claims, project, recording, weave
from measured.page import read_page

CLAIMS_VERSION = 1


def build() -> list[Path]:
    """Write `docs/notebooks/` and `docs/claims.json`; files that would not change are left alone.

    Returns:
        What was written or removed.
    """
    docs = project.root() / "docs"
    wanted: dict[Path, str] = {docs / "claims.json": json.dumps(claims_document(), indent=1, ensure_ascii=False) + "\n"}
    for name in project.page_names():
        for each in recording.recordings(name):
            wanted[docs / "notebooks" / each.machine / f"{name}.ipynb"] = each.path.read_text(encoding="utf-8")
    touched = []
    for path, text in wanted.items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            project.write_atomically(path, text)
            touched.append(path)
    for path in sorted((docs / "notebooks").rglob("*.ipynb")):
        if path not in wanted:
            path.unlink()
            touched.append(path)
    for folder, _, _ in os.walk(docs / "notebooks", topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)
    return touched


def claims_document() -> dict[str, Any]:
    """Every claim with its bound, class and recorded values by machine: the content of `claims.json`."""
    entries = []
    for claim in claims.all_claims():
        values = {
            each.machine: {n: each.values[n] for n in sorted(claims.expression.names(claim.check)) if n in each.values}
            for each in recording.recordings(claim.page)
            if not recording.staleness(read_page(claim.page), each)
        }
        entry = {
            "id": claim.id,
            "page": claim.page,
            "sentence": claim.text,
            "class": claim.value_class,
            "check": claim.check,
            "null": claim.null,
            "needs": claim.needs.split(),
            "tolerance": claim.tolerance,
            "state": weave.claim_state(claim),
            "values": values,
        }
        entries.append(entry)
    return {"version": CLAIMS_VERSION, "primary": project.primary_machine(), "claims": entries}
