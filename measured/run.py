"""`measured run`: measure questions on this machine, each in a process of its own, and hold their claims to it."""

from __future__ import annotations

import ast
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from rich.text import Text

from measured import claims, expression, page_process, predictions, project, recording
from measured.expression import ExpressionError
from measured.page import Claim, read_page

RUN_VERSION = 2
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
HOLDS, FAILS, ABSENT, SHOWN, PAGE_ONLY = "holds", "fails", "not applicable", "shown", "on the page only"
STATES = {HOLDS: "green", FAILS: "bold red", ABSENT: "yellow", SHOWN: "dim", PAGE_ONLY: "dim"}


@dataclass(frozen=True)
class Options:
    """How pages are measured; None leaves the choice to the page, or to torch for threads."""

    small: bool = False
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """What `measure` is called with."""
        return {"small": self.small, "device": self.device, "dtype": self.dtype and DTYPES[self.dtype]}


@dataclass(frozen=True)
class Judged:
    """One claim on the values of this run; `holds` is None where they do not tell."""

    claim: Claim
    state: str
    holds: bool | None
    missing: list[str]
    here: dict[str, float]
    recorded: dict[str, float]
    predicted: dict[str, float] = field(default_factory=dict)
    problem: str = ""


@dataclass
class PageRun:
    """What one page came to: its values and judged claims, or the error that ended it."""

    page: str
    seconds: float = 0.0
    values: dict[str, float] = field(default_factory=dict)
    claims: list[Judged] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    error: str | None = None
    predicted_for: str = ""

    @property
    def counts(self) -> Counter[str]:
        return Counter(judged.state for judged in self.claims)

    @property
    def failed(self) -> bool:
        return self.error is not None or self.counts[FAILS] > 0


def choose(names: Sequence[str]) -> list[str]:
    """Pages asked for, each once: a topic stands for its pages that have something to measure; no name for all.

    Raises:
        project.UnknownNameError: No such page or topic, or a page without a `measure` of its own.
    """
    found: list[str] = []
    for name in names or project.TOPICS:
        topic = name.removeprefix("docs/").rstrip("/")
        if topic in project.TOPICS:
            found += [n for n in project.page_names() if n.startswith(f"{topic}/") and takes(n) is not None]
            continue
        (page,) = project.resolve_pages([name])
        if takes(page) is None:
            mend = f"; `measured run {page.split('/')[0]}` runs the pages of its topic"
            raise project.UnknownNameError("measure() for", page, project.question_names(page.split("/")[0]), mend)
        found.append(page)
    return list(dict.fromkeys(found))


def takes(page: str) -> set[str] | None:
    """Options that the page's `measure` makes use of; None where it has no such function. Imports nothing."""
    path = project.root() / "snippets" / f"{page}.py"
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    found = next((node for node in body if isinstance(node, ast.FunctionDef) and node.name == "measure"), None)
    if found is None:
        return None
    read = {node.id for row in found.body for node in ast.walk(row) if isinstance(node, ast.Name)}
    return read & {argument.arg for argument in found.args.kwonlyargs}


def machine(options: Options) -> dict[str, Any]:
    """What `describe` says of the device and threads that pages will run on: no host, no user.

    Raises:
        ValueError: Unknown device, or none of it here.
        ModuleNotFoundError: torch is not installed.
    """
    import torch

    from snippets.instruments import device as devices

    try:
        device = devices.pick(options.device)
    except RuntimeError as error:  # such as an index that is no number
        raise ValueError(f"device {options.device!r}: {str(error).splitlines()[0]}") from None
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads or before)
    try:
        return devices.describe(device)
    finally:
        torch.set_num_threads(before)


def run_page(name: str, options: Options, here: Mapping[str, Any], say: Callable[[str], None]) -> PageRun:
    """Measure one page in a fresh process and judge its claims.

    Args:
        name: A page that `choose` returned.
        options: How to measure it.
        here: What `machine` says of this one: what it offers to claims, and which predictions are for it.
        say: Where a line goes that the page's process waits for something.
    """
    page, have, used = read_page(name), recording.primary(name), takes(name) or set()
    run = PageRun(name)
    run.predicted_for, predicted = predictions.numbers_for(here, name)
    unused = [key for key, value in options.arguments.items() if value and key not in used | {"small"}]
    run.notes = [f"its snippet takes no {key}: measured as the page does" for key in unused]
    if options.dtype and "dtype" in used:
        run.notes.append(f"measured in {options.dtype}: a claim about the page's own dtype may fail for that alone")
    started = time.monotonic()
    arguments = {key: value for key, value in options.arguments.items() if value and key in used}
    found = page_process.measure(name, arguments, options.threads, say)
    run.seconds, run.error, run.values = time.monotonic() - started, found.get("error"), found.get("values", {})
    if run.error is None:
        recorded = have.values if have else {}
        run.claims = [
            judge(claim, run.values, recorded, here["capabilities"], predicted, small=options.small)
            for claim in page.claims
        ]
    return run


