"""Every test in order, phase by phase: `python -m tests.phases` is what `make test` and CI run.

One phase after another and nothing beside them, since some tests time things.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sys.executable
console = Console(width=110)


@dataclass
class Phase:
    """One command, and what came of it."""

    name: str
    command: list[str]
    fast: bool = True
    seconds: float = 0.0
    passed: int = 0
    failed: int = 0
    skips: list[str] = field(default_factory=list)


def phases() -> list[Phase]:
    """All phases in order; `fast` ones need neither model, timing nor browser."""
    unit = ["-m", "not models and not timing and not browser", "--ignore=tests/site"]
    heavy = ["-m", "(models or timing) and not browser", "--ignore=tests/site"]
    return [
        Phase("lint", [PYTHON, "-m", "ruff", "check", "."]),
        Phase("format", [PYTHON, "-m", "ruff", "format", "--check", "."]),
        Phase("types", [PYTHON, "-m", "mypy"]),
        Phase("pages, static", [PYTHON, "-m", "measured", "check"]),
        # Nothing there is timed: a process for each of two cores, a file in one of them, since fixtures are a file's.
        Phase("unit tests", [PYTHON, "-m", "pytest", "tests", *unit, "--numprocesses=2", "--dist=loadfile"]),
        Phase("models and timing", [PYTHON, "-m", "pytest", "tests", *heavy], fast=False),
        Phase("recordings, run again", [PYTHON, "-m", "measured", "nbval"], fast=False),
        Phase("site and browser", [PYTHON, "-m", "pytest", "tests/site", "--numprocesses=2"], fast=False),
    ]


def run(phase: Phase) -> None:
    """Run one phase, echo its output, and count."""
    console.rule(f"[bold]{phase.name}")
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        is_pytest = "pytest" in phase.command
        extra = [f"--junitxml={report}", "-p", "no:cacheprovider", "-q"] if is_pytest else []
        started = time.monotonic()
        process = subprocess.Popen(
            [*phase.command, *extra], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        lines = []
        for line in process.stdout or []:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line)
        code = process.wait()
        phase.seconds = time.monotonic() - started
        if report.is_file():
            _count(report, phase)
        elif counted := re.search(r"^(\d+) passed, (\d+) failed$", "".join(lines), re.M):
            phase.passed, phase.failed = int(counted[1]), int(counted[2])
        else:
            phase.passed = int(code == 0)
        if code and not phase.failed:
            phase.failed = 1


def _count(report: Path, phase: Phase) -> None:
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        problem = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            phase.passed += 1
        elif problem.tag == "skipped":
            phase.skips.append(f"{case.get('classname')}::{case.get('name')}: {problem.get('message')}")
        else:
            phase.failed += 1


def main() -> int:
    """Run the phases, print the table of time and the skips, end on one line of totals."""
    parser = argparse.ArgumentParser(description=__doc__, epilog="Example: python -m tests.phases --fast")
    parser.add_argument("--fast", action="store_true", help="only what needs neither model, timing nor browser")
    chosen = [p for p in phases() if p.fast or not parser.parse_args().fast]
    for phase in chosen:
        run(phase)
    table = Table(title="Time by phase", title_justify="left")
    for heading in ("phase", "seconds", "passed", "failed", "skipped"):
        table.add_column(heading, justify="left" if heading == "phase" else "right")
    for phase in chosen:
        table.add_row(phase.name, f"{phase.seconds:.1f}", str(phase.passed), str(phase.failed), str(len(phase.skips)))
    table.add_row("all", f"{sum(p.seconds for p in chosen):.1f}", "", "", "")
    console.print(table)
    skips = [skip for phase in chosen for skip in phase.skips]
    for skip in skips:
        console.print(f"skipped {skip}", markup=False, highlight=False, soft_wrap=True)
    failed = sum(p.failed for p in chosen)
    print(f"{sum(p.passed for p in chosen)} passed, {failed} failed, {len(skips)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
