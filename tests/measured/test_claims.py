"""Claims: form, wording, bounds and margins; numbers in the text against what stands behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from measured import claims, sources
from measured.claims import class_problems, form_problems, holds, margin_problems, mark_problem
from measured.expression import ExpressionError
from measured.page import Claim, Mark

GOOD = {
    "D": ("131,072 bytes", "token_bytes == 131072"),
    "T": ("at most 0.01", "mean_difference <= 0.01"),
    "R": ("at least 4×", "speed_ratio >= 4"),
    "H": ("under 5 ms", "step_seconds < 0.005"),
}


def claim(value_class: str = "D", text: str = "", check: str = "", *, null: float | None = 1.0, **rest: str) -> Claim:
    default_text, default_check = GOOD.get(value_class, GOOD["D"])
    return Claim(
        id=rest.get("id", "c"),
        text=text or default_text,
        value_class=value_class,
        check=check or default_check,
        null=null,
        needs="",
        tolerance=rest.get("tolerance", "rounding"),
        page="kv_cache/x",
        line=1,
    )


def said(found: Claim) -> str:
    return "\n".join(f"{problem} → {mend}" for problem, mend in form_problems(found))


@pytest.mark.parametrize("value_class", list(GOOD))
def test_a_good_claim_of_each_class_has_no_problem(value_class: str) -> None:
    assert said(claim(value_class)) == ""


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("equal", "a_bytes == b_bytes"),
        ("equal", "a_bytes == b_bytes == c_bytes"),
        ("no remainder", "residual_bytes == 0"),
        ("4×", "a_bytes == 4 * b_bytes"),
        ("5.70 GB", "a_bytes == 5700000000"),
        ("0.5 GiB", "a_bytes == 536870912"),
        ("three layers", "layers_count == 3"),
        ("4.125 bits", "weight_bits == 4.125"),
        ("4.125 bits a weight", "layer_bits == 4.125 * weights_count"),
    ],
)
def test_good_d_claims(text: str, check: str) -> None:
    assert said(claim("D", text, check)) == ""


@pytest.mark.parametrize(
    ("value_class", "text", "check", "problem"),
    [
        ("D", "at least 5 bytes", "a_bytes >= 5", "class D with >="),
        ("D", "5 bytes", "a_bytes == 5 and b_bytes <= 5", "class D with"),
        ("D", "equal", "a_bytes == a_bytes", "compares something with itself"),
        ("D", "equal", "a_bytes == b_bytes == a_bytes", "compares something with itself"),
        ("D", "5 bytes", "5 == 5", "names no recorded value"),
        ("D", "5 bytes", "a_bytes", "compares nothing"),
        ("D", "5 bytes", "a_bytes == five", "does not end in its unit"),
        ("D", "5 bytes", "a_bytes = 5", "cannot read"),
        ("D", "5 bytes", "about 5", "cannot read"),
        ("D", "5 bytes", "", "cannot read"),
        ("D", "2 bytes", "a_bytes == 2 * 65536", "says “2 bytes”"),
        ("D", "1 byte", "a_bytes == b_bytes + 1", "says “1 byte”"),
        ("D", "6 bytes", "a_bytes == 5", "its check 'a_bytes == 5' does not"),
        ("D", "so many bytes", "a_bytes == 5", "the bound 5 is not in its words"),
        ("D", "5 bytes, half of it", "a_bytes == 5", "says “half”"),
        ("R", "at least twice", "a_ratio >= 3", "says “twice”"),
        ("D", "5 tokens", "a_bytes == 5", "not a number of bytes"),
        ("D", "5 ms", "a_bytes == 5", "not a number of bytes"),
        ("D", "5 GB", "a_bytes == 5", "says “5 GB”"),
        ("D", "5 kB", "a_bytes == 5120", "says “5 kB”"),
        ("T", "at most 5 %", "a_share <= 0.06", "says “5 %”"),
        ("T", "0.5", "a_difference == 0.5", "class T with =="),
        ("R", "4×", "a_ratio == 4", "class R with =="),
        ("R", "faster", "a_ratio >= b_ratio", "no single bound"),
        ("R", "at least 4×", "a_ratio >= 2", "says “at least 4×”".replace("at least ", "")),
        ("X", "5 bytes", "a_bytes == 5", "class 'X'"),
        ("", "5 bytes", "a_bytes == 5", "class ''"),
    ],
)
def test_bad_claims(value_class: str, text: str, check: str, problem: str) -> None:
    found = Claim("c", text, value_class, check, 1.0, "", "rounding", "p", 1)
    assert problem in said(found), said(found)


def test_a_claim_without_id_and_a_t_without_tolerance() -> None:
    assert "a claim without an id" in said(claim(id=""))
    assert "class T without a tolerance" in said(claim("T", tolerance=""))


@pytest.mark.parametrize(
    ("operator", "good", "bad"),
    [
        ("<=", ["at most 0.4×", "no more than 0.4×"], ["0.4×", "at least 0.4×", "under 0.4×", "more than 0.4×"]),
        (">=", ["at least 4×", "no less than 4×"], ["4×", "at most 4×", "over 4×", "less than 4×"]),
        ("<", ["under 0.4×", "below 0.4×", "less than 0.4×"], ["at most 0.4×", "over 0.4×", "no less than 0.4×"]),
        (">", ["over 4×", "above 4×", "more than 4×"], ["at least 4×", "under 4×", "no more than 4×"]),
    ],
)
def test_wording_and_operator_agree(operator: str, good: list[str], bad: list[str]) -> None:
    number = "4" if ">" in operator else "0.4"
    for text in good:
        assert said(claim("R", text, f"a_ratio {operator} {number}")) == "", text
    for text in bad:
        assert "words do not say so" in said(claim("R", text, f"a_ratio {operator} {number}")), text


def test_a_wrong_wording_is_named_both_ways() -> None:
    problems = said(claim("R", "at most 4×", "a_ratio >= 4"))
    assert "checks >=, its words do not say so" in problems and "says “at most 4×” but checks" in problems


@pytest.mark.parametrize(
    ("text", "check", "null", "problem"),
    [
        ("at least 4×", "a_ratio >= 4", None, "class R without a null"),
        ("at least 1.1×", "a_ratio >= 1.1", 1.0, "not 1.15× beyond the null"),
        ("at least 0.9×", "a_ratio >= 0.9", 1.0, "not 1.15× beyond the null"),
        ("at most 0.9×", "a_ratio <= 0.9", 1.0, "not 1.15× under the null"),
        ("at most 2×", "a_ratio <= 2", 1.0, "not 1.15× under the null"),
        ("at least 2×", "a_ratio >= 2", 4.0, "not 1.15× beyond the null 4"),
        ("at least 2× and over 1.1×", "a_ratio >= 2 and b_ratio > 1.1", 1.0, "bound 1.1 is not 1.15× beyond"),
    ],
)
def test_bounds_on_the_wrong_side_or_too_near_the_null(text, check, null, problem) -> None:
    assert problem in said(claim("R", text, check, null=null))


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("at least 1.15×", "a_ratio >= 1.15"),
        ("at most 0.8×", "a_ratio <= 0.8"),
        # No effect, beside a control that shows the instrument can see one.
        ("at most 1.6×, the control at least 3×", "a_ratio <= 1.6 and control_ratio >= 3"),
    ],
)
def test_bounds_clearly_beyond_the_null(text: str, check: str) -> None:
    assert said(claim("R", text, check)) == ""


@pytest.mark.parametrize(
    ("check", "values", "fine"),
    [
        ("a_ratio >= 4", {"a_ratio": 6.4}, True),
        ("a_ratio >= 4", {"a_ratio": 6.3}, False),
        ("a_ratio <= 0.8", {"a_ratio": 0.5}, True),
        ("a_ratio <= 0.8", {"a_ratio": 0.51}, False),
        ("a_ratio >= 4 and b_ratio >= 2", {"a_ratio": 8, "b_ratio": 2.5}, False),
        ("a_seconds / b_seconds > 2", {"a_seconds": 7, "b_seconds": 2}, True),
        ("a_seconds / b_seconds > 2", {"a_seconds": 6, "b_seconds": 2}, False),
    ],
)
def test_margin_of_an_r_claim(check: str, values: dict[str, float], fine: bool) -> None:
    problems = list(margin_problems(claim("R", "x", check), values))
    assert bool(problems) is not fine
    assert not list(margin_problems(claim("H", "x", check), values))


@pytest.mark.parametrize(
    ("value_class", "firm"),
    [("D", "D"), ("T", "DT"), ("R", "DTR"), ("H", "DTRH")],
)
def test_a_claim_rests_on_values_as_firm_as_itself(value_class: str, firm: str) -> None:
    for recorded in "DTRH":
        found = list(class_problems(claim(value_class, "x", "a_ratio >= 2"), {"a_ratio": recorded}))
        assert bool(found) is (recorded not in firm), recorded


def test_holds_is_the_check_on_the_values() -> None:
    assert holds(claim(), {"token_bytes": 131072}) is True
    assert holds(claim(), {"token_bytes": 131073}) is False
    with pytest.raises(ExpressionError):
        holds(claim(), {})


VALUES = {"token_bytes": 131072, "speed_ratio": 4.0, "step_seconds": 0.0048, "used_share": 0.065}
SOURCES = {"ridge": {"shown": "295 FLOP/B"}, "words": {"where": "a paper"}}


def mark(kind: str, text: str, source: str) -> Mark:
    key = {"m": "data-m", "exact": "data-expr", "cited": "data-src"}[kind]
    return Mark(kind, text, {key: source}, 1)


GOOD_MARKS = [
    ("m", "131,072 bytes", "token_bytes:,.0f bytes"),
    ("m", "128 KiB", "token_bytes:.0f KiB"),
    ("m", "0.131 MB", "token_bytes:.3f MB"),
    ("m", "4.00×", "speed_ratio:.2f×"),
    ("m", "4.8 ms", "step_seconds:.1f ms"),
    ("m", "6.5 %", "used_share:.1f %"),
    ("exact", "262,144 bytes", "2 * token_bytes:,.0f bytes"),
    ("exact", "4.125 bits", "4 + 16/128:.3f bits"),
    ("exact", "two", "speed_ratio / 2"),
    ("exact", "Half", "2 / speed_ratio"),
    ("cited", "295 FLOP/B", "ridge"),
]


@pytest.mark.parametrize(("kind", "text", "source"), GOOD_MARKS)
def test_good_marks(kind: str, text: str, source: str) -> None:
    assert mark_problem(mark(kind, text, source), VALUES, SOURCES) is None
    assert mark_problem(mark(kind, text.replace(" ", "\u00a0"), source), VALUES, SOURCES) is None


@pytest.mark.parametrize(("kind", "text", "source"), GOOD_MARKS)
def test_another_text_is_a_problem_that_says_the_right_one(kind: str, text: str, source: str) -> None:
    for wrong in (f"1{text}", text.replace(text.split()[-1], "furlongs"), f"about {text}", "three"):
        found = mark_problem(mark(kind, wrong, source), VALUES, SOURCES)
        assert found is not None, wrong
        assert text in found[0] or text.lower() in ("two", "half")


@pytest.mark.parametrize(
    ("kind", "source", "problem"),
    [
        ("m", "token_bytes", "write data-m"),
        ("m", ":,.0f bytes", "write data-m"),
        ("m", "other_bytes:,.0f bytes", "other_bytes is not recorded"),
        ("m", "token_bytes:.1f ms", "cannot be shown in 'ms'"),
        ("m", "step_seconds:.1f GB", "cannot be shown in 'GB'"),
        ("m", "token_bytes:big", "no format"),
        ("exact", "2 * token_bytes", "write data-expr"),
        ("exact", "2 * other_bytes:,.0f bytes", "other_bytes is not recorded"),
        ("exact", "1 / 0:.1f bytes", "divides by zero"),
        ("cited", "nowhere", "no entry 'nowhere'"),
        ("cited", "words", "states no number"),
    ],
)
def test_marks_that_nothing_stands_behind(kind: str, source: str, problem: str) -> None:
    found = mark_problem(mark(kind, "131,072 bytes", source), VALUES, SOURCES)
    assert found is not None and problem in found[0]


def test_find_follows_pages_as_they_change(mini) -> None:
    found = claims.find("box-bytes")
    assert found is not None and (found.page, found.check) == ("kv_cache/sample", "box_bytes == 120")
    assert claims.find("box-fresh") is None
    mini.append('It is **120 bytes**{ .claim #box-fresh data-class=D data-check="box_bytes == 120" }.')
    found = claims.find("box-fresh")
    assert found is not None and found.page == "kv_cache/sample"
    mini.replace(" #box-fresh", " #box-renamed")
    assert claims.find("box-fresh") is None and claims.find("box-renamed") is not None


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("where: x", "lacks link"),
        ("{number: 5, where: x, link: 'https://example.org'}", "lacks unit"),
        ("{where: x, link: 'http://example.org'}", "must be https"),
    ],
)
def test_sources_say_where_they_are(mini, entry: str, problem: str) -> None:
    path: Path = mini.root / "docs" / "sources.yml"
    text = f"bad: {entry}\n" if entry.startswith("{") else f"bad:\n  {entry}\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(sources.SourceError, match=problem):
        sources.load()
