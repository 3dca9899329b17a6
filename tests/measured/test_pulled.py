"""Pulled lists: each name is made by a function that exists, and a name that nothing makes is an error."""

from __future__ import annotations

import re
from importlib import import_module

import pytest

from measured import project, pulled


@pytest.mark.parametrize("name", pulled.SOURCES)
def test_a_name_stands_for_a_function_with_a_docstring(name: str) -> None:
    module, _, function = pulled.SOURCES[name].partition(":")
    assert getattr(import_module(module), function).__doc__


def test_every_name_is_pulled_by_a_page_and_every_pull_has_a_name() -> None:
    docs = project.root() / "docs"
    pages = [path for path in docs.rglob("*.md") if "notebooks" not in path.parts]
    asked = {name for path in pages for name in re.findall(r"^<!-- pull ([\w-]+)", path.read_text("utf-8"), re.M)}
    assert asked == set(pulled.SOURCES)


def test_an_argument_is_handed_on_and_other_lines_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pulled.SOURCES, "quoted", "json:dumps")
    assert pulled.pull("a\n<!-- pull quoted S2.d x -->\n<!-- b -->") == 'a\n\n"S2.d x"\n\n<!-- b -->'
    assert pulled.pull("`<!-- pull quoted -->` in a line") == "`<!-- pull quoted -->` in a line"


def test_an_unknown_name_says_what_is_known() -> None:
    with pytest.raises(pulled.PullError, match=r"'verdict' to pull; known: .*verdicts"):
        pulled.pull("<!-- pull verdict -->")
