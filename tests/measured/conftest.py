"""A small project of its own, recorded once for real; every test gets a copy that it may spoil."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from measured import checks, project, recorder, recording, values
from measured.page import Page, read_page

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(__file__).parent / "sample"
PAGE = "kv_cache/sample"
PRIMARY = "here"


@dataclass(frozen=True)
class Mini:
    """The sample project in a folder of its own, and what tests do with it."""

    root: Path

    @property
    def page_path(self) -> Path:
        return self.root / "docs" / f"{PAGE}.md"

    @property
    def book_path(self) -> Path:
        """The primary recording of the sample page."""
        return self.root / "recordings" / PRIMARY / f"{PAGE}.ipynb"

    def page(self, name: str = PAGE) -> Page:
        return read_page(name)

    def replace(self, old: str, new: str, path: Path | None = None) -> int:
        """Change a file's one occurrence of a text (the page's by default); the line it stood on."""
        path = path or self.page_path
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {path}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        return text[: text.index(old)].count("\n") + 1

    def append(self, text: str) -> int:
        """Add lines before the page's sources; the line on which they begin."""
        return self.replace("## Sources\n", f"{text}\n\n## Sources\n")

    def book(self) -> NotebookNode:
        return nbformat.read(self.book_path, as_version=4)

    def write_book(self, book: NotebookNode, *, rehash: bool = False) -> None:
        """Put a changed recording in place; `rehash` also renews the hash of its outputs, as a forger would."""
        if rehash:
            book.metadata["measured"]["outputs_sha256"] = recording.outputs_digest(book)
        before = self.book_path.stat().st_mtime_ns
        self.book_path.write_text(nbformat.writes(book) + "\n", encoding="utf-8")
        os.utime(self.book_path, ns=(before + 10**9, before + 10**9))

    def problems(self, *names: str) -> list[str]:
        """What `measured check` finds on the sample page, or on these."""
        return [str(p) for p in checks.check_pages(list(names or [PAGE]))]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the command line in a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "measured", *arguments],
            cwd=self.root,
            env={**os.environ, "MEASURED_ROOT": str(self.root), "COLUMNS": "200", **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )


def cell_named(book: NotebookNode, check: str, name: str) -> NotebookNode:
    """The generated check cell of a value, a series or a claim."""
    for cell in book.cells:
        about = cell.metadata.get("measured", {})
        if about.get("check") == check and about.get("name") == name:
            return cell
    raise LookupError(f"no check of {check} {name}")


def bundle_with(book: NotebookNode, mime: str, holds: Callable[[dict], bool]) -> dict:
    """The first bundle of a MIME type in a notebook for which `holds` is true."""
    found = (
        o["data"][mime]
        for c in book.cells
        if c.cell_type == "code"
        for o in c.outputs
        if mime in o.get("data", {}) and holds(o["data"][mime])
    )
    return next(found)


@pytest.fixture(scope="session")
def cell() -> Callable[[NotebookNode, str, str], NotebookNode]:
    """`cell(book, "value", "box_bytes")`: a generated check cell."""
    return cell_named


@pytest.fixture(scope="session")
def bundle() -> Callable[[NotebookNode, str, Callable[[dict], bool]], dict]:
    """`bundle(book, mime, condition)`: a recorded bundle."""
    return bundle_with


@pytest.fixture(scope="session")
def lock_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where these tests' timing lock lies; a short path, since socket files stand in it too."""
    tmp_path_factory.getbasetemp()  # pytest's own folder stays where it was
    folder = Path(tempfile.mkdtemp(prefix="ma-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_timing_lock(lock_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Nothing here times anything, so nothing here waits for a timer of this machine, nor it for us."""
    monkeypatch.setenv("TMPDIR", str(lock_folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    clock = sys.modules.get("snippets.instruments.clock")
    if clock:
        clock._lock.cache_clear()
    yield lock_folder
    clock = sys.modules.get("snippets.instruments.clock")
    if clock:
        clock._lock.cache_clear()


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample project, recorded on two machines: this one, and this one on one thread."""
    root = tmp_path_factory.mktemp("sample") / "project"
    shutil.copytree(SAMPLE, root, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(
        ROOT / "snippets" / "instruments",
        root / "snippets" / "instruments",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(ROOT / "snippets" / "__init__.py", root / "snippets" / "__init__.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEASURED_ROOT", str(root))
        here = recorder.machine_for(PRIMARY, 2, "This machine")
        recorder.record_page("kv_cache/index", here)
        recorder.record_page(PAGE, here)
        one = recorder.machine_for("one-thread", 1, "This machine, one thread")
        recorder.record_page(PAGE, one)
    return root


@pytest.fixture
def mini(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mini]:
    """A fresh copy of the recorded sample project, which the tooling takes for its own."""
    root = tmp_path / "project"
    shutil.copytree(recorded, root)
    monkeypatch.setenv("MEASURED_ROOT", str(root))
    monkeypatch.chdir(root)
    yield Mini(project.root())
    values.clear()
