"""The declared range of versions, as far as one environment can hold it: names, syntax, modules that are gone."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.torch_names import FOLDERS, ROOT, missing, parse, sources, used

OLDEST_NAMES = ROOT / "tests" / "torch_2_11_names.txt"
OLDEST_PYTHON = (3, 11)
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = sources()
# Removed from the standard library since the oldest Python ("What's New In Python" of 3.12 and 3.13).
GONE = {
    "asynchat", "asyncore", "distutils", "imp", "smtpd",
    "aifc", "audioop", "cgi", "cgitb", "chunk", "crypt", "imghdr", "lib2to3", "mailcap", "msilib", "nis", "nntplib",
    "ossaudiodev", "pipes", "sndhdr", "spwd", "sunau", "telnetlib", "uu", "xdrlib",
}  # fmt: skip


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="module")
def oldest() -> dict[str, set[str]]:
    return parse(OLDEST_NAMES.read_text(encoding="utf-8"))


def torch_range() -> SpecifierSet:
    lines = map(Requirement, PYPROJECT["project"]["optional-dependencies"]["run"])
    return next(line.specifier for line in lines if line.name == "torch")


def test_the_names_are_those_of_the_oldest_release_in_the_range() -> None:
    version = OLDEST_NAMES.read_text(encoding="utf-8").split()[2].strip(",")
    major, minor, _ = (int(part) for part in version.split("."))
    assert OLDEST_NAMES.name == f"torch_{major}_{minor}_names.txt"
    assert torch_range().contains(version) and not torch_range().contains(f"{major}.{minor - 1}.99")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_name_of_torch_is_in_the_oldest_release(path: Path, oldest: dict[str, set[str]]) -> None:
    names = used(path.read_text(encoding="utf-8"))
    gone = [f"{name_of(path)}:{line}: {part}" for line, name in names if (part := missing(name, oldest))]
    assert not gone, "\n".join([*gone, f"not in PyTorch {OLDEST_NAMES.stem}: ask for it, or raise the range"])


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("import torch\ntorch.made_up(1)", "torch.made_up"),
        ("from torch import made_up", "torch.made_up"),
        ("import torch.made_up", "torch.made_up"),
        ("import torch.nn.functional as F\nF.made_up(x)", "torch.nn.functional.made_up"),
        ("from torch import nn\nnn.attention.made_up", "torch.nn.attention.made_up"),
        ("import torch\ntorch.ops.aten._made_up_mm(a, b)", "torch.ops.aten._made_up_mm"),
        ("from torch.utils._pytree import made_up", "torch.utils._pytree.made_up"),
    ],
)
def test_a_made_up_name_is_noticed(source: str, part: str, oldest: dict[str, set[str]]) -> None:
    assert part in {missing(name, oldest) for _, name in used(source)}


def test_names_that_are_there_are_found(oldest: dict[str, set[str]]) -> None:
    source = (
        "import torch\nimport torch.nn.functional as F\nfrom torch import Tensor, nn\n"
        "torch._int_mm; torch.ops.aten._weight_int8pack_mm; torch.float8_e4m3fn; F.linear; nn.Module\n"
        "torch.cuda.Event; torch.backends.cuda.matmul.fp32_precision; torch.Tensor.anything; torch.__version__; other.x"
    )
    found = list(used(source))
    assert len(found) > 10 and not [name for _, name in found if missing(name, oldest)]


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_file_is_of_the_oldest_python(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source, name_of(path), feature_version=OLDEST_PYTHON)
    assert not newer_syntax(tree), f"{name_of(path)}: {newer_syntax(tree)}"
    roots = {
        (name.partition(".")[0], node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""])
    }
    assert not [f"{name_of(path)}:{line}: {name}" for name, line in roots if name in GONE]


def newer_syntax(tree: ast.AST) -> list[str]:
    """Statements that a newer Python parses and the oldest does not, where a parser lets them pass."""
    newer = [kind for name in ("TypeAlias", "TemplateStr") if (kind := getattr(ast, name, None))]
    found = [type(node).__name__ for node in ast.walk(tree) if isinstance(node, tuple(newer))]
    return found + ["type parameters" for node in ast.walk(tree) if getattr(node, "type_params", None)]


@pytest.mark.parametrize("source", ["type A = int", "def first[T](x: T) -> T: ...", "except* = 1"])
def test_newer_syntax_is_noticed(source: str) -> None:
    try:
        tree = ast.parse(source, feature_version=OLDEST_PYTHON)
    except SyntaxError:
        return
    assert newer_syntax(tree)


def test_what_is_gone_is_no_module_of_a_newer_python() -> None:
    assert not {"tomllib", "ast"} & GONE
    if sys.version_info >= (3, 13):
        assert not GONE & sys.stdlib_module_names
    elif sys.version_info < (3, 12):
        assert set(sys.stdlib_module_names) >= GONE


def test_the_range_is_declared_alike_everywhere() -> None:
    project, ruff, mypy = PYPROJECT["project"], PYPROJECT["tool"]["ruff"], PYPROJECT["tool"]["mypy"]
    major, minor = OLDEST_PYTHON
    assert project["requires-python"] == f">={major}.{minor}"
    assert (ruff["target-version"], mypy["python_version"]) == (f"py{major}{minor}", f"{major}.{minor}")
    prefix = "Programming Language :: Python :: 3."
    declared = [int(c.removeprefix(prefix)) for c in project["classifiers"] if c.startswith(prefix)]
    assert declared == [minor, minor + 1, minor + 2]
    assert set(FOLDERS) <= {p.name for p in ROOT.iterdir()}
