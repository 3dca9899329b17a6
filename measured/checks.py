"""The static check: everything about a page that can be wrong without running it. Needs no torch."""

from __future__ import annotations

import re
import socket
import tempfile
import tokenize
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupytext.languages import _JUPYTER_LANGUAGES_LOWER_AND_UPPER

from measured import claims, estimates, expression, numbers, predictions, project, recording, sources
from measured import notebook as notebooks
from measured import page as pages
from measured.expression import ExpressionError
from measured.page import VERDICTS, Page, PageError, read_page
from measured.recording import Recording
from measured.values import CHART_MIME, SERIES_MIME, TABLE_MIME, VALUES_MIME

# Fences that Jupytext turns into cells which run: magics of shells and other languages.
MAGIC_FENCES = frozenset(_JUPYTER_LANGUAGES_LOWER_AND_UPPER) - {"python", "Python", "py"}
ANSWER_WORDS = 75
CHART_WIDTH, LETTER_WIDTH = 340, 5.2  # as measured.drawing draws them
MIMES = {VALUES_MIME, SERIES_MIME, TABLE_MIME, CHART_MIME}
MEASURED = ("R", "H")  # classes of what a device did; counts, formulas and citations may be of others
FORMATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp8": "float8", "int8": "int8"}  # in rates' names
_PRIVATE = "|".join(
    [
        r"(?<![\w.])/(?:home|Users)/[\w.-]+",
        r"(?<![\w.])/(?:root|tmp|private|var/folders)/[\w.-]+",
        r"\b[A-Za-z]:\\+Users\\+[\w.-]+",
        r"(?<![\w.])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b(?!\()",  # an e-mail address, no product of matrices
        r"\b[\w.-]+@[\w.-]+:[~/]",
    ]
)


@dataclass(frozen=True)
class Problem:
    """One thing to mend: where, what, how."""

    path: Path
    line: int
    what: str
    mend: str

    def __str__(self) -> str:
        try:
            shown = self.path.relative_to(project.root()).as_posix()
        except ValueError:
            shown = str(self.path)
        return f"{shown}:{self.line}: {self.what}\n    mend: {self.mend}"


Found = Iterator[tuple[int, str, str]]


def check_pages(names: list[str] | None = None) -> list[Problem]:
    """Problems of these pages; of all pages, loose documents and snippets when none is named."""
    everything = not names
    chosen = project.resolve_pages(names)
    found = [problem for name in chosen for problem in check_page(read_page(name))]
    found += _duplicate_ids()
    if everything:
        for path in _documents():
            found += check_document(path)
    for path in _snippets(None if everything else chosen):
        try:
            naked = list(numbers.naked_in_module(path))
        except SyntaxError as error:
            found.append(Problem(path, error.lineno or 1, f"no Python: {error.msg}", "correct it"))
            continue
        mend = "leave it out, or put it on the page as a measured value"
        found += [Problem(path, line, f"naked number “{text}” in a docstring", mend) for line, text in naked]
    return found


def check_page(page: Page) -> list[Problem]:
    """Every problem of one executed page and its recordings."""
    found: list[Problem] = []

    def collect(rule: Callable[[], Found]) -> bool:
        try:
            found.extend(Problem(page.path, *each) for each in rule())
            return True
        except PageError as error:
            if (problem := Problem(error.path, error.line, error.problem, error.mend)) not in found:
                found.append(problem)
            return False

    if not collect(lambda: _fences(page)) or not collect(lambda: _includes(page)):
        return found
    collect(lambda: _head(page))
    collect(lambda: numbers.naked(page))
    collect(lambda: _comments(page))
    collect(lambda: _claim_forms(page))
    collect(lambda: _verdicts(page))
    readable = not any(p.what.startswith("fence") or "magic" in p.what for p in found)
    if readable and collect(lambda: _cells(page)):
        collect(lambda: _against_recordings(page))
        collect(lambda: _trustworthy(page))
        collect(lambda: _estimates(page))
    return found


