"""Recorded outputs as HTML: tables and charts of recorded series, values with their class, prints as they were."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Any

from measured import notebook as notebooks
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
    shown = [(each.label, _cell(index, each)) for each in found]
    shown = [(label, markup) for label, markup in shown if markup]
    if not shown:
        return ""
    if len(shown) == 1:
        return f'<div class="ma-out" data-cell="{index}">{shown[0][1]}</div>'
    group = f"__ma_{index}"
    inputs, labels, blocks = [], [], []
    for number, (label, markup) in enumerate(shown, 1):
        checked = ' checked="checked"' if number == 1 else ""
        inputs.append(f'<input{checked} id="{group}_{number}" name="{group}" type="radio" />')
        labels.append(f'<label for="{group}_{number}">{html.escape(label)}</label>')
        blocks.append(f'<div class="tabbed-block">{markup}</div>')
    return (
        f'<div class="ma-out" data-cell="{index}">'
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
    return f'<aside class="ma-recorded"><h2 id="recorded-on">Recorded on</h2><ul>{"".join(rows)}</ul></aside>'


def _cell(index: int, each: Recording) -> str:
    cells = notebooks.page_outputs(each.notebook)
    return (
        "".join(_output(output, each, f"{each.machine}-{index}-{n}") for n, output in enumerate(cells[index]))
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
        f'<tr><th scope="row"><code>{html.escape(name)}</code></th><td>{_number(name, value)}</td></tr>'
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


def _table(bundle: dict[str, Any], each: Recording) -> str:
    from snippets.instruments.units import render

    columns, formats = dict(bundle["columns"]), bundle["formats"]
    recorded = each.series[bundle["series"]]
    head = "".join(f'<th scope="col">{html.escape(title)}</th>' for title in columns.values())
    rows = []
    for cells in zip(*[recorded[c] for c in columns], strict=True):
        texts = [
            v if isinstance(v, str) else render(c, v, formats.get(c, ",.6g"))
            for c, v in zip(columns, cells, strict=True)
        ]
        first, *rest = [html.escape(t) for t in texts]
        rows.append(f'<tr><th scope="row">{first}</th>{"".join(f"<td>{t}</td>" for t in rest)}</tr>')
    return (
        f'<div class="ma-table" tabindex="0" role="region" aria-label="{html.escape(bundle["caption"])}"><table>'
        f"<caption>{html.escape(bundle['caption'])}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
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
    shown = [c for c in (bundle["x"], bundle["color"], bundle["y"]) if c]
    head = "".join(f'<th scope="col">{html.escape(c.replace("_", " "))}</th>' for c in shown)
    rows = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(v if isinstance(v, str) else format(v, ',.6g'))}</td>" for v in cells)
        + "</tr>"
        for cells in zip(*[bundle["data"][c] for c in shown], strict=True)
    )
    return (
        f'<figure class="ma-chart"><figcaption>{html.escape(bundle["title"])}</figcaption>{svg}'
        "<details><summary>Data table</summary>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></details></figure>"
    )
