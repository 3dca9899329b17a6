"""A recorded chart's SVG with the same picture in fewer bytes: a page carries two machines' charts and stays light."""

from __future__ import annotations

import re

_TYPE = ' font-family="sans-serif" font-size="10px"'
_RULE = re.compile(
    r'<line transform="translate\((?P<x>[\d.-]+),(?P<y>[\d.-]+)\)" x2="(?P<dx>[\d.-]+)" y2="(?P<dy>[\d.-]+)" '
    r'stroke="(?P<ink>[^"]+)" stroke-width="1"/>'
)
_RULES = re.compile(rf"(?:{re.sub(r'[(][?]P<[a-z]+>', '(?:', _RULE.pattern)}){{2,}}")
_POINT = re.compile(
    r'<path transform="translate\((?P<x>[\d.-]+),(?P<y>[\d.-]+)\)" d="(?P<shape>M(?P<r>[\d.]+),0A[^"]+)" '
    r'fill="(?P<ink>[^"]+)"[^>]*/>'
)
_POINTS = re.compile(rf"(?:{re.sub(r'[(][?]P<[a-z]+>', '(?:', _POINT.pattern)}){{2,}}")


def slim(svg: str) -> str:
    """The SVG without what draws nothing, its grid lines and its points joined into a path of each colour."""
    # The image has one label of its own; its parts need none.
    svg = re.sub(r' (?:role|aria-[a-z]+|class|pointer-events)="[^"]*"| opacity="1"', "", svg)
    svg = re.sub(r'<path d="[^"]*" display="none"/>|<path d="M0,0h0v0h0Z"/>', "", svg)
    # Coordinates stand in tags; what stands between them is read.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"\d+\.\d{2,}", lambda n: f"{float(n[0]):.1f}", tag[0]), svg)
    svg = svg.replace(_TYPE, "").replace("<svg ", f"<svg{_TYPE} ", 1)  # Most labels' type, said once.
    svg = _RULES.sub(_joined_rules, svg)
    svg = _POINTS.sub(_joined_points, svg)
    while re.search(r"<g[^>]*></g>", svg):
        svg = re.sub(r"<g[^>]*></g>", "", svg)
    return svg


def _joined_rules(match: re.Match[str]) -> str:
    paths: dict[str, str] = {}
    for rule in _RULE.finditer(match[0]):
        step = f"M{rule['x']},{rule['y']}l{rule['dx']},{rule['dy']}"
        paths[rule["ink"]] = paths.get(rule["ink"], "") + step
    return "".join(f'<path d="{steps}" stroke="{ink}"/>' for ink, steps in paths.items())


def _joined_points(match: re.Match[str]) -> str:
    paths: dict[str, str] = {}
    for point in _POINT.finditer(match[0]):
        radius = float(point["r"])
        arc = f"a{radius:g},{radius:g},0,1,1,"
        circle = f"M{float(point['x']) + radius:.1f},{point['y']}{arc}{-2 * radius:g},0{arc}{2 * radius:g},0"
        paths[point["ink"]] = paths.get(point["ink"], "") + circle
    return "".join(f'<path d="{circles}" fill="{ink}"/>' for ink, circles in paths.items())
