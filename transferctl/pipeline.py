"""From a spec to what a verb works with: data, model, device. Everything inferred is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from transferctl import (
    backbonetext,
    checkpoint,
    data,
    device,
    grouping,
    loaders,
    plugins,
    preprocess,
    runs,
    weights,
    yamlfile,
)
from transferctl.backbonetext import DEFAULT_LIBRARY
from transferctl.contracts import Task
from transferctl.data import DomainData, Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, SpecError
from transferctl.loaders import Audit, BrokenSamples
from transferctl.model import BatchNorm, TransferModel, preprocessing_of, restore
from transferctl.objective import DomainLoss
from transferctl.preprocess import Preprocessing
from transferctl.settings import Settings
from transferctl.spec import BackboneSettings, SourceSettings, Spec, WeightsFile
from transferctl.trainsettings import AugmentSettings, TrainingSettings
from transferctl.wording import shown

Names = Sequence[tuple[str, ...]]


@dataclass(frozen=True)
class Pretrained:
    """A backbone as it starts. head: the pretrained one, with all names (id, name) of each of its outputs."""

    backbone: Any
    head: nn.Module | None
    head_names: Names
    preprocessing: Preprocessing
    origin: str
    restored: TransferModel | None = None


def load_target(spec: Spec, display: Display) -> DomainData:
    """The target's splits, broken samples taken out if the spec says so. Raises DataError, SpecError."""
    target = spec.target
    domain = data.load_domain(target.train, target.val, target.test, spec.seed, domain="target")
    say_data(domain, "target", display)
    check_head_size(spec, domain.classes)
    return _balanced(_readable(spec, domain, "target", display), target.balance)


def load_training(spec: Spec, display: Display) -> DomainData:
    """The target's training samples alone, those that `load_target` gives; what is for validation and test is not
    looked at, nor need it be there. Raises DataError."""
    held_out = spec.target.val if isinstance(spec.target.val, float) else "none"
    domain = data.load_domain(spec.target.train, held_out, None, spec.seed, domain="target")
    training = replace(domain, val=domain.val.rows(np.arange(0)))
    say_data(training, "target", display)
    return _readable(spec, training, "target", display)


def load_source(spec: Spec, display: Display) -> DomainData:
    if spec.source is None:
        raise SpecError.at("source", "is missing, and there is nothing to pretrain on without it")
    domain = data.load_domain(spec.source.train, spec.source.val, None, spec.seed, domain="source")
    say_data(domain, "source", display)
    return _balanced(_readable(spec, domain, "source", display), spec.source.balance)


def _balanced(domain: DomainData, balance: str) -> DomainData:
    return replace(domain, train=replace(domain.train, balanced=balance == "sampling"))


def say_data(domain: DomainData, name: str, display: Display) -> None:
    sizes = ", ".join(f"{len(split)} {split.name}" for split in domain.splits())
    display.note(f"{name}: {len(domain.classes)} classes ({shown(domain.classes, 10)}); {sizes}")
    for note in domain.notes:
        display.warn(note)


def check_head_size(spec: Spec, classes: Sequence[str]) -> None:
    if spec.head.size not in ("auto", len(classes)):
        message = f"is {spec.head.size}, but target.train has {len(classes)} classes; write auto"
        raise SpecError.at("head.size", message)


def _readable(spec: Spec, domain: DomainData, name: str, display: Display) -> DomainData:
    if spec.on_bad_sample == "stop":
        return domain
    audits = [loaders.audit(split, loaders.workers_for(spec.workers, split), display) for split in domain.splits()]
    return without_broken(domain, name, audits, display)


def without_broken(domain: DomainData, name: str, audits: Sequence[Audit], display: Display) -> DomainData:
    """The domain less its broken samples, each named. Raises DataError where too little is left."""
    kept = {audit.split.name: readable_rows(audit, f"{name}.{audit.split.name}", display) for audit in audits}
    missing = np.flatnonzero(grouping.counts(kept["train"].labels, len(domain.classes)) == 0)
    if len(missing):
        lost = shown([domain.classes[i] for i in missing])
        raise DataError(f"{name}.train: no readable training sample is left of {lost}")
    skipped = sum(len(audit.broken) for audit in audits)
    return replace(domain, train=kept["train"], val=kept.get("val", domain.val), test=kept.get("test"), skipped=skipped)


def readable_rows(audit: Audit, name: str, display: Display) -> Split:
    """The split less its broken samples, each named. Raises DataError where none is left."""
    split, broken = audit.split, audit.broken
    for sample in broken.values():
        display.warn(f"skipped: {sample}")
    if broken:
        display.warn(f"{name}: {len(broken)} of {len(split)} samples skipped")
    if len(broken) == len(split):
        raise DataError(f"{name}: no readable sample is left")
    return split.without(broken)


