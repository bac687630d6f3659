"""Whether weights have learnt from the very samples that they are now ranked on, as far as their runs tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transferctl import jsontext, runs, yamlfile
from transferctl.data import Split
from transferctl.errors import SpecError
from transferctl.settings import DataSettings
from transferctl.spec import Spec, WeightsFile

MOST_RUNS = 50  # that follow from each other
CHOICE = {"classes", "per_class", "exclude", "outside"}  # settings that take some samples of the same data


@dataclass(frozen=True)
class Learnt:
    """backbone, head: whether these samples, or others of the same data, taught them."""

    backbone: bool = False
    head: bool = False


def learnt_from(spec: Spec, train: Split) -> Learnt:
    """Of the spec's backbone.weights: the run that they are of, the run that this one started from, and so on."""
    fingerprint, found, has_its_head = train.fingerprint(), Learnt(), True
    run = _weights_run(spec)
    for _ in range(MOST_RUNS):
        if run is None:
            break
        verb, there = runs.verb_of(run), _spec_of(run)
        seen = runs.data_fingerprints(run)
        target, source = (seen.get(f"{domain}.train") == fingerprint for domain in ("target", "source"))
        if there is not None:
            target = target or _shares_samples(there.target.train, spec.target.train)
            source = source or (there.source is not None and _shares_samples(there.source.train, spec.target.train))
        by_backbone = (verb == "finetune" and target) or (verb in ("finetune", "pretrain") and source)
        by_head = has_its_head and (by_backbone or (verb == "extract" and target))
        found = Learnt(found.backbone or by_backbone, found.head or by_head)
        has_its_head = has_its_head and verb == "eval"  # interpolated weights have the head that was evaluated
        run = _before(run, there, verb)
    return found


def _shares_samples(one: DataSettings, other: DataSettings) -> bool:
    """Whether they choose from the same data, unless it is by classes of which they have none in common."""
    if one.classes and other.classes and not {*one.classes} & {*other.classes}:
        return False
    return _unchosen(one) == _unchosen(other)


def _unchosen(data: DataSettings) -> DataSettings:
    choice = {name: field.default for name, field in type(data).model_fields.items() if name in CHOICE}
    return data.model_copy(update=choice)


def _before(run: Path, spec: Spec | None, verb: str | None) -> Path | None:
    """The run whose weights this one began with; of interpolated weights the run that they lie on the way of."""
    if verb == "eval":
        try:
            return Path(jsontext.read(run / "summary.json")["evaluated"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None if spec is None else spec.from_run or _weights_run(spec)


def _weights_run(spec: Spec) -> Path | None:
    """The run that the weights are of; of a file in a run's folder, which `export` writes there, that run."""
    if not isinstance(spec.backbone.weights, WeightsFile):
        return None
    path = spec.backbone.weights.path
    return next((folder for folder in (path, *path.parents) if runs.verb_of(folder) is not None), None)


def _spec_of(run: Path) -> Spec | None:
    try:
        return yamlfile.load(run / "spec.yaml").spec
    except SpecError:  # a file of weights, a run from elsewhere
        return None
