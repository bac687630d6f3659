"""What a folder holds, in the order of names, whatever its size; and what of it counts as an image."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from heapq import merge
from itertools import chain, islice

from transferctl.images import EXTENSIONS
from transferctl.texts import Texts

SYSTEM_NAMES = ("__macosx", "thumbs.db", "desktop.ini")  # left by macOS's zip and by Windows, in any case
RUN = 8192  # names of a folder that are sorted at a time


def entries(folder: str) -> Iterator[tuple[str, str]]:
    """What a folder holds, in the order of names: (name, kind), kind d for a folder, f a file, l a link, o another.

    Sorted in runs that are merged, as all names of a folder of a million images would take 100 MB."""
    with os.scandir(folder) as found:
        marked = _run(found)
        if len(marked) == RUN:
            later = chain.from_iterable(iter(partial(_run, found), []))
            names = Texts(chain(marked, later))
            starts = range(0, len(names), RUN)
            runs = [map(names.__getitem__, range(start, min(start + RUN, len(names)))) for start in starts]
            yield from ((name[:-2], name[-1]) for name in merge(*runs))
            return
    yield from ((name[:-2], name[-1]) for name in marked)


def _run(entries: Iterator[os.DirEntry[str]]) -> list[str]:
    """Of the next RUN entries the names, sorted, each with its kind after a NUL, which sorts before all else."""
    return sorted(f"{entry.name}\0{_kind(entry)}" for entry in islice(entries, RUN))


def _kind(entry: os.DirEntry[str]) -> str:
    if entry.is_file(follow_symlinks=False):
        return "f"
    if entry.is_symlink():
        return "l"
    return "d" if entry.is_dir(follow_symlinks=False) else "o"


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def leads_to_folder(link: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(link).st_mode)
    except FileNotFoundError:
        return False


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS
