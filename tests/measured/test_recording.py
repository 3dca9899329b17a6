"""Recordings: what makes one stale, and what does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from measured import project, recording
from measured.recording import checks_current, code_digest, staleness

CODE = '''\
"""What the module does."""

import os  # a comment


class A:
    """A class."""

    x = "not a docstring # nor a comment"

    def f(self, y):
        """One line.

        And more.
        """
        # a comment of its own
        return y + 1
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("What the module does.", "Something else."),
        ('"""What the module does."""\n\n', ""),
        ("  # a comment\n", "\n"),
        ("# a comment of its own", "# another"),
        ("        # a comment of its own\n", ""),
        ('    """A class."""\n', '    """Two\n\n    lines."""\n'),
        ("\n\nclass", "\n\n\n\nclass"),
        ("        And more.\n", ""),
        ("return y + 1\n", "return y + 1\n\n\n"),
    ],
)
def test_comments_docstrings_and_blank_lines_do_not_count(old: str, new: str) -> None:
    assert CODE.count(old) >= 1 and code_digest(CODE.replace(old, new)) == code_digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("y + 1", "y + 2"),
        ("import os", "import sys"),
        ("not a docstring", "no docstring"),
        ("# nor a comment", "# no comment"),
        ("def f(self, y):", "def f(self, y=1):"),
        ("class A:", "class B:"),
        ("        return y + 1", "        if y:\n            return y + 1"),
    ],
)
def test_code_counts(old: str, new: str) -> None:
    assert CODE.count(old) == 1 and code_digest(CODE.replace(old, new)) != code_digest(CODE)


def test_code_beside_a_docstring_counts() -> None:
    one, two = 'def f():\n    """Doc."""; return 1\n', 'def f():\n    """Doc."""; return 2\n'
    assert code_digest(one) != code_digest(two)
    one, two = 'def f(): "Größe"; return 1\n', 'def f(): "Größe"; return 2\n'
    assert code_digest(one) != code_digest(two) and code_digest(one) == code_digest(one.replace("Größe", "size"))


def test_a_fresh_recording_has_no_reason(mini) -> None:
    have = recording.primary("kv_cache/sample")
    assert have is not None and staleness(mini.page(), have) == [] and checks_current(mini.page(), have)


def test_prose_never_makes_a_recording_stale(mini) -> None:
    mini.replace("A box takes", "Each box takes")
    mini.replace('title="imports"', 'title="Imports"')
    mini.append("More prose.\n\n```py\ndisplay()\n```")
    have = recording.primary("kv_cache/sample")
    assert have is not None and staleness(mini.page(), have) == [] and checks_current(mini.page(), have)


@pytest.mark.parametrize(
    ("path", "old", "new", "reason"),
    [
        ("docs/kv_cache/sample.md", "tally.mean_ratio())", "tally.mean_ratio() + 0)", "the page's code cells"),
        ("snippets/kv_cache/sample.py", "rows, columns) * 8", "rows, columns) * 9", "the page's code cells"),
        ("snippets/models/tally.py", "rows * columns", "columns * rows", "snippets/models/tally.py"),
        ("snippets/instruments/units.py", "2**30, 2**40", "2**30, 2**41", "snippets/instruments/units.py"),
        ("pyproject.toml", "torch>=2.0,<9", "torch>=2.0,<2.1", r"torch \d"),
        ("pyproject.toml", "torch>=2.0,<9", "torch>=99", r"torch \d"),
    ],
)
def test_code_and_torch_make_it_stale(mini, path: str, old: str, new: str, reason: str) -> None:
    project.metadata.cache_clear()
    recording._torch_admitted.cache_clear()
    mini.replace(old, new, mini.root / path)
    have = recording.primary("kv_cache/sample")
    assert have is not None
    (found,) = staleness(mini.page(), have)
    assert re.match(reason, found)
    (problem,) = [p for p in mini.problems() if "other code" in p]
    assert "kv_cache/sample.md:1: " in problem and "run `measured record kv_cache/sample`" in problem


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("snippets/models/tally.py", "Elements of a box.", "How many elements."),
        ("snippets/models/tally.py", "    return rows * columns", "    # A comment.\n\n    return rows * columns"),
        ("snippets/kv_cache/sample.py", "The same without the technique.", "The baseline."),
        ("snippets/kv_cache/sample.py", '"speed_ratio": 1.0', '"speed_ratio": 1.1'),  # of control, on no page
        ("pyproject.toml", "numpy>=1", "numpy>=3"),
    ],
)
def test_what_the_run_did_not_execute_does_not(mini, path: str, old: str, new: str) -> None:
    project.metadata.cache_clear()
    recording._torch_admitted.cache_clear()
    mini.replace(old, new, mini.root / path)
    have = recording.primary("kv_cache/sample")
    assert have is not None and staleness(mini.page(), have) == []


def test_a_module_that_is_gone_makes_it_stale(mini) -> None:
    (mini.root / "snippets" / "models" / "tally.py").unlink()
    have = recording.primary("kv_cache/sample")
    assert have is not None and staleness(mini.page(), have) == ["snippets/models/tally.py"]


def test_another_claim_makes_the_checks_stale_and_not_the_code(mini) -> None:
    mini.append('It is **120 bytes**{ .claim #box-again data-class=D data-check="box_bytes == 120" }.')
    have = recording.primary("kv_cache/sample")
    assert have is not None and staleness(mini.page(), have) == [] and not checks_current(mini.page(), have)


def test_a_reader_s_own_model_makes_it_stale(mini) -> None:
    book = mini.book()
    book.metadata["measured"]["model_files"] = {"model hub/other": "", "package/file.bin": "ab"}
    mini.write_book(book)
    have = recording.primary("kv_cache/sample")
    assert have is not None and staleness(mini.page(), have) == ["another model hub/other"]


def test_a_recording_says_where_and_from_what_it_came(mini) -> None:
    about = mini.book().metadata["measured"]
    assert about["machine"]["id"] == "here" and about["machine"]["threads"] == 2
    assert {"snippets/models/tally.py", "snippets/instruments/units.py"} <= set(about["modules"])
    assert "snippets/kv_cache/sample.py" not in about["modules"]  # its sections are in the cells
    assert set(about["versions"]) == {"python", "torch"} and about["seconds"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", about["recorded"])


def test_recordings_hold_nothing_of_the_host(mini) -> None:
    import getpass
    import socket

    text = mini.book_path.read_text(encoding="utf-8")
    assert str(mini.root.parent) not in text and socket.gethostname() not in text
    assert f"/home/{getpass.getuser()}" not in text and "/tmp/" not in text


def test_the_primary_comes_first_and_another_machine_never_counts_for_it(mini) -> None:
    assert recording.machines() == ["here", "one-thread"]
    assert [r.machine for r in recording.recordings("kv_cache/sample")] == ["here", "one-thread"]
    mini.book_path.unlink()
    assert recording.primary("kv_cache/sample") is None
    (problem,) = [p for p in mini.problems() if "no recording" in p]
    assert "no recording on here" in problem


def test_values_classes_and_series_of_a_recording(mini) -> None:
    have = recording.primary("kv_cache/sample")
    assert have is not None and have.label == "This machine"
    assert (
        have.classes["box_bytes"] == "D" and have.classes["mean_ratio"] == "T" and have.classes["step_seconds"] == "H"
    )
    assert have.series["boxes"]["box_bytes"] == [40, 80, 160]


ROOT = Path(__file__).resolve().parents[2]
BOOKS = sorted((ROOT / "recordings").glob("*/*/*.ipynb"))


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: "/".join(p.parts[-3:]).removesuffix(".ipynb"))
def test_drawn_charts_are_those_of_their_recorded_data(path: Path) -> None:
    """A chart's marks are drawn again from its bundle: whoever edits the drawing alone is found out."""
    from measured.drawing import draw
    from measured.values import CHART_MIME

    def marks(svg: str) -> list[str]:
        return re.findall(r'<path aria-label="[^"]*"[^>]* d="[^"]*"|<path aria-label="[^"]*"[^>]*/>', svg)

    have = recording.Recording(path.parts[-3], path)
    for cell in have.notebook.cells:
        for output in cell.get("outputs", []):
            if CHART_MIME in output.get("data", {}):
                bundle = output["data"][CHART_MIME]
                again = draw(bundle)
                assert marks(again) and marks(output["data"]["image/svg+xml"]) == marks(again)
                assert bundle["data"] == {k: have.series[bundle["series"]][k] for k in bundle["data"]}
