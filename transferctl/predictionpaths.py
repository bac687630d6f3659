"""What PATH… of `predict` names, one image after the other: files, folders, patterns, a list on stdin.

Nothing is held but what is asked for next, so a million paths pass through as one does.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import partial
from typing import IO

from transferctl.errors import DataError
from transferctl.images import EXTENSIONS
from transferctl.listing import entries, is_hidden, is_image_name, leads_to_folder
from transferctl.loaders import Unreadable
from transferctl.wording import SomeNames, counted, shown

STDIN = "-"
LINE = 1 << 16  # bytes of a list's line; no system's paths are so long
ANY_DEPTH = "**"

ListedPath = str | Unreadable  # a path, or what is there and cannot be listed


@dataclass
class Paths:
    """arguments: PATH… as given, patterns unexpanded; null: whether the list on stdin ends its paths by NUL. What was
    passed by on the way stands in the other fields once it was iterated over, which goes once."""

    arguments: Sequence[str]
    null: bool = False
    hidden: int = 0
    ignored: SomeNames = field(default_factory=SomeNames)
    empty: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[ListedPath]:
        """In the order of the arguments, what is in folders by name; one that is named twice comes twice. Raises
        DataError where stdin has no list of paths."""
        for argument in self.arguments:
            n = 0
            for found in self._of(argument):
                n += 1
                yield found
            if not n:
                self.empty.append(argument)

    def nothing(self) -> DataError | None:
        """The error that names the arguments which nothing was found of."""
        if not self.empty:
            return None
        lines = [f"{'stdin' if one == STDIN else shown([one])}: {self._why_empty(one)}" for one in self.empty]
        return DataError("\n".join(lines))

    def notes(self) -> Iterator[str]:
        """What was passed by."""
        if self.hidden:
            yield f"{self.hidden:,} hidden ignored (names that start with a dot, __MACOSX, Thumbs.db, desktop.ini)"
        if self.ignored.count:
            yield f"{counted(self.ignored.count, 'file')} not used, being no images by name: {self.ignored}"

    def _of(self, argument: str) -> Iterator[ListedPath]:
        if argument == STDIN:
            return _listed(self.null)
        if os.path.isdir(argument):
            return self._below(argument, [ANY_DEPTH])
        if os.path.lexists(argument) or not _is_pattern(argument):
            return iter([argument])
        base, parts = _split(argument)
        if not os.path.isdir(base or os.curdir):
            return iter(())
        # A folder that a pattern names is a folder; one that ** has passed through is looked into anyway.
        return self._below(base, parts if ANY_DEPTH in parts else [*parts, ANY_DEPTH])

    def _below(self, base: str, parts: Sequence[str]) -> Iterator[ListedPath]:
        """Images below a folder ("": the working folder) whose relative path the parts match, each once, in the order
        of names. Links are followed, but not to a folder around them."""
        matchers = [None if part == ANY_DEPTH else re.compile(translate(part)) for part in parts]
        stack = [_Folder.opened(base, (), _closure({0}, matchers))]
        while stack:
            folder = stack[-1]
            if isinstance(folder, Unreadable):
                yield folder
                stack.pop()
                continue
            try:
                name, kind = next(folder.entries, ("", ""))
            except OSError as error:
                stack[-1] = Unreadable(folder.path, f"cannot be listed: {error.strerror}")
                continue
            if not name:
                stack.pop()
                continue
            if is_hidden(name) and not any(parts[i].startswith(".") for i in folder.states if i < len(parts)):
                self.hidden += 1
                continue
            states = _after(name, folder.states, matchers)
            path = os.path.join(folder.path, name)
            if kind == "d" or (kind == "l" and _leads_to_folder(path)):
                if states:
                    around = (*folder.around, folder.identity)
                    stack.append(_Folder.opened(path, around, states))
            elif len(parts) not in states:
                continue
            elif kind == "o" or not is_image_name(name):
                self.ignored.add(path)
            else:
                yield path

    def _why_empty(self, argument: str) -> str:
        if argument == STDIN:
            return "lists no paths"
        what = "holds no images" if os.path.isdir(argument) else "matches no images"
        others = f"; {counted(self.ignored.count, 'file')} not used: {self.ignored}" if self.ignored.count else ""
        return f"{what} ({', '.join(sorted(EXTENSIONS))}){others}"


@dataclass(frozen=True)
class _Folder:
    """A folder that is being listed. states: which parts of the pattern its entries may match; around: the identities
    of the folders that it was reached through."""

    path: str
    identity: tuple[int, int]
    around: tuple[tuple[int, int], ...]
    entries: Iterator[tuple[str, str]]
    states: frozenset[int]

    @classmethod
    def opened(cls, path: str, around: tuple[tuple[int, int], ...], states: frozenset[int]) -> _Folder | Unreadable:
        try:
            status = os.stat(path or os.curdir)
        except OSError as error:
            return Unreadable(path, f"cannot be listed: {error.strerror}")
        identity = (status.st_dev, status.st_ino)
        if identity in around:
            return Unreadable(path, "is a link that leads back to a folder around it")
        return cls(path, identity, around, entries(path or os.curdir), states)


def _closure(states: set[int], matchers: Sequence[re.Pattern[str] | None]) -> frozenset[int]:
    """** also stands for no folder at all."""
    reached = set(states)
    for i, matcher in enumerate(matchers):
        if i in reached and matcher is None:
            reached.add(i + 1)
    return frozenset(reached)


def _after(name: str, states: frozenset[int], matchers: Sequence[re.Pattern[str] | None]) -> frozenset[int]:
    """Where the pattern stands after one more name of the path; len(matchers): at its end."""
    passed = set[int]()
    for i in states - {len(matchers)}:
        matcher = matchers[i]
        if matcher is None:
            passed.add(i)
        elif matcher.match(name):
            passed.add(i + 1)
    return _closure(passed, matchers)


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def _split(pattern: str) -> tuple[str, list[str]]:
    """The folder that a pattern begins in, and its parts from the first with a wildcard on."""
    parts = pattern.split(os.sep)
    first = next(i for i, part in enumerate(parts) if _is_pattern(part))
    base = os.sep.join(parts[:first]) or (os.sep if first else "")
    return base, [part for part in parts[first:] if part not in ("", os.curdir)]


def _leads_to_folder(link: str) -> bool:
    """A link that cannot be followed is an image if its name says so: reading it says what is wrong."""
    try:
        return leads_to_folder(link)
    except OSError:
        return False


def _listed(null: bool) -> Iterator[str]:
    """The paths on stdin, as bytes in the file system's encoding. Lines that Windows ended lose their carriage return;
    an empty one is none."""
    if sys.stdin is None:  # closed from the start
        return
    pieces = _ended_by_nul(sys.stdin.buffer) if null else iter(partial(sys.stdin.buffer.readline, LINE + 1), b"")
    for number, piece in enumerate(pieces, 1):
        if len(piece) > LINE:
            end = "NUL" if null else "line end"
            raise DataError(
                f"stdin: path {number:,} has more than {LINE:,} bytes; paths with a {end} after each are read"
            )
        path = piece if null else piece.rstrip(b"\n").removesuffix(b"\r")
        if path:
            yield os.fsdecode(path)


def _ended_by_nul(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while chunk := file.read1(LINE) if hasattr(file, "read1") else file.read(LINE):
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
        if len(rest) > LINE:
            break
    if rest:
        yield rest
