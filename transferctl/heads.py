"""Heads trained on frozen features, which are computed once an image: what `extract` does, and `head_first`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from transferctl import crossvalidation, features, loaders, pipeline, probe, results, scoring, training
from transferctl.cache.cache import Cache
from transferctl.contracts import Batch, Task
from transferctl.crossvalidation import Score
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.features import FeatureTable
from transferctl.frozen import FrozenStages
from transferctl.model import BatchNorm, TransferModel, put_back
from transferctl.objective import DomainLoss, Objective
from transferctl.probe import Probe, Samples
from transferctl.runs import Run
from transferctl.saving import Saver
from transferctl.spec import HeadSettings, Spec
from transferctl.training import GoesOn, to_the_end
from transferctl.trainingstate import Fitted
from transferctl.trainsettings import HeadTrainingSettings


def tables(
    spec: Spec, model: TransferModel, task: Task, splits: Iterable[Split], compute: Compute, cache: Cache,
    display: Display,
) -> dict[str, FeatureTable]:  # fmt: skip
    """The features of each split, by its name. The backbone is in eval mode."""
    stages = FrozenStages(model, len(model.backbone.stages()), compute, display, compile_=spec.compile)
    return {
        split.name: features.compute(
            stages, split, task, cache, display, workers=loaders.workers_for(spec.workers, split)
        )
        for split in splits
    }


def fit(
    model: TransferModel,
    task: Task,
    settings: HeadTrainingSettings,
    domain: str,
    loss: DomainLoss,
    train: FeatureTable,
    val: FeatureTable,
    compute: Compute,
    display: Display,
    *,
    seed: int,
    run: Run | None,
    settings_key: str = "",
    saver: Saver | None = None,
    goes_on: GoesOn = to_the_end,
) -> Fitted:
    """Train the domain's head on its features, the whole backbone frozen.

    run: where its metrics go. saver, goes_on: as `training.fit` takes them.
    """
    stream = features.training_stream(
        train, batch_size=settings.batch_size, epochs=settings.epochs, seed=seed, domain=domain,
        first_step=saver.first_step if saver else 0,
    )  # fmt: skip
    return training.fit(
        model, Objective(task, domains={domain: loss}), settings, stream, partial(features.evaluation_batches, val),
        model.features_of, compute, display, seed=seed, frozen={1: "all"}, batchnorm=BatchNorm(), domain=domain,
        run=run, settings_key=settings_key, saver=saver, goes_on=goes_on,
    )  # fmt: skip


def solve(
    model: TransferModel,
    task: Task,
    settings: HeadSettings,
    domain: str,
    loss: DomainLoss,
    train: FeatureTable,
    val: FeatureTable,
    compute: Compute,
    display: Display,
    *,
    seed: int,
    run: Run | None,
) -> tuple[Fitted, dict[str, Any]]:
    """The converged linear head by L-BFGS, left in the model, and what there is to say of it. Validation data
    chooses nothing.

    An epoch is an iteration: each takes the whole training data. Where `balance: sampling` would draw classes as
    often, they weigh the same: the mean over many draws. Raises DataError as `refuse_too_few` does.
    """
    if train.split.balanced:
        display.note(f"{domain}: balance: sampling is balance: weights here, as L-BFGS draws no samples")
        loss = pipeline.domain_loss(loss.label_smoothing, "weights", train.split, model.classes[domain], compute)
    samples = samples_of(train, len(model.classes[domain]), compute, loss)
    facts: dict[str, Any] = {}
    alpha = settings.regularisation
    if alpha == "auto":
        alpha, facts = _cross_validated(samples, train, model.classes[domain], seed, domain, display)
    found = probe.fit(samples, alpha)
    _say(found, domain, display)
    _put(found, model.heads[domain])
    batches = features.evaluation_batches(val)
    metrics = scoring.measure(model, task, batches, model.features_of, compute, domain, display.warn)
    last: dict[str, Any] = {"epoch": found.iterations, "step": found.iterations, "val": results.headline(metrics)}
    numbers = {"loss": found.loss, "objective": found.objective, "gradient": found.gradient}
    if run:
        run.log_metrics(step=found.iterations, epoch=found.iterations, split="train", **numbers)
        run.log_metrics(step=found.iterations, epoch=found.iterations, split="val", **last["val"])
        run.summary |= {"best": last, "last": last}
    state = {f"heads.{domain}.{name}": t.detach().clone() for name, t in model.heads[domain].state_dict().items()}
    said = {"regularisation": alpha, "converged": found.converged, "tolerance": found.tolerance, **numbers}
    return Fitted(last, last, state), said | {"iterations": found.iterations, "passes": found.passes} | facts


def refuse_too_few(settings: HeadSettings, train: Split, classes: Sequence[str], name: str) -> None:
    """Raises DataError where cross-validation would need more samples of a class. name: of the data."""
    if settings.solver == "lbfgs" and settings.regularisation == "auto":
        crossvalidation.fold_count(train.labels, classes, name, INSTEAD)


INSTEAD = "write a number for head.regularisation (0.1, say)"


def samples_of(train: FeatureTable, classes: int, compute: Compute, loss: DomainLoss | None = None) -> Samples:
    """A table's features as the probe takes them; loss: how the mean is taken, by default plainly."""
    loss = loss or DomainLoss()
    device = compute.device if compute.device.type == "cuda" else torch.device("cpu")  # mps has no float64
    passes = partial(features.evaluation_batches, train)
    return Samples(passes, train.split.labels, classes, device, loss.label_smoothing, loss.class_weights)


