"""Predictions as pages show them: beside a recording that came, and all of them with the test of the roofline."""

from __future__ import annotations

import html
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from measured import claims, predictions, project, recorded_target, recording
from measured.expression import ExpressionError, names
from measured.page import Claim, Page, read_page
from measured.predictions import Registered
from measured.recording import Recording

BANDS = (1.25, 1.5, 2, 3, 5, 10)
"""Upper ends of the bands that errors are counted in, as factors."""
WORST = 8
_UNITS = {
    "seconds": ("s", "ms", "µs", "ns"),
    "bytes": ("GB", "MB", "kB", "bytes"),
    "bytes_per_second": ("TB/s", "GB/s", "MB/s", "B/s"),
    "flops": ("PFLOP", "TFLOP", "GFLOP", "MFLOP", "FLOP"),
    "flops_per_second": ("PFLOP/s", "TFLOP/s", "GFLOP/s", "MFLOP/s", "FLOP/s"),
    "flops_per_byte": ("FLOP/byte",),
    "tokens": ("tokens",),
    "tokens_per_second": ("tokens/s",),
    "bits": ("bits",),
    "nats": ("nats",),
    "ratio": ("×",),
    "share": ("%",),
}
NONE = "–"


def number(name: str, value: float) -> str:
    """A value in the largest unit of its dimension that leaves at least one, to three digits; whole numbers whole."""
    from snippets.instruments.units import UNITS, dimension_of, render

    units = _UNITS.get(dimension_of(name), ("",))
    unit = next((each for each in units if each in UNITS and abs(value) >= UNITS[each][1]), units[-1])
    shown = value / UNITS[unit][1] if unit in UNITS else value
    spec = ",.0f" if abs(shown) >= 100 or float(shown).is_integer() else ".3g"
    return render(name, value, f"{spec}{'' if unit in ('', '×') else ' '}{unit}").replace(" ", "\N{NO-BREAK SPACE}")


