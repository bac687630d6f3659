"""The plan before any training: what would be trained on what, and everything wrong with the data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from transferctl import loaders, objective, pipeline
from transferctl.contracts import BadSample
from transferctl.data import DomainData, Split
from transferctl.display import Display
from transferctl.images import printable
from transferctl.loaders import Unreadable
from transferctl.model import TransferModel
from transferctl.spec import Spec


def run(spec: Spec, display: Display) -> dict[str, Any]:
    """Print the plan; then read every sample. Raises what training would raise, data problems last."""
    target = pipeline.load_target(spec.model_copy(update={"on_bad_sample": "stop"}), display)
    compute = pipeline.chosen_device(spec, display)
    stage0 = spec.backbone.weights == "source"
    start = pipeline.load_backbone(_random_instead_of_source(spec))
    model = pipeline.transfer_model(spec, start, target.classes, display)
    model.freeze(spec.frozen, batchnorm_trains=pipeline.batchnorm_trains(spec))
    counts = _class_counts(target)
    display.table("Classes", ["class", *(split.name for split in target.splits())], counts)
    display.table(f"Stages of {spec.backbone.name} under frozen: {spec.frozen}", _STAGE_COLUMNS, stage_rows(model))
    display.table("Plan", ["", ""], _plan(spec, model, str(compute), stage0))
    problems = _read_everything(spec, target, display)
    report: dict[str, Any] = {
        "classes": {row[0]: row[1:] for row in counts},
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "unreadable": [str(sample) for sample in problems],
        "duplicates_across_splits": duplicates_across(target.splits()),
        "notes": list(target.notes),
    }
    for pair in report["duplicates_across_splits"][:10]:
        display.warn(f"byte-identical in two splits: {printable(pair[0])} and {printable(pair[1])}")
    if problems and spec.on_bad_sample == "stop":
        raise loaders.broken_error(problems)
    for sample in problems:
        display.warn(f"will be skipped: {sample}")
    display.result("check: training can start")
    return report


def _random_instead_of_source(spec: Spec) -> Spec:
    if spec.backbone.weights != "source":
        return spec
    return spec.model_copy(update={"backbone": spec.backbone.model_copy(update={"weights": "none"})})


def _class_counts(target: DomainData) -> list[list[Any]]:
    counts = [np.bincount(split.labels, minlength=len(target.classes)) for split in target.splits()]
    return [[printable(name), *(int(count[i]) for count in counts)] for i, name in enumerate(target.classes)]


_STAGE_COLUMNS = ["stage", "parameters", "trained", "BatchNorm"]


def stage_rows(model: TransferModel) -> list[list[Any]]:
    """A row a stage, then the heads: parameters, how many are trained, what BatchNorm's statistics do."""
    parameters = dict(model.backbone.net.named_parameters())
    buffers = [name for name, _ in model.backbone.net.named_buffers() if name.endswith("running_mean")]
    rows: list[list[Any]] = []
    for stage in model.backbone.stages():
        own = [p for name, p in parameters.items() if stage.owns(name)]
        trained = sum(p.numel() for p in own if p.requires_grad)
        has_batchnorm = any(stage.owns(name) for name in buffers)
        moving = trained and model.batchnorm_trains
        statistics = ("batch statistics" if moving else "statistics fixed") if has_batchnorm else "none"
        rows.append([stage.name, sum(p.numel() for p in own), trained, statistics])
    head = sum(p.numel() for p in model.heads["target"].parameters())
    return [*rows, ["target head", head, head, "none"]]


def _plan(spec: Spec, model: TransferModel, compute: str, stage0: bool) -> list[list[str]]:
    target_weight = 1.0 if spec.target_weight is None else spec.target_weight
    weights = {name: settings.weight for name, settings in spec.penalties.chosen().items()}
    symbols = objective.in_symbols(spec.source is not None, target_weight, weights)
    rows = [["stage 0", f"pretrain on source: min over θ of L_S, {spec.pretrain.epochs} epochs"]] if stage0 else []
    return [
        *rows,
        ["extract", "trains the target head alone: min over the head of L_T on frozen features"],
        ["finetune", f"trains what the table says: {symbols}"],
        ["preprocessing", str(model.preprocessing)],
        [
            "optimizer",
            f"{spec.optimizer.name}, lr {spec.optimizer.lr:g}, {spec.schedule}, "
            f"{spec.epochs} epochs of batches ≤ {spec.batch_size}",
        ],
        ["device", compute],
    ]


def _read_everything(spec: Spec, target: DomainData, display: Display) -> list[Unreadable]:
    found: list[Unreadable] = []
    for split in target.splits():
        workers = loaders.workers_for(spec.workers, split)
        found += [sample for _, sample in loaders.unreadable(split, workers, display)]
    return found


def duplicates_across(splits: Sequence[Split]) -> list[tuple[str, str]]:
    """Pairs of samples of different splits with the same content: the score would be flattered."""
    first: dict[str, tuple[str, str]] = {}
    pairs = []
    for split in splits:
        for position, index in enumerate(split.indices):
            try:
                digest = split.dataset.content_hash(int(index))
            except BadSample:
                continue  # reported as unreadable already
            name = split.sample_name(position)
            seen = first.setdefault(digest, (split.name, name))
            if seen[0] != split.name:
                pairs.append((seen[1], name))
    return pairs
