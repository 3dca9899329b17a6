"""`measured check`: every kind of bad input ends with file, line and the mend."""

from __future__ import annotations

import subprocess
import sys

import pytest
from nbformat.v4 import new_output

from measured import checks
from measured.values import SERIES_MIME, VALUES_MIME

D = "data-class=D"


def test_the_sample_is_clean(mini) -> None:
    assert mini.problems() == [] and mini.problems("kv_cache/index") == [] and mini.problems("kv_cache") == []
    assert [str(p) for p in checks.check_pages()] == []


# Each row of what a page may get wrong: a line added to the page, the problem, the mend.
ADDED = {
    "value not recorded": (
        f'It is **5 bytes**{{ .claim #new {D} data-check="lost_bytes == 5" }}.',
        "claim new: lost_bytes is not recorded",
        "record that value",
    ),
    "measured value not recorded": (
        'It is **5 bytes**{ .m data-m="lost_bytes:.0f bytes" }.',
        "lost_bytes is not recorded",
        "correct the mark",
    ),
    "unit other than the value's": (
        'It is **120 ms**{ .m data-m="box_bytes:.0f ms" }.',
        "cannot be shown in 'ms'",
        "correct the mark",
    ),
    "unit other than the value's, in a claim": (
        f'It is **120 tokens**{{ .claim #new {D} data-check="box_bytes == 120" }}.',
        "not a number of bytes",
        "the value's own unit",
    ),
    "no such unit as the mark says": (
        'It is **120 MB**{ .m data-m="box_bytes:.0f bytes" }.',
        "should be “120 bytes”",
        "measured fix",
    ),
    "unparsable bound": (
        f'It is **5 bytes**{{ .claim #new {D} data-check="box_bytes == five hundred" }}.',
        "cannot read",
        "data-check=",
    ),
    "unparsable bound, a word": (
        f'It is **120 bytes**{{ .claim #new {D} data-check="box_bytes == about" }}.',
        "does not end in its unit",
        "end the value's name in its unit",
    ),
    "no bound": (f"It is **equal**{{ .claim #new {D} }}.", "cannot read ''", "data-check="),
    "R without a null": (
        'It is **at least 2×**{ .claim #new data-class=R data-check="speed_ratio >= 2" }.',
        "class R without a null",
        "data-null=1",
    ),
    "R with a null that is no number": (
        'It is **at least 2×**{ .claim #new data-class=R data-null=one data-check="speed_ratio >= 2" }.',
        "class R without a null",
        "data-null=1",
    ),
    "R with its bound on the null's side": (
        'It is **at least 0.5×**{ .claim #new data-class=R data-null=1 data-check="speed_ratio >= 0.5" }.',
        "not 1.15× beyond the null",
        "raise the bound",
    ),
    "R with its bound too near the null": (
        'It is **at least 1.1×**{ .claim #new data-class=R data-null=1 data-check="speed_ratio >= 1.1" }.',
        "not 1.15× beyond the null",
        "raise the bound",
    ),
    "R with its value too near the bound": (
        'It is **at least 3×**{ .claim #new data-class=R data-null=1 data-check="speed_ratio >= 3" }.',
        "not 1.6× beyond the bound",
        "loosen the bound",
    ),
    "missing section": (
        '```python\n--8<-- "snippets/kv_cache/sample.py:lost"\n```',
        "has no section 'lost'",
        "its sections: imports, count",
    ),
    "missing include": ('```python\n--8<-- "snippets/kv_cache/lost.py:one"\n```', "does not exist", "correct the path"),
    "bash fence": ("```bash\nls\n```", "fence `bash` would execute as a magic cell", "`console` or `py`"),
    "open fence": ("```python\nx = 1", "this fence is never closed", "add a line ```"),
    "D with <=": (
        f'It is **at most 120 bytes**{{ .claim #new {D} data-check="box_bytes <= 120" }}.',
        "class D with <=",
        "use ==",
    ),
    "T without a tolerance": (
        'It is **at most 0.6×**{ .claim #new data-class=T data-check="mean_ratio <= 0.6" }.',
        "class T without a tolerance",
        "data-tolerance=",
    ),
    "T on a time": (
        'It is **at least 2×**{ .claim #new data-class=T data-check="speed_ratio >= 2" data-tolerance="none" }.',
        "class T on speed_ratio, which is recorded as R",
        "give the claim the value's class",
    ),
    "gate on an H value": (
        'It is **at most 1 s**{ .claim #new data-class=R data-null=9 data-check="step_seconds <= 1" }.',
        "class R on step_seconds, which is recorded as H",
        "give the claim the value's class",
    ),
    "words that say another operator": (
        'It is **at most 2×**{ .claim #new data-class=R data-null=1 data-check="speed_ratio >= 2" }.',
        "says “at most 2×” but checks",
        "check with <=, or reword",
    ),
    "words that say another number": (
        f'It is **121 bytes**{{ .claim #new {D} data-check="box_bytes == 120" }}.',
        "says “121 bytes”",
        "the same number",
    ),
    "a claim that fails": (
        f'It is **121 bytes**{{ .claim #new {D} data-check="box_bytes == 121" }}.',
        "claim new fails on here: box_bytes == 121, but box_bytes = 120",
        "correct the claim",
    ),
    "a stale number": (
        'It is **121 bytes**{ .m data-m="box_bytes:.0f bytes" }.',
        "the text says “121 bytes”, it should be “120 bytes”",
        "measured fix",
    ),
    "a stale derived number": (
        'It is **241 bytes**{ .exact data-expr="2 * box_bytes:.0f bytes" }.',
        "it should be “240 bytes”",
        "measured fix",
    ),
    "a wrong cited number": (
        'It is **1,000 bytes**{ .cited data-src="box-paper" }.',
        "it should be “1,024 bytes”",
        "measured fix",
    ),
    "an unknown source": ('It is **1 s**{ .cited data-src="lost" }.', "has no entry 'lost'", "correct the mark"),
    "a naked number": ("It takes 5 GB.", "naked number “5 GB”", "mark it"),
    "a number word in a verdict": (
        '!!! verdict holds "S0.4b: words"\n\n    Twice of it.\n\n    - Holds: [x](#box-bytes)',
        "number word “Twice” outside a claim",
        "put it inside a claim",
    ),
    "a comment with a result": (
        "```python\nx = 1  # took 5 ms\n```",
        "naked quantity “5 ms” in a comment",
        "record it",
    ),
    "a docstring with a result": (
        '```python\ndef f():\n    """Takes 5 ms."""\n```',
        "naked number “5 ms” in a docstring of a cell",
        "record it",
    ),
    "a console fence with a result": (
        "```console\n$ python -m sample --port 8000\ntook 5 ms\n```",
        "naked quantity “5 ms” in a fence that runs nothing",
        "mark it",
    ),
    "a display fence with a result": (
        "```py\nx = 1  # took 5 ms\n```",
        "naked quantity “5 ms” in a fence that runs nothing",
        "mark it",
    ),
    "a cell that is no Python": ("```python\nx = (\n```", "this cell is no Python", "correct it"),
    "an id used twice": (
        f'It is **120 bytes**{{ .claim #box-bytes {D} data-check="box_bytes == 120" }}.',
        "claim id 'box-bytes' is used twice",
        "unique",
    ),
    "an id of another page": (
        f'It is **120 bytes**{{ .claim #topic-boxes {D} data-check="box_bytes == 120" }}.',
        "claim id 'topic-boxes' is used twice",
        "unique",
    ),
    "a claim without an id": (
        f'It is **120 bytes**{{ .claim {D} data-check="box_bytes == 120" }}.',
        "a claim without an id",
        "add #",
    ),
    "an nbval marker": ("```python\n# NBVAL_SKIP\nx = 1\n```", "an nbval marker in a page", "remove it"),
    "a raises-exception": ("```python\nx = 1  # raises-exception\n```", "an nbval marker in a page", "remove it"),
    "an unknown verdict": (
        '!!! verdict maybe "S0.4b: words"\n\n    - Holds: [x](#box-bytes)',
        "verdict S0.4b: status 'maybe'",
        "holds, holds-if, refuted, not-measured",
    ),
    "a verdict of no statement": (
        '!!! verdict holds "words alone"\n\n    - Holds: [x](#box-bytes)',
        "no statement id",
        '"S0.4a: …"',
    ),
    "a verdict on nothing": ('!!! verdict holds "S0.4b: words"\n\n    Yes.', "rests on no gated claim", "- Holds:"),
    "a verdict on an unknown claim": (
        '!!! verdict holds "S0.4b: words"\n\n    - Holds: [x](#lost)',
        "no claim 'lost'",
        "link an existing claim",
    ),
    "a verdict on what is not gated": (
        '!!! verdict holds "S0.4b: words"\n\n    - Holds: [x](#box-step)',
        "rests on no gated claim",
        "- Holds:",
    ),
    "holds-if in one regime": (
        '!!! verdict holds-if "S0.4b: words"\n\n    - Holds: [x](#box-bytes)',
        "needs a gated claim in each regime",
        "- Flips:",
    ),
    "refuted without its opposite": (
        '!!! verdict refuted "S0.4b: words"\n\n    - Holds: [x](#box-bytes)',
        "needs a gated claim of the opposite",
        "- Opposite:",
    ),
    "not measured without a reason": (
        '!!! verdict not-measured "S0.4b: words"\n\n    Not yet.',
        "gives no reason",
        "- Reason:",
    ),
    "a formula that nothing evaluates": (
        "```math\nx = 2 y\n```",
        "numerals in a formula that nothing evaluates",
        "check=",
    ),
    "a formula of another value": (
        '```math check="box_bytes == 2 * rows_count"\nx = 2 y\n```',
        "the formula is not what was recorded",
        "correct the formula",
    ),
    "a formula that shows another number": (
        '```math check="box_bytes == 40 * rows_count"\nx = 41 y\n```',
        "the formula's 41 is not in its check",
        "evaluate what is shown",
    ),
    "a formula on a value not recorded": (
        '```math check="lost_bytes == 40"\nx = 40\n```',
        "lost_bytes is not recorded",
        "name recorded values",
    ),
    "code that was not recorded": ("```python\nx = 1\n```", "the page's code cells", "run `measured record"),
}


