"""Estimates: numbers that a reader can derive, asked with fresh inputs each time and graded by their logarithm.

A page states one in a fence of its own; no result stands there:

    ```estimate id="estimate-cache"
    ask: How big is the KV cache of {model} for {sequences} sequences of {tokens} tokens?
    given:
      model: {series: public_shapes, label: model}      # a row of a recorded series; its numbers become names
      sequences: [1, 4, 16]                              # one of these
      card: {H100: {card_bytes_per_second: "source:h100-sxm-bandwidth"}}   # one of these, each sets some names
    answer: {cache_bytes: 2 * layers_count * kv_heads_count * head_dim_count * tokens * sequences}
    mistakes:
      - wrong: layers_count * kv_heads_count * head_dim_count * tokens * sequences
        told: A cache holds keys and values.
    ```

Other names are the page's recorded values that hold on any machine. `docs/assets/quiz/estimate.js` is the twin of what
draws, computes, reads a guess and grades; a test holds both to the same numbers.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any
from zlib import crc32

import yaml

from measured import expression, recording, sources
from measured.expression import ExpressionError, Number
from measured.page import Fence, Page, PageError

CLOSE = math.log2(1.1)  # a guess this near is right
FAR = 1.01  # a guess beyond a factor of two is wrong; rounding forgiven
SAME_MISTAKE = math.log2(1.03)  # how near a guess lies to the mistake that explains it
SAME_UNIT = math.log2(1.01)  # GB and GiB lie close together
AGAIN, HARD, GOOD = 1, 2, 3
_ANYWHERE = ("D", "T")
UNITLESS = ("ratio", "count", "tokens")  # the question says what is counted
_NUMBER = re.compile(
    r"(?P<number>[-−+]?(?:\d{1,3}(?:[, _]\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?)\s*(?P<unit>\D.*)?", re.I
)
_SINGULAR = re.compile(r"(?:token|bit|nat|request)\b")
_SYMBOLS = {ast.Add: " + ", ast.Sub: " − ", ast.Mult: " × ", ast.Div: " ÷ ", ast.FloorDiv: " ÷ ", ast.Pow: "^"}
_RANKS = {ast.Add: 1, ast.Sub: 1, ast.Mult: 2, ast.Div: 2, ast.FloorDiv: 2, ast.Pow: 3}


class GuessError(ValueError):
    """A guess that cannot be graded; says why."""


@dataclass(frozen=True)
class Choice:
    """One way to fill a given: what the question says, and the numbers it stands for."""

    texts: dict[str, str]
    values: dict[str, Number]


@dataclass(frozen=True)
class Mistake:
    """A wrong way to compute the answer, and what is said to who took it."""

    expression: str
    told: str


@dataclass(frozen=True)
class Estimate:
    """A question with a number for an answer. `givens` are drawn from in order; `fixed` never changes."""

    id: str
    line: int
    ask: str
    givens: tuple[tuple[Choice, ...], ...]
    fixed: dict[str, Number]
    name: str  # of the answer; its end is the unit
    answer: str
    mistakes: tuple[Mistake, ...]

    @property
    def dimension(self) -> str:
        """What the answer is: bytes, seconds, …"""
        from snippets.instruments.units import dimension_of

        return dimension_of(self.name)


@dataclass(frozen=True)
class Drawn:
    """An estimate with its inputs: the question as it is asked, and what every name stands for."""

    question: str
    values: dict[str, Number]


@dataclass(frozen=True)
class Grade:
    """How near a guess came (log2 of guess over truth), what that is worth, and the mistake that explains it."""

    error: float
    rating: int
    mistake: str = ""


def estimates(page: Page) -> list[Estimate]:
    """The estimates that a page states; none before it was recorded, since they draw on what was.

    Raises:
        PageError: One cannot be read, or names what is not there.
    """
    if recording.primary(page.name) is None:
        return []
    return [_read(page, fence) for fence in page.fences if fence.language == "estimate"]


def draw(estimate: Estimate, seed: int) -> Drawn:
    """The estimate with one choice of each given, by a generator that the browser has too."""
    dice = _mulberry32(seed)
    texts: dict[str, str] = {}
    values = dict(estimate.fixed)
    for choices in estimate.givens:
        choice = choices[math.floor(next(dice) * len(choices))]
        texts |= choice.texts
        values |= choice.values
    return Drawn(re.sub(r"\{(\w+)\}", lambda m: f"**{texts[m[1]]}**", estimate.ask), values)


def truth(estimate: Estimate, values: Mapping[str, Number]) -> float:
    """The answer in the base unit of its dimension."""
    return float(expression.evaluate(estimate.answer, values))


def guessed(text: str, dimension: str) -> tuple[float, str]:
    """A typed guess in the base unit, and the unit it was typed in.

    Raises:
        GuessError: It is no number above zero, or its unit is missing, unknown or of another kind.
    """
    match = _NUMBER.fullmatch(text.strip())
    if not match:
        raise GuessError("write a number and its unit, for example " + example(dimension))
    units, unit = units_of(dimension), (match["unit"] or "").strip()
    if unit not in units:
        unit = next((known for known in units if known.lower() == unit.lower()), unit)
    if unit not in units and (unit or dimension not in UNITLESS):
        said = f"{unit!r} is no unit of this answer" if unit else "the unit is missing"
        raise GuessError(f"{said}: {', '.join(units)}")
    number = float(re.sub(r"[,_ ]", "", match["number"]).replace("−", "-"))
    if not number > 0:
        raise GuessError("a guess is above zero: how far off a factor is has no meaning at or below it")
    return number * units.get(unit, 1), unit


def units_of(dimension: str) -> dict[str, float]:
    """Units in which an answer may be given, to their factors; long forms of the same unit are left out."""
    from snippets.instruments.units import UNITS

    found: dict[str, float] = {}
    for unit, (kind, factor) in UNITS.items():
        if kind == dimension and not _SINGULAR.match(unit) and factor not in found.values():
            found[unit] = factor
    return found


def example(dimension: str) -> str:
    """A guess as it may be typed."""
    return " ".join(["1.5", *list(units_of(dimension))[-1:]])


def grade(estimate: Estimate, values: Mapping[str, Number], guess: float, unit: str) -> Grade:
    """Grade a guess in the base unit; the nearest named mistake explains one that is nearer to it than to the truth."""
    right = truth(estimate, values)
    error = math.log2(guess / right)
    best, told = abs(error), ""
    for wrong, text, near in _wrong_ways(estimate, values, right, unit):
        apart = abs(math.log2(guess / wrong)) if wrong > 0 else math.inf
        if apart < min(best, near):
            best, told = apart, text
    if told:
        return Grade(error, HARD if abs(error) <= CLOSE else AGAIN, told)
    return Grade(error, GOOD if abs(error) <= CLOSE else HARD if abs(error) <= FAR else AGAIN)


def _wrong_ways(
    estimate: Estimate, values: Mapping[str, Number], right: float, unit: str
) -> Iterator[tuple[float, str, float]]:
    """`(answer, what is told, how near counts)` of every mistake: the page's, then those of units."""
    for mistake in estimate.mistakes:
        yield float(expression.evaluate(mistake.expression, values)), mistake.told, SAME_MISTAKE
    if "bytes" in estimate.dimension:
        units = units_of(estimate.dimension)
        decimal, binary = (
            unit.replace("iB", "B").replace("K", "k"),
            re.sub(r"(?<=[kMGT])B", "iB", unit).replace("k", "K"),
        )
        twin = decimal if "iB" in unit else binary
        if twin in units and twin != unit:
            yield right * units[unit] / units[twin], f"That is its number of {twin}, and you wrote {unit}.", SAME_UNIT
        yield right * 8, "Those are bits: a byte has more than one.", SAME_UNIT
        yield right / 8, "You took bytes for bits.", SAME_UNIT


