"""What a run leaves for people and scripts: where it ran, its classes, checkpoints, predictions, tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transferctl import checkpoint, resuming, runs, scratch
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.model import TransferModel, digest, put_back, state_for_checkpoint
from transferctl.resuming import Resumed
from transferctl.runs import Run
from transferctl.trainingstate import Fitted
from transferctl.wording import printable


def describe_run(
    run: Run,
    seed: int,
    compute: Compute,
    model: TransferModel,
    splits: Mapping[str, Split],
    display: Display,
    *,
    seen: Mapping[str, str] | None = None,
    facts: Mapping[str, str] | None = None,
    resumed: Resumed | None = None,
) -> None:
    """environment.json and classes.json, with the model as the run starts it. splits: by domain and name,
    such as target.train; seen: the fingerprints of those that the run saw which the model comes from; facts: what else
    the run is known by. Those of a resumed run are compared first, and kept as `earlier`. Raises CheckpointError."""
    fingerprints = {name: split.fingerprint() for name, split in splits.items()} | dict(seen or {})
    environment = runs.environment(seed, str(compute), fingerprints) | dict(facts or {})
    environment["weights"] = digest(model)
    environment["files"] = {name: split.facts(model.classes[name.partition(".")[0]]) for name, split in splits.items()}
    if resumed:
        before = runs.read_environment(resumed.run)
        if before or checkpoint.any_of(resumed.run):
            resuming.compare_environment(resumed, before, environment, display)
        earlier = before.pop("earlier", [])
        environment["earlier"] = [*(earlier if isinstance(earlier, list) else []), *([before] if before else [])]
    run.describe("environment.json", runs.json_text(environment))
    run.describe("classes.json", runs.json_text({domain: list(names) for domain, names in model.classes.items()}))


def save_fitted(run: Run, model: TransferModel, fitted: Fitted) -> None:
    """Last, then best, as far as they are not saved yet. The model, which is as it was at its last epoch, becomes as it
    was at its best."""
    is_one = fitted.best["step"] == fitted.last["step"]
    save_checkpoint(run, model, fitted.last, ("best", "last") if is_one else ("last",))
    put_back(model, fitted.best_state)
    if not is_one:
        save_checkpoint(run, model, fitted.best, ("best",))


def save_checkpoint(run: Run, model: TransferModel, epoch: Mapping[str, Any], links: tuple[str, ...]) -> None:
    """The model as it is. epoch: {"epoch", "step", "val": metrics}; links: best, last or both."""
    manifest = model.describe() | {"epoch": epoch["epoch"], "step": epoch["step"], "val": headline(epoch["val"])}
    name = checkpoint.name_of(epoch["step"])
    checkpoint.save(run.path, name, {checkpoint.WEIGHTS_FILE: state_for_checkpoint(model)}, manifest, links)


def save_start(run: Run, model: TransferModel, facts: Mapping[str, Any], references: Mapping[str, Tensor]) -> None:
    """The model as fine-tuning starts it: what forgetting is measured from, where interpolation begins, and what
    penalties look back at (references: what they have computed of it)."""
    files: dict[str, Mapping[str, Tensor]] = {checkpoint.WEIGHTS_FILE: state_for_checkpoint(model)}
    files |= {checkpoint.REFERENCES_FILE: references} if references else {}
    manifest = model.describe() | {"epoch": 0, "step": 0, **facts}
    checkpoint.save(run.path, checkpoint.name_of(0), files, manifest, ("start",))


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The scalars: what goes into metrics.jsonl and what a gate may name."""
    return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


class Predictions:
    """Of each sample that was scored, in order: the predicted class and its probability. Logits come batch by batch
    and are not kept: those of a million samples and a thousand classes would be 4 GB."""

    def __init__(self) -> None:
        self._predicted, self._probability = scratch.Growing(np.int32), scratch.Growing(np.float64)

    def __call__(self, logits: Tensor, labels: Tensor) -> None:
        """logits: [N, C]."""
        probability, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
        self._predicted.append(predicted.numpy())
        self._probability.append(probability.numpy())

    def __iter__(self) -> Iterator[tuple[int, float]]:
        predicted, probability = self._predicted.array(), self._probability.array()
        for part in scratch.pieces(len(predicted)):
            yield from zip(predicted[part].tolist(), probability[part].tolist(), strict=True)


def write_predictions(run: Run, classes: Sequence[str], scored: Sequence[tuple[Split, Predictions]]) -> None:
    """predictions.csv: split, path, true and predicted class, the latter's probability. Written aside, row by row.

    scored: splits and their predictions, in the split's order.
    """
    with runs.atomic_file(run.path / "predictions.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["split", "path", "label", "predicted", "probability"])
        for split, predictions in scored:
            for position, (best, p) in zip(range(len(split)), predictions, strict=True):
                label = classes[int(split.labels[position])]
                writer.writerow([split.name, split.sample_name(position), label, classes[best], f"{p:.6f}"])


def show_metrics(display: Display, title: str, metrics: Mapping[str, Any]) -> None:
    """The scores with their 95 % intervals; calibration before and after the temperature."""
    top = sorted((name for name in metrics if re.fullmatch(r"top\d+_accuracy", name)), key=lambda name: int(name[3:-9]))
    shares = {"accuracy": "accuracy", **{name: f"top-{name[3:-9]} accuracy" for name in top}}
    shares["balanced_accuracy"] = "balanced accuracy"
    numbers = {"macro_f1": "macro F1", "auroc": "AUROC", "loss": "loss", "brier": "Brier score", "ece": "ECE"}
    rows = [["samples", f"{metrics['n']:,}", ""]]
    rows += [[words, *_with_interval(metrics, name, 100, 1, " %")] for name, words in shares.items() if name in metrics]
    rows += [[words, *_with_interval(metrics, name, 1, 4, "")] for name, words in numbers.items() if name in metrics]
    if "calibrated_ece" in metrics:
        at = f" at temperature {metrics['temperature']:.3g}"
        for name in ("loss", "ece"):
            rows.append([numbers[name] + at, *_with_interval(metrics, f"calibrated_{name}", 1, 4, "")])
    display.table(title, ["metric", "value", "95 % interval"], rows)


def _with_interval(metrics: Mapping[str, Any], name: str, times: int, digits: int, unit: str) -> list[str]:
    value = f"{times * metrics[name]:.{digits}f}{unit}"
    if f"{name}_low" not in metrics:
        return [value, ""]
    return [value, "–".join(f"{times * metrics[name + end]:.{digits}f}" for end in ("_low", "_high"))]


def show_classes(display: Display, metrics: Mapping[str, Any], most: int = 20) -> None:
    """Precision, recall and F1 of each class; the confusion matrix beside them where it fits."""
    per_class, confusion = metrics["per_class"], metrics["confusion"]
    width = sum(len(printable(row["class"])) + 6 for row in per_class) + 50
    matrix = len(per_class) <= 12 and width <= display.width
    columns = ["class", "n", "precision", "recall", "F1"]
    columns += [f"→ {printable(row['class'])}" for row in per_class] if matrix else []
    rows = [
        [printable(row["class"]), row["support"], row["precision"], row["recall"], row["f1"]]
        + (list(counts) if matrix else [])
        for row, counts in zip(per_class, confusion, strict=True)
    ]
    title = "Classes (columns →: predicted as)" if matrix else "Classes"
    if len(rows) > most:
        rows = sorted(rows, key=lambda row: float(row[4]))[:most]
        title += f": the {most} with the lowest F1 of {len(per_class)}"
    display.table(title, columns, rows)
