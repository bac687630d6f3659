"""Specs that are written for people: comments, values and commands as text."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from transferctl.wording import printable
from transferctl.yamltree import CoreDumper

WIDTH = 100  # of comments


def section(text: str) -> Iterator[str]:
    yield ""
    yield from comment(text)


def comment(text: str, indent: str = "") -> list[str]:
    start = f"{indent}# "
    look: Mapping[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(printable(text), WIDTH, initial_indent=start, subsequent_indent=start, **look)


def scalar(value: Any) -> str:
    """As YAML that may stand in a flow mapping and before a comment."""
    options: dict[str, Any] = {"default_flow_style": True, "allow_unicode": True, "width": 1 << 20, "sort_keys": False}
    return str(yaml.dump([value], Dumper=CoreDumper, **options)).strip()[1:-1]


def quoted(path: Path) -> str:
    """For a shell; a name that begins like an option is led by ./."""
    text = printable(str(path))
    return shlex.quote(f"./{text}" if text.startswith("-") else text)
