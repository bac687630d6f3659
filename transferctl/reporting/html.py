"""Templates to one HTML file. Whatever is not our own markup is escaped."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import transferctl
from transferctl.reporting.headline import Bar
from transferctl.reporting.recording import Table
from transferctl.wording import printable

TEMPLATES = Path(__file__).parent / "templates"
_NUMBER = re.compile(r"([+−-]?[\d,]+(\.\d+)?)?")
GENERATOR = "transferctl report"  # by which a report of ours is told from another file


def rendered(template: str, context: Mapping[str, Any]) -> str:
    found: str = _environment().get_template(template).render(context)
    return found


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"percent": percent, "figure": figure, "words": in_words, "lines": printable_lines}
    environment.filters |= {"decimals": decimals, "numbers": numbers}
    environment.filters |= {"points": points, "scale": scale, "placed": placed}
    environment.globals |= {
        "css": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),  # noqa: S704 (our own)
        "generator": f"{GENERATOR} {transferctl.__version__}",
    }
    return environment


def percent(value: float, digits: int = 1) -> str:
    """0.837 -> 83.7."""
    return f"{100 * value:.{digits}f}"


def points(change: float) -> str:
    """-0.023 -> −2.3."""
    return f"{100 * change:+.1f}".replace("-", "−")


def scale(bars: Sequence[Bar]) -> tuple[float, float]:
    """The ends of an axis on which all bars and their intervals are, in tenths."""
    values = [value for bar in bars for value in (*bar.points, bar.value.value, bar.value.low, bar.value.high)]
    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    return max(math.floor(low * 10 - 0.2) / 10, 0.0), min(math.ceil(high * 10 + 0.2) / 10, 1.0)


def placed(value: float, ends: tuple[float, float]) -> str:
    """Where on the axis, in per cent of it."""
    low, high = ends
    return f"{100 * (value - low) / (high - low):.2f}"


def figure(value: float) -> str:
    """Four significant digits; whole numbers whole."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def decimals(value: float) -> str:
    """Four places, so that a column of metrics lines up: 0.061 -> 0.0610."""
    return f"{value:,.4f}" if abs(value) < 1e6 else f"{value:.4g}"


def numbers(table: Table) -> list[bool]:
    """Of each column whether all that it has are numbers, also those in words ("1.0")."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.columns)
    return [all(isinstance(cell, int | float) or _NUMBER.fullmatch(str(cell)) for cell in one) for one in columns]


def in_words(value: Any, most: int = 400) -> str:
    """Any value of JSON in one printable line."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    text = printable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable_lines(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))
