"""YAML file -> spec, with every problem at once, each at its file and line, or at its --set."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from transferctl.errors import Problem, SpecError
from transferctl.spec import Spec
from transferctl.specfaults import explain, raw_key
from transferctl.yamltree import CoreDumper, Document, Key, did_you_mean, split, where_of

MAX_BYTES = 256 * 1024
MAX_TOLD = 200  # faults


@dataclass(frozen=True)
class SpecFile:
    """A spec and where each of its keys was written (`file:line`, or the `--set` that gave it)."""

    spec: Spec
    path: Path
    positions: Mapping[Key, str]
    overrides: Sequence[str] = ()

    def locate(self, error: SpecError) -> SpecError:
        """The same error, each problem with its file and line: for faults found after parsing."""
        placed = [
            problem if problem.where else replace(problem, where=where_of(self.positions, split(problem.key)))
            for problem in error.problems
        ]
        return SpecError(_in_order(placed, self.overrides))


def load(path: Path | str, overrides: Sequence[str] = (), folders: Sequence[Path] = ()) -> SpecFile:
    """Read, override (`--set a.b=value`) and validate a spec. folders: where relative paths are looked for; without
    any, in the file's own and in the working folder. Raises SpecError with all problems."""
    path = Path(path)
    folders = folders or folders_of(path)
    document = Document(str(path))
    tree = document.parse(_read_text(path))
    if not isinstance(tree, dict):
        found = "empty" if tree is None else f"a {_kind(tree)}"
        raise SpecError([Problem("", f"a spec is a mapping of settings; this file is {found}", f"{path}:1")])
    for override in overrides:
        try:
            document.override(tree, override)
        except SpecError as error:
            document.problems += error.problems
    tree.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("-._")[:100] or "run")
    if problems := _problems(tree, document, path, folders):
        raise SpecError(_in_order(problems, overrides))
    return SpecFile(_validate(tree, folders), path, document.positions, overrides)


def folders_of(path: Path) -> tuple[Path, ...]:
    """Where the relative paths of a spec are looked for."""
    return path.absolute().parent, Path.cwd()


def dump(spec: Spec) -> str:
    """The resolved spec as YAML that `load` reads back to an equal spec."""
    values = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return yaml.dump(values, Dumper=CoreDumper, sort_keys=False, allow_unicode=True)


def dump_written(spec: Spec) -> str:
    """The spec's settings that somebody wrote, as YAML that `load` reads back to an equal spec: what is left out can
    still become another default, as that of another optimizer."""
    values = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    return yaml.dump(values, Dumper=CoreDumper, sort_keys=False, allow_unicode=True)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise SpecError([Problem("", "is a folder; name a YAML file in it", str(path))]) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        message = f"cannot read the spec: {getattr(error, 'strerror', None) or error}{_similar_files(path)}"
        raise SpecError([Problem("", message, str(path))]) from None
    if len(data) > MAX_BYTES:
        raise SpecError([Problem("", f"is larger than {MAX_BYTES // 1024} KiB; that is no spec", str(path))])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8"
        raise SpecError([Problem("", message, f"{path}:{line}")]) from None


def _similar_files(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    except OSError:
        return ""
    return did_you_mean(path.name, names)


def _kind(tree: Any) -> str:
    return "list" if isinstance(tree, list) else "single value"


def _validate(tree: Any, folders: Sequence[Path]) -> Spec:
    return Spec.model_validate(tree, context={"folders": tuple(folders)})


def _errors(tree: Any, folders: Sequence[Path]) -> list[ErrorDetails]:
    try:
        _validate(tree, folders)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _problems(tree: dict[str, Any], document: Document, path: Path, folders: Sequence[Path]) -> list[Problem]:
    """The document's; what pydantic finds; then, with those keys taken out, what the checks across keys find."""
    found = list(document.problems)
    details = _errors(tree, folders)
    if (count := len(details)) > MAX_TOLD:
        found.append(Problem("", f"has {count:,} faults; the first {MAX_TOLD} are told", str(path)))
        details = details[:MAX_TOLD]
    while details:
        told = {problem.key for problem in found if problem.key}
        found += explain(details, tree, document.positions, told)
        rest = _without(tree, [tuple(takewhile(_is_name, raw_key(detail, tree))) for detail in details])
        more = _errors(rest, folders) if rest != tree else []
        details, tree = [detail for detail in more if detail["type"] == "across_keys"], rest
    return found


def _in_order(problems: Iterable[Problem], overrides: Sequence[str]) -> list[Problem]:
    """By their line in the file, then by their flag."""
    flags = [f"--set {override}" for override in overrides]

    def place(problem: Problem) -> tuple[int, int]:
        if problem.where in flags:
            return 1 + flags.index(problem.where), 0
        line = problem.where.rpartition(":")[2]
        return 0, int(line) if line.isdecimal() else 0

    return sorted(problems, key=place)


def _is_name(part: str | int) -> bool:
    return isinstance(part, str)


def _without(tree: Any, keys: Iterable[Key], here: Key = ()) -> Any:
    keys = set(keys) - {()}
    if not isinstance(tree, dict):
        return tree
    return {name: _without(value, keys, (*here, name)) for name, value in tree.items() if (*here, name) not in keys}
