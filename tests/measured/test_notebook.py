"""Page and notebook: one is the other, and a notebook made from a page runs by itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import nbformat
import pytest

from measured import notebook as notebooks
from measured import project
from measured.checks import check_page
from measured.page import PageError, read_page

ROOT = Path(__file__).resolve().parents[2]
REAL_PAGES = [p.relative_to(ROOT / "docs").with_suffix("").as_posix() for p in sorted((ROOT / "docs").glob("*/*.md"))]
REAL_PAGES = [n for n in REAL_PAGES if n.split("/")[0] in project.TOPICS]


def sources_of(book: nbformat.NotebookNode, kind: str) -> list[str]:
    return [c.source for c in book.cells if c.cell_type == kind]


@pytest.mark.parametrize("name", REAL_PAGES)
def test_a_real_page_comes_back_from_its_notebook_without_a_diff(name: str) -> None:
    page = read_page(name)
    book = notebooks.to_notebook(page)
    stored = nbformat.reads(nbformat.writes(book), as_version=4)  # as a file keeps it
    assert notebooks.to_page(stored) == page.source


def test_the_sample_comes_back_from_notebook_and_from_recording(mini) -> None:
    assert notebooks.to_page(notebooks.to_notebook(mini.page())) == mini.page().source
    assert notebooks.to_page(mini.book()) == mini.page().source


def test_an_edited_cell_comes_back_as_it_now_reads(mini) -> None:
    book = mini.book()
    code = next(c for c in book.cells if "def count_values" in c.source)
    text = next(c for c in book.cells if c.cell_type == "markdown" and "The paper has" in c.source)
    code.source, text.source = "x = 1", "Other words."
    page = notebooks.to_page(book)
    assert '```python hl_lines="1"\nx = 1\n```' in page and "Other words." in page
    assert "sample.py:count" not in page and "The paper has" not in page and "sample.py:imports" in page


def test_cells_are_the_fences_with_includes_expanded_after_a_setup(mini) -> None:
    code = sources_of(notebooks.to_notebook(mini.page()), "code")
    assert len(code) == len(mini.page().cells) + 1 == 5
    assert notebooks.is_setup(code[0]) and "measured-answers[run]==0.1.0" in code[0]
    assert "from snippets.models import tally" in code[1] and "def count_values" in code[2]
    assert not any("--8<--" in source or "display only" in source for source in code)


def test_setup_is_known_across_versions_and_in_no_other_shape() -> None:
    setup = notebooks.setup_source()
    version = project.metadata(project.root())["version"]
    assert notebooks.is_setup(setup.replace(f"=={version}", "==9.9.9"))
    assert not notebooks.is_setup(setup + "\nimport os")
    assert not notebooks.is_setup(setup.replace("measured-answers", "other"))


def test_cell_ids_are_the_same_each_time(mini) -> None:
    first, second = (notebooks.to_notebook(mini.page()) for _ in range(2))
    assert [c.id for c in first.cells] == [c.id for c in second.cells]
    assert len({c.id for c in first.cells}) == len(first.cells)


def test_markdown_of_a_notebook_reads_anywhere(mini) -> None:
    text = "\n".join(sources_of(notebooks.to_notebook(mini.page()), "markdown"))
    for trace in ("!!!", "===", "{ .", "data-check", "```math", "--8<--", "asked:"):
        assert trace not in text, trace
    assert "> **In 30 seconds**" in text and "**A tab**" in text
    assert "$$\n\\text{bytes} = 8" in text and "A box takes **120 bytes**, rows" in text


@pytest.mark.parametrize("language", ["bash", "sh", "html", "js", "sql", "javascript", "R", "perl", "julia", "SQL"])
def test_magic_fences_are_refused(mini, language: str) -> None:
    line = mini.append(f"```{language}\nls\n```")
    with pytest.raises(PageError, match="magic"):
        notebooks.to_notebook(mini.page())
    found = [p for p in check_page(mini.page()) if f"`{language}`" in p.what]
    assert [(p.line, "console" in p.mend) for p in found] == [(line, True)]


@pytest.mark.parametrize(
    "fence",
    [
        "~~~python\nx = 1\n~~~",
        "```python3\nx = 1\n```",
        "```{code-cell}\nx = 1\n```",
        "```{.python}\nx = 1\n```",
        '```python tags="[skip]"\nx = 1\n```',
        "```python\n# NBVAL_SKIP\nx = 1\n```",
        "```python\nx = 1  # raises-exception\n```",
    ],
)
def test_a_fence_that_would_run_unseen_or_unchecked_is_a_problem(mini, fence: str) -> None:
    line = mini.append(fence)
    found = check_page(mini.page())
    assert any(line <= p.line <= line + 1 and "other code:" not in p.what for p in found), [str(p) for p in found]


@pytest.mark.parametrize(
    "fence",
    [
        "```py\nprint(1)\n```",
        "```Python\nprint(1)\n```",
        "    ```python\n    print(1)\n    ```",
        "```console\n$ ls\n```",
        "```\nplain\n```",
    ],
)
def test_display_fences_make_no_cell_and_no_problem(mini, fence: str) -> None:
    before = sources_of(notebooks.to_notebook(mini.page()), "code")
    mini.append(fence)
    assert sources_of(notebooks.to_notebook(mini.page()), "code") == before
    assert mini.problems() == []


def test_values_of_a_recording_come_from_its_own_cells_alone(mini) -> None:
    book = mini.book()
    assert notebooks.recorded_values(book) == {
        "rows_count": 3,
        "columns_count": 5,
        "box_bytes": 120,
        "counted_bytes": 120,
        "mean_ratio": 0.5,
        "speed_ratio": 4.0,
        "step_seconds": 0.002,
    }
    check = next(c for c in book.cells if "check" in c.metadata["measured"])
    check.outputs = [o for c in book.cells if c.cell_type == "code" for o in c.outputs if "data" in o][:1]
    check.outputs[0]["data"]["application/vnd.measured.values+json"]["values"]["box_bytes"] = 9
    assert [len(outputs) for outputs in notebooks.page_outputs(book)] == [0, 0, 4, 4]


def test_every_recorded_thing_and_every_gated_claim_gets_a_check_cell(mini) -> None:
    cells = notebooks.check_cells(mini.page(), mini.book(), "some-class")
    about = [(c.metadata["measured"]["check"], c.metadata["measured"]["name"]) for c in cells]
    assert about == [("value", n) for n in notebooks.recorded_values(mini.book())] + [
        ("series", "boxes"),
        ("series", "speeds"),
        *[("claim", i) for i in ("box-bytes", "box-alike", "box-mean", "box-speed", "box-cuda")],
    ]
    assert all(c.source.startswith("# NBVAL_CHECK_OUTPUT\n") for c in cells)
    code = "\n".join(c.source for c in cells)
    assert 'check_value("mean_ratio", "T", 0.5, tolerance=0.01)' in code
    assert 'check_value("speed_ratio", "R", 4.0, machine_class=\'some-class\')' in code
    assert "check_claim('box-cuda', 'box_bytes == 120', needs='cuda')" in code
    assert "box-step" not in code  # class H is shown and never gated


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the project's wheel, built from a copy: a build leaves files behind that later ones pick up."""
    folder, copy = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("source")
    for name in ("measured", "snippets"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "LICENSE-docs"):
        shutil.copy(ROOT / name, copy / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(copy)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    return folder


@pytest.mark.models
def test_a_notebook_runs_from_an_empty_folder_after_its_first_cell(wheels: Path, tmp_path: Path) -> None:
    """The project is not importable before the set-up cell, which installs it from a folder of wheels."""
    name = "kv_cache/index"
    book = notebooks.to_notebook(read_page(name))
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "page.ipynb").write_text(nbformat.writes(book), encoding="utf-8")
    python = _environment_without_the_project(tmp_path / "env")
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "MEASURED", "PIP"))},
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheels),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "2",
    }
    absent = subprocess.run([python, "-c", "import measured"], cwd=empty, env=environment, capture_output=True)
    assert absent.returncode != 0 and b"ModuleNotFoundError" in absent.stderr
    command = [python, "-m", "nbconvert", "--to=notebook", "--execute", "--allow-errors", "--output=done", "page.ipynb"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = nbformat.read(empty / "done.ipynb", as_version=4)
    wrong = [o for c in ran.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    assert not wrong, "\n".join(wrong[0].traceback)
    values = notebooks.recorded_values(ran)
    assert values["kv_8b_token_bytes"] == 131072 and len(values) > 3
    where = subprocess.run(
        [python, "-c", "import measured; print(measured.__file__)"], cwd=empty, env=environment, capture_output=True
    )
    assert str(tmp_path / "env") in where.stdout.decode()  # it was the installed wheel, not this clone


def _environment_without_the_project(folder: Path) -> str:
    """A virtual environment that sees everything installed here but the project itself."""
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    site = next(folder.glob("lib/python*/site-packages"))
    here = Path(nbformat.__file__).resolve().parent.parent
    for entry in here.iterdir():
        if not entry.name.lower().startswith(("measured", "__editable__", "_measured")) and entry.suffix != ".pth":
            (site / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")
