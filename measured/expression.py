"""Arithmetic over named values, as claims and derived numbers write it: parsed, never `eval`ed."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

Number = float | int

_BINARY: dict[type[ast.operator], Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], tuple[str, Callable]] = {
    ast.Eq: ("==", operator.eq),
    ast.LtE: ("<=", operator.le),
    ast.GtE: (">=", operator.ge),
    ast.Lt: ("<", operator.lt),
    ast.Gt: (">", operator.gt),
}
_FUNCTIONS: dict[str, Callable] = {
    "abs": abs,
    "min": min,
    "max": max,
    "round": round,
    "sqrt": math.sqrt,
    "log2": math.log2,
    "ceil": math.ceil,
    "floor": math.floor,
}


class ExpressionError(ValueError):
    """An expression outside the grammar, or one that names a value that is not recorded."""


def parse(text: str) -> ast.expr:
    """The expression's tree.

    Raises:
        ExpressionError: The text is not one expression of numbers, names, arithmetic and comparisons.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError(f"cannot read {text!r}: {error.msg}") from None
    for node in ast.walk(tree):
        allowed = (
            isinstance(node, (ast.Name, ast.Load, ast.BinOp, ast.Compare, ast.And, *_BINARY, *_COMPARE))
            or (isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And))
            or (isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub))
            or isinstance(node, ast.USub)
            or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
            or (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in _FUNCTIONS
                and not node.keywords
            )
        )
        if not allowed:
            raise ExpressionError(f"{text!r}: {type(node).__name__} is not allowed in a check")
    return tree


def evaluate(text: str, values: Mapping[str, Number]) -> Number | bool:
    """The expression's value.

    Raises:
        ExpressionError: Outside the grammar, or a name without a value.
    """
    try:
        return _evaluate(parse(text), values)
    except ZeroDivisionError:
        raise ExpressionError(f"{text!r} divides by zero") from None
    except ExpressionError:
        raise
    except (ArithmeticError, TypeError, ValueError) as error:
        raise ExpressionError(f"cannot compute {text!r}: {error}") from None


def _evaluate(node: ast.expr, values: Mapping[str, Number]) -> Number | bool:
    match node:
        case ast.Constant():
            return node.value  # type: ignore[return-value]
        case ast.Name():
            if node.id not in values:
                raise ExpressionError(f"{node.id} is not recorded")
            return values[node.id]
        case ast.BinOp():
            return _BINARY[type(node.op)](_evaluate(node.left, values), _evaluate(node.right, values))
        case ast.UnaryOp():
            return -_evaluate(node.operand, values)
        case ast.BoolOp():
            return all([_evaluate(part, values) for part in node.values])
        case ast.Call(func=ast.Name(id=name)):
            return _FUNCTIONS[name](*[_evaluate(a, values) for a in node.args])
        case ast.Compare():
            terms = [_evaluate(t, values) for t in (node.left, *node.comparators)]
            pairs = zip(node.ops, terms[:-1], terms[1:], strict=True)
            return all([_COMPARE[type(op)][1](a, b) for op, a, b in pairs])
    raise ExpressionError(f"cannot evaluate {ast.dump(node)}")


def names(text: str) -> set[str]:
    """Values an expression names."""
    return {n.id for n in ast.walk(parse(text)) if isinstance(n, ast.Name)} - set(_FUNCTIONS)


def literals(text: str) -> list[Number]:
    """Numbers written in an expression, in order."""
    return [n.value for n in ast.walk(parse(text)) if isinstance(n, ast.Constant)]  # type: ignore[misc]


def operators(text: str) -> list[str]:
    """Comparison operators of an expression, in order."""
    return [_COMPARE[type(op)][0] for n in ast.walk(parse(text)) if isinstance(n, ast.Compare) for op in n.ops]


def comparisons(text: str) -> list[list[str]]:
    """The sides of every comparison in an expression, as they would be written again."""
    return [
        [ast.unparse(side) for side in (n.left, *n.comparators)]
        for n in ast.walk(parse(text))
        if isinstance(n, ast.Compare)
    ]


def bound(text: str) -> tuple[str, str, Number] | None:
    """`(left side, operator, number)` of a single comparison with a number on its right, else None."""
    node = parse(text)
    if not isinstance(node, ast.Compare) or len(node.ops) != 1:
        return None
    right = node.comparators[0]
    if not isinstance(right, ast.Constant):
        return None
    return ast.unparse(node.left), _COMPARE[type(node.ops[0])][0], right.value  # type: ignore[return-value]
