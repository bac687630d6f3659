"""The plan before any training: what would be trained on what, and everything wrong with the data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch.nn.modules.batchnorm import _BatchNorm

from transferctl import data, loaders, objective, pipeline, starting
from transferctl.data import DomainData
from transferctl.display import Display
from transferctl.errors import DataError, TransferctlError
from transferctl.loaders import Audit
from transferctl.model import TransferModel, in_words
from transferctl.spec import Spec
from transferctl.wording import counted, printable

SHOWN_DUPLICATES = 10


def run(spec: Spec, display: Display) -> dict[str, Any]:
    """Print the plan and read every sample; then raise what training would, with all data problems at once."""
    problems: list[str] = []
    domains = _survey(spec, problems, display)
    report: dict[str, Any] = {}
    fault: TransferctlError | None = None
    if "target" in domains:
        try:
            report |= _show_plan(spec, domains, display)
        except DataError as error:
            problems.append(str(error))
        except TransferctlError as error:  # told after the data has been read, unless the data is at fault too
            fault = error
    audits = _read_everything(spec, domains, problems, display)
    unreadable = [sample for found in audits.values() for audit in found for sample in audit.broken.values()]
    report["unreadable"] = [str(sample) for sample in unreadable]
    report["duplicates_across_splits"] = [pair for found in audits.values() for pair in duplicates_across(found)]
    for one, other in report["duplicates_across_splits"][:SHOWN_DUPLICATES]:
        display.warn(f"byte-identical in two splits: {printable(one)} and {printable(other)}")
    if (more := len(report["duplicates_across_splits"]) - SHOWN_DUPLICATES) > 0:
        display.warn(f"and {more} more pairs; --json lists all")
    if problems:
        text = "\n".join([*problems, *([str(fault)] if fault else [])])
        raise DataError(text, report)
    if fault:
        raise fault
    display.result("check: training can start")
    return report


def _survey(spec: Spec, problems: list[str], display: Display) -> dict[str, DomainData]:
    """The domains that can be listed, and what is wrong with their classes and splits."""
    found: dict[str, DomainData] = {}
    for name, domain in (("target", spec.target), ("source", spec.source)):
        if domain is None:
            continue
        test = getattr(domain, "test", None)
        listed, faults = data.survey(domain.train, domain.val, test, spec.seed, domain=name)
        problems += faults
        if listed:
            pipeline.say_data(listed, name, display)
            found[name] = listed
    return found


def _show_plan(spec: Spec, domains: Mapping[str, DomainData], display: Display) -> dict[str, Any]:
    target = domains["target"]
    counts = _class_counts(target)
    display.table("Classes", ["class", *(split.name for split in target.splits())], counts)
    pipeline.check_head_size(spec, target.classes)
    compute = pipeline.chosen_device(spec, display)
    model = _model(spec, domains, display)
    display.table(
        f"Stages of {spec.backbone.name} under frozen: {in_words(spec.frozen)}", _STAGE_COLUMNS, stage_rows(model)
    )
    display.table("Plan", ["", ""], _plan(spec, model, str(compute)))
    return {
        "classes": {row[0]: row[1:] for row in counts},
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "notes": [note for domain in domains.values() for note in domain.notes],
    }


def _model(spec: Spec, domains: Mapping[str, DomainData], display: Display) -> TransferModel:
    """As fine-tuning would start, but for stage 0, which is not run: random weights stand in for its result."""
    stage0 = spec.backbone.weights == "source" and not spec.from_run
    source = None if stage0 else domains.get("source")
    start = pipeline.from_random_weights(spec) if stage0 else spec
    model, _, _ = starting.model(start, domains["target"], source, display)
    if stage0 and "source" in domains:
        model.add_new_head("source", domains["source"].classes, hidden=(), dropout=0.0, seed=spec.seed)
    model.freeze(spec.frozen, batchnorm_trains=pipeline.batchnorm_trains(spec))
    return model.train()


def _class_counts(target: DomainData) -> list[list[Any]]:
    known = [split.labels[split.labels >= 0] for split in target.splits()]
    counts = [np.bincount(labels, minlength=len(target.classes)) for labels in known]
    return [[printable(name), *(int(count[i]) for count in counts)] for i, name in enumerate(target.classes)]


_STAGE_COLUMNS = ["stage", "parameters", "trained", "BatchNorm"]
_STATISTICS = {
    frozenset(): "none",
    frozenset({True}): "batch statistics",
    frozenset({False}): "statistics fixed",
    frozenset({True, False}): "partly fixed",
}


def stage_rows(model: TransferModel) -> list[list[Any]]:
    """A row a stage, then the heads: parameters, how many are trained, what BatchNorm's statistics do."""
    parameters = dict(model.backbone.net.named_parameters())
    norms = {name: m.training for name, m in model.backbone.net.named_modules() if isinstance(m, _BatchNorm)}
    rows: list[list[Any]] = []
    for stage in model.backbone.stages():
        own = [p for name, p in parameters.items() if stage.owns(name)]
        trained = sum(p.numel() for p in own if p.requires_grad)
        moving = {training for name, training in norms.items() if stage.owns(name)}
        rows.append([stage.name, sum(p.numel() for p in own), trained, _STATISTICS[frozenset(moving)]])
    for domain, head in sorted(model.heads.items()):
        sizes = [(p.numel(), p.requires_grad) for p in head.parameters()]
        rows.append([f"{domain} head", sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained), "none"])
    return rows