@pytest.mark.parametrize("kind", ADDED)
def test_bad_input_is_found_with_file_line_and_mend(mini, kind: str) -> None:
    text, problem, mend = ADDED[kind]
    line = mini.append(text)
    count = text.count("\n") + 1
    found = [p.split("\n    mend: ") for p in mini.problems()]
    fitting = [where for where, said in found if problem in where and mend in said]
    assert fitting, found
    where = fitting[-1]
    path, at, _ = where.split(":", 2)
    assert path == "docs/kv_cache/sample.md"
    if kind not in ("code that was not recorded",):
        assert line <= int(at) <= line + count, f"{where} for lines {line} to {line + count}"


# What a page may lack or say wrong in places that it has: an edit, the problem, the mend.
EDITED = {
    "no heading": ("# How big is a box?", "## How big is a box?", "no first-level heading", "begin with"),
    "another page's name": ('data-page="kv_cache/sample"', 'data-page="kv_cache/other"', "heading names", "data-page="),
    "no description": (
        "description: A page with one of everything that a page may hold.\n",
        "",
        "no description",
        "add",
    ),
    "no rank": ("asked: 1\n", "", "no `asked` rank", "asked: 1"),
    "a rank to do": ("asked: 1", "asked: TODO", "no `asked` rank", "asked: 1"),
    "no answer": ('!!! answer "In 30 seconds"', '!!! note "In short"', "no 30-second answer", "!!! answer"),
    "a long answer": ("    Multiply: a box", "    Multiply" + " and again" * 40 + ": a box", "words", "at most 75"),
    "malformed front matter": ("asked: 1", "asked: one: two", "front matter: mapping values", "colon"),
    "a number in the title": ("title: Sample", "title: Sample in 5 GB", "front matter's title", "without a number"),
}