def check_document(path: Path) -> list[Problem]:
    """Naked numbers of a document that is not executed: home, README and their like."""
    page = pages.parse(path.stem, path)
    found = [Problem(path, *each) for each in numbers.naked(page)]
    for mark in page.marks:
        if mark.kind in ("exact", "cited") and (wrong := claims.mark_problem(mark, {}, sources.load())):
            found.append(Problem(path, mark.line, *wrong))
        if mark.kind in ("m", "claim"):
            found.append(
                Problem(path, mark.line, "a measured number on a page that runs nothing", "put it on a question page")
            )
    return found


def _documents() -> list[Path]:
    root = project.root()
    docs = root / "docs"
    executed = (*project.TOPICS, "notebooks")
    loose = [p for p in sorted(docs.rglob("*.md")) if p.relative_to(docs).parts[0] not in executed]
    return loose + [p for p in (root / "README.md", root / "CONTRIBUTING.md") if p.is_file()]


def _snippets(names: list[str] | None) -> list[Path]:
    folder = project.root() / "snippets"
    if names is None:
        told = sorted((folder / "predictions").rglob("*.py"))
        return [p for topic in project.TOPICS for p in sorted((folder / topic).glob("*.py"))] + told
    return [p for n in names for p in (folder / f"{n}.py", predictions.module_path(n)) if p.is_file()]


def _duplicate_ids() -> list[Problem]:
    every = claims.all_claims()
    twice = {i for i, n in Counter(c.id for c in every if c.id).items() if n > 1}
    return [
        Problem(project.page_path(c.page), c.line, f"claim id {c.id!r} is used twice", "ids are unique across the site")
        for c in every
        if c.id in twice
    ]


def _head(page: Page) -> Found:
    text, attrs = page.heading
    if not text:
        yield 1, "no first-level heading", "begin with “# The question? { data-page=… }”"
    elif attrs.get("data-page") != page.name:
        yield (
            1,
            f"the heading names {attrs.get('data-page')!r}",
            f'write {{ data-page="{page.name}" }} after the question',
        )
    if not page.meta.get("description"):
        yield 1, "no description in the front matter", "add one sentence for search results"
    if page.name.endswith("/index"):
        return
    if not isinstance(page.meta.get("asked"), int):
        yield 1, "no `asked` rank in the front matter", "add asked: 1, 2 or 3 (1: nearly every interview)"
    if not page.answer:
        yield 1, "no 30-second answer", 'add an admonition: !!! answer "In 30 seconds"'
        return
    words = len(re.sub(r"\{[^}]*\}", "", page.answer).split())
    if words > ANSWER_WORDS:
        yield 1, f"the 30-second answer has {words} words", f"say it in at most {ANSWER_WORDS}"
    if not re.search(r"\*\*\{ *\.(?:m|claim|exact|cited)\b", page.answer):
        yield 1, "the 30-second answer carries no backed number", "give it one number with its condition"


def _fences(page: Page) -> Found:
    for fence in page.fences:
        if fence.language in MAGIC_FENCES and fence.indent == 0:
            yield fence.line, f"fence `{fence.language}` would execute as a magic cell", "fence it as `console` or `py`"
        if fence.info.startswith("{") or (fence.executed and re.search(r"\btags=|\bid=|\bNBVAL", fence.info)):
            yield (
                fence.line,
                f"fence options {fence.info!r} break the page or its checks",
                "only title= and hl_lines= are used",
            )
        for offset, row in enumerate(fence.body.splitlines(), 1):
            if fence.executed and re.search(r"NBVAL_|raises-exception", row):
                yield fence.line + offset, "an nbval marker in a page", "remove it: markers are generated"


def _includes(page: Page) -> Found:
    for fence in page.cells:
        pages.expand(fence.body, page, fence.line)
    yield from ()


def _cells(page: Page) -> Found:
    """The fences that are cells here are those that Jupytext reads as cells."""
    notebooks.to_notebook(page)
    yield from ()


def _comments(page: Page) -> Found:
    for fence in page.cells:
        code = pages.expand(fence.body, page, fence.line)
        last = fence.end_line  # Included lines have none of their own on the page.
        try:
            found = [("quantity", "comment", *each) for each in numbers.naked_in_comments(code)]
            found += [("number", "docstring", *each) for each in numbers.naked_in_docstrings(code)]
        except (SyntaxError, tokenize.TokenError) as error:
            yield fence.line, f"this cell is no Python: {error}", "correct it"
            continue
        for what, place, line, text in found:
            yield (
                min(fence.line + line, last),
                f"naked {what} “{text}” in a {place} of a cell",
                "record it, or say it without a number",
            )


