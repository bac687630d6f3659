"""How good a head is on labelled data, and what a finished training says of its best epoch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transferctl import calibration, checkpoint, microbatches, results
from transferctl.contracts import Batch, Features, Meter, Task
from transferctl.data import DomainData, Split
from transferctl.device import Compute, release_memory
from transferctl.display import Display
from transferctl.errors import is_out_of_memory
from transferctl.evaluation import Evaluation
from transferctl.inputs import Inputs
from transferctl.model import TransferModel
from transferctl.paired import Recorder, Scored
from transferctl.results import Predictions
from transferctl.runs import Run
from transferctl.wording import counted

Forward = Callable[[Batch], Features]
Record = Callable[[Tensor, Tensor], None]  # takes a batch's logits and labels


def measure(
    model: TransferModel,
    task: Task,
    batches: Iterable[Batch],
    forward: Forward,
    compute: Compute,
    domain: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Metrics of a head over labelled batches, as the task's meter has them. The rest is as `pass_over` has it."""
    meter = task.meter(model.classes[domain])
    pass_over(model, batches, forward, compute, domain, [meter.update], say)
    return meter.compute()


def pass_over(
    model: TransferModel,
    batches: Iterable[Batch],
    forward: Forward,
    compute: Compute,
    domain: str,
    record: Sequence[Record],
    say: Callable[[str], None],
) -> None:
    """A head over labelled batches; no gradients, eval mode. Each of `record` receives each batch's logits (fp32) and
    labels, on the CPU. A batch that does not fit into memory is computed in halves, which `say` is told."""
    model.eval()
    most = [sys.maxsize]  # samples that fit at once
    with torch.inference_mode():
        for loaded in batches:
            logits = logits_of(model.heads[domain], loaded, forward, compute, most, say)
            for take in record:
                take(logits, loaded.labels.cpu())


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


def score(
    model: TransferModel, task: Task, scored: Split, domain: str, inputs: Inputs,
    predictions: Predictions | None = None, *, top: Sequence[int] = (), temperature: float | None = None,
    calibrate: bool = False, in_full: bool = True, say: Callable[[str], None],
) -> Scored:  # fmt: skip
    """Metrics and outcomes of a domain's head; `predictions` takes what it predicts. temperature: of its logits, where
    validation data has said one; calibrate: these are such data. in_full: with all that `Task.evaluation` finds."""
    outcomes, classes = Recorder(), model.classes[domain]
    meter: Meter | Evaluation = task.evaluation(classes, top) if in_full else task.meter(classes)
    record: list[Record] = [meter.update, outcomes, *([predictions] if predictions else [])]
    pass_over(model, inputs.scoring_batches(scored), model.features_of, inputs.compute, domain, record, say)
    if not isinstance(meter, Evaluation):
        return meter.compute(), outcomes.outcomes()
    return meter.compute(meter.fitted_temperature() if calibrate else temperature), outcomes.outcomes()


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
    """With the model as it was at its best epoch (`run.summary["best"]`): scores and predictions on validation data,
    which also says the temperature, and on test data, which is scored here alone, once."""

    def score(split: Split) -> Evaluation:
        evaluation, predictions = task.evaluation(target.classes), Predictions()
        record: list[Record] = [evaluation.update, predictions]
        pass_over(model, batches_of(split), forward, compute, "target", record, display.warn)
        scored.append((split, predictions))
        return evaluation

    scored: list[tuple[Split, Predictions]] = []
    best, last = run.summary["best"], run.summary["last"]
    evaluation = score(target.val)
    temperature = evaluation.fitted_temperature()
    keep_temperature(run, checkpoint.name_of(best["step"]), temperature, len(target.val), display)
    metrics = evaluation.compute(temperature)
    run.summary["best"] = best | {"val": metrics}
    which = "the last" if best["epoch"] == last["epoch"] else f"best of {last['epoch']}"
    which = "the converged head" if "probe" in run.summary else f"epoch {best['epoch']} ({which})"
    results.show_metrics(display, f"Validation, {which}", metrics)
    if target.test:
        run.summary["test"] = metrics = score(target.test).compute(temperature)
        run.log_metrics(split="test", **results.headline(metrics))
        results.show_metrics(display, f"Test, scored once, {which}", metrics)
    results.show_classes(display, metrics)
    results.write_predictions(run, target.classes, scored)


def keep_temperature(run: Run, name: str, temperature: float | None, n: int, display: Display) -> None:
    """The temperature that n samples of validation data ask for, for whoever predicts with that checkpoint; where they
    ask for none, probabilities stay as they are, and that is said."""
    if temperature is not None:
        run.write_json(calibration.FILE, calibration.description(name, temperature, n))
        return
    (run.path / calibration.FILE).unlink(missing_ok=True)  # of a run that is resumed
    display.note(
        f"no temperature: {counted(n, 'validation sample')} cannot say one (all are right, or they are too few or too "
        "many), so probabilities are not calibrated"
    )
