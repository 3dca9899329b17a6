"""What people say: every statement of the sources on a finished topic has one verdict, and its evidence holds.

S0: Kalyan KS, LLM interview questions and answers. S1: 100+ LLM Questions and Answers Every AI Engineer Needs to Know,
chapter 12. S2: What is the benefit of using Quantization in LLM.
"""

from __future__ import annotations

import pytest

from measured import claims, project
from measured.page import Verdict, read_page
from measured.verdict_list import all_said
from measured.weave import claim_state, verdict_broken

STATEMENTS = {
    "quantization": [
        *("S0.4a", "S0.4b", "S0.4c", "S0.4d", "S1.1a", "S1.1b", "S1.1c", "S1.1d", "S1.1e"),
        *("S2.a", "S2.b", "S2.c", "S2.d", "S2.e", "S2.f"),
    ],
    "kv_cache": ["S0.5a", "S0.5b", "S0.5c", "S0.5d", "S0.5e", "S0.5f", "S0.5g", "S1.3.0"],
    "embeddings": ["S0.6a", "S0.6b", "S0.6c", "S0.6d", "S2.x1"],
    "throughput": [*(f"S1.2.{number}" for number in range(1, 13)), *(f"S1.3.{number}" for number in range(1, 11))],
}
OWED = [(topic, statement) for topic, statements in STATEMENTS.items() for statement in statements]


def verdicts(topic: str) -> list[tuple[str, Verdict]]:
    """Every verdict of a topic with the page it stands on, the topic page's own among them."""
    names = [*project.question_names(topic), f"{topic}/index"]
    return [(name, verdict) for name in names for verdict in read_page(name).verdicts]


@pytest.mark.parametrize(("topic", "statement"), OWED, ids=[statement for _, statement in OWED])
def test_a_statement_has_one_verdict_whose_evidence_holds(topic: str, statement: str) -> None:
    found = [(page, verdict) for page, verdict in verdicts(topic) if verdict.statement == statement]
    assert len(found) == 1, f"{statement}: {len(found)} verdicts in {topic}"
    page, verdict = found[0]
    if verdict.status == "not-measured":
        assert len(verdict.body.split()) > 10, f"{page}: {statement} gives no reason"
        return
    assert verdict.evidence and not verdict_broken(verdict)
    states = {claim.id: claim_state(claim) for _, i in verdict.evidence if (claim := claims.find(i))}
    assert "holds" in states.values(), f"{page}: {statement} rests on {states}"


def test_every_statement_is_listed_among_the_things_people_say() -> None:
    listed = sorted((said.topic, said.verdict.statement) for said in all_said())
    assert listed == sorted(OWED)


def test_no_verdict_is_on_a_statement_that_nobody_made() -> None:
    found = {verdict.statement for topic in project.TOPICS for _, verdict in verdicts(topic)}
    assert found <= {statement for _, statement in OWED}


def test_few_statements_stay_unmeasured() -> None:
    unmeasured = [v.statement for topic in project.TOPICS for _, v in verdicts(topic) if v.status == "not-measured"]
    assert len(unmeasured) <= 4
