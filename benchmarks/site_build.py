"""How long does a site of many pages build, and how much of that is the weave?

Builds copies of the question pages with their recordings, once with `measured.weave` and once without, and prints
seconds, milliseconds a page over MkDocs' own cost, and kilobytes of HTML a page. Notebook views are left out: the
plugin that makes them keeps a cache of its own. Pages stay out of the navigation, which MkDocs would repeat on each.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
TOPICS = ("quantization", "kv_cache", "embeddings", "throughput")
EXAMPLES = """\
examples:
  python benchmarks/site_build.py                       the sizes of the goal
  python benchmarks/site_build.py --sizes 8 50          a quick look
  python benchmarks/site_build.py --sizes 100 --keep /tmp/many   leave the built pages to look at
"""


@dataclass(frozen=True)
class Build:
    """One size, built with the weave and without."""

    pages: int
    woven_seconds: float
    plain_seconds: float
    mean_kilobytes: float
    largest_kilobytes: float

    @property
    def milliseconds_a_page(self) -> float:
        """What the weave adds to each page."""
        return (self.woven_seconds - self.plain_seconds) / self.pages * 1e3


def question_pages(root: Path = ROOT) -> list[Path]:
    """The question pages that are copied, relative to `docs/`."""
    docs = root / "docs"
    found = [p for topic in TOPICS for p in sorted((docs / topic).glob("*.md")) if p.stem != "index"]
    return [p.relative_to(docs) for p in found]


def make_project(folder: Path, pages: int, *, weave: bool, root: Path = ROOT) -> None:
    """Fill a folder with a project of that many question pages, each with recordings of its own.

    Raises:
        FileNotFoundError: There is no question page to copy.
    """
    originals = question_pages(root)
    if not originals:
        raise FileNotFoundError(f"no question page below {root / 'docs'}")
    (folder / "docs").mkdir(parents=True)
    (folder / "docs" / "index.md").write_text("# Many pages\n", encoding="utf-8")
    shutil.copytree(root / "docs" / "assets", folder / "docs" / "assets")
    for extra in ("docs/sources.yml", "recordings/machines.toml", "pyproject.toml"):
        if (root / extra).is_file():
            (folder / extra).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / extra, folder / extra)
    (folder / "snippets").symlink_to(root / "snippets")
    (folder / "measured").symlink_to(root / "measured")
    for number in range(pages):
        _copy_page(root, folder, originals[number % len(originals)], f"_{number:04d}")
    _write_settings(folder, root, weave=weave)


def _copy_page(root: Path, folder: Path, original: Path, suffix: str) -> None:
    """One page under another name: its heading, its claims' ids and its recordings follow."""
    name = original.with_suffix("").as_posix()
    text = (root / "docs" / original).read_text(encoding="utf-8")
    text = text.replace(f'data-page="{name}"', f'data-page="{name}{suffix}"')
    for claim in set(re.findall(r"\.claim[^}]*?#([\w-]+)", text)):
        text = re.sub(rf"#{re.escape(claim)}(?![\w-])", f"#{claim}{suffix.replace('_', '-')}", text)
    target = folder / "docs" / f"{name}{suffix}.md"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    for recording in (root / "recordings").glob(f"*/{name}.ipynb"):
        copy = folder / "recordings" / recording.parent.parent.name / f"{name}{suffix}.ipynb"
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(recording, copy)


def _write_settings(folder: Path, root: Path, *, weave: bool) -> None:
    """The project's mkdocs.yml without notebooks and navigation, and without the weave where asked."""
    settings = yaml.safe_load((root / "mkdocs.yml").read_text(encoding="utf-8"))
    settings |= {"plugins": ["search", "tags"], "nav": [{"Home": "index.md"}], "not_in_nav": "*"}
    settings.pop("hooks", None)
    settings.pop("validation", None)
    if not weave:
        settings["markdown_extensions"].remove("measured.weave")
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def build_seconds(folder: Path) -> float:
    """Wall time of one `mkdocs build` of a project, start of the interpreter included.

    Raises:
        RuntimeError: The build failed.
    """
    environment = {**os.environ, "MEASURED_ROOT": str(folder), "NO_MKDOCS_2_WARNING": "1"}
    started = time.perf_counter()
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise RuntimeError(f"mkdocs build of {folder} failed:\n{done.stderr[-3000:]}")
    return seconds


def measure(pages: int, folder: Path, root: Path = ROOT) -> Build:
    """Build one size both ways.

    Args:
        pages: How many question pages.
        folder: An existing folder; two projects are made in it.
        root: The project whose pages are copied.

    Raises:
        RuntimeError: A build failed, or the woven pages show no output.
    """
    seconds = {}
    for kind, weave in (("plain", False), ("woven", True)):
        project = folder / f"{kind}-{pages}"
        make_project(project, pages, weave=weave, root=root)
        seconds[kind] = build_seconds(project)
    built = [p for topic in TOPICS for p in (folder / f"woven-{pages}" / "site" / topic).rglob("*.html")]
    if len(built) != pages or not all(b'class="ma-out"' in p.read_bytes() for p in built):
        raise RuntimeError(f"of {pages} pages {len(built)} were built, or some show no recorded output")
    sizes = [p.stat().st_size / 1e3 for p in built]
    return Build(pages, seconds["woven"], seconds["plain"], sum(sizes) / len(sizes), max(sizes))


def table(builds: Sequence[Build]) -> str:
    """The results as Markdown."""
    rows = [
        "| pages | build, s | without weave, s | weave, ms a page | HTML, KB a page | largest, KB |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for each in builds:
        rows.append(
            f"| {each.pages:,} | {each.woven_seconds:.1f} | {each.plain_seconds:.1f} | "
            f"{each.milliseconds_a_page:.1f} | {each.mean_kilobytes:.1f} | {each.largest_kilobytes:.1f} |"
        )
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 100, 1000], metavar="PAGES", help="pages to build")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="build here, in a new folder, and leave it")
    asked = parser.parse_args(arguments)
    if min(asked.sizes) < 1:
        parser.error("--sizes: at least one page")
    if asked.keep:
        asked.keep.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="site-build-") as temporary:
        builds = []
        for pages in asked.sizes:
            print(f"building {pages:,} pages …", file=sys.stderr)
            builds.append(measure(pages, (asked.keep or Path(temporary)).resolve()))
        print(table(builds))


if __name__ == "__main__":
    main()
