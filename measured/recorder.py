"""Run pages on this machine and keep what they showed."""

from __future__ import annotations

import datetime
import difflib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from measured import notebook as notebooks
from measured import project
from measured import recording as recordings
from measured.page import Page, PageError, read_page

CELL_TIMEOUT_SECONDS = 600
_MACHINE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# Run in the page's kernel after its last cell: what the run loaded and where it ran.
_PROBE = """
import json as _json, sys as _sys, pathlib as _pathlib
from snippets.instruments import device as _device
_root = _pathlib.Path({root!r})
_files = [getattr(m, "__file__", None) for m in list(_sys.modules.values())]
_paths = sorted({{_pathlib.Path(f).resolve() for f in _files if f}})
_models = _sys.modules.get("snippets.models.files")
print(_json.dumps({{
    "modules": [p.relative_to(_root).as_posix() for p in _paths
                if p.suffix == ".py" and any(p.is_relative_to(_root / d) for d in ("snippets", "measured"))],
    "model_files": _models.loaded() if _models else {{}},
    "machine": _device.describe(),
}}))
"""


class RecordError(RuntimeError):
    """A page could not be recorded; its old recording is whole."""


class BudgetError(RecordError):
    """A page took longer than it was given; its old recording is whole."""


class TimeUpError(RuntimeError):
    """The time for all pages is over and some are left; what was finished is kept."""


@dataclass(frozen=True)
class Machine:
    """A machine that records: its name, how the site shows it, and its threads (0: the library's own choice)."""

    name: str
    label: str
    threads: int


def machine_for(name: str, threads: int | None, label: str | None) -> Machine:
    """The machine of that name as `recordings/machines.toml` has it, or a new one entered there.

    Raises:
        RecordError: The name is malformed, or belongs to another processor than this one.
    """
    if not _MACHINE_NAME.fullmatch(name):
        raise RecordError(f"machine {name!r}: use lower-case words and digits joined by hyphens, such as h100-sxm")
    from snippets.instruments.device import describe

    here = describe()
    known = recordings.machine_table(project.root())
    if name in known:
        entry = known[name]
        if entry["processor"] != here["name"]:
            raise RecordError(
                f"machine {name!r} is a {entry['processor']}, this is a {here['name']}; "
                "record under a name of its own: measured record --machine NAME"
            )
        if threads not in (None, entry["threads"]):
            raise RecordError(f"machine {name!r} records on {entry['threads']} threads; use another name for {threads}")
        return Machine(name, entry["label"], entry["threads"])
    if label is None and threads is None and difflib.get_close_matches(name, known, cutoff=0.8):
        raise project.UnknownNameError("machine", name, list(known), "; to enter a new machine, give its --label")
    threads = threads or int(here["threads"])
    noun = "thread" if threads == 1 else "threads"
    label = label or (f"{here['name']}, {threads} {noun}" if here["kind"] == "cpu" else str(here["name"]))
    table = project.root() / "recordings" / "machines.toml"
    before = (
        table.read_text(encoding="utf-8")
        if table.is_file()
        else "# Machines that record. Written by `measured record`.\n"
    )
    text = f'\n[{name}]\nlabel = "{label}"\nprocessor = "{here["name"]}"\nthreads = {threads}\n'
    project.write_atomically(table, before + text)
    recordings.machine_table.cache_clear()
    return Machine(name, label, threads)


def stale_pages(names: list[str], machine: str) -> dict[str, list[str]]:
    """Pages without a fresh recording on a machine, each with the reasons."""
    found = {}
    for name in names:
        page = read_page(name)
        if not page.cells:
            continue
        path = recordings.path_of(name, machine)
        if not path.is_file():
            found[name] = ["not recorded yet"]
            continue
        have = recordings.Recording(machine, path)
        try:
            reasons = recordings.staleness(page, have)
        except PageError as error:
            if error.path != path:
                raise
            reasons = [error.problem]
        if not reasons and not recordings.checks_current(page, have):
            reasons = ["claims"]
        if reasons:
            found[name] = reasons
    return found


def cheapest_first(names: list[str]) -> list[str]:
    """Pages by the seconds of their quickest recording on any machine; those without one last, in their order."""

    def seconds(have: recordings.Recording) -> float:
        try:
            return float(have.about.get("seconds", math.inf))
        except PageError:  # unreadable: its page is recorded anew
            return math.inf

    return sorted(names, key=lambda name: min(map(seconds, recordings.recordings(name)), default=math.inf))


