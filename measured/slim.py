"""A recorded chart's SVG with the same picture in fewer bytes: a page carries two machines' charts and stays light."""

from __future__ import annotations

import re
from collections.abc import Hashable
from itertools import groupby
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

_SPACE = "http://www.w3.org/2000/svg"
_TYPE = {"font-family": "sans-serif", "font-size": "10px"}  # Most labels' type, said once for the image.
_IDLE = {"role", "class", "pointer-events"}  # For readers of the image's parts: it has one label of its own.
_INITIAL = {"opacity": "1", "stroke-width": "1", "stroke-dasharray": "1,0"}
_COORDINATES = {"d", "transform", "x", "y", "x2", "y2"}
_PLACE = re.compile(r"translate\((-?[\d.]+),(-?[\d.]+)\)")
_CIRCLE = re.compile(r"M(?P<r>[\d.]+),0A(?P=r),(?P=r),0,1,1,-(?P=r),0A(?P=r),(?P=r),0,1,1,(?P=r),0Z?")


def slim(svg: str) -> str:
    """The SVG without what draws nothing; its rules, points and labels joined where they share a look."""
    ElementTree.register_namespace("", _SPACE)
    root = ElementTree.fromstring(svg)
    _strip(root)
    root.attrib = {**_TYPE, **root.attrib}
    return ElementTree.tostring(root, encoding="unicode").replace(" />", "/>")


def _strip(element: Element) -> None:
    element.attrib = {key: _rounded(key, value) for key, value in element.attrib.items() if _matters(element, key)}
    kept: list[Element] = []
    for child in element:
        _strip(child)
        if _tag(child) == "g" and child.attrib in ({}, {"transform": "translate(0,0)"}):
            kept += child
        elif _draws(child):
            kept.append(child)
    # Points are painted last, above the lines that they lie on; what else there is keeps its order.
    points = sorted((each for each in kept if _is_point(each)), key=lambda each: each.get("fill", ""))
    rest = [each for each in kept if not _is_point(each)]
    element[:] = [joined for some in (rest, points) for _, run in groupby(some, _look) for joined in _join(list(run))]


def _rounded(key: str, value: str) -> str:
    return re.sub(r"\d+\.\d+", lambda n: f"{round(float(n[0]), 1):g}", value) if key in _COORDINATES else value


def _matters(element: Element, key: str) -> bool:
    value = element.get(key)
    if key in _IDLE or key.startswith("aria-") or _INITIAL.get(key) == value:
        return False
    if key.startswith("stroke-") and _tag(element) != "g":
        return "stroke" in element.attrib
    return _tag(element) != "text" or _TYPE.get(key) != value


def _tag(element: Element) -> str:
    return element.tag.partition("}")[2] or element.tag


def _draws(element: Element) -> bool:
    if element.get("display") == "none" or element.get("opacity") == "0":
        return False
    if _tag(element) == "g":
        return len(element) > 0
    if _tag(element) == "text":
        return bool(element.text)
    return _tag(element) != "path" or "fill" in element.attrib or "stroke" in element.attrib


def _is_point(element: Element) -> bool:
    placed = _PLACE.fullmatch(element.get("transform", ""))
    return bool(
        placed and _tag(element) == "path" and "fill" in element.attrib and _CIRCLE.fullmatch(element.get("d", ""))
    )


def _look(element: Element) -> Hashable:
    """What neighbours must share to become one element; an element that cannot be joined shares nothing."""
    if not _PLACE.fullmatch(element.get("transform", "")) or not (
        _is_point(element) or _tag(element) in ("line", "text")
    ):
        return id(element)
    return _tag(element), frozenset(item for item in element.items() if item[0] not in ("transform", "x2", "y2"))


def _join(run: list[Element]) -> list[Element]:
    """One path for rules or points of a look, one group for labels; what cannot be joined as it was."""
    if isinstance(_look(run[0]), int):
        return run
    points, tag = _is_point(run[0]), _tag(run[0])
    spots = [match.groups() for each in run if (match := _PLACE.fullmatch(each.attrib.pop("transform")))]
    look = {key: value for key, value in run[0].items() if key not in ("x2", "y2", "d")}
    if tag == "text":
        for each, (x, y) in zip(run, spots, strict=True):
            each.attrib = {"x": x, "y": y} | (look if len(run) == 1 else {})
        if len(run) == 1:
            return run
        group = Element(f"{{{_SPACE}}}g", look)
        group.extend(run)
        return [group]
    if points:
        circle = _CIRCLE.fullmatch(run[0].get("d", ""))
        width = 2 * float(circle["r"] if circle else 0) + float(look.get("stroke-width", 0))
        # A line of no length with round ends is a disc: a sixth of the bytes of two arcs.
        look = {"stroke": look["fill"], "stroke-width": f"{width:g}", "stroke-linecap": "round"}
        steps = [f"M{x},{y}h0" for x, y in spots]
    else:
        steps = [_rule(x, y, each) for each, (x, y) in zip(run, spots, strict=True)]
    return [Element(f"{{{_SPACE}}}path", {"d": "".join(steps), **look})]


def _rule(x: str, y: str, line: Element) -> str:
    across, down = line.get("x2", "0"), line.get("y2", "0")
    return f"M{x},{y}" + (f"h{across}" if down == "0" else f"v{down}" if across == "0" else f"l{across},{down}")
