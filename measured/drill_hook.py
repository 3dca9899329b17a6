"""A plugin of pytest that grades a drill: the drilled module is loaded with the reader's definitions in its own place.

The reader's statements run where the first definition stood, in the module's namespace: whoever imports the module,
or kept a reference while it loaded, gets theirs.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from measured import drills

_FUTURE = "from __future__ import annotations"


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: str, asked: drills.Drill, work: Path) -> None:
        super().__init__(name, path)
        self.asked, self.work = asked, work

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's own statements, and the reader's instead of the drilled definitions."""
        for code in self._codes():
            exec(code, module.__dict__)

    def _codes(self) -> list[CodeType]:
        own = ast.parse(Path(self.path).read_text(encoding="utf-8"), self.path).body
        tops = drills.tops(self.asked)
        gone = [at for at, node in enumerate(own) if getattr(node, "name", None) in tops]
        theirs = drills.check_work(self.asked, self.work).body
        kept = [node for at, node in enumerate(own) if at > gone[0] and at not in gone]
        parts = ((own[: gone[0]], self.path), (theirs, str(self.work)), (kept, self.path))
        return [_compiled(body, path) for body, path in parts]


def _compiled(body: Sequence[ast.stmt], path: str) -> CodeType:
    """Statements as code that leaves annotations unevaluated, as every module of the project does."""
    future = ast.parse(_FUTURE).body
    rest = [n for n in body if not (isinstance(n, ast.ImportFrom) and n.module == "__future__")]
    return compile(ast.Module(body=[*future, *rest], type_ignores=[]), path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, asked: drills.Drill, work: Path) -> None:
        self.asked, self.work = asked, work

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> Any:
        """The drilled module alone, from its own file through our loader."""
        if fullname != self.asked.dotted:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(fullname, spec.origin, self.asked, self.work)
        return spec


def install(name: str, work: Path) -> None:
    """Stand before the finders of modules.

    Raises:
        RuntimeError: The module is loaded already, so that nobody would get the reader's.
    """
    asked = drills.drill(name)
    if asked.dotted in sys.modules:
        raise RuntimeError(f"{asked.dotted} was loaded before the drill's own could stand in for it")
    sys.meta_path.insert(0, _Finder(asked, work))


# On import: pytest imports a plugin before any conftest, and a conftest may load the module.
if "MEASURED_DRILL" in os.environ:
    install(os.environ["MEASURED_DRILL"], Path(os.environ["MEASURED_DRILL_FILE"]))
