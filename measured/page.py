"""A page's source: its fences, marked numbers, claims and verdicts, each with the line it stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path

import yaml
from markdown.extensions.attr_list import get_attrs_and_remainder

from measured import project

MARK_KINDS = ("m", "claim", "exact", "cited")
VERDICTS = ("holds", "holds-if", "refuted", "not-measured")

MARK = re.compile(r"\*\*(?P<text>[^*\n]+?)\*\*\{(?P<attrs>[^}\n]*)\}")
_CODE = re.compile(r"(`+).+?\1")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,}) *(?P<info>[^`\n]*)$")
_INCLUDE = re.compile(r'^--8<-- "(?P<path>[^":]+)(?::(?P<section>[\w-]+))?"[ \t]*$', re.M)
_HEADING = re.compile(r"^(?P<marks>#+) +(?P<text>.+?)(?: +\{(?P<attrs>[^}]*)\})? *$")
_ADMONITION = re.compile(r'^(?P<mark>!!!|\?\?\?\+?) +(?P<types>[\w-]+(?: +[\w-]+)*)(?: +"(?P<title>[^"]*)")? *$')
_LINK = re.compile(r"\[[^\]]*\]\((?P<page>[\w./-]*)#(?P<id>[\w-]+)\)")
_STATEMENT = re.compile(r"^(?P<id>S\d[\w.]*)\b")


class PageError(ValueError):
    """Something on a page that cannot be read; says file, line and what mends it."""

    def __init__(self, path: Path, line: int, problem: str, mend: str) -> None:
        self.path, self.line, self.problem, self.mend = path, line, problem, mend
        super().__init__(f"{_shown(path)}:{line}: {problem}\n    mend: {mend}")


@dataclass(frozen=True)
class Fence:
    """A fenced block. `executed` fences are the notebook's cells, in order."""

    language: str
    info: str
    body: str
    line: int
    end_line: int
    indent: int

    @property
    def executed(self) -> bool:
        return self.language == "python" and self.indent == 0

    @property
    def options(self) -> dict[str, str]:
        return dict(re.findall(r'(\w+)="([^"]*)"', self.info))


@dataclass(frozen=True)
class Mark:
    """Bold text with attributes that say where its number comes from."""

    kind: str
    text: str
    attrs: dict[str, str]
    line: int

    @property
    def id(self) -> str:
        return self.attrs.get("id", "")


@dataclass(frozen=True)
class Claim:
    """A sentence's bound on recorded values."""

    id: str
    text: str
    value_class: str
    check: str
    null: float | None
    needs: str
    tolerance: str
    page: str
    line: int

    @property
    def gated(self) -> bool:
        return self.value_class in ("D", "T", "R")


@dataclass(frozen=True)
class Verdict:
    """What was found about a source's statement, and the claims that it rests on."""

    status: str
    statement: str
    title: str
    body: str
    line: int
    evidence: tuple[tuple[str, str], ...]  # (label: "holds", "flips", "opposite"; claim id)


