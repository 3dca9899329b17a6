"""A recording that someone changed: what `measured check` finds, what nbval finds, and the second run of R failures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output

from measured import recorder, rerun
from measured.rerun import Rerun, rerun_pages, run_again
from measured.values import CHART_MIME, SERIES_MIME, TABLE_MIME, VALUES_MIME

NAME = "kv_cache/sample"
Find = Callable[..., NotebookNode]
Tamper = Callable[[NotebookNode, Find, Find], None]


def value_of_d(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, VALUES_MIME, lambda b: b["class"] == "D")["values"]["box_bytes"] = 60


def value_of_t(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, VALUES_MIME, lambda b: b["class"] == "T")["values"]["mean_ratio"] = 0.25


def value_of_r(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, VALUES_MIME, lambda b: b["class"] == "R")["values"]["speed_ratio"] = 40.0


def tolerance(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, VALUES_MIME, lambda b: b["class"] == "T")["tolerance"] = 10


def value_class(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, VALUES_MIME, lambda b: b["class"] == "D")["class"] = "H"


def series_of_d(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, SERIES_MIME, lambda b: b["name"] == "boxes")["columns"]["box_bytes"][0] = 41


def series_of_r(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, SERIES_MIME, lambda b: b["name"] == "speeds")["columns"]["speed_ratio"][2] = 40.0


def chart_data(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, CHART_MIME, lambda b: True)["data"]["box_bytes"][0] = 41


def table_format(book: NotebookNode, cell: Find, bundle: Find) -> None:
    bundle(book, TABLE_MIME, lambda b: True)["formats"]["box_bytes"] = ".0f kB"


def drawing(book: NotebookNode, cell: Find, bundle: Find) -> None:
    output = next(o for c in book.cells if c.cell_type == "code" for o in c.outputs if CHART_MIME in o.get("data", {}))
    output["data"]["image/svg+xml"] = output["data"]["image/svg+xml"].replace(" d=", " d='M0,0' data-d=", 1)


def text_output(book: NotebookNode, cell: Find, bundle: Find) -> None:
    output = next(o for c in book.cells if c.cell_type == "code" for o in c.outputs if VALUES_MIME in o.get("data", {}))
    output["data"]["text/plain"] = "box_bytes = 60"


def stream_output(book: NotebookNode, cell: Find, bundle: Find) -> None:
    own = next(c for c in book.cells if "step_seconds" in c.source)
    own.outputs.append(new_output("stream", name="stdout", text="It took 1 ms.\n"))


def output_removed(book: NotebookNode, cell: Find, bundle: Find) -> None:
    next(c for c in book.cells if "step_seconds" in c.source).outputs.pop()


def code_of_the_page(book: NotebookNode, cell: Find, bundle: Find) -> None:
    own = next(c for c in book.cells if "step_seconds" in c.source)
    own.source = own.source.replace("rows=3", "rows=4")


def cell_added(book: NotebookNode, cell: Find, bundle: Find) -> None:
    book.cells.insert(3, new_code_cell("x = 1", metadata={"measured": {"fence": "python", "source": "x = 1"}}))


def setup_added(book: NotebookNode, cell: Find, bundle: Find) -> None:
    code = "import measured.values\nmeasured.values.check_value = print"
    book.cells.insert(5, new_code_cell(code, metadata={"measured": {"setup": True}}))


def setup_edited(book: NotebookNode, cell: Find, bundle: Find) -> None:
    book.cells[0].source += "\nimport measured.values\nmeasured.values.check_value = print"


def check_removed(book: NotebookNode, cell: Find, bundle: Find) -> None:
    book.cells.remove(cell(book, "value", "box_bytes"))


def claim_removed(book: NotebookNode, cell: Find, bundle: Find) -> None:
    book.cells.remove(cell(book, "claim", "box-speed"))


def check_edited(book: NotebookNode, cell: Find, bundle: Find) -> None:
    found = cell(book, "value", "mean_ratio")
    found.source = found.source.replace("tolerance=0.01", "tolerance=10")


def check_without_output(book: NotebookNode, cell: Find, bundle: Find) -> None:
    cell(book, "value", "box_bytes").outputs = []


def check_with_another_output(book: NotebookNode, cell: Find, bundle: Find) -> None:
    cell(book, "claim", "box-bytes").outputs[0]["text"] = "claim box-alike\n"


def check_that_prints_another_number(book: NotebookNode, cell: Find, bundle: Find) -> None:
    cell(book, "value", "box_bytes").outputs[0]["text"] = "value box_bytes = 60\n"


def claim_that_prints_without_asserting(book: NotebookNode, cell: Find, bundle: Find) -> None:
    cell(book, "claim", "box-bytes").source = "# NBVAL_CHECK_OUTPUT\nprint('claim box-bytes')"


def marker_removed(book: NotebookNode, cell: Find, bundle: Find) -> None:
    found = cell(book, "value", "box_bytes")
    found.source = found.source.removeprefix("# NBVAL_CHECK_OUTPUT\n")


def marker_replaced(book: NotebookNode, cell: Find, bundle: Find) -> None:
    found = cell(book, "value", "box_bytes")
    found.source = found.source.replace("NBVAL_CHECK_OUTPUT", "NBVAL_SKIP")


def check_as_text(book: NotebookNode, cell: Find, bundle: Find) -> None:
    found = cell(book, "value", "box_bytes")
    at = book.cells.index(found)
    book.cells[at] = new_markdown_cell(found.source, metadata=found.metadata, id=found.id)


def class_of_a_check(book: NotebookNode, cell: Find, bundle: Find) -> None:
    cell(book, "claim", "box-bytes").metadata["measured"]["class"] = "R"  # a D failure would get a second run


def tag_that_nbval_obeys(book: NotebookNode, cell: Find, bundle: Find) -> None:
    cell(book, "claim", "box-bytes").metadata["tags"] = ["raises-exception"]


def check_hidden_as_setup(book: NotebookNode, cell: Find, bundle: Find) -> None:
    cell(book, "claim", "box-bytes").metadata["measured"] = {"setup": True}


def machine_class(book: NotebookNode, cell: Find, bundle: Find) -> None:
    book.metadata["measured"]["machine"]["class"] = "another"  # R values would no longer be compared


# By a forger who renews the hash of the outputs as well; those left out need the re-run, or are below.
FORGERIES: list[Tamper] = [
    value_of_d,
    value_of_t,
    value_of_r,
    tolerance,
    value_class,
    series_of_d,
    chart_data,
    code_of_the_page,
    cell_added,
    setup_added,
    setup_edited,
    check_removed,
    claim_removed,
    check_edited,
    check_without_output,
    check_with_another_output,
    check_that_prints_another_number,
    claim_that_prints_without_asserting,
    marker_removed,
    marker_replaced,
    check_as_text,
    class_of_a_check,
    tag_that_nbval_obeys,
    check_hidden_as_setup,
    machine_class,
]
# Shown and never gated: only the hash of the outputs tells (and drawn charts are drawn again by a test).
EDITS: list[Tamper] = [series_of_r, table_format, drawing, text_output, stream_output, output_removed]


@pytest.mark.parametrize("rehash", [False, True], ids=["edited", "forged"])
@pytest.mark.parametrize("tamper", FORGERIES, ids=lambda t: t.__name__)
def test_check_finds_a_changed_recording(mini, cell: Find, bundle: Find, tamper: Tamper, rehash: bool) -> None:
    book = mini.book()
    tamper(book, cell, bundle)
    mini.write_book(book, rehash=rehash)
    assert mini.problems() != []


@pytest.mark.parametrize("tamper", EDITS, ids=lambda t: t.__name__)
def test_check_finds_an_edited_output(mini, cell: Find, bundle: Find, tamper: Tamper) -> None:
    book = mini.book()
    tamper(book, cell, bundle)
    mini.write_book(book)
    assert any("an output of the recording was edited" in p for p in mini.problems())


def test_an_untouched_recording_written_again_is_whole(mini) -> None:
    mini.write_book(mini.book(), rehash=True)
    assert mini.problems() == []


# What a run under nbval finds, even where the static check was not asked.


def rerun_of(mini, tamper: Tamper | None, cell: Find, bundle: Find) -> Rerun:
    book = mini.book()
    if tamper:
        tamper(book, cell, bundle)
    mini.write_book(book)
    return run_again(NAME, mini.book_path, extra_path=mini.root)


def forged_values(book: NotebookNode, cell: Find, bundle: Find) -> None:
    """D and T falsified throughout: in the bundle, in the check's code and, where it prints it, in its output."""
    for name, old, new in (("box_bytes", "120", "60"), ("mean_ratio", "0.5", "0.25")):
        found = cell(book, "value", name)
        found.source = found.source.replace(f", {old}", f", {new}")
        found.outputs[0]["text"] = found.outputs[0]["text"].replace(old, new)
    value_of_d(book, cell, bundle)
    value_of_t(book, cell, bundle)
    series = cell(book, "series", "boxes")
    series.source = series.source[:-14] + '0123456789ab")'


