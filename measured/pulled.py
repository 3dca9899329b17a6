"""What pages without code of their own pull in: `<!-- pull NAME ARGUMENT -->` becomes Markdown made from the pages.

Never a copy: a verdict, number or prediction stands in one place, and every list of them is made at each build.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import import_module

SOURCES: dict[str, str] = {
    "glossary": "measured.glossary:pull",
    "checked": "measured.home:checked",
    "example": "measured.home:example",
    "machines": "measured.machine_list:machine_list",
    "most-asked": "measured.most_asked:most_asked",
    "numbers": "measured.number_list:number_list",
    "predictions": "measured.show_predictions:pulled",
    "topics": "measured.home:topics",
    "verdicts": "measured.verdict_list:verdict_list",
}
"""What can be pulled, as `module:function` that takes the argument and returns Markdown; imported when asked for."""

_PULL = re.compile(r"^<!-- pull (?P<name>[\w-]+)(?: (?P<argument>[^>]+?))? -->$", re.M)


class PullError(ValueError):
    """A page asks for what nothing makes; the message names what can be asked for."""


def pull(text: str) -> str:
    """A page's Markdown with everything that it pulls in its place.

    Raises:
        PullError: unknown name.
    """
    return _PULL.sub(lambda found: f"\n{_maker(found['name'])(found['argument'] or '')}\n", text)


def _maker(name: str) -> Callable[[str], str]:
    if name not in SOURCES:
        raise PullError(f"nothing is called {name!r} to pull; known: {', '.join(sorted(SOURCES))}")
    module, _, function = SOURCES[name].partition(":")
    found: Callable[[str], str] = getattr(import_module(module), function)
    return found