def _claim_forms(page: Page) -> Found:
    for claim in page.claims:
        for what, mend in claims.form_problems(claim):
            yield claim.line, what, mend


def _estimates(page: Page) -> Found:
    found = estimates.estimates(page)
    for at, each in enumerate(found):
        if each.id in {earlier.id for earlier in found[:at]}:
            mend = "ids are unique on a page: a card's id is made of it"
            yield each.line, f"estimate id {each.id!r} is used twice", mend
    for each in found:
        for text in (each.ask, *(mistake.told for mistake in each.mistakes)):
            for number in numbers.quantities(re.sub(r"\{\w+\}", "", text)):
                yield (
                    each.line,
                    f"naked number “{number}” in estimate {each.id!r}",
                    "draw it, or say it without a number",
                )


def _verdicts(page: Page) -> Found:
    for verdict in page.verdicts:
        name = f"verdict {verdict.statement or '?'}"
        if verdict.status not in VERDICTS:
            yield verdict.line, f"{name}: status {verdict.status!r}", f"use one of {', '.join(VERDICTS)}"
            continue
        if not verdict.statement:
            yield verdict.line, f"{name}: no statement id", 'begin its title with the statement: "S0.4a: …"'
        known = {claim_id: claims.find(claim_id) for _, claim_id in verdict.evidence}
        for claim_id, claim in known.items():
            if claim is None:
                yield verdict.line, f"{name}: no claim {claim_id!r}", "link an existing claim: [words](#claim-id)"
        gated = {label for label, i in verdict.evidence if (c := known[i]) and c.gated}
        if verdict.status == "holds" and "holds" not in gated:
            yield verdict.line, f"{name} rests on no gated claim", "add a line “- Holds: [words](#claim-id)”"
        if verdict.status == "holds-if" and not {"holds", "flips"} <= gated:
            yield verdict.line, f"{name} needs a gated claim in each regime", "add lines “- Holds: …” and “- Flips: …”"
        if verdict.status == "refuted" and "opposite" not in gated:
            yield (
                verdict.line,
                f"{name} needs a gated claim of the opposite",
                "add a line “- Opposite: [words](#claim-id)”",
            )
        if verdict.status == "not-measured" and not re.search(r"^[-*] +\**Reason", verdict.body, re.M):
            yield verdict.line, f"{name} gives no reason", "add a line “- Reason: …”"


def _against_recordings(page: Page) -> Found:
    if not page.cells:
        return
    main = recording.primary(page.name)
    if main is None:
        yield 1, f"no recording on {project.primary_machine()}", f"run `measured record {page.name}`"
        return
    stale = recording.staleness(page, main)
    if stale:
        yield 1, f"the recording is of other code: {', '.join(stale)}", f"run `measured record {page.name}`"
    yield from _recording_whole(page, main)
    for mark in page.marks:
        if mark.kind != "claim" and (wrong := claims.mark_problem(mark, main.values, sources.load())):
            yield mark.line, *wrong
    yield from _formulas(page, main)
    applicable = 0
    for claim in page.claims:
        for what, mend in claims.class_problems(claim, main.classes):
            yield claim.line, what, mend
        outcome = yield from _claim_on(claim, main)
        applicable += outcome and claim.gated
        if outcome:
            for what, mend in claims.margin_problems(claim, main.values):
                yield claim.line, what, mend
    if not applicable:
        yield 1, "no gated claim applies to the primary machine", "gate a count, bytes or an equality"
    yield from predictions.problems(page.name)
    for other in recording.recordings(page.name)[1:]:
        yield from _outputs_whole(page, other)
        if not recording.staleness(page, other):
            for claim in page.claims:
                if claim.gated:
                    yield from _claim_on(claim, other)