@pytest.mark.parametrize("kind", EDITED)
def test_what_a_page_must_have(mini, kind: str) -> None:
    old, new, problem, mend = EDITED[kind]
    mini.replace(old, new)
    found = [p for p in mini.problems() if problem in p]
    assert found and mend in found[0], mini.problems()
    assert found[0].startswith(f"docs/kv_cache/sample.md:{4 if 'malformed' in kind else 1}: "), found


def test_a_page_that_cannot_be_read_hides_no_other_page_s_problems(mini) -> None:
    (mini.root / "docs" / "kv_cache" / "broken.md").write_text("# B\n\n```python\nx = 1\n", encoding="utf-8")
    (mini.root / "docs" / "kv_cache" / "endless.md").write_text("---\ntitle: B\n", encoding="utf-8")
    (mini.root / "docs" / "kv_cache" / "listed.md").write_text("---\n- a\n---\n\n# B\n", encoding="utf-8")
    mini.append("Takes 5 GB.")
    problems = "\n".join(str(p) for p in checks.check_pages())
    assert "listed.md:1: front matter that names nothing" in problems
    assert "broken.md:3: this fence is never closed" in problems and "naked number “5 GB”" in problems
    assert "endless.md:1: front matter that never ends" in problems


def test_an_answer_carries_a_backed_number(mini) -> None:
    text = mini.page_path.read_text(encoding="utf-8")
    start, end = text.index("    Multiply"), text.index("## The formula")
    mini.page_path.write_text(f"{text[:start]}    Multiply.\n\n{text[end:]}", encoding="utf-8")
    assert any("carries no backed number" in p for p in mini.problems())


