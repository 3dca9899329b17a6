"""Recorded outputs as HTML: tables and charts of recorded series, values with their class, prints as they were."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from measured import notebook as notebooks
from measured import show_predictions
from measured.drawing import PALETTE, alternative
from measured.page import Page
from measured.recording import Recording, staleness
from measured.slim import slim
from measured.values import CHART_MIME, CLASSES, SERIES_MIME, TABLE_MIME, VALUES_MIME


def show_outputs(index: int, found: Sequence[Recording]) -> str:
    """The outputs of one executed fence on each machine: one block, or tabs linked by machine.

    Args:
        index: Which executed fence of the page, from 0.
        found: The page's recordings, the primary first.
    """
    if not found:
        return ""
    shown = [(each.label, _cell(index, each, each.machine)) for each in found]
    shown = [(label, markup) for label, markup in shown if markup]
    if not shown:
        return ""
    if len({_cell(index, each, "") for each in found}) == 1:  # Counts, mostly: the same wherever they were taken.
        same = '<p class="ma-same">The same on every machine recorded.</p>' if len(found) > 1 else ""
        return f'<div class="ma-out" data-cell="{index}" data-search-exclude>{shown[0][1]}{same}</div>'
    if len(shown) == 1:
        return f'<div class="ma-out" data-cell="{index}" data-search-exclude>{shown[0][1]}</div>'
    group = f"__ma_{index}"
    inputs, labels, blocks = [], [], []
    for number, (label, markup) in enumerate(shown, 1):
        checked = ' checked="checked"' if number == 1 else ""
        inputs.append(f'<input{checked} id="{group}_{number}" name="{group}" type="radio" />')
        labels.append(f'<label for="{group}_{number}">{html.escape(label)}</label>')
        blocks.append(f'<div class="tabbed-block">{markup}</div>')
    return (
        f'<div class="ma-out" data-cell="{index}" data-search-exclude>'
        f'<div class="tabbed-set tabbed-alternate" data-tabs="{index + 1}:{len(shown)}">'
        f'{"".join(inputs)}<div class="tabbed-labels">{"".join(labels)}</div>'
        f'<div class="tabbed-content">{"".join(blocks)}</div></div></div>'
    )


def show_recorded(page: Page, found: Sequence[Recording]) -> str:
    """Where and when a page was recorded, with its notebook to view and to download."""
    if not found:
        return (
            '<aside class="ma-recorded ma-unrecorded"><p>Not recorded yet. Record it with '
            f"<code>measured record {page.name}</code>.</p></aside>"
        )
    rows = []
    for each in found:
        about = each.about
        versions = about.get("versions", {})
        stale = ' <strong class="ma-stale">measured with earlier code</strong>' if staleness(page, each) else ""
        book = f"../notebooks/{each.machine}/{page.name}.ipynb"
        rows.append(
            f"<li>{html.escape(each.label)}, {about.get('recorded', '')}, "
            f"Python {html.escape(versions.get('python', ''))}, torch {html.escape(versions.get('torch', ''))}, "
            f"{about.get('seconds', 0):.0f} s{stale} · "
            f'<a class="ma-notebook" href="{book}" download>download the notebook</a></li>'
        )
    rows.append(show_predictions.link(page.name))
    return (
        f'<aside class="ma-recorded"><h2 id="recorded-on">Recorded on</h2><ul>{"".join(rows)}</ul>'
        "<p>Run it here: <code>make live</code></p></aside>"
    )


def _cell(index: int, each: Recording, machine: str) -> str:
    cells = notebooks.page_outputs(each.notebook)
    return (
        "".join(_output(output, each, f"{machine}-{index}-{n}") for n, output in enumerate(cells[index]))
        if index < len(cells)
        else ""
    )


def _output(output: Any, each: Recording, key: str) -> str:
    if output.output_type == "stream":
        return f'<pre class="ma-stream"><code>{html.escape(output.text.rstrip())}</code></pre>'
    if output.output_type == "error":
        return f'<pre class="ma-stream ma-error"><code>{html.escape(f"{output.ename}: {output.evalue}")}</code></pre>'
    data = output.data
    if VALUES_MIME in data:
        return _values(data[VALUES_MIME])
    if TABLE_MIME in data:
        return _table(data[TABLE_MIME], each)
    if CHART_MIME in data:
        return _chart(data[CHART_MIME], "".join(data.get("image/svg+xml", "")), key)
    if SERIES_MIME in data:
        return ""  # Shown by the table or chart that draws it.
    if "image/png" in data:
        told = html.escape(data.get("text/plain", "output"))
        return f'<img alt="{told}" src="data:image/png;base64,{data["image/png"].strip()}">'
    return f'<pre class="ma-stream"><code>{html.escape(data.get("text/plain", ""))}</code></pre>'


def _values(bundle: dict[str, Any]) -> str:
    value_class = bundle["class"]
    means = CLASSES[value_class]
    if value_class == "T":
        means += f" ({bundle['tolerance']:g}: {bundle['because']})"
    rows = "".join(
        f"<tr><th><code>{html.escape(name)}</code></th><td>{_number(name, value)}</td></tr>"
        for name, value in [(n, bundle["values"][n]) for n in bundle["names"]]
    )
    return (
        f'<table class="ma-values" data-class="{value_class}"><caption><span class="ma-class">{value_class}</span> '
        f"{html.escape(means)}</caption><tbody>{rows}</tbody></table>"
    )


def _number(name: str, value: float) -> str:
    """A value with its base unit, every digit of a whole number shown."""
    from snippets.instruments.units import render

    spec = ",.0f" if float(value).is_integer() and abs(value) < 1e15 else ",.4g"
    return html.escape(render(name, value, spec))


_NO_BREAK = "\N{NO-BREAK SPACE}"  # a number and its unit stay on one line


def _table(bundle: dict[str, Any], each: Recording) -> str:
    from snippets.instruments.units import render

    columns, formats = dict(bundle["columns"]), bundle["formats"]
    recorded = each.series[bundle["series"]]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in columns.values())
    rows = []
    for cells in zip(*[recorded[c] for c in columns], strict=True):
        texts = [
            v if isinstance(v, str) else render(c, v, formats.get(c, ",.6g")).replace(" ", _NO_BREAK)
            for c, v in zip(columns, cells, strict=True)
        ]
        first, *rest = [html.escape(t) for t in texts]
        rows.append(f"<tr><th>{first}</th>{''.join(f'<td>{t}</td>' for t in rest)}</tr>")
    return (
        f'<div class="ma-table" tabindex="0" role="region" aria-label="{html.escape(bundle["caption"])}"><table>'
        f"<caption><span>{html.escape(bundle['caption'])}</span></caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _chart(bundle: dict[str, Any], svg: str, key: str) -> str:
    """The chart, its text alternative, and the drawn numbers as a table to unfold."""
    told = html.escape(alternative(bundle), quote=True)
    # Identifiers inside an SVG must be unique on the page; its colours come from the site's CSS.
    svg = re.sub(r'\bid="([^"]+)"', rf'id="\1-{key}"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#\1-{key})", svg)
    for number, ink in enumerate(PALETTE, 1):
        svg = svg.replace(ink, f"var(--ma-series-{number}, {ink})")
    svg = slim(svg)
    svg = re.sub(r"<svg ", f'<svg role="img" aria-label="{told}" ', svg, count=1)
    return (
        f'<figure class="ma-chart"><figcaption>{html.escape(bundle["title"])}</figcaption>'
        f'<div class="ma-drawing" tabindex="0" role="region" aria-label="{html.escape(bundle["title"])}">{svg}</div>'
        "<details><summary>Data table</summary>"
        f"{_drawn(bundle)}</details></figure>"
    )


def _drawn(bundle: dict[str, Any]) -> str:
    """The numbers of a chart as a table: a row for each place on its axis, a column for each colour."""
    data, x, y, color = bundle["data"], bundle["x"], bundle["y"], bundle["color"]
    lines = list(dict.fromkeys(data[color])) if color else [y]
    cells = dict(zip(zip(data[x], data[color] if color else [y] * len(data[x]), strict=True), data[y], strict=True))
    if len(cells) < len(data[y]):  # Points that share place and colour each keep a row.
        lines, columns = [c for c in (x, color, y) if c], [data[c] for c in (x, color, y) if c]
        rows, head = list(zip(*columns, strict=True)), lines
    else:
        head = [x, *map(str, lines)]
        rows = [(place, *(cells.get((place, line), "") for line in lines)) for place in dict.fromkeys(data[x])]
    titles = "".join(f"<th>{html.escape(title.replace('_', ' '))}</th>" for title in head)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(v if isinstance(v, str) else format(v, ',.4g'))}</td>" for v in row)
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
