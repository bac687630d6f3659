"""Whether weights have learnt from the very samples that they are now ranked on, as far as their runs tell."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transferctl import jsontext, runs, yamlfile
from transferctl.data import Split
from transferctl.errors import SpecError
from transferctl.spec import Spec, WeightsFile

MOST_RUNS = 50  # that follow from each other


@dataclass(frozen=True)
class Learnt:
    """backbone, head: whether these samples, or others of the same folder, taught them."""

    backbone: bool = False
    head: bool = False


def learnt_from(spec: Spec, train: Split) -> Learnt:
    """Of the spec's backbone.weights: the run that they are of, the run that this one started from, and so on."""
    fingerprint, found, first = train.fingerprint(), Learnt(), _weights_run(spec)
    run = first
    for _ in range(MOST_RUNS):
        if run is None:
            break
        verb, there = runs.verb_of(run), _spec_of(run)
        seen = runs.data_fingerprints(run)
        same_target = there is not None and there.target.train == spec.target.train
        target = fingerprint == seen.get("target.train") or same_target
        source = fingerprint == seen.get("source.train")
        by_backbone = (verb == "finetune" and target) or (verb in ("finetune", "pretrain") and source)
        by_head = run == first and (by_backbone or (verb == "extract" and target))
        found = Learnt(found.backbone or by_backbone, found.head or by_head)
        run = _before(run, there, verb)
    return found


def _before(run: Path, spec: Spec | None, verb: str | None) -> Path | None:
    """The run whose weights this one began with; of interpolated weights the run that they lie on the way of."""
    if verb == "eval":
        try:
            return Path(jsontext.read(run / "summary.json")["evaluated"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    return None if spec is None else spec.from_run or _weights_run(spec)


def _weights_run(spec: Spec) -> Path | None:
    return spec.backbone.weights.path if isinstance(spec.backbone.weights, WeightsFile) else None


def _spec_of(run: Path) -> Spec | None:
    try:
        return yamlfile.load(run / "spec.yaml").spec
    except SpecError:  # a file of weights, a run from elsewhere
        return None
