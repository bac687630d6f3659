"""The form of an entry in the catalogue of bad input, and the list that its modules fill."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Make = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Entry:
    """make: writes the bad files into an empty folder and returns the command line. says: what the message must hold,
    the file or flag and the fix among it; of an input that is accepted (exit code 0), the warning."""

    id: str
    group: str
    what: str
    make: Make
    exit_code: int
    says: tuple[str, ...]


ENTRIES: list[Entry] = []


def add(group: str, name: str, what: str, exit_code: int, says: tuple[str, ...], make: Make) -> None:
    ENTRIES.append(Entry(f"{group}-{name.replace('_', '-')}", group, what, make, exit_code, says))


def bad(group: str, what: str, exit_code: int, *says: str) -> Callable[[Make], Make]:
    """The function below makes such input; its name is the entry's."""

    def register(make: Make) -> Make:
        add(group, make.__name__, what, exit_code, says, make)
        return make

    return register