def test_a_page_with_nothing_gated_that_applies_fails(mini) -> None:
    text = mini.page_path.read_text(encoding="utf-8").replace("data-check=", 'data-needs="cuda" data-check=')
    text = text.replace(' data-needs="cuda" }', " }")
    mini.page_path.write_text(text, encoding="utf-8")
    assert any("no gated claim applies to the primary machine" in p for p in mini.problems())


def test_a_claim_not_applicable_here_is_no_problem_and_no_pass(mini) -> None:
    mini.append(f'It is **9 bytes**{{ .claim #new {D} data-check="box_bytes == 9" data-needs="cuda" }}.')
    problems = mini.problems()
    assert not any("fails" in p for p in problems) and any("check cells" in p for p in problems)


def test_charts_tables_and_titles_say_no_number(mini, bundle) -> None:
    book = mini.book()
    bundle(book, "application/vnd.measured.chart+json", lambda b: True)["title"] = "Boxes of 5 GB"
    bundle(book, "application/vnd.measured.table+json", lambda b: True)["caption"] = "Boxes of 6 GB"
    mini.write_book(book, rehash=True)
    problems = "\n".join(mini.problems())
    assert "naked number “5 GB” in the chart title" in problems and "naked number “6 GB” in the table's" in problems


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        (new_output("stream", name="stdout", text="It took 5 ms.\n"), "naked number “5 ms” in what cell 3 prints"),
        (new_output("execute_result", data={"text/plain": "131072"}), "naked number “131072” in what cell 3 prints"),
        (new_output("display_data", data={"image/png": "AA=="}), "cell 3 shows a picture of nothing recorded"),
        (new_output("display_data", data={"text/html": "<b>5</b>"}), "cell 3 shows a picture of nothing recorded"),
    ],
)
def test_cells_show_recorded_values_alone(mini, output, problem: str) -> None:
    book = mini.book()
    next(c for c in book.cells if c.cell_type == "code" and "step_seconds" in c.source).outputs.append(output)
    mini.write_book(book, rehash=True)
    (found,) = mini.problems()
    assert problem in found and ("record it" in found or "chart(" in found)


def test_a_docstring_of_the_page_s_snippet(mini) -> None:
    path = mini.root / "snippets/kv_cache/sample.py"
    line = mini.replace("The same without the technique.", "Takes 5 ms.", path)
    (found,) = mini.problems()
    assert found.startswith(f"snippets/kv_cache/sample.py:{line}: naked number “5 ms” in a docstring")