def shown(value: float, dimension: str) -> str:
    """An answer in the unit that suits it, three digits; bytes in both kinds of unit."""
    if "bytes" in dimension:
        binary = _in_unit(value, {u: f for u, f in units_of(dimension).items() if "iB" in u})
        decimal = _in_unit(value, {u: f for u, f in units_of(dimension).items() if "iB" not in u})
        return f"{decimal} ({binary})" if binary and dimension == "bytes" else decimal
    return _in_unit(value, units_of(dimension)) or digits(value)


def _in_unit(value: float, units: Mapping[str, float]) -> str:
    fitting = [(factor, unit) for unit, factor in units.items() if value >= factor]
    if not units or (not fitting and len(units) > 1 and min(units.values()) >= 1024):
        return ""
    factor, unit = max(fitting) if fitting else min((factor, unit) for unit, factor in units.items())
    gap = "" if unit == "×" else " "
    return f"{digits(value / factor)}{gap}{unit}"


def digits(value: float) -> str:
    """A number to three digits, whole from a hundred on, with separators of thousands."""
    if value >= 100 or value == int(value):
        return f"{math.floor(value + 0.5):,}"
    places = 2 - math.floor(math.log10(value))
    exact = Decimal(value).quantize(Decimal(1).scaleb(-places), ROUND_HALF_UP)  # a browser rounds a tie up
    return f"{exact:f}".rstrip("0").rstrip(".")


