"""Things people say: every verdict listed once, what is false first, with the number that decides it."""

from __future__ import annotations

import re

import pytest

from measured import project, verdict_list
from measured.page import read_page

REFUTED = '!!! verdict refuted "S9.z: smaller boxes"\n\n    They are not.\n\n    - Opposite: [the bytes](#box-bytes)'


def test_every_verdict_of_the_pages_is_listed_once_and_the_refuted_stand_first() -> None:
    listed = re.findall(r'<li data-statement="([^"]+)" data-verdict="([\w-]+)"', verdict_list.verdict_list())
    written = []
    for name in project.page_names():
        written += re.findall(r'^!!! verdict ([\w-]+) "([\w.]+):', read_page(name).source, re.M)
    assert sorted(listed) == sorted((statement, status) for status, statement in written) and listed
    order = [list(verdict_list.WORDS).index(status) for _, status in listed]
    assert order == sorted(order) and listed[0][1] == "refuted"


def test_each_row_has_a_link_to_its_verdict_and_a_claim_of_it() -> None:
    rows = re.findall(r"<li data-statement.*?</li>", verdict_list.verdict_list(), re.S)
    assert rows
    for row in rows:
        statement = re.search(r'data-statement="([^"]+)"', row)
        assert statement and f"#verdict-{statement[1].lower().replace('.', '-')})" in row
        assert re.search(r"^\*(Holds|Flips|Opposite):\* .*\.claim", row, re.M), row


def test_a_side_shows_the_first_of_its_claims_that_states_a_number(mini) -> None:
    mini.append(REFUTED.replace("[the bytes]", "[alike](#box-alike), [the bytes]"))
    row = verdict_list.verdict_list().split("</li>")[0]
    assert "*Opposite:* the bytes, [**120 bytes**" in row and "counted alike" not in row
    assert "[Smaller boxes](kv_cache/sample.md#verdict-s9-z)" in row and "They are not." in row


def test_a_verdict_whose_claim_fails_says_so_in_words(mini) -> None:
    verdict = mini.page().verdicts[0]
    assert verdict_list.badge(verdict) == '<span class="ma-verdict holds">Holds</span>'
    mini.replace('data-check="box_bytes == 120" }, and', 'data-check="box_bytes == 121" }, and')
    assert verdict_list.badge(mini.page().verdicts[0]) == (
        f'<span class="ma-verdict holds broken">{verdict_list.BROKEN}</span>'
    )


def test_without_a_verdict_the_list_says_so(mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verdict_list, "all_said", list)
    assert verdict_list.verdict_list() == "No statement has a verdict yet."
