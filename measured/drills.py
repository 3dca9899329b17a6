"""Coding drills: a function of the project with its body taken out, graded by the project's own tests.

`write` makes the file to work in; `grade` runs the tests with that file's definitions in place of the project's, in a
process of its own (`measured.drill_hook`); `next_hint` climbs the ladder. Nothing of the project is changed.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from measured import project
from measured.drill_tasks import DRILLS, Drill

LIMIT_SECONDS = 300
TURN = 'raise NotImplementedError("your turn")'


BY_NAME = {drill.name: drill for drill in DRILLS}


class DrillError(ValueError):
    """Work that cannot be graded, or must not be overwritten; the message says the mend."""


def drill(name: str) -> Drill:
    """The drill of that name.

    Raises:
        UnknownNameError: There is none.
    """
    if name not in BY_NAME:
        raise project.UnknownNameError("drill", name, list(BY_NAME))
    return BY_NAME[name]


def solution(asked: Drill) -> str:
    """The project's own definitions."""
    source = _source(asked)
    return "\n\n\n".join(_segment(source, node) for node in _nodes(asked, source))


def blank(asked: Drill) -> str:
    """The file to work in: task, imports, and the definitions with their bodies taken out."""
    head = f'"""{asked.task}\n\nFill in what raises; `measured drill {asked.name}` grades it, `--hint` helps.\n"""'
    top = f"{head}\n\nfrom __future__ import annotations\n\n{_imports(asked)}\n"
    return "\n\n".join([top, *(f"{part}\n" for part in _emptied_parts(asked))])


def write(asked: Drill, folder: Path, *, overwrite: bool = False) -> Path:
    """Write the blank file.

    Raises:
        DrillError: There is work of the reader's, and it was not said to overwrite it.
    """
    path = work_path(asked, folder)
    if state_of(asked, folder) == STARTED and not overwrite:
        raise DrillError(f"{path} holds work of yours: --reset --yes overwrites it")
    project.write_atomically(path, blank(asked))
    return path


def work_path(asked: Drill, folder: Path) -> Path:
    """Where a drill's file lies."""
    return folder / f"{asked.name}.py"


BLANK, STARTED = "blank", "started"


def state_of(asked: Drill, folder: Path) -> str:
    """Whether there is a file, and whether it has been worked in."""
    path = work_path(asked, folder)
    if not path.exists():
        return "–"
    return BLANK if path.read_text(encoding="utf-8") == blank(asked) else STARTED


@dataclass(frozen=True)
class Grade:
    """What the tests said."""

    passed: bool
    told: str  # pytest's report


def grade(asked: Drill, folder: Path) -> Grade:
    """Run the project's tests with the reader's definitions in place of the project's.

    Raises:
        DrillError: There is no file, it is no Python, or a definition is missing; pytest is not installed.
    """
    path = work_path(asked, folder).resolve()
    if not path.is_file():
        raise DrillError(f"there is no {path}: measured drill {asked.name} writes it")
    check_work(asked, path)
    if importlib.util.find_spec("pytest") is None:
        raise DrillError("pytest grades drills: pip install -e '.[test]', or make test once")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "--tb=short", "-p", "no:cacheprovider"]
    command += ["-p", "measured.drill_hook", *asked.tests]
    environment = {**os.environ, "MEASURED_DRILL": asked.name, "MEASURED_DRILL_FILE": str(path)}
    try:
        done = subprocess.run(
            command, cwd=project.root(), env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise DrillError(
            f"the tests did not end in {LIMIT_SECONDS} s: does a loop of {path.name} never stop?"
        ) from None
    if done.returncode not in (0, 1):
        raise DrillError(f"the tests could not run:\n{(done.stdout + done.stderr).strip()}")
    return Grade(done.returncode == 0, done.stdout.strip())


def check_work(asked: Drill, path: Path) -> ast.Module:
    """The reader's file as a tree that has every definition asked for.

    Raises:
        DrillError: It is no Python, or lacks one.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise DrillError(f"{path}:{error.lineno}: {error.msg}") from None
    found = {node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    if missing := [name for name in tops(asked) if name not in found]:
        raise DrillError(f"{path} defines no {', '.join(missing)}: --reset writes the blank file again")
    return tree


def next_hint(asked: Drill, folder: Path) -> tuple[int, str]:
    """The next hint and its number from one; after the last one, the last again."""
    state = _state(folder)
    number = min(state.get(asked.name, 0) + 1, len(asked.hints))
    project.write_atomically(_state_path(folder), json.dumps({**state, asked.name: number}, indent=1) + "\n")
    return number, asked.hints[number - 1]


def _state_path(folder: Path) -> Path:
    return folder / ".hints.json"


def _state(folder: Path) -> dict[str, int]:
    """Hints seen, by drill; a broken file only costs their count."""
    try:
        state = json.loads(_state_path(folder).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return {k: v for k, v in state.items() if isinstance(v, int)} if isinstance(state, dict) else {}


def _source(asked: Drill) -> str:
    return (project.root() / asked.module).read_text(encoding="utf-8")


def tops(asked: Drill) -> list[str]:
    """Names at the module's top level that the drill replaces, each once."""
    return list(dict.fromkeys(name.split(".")[0] for name in asked.definitions))


def _nodes(asked: Drill, source: str) -> list[ast.FunctionDef | ast.ClassDef]:
    by_name = {n.name: n for n in ast.parse(source).body if isinstance(n, (ast.FunctionDef, ast.ClassDef))}
    return [by_name[name] for name in tops(asked)]


def _first_line(node: ast.FunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(each.lineno for each in node.decorator_list)])


