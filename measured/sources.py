"""`docs/sources.yml`: the numbers that pages cite, and the papers and posts they come from."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

from measured import project


class SourceError(ValueError):
    """An entry of sources.yml that lacks what a reader needs to look it up."""


def load() -> dict[str, dict[str, Any]]:
    """Every source by key: `where` and `link`; cited numbers also `number`, `unit` and `shown` (both as text).

    Raises:
        SourceError: An entry lacks a field, or its link is not https.
    """
    path = project.root() / "docs" / "sources.yml"
    return _load(path, path.stat().st_mtime_ns) if path.is_file() else {}


@cache
def _load(path: Path, _mtime: int) -> dict[str, dict[str, Any]]:
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    for key, entry in entries.items():
        lacking = [f for f in ("where", "link", *(["unit"] if "number" in entry else [])) if f not in entry]
        if lacking:
            raise SourceError(f"docs/sources.yml: {key} lacks {', '.join(lacking)}")
        if not str(entry["link"]).startswith("https://"):
            raise SourceError(f"docs/sources.yml: {key}: the link must be https")
        if "number" not in entry:
            continue
        number = entry["number"]
        text = number if isinstance(number, str) else f"{number:,}"
        unit = str(entry["unit"])
        entry["shown"] = text + ("" if not unit or unit == "×" else " ") + unit
    return entries
