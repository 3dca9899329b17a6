"""Recordings: a page executed on one machine, where they lie, what they hold, and whether they are fresh."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import tokenize
import tomllib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from measured import notebook as notebooks
from measured import page as pages
from measured import project
from measured.page import Page, PageError
from measured.values import SERIES_MIME


@dataclass(frozen=True)
class Recording:
    """One page's recording on one machine."""

    machine: str
    path: Path

    @cached_property
    def notebook(self) -> NotebookNode:
        try:
            return nbformat.read(self.path, as_version=4)
        except ValueError as error:
            problem = f"no notebook: {str(error).splitlines()[0]}"
            raise PageError(self.path, 1, problem, "run `measured record`, which writes it anew") from None

    @property
    def about(self) -> dict[str, Any]:
        """What the recorder wrote about the run: machine, versions, hashes, date, seconds."""
        return self.notebook.metadata.get("measured", {})

    @property
    def label(self) -> str:
        return self.about.get("machine", {}).get("label", self.machine)

    @cached_property
    def values(self) -> dict[str, float | int]:
        return notebooks.recorded_values(self.notebook)

    @cached_property
    def classes(self) -> dict[str, str]:
        """Class of each recorded value."""
        found = notebooks.bundles(self.notebook, notebooks.VALUES_MIME)
        return {name: b["class"] for b in found for name in b["values"]}

    @cached_property
    def series_classes(self) -> dict[str, str]:
        """Class of each recorded series."""
        return {b["name"]: b["class"] for b in notebooks.bundles(self.notebook, SERIES_MIME)}

    @cached_property
    def series(self) -> dict[str, dict[str, list]]:
        return {b["name"]: b["columns"] for b in notebooks.bundles(self.notebook, SERIES_MIME)}


def machines() -> list[str]:
    """Machines that have a recording, the primary first."""
    found = sorted(p.name for p in (project.root() / "recordings").glob("*") if p.is_dir())
    return sorted(found, key=lambda name: (name != project.primary_machine(), name))


def machine_or_fail(name: str) -> str:
    """The machine's name, if it has recordings.

    Raises:
        project.UnknownNameError: It has none.
    """
    if name not in machines():
        raise project.UnknownNameError("machine", name, machines())
    return name


def path_of(page_name: str, machine: str) -> Path:
    """Where a page's recording on a machine is kept."""
    return project.root() / "recordings" / machine / f"{page_name}.ipynb"


def recordings(page_name: str) -> list[Recording]:
    """A page's recordings, the primary first."""
    found = []
    for machine in machines():
        path = path_of(page_name, machine)
        if path.is_file():
            found.append(_load(machine, path, path.stat().st_mtime_ns))
    return found


def primary(page_name: str) -> Recording | None:
    """The recording that the prose quotes, if there is one."""
    machine = project.primary_machine()
    path = path_of(page_name, machine)
    return _load(machine, path, path.stat().st_mtime_ns) if path.is_file() else None


@cache
def _load(machine: str, path: Path, _mtime: int) -> Recording:
    return Recording(machine, path)


def staleness(page: Page, recording: Recording) -> list[str]:
    """Why a recording is not of today's code; empty where it is fresh. Prose never counts.

    Raises:
        PageError: An include of the page is missing.
    """
    about, reasons = recording.about, []
    cells = [pages.expand(f.body, page, f.line) for f in page.cells]
    if cells != notebooks.code_sources(recording.notebook):
        reasons.append("the page's code cells")
    for relative, digest in about.get("modules", {}).items():
        path = project.root() / relative
        if not path.is_file() or _digest_of(path, path.stat().st_mtime_ns) != digest:
            reasons.append(relative)
    # Hashes of packaged models are code of their loaders, so they count above; a reader's own model has none.
    reasons += [f"another {label}" for label in about.get("model_files", {}) if label.startswith("model ")]
    if not _torch_admitted(project.root(), about.get("versions", {}).get("torch", "")):
        reasons.append(f"torch {about.get('versions', {}).get('torch', 'unknown')}")
    return reasons


def checks_current(page: Page, have: Recording) -> bool:
    """Whether a recording's generated check cells are those that the page asks for today."""
    wanted = notebooks.check_cells(page, have.notebook, str(have.about.get("machine", {}).get("class", "")))
    present = [c for c in have.notebook.cells if "check" in c.metadata.get("measured", {})]
    # What a cell is and which class it counts for decide what nbval does with it, as much as its code.
    return [(c.cell_type, c.source, c.metadata["measured"]) for c in wanted] == [
        (c.cell_type, c.source, c.metadata["measured"]) for c in present
    ]


@cache
def _digest_of(path: Path, _mtime: int) -> str:
    try:
        return code_digest(path.read_text(encoding="utf-8"))
    except (SyntaxError, tokenize.TokenError):
        return "no Python"


def code_digest(source: str) -> str:
    """Hash of a module's code alone: comments, docstrings and blank lines change nothing.

    Works on lines and token positions, so that every Python version gives the same hash.
    """
    lines: list[str] = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                _blank(lines, first)
    kept = [line.rstrip() for line in lines if line.strip()]
    return hashlib.sha256("\n".join(kept).encode()).hexdigest()


def _blank(lines: list[str], docstring: ast.Expr) -> None:
    """Take a docstring out of the lines it stands on, and nothing else that stands there."""
    first, last = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
    before = lines[first].encode()[: docstring.col_offset].decode()
    after = lines[last].encode()[docstring.end_col_offset or 0 :].decode()
    lines[first : last + 1] = [before + after, *[""] * (last - first)]


def outputs_digest(notebook: NotebookNode) -> str:
    """Hash of every output of the page's own cells, so that an edited one is noticed."""
    plain = json.dumps(notebooks.page_outputs(notebook), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(plain.encode()).hexdigest()


@cache
def _torch_admitted(folder: Path, version: str) -> bool:
    """Whether pyproject.toml's range for torch admits the version that a recording was made with."""
    from packaging.requirements import Requirement

    for line in project.metadata(folder)["optional-dependencies"]["run"]:
        requirement = Requirement(line)
        if requirement.name == "torch":
            return bool(version) and requirement.specifier.contains(version.split("+")[0])
    return True


@cache
def machine_table(folder: Path) -> dict[str, dict[str, Any]]:
    """`recordings/machines.toml`: label and threads of each machine that records."""
    path = folder / "recordings" / "machines.toml"
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
