"""Run recordings again under nbval: every cell must execute, every check and every claim must hold here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from measured import project, recorder, recording
from measured.page import read_page

CELL_TIMEOUT_SECONDS = 120
# More pages than this with only R failures is no noise.
RETRIED_PAGES = 2


@dataclass
class Rerun:
    """What one run of one page's recording showed."""

    page: str
    seconds: float
    cells: int = 0
    failures: list[tuple[str, str, str]] = field(default_factory=list)  # (kind and name, class, message)
    statuses: list[dict] = field(default_factory=list)
    output: str = ""

    @property
    def passed(self) -> bool:
        return not self.failures and self.cells > 0

    @property
    def only_ratios(self) -> bool:
        return bool(self.failures) and all(value_class == "R" for _, value_class, _ in self.failures)

    @property
    def not_applicable(self) -> list[str]:
        return [s["claim"] for s in self.statuses if s["status"] == "not applicable"]


def rerun_pages(names: list[str], say: Callable[[str], None]) -> tuple[list[Rerun], list[str]]:
    """Run the primary recordings of these pages; R failures get one second run of the whole page.

    Args:
        names: Pages, by canonical name.
        say: Where progress lines go.

    Returns:
        The runs that count, and what makes the whole fail (empty: all passed).
    """
    runs: list[Rerun] = []
    wrong: list[str] = []
    retried = 0
    with recorder.timing():
        for name in names:
            if not read_page(name).cells:
                continue
            have = recording.primary(name)
            if have is None:
                wrong.append(f"{name}: no recording on {project.primary_machine()}")
                continue
            run = run_again(name, have.path)
            say(_line(run))
            if run.only_ratios and retried < RETRIED_PAGES:
                retried += 1
                first = {what: message for what, _, message in run.failures}
                run = run_again(name, have.path)
                say(f"  second run, R alone had failed ({'; '.join(first.values())}): {_line(run).strip()}")
                say(f"  values of the second run: {_values(run, list(first))}")
            runs.append(run)
            wrong += [f"{name}: {what}: {message}" for what, _, message in run.failures]
            if not run.cells:
                wrong.append(f"{name}: nbval executed nothing\n{run.output}")
            if run.passed and not [s for s in run.statuses if s["status"] == "holds"]:
                wrong.append(f"{name}: no gated claim is applicable on this machine")
    expected = [n for n in names if read_page(n).cells]
    if len(runs) != len(expected):
        wrong.append(f"{len(runs)} pages executed, {len(expected)} exist")
    return runs, wrong


def run_again(name: str, path: Path, *, extra_path: Path | None = None) -> Rerun:
    """Run one recording under nbval in a process of its own.

    Args:
        name: The page.
        path: The notebook, whose folder becomes the working folder.
        extra_path: A folder put first on the kernel's import path (tests sabotage a snippet this way).
    """
    threads = recording.machine_table(project.root()).get(project.primary_machine(), {}).get("threads", 0)
    with tempfile.TemporaryDirectory() as scratch:
        report, side = Path(scratch) / "report.xml", Path(scratch) / "status.jsonl"
        environment = recorder.kernel_environment(min(threads, os.cpu_count() or 1), free_cores=True)
        environment["MEASURED_STATUS"] = str(side)
        if extra_path:
            environment["PYTHONPATH"] = str(extra_path)
        command = [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env"]
        command += ["--nbval-cell-timeout", str(CELL_TIMEOUT_SECONDS), "-q", "-p", "no:cacheprovider"]
        command += [
            "-o",
            "addopts=",
            "-o",
            "filterwarnings=",
            "-o",
            "junit_family=xunit2",
            f"--junitxml={report}",
            str(path),
        ]
        started = time.monotonic()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        run = Rerun(name, time.monotonic() - started, output=(done.stdout + done.stderr)[-4000:])
        if side.is_file():
            run.statuses = [json.loads(line) for line in side.read_text(encoding="utf-8").splitlines()]
        if report.is_file():
            try:
                _read_report(report, path, run)
            except ValueError as error:
                run.failures.append(("nbval", "", f"{path.name}: {error}"))
        if done.returncode != 0 and not run.failures:
            run.failures.append(("nbval", "", f"exit {done.returncode}: {run.output[-800:]}"))
    return run


def _read_report(report: Path, path: Path, run: Rerun) -> None:
    import nbformat

    code = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    run.cells = len(cases)
    for case in cases:
        problem = next((e for e in case if e.tag in ("failure", "error", "skipped")), None)
        if problem is None:
            continue
        index = int((case.get("name") or "Cell 0").split()[-1])
        about = code[index].metadata.get("measured", {}) if index < len(code) else {}
        what = f"{about['check']} {about['name']}" if "check" in about else f"cell {index}"
        run.failures.append((what, about.get("class", ""), _message(problem)))
    if len(cases) != len(code):
        run.failures.append(("nbval", "", f"{len(cases)} of {len(code)} cells executed"))


def _message(problem: ElementTree.Element) -> str:
    lines = [row.strip() for row in ((problem.get("message") or "") + "\n" + (problem.text or "")).splitlines()]
    telling = [row for row in lines if "Error:" in row or "ClaimFailed" in row or "mismatch" in row.lower()]
    return (telling or [row for row in lines if row] or ["failed"])[-1][:300]


def _values(run: Rerun, failed: list[str]) -> str:
    """What a run measured for the claims and values that an earlier run of it failed."""
    names = {what.split()[-1] for what in failed}
    found = {
        name: value
        for status in run.statuses
        for name, value in status["values"].items()
        if status["claim"] in names or name in names
    }
    again = [message for what, _, message in run.failures if what in failed]
    return "; ".join([f"{name} = {value:.4g}" for name, value in found.items() if value is not None] + again)


def _line(run: Rerun) -> str:
    absent = f", not applicable here: {', '.join(run.not_applicable)}" if run.not_applicable else ""
    return f"{run.page}: {run.cells} cells, {len(run.failures)} failed, {run.seconds:.1f} s{absent}"
