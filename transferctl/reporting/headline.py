"""The result in one number with its interval, and beside what it started from or a network from scratch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from transferctl import runs
from transferctl.reporting import checked
from transferctl.reporting.gather import Interval, RunRecord, Score, gather, interval

METRICS = {
    "loss": "loss (mean cross-entropy)",
    "top5_accuracy": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "weighted_f1": "weighted F1",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "ece": "ECE, 15 bins of equal width",
    "ece_mass": "ECE, bins of equal mass",
    "temperature": "temperature",
    "calibrated_loss": "loss at the temperature",
    "calibrated_brier": "Brier score at the temperature",
    "calibrated_ece": "ECE at the temperature",
    "calibrated_ece_mass": "ECE at the temperature, equal mass",
}
SPLITS = {"val": "validation", "test": "test", "train": "training"}


@dataclass(frozen=True)
class Bar:
    """A value with its interval beside others. share, low, high: from 0 to 1 of the common scale; points: of each
    seed."""

    label: str
    note: str
    value: Interval
    is_own: bool = False
    points: tuple[float, ...] = ()


def on(run: RunRecord, split: str) -> str:
    """A split in words, the source's as such."""
    return ("source " if run.is_of_source else "") + SPLITS.get(split, split)


def images_of(run: RunRecord, score: Score) -> str:
    """What was scored: 153 test images."""
    where = on(run, score.split)
    return f"{score.n:,} {where} images" if score.n is not None else f"{where} images"


def noted(run: RunRecord, score: Score) -> str:
    """What was scored, and of a run without an end when."""
    return f"{images_of(run, score)}; {score.so_far}" if score.so_far else images_of(run, score)


def some_images(n: int, of: int, where: str) -> str:
    """The images that were looked at, where they may be fewer than there are."""
    return f"{n:,} {where} images" if n == of else f"{n:,} of the {of:,} {where} images (evenly spread)"


def bars(run: RunRecord) -> list[Bar]:
    """The run's accuracy beside that of what it started from, as far as both were measured on the same images."""
    score = run.score
    if score is None or score.accuracy is None:
        return []
    found = [Bar(f"this run, {_split_of(score)}", noted(run, score), score.accuracy, is_own=True)]
    found += [
        Bar(f"this run, {_split_of(other)}", images_of(run, other), other.accuracy)
        for other in run.scores[1:]
        if other.accuracy is not None
    ]
    if before := _started_from(run):
        other = gather(before)
        same = next((one for one in other.scores if one.split == score.split and one.accuracy), None)
        what = "the linear probe it started from" if other.verb == "extract" else "the run it started from"
        if same and same.accuracy and _same_images(run, other, score.split):
            found.append(Bar(what, f"{other.path.name}; the same images", same.accuracy))
    first = checked.mapping(checked.mapping(run.summary.get("head_first")).get("target"))
    if accuracy := interval(checked.mapping(first.get("val")), "accuracy"):
        found.append(Bar("the head alone, before", "head_first, on frozen features; validation images", accuracy))
    return found


def _split_of(score: Score) -> str:
    return SPLITS.get(score.split, score.split)


def _started_from(run: RunRecord) -> Any:
    return run.spec.from_run if run.spec else None


def _same_images(run: RunRecord, other: RunRecord, split: str) -> bool:
    seen = [runs.data_fingerprints(one.path).get(f"target.{split}") for one in (run, other)]
    return seen[0] is not None and seen[0] == seen[1]


@dataclass(frozen=True)
class Baseline:
    """Transfer against training from scratch. bars: one an arm; n: images that both were trained on."""

    bars: tuple[Bar, ...]
    scored_on: str
    n: int | None
    seeds: int
    difference: float


def baseline(run: RunRecord) -> Baseline | None:
    told = checked.mapping(run.summary.get("baseline"))
    rows = [checked.mapping(row) for row in checked.sequence(told.get("runs"))]
    found: list[Bar] = []
    for arm, label in (
        ("transfer", "transfer: frozen features, new head"),
        ("scratch", "the same network from scratch"),
    ):
        stats = checked.mapping(told.get(arm))
        mean, sd = checked.share(stats.get("mean")), checked.number(stats.get("sd"))
        if mean is None:
            return None
        points = tuple(value for row in rows if (value := checked.share(row.get(arm))) is not None)
        ends = (checked.share(stats.get(key)) for key in ("min", "max"))
        note = f"sd {100 * sd:.1f} over {len(points)} seeds" if sd is not None else "one seed"
        found.append(Bar(label, note, Interval(mean, *ends), is_own=arm == "transfer", points=points))
    difference = found[0].value.value - found[1].value.value
    scored = SPLITS.get(checked.text(told.get("scored_on"), 20), "")
    return Baseline(tuple(found), scored, checked.count(told.get("train_samples")), len(rows), difference)


def other_metrics(run: RunRecord) -> list[tuple[str, list[Interval | None]]]:
    """Every other scalar with its interval: a row a metric, a column a score."""
    names = dict.fromkeys(name for score in run.scores for name in (*METRICS, *score.scalars) if name in score.scalars)
    hidden = {f"{name}_{end}" for name in names for end in ("low", "high")} | {"n", "accuracy", "schema_version"}
    hidden |= {"exit_code", "elapsed_s", "skipped"}
    return [
        (METRICS.get(name, name), [interval(score.scalars, name) for score in run.scores])
        for name in islice((name for name in names if name not in hidden), 60)
    ]
