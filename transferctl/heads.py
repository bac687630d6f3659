"""Heads trained on frozen features, which are computed once an image: what `extract` does, and `head_first`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from transferctl import features, loaders, results, training
from transferctl.cache import Cache
from transferctl.contracts import Task
from transferctl.data import Split
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.features import FeatureTable
from transferctl.frozen import FrozenStages
from transferctl.model import BatchNorm, TransferModel
from transferctl.objective import DomainLoss, Objective
from transferctl.runs import Run
from transferctl.spec import Spec
from transferctl.training import Fitted
from transferctl.trainsettings import HeadTrainingSettings


def tables(
    spec: Spec, model: TransferModel, task: Task, splits: Iterable[Split], compute: Compute, cache: Cache,
    display: Display,
) -> dict[str, FeatureTable]:  # fmt: skip
    """The features of each split, by its name. The backbone is in eval mode."""
    stages = FrozenStages(model, len(model.backbone.stages()), compute, display)
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
) -> Fitted:
    """Train the domain's head on its features, the whole backbone frozen. Saves no checkpoint: it takes seconds.

    run: where its metrics go.
    """
    stream = features.training_stream(
        train, batch_size=settings.batch_size, epochs=settings.epochs, seed=seed, domain=domain
    )
    return training.fit(
        model, Objective(task, domains={domain: loss}), settings, stream, partial(features.evaluation_batches, val),
        features.of_batch, compute, display, seed=seed, frozen={1: "all"}, batchnorm=BatchNorm(), domain=domain,
        run=run, settings_key=settings_key, save_each_epoch=False,
    )  # fmt: skip


def head_first(
    spec: Spec,
    model: TransferModel,
    task: Task,
    domain: str,
    loss: DomainLoss,
    splits: Iterable[Split],
    compute: Compute,
    cache: Cache,
    display: Display,
) -> dict[str, object]:
    """The first half of LP-FT: the domain's head is trained on frozen features and left as it was at its best epoch.

    Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", ICLR 2022: a
    head that starts at random sends gradients into the backbone that it would not send once it is trained.
    """
    assert spec.head_first is not None
    computed = tables(spec, model, task, splits, compute, cache, display)
    fitted = fit(
        model, task, spec.head_first, domain, loss, computed["train"], computed["val"], compute, display,
        seed=spec.seed, run=None, settings_key="head_first.",
    )  # fmt: skip
    model.load_state_dict(fitted.best_state, strict=False)
    val = fitted.best["val"]
    display.note(
        f"head first: {domain} head after epoch {fitted.best['epoch']} of {fitted.last['epoch']}: val accuracy "
        f"{val['accuracy']:.4f} loss {val['loss']:.4f}"
    )
    return fitted.best | {"val": results.headline(val)}  # a confusion matrix of a thousand classes is a million lines
