"""The plan before any training: what would be trained on what, and everything wrong with the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transferctl import (
    audit,
    data,
    findings,
    frozenwork,
    grouping,
    heads,
    loaders,
    penalising,
    pipeline,
    plan,
    starting,
    tracking,
)
from transferctl.audit import Looked
from transferctl.cache.cache import open_cache
from transferctl.data import DomainData
from transferctl.display import Display
from transferctl.errors import DataError, TransferctlError
from transferctl.model import TransferModel, in_words
from transferctl.spec import PenaltiesSettings, Spec
from transferctl.wording import counted, printable


def run(spec: Spec, display: Display) -> dict[str, Any]:
    """Print the plan and read every sample; then raise what training would, with all data problems at once."""
    tracking.refuse_missing(spec)
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
    unreadable = [sample for found in audits.values() for looked in found for sample in looked.broken.values()]
    report["unreadable"] = [str(sample) for sample in unreadable]
    report |= findings.say(domains, audits, _balances(spec), report.get("crop"), display)
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
    heads.refuse_too_few(spec.head, target.train, target.classes, "target.train")
    compute = pipeline.chosen_device(spec, display)
    model = _model(spec, domains, display)
    pipeline.say_unused(spec, plan.unused(spec), "finetune", display)
    stages = plan.stage_rows(spec, model)
    plan.say_idle_rates(spec, stages, display)
    frozen_stages = frozenwork.leading_stages(spec, model.place(compute), compute, display)
    work: list[list[str]] = []
    if frozen_stages:
        work = frozenwork.rows(spec, domains, frozen_stages, open_cache(spec.cache, display.warn))
        display.table(f"Frozen work of finetune, up to {frozen_stages.last}", frozenwork.COLUMNS, work)
    title = f"Stages of {spec.backbone.name} under frozen: {in_words(spec.frozen_by_epoch())}"
    display.table(title, plan.STAGE_COLUMNS, stages)
    display.table("Plan", ["", ""], _plan(spec, model, str(compute)))
    return {
        "classes": {row[0]: row[1:] for row in counts},
        "objective": plan.in_symbols(spec),
        "stages": [dict(zip(plan.STAGE_COLUMNS, row, strict=True)) for row in stages],
        "frozen_work": [dict(zip(frozenwork.COLUMNS, row, strict=True)) for row in work],
        "crop": model.preprocessing.crop,
        "trained_parameters": sum(row[2] for row in stages),
        "notes": [note for domain in domains.values() for note in domain.notes],
    }


def _model(spec: Spec, domains: Mapping[str, DomainData], display: Display) -> TransferModel:
    """As fine-tuning would start, but for stage 0, which is not run: random weights stand in for its result."""
    stage0 = spec.backbone.weights == "source" and not spec.from_run
    source = None if stage0 else domains.get("source")
    start = spec
    if stage0:
        start = pipeline.from_random_weights(spec).model_copy(update={"penalties": PenaltiesSettings()})
    model = starting.model(start, domains["target"], source, display).model
    if stage0 and "source" in domains:
        model.add_new_head("source", domains["source"].classes, hidden=(), dropout=0.0, seed=spec.seed)
        if not penalising.source_head_trains(spec):
            model.freeze_head("source")
    return model


def _class_counts(target: DomainData) -> list[list[Any]]:
    counts = [grouping.counts(split.labels, len(target.classes)) for split in target.splits()]
    return [[printable(name), *(int(count[i]) for count in counts)] for i, name in enumerate(target.classes)]


def _plan(spec: Spec, model: TransferModel, compute: str) -> list[list[str]]:
    stage0 = ["stage 0", f"pretrain on source: min over θ of L_S, {counted(spec.pretrain.epochs, 'epoch')}"]
    needs, chosen = penalising.needs(spec), spec.penalties.chosen()
    return [
        *([stage0] if spec.backbone.weights == "source" else []),
        ["extract", f"trains the target head alone: {plan.extract(spec)}"],
        ["finetune", f"trains what the table says: {plan.in_symbols(spec)}"],
        *([["head first", plan.head_first(spec)]] if spec.head_first else []),
        ["L_S, L_T", "mean cross-entropy over the samples of source and of target"],
        *([f"Ω_{name}", plan.penalty(name, settings, needs[name])] for name, settings in chosen.items()),
        ["preprocessing", str(model.preprocessing)],
        *([["source", plan.source(spec.source)]] if spec.source else []),
        ["optimizer", plan.optimizer(spec)],
        *([["also", also]] if (also := plan.extras(spec)) else []),
        ["device", compute],
        *([["trackers", ", ".join(spec.trackers.chosen())]] if spec.trackers.chosen() else []),
    ]


def _read_everything(
    spec: Spec, domains: Mapping[str, DomainData], problems: list[str], display: Display
) -> dict[str, list[Looked]]:
    """Every split of every domain, read once; what stops training there goes to `problems`."""
    audits = {
        name: [audit.look(split, loaders.workers_for(spec.workers, split), display) for split in domain.splits()]
        for name, domain in domains.items()
    }
    broken = [sample for found in audits.values() for looked in found for sample in looked.broken.values()]
    if broken and spec.on_bad_sample == "stop":
        problems.append(str(loaders.broken_error(broken)))
    elif broken:
        for name, domain in domains.items():
            try:
                pipeline.without_broken(domain, name, audits[name], display)
            except DataError as error:
                problems.append(str(error))
    return audits


def _balances(spec: Spec) -> dict[str, str]:
    return {"target": spec.target.balance, **({"source": spec.source.balance} if spec.source else {})}