def solution(estimate: Estimate, values: Mapping[str, Number]) -> list[str]:
    """The formula in words, and the same with its numbers and what comes out."""
    result = shown(truth(estimate, values), estimate.dimension)
    return [formula(estimate.answer), f"{worked(estimate.answer, values)} = **{result}**"]


def formula(text: str) -> str:
    """An expression in words: `2 * layers_count` becomes “2 × layers”."""
    return re.sub(r"\{(\w+)\}", lambda m: words(m[1]), infix(text))


def words(name: str) -> str:
    """What a value's name says: `kv_heads_count` becomes “KV heads”."""
    said = name.removesuffix("_count").replace("_", " ")
    return re.sub(r"\b(kv|gpus?)\b", lambda m: m[1].replace("kv", "KV").replace("gpu", "GPU"), said)


def worked(text: str, values: Mapping[str, Number]) -> str:
    """An expression with its numbers."""
    return re.sub(r"\{(\w+)\}", lambda m: number_text(values[m[1]]), infix(text))


def number_text(value: Number) -> str:
    """A given number as a question and a solution write it."""
    if value == int(value):
        return f"{int(value):,}"
    return digits(float(value))


def infix(text: str) -> str:
    """An expression as people write it, names in braces."""

    def walk(node: ast.expr, above: int) -> str:
        match node:
            case ast.Name():
                return f"{{{node.id}}}"
            case ast.Constant():
                return number_text(node.value)  # type: ignore[arg-type]
            case ast.UnaryOp():
                return f"−{walk(node.operand, 4)}"
            case ast.BinOp() if type(node.op) in _SYMBOLS:
                rank = _RANKS[type(node.op)]
                later = rank + isinstance(node.op, (ast.Sub, ast.Div, ast.FloorDiv, ast.Pow))
                inner = f"{walk(node.left, rank)}{_SYMBOLS[type(node.op)]}{walk(node.right, later)}"
                inner = f"⌊{inner}⌋" if isinstance(node.op, ast.FloorDiv) else inner
                return f"({inner})" if rank < above and not isinstance(node.op, ast.FloorDiv) else inner
            case ast.Call(func=ast.Name(id=name)):
                return f"{name}({', '.join(walk(part, 0) for part in node.args)})"
        raise ExpressionError(f"{text!r} is no arithmetic")

    return walk(expression.parse(text), 0)


def program(text: str) -> list[Number | str]:
    """An expression as steps for a stack, which a browser computes without parsing: `2 * n` becomes [2, "$n", "*"]."""
    operators = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Pow: "**"}

    def walk(node: ast.expr) -> Iterator[Number | str]:
        match node:
            case ast.Name():
                yield f"${node.id}"
            case ast.Constant():
                yield node.value  # type: ignore[misc]
            case ast.UnaryOp():
                yield from walk(node.operand)
                yield "neg"
            case ast.BinOp() if type(node.op) in operators:
                yield from walk(node.left)
                yield from walk(node.right)
                yield operators[type(node.op)]
            case ast.Call(func=ast.Name(id="min" | "max" as name), args=[first, second]):
                yield from walk(first)
                yield from walk(second)
                yield name
            case ast.Call(func=ast.Name(id="sqrt" | "log2" | "ceil" | "floor" as name), args=[only]):
                yield from walk(only)
                yield name
            case _:
                raise ExpressionError(f"{text!r}: an estimate has + - * / // **, min, max, sqrt, log2, ceil, floor")

    return list(walk(expression.parse(text)))


def example_seed(estimate: Estimate) -> int:
    """The seed of what a page and an Anki card show: always the same, from the id alone."""
    return crc32(estimate.id.encode())


def off(error: float) -> str:
    """How far off a guess was, said by its factor."""
    return f"{digits(2 ** abs(error))}× too {'large' if error > 0 else 'small'}"


def _mulberry32(seed: int) -> Iterator[float]:
    """Numbers from zero up to one: Tommy Ettinger's mulberry32, of which browsers need four lines."""
    mask = 0xFFFFFFFF
    state = seed & mask
    while True:
        state = (state + 0x6D2B79F5) & mask
        mixed = ((state ^ (state >> 15)) * (state | 1)) & mask
        mixed ^= (mixed + ((mixed ^ (mixed >> 7)) * (mixed | 61) & mask)) & mask
        yield (mixed ^ (mixed >> 14)) / 2**32


