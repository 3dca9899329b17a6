"""Every published number, changed: none of them may pass the check."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from measured import checks, claims, numbers, project, recording, sources
from measured import page as pages
from measured.expression import ExpressionError
from measured.page import Claim, Mark, Page, read_page
from measured.recording import Recording
from snippets.instruments.units import parse_quantities

FACTORS = (2, 0.5, 1024**3 / 1000**3)
NAMES = project.page_names()
CLAIMS = [c for name in NAMES for c in read_page(name).claims]
MARKS = [(name, m) for name in NAMES for m in read_page(name).marks if m.kind != "claim"]
FORMULAS = [(name, f) for name in NAMES for f in read_page(name).fences if f.language == "math"]
TURNED: dict[type[ast.cmpop], list[ast.cmpop]] = {
    ast.Eq: [ast.LtE(), ast.GtE(), ast.NotEq()],
    ast.LtE: [ast.GtE(), ast.Gt(), ast.Eq()],
    ast.GtE: [ast.LtE(), ast.Lt(), ast.Eq()],
    ast.Lt: [ast.Gt(), ast.GtE()],
    ast.Gt: [ast.Lt(), ast.LtE()],
}


def primary(name: str) -> Recording:
    have = recording.primary(name)
    assert have is not None, f"{name} is not recorded"
    return have


def changed(number: float, text: str) -> Iterator[str]:
    """A number times each factor, written as a reader would; zero becomes one."""
    for factor in FACTORS:
        value = number * factor if number else 1.0
        shown = f"{value:,.0f}" if value == int(value) else f"{value:,.4g}"
        if shown != text:
            yield shown


def changed_texts(text: str) -> Iterator[str]:
    """The text with each of its numbers and number words changed in turn."""
    for quantity in parse_quantities(text):
        number = re.match(r"[-−+]?[\d.,]*\d", quantity.text)
        assert number is not None
        end = quantity.start + number.end()
        for shown in changed(quantity.number, number[0]):
            yield text[: quantity.start] + shown + text[end:]
    for word in claims.WORD_VALUES:
        for match in re.finditer(rf"\b{word}\b", text, re.I):
            yield text[: match.start()] + ("nine" if word != "nine" else "two") + text[match.end() :]


def changed_checks(check: str, factors: Sequence[float] = FACTORS) -> Iterator[str]:
    """The check with each of its numbers changed in turn."""
    count = sum(isinstance(n, ast.Constant) for n in ast.walk(ast.parse(check, mode="eval")))
    for position in range(count):
        for factor in factors:
            tree = ast.parse(check, mode="eval")
            node = [n for n in ast.walk(tree) if isinstance(n, ast.Constant)][position]
            assert isinstance(node.value, (int, float))
            node.value = node.value * factor if node.value else 1
            yield ast.unparse(tree)


def turned_checks(check: str) -> Iterator[str]:
    """The check with each of its operators turned in turn."""
    tree = ast.parse(check, mode="eval")
    spots = [(c, o) for c, n in enumerate(ast.walk(tree)) if isinstance(n, ast.Compare) for o in range(len(n.ops))]
    for compare, operator in spots:
        for count in range(3):
            tree = ast.parse(check, mode="eval")
            node = list(ast.walk(tree))[compare]
            assert isinstance(node, ast.Compare)
            options = TURNED[type(node.ops[operator])]
            if count < len(options):
                node.ops[operator] = options[count]
                yield ast.unparse(tree)


def problems(claim: Claim) -> list[str]:
    """What the static check says of a claim, on its page's primary recording."""
    found = [what for what, _ in claims.form_problems(claim)]
    values = primary(claim.page).values
    try:
        if not claims.holds(claim, values) and claim.value_class != "H":
            found.append("fails")
        found += [what for what, _ in claims.margin_problems(claim, values)]
    except ExpressionError as error:
        found.append(str(error))
    return found


def mark_id(value: object) -> str:
    return f"L{value.line}-{value.text}" if isinstance(value, Mark) else str(value)


@pytest.mark.parametrize(("name", "mark"), MARKS, ids=mark_id)
def test_a_measured_derived_or_cited_number_changed_is_found(name: str, mark: Mark) -> None:
    values = primary(name).values
    assert claims.mark_problem(mark, values, sources.load()) is None
    texts = list(changed_texts(mark.text))
    assert texts, "a mark without a number backs nothing"
    for text in texts:
        assert claims.mark_problem(dataclasses.replace(mark, text=text), values, sources.load()), text


