"""`measured prepare`: whatever pages load and none should make while it is timed; weights and caches, never numbers.

The steps stand in `[tool.measured] prepare` of pyproject.toml as `module:function`. A step takes no argument, is keyed
by its own inputs, writes by way of a temporary file, and returns at once when its work is done already.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator

from measured import project


def steps() -> Iterator[tuple[str, Callable[[], object]]]:
    """`(name, function)` of every preparation, in order.

    Raises:
        ValueError: An entry is not `module:function`, or there is no such function.
    """
    for entry in project.configuration().get("prepare", []):
        module, _, function = entry.partition(":")
        try:
            yield entry, getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"pyproject.toml, [tool.measured] prepare: {entry!r}: {error}") from None
