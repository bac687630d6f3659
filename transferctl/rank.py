"""Which backbone: all that are named, on the target's training data, from cached features; nothing is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transferctl import (
    candidates,
    crossvalidation,
    device,
    grouping,
    pipeline,
    plots,
    pretrain,
    ranktables,
    runs,
    standing,
    yamlfile,
)
from transferctl.assessment import Assessed, Assessor
from transferctl.cache.cache import open_cache
from transferctl.candidates import Candidate
from transferctl.data import DomainData
from transferctl.display import Display
from transferctl.errors import CheckpointError, DivergedError, SpecError, is_out_of_memory
from transferctl.runs import Run
from transferctl.spec import Spec
from transferctl.standing import Entrant
from transferctl.wording import counted, shown

USED = {
    "name", "seed", "task", "device", "precision", "compile", "workers", "backbone", "candidates", "preprocess",
    "target", "cache", "on_bad_sample", "report",
}  # fmt: skip
OF_STAGE_0 = {"source", "pretrain"}
INSTEAD = "leave the class out with target.train.classes"
PLOT = "rank.svg"


def run(spec: Spec, texts: Sequence[str], runs_dir: Path, display: Display) -> dict[str, Any]:
    """Rank the spec's backbone and its candidates; or, of texts (`--backbone`), exactly those.

    Raises SpecError for texts that mean nothing, DataError for samples, CheckpointError where no backbone can be used.
    """
    found = candidates.of(spec, texts)
    spec = found.as_spec(spec)
    target = pipeline.load_training(spec, display)
    count = crossvalidation.fold_count(target.train.labels, target.classes, "target.train", INSTEAD)
    _say(spec, found, target, display)
    compute = pipeline.chosen_device(spec, display)
    with (
        runs.start(runs_dir, "rank", spec.name, yamlfile.dump(spec), display) as folder,
        pipeline.naming_all_broken([target.train], spec, display),
    ):
        _describe(folder, spec, target, str(compute))
        most = int(grouping.counts(target.train.labels, len(target.classes)).max())
        folder.summary["without_model"] = "it ranks backbones: its log.txt has the tables, rank.svg the plot"
        folder.summary |= {"n": len(target.train), "classes": len(target.classes), "folds": count}
        folder.summary |= {"majority": most / len(target.train), "skipped": target.skipped}
        fold_of = crossvalidation.folds(target.train.labels, count, spec.seed)
        cache = open_cache(spec.cache, display.warn)
        assess = Assessor(target.train, target.classes, fold_of, compute, cache, display)
        assessed, failed = list[Assessed](), dict[str, str]()
        for candidate in found.chosen:
            outcome = _outcome(candidate, spec, assess, runs_dir, display)
            device.release_memory(compute.device)  # of this backbone, before the next comes
            if isinstance(outcome, str):
                failed[candidate.label] = outcome
            else:
                assessed.append(_beside(outcome, assessed))
                folder.log_metrics(backbone=candidate.label, split="train", **ranktables.numbers(assessed[-1]))
            folder.summary |= {"backbones": [ranktables.in_json(one) for one in assessed], "failed": failed}
        _finish(folder, assessed, display)
    display.result(str(folder.path))
    return folder.summary


def _say(spec: Spec, found: candidates.Candidates, target: DomainData, display: Display) -> None:
    for note in found.notes:
        display.note(note)
    is_trained = any(one.settings.weights == "source" for one in found.chosen)
    unused = [key for key in Spec.model_fields if key not in USED | (OF_STAGE_0 if is_trained else set())]
    pipeline.say_unused(spec, [*unused, "target.balance"], "rank (nothing is fine-tuned)", display)
    display.note(
        f"{counted(len(found.chosen), 'backbone')} to rank on target.train alone, "
        f"{counted(len(target.train), 'image')}; validation and test data are not looked at: "
        f"{shown([one.label for one in found.chosen], 20)}"
    )


def _describe(folder: Run, spec: Spec, target: DomainData, compute: str) -> None:
    """environment.json and classes.json, as of a run with one model."""
    splits = target.named_splits("target")
    environment = runs.environment(spec.seed, compute, {name: split.fingerprint() for name, split in splits.items()})
    environment["files"] = {name: split.facts(target.classes) for name, split in splits.items()}
    folder.describe("environment.json", runs.json_text(environment))
    folder.describe("classes.json", runs.json_text({"target": list(target.classes)}))


def _outcome(candidate: Candidate, spec: Spec, assess: Assessor, runs_dir: Path, display: Display) -> Assessed | str:
    """What is found of a candidate; or, where it is at fault itself, why it cannot be ranked: the others go on."""
    of_it = spec.model_copy(update={"backbone": candidate.settings})
    try:
        of_it = pretrain.ensure_source(of_it, runs_dir, display)
        with display.quietly():
            found = assess(candidate, of_it)
    except (SpecError, CheckpointError, DivergedError) as error:
        reason = str(error)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = "memory does not suffice for it; lower preprocess.crop, or rank it on a larger machine"
    else:
        display.note(f"{candidate.label}: {ranktables.in_words(found)}")
        return found
    display.note(f"{candidate.label}: cannot be ranked, for what stands below the table")
    return reason


def _beside(found: Assessed, others: Sequence[Assessed]) -> Assessed:
    """With the label of an earlier one that computes the very same features."""
    twins = [one.label for one in others if one.product == found.product]
    return replace(found, twin=twins[0]) if twins else found


def _finish(folder: Run, assessed: Sequence[Assessed], display: Display) -> None:
    """Order, tables, plot and advice. Raises CheckpointError where no backbone is left."""
    failed = folder.summary["failed"]
    if not assessed:
        reasons = "\n".join(f"{label}: {reason}" for label, reason in failed.items())
        raise CheckpointError(f"no backbone can be ranked:\n{reasons}")
    entrants = [_entrant(one) for one in assessed]
    order = standing.order(entrants)
    ordered, entrants = [assessed[i] for i in order], [entrants[i] for i in order]
    standings = standing.standings(entrants)
    advice = standing.advise(entrants, folder.summary["majority"])
    best = ordered[0].probe
    folder.summary |= {
        "copies": ordered[0].copies,
        "accuracy": best.value, "accuracy_low": best.low, "accuracy_high": best.high, "split": "probe",
        "backbones": [ranktables.in_json(one, place) for one, place in zip(ordered, standings, strict=True)],
        "advice": {"backbone": advice.label, "text": advice.text},
    }  # fmt: skip
    ranktables.show(ordered, standings, folder.summary, display)
    points = [(one.costs.gflop, 100 * one.probe.value, 100 * one.probe.low, 100 * one.probe.high) for one in ordered]
    labels = [one.label for one in ordered]
    folder.write_text(PLOT, plots.intervals(points, labels, "GFLOP an image", "accuracy of the linear probe, %"))
    display.note(f"plot: {folder.path / PLOT}")
    display.remark(f"advice: {advice.text}")


def _entrant(one: Assessed) -> Entrant:
    neighbours = one.knn.value if one.knn else None
    cost = one.costs
    return Entrant(
        one.label,
        one.right,
        one.probe.low,
        one.probe.high,
        cost.gflop,
        cost.images_per_s,
        neighbours,
        one.learnt,
        random=one.candidate.settings.weights == "none",
        features=one.product,
    )
