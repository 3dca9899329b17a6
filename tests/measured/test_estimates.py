"""Estimates: what is drawn, how a guess is read and graded, how numbers are shown, and what a page may not state."""

from __future__ import annotations

import math

import pytest

from measured import estimates
from measured.estimates import Choice, Estimate, GuessError, Mistake
from tests.measured.conftest import Mini

CACHE = Estimate(
    id="estimate-cache",
    line=1,
    ask="How large for {tokens} tokens of {model}?",
    givens=(
        tuple(Choice({"tokens": f"{n:,}"}, {"tokens": n}) for n in (1024, 4096, 8192)),
        (Choice({"model": "small"}, {"layers_count": 2}), Choice({"model": "large"}, {"layers_count": 9})),
    ),
    fixed={"row_bytes": 4096},
    name="cache_bytes",
    answer="2 * layers_count * row_bytes * tokens",
    mistakes=(Mistake("layers_count * row_bytes * tokens", "Keys and values."),),
)
VALUES = {"tokens": 8192, "layers_count": 32, "row_bytes": 2048}  # one GiB


def test_a_seed_draws_the_same_and_seeds_draw_everything() -> None:
    assert estimates.draw(CACHE, 7) == estimates.draw(CACHE, 7)
    drawn = [estimates.draw(CACHE, seed) for seed in range(200)]
    assert {(d.values["tokens"], d.values["layers_count"]) for d in drawn} == {
        (n, layers) for n in (1024, 4096, 8192) for layers in (2, 9)
    }
    tokens, model = drawn[0].values["tokens"], "small" if drawn[0].values["layers_count"] == 2 else "large"
    assert drawn[0].question == f"How large for **{tokens:,}** tokens of **{model}**?"


def test_the_generator_is_the_published_one() -> None:
    """The first numbers of mulberry32 from seed one, as the reference gives them."""
    numbers = estimates._mulberry32(1)
    assert [math.floor(next(numbers) * 2**32) for _ in range(3)] == [2693262067, 11749833, 2265367787]


@pytest.mark.parametrize(
    ("typed", "base", "unit"),
    [
        ("1 GiB", 2**30, "GiB"),
        ("1.5gb", 1.5e9, "GB"),
        ("131,072 B", 131072, "B"),
        (" .5 MB", 5e5, "MB"),
        ("2e3 kB", 2e6, "kB"),
    ],
)
def test_a_guess_is_read_with_its_unit(typed: str, base: float, unit: str) -> None:
    assert estimates.guessed(typed, "bytes") == (base, unit)


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("", "a number and its unit"),
        ("many", "a number and its unit"),
        ("4", "the unit is missing"),
        ("4 s", "'s' is no unit of this answer"),
        ("1,5 GB", "no unit"),
        ("0 GB", "above zero"),
        ("-3 GB", "above zero"),
        ("−3 GB", "above zero"),
    ],
)
def test_what_cannot_be_graded_is_refused_with_a_reason(typed: str, told: str) -> None:
    with pytest.raises(GuessError, match=told):
        estimates.guessed(typed, "bytes")


def test_what_the_question_counts_needs_no_unit() -> None:
    assert estimates.guessed("1,500", "tokens") == (1500, "")
    assert estimates.guessed("1500 tokens", "tokens") == (1500, "tokens")
    assert estimates.guessed("0.5", "ratio") == (0.5, "")
    with pytest.raises(GuessError, match="unit is missing"):
        estimates.guessed("5", "share")


@pytest.mark.parametrize(
    ("typed", "rating", "told"),
    [
        ("1 GiB", estimates.GOOD, ""),
        ("1.07 GB", estimates.GOOD, ""),
        ("1.09 GiB", estimates.GOOD, ""),
        ("1.3 GiB", estimates.HARD, ""),
        ("0.7 GiB", estimates.HARD, ""),
        ("2.1 GiB", estimates.AGAIN, ""),
        ("0.5 GiB", estimates.AGAIN, "Keys and values."),
        ("0.51 GiB", estimates.AGAIN, "Keys and values."),
        ("1.07 GiB", estimates.HARD, "number of GB, and you wrote GiB"),
        ("1 GB", estimates.HARD, "number of GiB, and you wrote GB"),
        ("1048.6 KiB", estimates.AGAIN, ""),
        ("1073742 KiB", estimates.HARD, "number of kB, and you wrote KiB"),
        ("8 GiB", estimates.AGAIN, "bits"),
        ("134 MB", estimates.AGAIN, "bytes for bits"),
    ],
)
def test_a_guess_is_graded_by_its_factor_and_a_named_mistake_is_told(typed: str, rating: int, told: str) -> None:
    found = estimates.grade(CACHE, VALUES, *estimates.guessed(typed, "bytes"))
    assert found.rating == rating and bool(found.mistake) == bool(told) and told in found.mistake