def _segment(source: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    return "\n".join(source.splitlines()[_first_line(node) - 1 : node.end_lineno])


def _emptied_parts(asked: Drill) -> list[str]:
    source = _source(asked)
    return [_emptied(asked, source, node) for node in _nodes(asked, source)]


def _emptied(asked: Drill, source: str, node: ast.FunctionDef | ast.ClassDef) -> str:
    """A definition whose asked-for bodies are gone; docstrings stay."""
    lines, first = _segment(source, node).splitlines(), _first_line(node)
    methods = {name.split(".")[1] for name in asked.definitions if name.startswith(f"{node.name}.")}
    inside = [m for m in node.body if isinstance(m, ast.FunctionDef) and m.name in methods]
    functions = inside if isinstance(node, ast.ClassDef) else [node]
    for function in sorted(functions, key=lambda each: -each.lineno):
        documented = ast.get_docstring(function) is not None
        start = function.body[1].lineno if documented else function.body[0].lineno
        if documented:  # comments between the docstring and the first statement go too
            start = (function.body[0].end_lineno or start) + 1
        indent = " " * function.body[0].col_offset
        lines[start - first : (function.end_lineno or start) - first + 1] = [f"{indent}{TURN}"]
    return "\n".join(lines)


def _imports(asked: Drill) -> str:
    """The module's imports that the definitions use, and its own names, which the grader's module has anyway."""
    source = _source(asked)
    nodes = _nodes(asked, source)
    used = {leaf.id for node in nodes for leaf in ast.walk(node) if isinstance(leaf, ast.Name)}
    plain, own = [], []
    for statement in ast.parse(source).body:
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            if isinstance(statement, ast.ImportFrom) and statement.module == "__future__":
                continue
            wanted = [a for a in statement.names if (a.asname or a.name).split(".")[0] in used]
            if wanted:
                statement.names = wanted
                plain.append(ast.unparse(statement))
        else:
            own += [name for name in _defined(statement) if name in used]
    own = sorted(set(own) - set(tops(asked)) - set(asked.hidden))
    standard = [each for each in plain if each.split()[1].split(".")[0] in sys.stdlib_module_names]
    plain = [*standard, *([""] if standard and len(standard) < len(plain) else []), *plain[len(standard) :]]
    if own:
        plain = ["from typing import TYPE_CHECKING", *([] if standard else [""]), *plain]
        theirs = f"    from {asked.dotted} import {', '.join(own)}"
        plain += ["", "if TYPE_CHECKING:  # at hand when it is graded", theirs]
    return "\n".join(plain)


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return [statement.target.id]
    return []
