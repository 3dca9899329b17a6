"""Claims against values: do they hold, are their bounds honest, does the wording say what is checked?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from measured import expression, project
from measured.expression import ExpressionError
from measured.page import Claim, Mark, PageError, read_page

# How far an R claim's bound lies beyond its null, and the recorded value beyond the bound.
BOUND_BEYOND_NULL = 1.15
VALUE_BEYOND_BOUND = 1.6

WORDING = {
    "<=": r"\bat most\b|\bno more than\b",
    ">=": r"\bat least\b|\bno less than\b",
    "<": r"\bunder\b|\bbelow\b|\bless than\b|\bfewer than\b",
    ">": r"\bover\b|\babove\b|\bmore than\b",
}
# Number words that may stand for a derived number, with their values.
WORD_VALUES = {
    "half": 0.5,
    "a quarter": 0.25,
    "a third": 1 / 3,
    "two": 2,
    "twice": 2,
    "double": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
}
# Classes of value that a claim of each class may rest on.
RESTS_ON = {"D": "D", "T": "DT", "R": "DTR"}
_TIGHTER = {"no more than": ">", "no less than": "<"}


def holds(claim: Claim, values: Mapping[str, float]) -> bool:
    """Whether a claim's check is true of these values.

    Raises:
        ExpressionError: It cannot be read or names a value that is not there.
    """
    return bool(expression.evaluate(claim.check, values))


def form_problems(claim: Claim) -> Iterator[tuple[str, str]]:
    """What is wrong with a claim as written, before any value is looked at: `(problem, mend)`."""
    if not claim.id:
        yield "a claim without an id", "add #a-unique-id to its attributes"
    if claim.value_class not in ("D", "T", "R", "H"):
        yield f"claim {claim.id}: class {claim.value_class!r}", "data-class is D, T, R or H"
        return
    try:
        operators = expression.operators(claim.check)
    except ExpressionError as error:
        yield f"claim {claim.id}: {error}", 'write data-check="name_unit >= number"'
        return
    if not operators:
        yield f"claim {claim.id}: {claim.check!r} compares nothing", "add an operator and a bound"
    if not expression.names(claim.check):
        yield f"claim {claim.id}: {claim.check!r} names no recorded value", "compare a recorded value"
    if claim.value_class == "D" and set(operators) != {"=="}:
        yield f"claim {claim.id}: class D with {' '.join(operators)}", "a D claim is an equality: use =="
    if any(len(set(sides)) < len(sides) for sides in expression.comparisons(claim.check)):
        yield f"claim {claim.id}: {claim.check!r} compares something with itself", "compare two independent ways"
    if claim.value_class == "T" and not claim.tolerance:
        yield f"claim {claim.id}: class T without a tolerance", 'say where it comes from: data-tolerance="…"'
    if claim.value_class in ("T", "R") and "==" in operators:
        yield f"claim {claim.id}: class {claim.value_class} with ==", "bound it with <= or >="
    if claim.value_class == "R":
        yield from _null_problems(claim)
    yield from _wording_problems(claim, operators)


def _null_problems(claim: Claim) -> Iterator[tuple[str, str]]:
    if claim.null is None:
        yield f"claim {claim.id}: class R without a null", "add data-null=1 (the value if the technique did nothing)"
        return
    for part in _conjuncts(claim.check):
        found = expression.bound(part)
        if found is None:
            yield f"claim {claim.id}: {part!r} has no single bound", 'write data-check="ratio >= number"'
            continue
        _, operator, bound = found
        if operator in (">=", ">") and bound < claim.null * BOUND_BEYOND_NULL:
            yield (
                f"claim {claim.id}: bound {bound} is not {BOUND_BEYOND_NULL}× beyond the null {claim.null}",
                "raise the bound, or show the value without gating it",
            )
        if operator in ("<=", "<") and bound > claim.null / BOUND_BEYOND_NULL:
            # "No effect" parts stand on the null's other side; they need a positive control in the same claim.
            beyond = bound > claim.null and len(_conjuncts(claim.check)) > 1
            if not beyond:
                yield (
                    f"claim {claim.id}: bound {bound} is not {BOUND_BEYOND_NULL}× under the null {claim.null}",
                    "lower the bound, or pair it with a positive control: … and control_ratio >= …",
                )


def class_problems(claim: Claim, classes: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Whether a claim rests on values that are as firm as it says: a time is no T value, an H value backs no gate."""
    try:
        named = sorted(expression.names(claim.check) & classes.keys())
    except ExpressionError:
        return
    for name in named:
        if classes[name] not in RESTS_ON.get(claim.value_class, "DTRH"):
            yield (
                f"claim {claim.id}: class {claim.value_class} on {name}, which is recorded as {classes[name]}",
                "give the claim the value's class, or record the value as what it is",
            )


