"""The built site, a server for it, and Chromium: each made once and shared by every test of this folder."""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from filelock import FileLock
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    Response,
    sync_playwright,
)

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM_ARGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _source_pages() -> list[str]:
    """Every Markdown page as `folder/stem`: what the site must hold."""
    docs = ROOT / "docs"
    found = [p.relative_to(docs) for p in docs.rglob("*.md") if "notebooks" not in p.parts]
    return sorted(p.with_suffix("").as_posix() for p in found)


def _fence_count(name: str) -> int:
    """How many cells a page has: its `python` fences that are not indented."""
    lines = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").splitlines()
    return sum(line.startswith("```python") for line in lines)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test for every page (`page_name`), or for every page with code that runs (`code_page`)."""
    if "page_name" in metafunc.fixturenames:
        metafunc.parametrize("page_name", _source_pages())
    if "code_page" in metafunc.fixturenames:
        metafunc.parametrize("code_page", [name for name in _source_pages() if _fence_count(name)])


class Source:
    """What the repository holds, read without the project's own tooling: the tests' second way."""

    root = ROOT
    pages = staticmethod(_source_pages)
    fence_count = staticmethod(_fence_count)

    def recording(self, name: str, machine: str) -> dict | None:
        """A page's recording on one machine, as plain JSON."""
        path = ROOT / "recordings" / machine / f"{name}.ipynb"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def machines_of(self, name: str) -> list[str]:
        """Machines that recorded a page, the primary first."""
        settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
        primary = settings["tool"]["measured"]["primary"]
        found = [p.name for p in (ROOT / "recordings").iterdir() if self.recording(name, p.name)]
        return sorted(found, key=lambda machine: (machine != primary, machine))

    def outputs_by_fence(self, name: str, machine: str) -> list[list[dict]]:
        """Outputs of a recording's own cells, one list a fence: without set-up and check cells."""
        notebook = self.recording(name, machine) or {"cells": []}
        cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
        return [c["outputs"] for c in cells if not {"setup", "check"} & set(c["metadata"].get("measured", {}))]


@pytest.fixture(scope="session")
def source() -> Source:
    """The repository's pages and recordings."""
    return Source()


def run(*command: str, cwd: Path = ROOT, **env: str) -> None:
    """Run a command of the project's environment; a failure shows what it printed."""
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", **env}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    if done.returncode:
        told = (done.stdout + done.stderr)[-6000:]
        pytest.fail(f"{' '.join(command)} exited with {done.returncode}:\n{told}", pytrace=False)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this test run that all its worker processes see: what is built there is built once."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@contextmanager
def _built_once(folder: Path) -> Iterator[bool]:
    """Hold the folder's lock; true for the first of the workers, unless the first one failed."""
    with FileLock(folder.with_suffix(".lock")):
        done = folder.with_suffix(".done")
        yield not done.exists()
        done.touch()


@pytest.fixture(scope="session")
def site(shared_folder: Path) -> Path:
    """The site, built strictly by MkDocs after its generated files were written."""
    folder = shared_folder / "site"
    with _built_once(folder) as first:
        if first:
            run("measured", "build")
            run("mkdocs", "build", "--strict", "--site-dir", str(folder))
    return folder


@pytest.fixture(scope="session")
def zensical_site(shared_folder: Path, site: Path) -> Path:
    """The site as Zensical builds it from the same mkdocs.yml, in a copy of the project.

    A copy because Zensical writes only below the project's folder, and keeps a cache there that recordings
    do not invalidate. Asks for `site` so that generated files are there.
    """
    project = shared_folder / "zensical"
    with _built_once(project) as first:
        if first:
            for name in ("docs", "snippets", "recordings", "measured"):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, project / name, ignore=ignored, dirs_exist_ok=True)
            for name in ("mkdocs.yml", "pyproject.toml", "README.md"):
                shutil.copy(ROOT / name, project / name)
            run("zensical", "build", "--clean", "--strict", cwd=project, MEASURED_ROOT=str(project))
    return project / "site"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the tests look at every response themselves."""


@pytest.fixture(scope="session")
def base_url(site: Path) -> Iterator[str]:
    """Address of a plain file server over the built site."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(site)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """The system's Chromium. Missing, it fails: a browser test that is skipped has shown nothing."""
    named = os.environ.get("CHROMIUM")
    path = named or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.fail("no Chromium found. Install it with: apt-get install chromium", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """One browser context and what went wrong in it."""

    context: BrowserContext
    page: Page
    base_url: str
    console: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def open(self, name: str) -> Page:
        """Open a page of the site by its name and wait until the theme's script has run."""
        response = self.page.goto(f"{self.base_url}/{name}.html")
        assert response is not None and response.ok, f"{name}: {response and response.status}"
        self.page.wait_for_load_state("load")
        self.page.wait_for_function("document.documentElement.classList.contains('js')")
        return self.page


class Visitor:
    """Opens browser contexts for one test and closes them after it."""

    def __init__(self, browser: Browser, base_url: str) -> None:
        self.browser, self.base_url = browser, base_url
        self.contexts: list[BrowserContext] = []

    def __call__(self, *, width: int = 1280, dark: bool = False) -> Visit:
        context = self.browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        self.contexts.append(context)
        visit = Visit(context, context.new_page(), self.base_url)

        def on_console(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                visit.console.append(f"{visit.page.url}: {message.text}")

        def on_request(request: Request) -> None:
            if not request.url.startswith((self.base_url, "data:", "blob:")):
                visit.foreign.append(request.url)

        def on_response(response: Response) -> None:
            if response.status >= 400:
                visit.missing.append(f"{response.status} {response.url}")

        visit.page.on("console", on_console)
        visit.page.on("pageerror", lambda error: visit.console.append(f"{visit.page.url}: {error}"))
        visit.page.on("request", on_request)
        visit.page.on("response", on_response)
        return visit


@pytest.fixture
def visitor(chromium: Browser, base_url: str) -> Iterator[Visitor]:
    """Call it for a fresh visit: `visitor(width=360, dark=True)`."""
    made = Visitor(chromium, base_url)
    yield made
    for context in made.contexts:
        context.close()
