"""Which names of PyTorch this project uses, and which there are in a release.

`tests/torch_2_11_names.txt` holds the names of the oldest release in the declared range, a line for each module:
`torch.cuda: Event empty_cache …`. It was written by that release, in an environment of its own beside this project:

    python3.11 -m venv /tmp/oldest && /tmp/oldest/bin/pip install 'torch==2.11.*' numpy
    /tmp/oldest/bin/python tests/torch_names.py > tests/torch_2_11_names.txt

When the range moves on, write the new oldest release's names and rename the file in `tests/test_versions.py`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("snippets", "measured", "tests", "benchmarks")
# Not for programs such as these, and heavy or noisy to import.
LEFT_OUT = tuple(
    f"torch.{name}"
    for name in ("ao", "contrib", "fx.experimental", "jit", "onnx", "package", "quantization", "testing")
)


def used(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything below `torch` that a module imports or reads, aliases resolved."""
    tree = ast.parse(source)
    stands_for = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] == "torch":
                    stands_for[alias.asname or "torch"] = alias.name if alias.asname else "torch"
                    yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            for alias in node.names:
                stands_for[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield node.lineno, f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        parts, inner = [], node
        while isinstance(inner, ast.Attribute):
            parts.append(inner.attr)
            inner = inner.value
        if parts and isinstance(inner, ast.Name) and inner.id in stands_for:
            yield node.lineno, ".".join([stands_for[inner.id], *reversed(parts)])  # type: ignore[attr-defined]


def sources() -> list[Path]:
    """Every Python file of the project."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def parse(text: str) -> dict[str, set[str]]:
    """Names by module, as `names_here` writes them."""
    lines = (line.partition(": ") for line in text.splitlines() if not line.startswith("#"))
    return {module: set(names.split()) for module, _, names in lines}


def missing(dotted: str, known: dict[str, set[str]]) -> str | None:
    """The part of a dotted name that is not there, if any; what belongs to a class or an object is not looked at."""
    parts = dotted.split(".")
    for end in range(1, len(parts)):
        module, name = ".".join(parts[:end]), parts[end]
        if f"{module}.{name}" not in known and name not in known[module] and not name.startswith("__"):
            return f"{module}.{name}"
        if f"{module}.{name}" not in known:
            return None
    return None


def names_here() -> Iterator[str]:
    """A line for each module of the PyTorch that runs this: public ones, and the private ones that the project uses."""
    import torch

    asked = {name for path in sources() for _, name in used(path.read_text(encoding="utf-8"))}
    found = {"torch"}
    for listed in pkgutil.walk_packages(torch.__path__, "torch.", onerror=lambda name: None):
        public = not any(part.startswith("_") for part in listed.name.split("."))
        wanted = any(name.startswith(f"{listed.name}.") for name in asked)
        if (public and not listed.name.startswith(LEFT_OUT)) or wanted:
            found.add(listed.name)
    yield f"# PyTorch {torch.__version__.partition('+')[0]}, by tests/torch_names.py"
    for name in sorted(found):
        try:
            module = importlib.import_module(name)
        except Exception:  # an optional dependency, or another platform
            continue
        there = {*dir(module), *getattr(module, "_config", ())}  # settings are no attributes of their module
        kept = (n for n in there if f"{name}.{n}" in asked or not n.startswith("__" if name == "torch" else "_"))
        yield f"{name}: {' '.join(sorted(kept))}"
    namespaces: dict[str, set[str]] = {}
    for overload in torch._C._dispatch_get_all_op_names():
        space, _, operator = overload.partition("::")
        namespaces.setdefault(space, set()).add(operator.partition(".")[0])
    yield f"torch.ops: {' '.join(sorted(namespaces))}"
    yield f"torch.ops.aten: {' '.join(sorted(namespaces['aten']))}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # a module's own, as it is imported
        lines = list(names_here())
    sys.stdout.write("\n".join(lines) + "\n")
