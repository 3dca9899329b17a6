"""A chart made light: the same picture, fewer bytes."""

from __future__ import annotations

import re

from measured.slim import slim

LINE = '<line transform="translate({x},{y})" x2="{dx}" y2="{dy}" stroke="{ink}" stroke-width="1" opacity="1"/>'
POINT = '<path aria-label="n" transform="translate({x},{y})" d="M2,0A2,2,0,1,1,-2,0A2,2,0,1,1,2,0" fill="{ink}"/>'


def chart(*parts: str) -> str:
    marks = f'<g class="a">{"".join(parts)}</g><g role="x"></g><text>0.25 of 1.375</text>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" class="marks">{marks}</svg>'


def test_lines_of_a_colour_become_one_path_with_every_end() -> None:
    rules = [LINE.format(x=0, y=y, dx=340, dy=0, ink="grey") for y in (10, 20.125, 30)]
    slimmed = slim(chart(*rules, LINE.format(x=7, y=0, dx=0, dy=-5, ink="black")))
    assert '<path d="M0,10h340M0,20.1h340M0,30h340" stroke="grey"/>' in slimmed
    assert '<path d="M7,0v-5" stroke="black"/>' in slimmed
    assert "<line" not in slimmed


def test_points_become_discs_at_their_places_in_their_colour() -> None:
    slimmed = slim(chart(*[POINT.format(x=x, y=5, ink=ink) for x, ink in ((10, "red"), (20, "red"), (30, "blue"))]))
    discs = dict(re.findall(r'<path d="([^"]+)" stroke="(\w+)" stroke-width="4" stroke-linecap="round"/>', slimmed))
    assert discs == {"M10,5h0M20,5h0": "red", "M30,5h0": "blue"}


def test_words_stay_and_idle_markup_goes() -> None:
    slimmed = slim(chart('<path class="background" d="M0,0h9v9h-9Z"/>', '<text transform="translate(7,15)"></text>'))
    assert "<text>0.25 of 1.375</text>" in slimmed
    assert not re.search(r"class=|role=|aria-|<g|<path", slimmed)


def test_labels_of_one_look_share_it_at_their_own_places() -> None:
    label = '<text text-anchor="{anchor}" transform="translate({x},15)" font-size="10px" fill="currentColor">{x}</text>'
    slimmed = slim(chart(*[label.format(anchor="middle", x=x) for x in (1, 2)], label.format(anchor="end", x=3)))
    assert (
        '<g text-anchor="middle" fill="currentColor"><text x="1" y="15">1</text><text x="2" y="15">2</text></g>'
        in slimmed
    )
    assert '<text x="3" y="15" text-anchor="end" fill="currentColor">3</text>' in slimmed


def test_a_point_lies_above_the_line_it_belongs_to() -> None:
    line = '<path d="M0,0L9,9" stroke="red" stroke-width="2"/>'
    slimmed = slim(chart(POINT.format(x=1, y=1, ink="red"), line))
    assert slimmed.index("L9,9") < slimmed.index("M1,1h0")


def test_a_drawn_chart_keeps_its_lines_labels_and_points() -> None:
    from measured.drawing import draw

    data: dict[str, list[float]] = {"batch_count": [1, 2, 4, 8], "step_ratio": [1.0, 1.5, 2.5, 4.0]}
    axes = {"x": "batch_count", "y": "step_ratio", "color": None, "mark": "line", "log_x": True, "log_y": False}
    drawn = draw({**axes, "title": "t", "x_title": "batch", "y_title": "times", "data": data})
    slimmed = slim(drawn)
    assert len(slimmed) < 0.6 * len(drawn)
    assert re.findall(r"<text[^>]*>([^<]*)", slimmed) == re.findall(r"<text[^>]*>([^<]*)", drawn)
    (discs,) = re.findall(r'<path d="([^"]+)" stroke="[^"]+" stroke-width="5[^"]*" stroke-linecap="round"', slimmed)
    assert discs.count("h0") == 4