def _plan(spec: Spec, model: TransferModel, compute: str) -> list[list[str]]:
    target_weight = 1.0 if spec.target_weight is None else spec.target_weight
    weights = {name: settings.weight for name, settings in spec.penalties.chosen().items()}
    symbols = objective.in_symbols(spec.source is not None, target_weight, weights)
    stage0 = ["stage 0", f"pretrain on source: min over θ of L_S, {counted(spec.pretrain.epochs, 'epoch')}"]
    return [
        *([stage0] if spec.backbone.weights == "source" else []),
        ["extract", "trains the target head alone: min over the head of L_T on frozen features"],
        ["finetune", f"trains what the table says: {symbols}"],
        ["L_S, L_T", "mean cross-entropy over the samples of source and of target"],
        ["preprocessing", str(model.preprocessing)],
        [
            "optimizer",
            f"{spec.optimizer.name}, lr {spec.optimizer.lr:g}, {spec.schedule}, "
            f"{counted(spec.epochs, 'epoch')} of batches ≤ {spec.batch_size}",
        ],
        ["device", compute],
    ]


def _read_everything(
    spec: Spec, domains: Mapping[str, DomainData], problems: list[str], display: Display
) -> dict[str, list[Audit]]:
    """Every split of every domain, read once; what stops training there goes to `problems`."""
    audits = {
        name: [
            loaders.audit(split, loaders.workers_for(spec.workers, split), display, hashed=True)
            for split in domain.splits()
        ]
        for name, domain in domains.items()
    }
    broken = [sample for found in audits.values() for audit in found for sample in audit.broken.values()]
    if broken and spec.on_bad_sample == "stop":
        problems.append(str(loaders.broken_error(broken)))
    elif broken:
        for name, domain in domains.items():
            try:
                pipeline.without_broken(domain, name, audits[name], display)
            except DataError as error:
                problems.append(str(error))
    return audits


def duplicates_across(audits: Sequence[Audit]) -> list[tuple[str, str]]:
    """Pairs of samples of different splits with the same content: the score would be flattered."""
    first: dict[bytes, tuple[str, str]] = {}
    pairs = []
    for audit in audits:
        for position, row in enumerate(audit.digests):
            if position in audit.broken:
                continue  # reported as unreadable already
            name = audit.split.sample_name(position)
            split, seen = first.setdefault(row.tobytes(), (audit.split.name, name))
            if split != audit.split.name:
                pairs.append((seen, name))
    return pairs
