"""Coding drills: each fails blank and passes with the project's own code, and nobody's work is lost."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from measured import drills, project
from measured.cli import app

NAMED = [pytest.param(each, id=each.name) for each in drills.DRILLS]
# What interviewers have people write.
EXPECTED = {"attention", "online_softmax", "kv_cache_step", "gqa", "rope", "top_p", "block_allocator", "int8_rows"}


def invoke(folder: Path, *words: str, said: str | None = None) -> Result:
    return CliRunner().invoke(app, ["drill", *words, "--folder", str(folder)], input=said)


def solved(asked: drills.Drill) -> str:
    """The blank file with the project's own definitions in place of the blank ones."""
    head, _, _ = drills.blank(asked).partition(drills._emptied_parts(asked)[0])
    return head + drills.solution(asked) + "\n"


@pytest.mark.models
@pytest.mark.parametrize("asked", NAMED)
def test_it_fails_blank_and_passes_with_the_projects_own_code(asked: drills.Drill, tmp_path: Path) -> None:
    path = drills.write(asked, tmp_path)
    refused = drills.grade(asked, tmp_path)
    assert not refused.passed and "your turn" in refused.told
    path.write_text(solved(asked), encoding="utf-8")
    accepted = drills.grade(asked, tmp_path)
    assert accepted.passed, accepted.told


@pytest.mark.models
def test_a_wrong_answer_fails_and_names_the_readers_file(tmp_path: Path) -> None:
    asked = drills.drill("gqa")
    path = drills.write(asked, tmp_path)
    wrong = (
        solved(asked)
        .replace("heads // keys.shape[1], head_dim", "heads // keys.shape[1], head_dim")
        .replace(
            "F.scaled_dot_product_attention(rows, keys, values)", "F.scaled_dot_product_attention(rows, keys, keys)"
        )
    )
    assert wrong != solved(asked)
    path.write_text(wrong, encoding="utf-8")
    assert not drills.grade(asked, tmp_path).passed
    path.write_text(wrong.replace("rows = ", "rows = undefined_name or "), encoding="utf-8")
    assert "gqa.py" in drills.grade(asked, tmp_path).told


def test_there_are_enough_of_them_and_each_can_be_graded() -> None:
    assert len(drills.DRILLS) >= 10 and set(drills.BY_NAME) >= EXPECTED
    for asked in drills.DRILLS:
        assert len(asked.hints) >= 3 and asked.tests
        for test in asked.tests:
            path, _, name = test.partition("::")
            source = (project.root() / path).read_text(encoding="utf-8")
            assert not name or f"def {name}(" in source, test


@pytest.mark.parametrize("asked", NAMED)
def test_the_blank_file_is_python_without_the_answer(asked: drills.Drill) -> None:
    """Where the project has statements, the blank has one that raises; the rest of a class is as it was."""
    blank = drills.blank(asked)
    assert blank.count(drills.TURN) == len(asked.definitions)
    found = {node.name: node for node in ast.walk(ast.parse(blank)) if isinstance(node, ast.FunctionDef)}
    for name in asked.definitions:
        body = [line for line in found[name.split(".")[-1]].body if not isinstance(line, ast.Expr)]
        assert [ast.unparse(line) for line in body] == [ast.unparse(ast.parse(drills.TURN))]
    assert not set(asked.hidden) & set(re.findall(r"\w+", blank))


def test_work_is_never_overwritten_without_a_yes(tmp_path: Path) -> None:
    assert invoke(tmp_path, "rope").exit_code == 0
    path = tmp_path / "rope.py"
    path.write_text("def rotate(): ...\n", encoding="utf-8")
    refused = invoke(tmp_path, "rope", "--reset")
    assert refused.exit_code == 1 and path.read_text(encoding="utf-8") == "def rotate(): ...\n"
    assert invoke(tmp_path, "rope", "--reset", "--yes").exit_code == 0
    assert path.read_text(encoding="utf-8") == drills.blank(drills.drill("rope"))
    assert invoke(tmp_path, "rope", "--reset").exit_code == 0  # nothing of the reader's in it


def test_hints_climb_and_the_ladder_ends(tmp_path: Path) -> None:
    asked = drills.drill("int8_rows")
    shown = [drills.next_hint(asked, tmp_path) for _ in range(len(asked.hints) + 1)]
    assert [number for number, _ in shown] == [1, 2, 3, 3]
    assert [text for _, text in shown[:3]] == list(asked.hints)
    assert drills.next_hint(drills.drill("rope"), tmp_path)[0] == 1
    (tmp_path / ".hints.json").write_text("{broken", encoding="utf-8")
    assert drills.next_hint(asked, tmp_path)[0] == 1
    assert json.loads((tmp_path / ".hints.json").read_text(encoding="utf-8")) == {"int8_rows": 1}


def test_the_list_says_what_was_begun(tmp_path: Path) -> None:
    drills.write(drills.drill("gqa"), tmp_path)
    (tmp_path / "rope.py").write_text("pass\n", encoding="utf-8")
    told = invoke(tmp_path, "--list").output
    rows = {line.split()[1]: line for line in told.splitlines() if len(line.split()) > 2}
    assert drills.BLANK in rows["gqa"] and drills.STARTED in rows["rope"] and drills.BLANK not in rows["top_p"]


@pytest.mark.parametrize(
    ("content", "told"),
    [("def (", "invalid syntax"), ("x = 1\n", "defines no rotation, rotate"), ("def rotate(): ...\n", "no rotation")],
)
def test_a_file_that_cannot_be_graded_says_why(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "rope.py").write_text(content, encoding="utf-8")
    result = CliRunner().invoke(app, ["drill", "rope", "--folder", str(tmp_path)])
    assert result.exit_code == 1 and told in " ".join(result.output.split())


def test_an_unknown_drill_names_the_nearest(tmp_path: Path) -> None:
    result = invoke(tmp_path, "atention")
    assert result.exit_code == 2 and "attention" in result.output