def test_a_number_of_home_or_readme_changed_is_found() -> None:
    for path in checks._documents():
        for mark in pages.parse(path.stem, path).marks:
            texts = list(changed_texts(mark.text))
            assert texts and claims.mark_problem(mark, {}, sources.load()) is None
            assert all(claims.mark_problem(dataclasses.replace(mark, text=t), {}, sources.load()) for t in texts)


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_a_claim_s_words_changed_are_found(claim: Claim) -> None:
    assert problems(claim) == [] or claim.needs
    for text in changed_texts(claim.text):
        assert list(claims.quantity_problems(dataclasses.replace(claim, text=text))), text


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.value_class == "D"], ids=lambda c: c.id)
def test_a_d_claim_changed_in_words_and_check_does_not_hold(claim: Claim) -> None:
    values = primary(claim.page).values
    assert claims.holds(claim, values)
    for check in changed_checks(claim.check):
        assert not claims.holds(dataclasses.replace(claim, check=check), values), check


@pytest.mark.parametrize("claim", [c for c in CLAIMS if c.value_class == "D"], ids=lambda c: c.id)
def test_a_d_claim_does_not_hold_on_a_changed_value(claim: Claim) -> None:
    """Halve or double what was measured: the sentence must notice."""
    values = primary(claim.page).values
    for name in claims.expression.names(claim.check):
        for factor in (2, 0.5):
            value = values[name] * factor if values[name] else 1
            assert not claims.holds(claim, {**values, name: value}), f"{name} = {value}"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda c: c.id)
def test_a_claim_s_operator_turned_is_found(claim: Claim) -> None:
    checks_turned = list(turned_checks(claim.check))
    assert checks_turned
    for check in checks_turned:
        assert problems(dataclasses.replace(claim, check=check)), check


@pytest.mark.parametrize(("name", "fence"), FORMULAS, ids=lambda v: v if isinstance(v, str) else f"L{v.line}")
def test_a_formula_changed_is_found(name: str, fence: pages.Fence) -> None:
    page, have = read_page(name), primary(name)
    shown = numbers.formula_numerals(fence)
    assert bool(shown) <= bool(fence.options.get("check"))
    # A formula that holds within a tolerance holds within a wider one, and may not notice a few per cent of a term.
    formula, within, tolerance = fence.options.get("check", "0").rpartition(" <= ")
    rough = changed_checks(formula, (2, 0.5)) if within else ()
    wrong_checks = [f"{check} <= {tolerance}" for check in rough] or changed_checks(tolerance)
    for check in wrong_checks if shown else ():
        with contextlib.suppress(ExpressionError):  # A logarithm of less than nothing is found as well.
            assert not claims.expression.evaluate(check, have.values), check
    for numeral in set(shown):
        for other in changed(float(numeral), numeral):
            body = re.sub(rf"(?<![\d.]){re.escape(numeral)}(?![\d.])", other.replace(",", ""), fence.body)
            lines = page.lines.copy()
            lines[fence.line : fence.end_line - 1] = body.splitlines()
            wrong = Page(name, page.path, "\n".join(lines) + "\n")
            assert list(checks._formulas(wrong, have)), body


def test_the_mutations_mutate() -> None:
    assert list(changed_texts("at least 4×")) == ["at least 8×", "at least 2×", "at least 4.295×"]
    assert next(changed_texts("0 bytes of 7 and two")) == "1 bytes of 7 and two"
    assert "0 bytes of 7 and nine" in list(changed_texts("0 bytes of 7 and two"))
    assert list(changed_texts("131,072 bytes"))[:2] == ["262,144 bytes", "65,536 bytes"]
    assert set(changed_checks("a_count == 4 * 0")) >= {"a_count == 8 * 0", "a_count == 4 * 1", "a_count == 2.0 * 0"}
    assert set(turned_checks("a == b <= c")) >= {"a >= b <= c", "a == b >= c", "a != b <= c"}


def test_there_is_something_to_mutate() -> None:
    assert len(CLAIMS) > 20 and len(MARKS) > 20 and {c.value_class for c in CLAIMS} >= {"D", "R"}


ROOT = Path(__file__).resolve().parents[2]


def test_these_are_the_real_pages() -> None:
    assert project.root() == ROOT and "kv_cache/bytes_per_token" in NAMES