def test_an_honest_recording_passes_again(mini, cell: Find, bundle: Find) -> None:
    run = rerun_of(mini, None, cell, bundle)
    assert run.passed, run.output
    assert run.cells == len([c for c in mini.book().cells if c.cell_type == "code"])
    assert {s["claim"]: s["status"] for s in run.statuses} == {
        "box-bytes": "holds",
        "box-alike": "holds",
        "box-mean": "holds",
        "box-speed": "holds",
        "box-cuda": "not applicable",
    }
    assert run.not_applicable == ["box-cuda"]


def test_falsified_values_fail_the_run(mini, cell: Find, bundle: Find) -> None:
    run = rerun_of(mini, forged_values, cell, bundle)
    said = {what: message for what, _, message in run.failures}
    assert set(said) == {"value box_bytes", "value mean_ratio", "series boxes"}, run.output
    assert "box_bytes = 120, recorded 60" in said["value box_bytes"]
    assert "mean_ratio = 0.5, recorded 0.25, farther than 0.01" in said["value mean_ratio"]
    assert not run.passed and not run.only_ratios


def shadow(mini, old: str, new: str) -> Path:
    """The project's snippets with one line changed, in a folder of their own."""
    folder = mini.root / "shadow"
    shutil.copytree(mini.root / "snippets", folder / "snippets")
    mini.replace(old, new, folder / "snippets" / "models" / "tally.py")
    return folder