def test_a_snippet_that_is_no_python(mini) -> None:
    path = mini.root / "snippets/kv_cache/sample.py"
    mini.replace("def measure(*,", "def measure(*, (", path)
    problems = "\n".join(mini.problems())
    assert "snippets/kv_cache/sample.py:" in problems and "no Python" in problems
    path = mini.root / "snippets/models/tally.py"
    mini.replace("def boxes(", "def boxes((", path)
    assert "the recording is of other code: snippets/models/tally.py" in "\n".join(mini.problems())


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Takes 5 GB.", "naked number “5 GB”"),
        ('Takes **5 bytes**{ .m data-m="box_bytes:.0f bytes" }.', "a measured number on a page that runs nothing"),
        (f'Is **5 bytes**{{ .claim #h {D} data-check="box_bytes == 5" }}.', "a page that runs nothing"),
        ('Is **7 bytes**{ .exact data-expr="4 + 4:.0f bytes" }.', "it should be “8 bytes”"),
        ('Is **1,025 bytes**{ .cited data-src="box-paper" }.', "it should be “1,024 bytes”"),
    ],
)
@pytest.mark.parametrize("name", ["docs/index.md", "README.md"])
def test_documents_that_run_nothing(mini, name: str, text: str, problem: str) -> None:
    path = mini.root / name
    path.write_text(f"# Home\n\n{text}\n", encoding="utf-8")
    found = [str(p) for p in checks.check_pages()]
    assert len(found) == 1 and found[0].startswith(f"{name}:3: ") and problem in found[0], found


def test_a_recording_of_another_machine_is_checked_on_its_values(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / "kv_cache" / "sample.ipynb"
    path.write_text(
        path.read_text(encoding="utf-8").replace('"speed_ratio": 4.0', '"speed_ratio": 1.0'), encoding="utf-8"
    )
    problems = "\n".join(mini.problems())
    assert "claim box-speed fails on one-thread" in problems
    assert "one-thread: an output of the recording was edited" in problems and "--machine one-thread" in problems


def test_a_stale_recording_of_another_machine_fails_nothing(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / "kv_cache" / "sample.ipynb"
    tally = '"snippets/models/tally.py": "'
    text = path.read_text(encoding="utf-8")
    assert tally in text
    path.write_text(text.replace(tally, tally + "0"), encoding="utf-8")
    assert mini.problems() == []


def test_every_problem_of_a_page_is_listed_not_only_the_first(mini) -> None:
    mini.append("Takes 5 GB.\n\nTakes 6 GB.")
    mini.replace("asked: 1\n", "")
    assert len(mini.problems()) == 3


def test_check_loads_no_torch() -> None:
    code = "import sys, measured.checks, measured.weave, measured.build; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mark": "bar", "log_y": True}, "begin nowhere"),
        ({"data": {"name": ["a rather long name", "another long name"] * 4, "rate": [1] * 8}}, ""),
        ({"data": {"name": [f"long name number {n}" for n in range(8)], "rate": [1] * 8}}, "run into each other"),
        ({"data": {"name": list(range(8)), "rate": [1] * 8}}, ""),
    ],
)
def test_a_chart_that_nobody_can_read_is_found(changed: dict, told: str) -> None:
    bundle = {
        "title": "Rates",
        "mark": "point",
        "log_y": False,
        "x": "name",
        "data": {"name": ["a", "b"], "rate": [1, 2]},
    }
    found = [what for _, what, _ in checks._chart_readable({**bundle, **changed})]
    assert told in " ".join(found) if told else found == []


# Contributed recordings.


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann/measured",
        "/Users/ann",
        "C:\\Users\\ann\\x.py",
        "/root/.cache/x",
        "/private/var/x",
        "/tmp/tmpabc/x",
        "ann.b+c@example.org",
        "ann@box:~/measured$",
    ],
)
@pytest.mark.parametrize("place", ["output", "label", "source"])
def test_a_recording_tells_nothing_of_whoever_made_it(mini, text: str, place: str) -> None:
    book = mini.book()
    if place == "output":
        code = next(cell for cell in book.cells if cell.cell_type == "code")
        code.outputs.append(new_output("stream", name="stdout", text=f"read {text}\n"))
    elif place == "label":
        book.metadata["measured"]["machine"]["label"] = f"box, {text}"
    else:
        book.cells[1].source += f"\n# {text}"
    mini.write_book(book, rehash=True)
    found = [p for p in mini.problems() if "which tells whose machine it was" in p]
    assert len(found) == 1 and text[:8] in found[0] and "record again" in found[0], mini.problems()


