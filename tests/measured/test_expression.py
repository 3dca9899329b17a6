"""Expressions: the arithmetic of claims, and nothing that could run code."""

from __future__ import annotations

import pytest

from measured.expression import ExpressionError, bound, comparisons, evaluate, literals, names, operators

VALUES = {"a_bytes": 6, "b_bytes": 2, "x_ratio": 0.25, "zero_count": 0}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a_bytes / b_bytes", 3),
        ("a_bytes // 4 + a_bytes % 4", 3),
        ("-a_bytes + 2 ** 3", 2),
        ("2 * a_bytes - b_bytes * (1 + x_ratio)", 9.5),
        ("abs(b_bytes - a_bytes)", 4),
        ("min(a_bytes, b_bytes) + max(a_bytes, b_bytes, 7)", 9),
        ("sqrt(x_ratio) + log2(8)", 3.5),
        ("ceil(x_ratio) + floor(x_ratio) + round(1.4)", 2),
        ("1e3 + .5", 1000.5),
    ],
)
def test_arithmetic(text: str, value: float) -> None:
    assert evaluate(text, VALUES) == value


@pytest.mark.parametrize(
    ("text", "true"),
    [
        ("a_bytes == 6", True),
        ("a_bytes == 6 == 3 * b_bytes", True),
        ("a_bytes == 6 == b_bytes", False),
        ("1 < b_bytes < a_bytes", True),
        ("1 < b_bytes < 2", False),
        ("x_ratio <= 0.25 and a_bytes >= 6", True),
        ("x_ratio <= 0.25 and a_bytes > 6", False),
        ("a_bytes > 6 and x_ratio <= 0.25", False),
    ],
)
def test_comparisons(text: str, true: bool) -> None:
    assert evaluate(text, VALUES) is true


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a_bytes ==",
        "a_bytes = 6",
        "at least two",
        "a_bytes != 6",
        "not a_bytes",
        "a_bytes == 6 or a_bytes == 7",
        "'6'",
        "True",
        "[a_bytes]",
        "a_bytes if 1 else 2",
        "(lambda: 6)()",
        "__import__('os')",
        "a_bytes.real",
        "a_bytes[0]",
        "exec(a_bytes)",
        "round(number=a_bytes)",
        "(a_bytes := 3)",
        "6j",
    ],
)
def test_refuses_what_is_no_arithmetic(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text, VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "a_bytes / zero_count",
        "a_bytes % zero_count",
        "sqrt(0 - a_bytes)",
        "log2(zero_count)",
        "min(a_bytes)",
        "sqrt()",
        "(0 - 8) ** 0.5 < 1",
        "10.0 ** 400",
        "ceil(1e308 * 10)",
    ],
)
def test_what_has_no_value_is_an_expression_error_and_no_crash(text: str) -> None:
    with pytest.raises(ExpressionError):
        evaluate(text, VALUES)


def test_a_name_without_a_value_is_named() -> None:
    with pytest.raises(ExpressionError, match="c_bytes is not recorded"):
        evaluate("a_bytes + c_bytes", VALUES)
    with pytest.raises(ExpressionError, match="c_bytes is not recorded"):
        evaluate("a_bytes == 7 and c_bytes == 1", VALUES)  # a false part hides no missing one


def test_parts_of_an_expression() -> None:
    text = "max(a_bytes, 3) == 2 * b_bytes and x_ratio <= 0.5"
    assert names(text) == {"a_bytes", "b_bytes", "x_ratio"}
    assert sorted(literals(text)) == [0.5, 2, 3]
    assert operators(text) == ["==", "<="]
    assert comparisons(text) == [["max(a_bytes, 3)", "2 * b_bytes"], ["x_ratio", "0.5"]]


def test_bound_is_a_single_comparison_with_a_number() -> None:
    assert bound("a_bytes / b_bytes >= 2.5") == ("a_bytes / b_bytes", ">=", 2.5)
    assert bound("1 < a_bytes < 8") is None
    assert bound("a_bytes == b_bytes") is None
    assert bound("a_bytes + 3") is None
