"""How good a head is on labelled data, and what a finished training says of its best epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from transferctl import microbatches, results
from transferctl.contracts import Batch, Features, Task
from transferctl.data import DomainData, Split
from transferctl.device import Compute, release_memory
from transferctl.display import Display
from transferctl.errors import is_out_of_memory
from transferctl.model import TransferModel
from transferctl.results import Predictions
from transferctl.runs import Run

Forward = Callable[[Batch], Features]


def measure(
    model: TransferModel,
    task: Task,
    batches: Iterable[Batch],
    forward: Forward,
    compute: Compute,
    domain: str = "target",
    record: Callable[[Tensor, Tensor], None] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Metrics of a head over labelled batches; no gradients, eval mode. `record` receives each batch's logits and
    labels. A batch that does not fit into memory is computed in halves, which `say` is told."""
    model.eval()
    meter = task.meter(model.classes[domain])
    most = [sys.maxsize]  # samples that fit at once
    with torch.inference_mode():
        for loaded in batches:
            logits = logits_of(model.heads[domain], loaded, forward, compute, most, say)
            meter.update(logits, loaded.labels.cpu())
            if record:
                record(logits, loaded.labels.cpu())
    return meter.compute()


def logits_of(
    head: nn.Module, loaded: Batch, forward: Forward, compute: Compute, most: list[int], say: Callable[[str], None]
) -> Tensor:
    """[N, C], on the CPU. most: one number, how many samples are tried at once; it becomes less where memory runs
    out."""
    if len(loaded.labels) > most[0]:
        halves = (half for half, _ in microbatches.of(loaded, 2))
        return torch.cat([logits_of(head, half, forward, compute, most, say) for half in halves])
    try:
        batch = loaded.to(compute.device)
        with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.bf16):
            features = forward(batch)
        logits: Tensor = head(features.in_fp32()).cpu()
        return logits
    except Exception as error:
        n = len(loaded.labels)
        if not is_out_of_memory(error) or n < 2:
            raise
    release_memory(compute.device)
    most[0] = (n + 1) // 2
    say(f"out of memory: {n} images do not fit at once, and are scored {most[0]} at a time")
    return logits_of(head, loaded, forward, compute, most, say)


def score_best(
    run: Run,
    model: TransferModel,
    task: Task,
    target: DomainData,
    batches_of: Callable[[Split], Iterable[Batch]],
    forward: Forward,
    compute: Compute,
    display: Display,
) -> None:
    """With the model as it was at its best epoch (`run.summary["best"]`): scores and predictions on
    validation data, and on test data, which is scored here alone, once."""
    predictions = Predictions()
    scored = [(target.val, predictions)]
    metrics = measure(model, task, batches_of(target.val), forward, compute, record=predictions, say=display.warn)
    best, last = run.summary["best"], run.summary["last"]
    run.summary["best"] = best | {"val": metrics}
    which = "the last" if best["epoch"] == last["epoch"] else f"best of {last['epoch']}"
    which = "the converged head" if "probe" in run.summary else f"epoch {best['epoch']} ({which})"
    results.show_metrics(display, f"Validation, {which}", metrics)
    if target.test:
        predictions = Predictions()
        scored.append((target.test, predictions))
        metrics = measure(model, task, batches_of(target.test), forward, compute, record=predictions, say=display.warn)
        run.summary["test"] = metrics
        run.log_metrics(split="test", **results.headline(metrics))
        results.show_metrics(display, f"Test, scored once, {which}", metrics)
    results.show_classes(display, metrics)
    results.write_predictions(run, target.classes, scored)
