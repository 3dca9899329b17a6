from __future__ import annotations

import pytest

from snippets.models import smollm2, texts

pytestmark = pytest.mark.models


@pytest.mark.parametrize("year", [2022, 2023, 2024, 2026])
def test_prose_without_stage_directions(year: int) -> None:
    text = texts.address(year)
    assert 7_000 < len(text.split()) < 12_000
    assert not set("[]") & set(text)
    assert "Applause" not in text
    assert "\n\n\n" not in text and text == text.strip() + "\n"


def test_words_beside_a_stage_direction_stay() -> None:
    assert texts.address().startswith("The President. Well, thank you very much, everybody.")
    assert texts.address().rstrip().endswith("God bless America.\n\nThank you. Thank you.")


def test_enough_for_fourteen_windows_of_1024_tokens() -> None:
    assert smollm2.encode(texts.address()).shape[1] == 14_638


def test_a_year_that_is_not_pinned_names_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"2021.*2022, 2023, 2024, 2026"):
        texts.address(2021)
