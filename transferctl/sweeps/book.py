"""sweep.json: what a sweep was asked for, its members, and what became of each; enough to go on after a kill.

What a member's folder says counts; the book has what no folder says: settings that were drawn, and why a member failed
that came to no folder, or whose process was killed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transferctl import jsontext, members, runs
from transferctl.errors import CheckpointError, ExitCode, SpecError, from_os_error
from transferctl.members import Outcome
from transferctl.reporting import checked
from transferctl.sweeps import space
from transferctl.sweeps.methods import METHODS
from transferctl.sweeps.rows import Row, row_of
from transferctl.sweeps.space import Axis, Member
from transferctl.wording import one_line

FILE, MEMBERS = "sweep.json", "members"
TRIED_AGAIN = (ExitCode.RESOURCES, ExitCode.DATA)
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Asked:
    """What is swept, and how. trials: settings to draw; 0 for a grid. seed: of what is drawn."""

    verb: str
    axes: Sequence[Axis]
    method: str
    trials: int
    prune: bool
    seed: int


@dataclass
class Book:
    """path: the sweep's folder. folders: where relative paths of what is swept are looked for. failures: of members, by
    number, whose folder does not tell; leads: members whose work others found done; continued: those that an earlier
    process began, so that the time of the last one is not theirs."""

    path: Path
    asked: Asked
    name: str
    folders: Sequence[Path]
    members: list[Member] = field(default_factory=list)
    failures: dict[int, Outcome] = field(default_factory=dict)
    leads: set[int] = field(default_factory=set)
    continued: set[int] = field(default_factory=set)
    _rows: dict[int, Row] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where members' run folders are."""
        return self.path / MEMBERS

    def run_of(self, member: Member) -> Path | None:
        return members.folder_of(self.folder, self.asked.verb, member.name_in(self.name))

    def row(self, member: Member) -> Row:
        """As it is on the disk now, and remembered."""
        run = self.run_of(member)
        summary: Mapping[str, Any] = {"status": "missing"} if run is None else members.summary_of(run)
        row = row_of(member, "" if run is None else str(run), summary)
        failure = self.failures.get(member.number)
        if failure and row.state not in ("finished", "pruned"):
            row = replace(row, state="failed", exit_code=int(failure.code), reason=failure.message)
        if member.number in self.continued:
            row = replace(row, seconds=None)
        self._rows[member.number] = row
        return row

    def rows(self) -> list[Row]:
        found = [self._rows.get(member.number) or self.row(member) for member in self.members]
        return [replace(row, leads=row.member.number in self.leads) for row in found]

    def refresh(self) -> None:
        """After an interruption: members that ran have stopped, and more may be on the disk than was heard of."""
        for member in self.members:
            if self._rows.get(member.number, Row(member)).state in ("missing", "stopped"):
                self.row(member)

    def unfinished(self) -> list[Member]:
        """Members to run, or to go on with: those missing or stopped, and those that failed by what may be another now:
        memory, disk, data."""
        found = []
        for member in self.members:
            row = self.row(member)
            if row.state in ("missing", "stopped") or row.exit_code in TRIED_AGAIN:
                self.failures.pop(member.number, None)
                if row.run and row.exit_code != ExitCode.DATA:  # whose run begins anew
                    self.continued.add(member.number)
                self._rows[member.number] = Row(member, "stopped" if row.run else "missing", row.run)
                found.append(member)
        return found

    def ended(self, member: Member, outcome: Outcome) -> Row:
        if outcome.code != ExitCode.OK:
            self.failures[member.number] = outcome
        row = self.row(member)
        self.save()
        return row

    def save(self) -> None:
        """Raises ResourceError."""
        asked = {key: value for key, value in asdict(self.asked).items() if key != "axes"}
        over = [axis.written for axis in self.asked.axes]
        values = {"schema_version": SCHEMA_VERSION, "name": self.name, **asked, "over": over}
        values |= {"folders": [str(folder) for folder in self.folders]}
        told = [self._told(member) for member in self.members]
        try:
            runs.write_atomically(self.path / FILE, runs.json_text(values | {"members": told}))
        except OSError as error:
            raise from_os_error(error, self.path) from None

    def _told(self, member: Member) -> dict[str, Any]:
        row, failure = self._rows.get(member.number, Row(member)), self.failures.get(member.number)
        told: dict[str, Any] = {"number": member.number, "settings": dict(member.settings), "state": row.state}
        told |= {"run": Path(row.run).name} if row.run else {}
        told |= {"accuracy": row.accuracy, "loss": row.loss, "leads": member.number in self.leads}
        told |= {"continued": True} if member.number in self.continued else {}
        return told | ({"exit_code": int(failure.code), "error": failure.message} if failure else {})


def read(path: Path) -> Book:
    """Of a sweep that is gone on with. Raises CheckpointError where its book cannot be used."""
    try:
        values = checked.mapping(jsontext.read(path / FILE))
        asked = Asked(
            verb=_one_of(values["verb"], list(members.VERBS)),
            axes=_axes([str(text) for text in checked.sequence(values["over"])]),
            method=_one_of(values["method"], list(METHODS)),
            trials=int(values["trials"]),
            prune=bool(values["prune"]),
            seed=int(values["seed"]),
        )
        folders = [Path(checked.text(folder, 4096)) for folder in checked.sequence(values["folders"])]
        book = Book(path, asked, str(values["name"]), folders)
        for told in map(checked.mapping, checked.sequence(values["members"])):
            _add(book, told)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: has no {FILE}: it was stopped before it began; sweep anew") from None
    except (OSError, ValueError, KeyError, TypeError, SpecError) as error:
        raise CheckpointError(f"{path}/{FILE}: cannot be used ({error}); sweep anew") from None
    return book


def _add(book: Book, told: Mapping[str, Any]) -> None:
    settings = {str(key): str(text) for key, text in checked.mapping(told["settings"]).items()}
    member = Member(int(told["number"]), settings)
    if member.number != len(book.members) + 1 or set(settings) != {axis.key for axis in book.asked.axes}:
        raise ValueError(f"its member {member.number} is none of this sweep")
    book.members.append(member)
    if told.get("leads") is True:
        book.leads.add(member.number)
    if told.get("continued") is True:
        book.continued.add(member.number)
    if "exit_code" in told:
        book.failures[member.number] = Outcome(
            ExitCode(int(told["exit_code"])), one_line(told.get("error") or "", 2000)
        )


def _axes(overs: Sequence[str]) -> list[Axis]:
    axes, problems = space.parse(overs)
    if problems:
        raise SpecError(problems)
    return axes


def _one_of(value: Any, choices: Iterable[str]) -> str:
    if value not in choices:
        raise ValueError(f"{value!r} is none of {', '.join(choices)}")
    return str(value)
