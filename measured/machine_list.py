"""docs/machines.md: what each machine that recorded is, and what the same values came to on each of them."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from measured import project, recording
from measured.page import read_page
from measured.recording import Recording

_ROW = 22  # height of a page's row in the overview, in the drawing's units
_LEFT, _WIDTH = 300, 690


@dataclass(frozen=True)
class Compared:
    """One value of a page on every machine that measured it with the page's present code, the primary first."""

    page: str
    name: str
    values: Mapping[str, float]

    @property
    def ratios(self) -> dict[str, float]:
        """By machine, as a multiple of what the primary recorded."""
        (_, first), *others = self.values.items()
        return {machine: value / first for machine, value in others}


def compared() -> list[Compared]:
    """Every R and H value that two machines or more recorded: counts and equalities are the same everywhere."""
    found = []
    for name in project.page_names():
        page = read_page(name)
        fresh = [each for each in recording.recordings(name) if not recording.staleness(page, each)]
        if len(fresh) < 2 or fresh[0].machine != project.primary_machine():
            continue
        for value, value_class in fresh[0].classes.items():
            on = {each.machine: float(each.values[value]) for each in fresh if value in each.values}
            if value_class in ("R", "H") and len(on) > 1 and all(v > 0 for v in on.values()):
                found.append(Compared(name, value, on))
    return found


def machine_list(_argument: str) -> str:
    """The machines, an overview of what differs between them, and every value in bars, page by page."""
    values = compared()
    parts = [_machines(), *([_overview(values)] if values else []), "## Value by value", ""]
    if not values:
        parts.append("No value was recorded on two machines yet.")
    for page in dict.fromkeys(each.page for each in values):
        parts += [_bars(page, [each for each in values if each.page == page]), ""]
    return "\n".join(parts)


def _every() -> Iterator[Recording]:
    for name in project.page_names():
        yield from recording.recordings(name)


def _machines() -> str:
    from snippets.instruments.units import render

    heads, columns = [], []
    for machine in recording.machines():
        own = [each for each in _every() if each.machine == machine]
        if not own:
            continue
        about = own[-1].about["machine"]
        stale = sum(bool(recording.staleness(read_page(each.about["page"]), each)) for each in own)
        dates = sorted(each.about.get("recorded", "") for each in own)
        memory = about.get("memory_bytes")
        caches = ", ".join(f"{level} {render('x_bytes', size, ',.0f KiB')}" for level, size in about["caches"].items())
        heads.append(f"{html.escape(own[-1].label)}<br><code>{html.escape(machine)}</code>")
        columns.append(
            {
                "device": about["name"],
                "threads": str(about["threads"]),
                "memory": render("x_bytes", memory, ".0f GB") if memory else "–",
                "caches, one of each": caches or "–",
                "offers": ", ".join(about["capabilities"]),
                "pages": f"{len(own)}" + (f", {stale} of them with earlier code" if stale else ""),
                "recorded": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
            }
        )
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    rows = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{html.escape(each[name])}</td>" for each in columns)}</tr>'
        for name in columns[0]
    )
    return (
        '<div class="ma-table" tabindex="0" role="region" aria-label="Machines that recorded"><table><caption>'
        "<span>Machines that recorded, the one that the prose quotes first</span></caption>"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _labels() -> dict[str, str]:
    return {each.machine: each.label for each in _every()}


def _overview(values: Sequence[Compared]) -> str:
    """A dot for each value and machine: how often the primary's value it is, on a logarithmic axis, a row a page."""
    pages = list(dict.fromkeys(each.page for each in values))
    machines = list(dict.fromkeys(machine for each in values for machine in each.ratios))
    labels = _labels()
    most = max(abs(math.log2(ratio)) for each in values for ratio in each.ratios.values())
    reach = max(1, math.ceil(most))
    scale = (_WIDTH - _LEFT - 20) / (2 * reach)

    def across(ratio: float) -> float:
        return _LEFT + (math.log2(ratio) + reach) * scale

    height = _ROW * len(pages) + 40
    step = max(1, reach // 4)
    marks = []
    for power in range(-reach, reach + 1, step):
        x = across(2.0**power)
        text = f"{2**power}×" if power >= 0 else f"1/{2**-power}×"
        weight = "ma-axis" if power == 0 else "ma-grid"
        marks.append(f'<line class="{weight}" x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{height - 28}"/>')
        marks.append(f'<text x="{x:.1f}" y="{height - 12}" text-anchor="middle">{text}</text>')
    for row, page in enumerate(pages):
        y = 18 + row * _ROW
        marks.append(f'<text x="{_LEFT - 14}" y="{y + 4}" text-anchor="end">{html.escape(page)}</text>')
        for each in (one for one in values if one.page == page):
            for machine, ratio in each.ratios.items():
                series = machines.index(machine) + 1
                told = html.escape(f"{each.name}: {ratio:.2f}× on {labels[machine]}")
                at = f'cx="{across(ratio):.1f}" cy="{y}" r="4"'
                marks.append(f'<circle {at} class="ma-dot-{series}"><title>{told}</title></circle>')
    title = f"Each value as a multiple of that on {labels[project.primary_machine()]}"
    legend = ", ".join(html.escape(labels[machine]) for machine in machines)
    middle = {m: median(each.ratios[m] for each in values if m in each.ratios) for m in machines}
    heads = "".join(f"<th>{html.escape(labels[machine])}</th>" for machine in machines)
    rows = [
        f"<tr><th>{html.escape(each.page)}</th><td>{html.escape(each.name)}</td>"
        f"{''.join(f'<td>{each.ratios[m]:.2f}×</td>' if m in each.ratios else '<td>–</td>' for m in machines)}</tr>"
        for each in values
    ]
    told = "; ".join(f"{labels[m]}: median {value:.2f} times" for m, value in middle.items())
    return (
        '<figure class="ma-chart ma-overview" data-search-exclude>'
        f"<figcaption>{html.escape(title)}; dots: {legend}</figcaption>"
        f'<div class="ma-drawing" tabindex="0" role="region" aria-label="{html.escape(title)}">'
        f'<svg role="img" aria-label="{html.escape(f"{title}. {told}")}" viewBox="0 0 {_WIDTH} {height}">'
        f"{''.join(marks)}</svg></div><details><summary>Data table</summary><table>"
        f"<thead><tr><th>page</th><th>value</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></details></figure>\n"
    )


def _bars(page: str, values: Sequence[Compared]) -> str:
    """A page's values, a bar for each machine; bars of one value share their scale."""
    from snippets.instruments.units import render

    labels = _labels()
    rows = []
    for each in values:
        largest = max(each.values.values())
        for number, (machine, value) in enumerate(each.values.items()):
            head = (
                f'<th scope="rowgroup" rowspan="{len(each.values)}"><code>{html.escape(each.name)}</code></th>'
                if number == 0
                else ""
            )
            bar = f'<span class="ma-bar ma-bar-{number + 1}" style="width:{100 * value / largest:.1f}%"></span>'
            rows.append(
                f"<tr>{head}<td>{html.escape(labels[machine])}</td><td>{bar}</td>"
                f"<td>{render(each.name, value, ',.4g')}</td></tr>"
            )
    question = html.escape(read_page(page).heading[0])
    return (
        f'<details class="ma-compared" data-search-exclude id="{page.replace("/", "-").replace("_", "-")}">'
        f"<summary>{question}</summary>"
        f'<p><a href="{page}.html">The page</a></p><div class="ma-table" tabindex="0" role="region" '
        f'aria-label="{question}"><table><tbody>{"".join(rows)}</tbody></table></div></details>\n'
    )