def margin_problems(claim: Claim, values: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    """Whether an R claim's recorded value lies far enough beyond its bound to pass on another day."""
    if claim.value_class != "R":
        return
    for part in _conjuncts(claim.check):
        found = expression.bound(part)
        if found is None:
            continue
        left, operator, bound = found
        value = float(expression.evaluate(left, values))
        near = value < bound * VALUE_BEYOND_BOUND if operator in (">=", ">") else value > bound / VALUE_BEYOND_BOUND
        if near:
            yield (
                f"claim {claim.id}: recorded {value:.4g} is not {VALUE_BEYOND_BOUND}× beyond the bound {bound}",
                "loosen the bound, or show the value without gating it",
            )


def _conjuncts(check: str) -> list[str]:
    return [part.strip() for part in re.split(r"\band\b", check)]


def _wording_problems(claim: Claim, operators: list[str]) -> Iterator[tuple[str, str]]:
    text = claim.text.lower()
    for phrase, opposite in _TIGHTER.items():
        if phrase in text:
            text = text.replace(phrase, {">": "at most", "<": "at least"}[opposite])
    for operator, pattern in WORDING.items():
        said, checked = bool(re.search(pattern, text)), operator in operators
        if checked and not said:
            words = pattern.replace("\\b", "").replace("|", "” or “")
            yield f"claim {claim.id} checks {operator}, its words do not say so", f"write “{words}”"
        if said and not checked:
            yield f"claim {claim.id} says “{claim.text}” but checks {claim.check}", f"check with {operator}, or reword"
    yield from quantity_problems(claim)


def quantity_problems(claim: Claim) -> Iterator[tuple[str, str]]:
    """Numbers in a claim's words that its check does not hold, bounds its words leave out, wrong units."""
    from snippets.instruments.units import UNITS, dimension_of, fits, parse_quantities

    literals = [float(n) for n in expression.literals(claim.check)]
    dimensions = set()
    for name in expression.names(claim.check):
        try:
            dimensions.add(dimension_of(name))
        except ValueError as error:
            yield f"claim {claim.id}: {error}", "end the value's name in its unit"
    sides = [side for comparison in expression.comparisons(claim.check) for side in comparison]
    alone = re.compile(r"(-?[\d.]+(?:e[-+]?\d+)?)(?: \* \w+_(?:count|tokens))?")
    whole = [float(m[1]) for side in sides if (m := alone.fullmatch(side))]
    stated: set[float] = set()
    for quantity in parse_quantities(claim.text):
        factor_of_equality = quantity.unit == "×" and quantity.number in literals and claim.value_class == "D"
        if dimensions and not factor_of_equality and not any(fits(quantity.unit, d) for d in dimensions):
            yield (
                f"claim {claim.id}: “{quantity.text}” is not a number of {' or '.join(sorted(dimensions))}",
                "state the number in the value's own unit",
            )
        factor = UNITS[quantity.unit][1] if quantity.unit in UNITS else 1
        matches = [n for n in literals if _equal(n, quantity.base)]
        if not matches and any(_equal(n, float(factor)) for n in literals):
            matches = [n for n in literals if _equal(n, quantity.number)]
        # A number with a unit is the value itself, or so much for each of a count: no other part of the check.
        if claim.value_class == "D" and quantity.dimension not in (None, "ratio", "share", "count"):
            matches = [n for n in matches if any(_equal(n, w) for w in whole)]
        if not matches:
            yield (
                f"claim {claim.id} says “{quantity.text}”, its check {claim.check!r} does not",
                "make words and check the same number",
            )
        stated.update(matches)
    for word in re.findall(rf"\b(?:{'|'.join(WORD_VALUES)})\b", claim.text.lower()):
        if not any(_equal(WORD_VALUES[word], n) for n in literals):
            yield f"claim {claim.id} says “{word}”, its check {claim.check!r} does not", "check it, or say it otherwise"
        stated.add(WORD_VALUES[word])
    for part in _conjuncts(claim.check):
        found = expression.bound(part)
        # Zero is said in words ("equal", "none"); every other bound is a number that the reader must see.
        if found and found[2] != 0 and not any(_equal(float(found[2]), n) for n in stated):
            yield f"claim {claim.id}: the bound {found[2]} is not in its words", "state it in the sentence"


def mark_problem(mark: Mark, values: Mapping[str, float], sources: Mapping[str, dict]) -> tuple[str, str] | None:
    """What is wrong with a measured, exact or cited number in the text, as `(problem, mend)`."""
    try:
        wanted = expected_text(mark, values, sources)
    except (ExpressionError, ValueError, KeyError) as error:
        return f"“{mark.text}”: {error}", "correct the mark's attributes"
    if _normal(mark.text) != _normal(wanted):
        return f"the text says “{mark.text}”, it should be “{wanted}”", "run `measured fix`"
    return None


def expected_text(mark: Mark, values: Mapping[str, float], sources: Mapping[str, dict]) -> str:
    """What a mark's text must read, from the recording, its expression or its source.

    Raises:
        ExpressionError: A name is not recorded or an expression is malformed.
        ValueError: A unit does not fit, an attribute is missing, or a source is unknown.
    """
    from snippets.instruments.units import render

    if mark.kind == "m":
        name, _, spec = mark.attrs.get("data-m", "").partition(":")
        if not name or not spec:
            raise ValueError('write data-m="value_name:format unit"')
        if name not in values:
            raise ExpressionError(f"{name} is not recorded")
        return render(name, values[name], spec)
    if mark.kind == "exact":
        text, _, spec = mark.attrs.get("data-expr", "").partition(":")
        if not expression.names(text) and len(expression.literals(text)) < 2:
            raise ValueError(f"{text!r} derives nothing: name a recorded value, or record this one")
        if text and not spec and (word := mark.text.strip().lower()) in WORD_VALUES:
            if not _equal(float(expression.evaluate(text, values)), WORD_VALUES[word]):
                raise ValueError(f"{text} is {expression.evaluate(text, values)}")
            return mark.text
        if not text or not spec:
            raise ValueError('write data-expr="expression:format unit"')
        return _render_plain(float(expression.evaluate(text, values)), spec)
    if mark.kind == "cited":
        key = mark.attrs.get("data-src", "")
        if key not in sources:
            raise ValueError(f"docs/sources.yml has no entry {key!r}")
        if "shown" not in sources[key]:
            raise ValueError(f"docs/sources.yml: {key} states no number")
        return str(sources[key]["shown"])
    raise ValueError(f"a {mark.kind} has no single text")


def _render_plain(value: float, spec: str) -> str:
    """A derived number; its unit names the dimension, since an expression has no name."""
    from snippets.instruments.units import UNITS, render

    match = re.fullmatch(r"(?P<format>[-+]?[,_]?(?:\.\d+)?[defg]) *(?P<unit>.*)", spec)
    if not match:
        raise ValueError(f"{spec!r} is no format with a unit")
    dimension = UNITS[match["unit"]][0] if match["unit"] in UNITS else "count"
    return render(f"value_{dimension}", value, spec)


def _normal(text: str) -> str:
    return re.sub(r"[\s\u00a0\u202f]+", " ", text).strip()


def _equal(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-12 * max(abs(a), abs(b))


def all_claims(names: list[str] | None = None) -> list[Claim]:
    """Claims of these pages, or of all; a page that cannot be read has none, and its own check says why."""
    found = []
    for name in names or project.page_names():
        with suppress(PageError):
            found += read_page(name).claims
    return found


_pages: dict[Path, dict[str, str]] = {}


def find(claim_id: str) -> Claim | None:
    """The claim of that id, on whichever page states it; all pages are read only where the last answer is stale."""
    root = project.root()
    for _ in range(2):
        page = _pages.get(root, {}).get(claim_id)
        if page in project.page_names():
            found = next((c for c in read_page(page).claims if c.id == claim_id), None)
            if found:
                return found
        _pages[root] = {c.id: c.page for c in all_claims()}
    return None