def _read(page: Page, fence: Fence) -> Estimate:
    def wrong(problem: str, mend: str) -> PageError:
        return PageError(page.path, fence.line, f"estimate {fence.options.get('id', '?')!r}: {problem}", mend)

    try:
        stated = yaml.safe_load(fence.body)
    except yaml.YAMLError as error:
        raise wrong(f"is no YAML: {getattr(error, 'problem', error)}", "quote text that holds a colon") from None
    if not isinstance(stated, dict) or set(stated) != {"ask", "given", "answer", "mistakes"}:
        raise wrong("has not ask, given, answer and mistakes", "see CONTRIBUTING.md, “Estimates”")
    if not fence.options.get("id", "").startswith("estimate-"):
        raise wrong("has no id", 'write id="estimate-…" after the word estimate')
    try:
        givens = tuple(tuple(_choices(page, name, given)) for name, given in stated["given"].items())
        ((name, answer),) = stated["answer"].items()
        mistakes = tuple(Mistake(str(each["wrong"]), each["told"]) for each in stated["mistakes"])
        drawn = {key for choices in givens for choice in choices for key in choice.values}
        needed = set().union(*(expression.names(text) for text in (str(answer), *(m.expression for m in mistakes))))
        fixed = _fixed(page, needed - drawn)
        found = Estimate(fence.options["id"], fence.line, stated["ask"], givens, fixed, name, str(answer), mistakes)
        # What a reader would meet later is met now: a name without a unit, an operator that a browser has not.
        shown(1.0, found.dimension)
        for text in (found.answer, *(mistake.expression for mistake in mistakes)):
            program(text)
        for mistake in mistakes:
            if not any(_differs(found, mistake, seed) for seed in range(20)):
                raise ValueError(f"{mistake.expression!r} gives the answer itself")
    except (ExpressionError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise wrong(str(error), "see CONTRIBUTING.md, “Estimates”") from None
    return found


def _differs(estimate: Estimate, mistake: Mistake, seed: int) -> bool:
    """Whether a mistake gives another answer; raises where a draw cannot be asked at all."""
    drawn = draw(estimate, seed)
    right, wrong = truth(estimate, drawn.values), float(expression.evaluate(mistake.expression, drawn.values))
    if not (right > 0 and math.isfinite(right)):
        raise ValueError(f"the answer is {right} for {drawn.question!r}")
    return not wrong > 0 or abs(math.log2(wrong / right)) > CLOSE


def _choices(page: Page, name: str, given: Any) -> Iterator[Choice]:
    if isinstance(given, list):
        for value in given:
            yield Choice({name: number_text(value)}, {name: value})
    elif "series" in given:
        columns = _series(page, given["series"])
        for at, label in enumerate(columns[given["label"]]):
            row = {key: column[at] for key, column in columns.items() if not isinstance(column[at], str)}
            yield Choice({name: label, **{key: number_text(value) for key, value in row.items()}}, row)
    else:
        for label, stated in given.items():
            row = {key: _cited(value) for key, value in stated.items()}
            yield Choice({name: str(label), **{key: number_text(value) for key, value in row.items()}}, row)


def _cited(value: Any) -> Number:
    """A number as it stands, or a source's in its base unit."""
    if not isinstance(value, str):
        return float(value) if isinstance(value, float) else int(value)
    from snippets.instruments.units import parse_quantities

    key = value.removeprefix("source:")
    (quantity,) = parse_quantities(sources.load()[key]["shown"])
    return int(quantity.base) if quantity.base == int(quantity.base) else quantity.base


def _series(page: Page, name: str) -> dict[str, list]:
    have = recording.primary(page.name)
    if have is None or name not in have.series or have.series_classes.get(name) != "D":
        raise ValueError(f"the page records no series {name!r} of class D")
    return have.series[name]


def _fixed(page: Page, names: set[str]) -> dict[str, Number]:
    """Recorded values of a page that hold on any machine."""
    have = recording.primary(page.name)
    for name in sorted(names):
        if have is None or have.classes.get(name) not in _ANYWHERE:
            raise ValueError(f"{name} is neither given nor a recorded value that holds on any machine")
    return {name: have.values[name] for name in sorted(names)} if have else {}