def record_page(
    name: str,
    machine: Machine,
    progress: Callable[[int, int], None] = lambda done, of: None,
    *,
    budget_seconds: float = math.inf,
) -> float:
    """Execute a page here and write its recording in one step; seconds it took.

    Args:
        name: The page.
        machine: Whose recording it becomes.
        progress: Called with cells done and cells in all.
        budget_seconds: What it may take, from its kernel's start; the page is stopped there.

    Raises:
        BudgetError: It took longer. The old recording is untouched.
        RecordError: A cell failed; names page, cell and line. The old recording is untouched.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    page = read_page(name)
    notebook = notebooks.to_notebook(page)
    count = len(notebook.cells)
    folder = project.root()
    started = time.monotonic()

    def left(_cell: object = None) -> float:
        return min(CELL_TIMEOUT_SECONDS, max(started + budget_seconds - time.monotonic(), 0.1))  # none at all: no limit

    client = NotebookClient(
        notebook,
        timeout_func=left,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    kernel = client.create_kernel_manager()
    try:
        with _sockets(kernel), client.setup_kernel(env=kernel_environment(machine.threads)):
            for index, cell in enumerate(list(notebook.cells)):
                progress(index, count)
                if cell.cell_type == "code":
                    client.execute_cell(cell, index)
            found = _probe(client, folder)
            machine_class = str(found["machine"]["class"])
            for cell in notebooks.check_cells(page, notebook, machine_class):
                notebook.cells.append(cell)
                client.execute_cell(cell, len(notebook.cells) - 1)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        if isinstance(error, CellTimeoutError) and time.monotonic() - started >= budget_seconds:
            raise BudgetError(f"docs/{name}.md: stopped after its budget of {budget_seconds:.0f} s") from None
        raise RecordError(_where(page, notebook, error)) from None
    seconds = time.monotonic() - started
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    _number(notebook)
    notebook.metadata["measured"] = _about(page, machine, found, notebook, seconds)
    path = recordings.path_of(name, machine.name)
    project.write_atomically(path, nbformat.writes(notebook) + "\n")
    return seconds


@contextmanager
def _sockets(kernel: Any) -> Iterator[None]:
    """Socket files in a folder that no other user can enter, where TCP is open to all of them."""
    with tempfile.TemporaryDirectory(prefix=f"measured-{os.getpid()}-") as folder:
        if os.name == "posix":
            kernel.transport, kernel.ip = "ipc", f"{folder}/kernel"
        yield


def kernel_environment(threads: int, *, free_cores: bool = False) -> dict[str, str]:
    """Environment of a page's kernel: threads set before torch loads, the timing lock held by the caller.

    With `free_cores` its comparisons leave busy cores to others; without, as when recording, never.
    """
    from snippets.instruments.clock import FREE_CORES, LOCK_HELD

    environment = {**os.environ, "MEASURED_ROOT": str(project.root()), "PYTHONHASHSEED": "0", LOCK_HELD: "1"}
    environment[FREE_CORES] = "1" if free_cores else ""
    if threads:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return environment


@contextmanager
def timing() -> Iterator[None]:
    """Hold the machine-wide timing lock while pages run; their kernels inherit it."""
    from snippets.instruments.clock import timing_lock

    with timing_lock():
        _clear_remains()
        yield


def _clear_remains() -> None:
    """Take away what a killed run left: the folder of its sockets, and a file that it was writing."""
    import psutil

    folders = [p for p in Path(tempfile.gettempdir()).glob("measured-*-*") if re.match(r"measured-\d+-", p.name)]
    files = list((project.root() / "recordings").rglob(".*.tmp"))
    for path in [*folders, *files]:
        owner = re.search(r"^measured-(\d+)-|\.(\d+)\.tmp$", path.name)
        if owner is None or psutil.pid_exists(int(owner[1] or owner[2])):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _probe(client: Any, folder: Path) -> dict[str, Any]:
    cell = nbformat.v4.new_code_cell(_PROBE.format(root=str(folder)))
    client.nb.cells.append(cell)
    client.execute_cell(cell, len(client.nb.cells) - 1, store_history=False)
    client.nb.cells.pop()
    return json.loads("".join(o["text"] for o in cell.outputs if o.get("name") == "stdout").splitlines()[-1])


def _about(
    page: Page, machine: Machine, found: dict[str, Any], notebook: NotebookNode, seconds: float
) -> dict[str, Any]:
    modules = {p: recordings.code_digest((project.root() / p).read_text(encoding="utf-8")) for p in found["modules"]}
    described = dict(found["machine"])
    versions = {k: described.pop(k) for k in ("torch", "python") if k in described}
    return {
        "page": page.name,
        "machine": {**described, "id": machine.name, "label": machine.label},
        "versions": versions,
        "recorded": datetime.date.today().isoformat(),
        "seconds": round(seconds, 1),
        "modules": modules,
        "model_files": found["model_files"],
        "outputs_sha256": recordings.outputs_digest(notebook),
    }


def _number(notebook: NotebookNode) -> None:
    """Execution counts in order, so that the probe leaves no gap."""
    count = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = count


def _where(page: Page, notebook: NotebookNode, error: Exception) -> str:
    """Page, cell and line of a failure, and its last line."""
    failed = next(
        (
            i
            for i, c in enumerate(notebook.cells)
            if c.cell_type == "code" and any(o.output_type == "error" for o in c.outputs)
        ),
        None,
    )
    if failed is None:
        return f"docs/{page.name}.md: {type(error).__name__}: {str(error).strip().splitlines()[0]}"
    cell = notebook.cells[failed]
    output = next(o for o in cell.outputs if o.output_type == "error")
    said = f"{output.ename}: {output.evalue}"
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(output.traceback))
    lines = re.findall(r"Cell In\[\d+\], line (\d+)|^-+> (\d+)", trace, re.M)
    inner = int(next((a or b for a, b in lines), 1))
    about = cell.metadata["measured"]
    if "check" in about:
        return f"docs/{page.name}.md: check of {about['check']} {about['name']}: {said}"
    ordinal = sum(
        1 for c in notebook.cells[: failed + 1] if c.cell_type == "code" and "fence" in c.metadata["measured"]
    )
    fence = page.cells[ordinal - 1] if ordinal else None
    text = cell.source.splitlines()[inner - 1].strip() if inner <= len(cell.source.splitlines()) else ""
    line = fence.line if fence else 1
    if fence and text and text in fence.body:
        line += 1 + next(i for i, row in enumerate(fence.body.splitlines()) if text in row)
    return f"docs/{page.name}.md:{line}: cell {ordinal}, its line {inner} ({text}): {said}"


__all__ = [
    "BudgetError",
    "Machine",
    "PageError",
    "RecordError",
    "TimeUpError",
    "cheapest_first",
    "machine_for",
    "record_page",
    "stale_pages",
    "timing",
]