def test_this_machine_s_name_and_folders_are_private(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.socket, "gethostname", lambda: "ann-laptop.local")
    monkeypatch.setattr(checks.Path, "home", lambda: checks.Path("/srv/ann"))
    assert mini.problems() == []
    book = mini.book()
    book.metadata["measured"]["machine"]["label"] = "ann-laptop.local"
    book.metadata["measured"]["note"] = f"/srv/ann/x and {mini.root}/y"
    mini.write_book(book, rehash=True)
    found = "\n".join(mini.problems())
    assert all(f"“{each}”" in found for each in ("ann-laptop.local", "/srv/ann", str(mini.root)))


def test_what_looks_like_an_address_and_is_none_passes(mini) -> None:
    book = mini.book()
    book.metadata["measured"]["note"] = "x@w.mean(0), a @ b.T, @torch.inference_mode(), https://x.org/home/a, 5 @ 2"
    mini.write_book(book, rehash=True)
    assert mini.problems() == []


H100 = {"kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "capabilities": ["cuda", "cuda-bf16"], "cores": 16}
CPU = {"kind": "cpu", "name": "Some CPU", "capabilities": ["cpu", "avx2"], "cores": 2}


def add_value(values: dict, name: str, rate: float) -> None:
    """Put one more value into a recorded bundle."""
    values["values"][name] = rate
    values["names"].append(name)


@pytest.mark.parametrize(
    ("machine", "name", "rate", "broken"),
    [
        (H100, "read_bytes_per_second", 3.36e12, True),
        (H100, "read_bytes_per_second", 3.34e12, False),
        (H100, "product_flops_per_second", 1.98e15, True),
        (H100, "product_flops_per_second", 1.97e15, False),
        (H100, "bf16_flops_per_second", 1.1e15, True),
        (H100, "bf16_flops_per_second", 0.98e15, False),
        (H100, "speed_tokens_per_second", 1e18, False),
        ({**H100, "name": "NVIDIA Z9000"}, "read_bytes_per_second", 1e18, False),
        (CPU, "bf16_flops_per_second", 1e13, True),
        (CPU, "bf16_flops_per_second", 1e11, False),
        (CPU, "read_bytes_per_second", 1e14, True),
    ],
)
@pytest.mark.parametrize("kind", ["value", "series"])
def test_a_rate_beyond_the_declared_peak_is_a_broken_measurement(
    mini, bundle, kind: str, machine: dict, name: str, rate: float, broken: bool
) -> None:
    book = mini.book()
    book.metadata["measured"]["machine"].update(machine)
    if kind == "value":
        add_value(bundle(book, VALUES_MIME, lambda b: b["class"] == "H"), name, rate)
    else:
        bundle(book, SERIES_MIME, lambda b: b["class"] in "RH")["columns"][name] = [1.0, rate]
    mini.write_book(book, rehash=True)
    found = [p for p in mini.problems() if "is declared to reach" in p]
    assert len(found) == broken and all(name in p and "record again" in p for p in found), mini.problems()


def test_a_rate_by_datasheet_may_be_another_device_s(mini, bundle) -> None:
    book = mini.book()
    add_value(bundle(book, VALUES_MIME, lambda b: b["class"] == "D"), "h100_bytes_per_second", 1e18)
    mini.write_book(book, rehash=True)
    assert not [p for p in mini.problems() if "is declared to reach" in p]


def test_another_machine_s_recording_is_held_to_the_same(mini) -> None:
    path = mini.root / "recordings" / "one-thread" / "kv_cache" / "sample.ipynb"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("This machine, one thread", "ann@example.org"), encoding="utf-8")
    assert [p for p in mini.problems() if "one-thread: the recording holds “ann@example.org”" in p]