def _claim_on(claim: pages.Claim, have: Recording) -> Generator[tuple[int, str, str], None, bool]:
    """Problems of a claim on a recording; returns whether it is applicable there."""
    capabilities = have.about.get("machine", {}).get("capabilities", [])
    if set(claim.needs.split()) - set(capabilities):
        return False
    try:
        true = claims.holds(claim, have.values)
    except ExpressionError as error:
        yield claim.line, f"claim {claim.id}: {error} ({have.machine})", "record that value, or correct the name"
        return True
    if not true and claim.value_class != "H":
        shown = ", ".join(f"{n} = {have.values[n]:.6g}" for n in sorted(expression.names(claim.check)))
        yield claim.line, f"claim {claim.id} fails on {have.machine}: {claim.check}, but {shown}", "correct the claim"
    return True


def _recording_whole(page: Page, have: Recording) -> Found:
    """A recording's outputs and generated cells are those that were recorded."""
    redo = f"run `measured record --force {page.name}`"
    book = have.notebook
    yield from _outputs_whole(page, have)
    if not recording.checks_current(page, have):
        yield 1, f"{have.machine}: its check cells are not those of this page", redo
    setups = [i for i, c in enumerate(book.cells) if "setup" in c.metadata.get("measured", {})]
    if setups != [0] or not notebooks.is_setup(book.cells[0].source):
        yield 1, f"{have.machine}: the set-up cell was edited", redo
    if any(c.metadata.get("tags") for c in book.cells):
        yield 1, f"{have.machine}: a cell carries tags, which nbval obeys", redo
    for cell in book.cells:
        about = cell.metadata.get("measured", {})
        if "check" not in about or cell.cell_type != "code":
            continue
        printed = "".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout")
        if not re.fullmatch(rf"{about['check']} {re.escape(about['name'])}( .*)?\n", printed):
            yield 1, f"{have.machine}: the check of {about['check']} {about['name']} has no output of its own", redo
        exact = about["check"] == "value" and about["class"] == "D"
        if exact and printed != f"value {about['name']} = {have.values.get(about['name'])}\n":
            yield 1, f"{have.machine}: the check of {about['name']} prints another number", redo


def _outputs_whole(page: Page, have: Recording) -> Found:
    """What a recording shows is what was recorded, and says no number of its own."""
    redo = f"run `measured record --force {page.name} --machine {have.machine}`"
    book = have.notebook
    if have.about.get("outputs_sha256") != recording.outputs_digest(book):
        yield 1, f"{have.machine}: an output of the recording was edited", redo
    for number, outputs in enumerate(notebooks.page_outputs(book), 1):
        for output in outputs:
            yield from _bare_output(number, output)
    for bundle in notebooks.bundles(book, CHART_MIME):
        columns = have.series.get(bundle["series"], {})
        if any(columns.get(name) != data for name, data in bundle["data"].items()):
            yield 1, f"{have.machine}: a chart does not show the recorded series {bundle['series']!r}", redo
        yield from _chart_readable(bundle)
        for text in (bundle["title"], bundle["x_title"], bundle["y_title"]):
            for found in numbers.quantities(text):
                yield 1, f"naked number “{found}” in the chart title “{text}”", "say it without a number"
    for bundle in notebooks.bundles(book, TABLE_MIME):
        for text in (bundle["caption"], *[heading for _, heading in bundle["columns"]]):
            for found in numbers.quantities(text):
                yield 1, f"naked number “{found}” in the table's “{text}”", "say it without a number"


def _trustworthy(page: Page) -> Found:
    """What a recording from any machine must not hold, fresh or stale."""
    for have in recording.recordings(page.name) if page.cells else []:
        yield from _beyond_peak(have)
        yield from _private(have)


def _beyond_peak(have: Recording) -> Found:
    """A measured rate that the device is declared not to reach: its clock missed the work."""
    measured: dict[str, float] = {n: v for n, v in have.values.items() if have.classes[n] in MEASURED}
    for series, columns in have.series.items():
        if have.series_classes[series] in MEASURED:
            rates = {n: [v for v in column if isinstance(v, (int, float))] for n, column in columns.items()}
            measured |= {f"{series}.{name}": max(column) for name, column in rates.items() if column}
    for name, rate in measured.items():
        most = declared_most(have.about.get("machine", {}), name)
        if most is not None and rate > most * (1 + 1e-9):
            what = f"{have.machine}: {name} = {rate:.4g} is beyond the {most:.4g} that the device is declared to reach"
            yield 1, what, "the measurement is broken: mend it and record again"


