"""Numbers to know: for each question its formula in lines, and the sentence that carries its number."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from measured import checks, number_list, project
from measured.page import Page, read_page


def page(answer: str = "", formula: str = "") -> Page:
    source = f'# Q?\n\n!!! answer "In 30 seconds"\n\n    {answer}\n\n```math\n{formula}\n```\n'
    return Page("kv_cache/q", Path("q.md"), source)


def test_the_sentence_with_a_claim_and_digits_comes_before_all_others() -> None:
    word, number = '**equal**{ .claim #a data-class=D data-check="x == 1" }', '**7**{ .m data-m="b_count:.0f" }'
    claim = '**3 bytes**{ .claim #c data-class=D data-check="y_bytes == 3" }'
    assert number_list.key_sentence(page(f"It is {word}. Then {number}. Then {claim}.")) == f"Then {claim}."
    assert number_list.key_sentence(page(f"It is {word}. Then {number}.")) == f"Then {number}."
    assert number_list.key_sentence(page(f"Well. It is {word}.")) == "Well."
    assert number_list.key_sentence(Page("kv_cache/q", Path("q.md"), "# Q?\n")) == ""


def test_equations_side_by_side_stand_apart_but_not_within_braces_or_from_their_remark() -> None:
    assert number_list.formulas(page(formula=r"a = b, \qquad c = d")) == ["a = b", "c = d"]
    together = [r"\frac{a \qquad b}{c}", r"\left( a \qquad b \right)", r"a \qquad (\text{FP32: } 4)"]
    for formula in together:
        assert number_list.formulas(page(formula=formula)) == [formula]
    assert number_list.formulas(Page("kv_cache/q", Path("q.md"), "# Q?\n")) == []


def test_a_long_sum_goes_on_in_a_second_line() -> None:
    term = r"\text{" + "w" * (number_list.COLUMN_LETTERS // 2) + "}"
    assert number_list.formulas(page(formula=f"a = {term} + (b + c) + {term}")) == [
        f"a = {term}",
        "+ (b + c)",
        f"+ {term}",
    ]
    assert number_list.formulas(page(formula="a = b + c")) == ["a = b + c"]


@pytest.mark.parametrize("topic", project.TOPICS)
def test_a_sheet_has_every_question_of_its_topic_with_formula_and_backed_number(topic: str) -> None:
    sections = number_list.number_list(topic).split("</section>")[:-1]
    assert len(sections) == len(project.question_names(topic)) > 0
    for section in sections:
        name = re.search(rf"\(\.\./({topic}/\w+)\.md\)", section)
        assert name and read_page(name[1]).heading[0] in section
        assert "<math" in section and re.search(rf'\*\*[^*]*\*\*\{{[^}}]*data-from="{name[1]}"', section), name[1]


def test_an_unknown_topic_is_named() -> None:
    with pytest.raises(project.UnknownNameError, match="kv_cash"):
        number_list.number_list("kv_cash")


def test_pages_in_folders_of_their_own_are_checked_too(mini) -> None:
    sheet = mini.root / "docs" / "numbers" / "boxes.md"
    sheet.parent.mkdir()
    sheet.write_text("# Boxes\n\nTakes 5 GB.\n", encoding="utf-8")
    assert [str(p) for p in checks.check_pages() if "naked number “5 GB”" in p.what and p.path == sheet]
