"""One name for a question everywhere: page, snippet, recording and test."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

import pytest

from measured import project, recording
from measured.page import read_page

ROOT = Path(__file__).resolve().parents[1]
SLUG = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
QUESTIONS = project.question_names()


def stems(folder: Path, pattern: str, cut: str = "") -> set[str]:
    skipped = {"__init__", "conftest", "index"}
    return {p.stem.removeprefix(cut) for p in folder.glob(pattern)} - skipped


@pytest.mark.parametrize("topic", project.TOPICS)
def test_pages_snippets_recordings_and_tests_are_the_same_list(topic: str) -> None:
    pages = stems(ROOT / "docs" / topic, "*.md")
    assert pages, f"{topic} has no question"
    assert stems(ROOT / "snippets" / topic, "*.py") == pages
    assert stems(ROOT / "tests" / topic, "test_*.py", "test_") == pages
    assert stems(ROOT / "recordings" / project.primary_machine() / topic, "*.ipynb") == pages


@pytest.mark.parametrize("topic", project.TOPICS)
def test_predictions_are_tested_under_their_page_s_name(topic: str) -> None:
    found = {path.stem for path in (ROOT / "snippets" / "predictions" / topic).glob("*.py")} - {"__init__"}
    assert found == {path.stem[len("test_") :] for path in (ROOT / "tests" / "predictions" / topic).glob("test_*.py")}
    assert {f"{topic}/{stem}" for stem in found} <= set(project.page_names())


@pytest.mark.parametrize("topic", project.TOPICS)
def test_a_topic_page_is_executed_and_recorded(topic: str) -> None:
    page = read_page(f"{topic}/index")
    assert page.cells and page.claims and "<!-- questions -->" in page.source
    assert recording.primary(page.name) is not None


def test_no_recording_outlives_its_page() -> None:
    known = set(project.page_names())
    found = {
        path.relative_to(ROOT / "recordings" / machine).with_suffix("").as_posix()
        for machine in recording.machines()
        for path in (ROOT / "recordings" / machine).rglob("*.ipynb")
    }
    assert found <= known


def test_every_machine_that_recorded_is_in_the_table_and_the_primary_recorded_everything() -> None:
    table = recording.machine_table(project.root())
    assert set(recording.machines()) <= set(table) and project.primary_machine() in table
    assert all(recording.primary(name) for name in project.page_names())


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_page_names_itself_and_its_sections_come_from_its_own_snippet(question: str) -> None:
    page = read_page(question)
    assert SLUG.fullmatch(question.split("/")[1])
    assert page.heading[1]["data-page"] == question and page.heading[0].rstrip(")").endswith("?")
    included = set(re.findall(r'--8<-- "([^":]+)', page.source))
    assert f"snippets/{question}.py" in included
    assert all(path.startswith("snippets/models/") for path in included - {f"snippets/{question}.py"})


@pytest.mark.parametrize("topic", project.TOPICS)
def test_a_topic_page_takes_its_sections_from_its_topic(topic: str) -> None:
    included = set(re.findall(r'--8<-- "([^":]+)', read_page(f"{topic}/index").source))
    assert included and all(path.startswith((f"snippets/{topic}/", "snippets/models/")) for path in included)


@pytest.mark.models
@pytest.mark.parametrize("question", QUESTIONS)
def test_a_snippet_measures_controls_and_says_what(question: str) -> None:
    module = import_module(f"snippets.{question.replace('/', '.')}")
    first = (module.__doc__ or "").strip().splitlines()[0]
    assert first.rstrip(")").endswith("?"), "the docstring begins with the question"
    assert f"python -m snippets.{question.replace('/', '.')}" in (module.__doc__ or "")
    for name, small in (("measure", False), ("control", True)):
        parameters = inspect.signature(getattr(module, name)).parameters
        assert list(parameters)[:3] == ["small", "device", "dtype"] and parameters["small"].default is small
        assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters.values())
        assert parameters["device"].default is None and parameters["dtype"].default is None
        assert inspect.getdoc(getattr(module, name))


@pytest.mark.parametrize("question", QUESTIONS)
def test_public_functions_of_a_snippet_have_docstrings(question: str) -> None:
    tree = ast.parse(_source(question))
    bare = [
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        and not node.name.startswith("_")
        and node in tree.body
        and not ast.get_docstring(node)
    ]
    assert not bare


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_snippet_runs_as_a_module(question: str) -> None:
    assert re.search(
        rf'if __name__ == "__main__":\n(?:    .*\n|\n)*?    report\("{question}", measure\(', _source(question)
    )


def test_questions_stand_in_the_navigation_once() -> None:
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in project.page_names():
        assert len(re.findall(rf"(?<![\w/]){name}\.md\b", text)) == 1, name


def _source(question: str) -> str:
    return (ROOT / "snippets" / f"{question}.py").read_text(encoding="utf-8")
