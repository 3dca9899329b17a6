"""`measured new`: a question's page, snippet and test, which fail until they are filled in."""

from __future__ import annotations

import re
from pathlib import Path

from measured import project

_PAGE = """\
---
title: {title}
description: TODO one sentence for search results.
asked: TODO
tags: [{topic}]
---

# {question} {{ data-page="{topic}/{slug}" }}

TODO the headline: one sentence, ten seconds.

!!! answer "In 30 seconds"

    TODO at most seventy-five words, speakable, with one backed number and its condition.

## The formula

TODO the formula with units.

## On a whiteboard

TODO the derivation by hand.

## Measured

```python
from measured.values import record

--8<-- "snippets/{topic}/{slug}.py:imports"
```

```python
--8<-- "snippets/{topic}/{slug}.py:TODO"
```

## When is it false?

TODO the counter-regime, measured.

## Follow-ups

TODO three to six, tagged junior, senior or staff.

!!! say "Say"

    TODO

!!! dont-say "Don't say"

    TODO the wrong answer, why it tempts, what refutes it.

## Sources

TODO
"""
_SNIPPET = '''\
"""{question}

TODO what it claims, in words.

Run: python -m snippets.{topic}.{slug}
"""

from __future__ import annotations

# --8<-- [start:imports]
import torch

# --8<-- [end:imports]


def measure(*, small: bool = False, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """TODO every value of the page, under names that end in their unit."""
    raise NotImplementedError("measure: return the page's values")


def control(*, small: bool = True, device: str | None = None, dtype: torch.dtype | None = None) -> dict[str, float]:
    """TODO the same values with the technique replaced by its baseline: every R and T claim must fail on it."""
    raise NotImplementedError("control: return the baseline's values")


if __name__ == "__main__":
    from measured.values import report

    report("{topic}/{slug}", measure())
'''
_TEST = '''\
"""The values agree with a second way to them, and each trap is shown wrong."""

from __future__ import annotations

from snippets.{topic} import {slug}


def test_values_agree_with_a_second_way() -> None:
    values = {slug}.measure(small=True)
    assert values == "TODO: an independent second way to the same numbers"
'''


class ScaffoldError(ValueError):
    """A question that cannot be created as asked."""


def new_question(topic: str, slug: str, question: str) -> list[Path]:
    """Write a question's page, snippet and test, and enter it in the navigation.

    Raises:
        project.UnknownNameError: The topic is none of the four.
        ScaffoldError: The slug or question is malformed, or a file exists already; nothing is written then.
    """
    project.topic_or_fail(topic)
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", slug) or slug == "index":
        raise ScaffoldError(f"slug {slug!r}: use lower_snake_case, such as bytes_per_token")
    if not question.strip().endswith("?"):
        raise ScaffoldError(f"{question!r} is no question: end it with a question mark")
    root = project.root()
    title = slug.replace("_", " ").capitalize()
    wanted = {
        root / "docs" / topic / f"{slug}.md": _PAGE,
        root / "snippets" / topic / f"{slug}.py": _SNIPPET,
        root / "tests" / topic / f"test_{slug}.py": _TEST,
    }
    if existing := [p for p in wanted if p.exists()]:
        raise ScaffoldError(f"{existing[0].relative_to(root)} exists already; nothing was written")
    navigation = _with_entry(root / "mkdocs.yml", topic, slug)
    for path, template in wanted.items():
        project.write_atomically(path, template.format(topic=topic, slug=slug, question=question.strip(), title=title))
    project.write_atomically(root / "mkdocs.yml", navigation)
    return list(wanted)


def _with_entry(path: Path, topic: str, slug: str) -> str:
    """mkdocs.yml with the page entered after the topic's last one."""
    text = path.read_text(encoding="utf-8")
    entries = list(re.finditer(rf"^(?P<indent> *)- (?:[^\n]*: )?{topic}/[\w]+\.md *$", text, re.M))
    if not entries:
        raise ScaffoldError(f"mkdocs.yml has no entry of {topic} to put the page after")
    last = entries[-1]
    return f"{text[: last.end()]}\n{last['indent']}- {topic}/{slug}.md{text[last.end() :]}"
