"""Charts as SVG without JavaScript, drawn from recorded series in the page's own ink."""

from __future__ import annotations

from typing import Any

# Told apart by dash and shape as well as by tone; the site's CSS gives the classes their colours.
PALETTE = ["#3b6ea5", "#b5541c", "#4a7f3f", "#8a4fa3", "#a03050", "#6b6b1e"]
_INK = ("labelColor", "titleColor", "domainColor", "tickColor")


def draw(bundle: dict[str, Any]) -> str:
    """A recorded chart's SVG; the same bytes for the same data.

    Args:
        bundle: What `measured.values.chart` publishes: columns, axes, titles and data.
    """
    import altair
    import vl_convert

    x, y, color = bundle["x"], bundle["y"], bundle["color"]
    data = bundle["data"]
    rows = [dict(zip(data, cells, strict=True)) for cells in zip(*data.values(), strict=True)]
    worded = isinstance(data[x][0], str)
    x_scale = altair.Scale(type="log", base=2) if bundle["log_x"] else altair.Undefined
    y_scale = altair.Scale(type="log", base=10) if bundle["log_y"] else altair.Undefined
    encoding: dict[str, Any] = {
        "x": altair.X(
            f"{x}:{'N' if worded else 'Q'}",
            title=bundle["x_title"],
            scale=x_scale,
            sort=None,
            axis=altair.Axis(
                values=sorted(set(data[x])) if bundle["log_x"] else altair.Undefined,
                labelAngle=0,
                format=altair.Undefined if worded else _format(data[x]),
            ),
        ),
        "y": altair.Y(f"{y}:Q", title=bundle["y_title"], scale=y_scale, axis=altair.Axis(format=_format(data[y]))),
    }
    if color:
        domain = list(dict.fromkeys(data[color]))
        scale = altair.Scale(domain=domain, range=PALETTE[: len(domain)])
        encoding["color"] = altair.Color(f"{color}:N", title=None, scale=scale, legend=altair.Legend(orient="top"))
        if bundle["mark"] == "line":
            encoding["strokeDash"] = altair.StrokeDash(f"{color}:N", sort=domain, legend=None)
        if bundle["mark"] == "bar":
            encoding["xOffset"] = altair.XOffset(f"{color}:N", sort=domain)
    figure = altair.Chart(altair.Data(values=rows), width=340, height=210)
    default = altair.value(PALETTE[0])
    if bundle["mark"] == "line":
        figure = figure.mark_line(point=True)
    elif bundle["mark"] == "bar":
        figure = figure.mark_bar()
    else:
        figure = figure.mark_point(filled=True, size=60)
    if not color:
        encoding["color"] = default
    spec = figure.encode(**encoding).to_dict()
    ink = dict.fromkeys(_INK, "currentColor")
    legend = {"labelColor": "currentColor", "titleColor": "currentColor"}
    spec["config"] = {
        "background": None,
        "font": "sans-serif",
        "axis": {**ink, "gridColor": "#88888855"},
        "legend": legend,
        "view": {"stroke": None},
    }
    return vl_convert.vegalite_to_svg(spec)


def _format(values: list[float]) -> Any:
    """Millions and more with a prefix (1.5M), so that a label is no row of zeros."""
    import altair

    return ".3~s" if max(map(abs, values)) >= 1e6 else altair.Undefined


def alternative(bundle: dict[str, Any]) -> str:
    """A chart's text alternative, made from its data: what is drawn and between which values it runs."""
    from snippets.instruments.units import render

    x, y, color = bundle["x"], bundle["y"], bundle["color"]
    data = bundle["data"]

    def one(column: str, value: float | str) -> str:
        return value if isinstance(value, str) else render(column, value, ",.4g")

    def run(picked: list[int]) -> str:
        first, last = picked[0], picked[-1]
        start, end = (f"{one(y, data[y][i])} at {one(x, data[x][i])}" for i in (first, last))
        return f"{start} to {end}"

    everything = list(range(len(data[x])))
    if not color:
        return f"{bundle['title']}: {bundle['y_title']} from {run(everything)}"
    parts = []
    for group in dict.fromkeys(data[color]):
        parts.append(f"{group} from {run([i for i in everything if data[color][i] == group])}")
    return f"{bundle['title']}: {bundle['y_title']}; {'; '.join(parts)}"
