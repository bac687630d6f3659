"""Choices are files: `plugins.load("penalties", "l2sp")` is transferctl/penalties/l2sp.py.

Found by listing the folder, so a new choice is a new file and nothing else to edit. Names that start with
an underscore are helpers, not choices.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType


def names(folder: str) -> list[str]:
    """The choices in a plugin folder, sorted."""
    files = (Path(__file__).parent / folder).glob("*.py")
    return sorted(file.stem for file in files if not file.stem.startswith("_"))


def load(folder: str, name: str) -> ModuleType:
    """The module behind a choice. The spec has checked the name already."""
    assert name in names(folder), f"{folder}/{name}.py does not exist"
    return import_module(f"transferctl.{folder}.{name}")


def modules(folder: str) -> list[ModuleType]:
    """Every choice in a folder, imported. Plugin files import their heavy libraries inside functions
    where the spec needs their settings."""
    return [load(folder, name) for name in names(folder)]
