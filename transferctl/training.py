"""The loop: step, validate, save. Every verb that trains runs through `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from transferctl import objective, optim
from transferctl.contracts import Batch, Penalty, Task
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import DivergedError, SpecError
from transferctl.loaders import Stream
from transferctl.model import TransferModel
from transferctl.preprocess import keyed_randomness
from transferctl.results import headline, save_checkpoint
from transferctl.runs import Run
from transferctl.scoring import Forward, measure
from transferctl.trainsettings import TrainingSettings


@dataclass(frozen=True)
class Fitted:
    """best, last: {"epoch", "step", "val": metrics}; best_state: what training changed, as it was at the best."""

    best: dict[str, Any]
    last: dict[str, Any]
    best_state: dict[str, Tensor]


def fit(
    model: TransferModel,
    task: Task,
    settings: TrainingSettings,
    stream: Stream,
    validation: Callable[[], Iterable[Batch]],
    forward: Forward,
    compute: Compute,
    display: Display,
    *,
    seed: int,
    domain: str = "target",
    target_weight: float = 1.0,
    penalties: Mapping[str, Penalty] | None = None,
    run: Run | None = None,
    save_each_epoch: bool = True,
) -> Fitted:
    """Minimise the objective over the stream; after each epoch validate, keep the best, save.

    seed: with the step, keys dropout and whatever else is random in the model.
    forward: a batch's inputs -> Features (the whole model, or nothing where features were computed before).
    run: where metrics and, `save_each_epoch`, checkpoints go; None leaves no trace. Best is the highest accuracy
    on validation data of `domain`, then the lowest loss, then the earliest. Raises DivergedError, SpecError.
    """
    optimizer = optim.build(settings.optimizer, model.parameters())
    total_steps = settings.epochs * stream.steps_per_epoch
    best: dict[str, Any] = {}
    last: dict[str, Any] = {}
    best_state: dict[str, Tensor] = {}
    step = 0
    with closing(stream), display.progress("training", settings.epochs * stream.samples_per_epoch) as progress:
        for epoch in range(1, settings.epochs + 1):
            model.train()
            _refuse_single_samples(model, stream, domain)
            sums = _Sums()
            for _ in range(stream.steps_per_epoch):
                batch = _to(next(stream.batches), compute.device)
                rate = optim.learning_rate(settings.schedule, settings.optimizer.lr, step / total_steps)
                optim.set_learning_rate(optimizer, rate)

                # ---- one step: min over θ of L_S + λ·L_T + Σ w·Ω
                with keyed_randomness(seed, "step", step, device=compute.device):
                    with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.bf16):
                        features = forward(batch.inputs)
                    losses = objective.joint_objective(model, task, features, batch, target_weight, penalties or {})
                optimizer.zero_grad(set_to_none=True)
                losses.total.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                # ----

                step += 1
                sums.add(_finite(losses, epoch, step))
                progress.advance(len(batch.labels), f"epoch {epoch}/{settings.epochs} loss {sums.mean('loss'):.4f}")

            val = _finite_score(measure(model, task, validation(), forward, compute, domain), epoch, step)
            last = {"epoch": epoch, "step": step, "val": val}
            is_best = not best or _score(val) > _score(best["val"])
            if is_best:
                best, best_state = last, _what_changes(model)
            if run:
                run.log_metrics(step=step, epoch=epoch, split="train", lr=rate, **sums.means())
                run.log_metrics(step=step, epoch=epoch, split="val", **headline(val))
                if save_each_epoch:
                    save_checkpoint(run, model, last, ("best", "last") if is_best else ("last",))
                    run.summary |= {"best": best, "last": last}
                display.epoch(_epoch_line(epoch, settings.epochs, sums, val, best), epoch == settings.epochs)
    return Fitted(best, last, best_state)


def _refuse_single_samples(model: TransferModel, stream: Stream, domain: str) -> None:
    """Raises SpecError where BatchNorm would take its statistics from one sample."""
    alone = stream.samples_per_epoch == stream.steps_per_epoch
    if alone and any(isinstance(module, _BatchNorm) and module.training for module in model.modules()):
        message = "is 1, and BatchNorm takes no statistics from one sample; write 2 or more, or batchnorm: frozen"
        raise SpecError.at("pretrain.batch_size" if domain == "source" else "batch_size", message)


def _what_changes(model: TransferModel) -> dict[str, Tensor]:
    """Copies of the trained parameters and of all buffers; what is frozen needs no copy."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    return {name: t.detach().clone() for name, t in model.state_dict().items() if name not in frozen}


class _Sums:
    """Sums of the steps' losses, for means over an epoch."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._steps = 0

    def add(self, values: Mapping[str, float]) -> None:
        self._steps += 1
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def mean(self, name: str) -> float:
        return self._sums[name] / self._steps

    def means(self) -> dict[str, float]:
        return {name: self.mean(name) for name in self._sums}


def _finite(losses: objective.Losses, epoch: int, step: int) -> dict[str, float]:
    values = {name: float(value.detach()) for name, value in losses.named().items()}
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
        term = broken[-1]
        raise _diverged(epoch, step, term, values[term])
    return values


def _finite_score(metrics: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
    """A model whose validation loss is no number is never the best. Raises DivergedError."""
    if not math.isfinite(metrics["loss"]):
        raise _diverged(epoch, step, "the validation loss", metrics["loss"])
    return metrics


def _diverged(epoch: int, step: int, term: str, value: float) -> DivergedError:
    advice = "lower optimizer.lr, or look at the data. What earlier epochs have saved stays as it is"
    return DivergedError(f"epoch {epoch}, step {step}: {term} is {value}; {advice}")


def _score(metrics: Mapping[str, Any]) -> tuple[float, float]:
    return metrics["accuracy"], -metrics["loss"]


def _epoch_line(epoch: int, epochs: int, sums: _Sums, val: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    means = sums.means()
    named = means if len(means) > 2 else {"loss": means["loss"]}  # one term alone is the loss
    terms = " ".join(f"{name} {value:.4f}" for name, value in named.items())
    mark = "; best so far" if best["epoch"] == epoch else f"; best: epoch {best['epoch']}"
    return f"epoch {epoch}/{epochs}: {terms}; val accuracy {val['accuracy']:.4f} loss {val['loss']:.4f}{mark}"


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.inputs.to(device), batch.labels.to(device), batch.n_source)