def _times(value: float | None) -> str:
    return NONE if value is None else number("error_ratio", value)


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], anchor: str = "") -> str:
    """Rows of ready markup under a caption, on one line: Markdown leaves it alone."""
    cells = "".join(f'<th scope="col">{each}</th>' for each in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{each}</td>" for each in rest)}</tr>' for first, *rest in rows
    )
    named = f' id="{anchor}"' if anchor else ""
    return (
        f'<div class="ma-table"{named} tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption><span>{html.escape(caption)}</span></caption><thead><tr>{cells}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _fold(summary: str, body: str) -> str:
    """Closed until asked for, and no result of a search: its numbers stand on the pages too."""
    return f'<details class="ma-registered" data-search-exclude><summary>{summary}</summary>{body}</details>'


def _code(name: str) -> str:
    return f"<code>{html.escape(name)}</code>"


def anchor(page: str) -> str:
    """Where a page's predictions stand on predictions.html."""
    return page.replace("/", "-")


def predicted_and_measured(page: Page, found: Sequence[Recording]) -> str:
    """Predictions beside each recording from a machine that they are for; nothing where there is none."""
    parts = []
    for each in found:
        target = predictions.target_of(each.about.get("machine", {}))
        if target is None or each not in predictions.recordings_from(page.name, target.name):
            continue
        rows = [
            [_code(one.name), number(one.name, one.predicted), number(one.name, one.measured), _times(one.factor),
             one.registered]
            for one in predictions.compared(page.name, each, target.name)
        ]  # fmt: skip
        head = ("value", "predicted", "measured", "off by", "registered")
        caption = f"Predicted for {target.name} and measured on {each.label}, {each.about['recorded']}"
        parts.append(_table(caption, head, rows))
    if not parts:
        return ""
    heading = '<h2 id="predicted-and-measured">Predicted and measured</h2>'
    return f'<section class="ma-compared">{heading}{"".join(parts)}</section>'


def link(page: str) -> str:
    """An entry of a list: where the page's predictions stand; nothing where it has none."""
    if not predictions.load().registered.get(page) or not (project.root() / "docs" / "predictions.md").is_file():
        return ""
    return f'<li><a href="../predictions.html#{anchor(page)}">Predictions for other devices</a></li>'


def pulled(part: str) -> str:
    """What `<!-- pull predictions PART -->` stands for: the targets, the pages' predictions, or the roofline's test.

    Raises:
        ValueError: No such part.
    """
    parts = {"targets": targets, "pages": pages, "test": tested}
    if part not in parts:
        raise ValueError(f"predictions have no part {part!r} to pull; known: {', '.join(parts)}")
    return parts[part]()


def targets() -> str:
    """Every target's declared peaks, and as the last one the CPU that recorded."""
    from snippets.instruments.targets import FORMATS, TARGETS

    here = recorded_target.recorded_target()
    columns = [*TARGETS.values(), *([here] if here else [])]
    rows = [
        [
            f"{form.replace('float', 'FP').replace('bFP', 'BF').upper()} products",
            *(_rate(each.flops_per_second.get(form), "flops_per_second") for each in columns),
        ]
        for form in FORMATS
    ]
    rows += [
        ["memory, read", *(_rate(each.bytes_per_second, "bytes_per_second") for each in columns)],
        ["memory, size", *(_rate(each.memory_bytes, "bytes") for each in columns)],
        ["link to the host, one way", *(_rate(each.host_bytes_per_second, "bytes_per_second") for each in columns)],
        ["launch of an operation (GPUs: assumed)", *(_rate(each.launch_seconds, "seconds") for each in columns)],
    ]
    table = _table("What each device is declared to do, dense", ["", *(each.name for each in columns)], rows)
    sources = "".join(f"<li>{html.escape(each.name)}: {html.escape(each.source)}.</li>" for each in TARGETS.values())
    if here:
        by_page: dict[str, list[str]] = {}
        for page, name in recorded_target.INPUTS:
            by_page.setdefault(page, []).append(_code(name))
        inputs = "; ".join(f"{', '.join(names)} of {_linked(page)}" for page, names in by_page.items())
        sources += f"<li>{html.escape(here.name)}: nothing declared, all recorded: {inputs}.</li>"
    return f'{table}\n\n<ul class="ma-reasons">{sources}</ul>\n'


def _rate(value: float | None, dimension: str) -> str:
    return NONE if value is None else number(dimension, value)


def _linked(page: str) -> str:
    return f'<a href="{page}.html">{html.escape(read_page(page).heading[0])}</a>'


def pages() -> str:
    """Each page's predictions, folded: value by target, what is not predicted and why, which bounds would hold."""
    registered = predictions.load().registered
    listed = [name for name in project.page_names() if registered.get(name)]
    return "\n\n".join(_page(name, registered[name]) for name in listed)


def _page(name: str, said: dict[str, dict[str, Registered]]) -> str:
    from snippets.instruments.targets import TARGETS

    dates = sorted({one.registered for by_target in said.values() for one in by_target.values()})
    when = dates[0] if len(dates) == 1 else f"between {dates[0]} and {dates[-1]}"
    rows = [
        [_code(value), *(_cell(value, by_target.get(target)) for target in TARGETS)]
        for value, by_target in said.items()
        if any(one.predicted is not None for one in by_target.values())
    ]
    table = _table(f"Predicted, registered {when}", ["value", *TARGETS], rows, anchor(name)) if rows else ""
    reasons: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for value, by_target in said.items():
        for reason in dict.fromkeys(one.reason for one in by_target.values() if one.reason):
            where = tuple(target for target, one in by_target.items() if one.reason == reason)
            reasons.setdefault((reason, where), []).append(value)
    told = "".join(
        f"<li>{html.escape(reason + _only(where, len(TARGETS)))}: {', '.join(map(_code, values))}</li>"
        for (reason, where), values in reasons.items()
    )
    fold = f'<p>Not predicted, and why:</p><ul class="ma-reasons">{told}</ul>' if told else ""
    if not rows:
        fold = f'<div id="{anchor(name)}">{fold}</div>'
    heading = html.escape(read_page(name).heading[0])
    way = f'<p><a href="{name}.html">To the page</a></p>'
    return _fold(heading, way + table + fold + _bounds(name, said))


def _only(where: Sequence[str], of: int) -> str:
    return "" if len(where) == of else f" ({', '.join(where)})"


def _cell(value: str, said: Registered | None) -> str:
    return NONE if said is None or said.predicted is None else number(value, said.predicted)


def _bounds(name: str, said: dict[str, dict[str, Registered]]) -> str:
    """The page's R claims: whether each bound is predicted to hold on each target."""
    from snippets.instruments.targets import TARGETS

    have = recording.primary(name)
    firm = {n: v for n, v in have.values.items() if have.classes[n] not in predictions.CLASSES} if have else {}
    rows = []
    for claim in read_page(name).claims:
        if claim.value_class != "R":
            continue
        cells = []
        for target, device in TARGETS.items():
            numbers = {n: by[target].predicted for n, by in said.items() if target in by}
            known = firm | {n: v for n, v in numbers.items() if v is not None}
            cells.append(_outcome(claim, known, device.capabilities))
        rows.append([f'<a href="{name}.html#{claim.id}">{html.escape(claim.text)}</a> {_code(claim.check)}', *cells])
    return _table("Bounds that are predicted to hold", ["claim", *TARGETS], rows) if rows else ""


def _outcome(claim: Claim, values: dict[str, float], capabilities: frozenset[str]) -> str:
    if set(claim.needs.split()) - capabilities:
        return "does not apply"
    if not names(claim.check) <= values.keys():
        return NONE
    try:
        return "holds" if claims.holds(claim, values) else "<strong>fails</strong>"
    except ExpressionError:
        return NONE


def tested() -> str:
    """The roofline held against the CPU that recorded: how far off, how often, and where most."""
    every = [
        one for one in predictions.hindcasts(project.page_names()) if (one.page, one.name) not in recorded_target.INPUTS
    ]
    follows = [one for one in every if math.isclose(one.predicted, one.measured, rel_tol=predictions.SAME)]
    sized = [(one.factor, one) for one in every if one.factor is not None and one not in follows]
    if not sized:
        return "Nothing is recorded yet that a prediction could be held against."
    sized.sort(key=lambda pair: -pair[0])
    told = predictions.load().hindcast.values()
    reasons = sum(isinstance(value, str) for values in told for value in values.values())
    factors = [size for size, _ in sized]
    times = [(size, one) for size, one in sized if one.name.endswith("_seconds")]
    ratios = [size for size, one in sized if one.name.endswith("_ratio")]
    within, nothing = sum(size <= 2 for size in factors) / len(factors), len(every) - len(follows) - len(sized)
    summary = (
        f"<p>{len(sized)} values are predicted for this CPU and recorded on it. Half of them are off by at most "
        f"<strong>{_times(statistics.median(factors))}</strong>, and {number('within_share', within)} lie within a "
        f"factor of two. {_medians(ratios, [size for size, _ in times])} Rates that other pages record again are "
        "counted: they show how far a rate drifts between pages.</p>"
        f"<p>Not counted are {len(follows)} values that follow from the page’s own sizes on any device, "
        f"{len(recorded_target.INPUTS)} inputs, {nothing} recorded as nothing or less, and {reasons} of which the "
        "page’s predictions say why there is no number.</p>"
    )
    slow = sum(one.predicted < one.measured for _, one in times)
    first = {one.page: (size, one) for size, one in reversed(sized)}  # each page's worst
    worst = sorted(first.values(), key=lambda pair: -pair[0])[:WORST]
    named = "".join(f"<li>{_code(one.name)} of {_linked(one.page)}: {_times(size)}</li>" for size, one in worst)
    lean = (
        f"<p>Of {len(times)} times, {slow} took longer than predicted: what a bound leaves out takes time. "
        f'The pages with the largest errors, by their worst value:</p><ul class="ma-reasons">{named}</ul>'
    )
    rows = [
        [f"{_linked(one.page)} {_code(one.name)}", number(one.name, one.predicted), number(one.name, one.measured),
         _times(size)]
        for size, one in sized
    ]  # fmt: skip
    head = ("value", "predicted", "recorded", "off by")
    table = _table("Predicted for this CPU and recorded on it, the worst first", head, rows)
    return "\n\n".join([summary, _bands(factors), lean, _fold("All of them, the worst first", table)]) + "\n"


def _medians(ratios: Sequence[float], times: Sequence[float]) -> str:
    if not ratios or not times:
        return ""
    ratio, time = statistics.median(ratios), statistics.median(times)
    why = ": what both of its sides leave out cancels" if ratio < time else ""
    return f"The median time is off by {_times(time)}, the median ratio by {_times(ratio)}{why}."


def _bands(sizes: Sequence[float]) -> str:
    """How many values lie in each band of errors, with a bar each."""

    def band(size: float) -> int:
        return sum(size > end for end in BANDS)

    counts = Counter(map(band, sizes))
    labels = [f"up to {_times(end)}" for end in BANDS] + [f"beyond {_times(BANDS[-1])}"]
    rows = [
        [label, str(counts[at]),
         f'<span class="ma-off-by" style="inline-size: {100 * counts[at] / max(counts.values()):.0f}%"></span>']
        for at, label in enumerate(labels)
    ]  # fmt: skip
    return _table("Values by how far off they were predicted", ["off by", "values", ""], rows)
