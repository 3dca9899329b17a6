"""The home page's generated parts: they follow the pages and the recordings, and say so when they cannot."""

from __future__ import annotations

import pytest

from measured import home
from measured.pulled import PullError, pull


def test_the_example_goes_from_statement_to_recorded_value_to_verdict(mini) -> None:
    text = pull("<!-- pull example S0.4a -->")
    order = ["“A box is a product”", "**120 bytes**", "<code>box_bytes</code></th><td>120</td>", "Holds</span>"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert f"Recorded on This machine, {mini.book().metadata['measured']['recorded']}" in text
    assert "(kv_cache/sample.md#verdict-s0-4a)" in text


def test_an_example_that_nobody_stated_or_recorded_is_an_error(mini) -> None:
    with pytest.raises(PullError, match=r"no verdict on 'S8\.x'"):
        home.example("S8.x")
    mini.book_path.unlink()
    with pytest.raises(PullError, match="recorded claim"):
        home.example("S0.4a")


def test_topics_without_a_question_are_left_out(mini) -> None:
    text = home.topics()
    assert "[**Boxes**](kv_cache/index.md) · 1 questions" not in text
    assert "[**Boxes**](kv_cache/index.md) · 1 question\n" in text and "[How big is a box?](kv_cache/sample.md)" in text
    assert "quantization" not in text


def test_what_was_checked_is_counted_by_class_state_and_verdict(mini) -> None:
    text = home.checked()
    assert "<strong>7</strong>: 4 exact counts and equalities (D), 1 values" in text
    assert "<strong>6</strong>: on the machine recorded; 1 needs hardware that it lacks" in text
    assert "<strong>1</strong>: [1 hold](verdicts.md#holds)" in text
    mini.replace('data-check="speed_ratio >= 2"', 'data-check="speed_ratio >= 5"')
    assert "<strong>5</strong>: on the machine recorded; 1 needs hardware that it lacks, 1 fails" in home.checked()
