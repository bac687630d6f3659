"""A backbone as a text: `resnet18`, `resnet18:IMAGENET1K_V1`, `resnet18:weights/my.pth`, `runs/*-pretrain-*`,
`timm/NAME:none`. Read here, looked for in candidates.py. Nothing here imports torch."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transferctl import plugins
from transferctl.wording import printable

WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors")
DEFAULT_LIBRARY = "torchvision"
PUBLISHED_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_OF_A_LIBRARY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*")
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True)
class Written:
    """library, name: None where the text leaves them to the spec. weights: a published name, source or none; path: of
    files or runs instead, perhaps a pattern."""

    library: str | None
    name: str | None
    weights: str = ""
    path: str = ""

    @property
    def is_pattern(self) -> bool:
        return bool(_MAGIC.search(self.path))

    def __str__(self) -> str:
        """What `read` reads back."""
        library = f"{self.library}/" if self.library else ""
        rest = self.path or self.weights
        return f"{library}{self.name}:{rest}" if self.name and rest else f"{library}{self.name or rest}"


def read(text: str, folders: Sequence[Path]) -> Written:
    """What a text asks for. A relative path is one below the first of `folders` that has it, or else the first; what is
    found nowhere keeps its path, for the error that names it. Raises ValueError for a text that means nothing."""
    if not text.strip() or "\0" in text:
        raise ValueError(f"must be a backbone, not {text!r}; write NAME, NAME:WEIGHTS, or a file or run folder")
    written = _parts(text.strip(), folders)
    if not written.path:
        return written
    try:
        path = Path(written.path).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no such user's home folder: {written.path!r}") from None
    places = [str((folder / path).absolute()) for folder in folders]
    return replace(written, path=next((place for place in places if matches(place)), places[0]))


def split(text: str) -> tuple[str | None, str]:
    """The library that a text begins with, LIBRARY/…, None where it names none; and the rest."""
    library, slash, rest = text.partition("/")
    return (library, rest) if slash and library in plugins.names("backbones") else (None, text)


def matches(path: str) -> list[str]:
    """What a path or a pattern names, sorted; a name with * in it that is there is that file alone."""
    try:
        if Path(path).exists():
            return [path]
        return sorted(glob.glob(path)) if _MAGIC.search(path) else []  # noqa: PTH207 (absolute ones too)
    except (OSError, ValueError):  # too long, a folder that may not be entered
        return []


def _parts(text: str, folders: Sequence[Path]) -> Written:
    library, rest = split(text)
    if not rest:
        raise ValueError(f"{text!r} names no architecture; write {library}/NAME")
    name, colon, weights = rest.partition(":")
    is_published = weights in ("none", "source") or bool(PUBLISHED_NAME.fullmatch(weights))
    if colon and _NAME.fullmatch(name):
        if not weights:
            raise ValueError(f"{text!r} names no weights; write {name} for the default ones, or {name}:none")
        return Written(library, name, weights) if is_published else Written(library, name, path=weights)
    is_of_a_library = _OF_A_LIBRARY.fullmatch(name) and (is_published or not colon)
    if library is None and is_of_a_library and not _is_there(rest, folders):
        return Written(None, name, weights)  # of a library that is not there: loading it tells so
    if library is None and _is_path(rest, folders):
        return Written(None, None, path=rest)
    if colon and not name.strip():
        raise ValueError("names no architecture; write NAME, NAME:WEIGHTS, or a file or run folder")
    return Written(library, rest)


def no_such_library(name: str) -> str:
    """What to say of an architecture with a slash in its name: no library has one."""
    there = ", ".join(plugins.names("backbones"))
    is_file = Path(name).exists()
    then = "; a file is named by backbone.weights" if is_file else f", and no file or run folder {printable(name)}"
    return f"there is no library {printable(name.partition('/')[0])} (there are {there}){then}"


def _is_there(text: str, folders: Sequence[Path]) -> bool:
    return text.lower().endswith(WEIGHTS_SUFFIXES) or any(matches(str(folder / text)) for folder in folders)


def _is_path(text: str, folders: Sequence[Path]) -> bool:
    """No architecture has a slash, a suffix of weights or a pattern in its name; a run may be named alone, from within
    the folder that holds it."""
    if "/" in text or text.startswith("~") or text.lower().endswith(WEIGHTS_SUFFIXES) or _MAGIC.search(text):
        return True
    try:
        return any((folder / text / "summary.json").exists() for folder in folders)
    except (OSError, ValueError):
        return False