def read_ahead(splits: Sequence[Split], spec: Spec, display: Display) -> None:
    """Read what training looks at late, so that a broken image does not cost the training before it."""
    if spec.on_bad_sample == "skip":
        return  # read already
    audits = [loaders.audit(split, loaders.workers_for(spec.workers, split), display) for split in splits]
    if broken := [sample for audit in audits for sample in audit.broken.values()]:
        raise loaders.broken_error(broken)


@contextmanager
def naming_all_broken(splits: Sequence[Split], spec: Spec, display: Display) -> Iterator[None]:
    """Once a broken sample stops what is inside, every sample is read, so that one run names them all."""
    try:
        yield
    except BrokenSamples:
        display.note("a sample cannot be read; looking at all, to name every such one")
        read_ahead(splits, spec, display)
        raise


def compare_with_run(run: Path, domain: str, val: object, split: Split, display: Display) -> None:
    """The split must be the one that an earlier run saw, if it is held out of training data (`val` a fraction):
    held out by another seed, or of a folder that has changed, it may hold images which that run trained on.

    Raises DataError for such a hold-out; other data that has changed is said."""
    name = f"{domain}.{split.name}"
    seen = runs.data_fingerprints(run).get(name)
    if seen is None and domain == "source" and runs.verb_of(run) == "extract":
        return  # which does not look at the source
    if seen is None and split.name == "test" and f"{domain}.train" in runs.data_fingerprints(run):
        return  # it had no test data
    if seen is None:
        display.warn(f"{run}/environment.json does not say what {name} held; it may have changed")
    elif split.fingerprint() != seen and split.name == "val" and isinstance(val, float):
        raise DataError(
            f"{name}: is not what {run} held out: the seed, {domain}.val or the files of {domain}.train differ, and "
            f"some of these images may have been trained on there. Use its seed and data, or name other data as "
            f"{domain}.val (eval: --data PATH)"
        )
    elif split.fingerprint() != seen:
        display.warn(f"{name}: its images or labels are not those that {run} had")


def refuse_reused_hold_out(spec: Spec, target: DomainData, display: Display) -> None:
    """Weights from a fine-tuning run on the same training data (or interpolated from one, which `eval` makes): what
    is held out now must be what it held out.

    Raises DataError, as `compare_with_run` does."""
    weights_of = spec.backbone.weights
    if not isinstance(weights_of, WeightsFile) or runs.verb_of(weights_of.path) not in ("finetune", "eval"):
        return
    try:
        before = yamlfile.load(weights_of.path / "spec.yaml").spec
    except SpecError:
        return  # not ours to judge: its data may be gone
    if before.target.train == spec.target.train:
        compare_with_run(weights_of.path, "target", spec.target.val, target.val, display)


def from_random_weights(spec: Spec) -> Spec:
    return spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"weights": "none"})})


def load_backbone(spec: Spec) -> Pretrained:
    """The backbone with its starting weights and its own head. Raises SpecError, CheckpointError."""
    settings = spec.backbone
    if settings.library == DEFAULT_LIBRARY and "/" in settings.name:
        raise SpecError.at("backbone.name", backbonetext.no_such_library(settings.name))
    plugin = plugins.load("backbones", settings.library)
    chosen = settings.weights
    assert chosen != "source", "pretrain.ensure_source replaces it before anything is loaded"
    if isinstance(chosen, WeightsFile):
        if checkpoint.is_run(chosen.path):
            return _from_run(spec, settings, chosen.path)
        return _from_file(spec, settings, plugin, chosen)
    if chosen == "none":
        preprocessing = preprocess.resolve(spec.preprocess, plugin.default_preprocessing(settings.name))
        with preprocess.keyed_randomness(spec.seed, "backbone"):
            backbone, _ = plugin.build(settings.name, image_size=preprocessing.crop)
        return Pretrained(backbone, None, (), preprocessing, "random weights")
    preprocessing = preprocess.resolve(spec.preprocess, plugin.published_preprocessing(settings.name, chosen))
    found = plugin.published(settings.name, chosen)
    backbone, head = plugin.build(settings.name, image_size=preprocessing.crop, state=found.state, label=found.origin)
    return Pretrained(backbone, head, found.names if head else (), preprocessing, found.origin)


def _from_file(spec: Spec, settings: BackboneSettings, plugin: Any, file: WeightsFile) -> Pretrained:
    preprocessing = preprocess.resolve(spec.preprocess, plugin.default_preprocessing(settings.name))
    state, changes = weights.read(file.path)
    backbone, head = plugin.build(settings.name, image_size=preprocessing.crop, state=state, label=str(file.path))
    names: Names = weights.read_classes(file.classes) if file.classes else ()
    outputs = _outputs(head)
    if names and outputs != len(names):
        raise CheckpointError(
            f"{file.classes}: names {len(names)} classes; the head of {file.path} has {outputs or 'none'}"
        )
    said = "; ".join([*changes, *(["no head"] if head is None else [])])
    return Pretrained(backbone, head, names, preprocessing, f"{file.path} ({said})" if said else str(file.path))


