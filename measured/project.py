"""Where the project's files are: its root, topics, pages and configuration."""

from __future__ import annotations

import difflib
import os
import tomllib
from functools import cache
from pathlib import Path

TOPICS = ("quantization", "kv_cache", "embeddings", "throughput")


class UnknownNameError(ValueError):
    """A page, topic or machine that does not exist; the message names the nearest that do."""

    def __init__(self, kind: str, name: str, known: list[str], mend: str = "") -> None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)[:5]
        hint = f"; nearest: {', '.join(near)}" if near else f"; there is no {kind} yet"
        super().__init__(f"no {kind} {name!r}{hint}{mend}")


def root() -> Path:
    """The project's folder: $MEASURED_ROOT, else the nearest above the working folder, else this package's.

    Raises:
        FileNotFoundError: No folder with a `[tool.measured]` table was found.
    """
    if named := os.environ.get("MEASURED_ROOT"):
        return Path(named).resolve()
    here = Path.cwd().resolve()
    for folder in (here, *here.parents, Path(__file__).resolve().parent.parent):
        if (folder / "pyproject.toml").is_file() and "measured" in _tools(folder):
            return folder
    raise FileNotFoundError(
        "no pyproject.toml with [tool.measured] here or above: run inside a clone, or set MEASURED_ROOT"
    )


@cache
def _tools(folder: Path) -> dict:
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("tool", {})


@cache
def metadata(folder: Path) -> dict:
    """The `[project]` table of a folder's pyproject.toml."""
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def configuration() -> dict:
    """The `[tool.measured]` table of pyproject.toml."""
    return _tools(root())["measured"]


def primary_machine() -> str:
    """Name of the machine whose recordings the prose quotes."""
    return configuration()["primary"]


def page_names() -> list[str]:
    """Every executed page as `topic/slug`; topic pages first in each topic."""
    docs = root() / "docs"
    changed = tuple(f.stat().st_mtime_ns if (f := docs / topic).is_dir() else 0 for topic in TOPICS)
    return list(_page_names(docs, changed))


@cache
def _page_names(docs: Path, _changed: tuple[int, ...]) -> tuple[str, ...]:
    """Read again only when a topic's folder has changed: every page asks, and a site may have very many."""
    names = []
    for topic in TOPICS:
        paths = sorted((docs / topic).glob("*.md"), key=lambda p: (p.stem != "index", p.stem))
        names += [f"{topic}/{path.stem}" for path in paths]
    return tuple(names)


def question_names(topic: str | None = None) -> list[str]:
    """Question pages alone, of one topic or of all."""
    return [n for n in page_names() if not n.endswith("/index") and (topic is None or n.startswith(f"{topic}/"))]


def page_path(name: str) -> Path:
    """Path of a page's Markdown.

    Raises:
        UnknownNameError: There is no such page.
    """
    known = page_names()
    name = name.removeprefix("docs/").removesuffix(".md").rstrip("/")
    if name in TOPICS:
        name += "/index"
    if name not in known:
        raise UnknownNameError("page", name, known)
    return root() / "docs" / f"{name}.md"


def resolve_pages(names: list[str] | None) -> list[str]:
    """Canonical names of the pages asked for; all of them when none is named."""
    if not names:
        return page_names()
    return [page_path(n).relative_to(root() / "docs").with_suffix("").as_posix() for n in names]


def topic_or_fail(topic: str) -> str:
    """The topic itself, if it is one of the four.

    Raises:
        UnknownNameError: It is none of them.
    """
    if topic not in TOPICS:
        raise UnknownNameError("topic", topic, list(TOPICS))
    return topic


def write_atomically(path: Path, text: str) -> None:
    """Write text by way of a temporary file beside it, so that a crash leaves the old file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
