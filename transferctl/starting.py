"""The model as fine-tuning starts it: from a backbone's weights, or from a run, target head included."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from transferctl import checkpoint, penalising, pipeline, preprocess, runs, yamlfile
from transferctl.data import DomainData
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, Problem, SpecError
from transferctl.model import TransferModel, preprocessing_of, restore
from transferctl.pipeline import Names
from transferctl.spec import HeadSettings, SourceSettings, Spec, WeightsFile
from transferctl.wording import shown


@dataclass(frozen=True)
class Start:
    """source: the source data, its labels mapped to the outputs of the source head. origin: where it starts, for
    people. fresh_heads: domains whose heads have random weights."""

    model: TransferModel
    source: DomainData | None
    origin: str
    fresh_heads: tuple[str, ...]


def model(spec: Spec, target: DomainData, source: DomainData | None, display: Display) -> Start:
    """The model that fine-tuning starts from.

    Raises CheckpointError, SpecError and DataError where the spec, the weights and the data do not fit together.
    """
    names: Names
    if spec.from_run:
        started, origin = _continue_from(spec.from_run, spec, target, display)
        names = started.output_names("source")
    else:
        pipeline.refuse_reused_hold_out(spec, target, display)
        start = pipeline.load_backbone(spec)
        started, origin = pipeline.transfer_model(spec, start, target.classes, display), start.origin
        names = start.head_names
    fresh: tuple[str, ...] = () if spec.from_run else ("target",)
    if source:
        source, is_new = align_source(source, started, names, spec.seed, display)
        weights_of = None if spec.from_run else spec.backbone.weights
        if is_new and isinstance(weights_of, WeightsFile) and weights_of.classes:
            raise DataError(
                f"source.train: none of its classes ({shown(source.classes)}) is in {weights_of.classes}; name its "
                "folders as that file does, by id or name, or remove backbone.weights.classes"
            )
        fresh += ("source",) if is_new else ()
        if is_new and spec.source and not spec.source.rehearsal and not spec.head_first:
            message = (
                "is false, so nothing would train the new source head; name the classes of the pretrained one with "
                "backbone.weights.classes, or train a new one with head_first"
            )
            raise SpecError.at("source.rehearsal", message)
    if source and spec.source:
        _compare_source(spec, spec.source, source, display)
    if not penalising.source_head_trains(spec) and not ("source" in fresh and spec.head_first):
        started.freeze_head("source")
    penalising.refuse_unmet_needs(spec, started, fresh)
    return Start(started, source, origin, fresh)


def _compare_source(spec: Spec, settings: SourceSettings, source: DomainData, display: Display) -> None:
    """What is held out of the source now must be what the run that it starts from held out: `before` would be scored
    on images that were trained on. Raises DataError, as `compare_with_run` does."""
    weights_of = spec.backbone.weights
    run = spec.from_run or (weights_of.path if isinstance(weights_of, WeightsFile) else None)
    if run is None or f"source.{source.val.name}" not in runs.data_fingerprints(run) or not len(source.val):
        return
    try:
        before = yamlfile.load(run / "spec.yaml").spec.source
    except SpecError:
        return  # not ours to judge: its data may be gone
    if before and before.train == settings.train:
        pipeline.compare_with_run(run, "source", settings.val, source.val, display)


def _continue_from(run: Path, spec: Spec, target: DomainData, display: Display) -> tuple[TransferModel, str]:
    """A run's best model. Its architecture, head and class map must be the spec's; its preprocessing holds
    where the spec does not say otherwise."""
    saved = checkpoint.load(run)
    its_own = preprocessing_of(saved)
    model = restore(saved, preprocess.resolve(spec.preprocess, its_own))
    if "target" not in model.heads:
        raise CheckpointError(f"{run}: has no target head (is it a pretrain run? then use backbone.weights: {run})")
    pipeline.refuse_another_backbone(saved, spec.backbone, run)
    if model.classes["target"] != target.classes:
        raise CheckpointError(
            f"{run}: its classes ({shown(model.classes['target'], 5)}) are not those of target.train "
            f"({shown(target.classes, 5)}); name data of the same classes, or start without `from`"
        )
    _refuse_another_head(spec.head, head_settings(model))
    pipeline.compare_with_run(run, "target", spec.target.val, target.val, display)
    display.note(f"start: {saved.path}, target head included; backbone.weights is not used")
    note = "as in that run" if model.preprocessing == its_own else f"as the spec says; that run had {its_own}"
    display.note(f"preprocessing: {model.preprocessing} ({note})")
    return model, str(saved.path)


def head_settings(model: TransferModel) -> HeadSettings:
    made_of = model.heads_made_of["target"]
    return HeadSettings(size=made_of["outputs"], hidden=tuple(made_of["hidden"]), dropout=made_of["dropout"])


def _refuse_another_head(asked: HeadSettings, found: HeadSettings) -> None:
    """A head that the spec describes and the run does not have; what the spec leaves out is the run's."""
    problems = [
        Problem(f"head.{key}", f"is {getattr(asked, key)}, but the head of the run that it starts from has "
                f"{getattr(found, key)}; remove it, or start without `from`")
        for key in ("hidden", "dropout")
        if key in asked.model_fields_set and getattr(asked, key) != getattr(found, key)
    ]  # fmt: skip
    if problems:
        raise SpecError(problems)


def align_source(
    domain: DomainData, model: TransferModel, names: Names, seed: int, display: Display
) -> tuple[DomainData, bool]:
    """Map the source folders to the pretrained head's outputs, by id or name; a new head (True) where none matches."""
    outputs = outputs_called(domain.classes, names, "source.train")
    if outputs is None:
        why = "no class name of the pretrained head is one of the source data's" if names else "the weights bring none"
        display.note(f"source head: new, as {why}")
        model.add_new_head("source", domain.classes, hidden=(), dropout=0.0, seed=seed)
        return domain, True
    display.note(f"source head: the pretrained one; {len(outputs)} of its {len(names)} classes have source data")
    train, val = (split.relabelled(outputs) for split in (domain.train, domain.val))
    return replace(domain, classes=model.classes["source"], train=train, val=val), False


def outputs_called(classes: Sequence[str], names: Names, label: str) -> np.ndarray | None:
    """int64 [C]: for each class the head's output that is called so, by id or name; None where there is none for any.

    label: of the data. Raises DataError where the head knows some of the classes alone, or several outputs by a name.
    """
    outputs: dict[str, set[int]] = {}
    for i, output in enumerate(names):
        for name in output:
            outputs.setdefault(name, set()).add(i)
    known = [name for name in classes if name in outputs]
    if not known:
        return None
    if unknown := sorted(set(classes) - set(known)):
        near = difflib.get_close_matches(unknown[0], outputs, 1, 0.5)
        hint = f" (is {unknown[0]!r} meant to be {near[0]!r}?)" if near else ""
        raise DataError(
            f"{label}: the pretrained head has no class {shown(unknown)}{hint}; its classes are "
            f"{shown([names_of[0] for names_of in names])}; rename those folders, or leave them out with `classes`"
        )
    if shared := [name for name in known if len(outputs[name]) > 1]:
        message = f"several outputs of the pretrained head are called {shown(shared)}"
        raise DataError(f"{label}: {message}; name those folders by id, or remove them")
    return np.array([min(outputs[name]) for name in classes], dtype=np.int64)
