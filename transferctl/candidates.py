"""Which backbones are ranked: what the spec or the command line names, patterns spelled out, each once, labelled."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transferctl import backbonetext, checkpoint, jsontext, plugins
from transferctl.backbonetext import DEFAULT_LIBRARY, WEIGHTS_SUFFIXES, Written
from transferctl.errors import Problem, SpecError
from transferctl.spec import BackboneSettings, Spec, WeightsFile
from transferctl.wording import counted, printable, shown

_STAMP = re.compile(r"\d{8}-\d{6}-(?=.)")  # of a run folder's name


@dataclass(frozen=True)
class Candidate:
    """label: short, and no other candidate's."""

    settings: BackboneSettings
    label: str


@dataclass(frozen=True)
class Candidates:
    """chosen: in the order in which they were named; notes: what was inferred or left out, for people."""

    chosen: tuple[Candidate, ...]
    notes: tuple[str, ...]

    def as_spec(self, spec: Spec) -> Spec:
        """The spec that ranks these again, whatever a pattern matches by then."""
        first, *others = (candidate.settings for candidate in self.chosen)
        return spec.model_copy(update={"backbone": first, "candidates": tuple(others) or None})


def of(spec: Spec, texts: Sequence[str]) -> Candidates:
    """The spec's own backbone and its candidates; with texts (`--backbone`, paths from the working folder) exactly
    those. Raises SpecError for a text that means nothing, and a pattern that nothing matches."""
    notes: list[str] = []
    problems: list[Problem] = []
    files_alone: list[str] = []
    named: list[BackboneSettings] = [] if texts else [spec.backbone]
    for number, item in enumerate(texts or spec.candidates or ()):
        key, where = ("", f"--backbone {_as_typed(str(item))}") if texts else (f"candidates[{number}]", "")
        if isinstance(item, BackboneSettings):
            named.append(item)
            continue
        try:
            folders = (Path.cwd(),) if texts else ()
            named += _expanded(backbonetext.read(item, folders or (Path("/"),)), spec.backbone, notes, files_alone)
        except ValueError as error:
            problems.append(Problem(key, str(error), where))
    if problems:
        raise SpecError(problems)
    if files_alone:
        notes.append(f"{shown(files_alone)}: taken for weights of {spec.backbone.name}, the spec's backbone.name")
    once: dict[object, BackboneSettings] = {}
    for settings in named:
        once.setdefault(_identity(settings), settings)
    if len(once) < len(named):
        notes.append(f"{counted(len(named) - len(once), 'candidate')} named again, ranked once")
    chosen = list(once.values())
    return Candidates(tuple(map(Candidate, chosen, _labels(chosen))), tuple(notes))


def _as_typed(text: str) -> str:
    """In quotes where it would be taken for punctuation."""
    return printable(text) if any(c.isalnum() for c in text) else repr(text)


def _identity(settings: BackboneSettings) -> tuple[str, str, str]:
    """Of a file's classes nothing depends that is ranked by."""
    return settings.library, settings.name, str(_path(settings) or settings.weights)


def _path(settings: BackboneSettings) -> Path | None:
    return settings.weights.path if isinstance(settings.weights, WeightsFile) else None


# -- from texts to settings ---------------------------------------------------------------------------


def _expanded(
    written: Written, own: BackboneSettings, notes: list[str], files_alone: list[str]
) -> Iterator[BackboneSettings]:
    """own: the spec's backbone, whose architecture a weights file alone has: those go to files_alone too. Raises
    ValueError."""
    if not written.path:
        library = written.library or DEFAULT_LIBRARY
        yield BackboneSettings(library=library, name=str(written.name), weights=written.weights or "DEFAULT")
        return
    for path in _files(written, notes):
        weights = WeightsFile.model_construct(path=path, classes=None)
        if written.name is not None:
            library, name = written.library or DEFAULT_LIBRARY, written.name
        elif checkpoint.is_run(path):
            library, name = _of_run(path) or (own.library, own.name)
        else:
            library, name = own.library, own.name
            files_alone.append(str(path))
        yield BackboneSettings.model_construct(library=library, name=name, weights=weights)


def _files(written: Written, notes: list[str]) -> list[Path]:
    """What the path names; of a pattern's matches those that can hold weights. What is not there by its plain name is
    told by who reads it."""
    if not written.is_pattern or Path(written.path).exists():
        return [Path(written.path)]
    found = [Path(path) for path in backbonetext.matches(written.path)]
    chosen = [path for path in found if checkpoint.is_run(path) or path.suffix.lower() in WEIGHTS_SUFFIXES]
    if others := [path.name for path in found if path not in chosen]:
        notes.append(f"{printable(written.path)}: left out, as no run folders and no weights: {shown(others)}")
    if not chosen:
        what = f"only {shown(others)}, no run folder and no weights" if others else "nothing"
        raise ValueError(f"the pattern {printable(written.path)} matches {what}; put it in quotes, and look with ls")
    return chosen


def _of_run(run: Path) -> tuple[str, str] | None:
    """Library and architecture of a run's best checkpoint; None where it does not say: loading it will tell why."""
    try:
        manifest = jsontext.read(run / "checkpoints" / "best" / "manifest.json")
        library, name = str(manifest["library"]), str(manifest["architecture"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (library, name) if library in plugins.names("backbones") else None


# -- labels -------------------------------------------------------------------------------------------


def _labels(chosen: Sequence[BackboneSettings]) -> list[str]:
    """For each the shortest of its names that is no other's."""
    names = [list(_names(settings)) for settings in chosen]
    counts = Counter(name for own in names for name in set(own))
    return [next(name for name in own if counts[name] == 1) for own in names]


def _names(settings: BackboneSettings) -> Iterator[str]:
    """From short to long; the last is the candidate's alone."""
    prefix = "" if settings.library == DEFAULT_LIBRARY else f"{settings.library}/"
    name, path = f"{prefix}{settings.name}", _path(settings)
    if path is None:
        yield name if settings.weights == "DEFAULT" else f"{name}:{settings.weights}"
        return
    is_run = checkpoint.is_run(path)
    yield printable(_STAMP.sub("", path.name) if is_run else path.name)
    for depth in range(1, len(path.parts)):
        yield ("" if is_run else f"{name}:") + printable("/".join(path.parts[-depth:]))
    yield f"{name}:{printable(str(path))}"
