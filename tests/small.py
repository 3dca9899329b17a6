"""What a question's snippet measures at small scale, and what its control does: once for all tests of a run.

That every T and R claim fails on the control is the business of `tests/test_controls.py`; a question's own tests use
these values for what they alone know.
"""

from __future__ import annotations

import functools
import importlib
import statistics
from collections.abc import Mapping
from types import MappingProxyType

from measured import claims
from measured.page import read_page


@functools.cache
def measured_small(question: str) -> Mapping[str, float]:
    """What the snippet of a question measures at small scale."""
    return MappingProxyType(importlib.import_module(f"snippets.{question.replace('/', '.')}").measure(small=True))


@functools.cache
def controlled(question: str) -> Mapping[str, float]:
    """The same with the technique replaced by its baseline."""
    return MappingProxyType(importlib.import_module(f"snippets.{question.replace('/', '.')}").control())


@functools.cache
def controlled_again(question: str) -> Mapping[str, float]:
    """Medians of three controls: for values in seconds of a few samples, which one hiccup of the machine can bend."""
    runs = [controlled(question), *(controlled.__wrapped__(question) for _ in range(2))]
    return MappingProxyType({name: statistics.median(run[name] for run in runs) for name in runs[0]})


def failing_small(question: str, classes: str = "DT") -> list[str]:
    """Ids of a page's claims of these classes that do not hold at small scale; a page without any is refused."""
    stated = [claim for claim in read_page(question).claims if claim.value_class in classes]
    if not stated:
        raise ValueError(f"{question} has no claim of class {' or '.join(classes)}")
    return [claim.id for claim in stated if not claims.holds(claim, measured_small(question))]
