"""Lighthouse's four scores of a question page and the home page, served compressed; fails below the goal.

Needs Node.js and Chromium; npm fetches Lighthouse itself. Build first: `make site`.

Run: .venv/bin/python benchmarks/lighthouse.py [PAGE…] [--desktop] [--site FOLDER] [--report FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.compressed_server import serve  # noqa: E402  (the folder is no installed package)

LIGHTHOUSE = "lighthouse@12.8.2"  # the last that runs on Node.js 18 and 20
CATEGORIES = ("performance", "accessibility", "best-practices", "seo")
GOAL = 95


def audit(url: str, chromium: str, *, desktop: bool) -> dict[str, Any]:
    """Lighthouse's report on an address.

    Raises:
        RuntimeError: Lighthouse failed; the message is its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            "npx", "--yes", LIGHTHOUSE, url, "--quiet", "--output=json", f"--output-path={report}",
            f"--only-categories={','.join(CATEGORIES)}", "--chrome-flags=--headless=new --no-sandbox --disable-gpu",
        ]  # fmt: skip
        command += ["--preset=desktop"] if desktop else []
        done = subprocess.run(command, env={**os.environ, "CHROME_PATH": chromium}, capture_output=True, text=True)
        if done.returncode or not report.is_file():
            raise RuntimeError(f"{LIGHTHOUSE}: {(done.stderr or done.stdout).strip()[-800:]}")
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return found


def lost(report: dict[str, Any]) -> list[str]:
    """Audits that cost a score, the dearest first."""
    found = []
    for category in CATEGORIES:
        for each in report["categories"][category]["auditRefs"]:
            one = report["audits"][each["id"]]
            if each["weight"] and one["score"] is not None and one["score"] < 0.9:
                gone = (1 - one["score"]) * each["weight"]
                found.append((gone, f"{category}: {one['title']} {one.get('displayValue', '')}".strip()))
    return [text for _, text in sorted(found, reverse=True)]


def main() -> int:
    """Audit the pages, print a table, and fail where a score is below the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=["kv_cache/bytes_per_token", "index"], metavar="PAGE")
    parser.add_argument("--desktop", action="store_true", help="a desktop's screen and network, not a phone's")
    parser.add_argument("--site", type=Path, default=ROOT / "site", help="the built site")
    parser.add_argument("--report", type=Path, help="keep Lighthouse's own reports in this folder")
    given = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    for missing, mend in (
        (not chromium, "no Chromium: run `make browser`, or name one: CHROMIUM=/path/to/it"),
        (not shutil.which("npx"), "no npx: install Node.js (Debian: apt-get install nodejs npm)"),
        (not (given.site / "index.html").is_file(), f"no site in {given.site}: run `make site`"),
    ):
        if missing:
            parser.error(mend)
    table = Table("page", *CATEGORIES, "KB on the way")
    notes, below = [], False
    with serve(given.site) as base:
        for page in given.pages:
            if not (given.site / f"{page}.html").is_file():
                parser.error(f"no page {page!r} in {given.site}: name it as topic/slug")
            report = audit(f"{base}/{page}.html", str(chromium), desktop=given.desktop)
            scores = [round(100 * report["categories"][name]["score"]) for name in CATEGORIES]
            below |= min(scores) < GOAL
            weight = report["audits"]["total-byte-weight"]["numericValue"] / 1000
            table.add_row(page, *map(str, scores), f"{weight:.0f}")
            notes += [f"{page}: {text}" for text in lost(report)]
            if given.report:
                given.report.mkdir(parents=True, exist_ok=True)
                (given.report / f"{page.replace('/', '-')}.json").write_text(json.dumps(report), encoding="utf-8")
    console = Console(width=120)
    console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    return int(below)


if __name__ == "__main__":
    sys.exit(main())
