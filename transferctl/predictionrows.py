"""A prediction as a row of CSV, a line of JSON or a line for people.

A path stands in CSV in the very bytes that the file system has, UTF-8 or not; in JSON, which may hold no such bytes,
those that are no UTF-8 are lone surrogates, as Python's os.fsencode takes them. For people they are escapes.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from transferctl.wording import printable

WIDEST = 30  # columns of a class in a table


@dataclass(frozen=True)
class PathPrediction:
    """ranked: the likeliest classes, positions in the head's output, with their probabilities, the likeliest first;
    all: [C], the probability of each class, where it was asked for. error: why there is none of that."""

    path: str
    ranked: Sequence[tuple[int, float]] = ()
    all: np.ndarray | None = None
    error: str = ""


@dataclass(frozen=True)
class RowFormat:
    """How predictions are written. format: csv, jsonl or table; classes: names in output order; top: how many of them
    stand in each row; probabilities: whether those of all classes do."""

    format: str
    classes: Sequence[str]
    top: int
    probabilities: bool

    def header(self) -> bytes:
        if self.format == "jsonl":
            return b""
        ranks = [word for k in range(2, self.top + 1) for word in (f"class_{k}", f"probability_{k}")]
        if self.format == "table":
            return self._columns(["predicted", "probability", *ranks], "path")
        each = [f"probability of {name}" for name in self.classes] if self.probabilities else []
        return _csv([_utf8(word) for word in ["path", "predicted", "probability", *ranks, *each, "error"]])

    def of(self, predictions: Sequence[PathPrediction]) -> bytes:
        """Whole lines, in order."""
        row: dict[str, Callable[[PathPrediction], bytes]] = {"csv": self._csv, "jsonl": self._json, "table": self._line}
        return b"".join(map(row[self.format], predictions))

    def _csv(self, one: PathPrediction) -> bytes:
        ranked = [word for label, p in one.ranked for word in (self.classes[label], f"{p:.6f}")]
        each = [] if one.all is None else [f"{p:.6f}" for p in one.all.tolist()]
        empty = 2 * self.top + (len(self.classes) if self.probabilities else 0) if one.error else 0
        words = [*ranked, *each, *[""] * empty, one.error]
        return _csv([os.fsencode(one.path), *map(_utf8, words)])

    def _json(self, one: PathPrediction) -> bytes:
        path = os.fsencode(one.path).decode("utf-8", "surrogateescape")
        if one.error:
            return _json({"path": path, "error": one.error})
        top = [{"class": self.classes[label], "probability": round(p, 6)} for label, p in one.ranked]
        values = {"path": path, "predicted": top[0]["class"], "probability": top[0]["probability"], "top": top}
        if one.all is not None:
            shares = (round(p, 6) for p in one.all.tolist())
            values["probabilities"] = dict(zip(self.classes, shares, strict=True))
        return _json(values)

    def _line(self, one: PathPrediction) -> bytes:
        words = [word for label, p in one.ranked for word in (self.classes[label], f"{p:.4f}")]
        if one.error:
            return self._columns(["-", "-"] * self.top, f"{one.path} {one.error}")
        return self._columns(words, one.path)

    def _columns(self, words: Sequence[str], path: str) -> bytes:
        """Classes filled up or cut to the widest, numbers to the right; the path, which may be long, comes last."""
        widest = min(max(_width(printable(name)) for name in (*self.classes, "predicted")), WIDEST)
        cells = []
        for i, word in enumerate(map(printable, words)):
            lack = (len("probability_2") if i % 2 else widest) - _width(word)
            cells.append(" " * lack + word if i % 2 else _cut(word, widest) + " " * lack)
        return _utf8("  ".join([*cells, printable(path)]) + "\n")


def _csv(fields: Sequence[bytes]) -> bytes:
    """RFC 4180, but for the line's end. The csv module leaves a lone carriage return bare, which it does not read."""
    return b",".join(map(_field, fields)) + b"\n"


def _field(text: bytes) -> bytes:
    return b'"' + text.replace(b'"', b'""') + b'"' if any(mark in text for mark in (b",", b'"', b"\r", b"\n")) else text


def _json(values: object) -> bytes:
    """Escapes of lone surrogates are JSON's own."""
    return _utf8(json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n")


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")


def _width(text: str) -> int:
    """Columns on a terminal: Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _cut(text: str, widest: int) -> str:
    while _width(text) > widest:
        text = text[:-2] + "…"
    return text