def judge(
    claim: Claim,
    values: Mapping[str, float],
    recorded: Mapping[str, float],
    capabilities: Sequence[str],
    predicted: Mapping[str, float] | None = None,
    *,
    small: bool = False,
) -> Judged:
    """What these values say of a claim. Bounds are of the page's own sizes: at small ones exact counts alone gate."""
    names = sorted(expression.names(claim.check))
    missing = [need for need in claim.needs.split() if need not in capabilities]
    holds, problem = None, ""
    if known := all(name in values for name in names):
        try:
            holds = claims.holds(claim, values)
        except ExpressionError as error:
            holds, problem = False, str(error)
    if missing or not known:
        state = ABSENT if missing else PAGE_ONLY
    elif not claim.gated or (small and claim.value_class != "D"):
        state = SHOWN
    else:
        state = HOLDS if holds else FAILS
    here, there, told = ({n: found[n] for n in names if n in found} for found in (values, recorded, predicted or {}))
    return Judged(claim, state, holds, missing, here, there, told, problem)


def table(run: PageRun) -> Table:
    """A page's claims: what is said, what is checked, the values here, recorded and predicted, what became of it."""
    page, have = read_page(run.page), recording.primary(run.page)
    shown = Table(title=Text(f"{run.page}, {run.seconds:.1f} s: {page.heading[0]}"), title_justify="left")
    there = f"recorded on {have.label}" if have else "recorded"
    predicted = f"predicted for {run.predicted_for}" if run.predicted_for else "predicted"
    for heading in ("claim", "", "check", "here", there, predicted, "state"):
        shown.add_column(heading, overflow="fold")
    for one in run.claims:
        why = f" here: needs {', '.join(one.missing)}" if one.missing else f": {one.problem}" if one.problem else ""
        if one.state == SHOWN:
            why = ", holds" if one.holds else ", does not hold"
        state = Text(f"{one.state}{why}", STATES[one.state])
        cells = [Text(cell) for cell in (one.claim.text, one.claim.value_class, one.claim.check)]
        shown.add_row(*cells, _numbers(one.here), _numbers(one.recorded), _numbers(one.predicted), state)
    return shown


def _numbers(values: Mapping[str, float]) -> Text:
    texts = {name: f"{v:,.0f}" if v == int(v) and abs(v) < 10**15 else f"{v:,.6g}" for name, v in values.items()}
    if len(texts) == 1:  # its name stands in the check
        return Text(*texts.values())
    return Text("\n".join(f"{name} = {text}" for name, text in texts.items()) or "–")


def counted(run: PageRun) -> str:
    """A page's claims by what became of them, in one line."""
    return f"{run.page}: " + ", ".join(f"{run.counts[state]} {state}" for state in STATES if run.counts[state])


def summary(runs: Sequence[PageRun]) -> Table:
    """One row a page: how many claims came to what, and the seconds."""
    shown = Table("page", *STATES, "seconds")
    for run in runs:
        counts = [str(run.counts[state]) for state in STATES] if run.error is None else ["error", *["–"] * 4]
        shown.add_row(run.page, *counts, f"{run.seconds:.1f}")
    return shown


def document(runs: Sequence[PageRun], here: dict[str, Any], options: Options, *, stopped: bool) -> dict[str, Any]:
    """The run as one JSON document."""
    pages = [
        {
            "page": run.page, "seconds": round(run.seconds, 1), "error": run.error, "notes": run.notes,
            "predicted_for": run.predicted_for or None,
            "values": run.values,
            "claims": [
                {
                    "id": one.claim.id, "text": one.claim.text, "class": one.claim.value_class,
                    "check": one.claim.check, "state": one.state, "holds": one.holds, "missing": one.missing,
                    "problem": one.problem,
                    "here": one.here, "recorded": one.recorded, "predicted": one.predicted,
                }
                for one in run.claims
            ],
        }
        for run in runs
    ]  # fmt: skip
    asked = options.arguments | {"threads": options.threads}
    return {"version": RUN_VERSION, "machine": here, "options": asked, "interrupted": stopped, "pages": pages}
