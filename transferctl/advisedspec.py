"""The spec that `advise` proposes: the given one with its changes, each with its evidence in a comment above it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from transferctl import specdifferences
from transferctl.errors import SpecError
from transferctl.settings import Settings
from transferctl.spec import Spec
from transferctl.speccomments import WIDTH, comment, quoted, section
from transferctl.wording import faults_in
from transferctl.yamltree import CoreDumper, split


@dataclass(frozen=True)
class Choice:
    """What was decided, and why. key: of the spec, dotted; evidence: what was measured; otherwise: what would change
    it."""

    key: str
    value: str
    evidence: str
    otherwise: str


def applied(spec: Spec, changes: Mapping[str, Any]) -> Spec:
    """The spec with other values of dotted keys. Raises SpecError where they do not go together."""
    tree = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for key, value in changes.items():
        *groups, name = split(key)
        inner = tree
        for group in groups:
            inner = inner.setdefault(str(group), {})
        inner[str(name)] = value
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        raise SpecError.at("", f"does not go with the spec: {faults_in(error)}") from None


def differences(given: Spec, changes: Mapping[str, Any]) -> list[list[str]]:
    """A row a setting that is another one: its key, and both values in words."""
    tree = given.model_dump(mode="json", by_alias=True)

    def value_of(key: str) -> Any:
        found: Any = tree
        for name in split(key):
            found = found.get(name) if isinstance(found, Mapping) else None
        return found

    rows = [(key, value_of(key), value) for key, value in changes.items()]
    return [[key, _in_words(before), _in_words(after)] for key, before, after in rows if before != after]


def _in_words(value: Any) -> str:
    if value in (None, {}):
        return "no" if value is None else "yes"
    return specdifferences.in_words(value)


FIRST = ("name", "seed", "device", "precision", "backbone", "preprocess", "target", "source")


def text(
    advised: Spec, verb: str, summary: Sequence[str], choices: Sequence[Choice], kept: str, shown: Path, folder: Path
) -> str:
    """The file. summary: what there is to say first; kept: where the rest comes from; shown: the file as commands name
    it; folder: where it lies, which paths in it start from."""
    tree = _written(advised, folder.absolute())
    chosen: dict[str, list[Choice]] = {}
    for choice in choices:
        chosen.setdefault(choice.key.partition(".")[0], []).append(choice)
    lines = [f"# transferctl {verb} {quoted(shown)}"]
    for line in summary:
        lines += comment(line)
    lines += section(kept)
    for key in sorted(tree, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST)):
        if key not in chosen:
            lines.append(_yaml(key, tree[key]))
    for key, about in chosen.items():
        lines += _explained(key, about, tree)
    return "\n".join(lines) + "\n"


def _explained(key: str, about: Sequence[Choice], tree: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    for choice in about:
        yield from comment(f"{choice.key}: {choice.value}. {choice.evidence} {choice.otherwise}")
    if key in tree:
        yield _yaml(key, tree[key])


def _yaml(key: str, value: Any) -> str:
    """In one line where it fits, else in a block whose innermost groups are in one."""
    options: dict[str, Any] = {"allow_unicode": True, "width": 1 << 20, "sort_keys": False}
    flow = str(yaml.dump({key: value}, Dumper=CoreDumper, default_flow_style=True, **options)).strip()[1:-1]
    if len(flow) <= WIDTH:
        return flow
    return str(yaml.dump({key: value}, Dumper=CoreDumper, default_flow_style=None, **options)).rstrip()


def _written(settings: Settings, folder: Path) -> dict[str, Any]:
    """What was written of some settings, as plain values; paths as the folder has them."""
    fields = type(settings).model_fields
    named = [name for name in fields if name in settings.model_fields_set]
    values = ((fields[name].alias or name, getattr(settings, name)) for name in named)
    return {key: _plain(value, folder) for key, value in values if value is not None}


def _plain(value: Any, folder: Path) -> Any:
    if isinstance(value, Settings):
        return _written(value, folder)
    if isinstance(value, Path):
        return _path(value, folder)
    if isinstance(value, Mapping):
        return {key: _plain(inner, folder) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_plain(inner, folder) for inner in value]
    return value


def _path(path: Path, folder: Path) -> str:
    """Relative where that leads down, so that both can be moved together; a name that begins with ~ would be a home."""
    relative = os.path.relpath(path, folder)
    return str(path) if relative.startswith(("..", "~")) else relative
