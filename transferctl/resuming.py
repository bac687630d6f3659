"""Going on with a run that was stopped: what must be as it was, and what is said where it is not."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferctl import jsontext, lock, yamlfile
from transferctl.errors import CheckpointError, Problem, SpecError
from transferctl.wording import printable, shown

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.yamlfile import SpecFile

RESUMABLE = ("pretrain", "extract", "finetune", "sweep")
FREE = ("workers", "cache", "checkpoint", "name", "trackers", "report")  # settings that no weight depends on
MEANT_BY = {
    "weights": ("backbone.weights",),
    "data": tuple(f"{domain}.{split}" for domain in ("target", "source") for split in ("train", "val", "test")),
}  # what else is allowed with these
SHOWN_PARTS = 10


@dataclass(frozen=True)
class Resumed:
    """The run to go on with; allowed: what may differ, by the name of a setting, `data`, `weights`. finished: its
    summary, where there is nothing left to do."""

    run: Path
    allowed: tuple[str, ...] = ()
    finished: Mapping[str, Any] | None = None


def load(
    run: Path, verb: str, spec: Path | None, overrides: Sequence[str], allowed: Sequence[str]
) -> tuple[SpecFile, Resumed]:
    """The run's own spec, or `spec`, with `overrides`.

    Raises CheckpointError where there is nothing to go on with, or where a setting is another now and not allowed to
    be; LockedError while a process writes the run.
    """
    run = run.absolute()
    summary = _summary(run, verb)
    own = yamlfile.load(run / "spec.yaml")
    file = yamlfile.load(spec or run / "spec.yaml", overrides)
    if file.spec.name != own.spec.name:  # a file's name is not a setting that anybody chose
        file = replace(file, spec=file.spec.model_copy(update={"name": own.spec.name}))
    differences = list(_differences(_settings(own), _settings(file)))
    _refuse_unknown(allowed)
    free = (*FREE, "head") if own.spec.from_run else FREE  # the head is that of the run that it starts from
    if refused := {key: text for key, text in differences if not _is_allowed(key, (*free, *allowed))}:
        raise changed(run, list(refused.values()), list(refused))
    finished = summary if summary.get("status") == "finished" else None
    if finished and (changes := [text for key, text in differences if not _is_allowed(key, free)]):
        message = f"{run}: is finished, with other settings: {'; '.join(changes[:SHOWN_PARTS])}"
        raise CheckpointError(f"{message}; begin a new run, with --from {run} to start from its best model")
    return file, Resumed(run, tuple(allowed), finished)


def changed(run: Path, what: Sequence[str], keys: Sequence[str]) -> CheckpointError:
    """The refusal, with the difference. keys: what would allow it."""
    few = [*what[:SHOWN_PARTS], *([f"and {len(what) - SHOWN_PARTS} more"] if len(what) > SHOWN_PARTS else [])]
    flags = " ".join(f"--allow {key}" for key in dict.fromkeys(keys))
    return CheckpointError(
        "\n".join([f"{run}: cannot be resumed as it was:", *(f"  {line}" for line in few),
                   f"leave it as it was, begin anew without --resume, or allow it by name: {flags}"])
    )  # fmt: skip


def compare_environment(resumed: Resumed, before: Mapping[str, Any], now: Mapping[str, Any], display: Display) -> None:
    """Of environment.json, of the run and as it would be now. Other data or starting weights are refused unless
    allowed; another machine or library is said, as the last bits may differ. Raises CheckpointError."""
    found = [("data", line) for line in _data_differences(before, now)]
    if before.get("weights") != now["weights"]:
        found.append(("weights", "the weights that it starts from are others than those of the run"))
    if refused := [(key, line) for key, line in found if key not in resumed.allowed]:
        raise changed(resumed.run, [line for _, line in refused], [key for key, _ in refused])
    for _, line in found:
        display.warn(f"resumed all the same: {line}")
    machine = ["processor", "threads", "device", "packages"]
    others = [text for key in machine for _, text in _differences({key: before.get(key)}, {key: now[key]})]
    if others:
        display.warn(f"another machine or other libraries, so the last bits may differ: {shown(others, 6)}")


def _summary(run: Path, verb: str) -> dict[str, Any]:
    if not run.is_dir():
        what = "is a file, not a run folder" if run.exists() else "no such run folder"
        raise CheckpointError(f"{printable(str(run))}: {what}; `transferctl runs` shows them")
    if lock.is_held(run):
        raise lock.held_by(run)
    if not (run / "spec.yaml").is_file():
        raise CheckpointError(f"{run}: has no spec.yaml: it is no run, or was stopped before it began; start it anew")
    try:
        summary = dict(jsontext.read(run / "summary.json"))
        found = summary["verb"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{run}/summary.json: cannot be read: {error}; start the run anew") from None
    if found != verb:
        way = (
            f"go on with it by `transferctl {found} --resume`"
            if found in RESUMABLE
            else "only pretrain, extract, finetune and sweep can be resumed"
        )
        raise CheckpointError(f"{run}: is a run of {printable(str(found))}, not of {verb}; {way}")
    return summary


def _settings(file: SpecFile) -> dict[str, Any]:
    return file.spec.model_dump(mode="json", by_alias=True)


def _differences(before: Any, now: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, what it was and is) of every leaf that differs."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for name in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}".lstrip("."))
    elif before != now:
        yield key, f"{key}: {_text(before)} in the run, {_text(now)} now"


def _text(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= 80 else f"{text[:77]}…"


def _is_allowed(key: str, allowed: Collection[str]) -> bool:
    names = [name for one in allowed for name in (one, *MEANT_BY.get(one, ()))]
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _refuse_unknown(allowed: Sequence[str]) -> None:
    """A mistyped --allow would allow nothing, in silence."""
    from transferctl.spec import Spec

    fields = {field.alias or name for name, field in Spec.model_fields.items()}
    for name in allowed:
        if name.split(".")[0] not in {*fields, "data", "weights"}:
            raise SpecError([Problem("", "is no setting, nor data or weights", f"--allow {name}")])


def _data_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    listings = _mapping(before.get("data")), now["data"]
    files = _mapping(before.get("files")), now["files"]
    for name in dict.fromkeys([*listings[0], *listings[1]]):
        was, is_now = (listing.get(name) for listing in listings)
        facts, facts_now = (_mapping(one.get(name)) for one in files)
        if was is None or is_now is None:
            yield f"{name}: {'is new' if was is None else 'is gone'}"
        elif counts := list(_differences(facts.get("samples"), facts_now.get("samples"))):
            yield f"{name}, samples of {shown([text for _, text in counts])}"
        elif was != is_now:
            yield f"{name}: its samples have other names or labels"
        elif sizes := list(_differences(facts.get("bytes"), facts_now.get("bytes"), "bytes of its files")):
            yield f"{name}, {sizes[0][1]}"
        elif facts.get("written") != facts_now.get("written"):
            yield f"{name}: some of its files have been written since"


def _mapping(value: Any) -> Mapping[str, Any]:
    """environment.json may come from anyone."""
    return value if isinstance(value, Mapping) else {}
