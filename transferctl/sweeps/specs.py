"""The specs of a sweep's members: each the file's, with its settings set; all that is wrong with any, at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from transferctl import yamlfile
from transferctl.errors import Problem, SpecError
from transferctl.spec import Spec
from transferctl.sweeps.space import MOST, Axis, Member, Points, Range
from transferctl.yamlfile import SpecFile


@dataclass(frozen=True)
class Specs:
    """Makes members' specs of the file that the sweep was given, or of the one in its folder. folders: where relative
    paths are looked for, those of `--over` too, whichever of both it is."""

    file: SpecFile
    folders: Sequence[Path] = ()

    def whole(self, member: Member) -> Spec:
        """With all that the file has. Raises SpecError, each problem at its `--over`."""
        return _spec(self.file.path, self.file.overrides, member, self.folders)

    def of(self, member: Member) -> Spec:
        """As the member runs: without test data, baseline and page; named after the sweep and its number."""
        spec = self.whole(member)
        target = spec.target.model_copy(update={"test": None})
        name = member.name_in(self.file.spec.name)
        return spec.model_copy(update={"name": name, "target": target, "baseline": None, "report": False})

    def with_whole_ranges(self, axes: Sequence[Axis]) -> list[Axis]:
        """Ranges over settings that take whole numbers alone know it."""
        return [replace(axis, is_whole=self._is_whole(axis)) if isinstance(axis, Range) else axis for axis in axes]

    def _is_whole(self, axis: Range) -> bool:
        if not (axis.low.is_integer() and axis.high.is_integer()):
            return False
        try:
            self.whole(Member(1, {axis.key: repr(axis.low + 0.5)}))
        except SpecError as error:
            return any(problem.key == axis.key for problem in error.problems)
        return False

    def values(self, member: Member) -> dict[str, Any]:
        """Its settings as the spec has them: numbers, not text."""
        dumped = self.whole(member).model_dump(mode="json", by_alias=True)
        return {key: _at(dumped, key.split("."), text) for key, text in member.settings.items()}


def faults(
    path: Path, overrides: Sequence[str], members: Iterable[Member], folders: Sequence[Path] = ()
) -> list[Problem]:
    """What is wrong with the specs of any; what several share is told once. folders: as `yamlfile.load` takes them."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for member in members:
        try:
            _spec(path, overrides, member, folders)
        except SpecError as error:
            for problem in error.problems:
                found.setdefault((problem.key, problem.message), {})[problem.where] = None
    return [Problem(key, text, _together(list(where))) for (key, text), where in found.items()]


def corners(axes: Sequence[Axis]) -> list[Member]:
    """Every combination of points and of ranges' ends, or where these are too many each value beside the others'
    first."""
    values = [axis.texts if isinstance(axis, Points) else axis.ends for axis in axes]
    keys = [axis.key for axis in axes]
    if math.prod(map(len, values)) <= MOST:
        return [Member(1, dict(zip(keys, chosen, strict=True))) for chosen in itertools.product(*values)]
    first = {key: texts[0] for key, texts in zip(keys, values, strict=True)}
    return [Member(1, first | {key: text}) for key, texts in zip(keys, values, strict=True) for text in texts]


def _spec(path: Path, overrides: Sequence[str], member: Member, folders: Sequence[Path]) -> Spec:
    try:
        return yamlfile.load(path, [*overrides, *member.sets], folders).spec
    except SpecError as error:
        raise SpecError(_as_over(problem, member) for problem in error.problems) from None


def _as_over(problem: Problem, member: Member) -> Problem:
    assignment = problem.where.removeprefix("--set ")
    return replace(problem, where=f"--over {assignment}") if assignment in member.sets else problem


def _together(where: Sequence[str]) -> str:
    """--over lambda=0.1 and --over lambda=0.3 are --over lambda=0.1,0.3."""
    keys = {one.partition("=")[0] for one in where}
    if len(keys) == 1 and where[0].startswith("--over "):
        return f"{keys.pop()}={','.join(one.partition('=')[2] for one in where)}"
    return where[0]


def _at(tree: Any, key: Sequence[str], text: str) -> Any:
    """The value there; the text where a group was set by a shorthand and has another form."""
    for name in key:
        if not isinstance(tree, Mapping) or name not in tree:
            return text
        tree = tree[name]
    return text if isinstance(tree, Mapping) else tree