@dataclass
class Page:
    """One parsed page.

    Attributes:
        name: `topic/slug`, or the file's stem outside the topics.
        path: The Markdown file.
        source: Its text.
    """

    name: str
    path: Path
    source: str
    problems: list[PageError] = field(default_factory=list)

    @cached_property
    def lines(self) -> list[str]:
        return self.source.splitlines()

    @cached_property
    def meta(self) -> dict:
        if not self._meta_lines:
            return {}
        try:
            found = yaml.safe_load("\n".join(self.lines[1 : self._meta_lines - 1])) or {}
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line, problem = (mark.line + 2 if mark else 1), getattr(error, "problem", None) or "malformed"
            raise PageError(self.path, line, f"front matter: {problem}", "quote text that holds a colon") from None
        if not isinstance(found, dict):
            raise PageError(self.path, 1, "front matter that names nothing", "write lines such as title: …")
        return found

    @cached_property
    def front_matter(self) -> str:
        """The front matter as it stands, with the empty lines that follow it."""
        at = self._meta_lines
        while 0 < at < len(self.lines) and not self.lines[at].strip():
            at += 1
        return "".join(f"{row}\n" for row in self.lines[:at])

    @cached_property
    def _meta_lines(self) -> int:
        if not self.source.startswith("---\n"):
            return 0
        end = self.source.find("\n---", 3)
        if end < 0:
            raise PageError(self.path, 1, "front matter that never ends", "close it with a line ---")
        return self.source[:end].count("\n") + 2

    @cached_property
    def fences(self) -> list[Fence]:
        found, at = [], self._meta_lines
        while at < len(self.lines):
            opening = _FENCE.match(self.lines[at])
            if not opening:
                at += 1
                continue
            end = at + 1
            closing = re.compile(rf"^ *{re.escape(opening['ticks'])}\s*$")
            while end < len(self.lines) and not closing.match(self.lines[end]):
                end += 1
            if end == len(self.lines):
                raise PageError(self.path, at + 1, "this fence is never closed", f"add a line {opening['ticks']}")
            info = opening["info"].strip()
            language = re.split(r"[\s{]", info, maxsplit=1)[0] if info else ""
            body = "\n".join(self.lines[at + 1 : end])
            found.append(Fence(language, info, body, at + 1, end + 1, len(opening["indent"])))
            at = end + 1
        return found

    @property
    def cells(self) -> list[Fence]:
        """The executed fences."""
        return [f for f in self.fences if f.executed]

    @cached_property
    def prose(self) -> list[tuple[int, str]]:
        """`(line number, text)` of every line outside fences, front matter and comments."""
        hidden = set(range(1, self._meta_lines + 1))
        for fence in self.fences:
            hidden.update(range(fence.line, fence.end_line + 1))
        comment, kept = False, []
        for number, line in enumerate(self.lines, 1):
            if number in hidden:
                continue
            text = re.sub(r"<!--.*?-->", "", line)
            if comment:
                _, closed, text = text.partition("-->")
                comment = not closed
            if "<!--" in text:
                text, comment = text.partition("<!--")[0], True
            kept.append((number, text))
        return kept

    @cached_property
    def heading(self) -> tuple[str, dict[str, str]]:
        """Text and attributes of the first-level heading."""
        for _, line in self.prose:
            match = _HEADING.match(line)
            if match and match["marks"] == "#":
                return match["text"], attributes(match["attrs"] or "")
        return "", {}

    @cached_property
    def marks(self) -> list[Mark]:
        found = []
        for number, line in self.prose:
            for match in MARK.finditer(_CODE.sub(lambda m: " " * len(m[0]), line)):
                attrs = attributes(match["attrs"])
                kinds = [k for k in attrs.get("class", "").split() if k in MARK_KINDS]
                if kinds:
                    found.append(Mark(kinds[0], match["text"], attrs, number))
        return found

    @cached_property
    def claims(self) -> list[Claim]:
        found = []
        for mark in self.marks:
            if mark.kind != "claim":
                continue
            attrs = mark.attrs
            null = attrs.get("data-null")
            found.append(
                Claim(
                    id=mark.id,
                    text=mark.text,
                    value_class=attrs.get("data-class", ""),
                    check=attrs.get("data-check", ""),
                    null=float(null) if null and re.fullmatch(r"-?\d+(\.\d+)?", null) else None,
                    needs=attrs.get("data-needs", ""),
                    tolerance=attrs.get("data-tolerance", ""),
                    page=self.name,
                    line=mark.line,
                )
            )
        return found

    @cached_property
    def verdicts(self) -> list[Verdict]:
        found = []
        for line, types, title, body in self.admonitions:
            if types[0] != "verdict":
                continue
            status = types[1] if len(types) > 1 else ""
            statement = _STATEMENT.match(title)
            evidence = []
            for text in body.splitlines():
                label = re.match(r"[-*] +\**(\w+)", text.strip())
                evidence += [((label[1].lower() if label else ""), m["id"]) for m in _LINK.finditer(text)]
            found.append(Verdict(status, statement["id"] if statement else "", title, body, line, tuple(evidence)))
        return found

    @cached_property
    def admonitions(self) -> list[tuple[int, list[str], str, str]]:
        """`(line, types, title, body)` of every top-level admonition."""
        found = []
        fenced = {n for f in self.fences for n in range(f.line, f.end_line + 1)}
        for at, line in enumerate(self.lines):
            match = _ADMONITION.match(line)
            if not match or at + 1 in fenced:
                continue
            end = at + 1
            while end < len(self.lines) and (not self.lines[end].strip() or self.lines[end].startswith("    ")):
                end += 1
            body = "\n".join(row[4:] for row in self.lines[at + 1 : end]).strip("\n")
            found.append((at + 1, match["types"].split(), match["title"] or "", body))
        return found

    @property
    def answer(self) -> str:
        """The 30-second answer's Markdown, or an empty text."""
        return next((body for _, types, _, body in self.admonitions if types[0] == "answer"), "")


def attributes(text: str) -> dict[str, str]:
    """An attribute list's content, `.claim #id data-check="…"`, as a dictionary; classes joined by spaces."""
    found: dict[str, str] = {}
    for key, value in get_attrs_and_remainder(text)[0]:
        found["class" if key == "." else key] = f"{found.get('class', '')} {value}".strip() if key == "." else value
    return found


def read_page(name: str) -> Page:
    """Parse an executed page by its name.

    Raises:
        project.UnknownNameError: There is no such page.
    """
    path = project.page_path(name)
    return parse(name, path)


def parse(name: str, path: Path) -> Page:
    """Parse the file at `path`; a file is read again only when it has changed."""
    stat = path.stat()
    return _parse(name, path, stat.st_mtime_ns, stat.st_size)


@cache
def _parse(name: str, path: Path, _mtime: int, _size: int) -> Page:
    return Page(name, path, path.read_text(encoding="utf-8"))


def expand(fence_body: str, page: Page, line: int) -> str:
    """A cell's code with its `--8<--` includes replaced by the sections they name.

    Raises:
        PageError: The file or the section does not exist.
    """

    def one(match: re.Match[str]) -> str:
        path = project.root() / match["path"]
        if not path.is_file():
            raise PageError(page.path, line, f"include of {match['path']}, which does not exist", "correct the path")
        text = path.read_text(encoding="utf-8")
        if not (section := match["section"]):
            return text.rstrip("\n")
        found = re.search(
            rf"^# --8<-- \[start:{section}\]\n(?P<text>.*?)^# --8<-- \[end:{section}\]$", text, re.S | re.M
        )
        if not found:
            known = ", ".join(re.findall(r"^# --8<-- \[start:([\w-]+)\]", text, re.M)) or "none"
            raise PageError(page.path, line, f"{match['path']} has no section {section!r}", f"its sections: {known}")
        return found["text"].strip("\n")

    return _INCLUDE.sub(one, fence_body)


def includes(page: Page) -> list[str]:
    """Project files that a page's cells include."""
    return sorted({m["path"] for f in page.cells for m in _INCLUDE.finditer(f.body)})


def _shown(path: Path) -> str:
    try:
        return path.relative_to(project.root()).as_posix()
    except ValueError:
        return str(path)
