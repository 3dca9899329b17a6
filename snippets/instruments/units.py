"""Units: what a value's name says it is, what a number in a text says it is, how to show one as the other.

Every value is kept in the base unit of its dimension (bytes, seconds, plain ratios) under a name that ends in
that dimension: `weights_bytes`, `step_seconds`, `speed_ratio`. Only a text shows GB or ms. GB, MB and kB are
powers of ten; GiB, MiB and KiB are powers of two (standard IEC-80000-13).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from decimal import Decimal

KB, MB, GB, TB = 10**3, 10**6, 10**9, 10**12
KiB, MiB, GiB, TiB = 2**10, 2**20, 2**30, 2**40

_DIMENSIONS = [
    "bytes", "seconds", "ratio", "share", "count", "tokens", "bits", "flops", "tokens_per_second",
    "bytes_per_second", "flops_per_second", "requests_per_second", "flops_per_byte", "nats", "db",
    "difference",
]  # fmt: skip

SUFFIXES: dict[str, str] = {f"_{dimension}": dimension for dimension in _DIMENSIONS}
"""What a value's name may end in, to its dimension."""

_SIZES = {
    "B": 1, "byte": 1, "bytes": 1, "kB": KB, "KB": KB, "MB": MB, "GB": GB, "TB": TB,
    "KiB": KiB, "MiB": MiB, "GiB": GiB, "TiB": TiB,
}  # fmt: skip
_TIMES = {
    "s": 1, "second": 1, "seconds": 1, "ms": 1e-3, "millisecond": 1e-3, "milliseconds": 1e-3,
    "µs": 1e-6, "μs": 1e-6, "us": 1e-6, "microsecond": 1e-6, "microseconds": 1e-6,  # micro sign and Greek mu
    "ns": 1e-9, "nanosecond": 1e-9, "nanoseconds": 1e-9,
    "min": 60, "minute": 60, "minutes": 60, "h": 3600, "hour": 3600, "hours": 3600,
}  # fmt: skip
_WORK = {
    f"{prefix}{noun}": 10**power
    for prefix, power in (("", 0), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18))
    for noun in ("FLOP", "FLOPs")
}
_PER = ("/", " per ", " a ")  # "tokens/s", "tokens per second", "tokens a second"


def _rates(units: dict[str, int], short: str, long: str) -> dict[str, int]:
    """Each unit over a denominator, in every way that a text writes it."""
    return {
        f"{unit}{per}{below}": factor
        for unit, factor in units.items()
        for per in _PER
        for below in ((short,) if per == "/" else (long,))
    }


_BY_DIMENSION: dict[str, dict[str, int | float]] = {
    "bytes": {**_SIZES},
    "seconds": {**_TIMES},
    "ratio": {"×": 1},
    "share": {"%": 1e-2},
    "tokens": {"token": 1, "tokens": 1},
    "bits": {"bit": 1, "bits": 1},
    "flops": {**_WORK},
    "tokens_per_second": {**_rates({"token": 1, "tokens": 1}, "s", "second")},
    "bytes_per_second": {**_rates(_SIZES, "s", "second")},
    "flops_per_second": {**_rates(_WORK, "s", "second")},
    "requests_per_second": {**_rates({"request": 1, "requests": 1}, "s", "second")},
    "flops_per_byte": {**_rates(_WORK, "B", "byte"), **_rates(_WORK, "byte", "byte")},
    "nats": {"nat": 1, "nats": 1},
    "db": {"dB": 1},
}

UNITS: dict[str, tuple[str, int | float]] = {
    unit: (dimension, factor) for dimension, units in _BY_DIMENSION.items() for unit, factor in units.items()
}
"""Every unit a text may use, to its dimension and its factor to that dimension's base unit."""

SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
"""Number words that may stand before a unit or a counted noun: "billion parameters", "trillion tokens"."""

_DIMENSIONLESS = frozenset({"ratio", "share", "count", "difference"})


class UnitError(ValueError):
    """A value's name, or the unit it is shown in, does not say what the value is."""


@dataclass(frozen=True)
class Quantity:
    """A number as a text states it; `base` is the number in the base unit of `dimension`.

    `unit` and `dimension` are None for a bare number and for one before a noun that is no unit (layers).
    `start` is where `text` begins in the text parsed.
    """

    number: float
    text: str
    unit: str | None
    dimension: str | None
    base: float
    start: int = field(default=0, compare=False)


def dimension_of(value_name: str) -> str:
    """The dimension that the longest known suffix of `value_name` states; a suffix alone is a name too.

    Raises:
        UnitError: the name ends in no known suffix.
    """
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        if f"_{value_name}".endswith(suffix):
            return SUFFIXES[suffix]
    raise UnitError(f"{value_name!r} does not end in its unit; known: {', '.join(SUFFIXES)}")


def fits(unit: str | None, dimension: str) -> bool:
    """Whether a value of `dimension` may be stated in `unit`; None is a bare number or a counted noun.

    Ratios and shares are the same kind of number: both may be shown in "×" and in "%".
    """
    if unit is None:
        return dimension in _DIMENSIONLESS
    stated = _split_scale(unit)[1]
    if stated not in UNITS:
        return dimension == "count"
    found = UNITS[stated][0]
    return found == dimension or {found, dimension} == {"ratio", "share"}