def some_of(train: FeatureTable, positions: np.ndarray, classes: int, compute: Compute) -> Samples:
    """As `samples_of`, of some rows alone. positions: [n]."""

    def passes(batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(positions), batch_size):
            yield train.unnamed(positions[start : start + batch_size])

    return replace(samples_of(train, classes, compute), passes=passes, labels=train.split.labels[positions])


def _cross_validated(
    samples: Samples, train: FeatureTable, classes: Sequence[str], seed: int, domain: str, display: Display
) -> tuple[float, dict[str, Any]]:
    """The regularisation chosen, and how."""
    count = crossvalidation.fold_count(samples.labels, classes, f"{domain}.train", INSTEAD)
    fold_of = crossvalidation.folds(samples.labels, count, seed)
    curve = crossvalidation.cross_validate(samples, fold_of)
    chosen = crossvalidation.choose(curve)
    rows = [_row(score, chosen) for score in curve]
    display.table(f"Regularisation by {count}-fold cross-validation on {domain}.train", _COLUMNS, rows)
    at_end = chosen.regularisation in (crossvalidation.GRID[0], crossvalidation.GRID[-1])
    where = ", at the end of the grid" if at_end else ""
    display.note(
        f"head.regularisation: auto = {chosen.regularisation:g}{where}: the strongest within a standard error of the "
        f"lowest held-out loss; {count} folds of {len(train):,} samples"
    )
    if hurried := [f"{score.regularisation:g}" for score in curve if not score.ended]:
        display.warn(f"cross-validation: not converged in {probe.MOST_ITERATIONS:,} iterations at {', '.join(hurried)}")
    points = [
        {"regularisation": score.regularisation, "loss": float(score.losses.mean()),
         "standard_error": score.standard_error, "accuracy": score.accuracy}
        for score in curve
    ]  # fmt: skip
    return chosen.regularisation, {"folds": count, "cross_validation": points}


_COLUMNS = ["α", "held-out loss", "standard error", "accuracy", ""]


def _row(score: Score, chosen: Score) -> list[Any]:
    mean = float(score.losses.mean()), score.standard_error, score.accuracy
    return [f"{score.regularisation:g}", *mean, "chosen" if score is chosen else ""]


def _say(found: Probe, domain: str, display: Display) -> None:
    how = f"{found.iterations} iterations; largest gradient {found.gradient:.1e}, tolerance {found.tolerance:.0e}"
    if found.converged:
        display.note(f"{domain} head: converged by L-BFGS in {how}; training loss {found.loss:.4f}")
    else:
        display.warn(
            f"{domain} head: L-BFGS has not converged in {how}; a stronger head.regularisation makes it easier"
        )


def _put(found: Probe, head: nn.Module) -> None:
    (linear,) = [module for module in head.modules() if isinstance(module, nn.Linear)]
    with torch.no_grad():
        linear.weight.copy_(found.weight)
        linear.bias.copy_(found.bias)


def head_first(
    spec: Spec,
    model: TransferModel,
    task: Task,
    domain: str,
    loss: DomainLoss,
    splits: Sequence[Split],
    compute: Compute,
    cache: Cache,
    display: Display,
) -> dict[str, object]:
    """The first half of LP-FT: the domain's head is trained on frozen features and left as it was at its best epoch.

    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022: a
    head that starts at random sends gradients into the backbone that it would not send once it is trained.
    """
    assert spec.head_first is not None
    refuse_too_few(spec.head, splits[0], model.classes[domain], f"{domain}.train")
    computed = tables(spec, model, task, splits, compute, cache, display)
    facts: dict[str, Any] = {}
    if spec.head.solver == "lbfgs":
        fitted, found = solve(
            model, task, spec.head, domain, loss, computed["train"], computed["val"], compute, display,
            seed=spec.seed, run=None,
        )  # fmt: skip
        facts = {"probe": found}
    else:
        fitted = fit(
            model, task, spec.head_first, domain, loss, computed["train"], computed["val"], compute, display,
            seed=spec.seed, run=None, settings_key="head_first.",
        )  # fmt: skip
    put_back(model, fitted.best_state)
    val = fitted.best["val"]
    display.note(
        f"head first: {domain} head after epoch {fitted.best['epoch']} of {fitted.last['epoch']}: val accuracy "
        f"{val['accuracy']:.4f} loss {val['loss']:.4f}"
    )
    return fitted.best | facts
