"""What snippets and page cells may import: publish measured values, series, tables and charts.

Everything goes into the cell's output as a MIME bundle of its own, so that a recording holds the numbers
themselves and not only their print. Outside a notebook the same calls only fill the registry.
Needs no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measured import expression

VALUES_MIME = "application/vnd.measured.values+json"
SERIES_MIME = "application/vnd.measured.series+json"
TABLE_MIME = "application/vnd.measured.table+json"
CHART_MIME = "application/vnd.measured.chart+json"

CLASSES = {
    "D": "an exact count or equality",
    "T": "a value within a derived tolerance",
    "R": "a ratio or order of times, bounded on one side",
    "H": "one device's value, shown and never gated",
}
# A ratio of times may move this far between two runs on one class of machine before it counts as another result.
RATIO_DRIFT = 3.0

VALUES: dict[str, float | int] = {}
SERIES: dict[str, dict[str, list]] = {}


class ValueNameError(ValueError):
    """A value recorded twice, without a unit in its name, or with content its class does not allow."""


class ClaimFailedError(AssertionError):
    """A claim or a recorded value does not hold on this run."""


def record(value_class: str, /, *, tolerance: float | None = None, because: str = "", **values: float) -> None:
    """Publish numbers under names that end in their unit.

    Args:
        value_class: "D" (whole numbers, compared exactly), "T", "R" or "H".
        tolerance: For "T": how far another run may lie from this one, absolute, in the values' own unit.
        because: For "T": where the tolerance comes from.
        **values: Finite numbers.

    Raises:
        ValueNameError: Unknown class, unit missing in a name, not finite, a name recorded before, "D" with a
            fraction, "T" without tolerance and reason.
    """
    from snippets.instruments.units import dimension_of

    _require_class(value_class)
    if value_class == "T" and (tolerance is None or not because):
        raise ValueNameError("T values need tolerance=… and because='where it comes from'")
    if value_class != "T" and tolerance is not None:
        raise ValueNameError(f"only T values have a tolerance, not {value_class}")
    for name, value in values.items():
        dimension_of(name)
        if name in VALUES:
            raise ValueNameError(f"{name} is recorded twice")
        if not math.isfinite(value):
            raise ValueNameError(f"{name} is {value}: not a finite number")
        if value_class == "D" and float(value) != int(value):
            raise ValueNameError(f"{name} = {value} has a fraction: record its terms as D, or itself as T")
    clean = {k: int(v) if value_class == "D" else float(v) for k, v in values.items()}
    VALUES.update(clean)
    # Notebooks are written with sorted keys, so an order that readers see travels as a list.
    bundle: dict[str, Any] = {"class": value_class, "names": list(clean), "values": clean}
    if value_class == "T":
        bundle |= {"tolerance": tolerance, "because": because}
    _publish({VALUES_MIME: bundle}, "\n".join(f"{k} = {v:,.6g}" for k, v in clean.items()))


def series(value_class: str, name: str, /, **columns: Sequence) -> None:
    """Publish named columns of equal length, for tables and charts.

    Args:
        value_class: As in `record`; "D" columns must come out the same on every machine.
        name: The series' name on this page.
        **columns: Numbers or strings; a column of numbers carries its unit in its name.

    Raises:
        ValueNameError: Unequal lengths, an empty series, a name used before, a number without a unit.
    """
    from snippets.instruments.units import dimension_of

    _require_class(value_class)
    if name in SERIES:
        raise ValueNameError(f"series {name} is recorded twice")
    if not columns or len({len(c) for c in columns.values()}) != 1 or not len(next(iter(columns.values()))):
        raise ValueNameError(f"series {name}: columns must be of one length and not empty")
    clean = {key: [_plain(v) for v in column] for key, column in columns.items()}
    for key, column in clean.items():
        if not all(isinstance(v, str) for v in column):
            dimension_of(key)
    SERIES[name] = clean
    _publish(
        {SERIES_MIME: {"class": value_class, "name": name, "columns": clean}}, f"series {name}: {', '.join(clean)}"
    )


def table(name: str, *, columns: Mapping[str, str], formats: Mapping[str, str] | None = None, caption: str) -> None:
    """Show columns of a recorded series as a table.

    Args:
        name: The series.
        columns: Recorded column to its heading, in the order shown.
        formats: Recorded column to how it is shown, as in a page: ",.0f bytes", ".2f GB", ".3f×".
        caption: What the rows are.

    Raises:
        KeyError: The series or a column is not recorded.
    """
    from snippets.instruments.units import render

    shown, formats = SERIES[name], formats or {}
    cells = {c: [v if isinstance(v, str) else render(c, v, formats.get(c, ",.6g")) for v in shown[c]] for c in columns}
    rows = list(zip(*cells.values(), strict=True))
    plain = "\n".join("  ".join(map(str, row)) for row in [tuple(columns.values()), *rows])
    bundle = {
        "series": name,
        "columns": [list(pair) for pair in columns.items()],
        "formats": dict(formats),
        "caption": caption,
    }
    _publish({TABLE_MIME: bundle}, f"{caption}\n{plain}")


def chart(
    name: str,
    *,
    x: str,
    y: str,
    title: str,
    color: str | None = None,
    mark: str = "line",
    log_x: bool = False,
    log_y: bool = False,
    x_title: str = "",
    y_title: str = "",
) -> None:
    """Draw two columns of a recorded series, a line or bars, as SVG that follows the page's colours.

    Args:
        name: The series.
        x: Column along the horizontal axis.
        y: Column along the vertical axis.
        title: What a reader should see in it.
        color: Column that separates lines or bars.
        mark: "line", "point" or "bar".
        log_x: Logarithmic horizontal axis, base 2.
        log_y: Logarithmic vertical axis, base 10.
        x_title: Axis title; the column's name where empty.
        y_title: Axis title; the column's name where empty.

    Raises:
        KeyError: The series or a column is not recorded.
    """
    from measured.drawing import draw

    columns = {c: SERIES[name][c] for c in dict.fromkeys([x, y, *([color] if color else [])])}
    axes = {"x": x, "y": y, "color": color, "mark": mark, "log_x": log_x, "log_y": log_y}
    labels = {"title": title, "x_title": x_title or x.replace("_", " "), "y_title": y_title or y.replace("_", " ")}
    bundle = {"series": name, **axes, **labels, "data": columns}
    data: dict[str, Any] = {CHART_MIME: bundle}
    if _in_notebook():
        data["image/svg+xml"] = draw(bundle)
    _publish(data, f"chart {title}")


def report(page: str, values: Mapping[str, float]) -> None:
    """Print a page's claims beside freshly measured values: what `python -m snippets.<topic>.<slug>` shows.

    Args:
        page: The question's name, `topic/slug`.
        values: What `measure()` returned.
    """
    from measured.terminal import print_report

    print_report(page, values)


def check_value(
    name: str, value_class: str, recorded: float, *, tolerance: float = 0.0, machine_class: str = ""
) -> None:
    """What the check cell of a recorded value runs: compare this run with the recording.

    Raises:
        ClaimFailedError: D differs, T lies outside its tolerance, R moved beyond `RATIO_DRIFT` on one class
            of machine, or the value was not recorded in this run.
    """
    if name not in VALUES:
        raise ClaimFailedError(f"{name} was not recorded in this run")
    value = VALUES[name]
    if value_class == "D" and value != recorded:
        raise ClaimFailedError(f"{name} = {value}, recorded {recorded}")
    if value_class == "T" and not abs(value - recorded) <= tolerance:
        raise ClaimFailedError(f"{name} = {value}, recorded {recorded}, farther than {tolerance}")
    if value_class == "R" and _machine_class() == machine_class:
        low, high = recorded / RATIO_DRIFT, recorded * RATIO_DRIFT
        if not min(low, high) <= value <= max(low, high):
            raise ClaimFailedError(f"{name} = {value:.4g}, recorded {recorded:.4g}: moved beyond {RATIO_DRIFT}×")
    print(f"value {name} = {value}" if value_class == "D" else f"value {name}")


def check_series(name: str, value_class: str, digest: str) -> None:
    """What the check cell of a recorded series runs.

    Raises:
        ClaimFailedError: Not recorded in this run; other columns or length; other content in class D.
    """
    if name not in SERIES:
        raise ClaimFailedError(f"series {name} was not recorded in this run")
    now = series_digest(value_class, SERIES[name])
    if now != digest:
        raise ClaimFailedError(f"series {name} differs from the recording")
    print(f"series {name} {now}")


def check_claim(claim_id: str, check: str, *, needs: str = "") -> None:
    """What the check cell of a claim runs: assert it on this run's values, then print its id.

    Where a needed capability is absent the claim is "not applicable here": the line is printed all the same
    and the status goes to the side file that $MEASURED_STATUS names.

    Raises:
        ClaimFailedError: The claim does not hold.
    """
    missing = [n for n in needs.split() if n not in _capabilities()]
    if not missing and not expression.evaluate(check, VALUES):
        shown = ", ".join(f"{n} = {VALUES[n]:.6g}" for n in sorted(expression.names(check)))
        raise ClaimFailedError(f"claim {claim_id} fails: {check}, but {shown}")
    if side := os.environ.get("MEASURED_STATUS"):
        status = "not applicable" if missing else "holds"
        line = {
            "claim": claim_id,
            "status": status,
            "missing": missing,
            "values": {n: VALUES.get(n) for n in expression.names(check)},
        }
        with Path(side).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    print(f"claim {claim_id}")


def series_digest(value_class: str, columns: Mapping[str, Sequence]) -> str:
    """Short hash of what another run must reproduce: all of a D series, else its columns, length and words."""
    kept = {
        k: list(v) if value_class == "D" else [x if isinstance(x, str) else "" for x in v] for k, v in columns.items()
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def clear() -> None:
    """Forget everything recorded in this process (tests, and several pages in one interpreter)."""
    VALUES.clear()
    SERIES.clear()


def _require_class(value_class: str) -> None:
    if value_class not in CLASSES:
        raise ValueNameError(f"class {value_class!r}: use one of {', '.join(CLASSES)}")


def _plain(value: Any) -> str | int | float:
    if isinstance(value, str):
        return value
    number = float(value)
    if not math.isfinite(number):
        raise ValueNameError(f"{value} is not a finite number")
    return int(number) if number == int(number) and isinstance(value, int) else number


def _capabilities() -> frozenset[str]:
    from snippets.instruments.device import capabilities

    return capabilities()


def _machine_class() -> str:
    from snippets.instruments.device import describe

    return str(describe()["class"])


def _in_notebook() -> bool:
    import sys

    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return shell is not None and hasattr(shell, "kernel")


def _publish(data: dict[str, Any], plain: str) -> None:
    if _in_notebook():
        from IPython.display import display

        display({**data, "text/plain": plain}, raw=True)
