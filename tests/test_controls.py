"""Claims that can fail: each one about time or tolerance does, once the technique is its own baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from measured import claims, expression, project, recording
from measured.page import Claim, read_page
from tests.small import controlled, controlled_again, measured_small

pytestmark = pytest.mark.models
ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = project.question_names()
CLAIMS = [c for name in project.page_names() for c in read_page(name).claims]
BITING = [c for c in CLAIMS if c.value_class in ("T", "R")]


def snippets_of(claim: Claim) -> list[str]:
    """The snippets that measure a claim's values: its page's own, else those of its topic that record one of them."""
    own = ROOT / "snippets" / f"{claim.page}.py"
    wanted, found = expression.names(claim.check), []
    for name in [claim.page] if own.is_file() else []:
        found.append(name)
        wanted = wanted - set(measured_small(name))
    if wanted and claim.page.endswith("/index"):
        for name in project.question_names(claim.page.split("/")[0]):
            have = recording.primary(name)
            if have and wanted & set(have.values):
                found.append(name)
    return found


def values_on_control(claim: Claim, control: Callable[[str], Mapping[str, float]] = controlled) -> dict[str, float]:
    both = [{**measured_small(name), **control(name)} for name in snippets_of(claim)]
    return {name: value for values in both for name, value in values.items()}


def primary_values(claim: Claim) -> Mapping[str, float]:
    have = recording.primary(claim.page)
    assert have is not None, f"{claim.page} is not recorded"
    return have.values


@pytest.mark.parametrize("claim", BITING, ids=lambda c: c.id)
def test_a_claim_fails_on_its_control(claim: Claim) -> None:
    values = values_on_control(claim)
    missing = expression.names(claim.check) - set(values)
    assert not missing, f"measure() and control() of {snippets_of(claim)} do not return {sorted(missing)}"
    if claim.value_class == "R" and claims.holds(claim, values):  # once may be noise, the median of three is not
        values = values_on_control(claim, controlled_again)
    shown = {n: values[n] for n in sorted(expression.names(claim.check))}
    assert not claims.holds(claim, values), f"{claim.check} holds on the baseline as well: {shown}"


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.gated], ids=lambda c: c.id)
def test_a_claim_holds_on_the_primary_recording(claim: Claim) -> None:
    have = recording.primary(claim.page)
    assert have is not None, f"{claim.page} is not recorded"
    true = claims.holds(claim, have.values)
    assert true or set(claim.needs.split()) - set(have.about["machine"]["capabilities"])


@pytest.mark.parametrize("claim", [c for c in CLAIMS if not c.page.endswith("/index")], ids=lambda c: c.id)
def test_a_claim_can_be_evaluated_from_what_the_snippet_measures(claim: Claim) -> None:
    lacking = expression.names(claim.check) - set(measured_small(claim.page))
    assert not lacking, f"measure() does not return {sorted(lacking)}"


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_snippet_measures_every_value_that_its_page_records(question: str) -> None:
    have = recording.primary(question)
    assert have is not None, f"{question} is not recorded"
    assert not set(have.values) - set(measured_small(question))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_control_measures_the_same_things(question: str) -> None:
    """A control that returns names of its own, or none, replaces nothing."""
    own, names = set(controlled(question)), set(measured_small(question))
    assert own and own <= names, f"control() returns {sorted(own - names)}, which measure() does not"