def declared_most(machine: dict[str, Any], name: str) -> float | None:
    """The most that a recording's machine is declared to reach of what a rate's name says; None where nothing is."""
    from snippets.instruments.datasheets import cpu_peak, gpu_peak

    if not name.endswith(("_bytes_per_second", "_flops_per_second")):
        return None
    words = set(re.split(r"[_.]", name))
    formats = [FORMATS[word] for word in FORMATS if word in words] or [*FORMATS.values(), "tf32"]
    if machine.get("kind") == "cpu":
        able, cores = frozenset(machine["capabilities"]), int(machine["cores"])
        peaks = [cpu_peak(able, cores, each) for each in formats]
    else:
        peaks = [peak for each in formats if (peak := gpu_peak(str(machine.get("name", "")), each))]
    rates = [p.bytes_per_second if name.endswith("_bytes_per_second") else p.flops_per_second for p in peaks]
    return max(rates, default=None)


def _private(have: Recording) -> Found:
    """What tells who recorded: a home folder, an address, this machine's own name and folders."""
    here = {str(Path.home()), str(project.root()), tempfile.gettempdir()} - {"/", "/root"}
    host = socket.gethostname()
    if re.search(r"[\d.-]", host) and len(host) > 5:  # no word that a text may hold
        here.add(host)
    own = "|".join(rf"(?<![\w.]){re.escape(each)}(?![\w-])" for each in sorted(here, key=len, reverse=True))
    pattern = re.compile(f"{own}|{_PRIVATE}")
    found = {match[0] for text in _texts(have.notebook) for match in pattern.finditer(text)}
    for text in sorted(found):
        what = f"{have.machine}: the recording holds “{text}”, which tells whose machine it was"
        yield 1, what, "take it out of what the page shows, or of the machine's label, and record again"


def _texts(node: Any) -> Iterator[str]:
    """Every text in a notebook: sources, outputs, metadata, and their names."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for name, content in node.items():
            yield from (name, *_texts(content))
    elif isinstance(node, list):
        for each in node:
            yield from _texts(each)


def _chart_readable(bundle: dict[str, Any]) -> Found:
    """A chart that draws nothing, or writes one name over the next."""
    if bundle["mark"] == "bar" and bundle["log_y"]:
        what = f"the chart “{bundle['title']}” has bars on a logarithmic axis, which begin nowhere and are not drawn"
        yield 1, what, 'draw points: mark="point"'
    shown = list(dict.fromkeys(bundle["data"][bundle["x"]]))
    if isinstance(shown[0], str) and max(map(len, shown)) * LETTER_WIDTH > CHART_WIDTH / len(shown):
        what = f"the names along the chart “{bundle['title']}” run into each other"
        yield 1, what, "shorten them, or number them and show the names in a table"


def _bare_output(number: int, output: Any) -> Found:
    """What a cell shows beside its recorded values: prints, results and pictures, which nothing checks."""
    data = output.get("data", {})
    if MIMES & data.keys():
        return
    if any(kind.startswith(("image/", "text/html")) for kind in data):
        yield 1, f"cell {number} shows a picture of nothing recorded", "draw a recorded series: series(…), chart(…)"
    for found in numbers.quantities(output.get("text") or data.get("text/plain", "")):
        yield 1, f"naked number “{found}” in what cell {number} prints", "record it, and print nothing"


def _formulas(page: Page, have: Recording) -> Found:
    for fence in page.fences:
        if fence.language != "math":
            continue
        check = fence.options.get("check", "")
        numerals = [float(n) for n in numbers.formula_numerals(fence)]
        if not check:
            if numerals:
                yield (
                    fence.line,
                    "numerals in a formula that nothing evaluates",
                    '```math check="value == 2 * layers_count"',
                )
            continue
        try:
            true = expression.evaluate(check, have.values)
        except ExpressionError as error:
            yield fence.line, f"the formula's check: {error}", "name recorded values"
            continue
        if not true:
            yield fence.line, f"the formula is not what was recorded: {check}", "correct the formula or its check"
        # As often as it is shown: a wrong numeral must not hide behind another part of the check that has it.
        for number in Counter(numerals) - Counter(float(n) for n in expression.literals(check)):
            yield (
                fence.line,
                f"the formula's {number:g} is not in its check as often as shown",
                "evaluate what is shown",
            )