def _outputs(head: nn.Module | None) -> int:
    weights_of = [p for name, p in head.named_parameters() if name.endswith("weight")] if head else []
    return int(weights_of[-1].shape[0]) if weights_of else 0


def _from_run(spec: Spec, settings: BackboneSettings, run: Path) -> Pretrained:
    """A run of ours: its backbone, and as source head its source head, or its target head without one."""
    saved = checkpoint.load(run)
    refuse_another_backbone(saved, settings, run)
    preprocessing = preprocess.resolve(spec.preprocess, preprocessing_of(saved))
    model = restore(saved, preprocessing)
    domain = "source" if "source" in model.heads else "target"
    names = model.output_names(domain)
    return Pretrained(model.backbone, model.heads[domain], names, preprocessing, str(saved.path), model)


def refuse_another_backbone(saved: checkpoint.Checkpoint, asked: BackboneSettings, run: Path) -> None:
    """Raises CheckpointError. Libraries may call different networks by one name."""
    for key, held, wanted in (
        ("library", saved.manifest.get("library"), asked.library),
        ("name", saved.manifest.get("architecture"), asked.name),
    ):
        if held != wanted:
            of = "a network of " if key == "library" else "a "
            raise CheckpointError(f"{run}: holds {of}{held}, not {of}{wanted}; change backbone.{key}")


def transfer_model(spec: Spec, start: Pretrained, classes: Sequence[str], display: Display) -> TransferModel:
    """The pretrained backbone and head, and a new head for the target's classes."""
    model = TransferModel(spec.backbone.library, start.backbone, start.preprocessing, spec.task)
    model.add_new_head("target", classes, hidden=spec.head.hidden, dropout=spec.head.dropout, seed=spec.seed)
    keep_source_head(model, start)
    display.note(f"backbone: {spec.backbone.name} from {start.origin}")
    for note in start.backbone.notes:
        display.note(note)
    display.note(f"preprocessing: {start.preprocessing}")
    return model


def keep_source_head(model: TransferModel, start: Pretrained) -> None:
    """The pretrained head stays with the model as its source head, with all its names if they are known: a later
    stage may find the source folders by any of them."""
    if start.head is None:
        return
    names = [names[0] for names in start.head_names] or [str(i) for i in range(_outputs(start.head))]
    made_of: dict[str, Any] = {"kind": "pretrained"}
    if any(len(names_of) > 1 for names_of in start.head_names):
        made_of["names"] = [list(names_of) for names_of in start.head_names]
    if start.restored is not None:
        made_of = start.restored.heads_made_of["source" if "source" in start.restored.heads else "target"]
    model.add_made_head("source", start.head, names, made_of | {"named": bool(start.head_names)})


def say_unused(spec: Spec, keys: Sequence[str], verb: str, display: Display) -> None:
    """One spec serves several verbs; what this one does not read is said, not ignored in silence. keys: names of
    fields, dotted (`source.batch_size`)."""
    if unused := [written for key in keys if (written := _written(spec, *key.split(".")))]:
        display.note(f"{verb} does not use: {', '.join(unused)}")


def _written(settings: Settings, key: str, *within: str) -> str | None:
    """The key as people write it, if its value is not the default."""
    value, field = getattr(settings, key), type(settings).model_fields[key]
    if within:
        inner = _written(value, *within) if value is not None else None
        return f"{key}.{inner}" if inner else None
    return None if value == field.get_default(call_default_factory=True) else field.alias or key


def chosen_device(spec: Spec, display: Display) -> Compute:
    compute = device.choose(spec.device, spec.precision)
    display.note(f"device: {compute}")
    return compute


def task_of(spec: Spec) -> Task:
    task: Task = plugins.load("tasks", spec.task)  # a module of functions
    return task


def augmentation(settings: TrainingSettings | SourceSettings) -> AugmentSettings | None:
    return settings.augment if isinstance(settings.augment, AugmentSettings) else None


def batchnorm(spec: Spec) -> BatchNorm:
    from_random = spec.backbone.weights == "none" and spec.from_run is None
    auto = "train" if from_random else "frozen"
    return BatchNorm(auto if spec.batchnorm.thawed == "auto" else spec.batchnorm.thawed, spec.batchnorm.frozen)


def domain_loss(
    label_smoothing: float, balance: str, train: Split, classes: Sequence[str], compute: Compute
) -> DomainLoss:
    """With `balance: weights` a class weighs n/(C·n_c), of n samples and C classes that have any: the classes' shares
    of the mean loss are the same (King & Zeng 2001; scikit-learn's "balanced")."""
    if balance != "weights":
        return DomainLoss(label_smoothing)
    counts = grouping.counts(train.labels, len(classes))
    weights = len(train) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    return DomainLoss(label_smoothing, torch.tensor(weights, dtype=torch.float32, device=compute.device))
