"""Does transfer help? The same network from random weights on the same target images, seed by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from transferctl import pipeline, scoring, training
from transferctl.data import DomainData
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.inputs import Inputs
from transferctl.model import BatchNorm, TransferModel, put_back
from transferctl.objective import Objective
from transferctl.paired import Scored
from transferctl.spec import Spec

NAME_LENGTH = 80  # that a seed be added, and the name still one
ARMS = {"transfer": "transfer: frozen features + new head", "scratch": "from scratch"}


def compare(
    spec: Spec,
    first: Mapping[str, Any],
    extract: Callable[[Spec], Mapping[str, Any]],
    compute: Compute,
    display: Display,
) -> dict[str, Any]:
    """Accuracies of both for seeds seed, seed+1, … and their spread. A seed keys all that is random: stage 0,
    the images drawn, the head. Both keep their best epoch by validation and are scored on test data
    (validation data where there is none).

    first: the summary of the extraction with spec.seed; extract: makes one with another seed, an ordinary
    run, called NAME-seedN.
    """
    assert spec.baseline is not None
    rows = []
    for seed in range(spec.seed, spec.seed + spec.baseline.repeats):
        name = spec.name if seed == spec.seed else f"{spec.name[:NAME_LENGTH]}-seed{seed}"
        seeded = spec.model_copy(update={"name": name, "seed": seed, "baseline": None, "report": False})
        with display.quietly():
            target = pipeline.load_target(seeded, display)
            transferred = first if seed == spec.seed else extract(seeded)
            scratch, _ = from_scratch(seeded, spec.baseline.epochs, target, compute, display)
        transfer = float((transferred["test"] if target.test else transferred["best"]["val"])["accuracy"])
        rows.append({"seed": seed, "transfer": transfer, "scratch": scratch["accuracy"]})
        scored = "test" if target.test else "val"
        display.note(f"seed {seed}: transfer {transfer:.4f}, from scratch {scratch['accuracy']:.4f} ({scored})")
    return _compared(rows, scored, len(target.train), display)


def from_scratch(spec: Spec, epochs: int, target: DomainData, compute: Compute, display: Display) -> Scored:
    """The same architecture, trained as `pretrain` says, on the target images alone, and scored on test data
    (validation data where there is none)."""
    task = pipeline.task_of(spec)
    start = pipeline.load_backbone(pipeline.from_random_weights(spec))
    model = TransferModel(spec.backbone.library, start.backbone, start.preprocessing, spec.task)
    model.add_new_head("target", target.classes, hidden=spec.head.hidden, dropout=spec.head.dropout, seed=spec.seed)
    model.place(compute)
    settings = spec.pretrain.model_copy(update={"epochs": epochs, "batch_size": spec.batch_size})
    inputs = Inputs(task, model.preprocessing, spec.workers, compute)
    loss = pipeline.domain_loss(settings.label_smoothing, spec.target.balance, target.train, target.classes, compute)
    stream = inputs.training_stream(
        target.train, None, {"target": pipeline.augmentation(settings)},
        batch_size=settings.batch_size, epochs=epochs, seed=spec.seed,
    )  # fmt: skip
    validation = partial(inputs.scoring_batches, target.val)
    fitted = training.fit(
        model, Objective(task, domains={"target": loss}), settings, stream, validation, model.features_of, compute,
        display, seed=spec.seed, frozen={1: "none"}, batchnorm=BatchNorm(thawed="train"),
        settings_key="pretrain.",
    )  # fmt: skip
    put_back(model, fitted.best_state)
    scored = target.val if target.test is None else target.test
    return scoring.score(model, task, scored, "target", inputs, in_full=False, say=display.warn)


def _compared(rows: Sequence[Mapping[str, Any]], scored: str, n_train: int, display: Display) -> dict[str, Any]:
    summary: dict[str, Any] = {"scored_on": scored, "train_samples": n_train, "runs": list(rows)}
    for arm in ARMS:
        values = np.array([row[arm] for row in rows])
        sd = float(values.std(ddof=1)) if len(values) > 1 else None
        summary[arm] = {"mean": float(values.mean()), "sd": sd, "min": float(values.min()), "max": float(values.max())}
    table = [[words, *map(_percent, summary[arm].values())] for arm, words in ARMS.items()]
    title = f"{scored} accuracy, %, on the same {n_train} training images; {len(rows)} seeds"
    display.table(title, ["", "mean", "sd", "lowest", "highest"], table)
    return summary


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