def test_claims_that_no_longer_hold_fail_the_run(mini) -> None:
    run = run_again(NAME, mini.book_path, extra_path=shadow(mini, "rows * columns", "rows + columns"))
    failed = {what for what, _, _ in run.failures}
    assert {"value box_bytes", "claim box-bytes", "claim box-alike", "series boxes"} == failed, run.output
    assert "claim box-speed" not in failed and not run.only_ratios


def test_a_page_whose_ratio_fails_once_is_run_once_more(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    """For real: the first kernel sees a ratio of one, the second sees what was recorded."""
    flag = mini.root / "has-run"
    folder = shadow(
        mini,
        "    return 4.0",
        f"    import pathlib\n\n    flag = pathlib.Path({str(flag)!r})\n    first = not flag.exists()\n"
        "    flag.touch()\n    return 1.5 if first else 4.0",
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    said: list[str] = []
    runs, wrong = rerun_pages([NAME], said.append)
    assert wrong == [] and [r.passed for r in runs] == [True]
    text = "\n".join(said)
    assert "1 failed" in said[0] and "second run, R alone had failed" in text
    assert "speed_ratio = 1.5" in text and "speed_ratio = 4" in text  # both values are printed


# The same rule on made-up runs.


def made_up(page: str, *classes: str, cells: int = 3, holds: int = 1) -> Rerun:
    failures = [(f"claim c{n}", value_class, f"x_ratio = {n}") for n, value_class in enumerate(classes)]
    statuses = [{"claim": f"ok{n}", "status": "holds", "missing": [], "values": {"x_ratio": 9.0}} for n in range(holds)]
    return Rerun(page, 1.0, cells, failures, statuses)


Played = tuple[list[Rerun], list[str], list[str], list[str]]


@pytest.fixture
def scripted(mini, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[Rerun]]], Played]:
    """`scripted({page: [run, run …]})` → runs, what is wrong, what was said, and the pages run in order."""

    def play(script: dict[str, list[Rerun]]) -> Played:
        for name in script:
            for folder in (mini.root / "docs", mini.root / "recordings" / "here"):
                suffix = ".md" if folder.name == "docs" else ".ipynb"
                target = folder / f"{name}{suffix}"
                if not target.exists():
                    shutil.copy(folder / f"{NAME}{suffix}", target)
        order: list[str] = []

        def next_run(name: str, path: Path, **_: object) -> Rerun:
            order.append(name)
            return script[name].pop(0)

        monkeypatch.setattr(rerun, "run_again", next_run)
        said: list[str] = []
        runs, wrong = rerun_pages(list(script), said.append)
        return runs, wrong, said, order

    return play


