"""matplotlib's SVG as a part of the page: in the page's colours, light or dark, with its font and no ids in common."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
ElementTree.register_namespace("", SVG)
ElementTree.register_namespace("xlink", XLINK)

# Colours that nobody would choose stand for the page's own, which only the browser knows.
INK, MUTED, RULE, GOOD, BAD = "#010101", "#020202", "#030303", "#040404", "#050505"
SERIES = tuple(f"#0606{i:02x}" for i in range(8))
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", GOOD: "--good", BAD: "--bad"}
_VARIABLES |= {colour: f"--c{i + 1}" for i, colour in enumerate(SERIES)}
_COLOUR = re.compile(r"#0[1-6]0[1-6][0-9a-f]{2}")

SETTINGS: dict[str, Any] = {
    "figure__facecolor": "none",
    "axes__facecolor": "none",
    "savefig__facecolor": "none",
    "text__color": INK,
    "axes__labelcolor": MUTED,
    "axes__edgecolor": RULE,
    "xtick__color": RULE,
    "ytick__color": RULE,
    "xtick__labelcolor": MUTED,
    "ytick__labelcolor": MUTED,
    "grid__color": RULE,
    "grid__linewidth": 0.7,
    "axes__grid": True,
    "axes__axisbelow": True,
    "axes__spines__top": False,
    "axes__spines__right": False,
    "font__size": 11,
    "axes__labelsize": 11,
    "legend__frameon": False,
    "legend__fontsize": 10.5,
    "lines__linewidth": 2.0,
}


def themed(svg: str, name: str, label: str, titles: Mapping[str, Sequence[str]] | None = None) -> Markup:
    """name: makes ids its own; label: what it shows, for those who do not see it; titles: of groups by their gid, the
    words that a pointer over each of their marks shows."""
    root = ElementTree.fromstring(svg)  # noqa: S314 (matplotlib's own, with what others wrote escaped)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style"):
                parent.remove(child)
    for element in root.iter(f"{{{SVG}}}g"):
        _entitle(element, (titles or {}).get(element.get("id", ""), ()))
    used = {found for element in root.iter() for value in element.attrib.values() for found in _references(value)}
    for element in root.iter():
        _restyle(element, name, used)
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", label)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # noqa: S704 (serialised: text in it is escaped)


def _entitle(group: ElementTree.Element, titles: Sequence[str]) -> None:
    for mark, title in zip(_marks(group) if titles else (), titles, strict=False):
        ElementTree.SubElement(mark, f"{{{SVG}}}title").text = title


def _marks(element: ElementTree.Element) -> Iterator[ElementTree.Element]:
    """What is drawn, in order: the same path used again, or, of few, each path itself."""
    for child in element:
        if child.tag in (f"{{{SVG}}}use", f"{{{SVG}}}path"):
            yield child
        elif child.tag != f"{{{SVG}}}defs":
            yield from _marks(child)


def _references(value: str) -> list[str]:
    return re.findall(r"url\(#([^)]+)\)", value) + ([value[1:]] if value.startswith("#") else [])


def _restyle(element: ElementTree.Element, name: str, used: set[str]) -> None:
    for key, value in list(element.attrib.items()):
        if key == "id":
            element.attrib.pop(key)
            if value in used:
                element.set(key, f"{name}-{value}")
        elif key == "style":
            element.set(key, _COLOUR.sub(_variable, value.replace("url(#", f"url(#{name}-")))
        elif key == f"{{{XLINK}}}href" and value.startswith("#"):
            element.set(key, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(key, value.replace("url(#", f"url(#{name}-"))
    if element.tag == f"{{{SVG}}}image":
        element.set("style", "image-rendering: pixelated")


def _variable(match: re.Match[str]) -> str:
    variable = _VARIABLES.get(match[0])
    return f"var({variable})" if variable else match[0]