def _split_scale(unit: str) -> tuple[int, str]:
    """The number word's value and the unit after it; a unit without a number word is its own rest."""
    word, _, rest = unit.partition(" ")
    return (SCALES[word], rest.strip()) if word in SCALES else (1, unit)


_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_GAP = r"[ \t\n\u00a0\u202f]"
# A single letter is a unit only after a gap ("8 B", not "8B": that is how models are called); a unit ends
# where no letter, digit or further "/..." follows; "×" between two numbers is a product.
_UNIT_END = rf"(?![\w/])(?!{_GAP}+(?:per|a){_GAP}+(?:second|minute|hour|byte)\b)"
_UNIT = "|".join(
    ("×(?!" + _GAP + r"*\d)")
    if unit == "×"
    else ("(?<=[ \u00a0\u202f\\n])" if len(unit) == 1 and unit.isalpha() else "")
    + re.escape(unit).replace(r"\ ", _GAP + "+")
    + ("" if unit == "%" else _UNIT_END)
    for unit in sorted(UNITS, key=len, reverse=True)
)
_TOKEN = re.compile(
    rf"""
    (?P<name>[^\W\d_][\w]*(?:[-.+/][\w]+)*)                      # INT8, Llama-3-8B, Qwen2.5: names
  | (?P<version>\d+(?:\.\d+){{2,}}(?:\+\w+)?)                    # 2.13.0
  | (?P<number>(?:(?<![\w.\-–−)])[-−+])?                         # a sign, unless it joins two numbers
        (?:\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?![\d])
        (?:[eE][-+]?\d+)?
        (?:{_GAP}*[×·]{_GAP}*10(?P<tens>⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+)|(?P<power>⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))?)
    (?:(?:{_GAP}+(?P<scale>{"|".join(SCALES)})\b)?
       (?:{_GAP}*-?(?P<unit>{_UNIT}))?)
    """,
    re.VERBOSE,
)


def parse_quantities(text: str) -> list[Quantity]:
    """Every number in `text` with the unit that follows it, in order.

    Names (INT8, Llama-3-8B, any word that begins with a letter) and versions are no numbers. Powers in
    superscript, signs, thousands separators and number words (million) are understood.
    """
    found = []
    for match in _TOKEN.finditer(text):
        if match["number"] is None:
            continue
        number = _decimal(match)
        scale, unit = match["scale"], match["unit"]
        unit = re.sub(_GAP + "+", " ", unit) if unit else None
        dimension, factor = UNITS[unit] if unit else ("count" if scale else None, 1)
        base = number * Decimal(repr(factor)) * SCALES.get(scale or "", 1)
        stated = " ".join(part for part in (scale, unit) if part) or None
        found.append(Quantity(float(number), match[0], stated, dimension, float(base), match.start()))
    return found


def _decimal(match: re.Match[str]) -> Decimal:
    """The number of a match, exactly: so many GB are a whole number of bytes and not a float beside it."""
    digits = re.split(r"[×·⁻⁰¹²³⁴⁵⁶⁷⁸⁹]", match["number"])[0].strip(" \t\n\u00a0\u202f")
    number = Decimal(digits.replace(",", "").replace("−", "-"))
    if match["tens"]:
        return number * Decimal(10) ** int(match["tens"].translate(_SUPERSCRIPTS))
    if match["power"]:
        return Decimal(number) ** int(match["power"].translate(_SUPERSCRIPTS))
    return number


_SPEC = re.compile(r"(?P<format>[-+]?[,_]?(?:\.\d+)?[defg])(?P<gap>[ \u00a0\u202f]*)(?P<unit>.*)")


def render(value_name: str, value: float, spec: str) -> str:
    """`value` as text: `spec` is a Python format, then, optionally, the unit to show it in.

    Without a unit the number is in the base unit. `_count` takes any noun that is no unit, number words too.

    Raises:
        UnitError: the spec cannot be read, the unit does not fit the name's dimension, or a "d" format meets
            a fraction.
    """
    dimension = dimension_of(value_name)
    match = _SPEC.fullmatch(spec)
    if not match:
        raise UnitError(f"{spec!r} is no format with a unit, such as ',.0f bytes', '.3f×' or '.1f %'")
    unit = match["unit"]
    if unit and not fits(unit, dimension):
        raise UnitError(f"{value_name} is a number of {dimension}: it cannot be shown in {unit!r}")
    scale, stated = _split_scale(unit)
    shown = value / scale / UNITS[stated][1] if stated in UNITS else value / scale
    if not match["format"].endswith("d"):
        return f"{shown:{match['format']}}{match['gap']}{unit}"
    if not float(shown).is_integer():
        raise UnitError(f"{value_name} = {shown} is no whole number: {spec!r} would hide it")
    return f"{int(shown):{match['format']}}{match['gap']}{unit}"