@pytest.mark.parametrize(
    ("value", "dimension", "text"),
    [
        (2**30, "bytes", "1.07 GB (1 GiB)"),
        (900, "bytes", "900 B"),
        (3.352e12, "bytes_per_second", "3.35 TB/s"),
        (0.00234, "seconds", "2.34 ms"),
        (5400, "seconds", "1.5 h"),
        (0.0714, "share", "7.14 %"),
        (3.2, "ratio", "3.2×"),
        (12345.6, "tokens_per_second", "12,346 tokens/s"),
        (2.5e15, "flops", "2.5 PFLOP"),
        (17, "count", "17"),
        (42.25, "count", "42.3"),
        (99.96, "count", "100"),
    ],
)
def test_answers_are_shown_in_the_unit_that_suits_them(value: float, dimension: str, text: str) -> None:
    assert estimates.shown(value, dimension) == text


@pytest.mark.parametrize(
    ("expression", "words", "numbers"),
    [
        ("2 * layers_count * row_bytes", "2 × layers × row bytes", "2 × 32 × 2,048"),
        ("(layers_count + 1) * row_bytes", "(layers + 1) × row bytes", "(32 + 1) × 2,048"),
        ("row_bytes / (layers_count / 4)", "row bytes ÷ (layers ÷ 4)", "2,048 ÷ (32 ÷ 4)"),
        ("row_bytes - (tokens - 1)", "row bytes − (tokens − 1)", "2,048 − (8,192 − 1)"),
        ("tokens // layers_count * 2", "⌊tokens ÷ layers⌋ × 2", "⌊8,192 ÷ 32⌋ × 2"),
        ("min(tokens, row_bytes) ** 2", "min(tokens, row bytes)^2", "min(8,192, 2,048)^2"),
        ("-layers_count + tokens", "−layers + tokens", "−32 + 8,192"),
    ],
)
def test_formulas_are_written_as_people_write_them(expression: str, words: str, numbers: str) -> None:
    assert estimates.formula(expression) == words and estimates.worked(expression, VALUES) == numbers


def test_a_name_says_what_it_is() -> None:
    assert [estimates.words(n) for n in ("kv_heads_count", "head_dim_count")] == ["KV heads", "head dim"]


STATED = """```estimate id="estimate-box"
ask: How large are {boxes} boxes of {name}?
given:
  name: {series: boxes, label: name}
  boxes: [2, 3, 5]
answer: {boxes_bytes: boxes * box_bytes}
mistakes:
  - wrong: boxes * counted_bytes * box_bytes
    told: Once is enough.
```
"""


def test_a_pages_estimate_draws_on_its_recording(mini: Mini) -> None:
    mini.append(STATED)
    assert mini.problems() == []
    (found,) = estimates.estimates(mini.page())
    assert found.fixed == {"counted_bytes": 120} and len(found.givens[0]) == 3
    drawn = estimates.draw(found, 0)
    assert estimates.truth(found, drawn.values) == drawn.values["boxes"] * drawn.values["box_bytes"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("answer: {", "answers: {", "has not ask, given, answer"),
        ("boxes: [2, 3, 5]", "boxes: [2, 3", "is no YAML"),
        ("series: boxes", "series: speeds", "no series 'speeds' of class D"),
        ("series: boxes", "series: crates", "no series 'crates'"),
        ("boxes * counted_bytes * box_bytes", "boxes * step_seconds", "step_seconds is neither given nor"),
        ("boxes * counted_bytes * box_bytes", "box_bytes * boxes", "gives the answer itself"),
        ("boxes_bytes: boxes", "boxes: boxes", "does not end in its unit"),
        ("boxes * box_bytes}", "boxes - box_bytes}", "the answer is"),
        ("boxes * box_bytes}", "round(boxes) * box_bytes}", "an estimate has"),
        ("{boxes} boxes", "{crates} boxes", "'crates'"),
        ("Once is enough.", "Once 8 is enough.", "naked number “8”"),
        ('id="estimate-box"', 'id="box"', "has no id"),
    ],
)
def test_what_a_page_may_not_state(mini: Mini, old: str, new: str, told: str) -> None:
    mini.append(STATED.replace(old, new))
    assert any(told in problem for problem in mini.problems()), mini.problems()


def test_an_id_stands_once_on_a_page(mini: Mini) -> None:
    mini.append(STATED + "\n" + STATED)
    assert any("used twice" in problem for problem in mini.problems())


def test_a_page_just_begun_has_none(mini: Mini) -> None:
    mini.append(STATED)
    mini.book_path.unlink()
    assert estimates.estimates(mini.page()) == []