A, B, C = "kv_cache/sample", "kv_cache/b", "kv_cache/c"


def test_a_pass_is_run_once(scripted) -> None:
    runs, wrong, _, order = scripted({A: [made_up(A)], B: [made_up(B)]})
    assert order == [A, B] and wrong == [] and len(runs) == 2


def test_r_failures_get_exactly_one_second_run_of_the_whole(scripted) -> None:
    runs, wrong, said, order = scripted({A: [made_up(A, "R", "R"), made_up(A)]})
    assert order == [A, A] and wrong == [] and runs[0].passed
    assert "x_ratio = 0" in said[1] and "x_ratio = 1" in said[1]


def test_two_r_failures_of_a_page_fail_the_whole(scripted) -> None:
    _, wrong, _, order = scripted({A: [made_up(A, "R"), made_up(A, "R")]})
    assert order == [A, A] and wrong == [f"{A}: claim c0: x_ratio = 0"]


@pytest.mark.parametrize("classes", [("D",), ("T",), ("R", "D"), ("T", "R"), ("",), ("R", "")])
def test_other_failures_get_no_second_run(scripted, classes: tuple[str, ...]) -> None:
    _, wrong, _, order = scripted({A: [made_up(A, *classes)]})
    assert order == [A] and len(wrong) == len(classes)


def test_a_second_run_that_fails_otherwise_counts(scripted) -> None:
    _, wrong, _, order = scripted({A: [made_up(A, "R"), made_up(A, "D")]})
    assert order == [A, A] and len(wrong) == 1


def test_more_than_two_such_pages_are_no_noise(scripted) -> None:
    script = {A: [made_up(A, "R"), made_up(A)], B: [made_up(B, "R"), made_up(B)], C: [made_up(C, "R"), made_up(C)]}
    _, wrong, _, order = scripted(script)
    assert order == [A, A, B, B, C] and wrong == [f"{C}: claim c0: x_ratio = 0"]


def test_a_run_without_cells_or_without_an_applicable_claim_fails(scripted) -> None:
    _, wrong, _, _ = scripted({A: [made_up(A, cells=0)], B: [made_up(B, holds=0)]})
    assert len(wrong) == 2 and "nbval executed nothing" in wrong[0] and "no gated claim is applicable" in wrong[1]


def test_a_page_without_a_recording_fails_the_count(mini, scripted) -> None:
    mini.book_path.unlink()
    (mini.root / "docs" / "kv_cache" / "b.md").write_text(mini.page_path.read_text(encoding="utf-8"), encoding="utf-8")
    source = mini.root / "recordings" / "one-thread" / f"{NAME}.ipynb"
    shutil.copy(source, mini.root / "recordings" / "here" / "kv_cache" / "b.ipynb")
    runs, wrong = rerun_pages([A], lambda text: None)
    assert runs == [] and wrong == [f"{A}: no recording on here", "0 pages executed, 1 exist"]


def test_a_recording_that_cannot_be_read_fails_and_can_be_recorded_again(mini) -> None:
    mini.book_path.write_text("{", encoding="utf-8")
    run = run_again(NAME, mini.book_path)
    assert not run.passed and run.failures
    (problem,) = mini.problems()
    assert problem.startswith("recordings/here/kv_cache/sample.ipynb:1: no notebook") and "measured record" in problem
    assert "no notebook" in recorder.stale_pages([NAME], "here")[NAME][0]
