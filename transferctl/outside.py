"""Files that lie outside of the folder that was named, reached by links, absolute paths or `..`.

People link and list data that lies elsewhere on purpose, so such files are read, and that is said. An archive from
others may reach in the same way for files that nobody meant to show it: `outside: refuse` refuses them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from transferctl.errors import DataError
from transferctl.wording import SomeNames, counted

MAX_LINKS = 40  # one to another; Linux follows no more
Choice = Literal["read", "refuse"]
DESCRIPTION = "Files that lie outside the folder, reached by links, absolute paths or ..: read (and said), or refuse."


@dataclass
class Outsiders(SomeNames):
    """folder: as the spec names it; how: what they are reached by."""

    folder: Path
    how: str

    def __post_init__(self) -> None:
        named = {os.path.normpath(self.folder), os.path.realpath(self.folder)}
        self._insides = tuple(f"{path.rstrip(os.sep)}{os.sep}" for path in named)
        self._real_folder = lru_cache(maxsize=1024)(os.path.realpath)

    def links_out(self, path: str) -> bool:
        """Whether a path leads out of the folder once all links are followed; a link to itself leads nowhere."""
        return not f"{self._resolved(path)}{os.sep}".startswith(self._insides)

    def _resolved(self, path: str, depth: int = 0) -> str:
        """As os.path.realpath, which looks at each folder on the way anew: in a third of its time."""
        parent, name = os.path.split(path)
        if name in ("", os.curdir, os.pardir):
            return os.path.realpath(path)
        whole = f"{self._real_folder(parent)}{os.sep}{name}"
        if not os.path.islink(whole) or depth > MAX_LINKS:
            return whole
        return self._resolved(os.path.join(os.path.dirname(whole), os.readlink(whole)), depth + 1)

    def names_out(self, path: str) -> bool:
        """Whether a path leads out of the folder by its words alone."""
        return not os.path.normpath(path).startswith(self._insides)

    def notes(self, choice: Choice) -> Iterator[str]:
        """What there is to say of them, if they may be read. Raises DataError if they are refused."""
        if not self.count:
            return
        lie = f"outside {self.folder}, reached by {self.how}: {self}"
        if choice == "refuse":
            raise DataError(f"{counted(self.count, 'image')} {lie}; remove them, or write outside: read")
        yield f"{counted(self.count, 'image')} {lie}; outside: refuse would refuse them"
