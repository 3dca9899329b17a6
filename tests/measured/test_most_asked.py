"""Most asked: every question with its whole short answer, once, the most asked first."""

from __future__ import annotations

import re
from itertools import pairwise

from measured import most_asked, project
from measured.page import read_page


def test_every_question_stands_once_by_how_often_it_is_asked() -> None:
    text = most_asked.most_asked()
    shown = re.findall(r"^### \[.*\]\(([\w/]+)\.md\)", text, re.M)
    assert sorted(shown) == sorted(project.question_names())
    ranks = [read_page(name).meta["asked"] for name in shown]
    assert ranks == sorted(ranks) and ranks[0] == 1
    anchors = re.findall(r"^### .*\{ #([\w-]+) \}$", text, re.M)
    assert re.findall(r"\]\(#([\w-]+)\)", text) == anchors and len(set(anchors)) == len(anchors)


def test_questions_asked_alike_stay_together_by_topic() -> None:
    shown = re.findall(r"^### \[.*\]\((\w+)/\w+\.md\)", most_asked.most_asked(), re.M)
    changes = sum(a != b for a, b in pairwise(shown))
    assert changes < len(most_asked.OFTEN) * len(project.TOPICS)


def test_an_answer_is_shown_whole_with_its_evidence(mini) -> None:
    text = most_asked.most_asked()
    assert "Multiply: a box takes" in text and "boxes of sixty do not differ." in text
    assert text.count('data-from="kv_cache/sample"') == 2
    assert f"## {most_asked.OFTEN[1]}" in text and most_asked.OFTEN[2] not in text


def test_a_page_just_begun_stands_last(mini) -> None:
    mini.replace("asked: 1\n", "")
    assert most_asked.rank_of(mini.page()) == max(most_asked.OFTEN)
