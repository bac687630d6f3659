"""The loop: step, validate, save. Every verb that trains runs through `fit`."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from transferctl import optim
from transferctl.contracts import Batch
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.ema import Ema
from transferctl.errors import DivergedError, SpecError
from transferctl.loaders import Stream
from transferctl.model import BatchNorm, TransferModel, norms
from transferctl.objective import Losses, Objective, gradient_cosine
from transferctl.preprocess import keyed_randomness
from transferctl.results import headline, save_checkpoint
from transferctl.runs import Run
from transferctl.scoring import Forward, measure
from transferctl.trainsettings import HeadTrainingSettings
from transferctl.wording import shown


@dataclass(frozen=True)
class Fitted:
    """best, last: {"epoch", "step", "val": metrics}; best_state: what training changed, as it was at the best."""

    best: dict[str, Any]
    last: dict[str, Any]
    best_state: dict[str, Tensor]


def fit(  # noqa: PLR0915 (the loop tells the story)
    model: TransferModel,
    objective: Objective,
    settings: HeadTrainingSettings,
    stream: Stream,
    validation: Callable[[], Iterable[Batch]],
    forward: Forward,
    compute: Compute,
    display: Display,
    *,
    seed: int,
    frozen: Mapping[int, str | Sequence[str]],
    batchnorm: BatchNorm,
    domain: str = "target",
    settings_key: str = "",
    log_cosine: bool = False,
    run: Run | None = None,
    save_each_epoch: bool = True,
) -> Fitted:
    """Minimise the objective over the stream; after each epoch validate, keep the best, save.

    seed: with the step, keys dropout and whatever else is random in the model. frozen: what is frozen from which
    epoch on; the first is 1. forward: a batch -> Features (the whole model, or nothing where features were
    computed before). settings_key: where in the spec `settings` stand ("pretrain."), for messages. log_cosine: between
    the gradients of both domains, every step. run: where metrics and, `save_each_epoch`, checkpoints go; None leaves
    no trace.

    Best is the highest accuracy on validation data of `domain`, then the lowest loss, then the earliest; or the last,
    with `keep: last`. The model is left as it was validated last: with the running mean of its weights, where `ema`
    asks for that. Raises DivergedError, SpecError.
    """
    trained = _ever_trained(model, frozen.values(), batchnorm)
    _refuse_single_samples(model, stream, frozen.values(), batchnorm, settings_key)
    groups = optim.groups(settings.optimizer, model, trained, settings_key)
    optimizer = optim.build(settings.optimizer, groups)
    ema = Ema(model, trained, settings.ema) if settings.ema else None
    total_steps = settings.epochs * stream.steps_per_epoch
    best: dict[str, Any] = {}
    last: dict[str, Any] = {}
    best_state: dict[str, Tensor] = {}
    step = 0
    with closing(stream), display.progress("training", settings.epochs * stream.samples_per_epoch) as progress:
        for epoch in range(1, settings.epochs + 1):
            if epoch in frozen:
                model.freeze(frozen[epoch], batchnorm)
            model.train()
            sums = _Sums()
            for _ in range(stream.steps_per_epoch):
                batch = next(stream.batches).to(compute.device)
                rate = optim.rate_factor(settings.schedule, step / total_steps)
                optim.set_learning_rates(optimizer, groups, rate)

                # ---- one step: min over θ of L_S + λ·L_T + Σ w·Ω
                with keyed_randomness(seed, "step", step, device=compute.device):
                    with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.bf16):
                        features = forward(batch)
                    losses = objective(model, features, batch)
                cosine = gradient_cosine(losses, model.backbone) if log_cosine else None
                optimizer.zero_grad(set_to_none=True)
                losses.total.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                if ema:
                    ema.update()
                # ----

                step += 1
                sums.add(_finite(losses, epoch, step, batch) | ({} if cosine is None else {"cosine": float(cosine)}))
                progress.advance(len(batch.labels), f"epoch {epoch}/{settings.epochs} loss {sums.mean('loss'):.4f}")

            with ema.applied() if ema else nullcontext():
                val = _finite_score(measure(model, objective.task, validation(), forward, compute, domain), epoch, step)
                last = {"epoch": epoch, "step": step, "val": val}
                is_best = not best or settings.keep == "last" or _score(val) > _score(best["val"])
                if is_best:
                    best, best_state = last, _what_changes(model, trained)
                if run and save_each_epoch:
                    save_checkpoint(run, model, last, ("best", "last") if is_best else ("last",))
                    run.summary |= {"best": best, "last": last}
            waited = epoch - max(best["epoch"], max(frozen) - 1)  # for as long as stages are still to thaw, none
            patience = settings.early_stopping
            stop = patience is not None and waited >= patience and epoch < settings.epochs
            if run:
                run.log_metrics(step=step, epoch=epoch, split="train", lr=rate * settings.optimizer.lr, **sums.means())
                run.log_metrics(step=step, epoch=epoch, split="val", **headline(val))
                display.epoch(_epoch_line(epoch, settings.epochs, sums, val, best), stop or epoch == settings.epochs)
            if stop:
                display.note(f"stopped early, after epoch {epoch}: no better one since epoch {best['epoch']}")
                break
    if ema:
        ema.settle()
    return Fitted(best, last, best_state)


def _ever_trained(model: TransferModel, frozen: Iterable[str | Sequence[str]], batchnorm: BatchNorm) -> dict[str, None]:
    """The names of all parameters that some epoch trains, in the model's order."""
    names: set[str] = set()
    for what in frozen:
        model.freeze(what, batchnorm)
        names |= {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: None for name, _ in model.named_parameters() if name in names}


def _refuse_single_samples(
    model: TransferModel, stream: Stream, frozen: Iterable[str | Sequence[str]], batchnorm: BatchNorm, settings_key: str
) -> None:
    """Raises SpecError where BatchNorm would take its statistics from one sample in some epoch."""
    if stream.samples_per_epoch != stream.steps_per_epoch:
        return
    for what in frozen:
        model.freeze(what, batchnorm)
        model.train()
        if any(norm.training for norm in norms(model).values()):
            message = "is 1, and BatchNorm takes no statistics from one sample; write 2 or more, or batchnorm: frozen"
            raise SpecError.at(f"{settings_key}batch_size", message)


def _what_changes(model: TransferModel, trained: Collection[str]) -> dict[str, Tensor]:
    """Copies of the parameters that some epoch trains and of all buffers; what is always frozen needs no copy."""
    frozen = {name for name, _ in model.named_parameters()} - set(trained)
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


def _finite(losses: Losses, epoch: int, step: int, batch: Batch) -> dict[str, float]:
    """The step's terms as numbers. Raises DivergedError, which names the terms (not their sum) and the samples."""
    values = {name: float(value.detach()) for name, value in losses.named().items()}
    if broken := [name for name, value in values.items() if not math.isfinite(value)]:
        terms = [name for name in broken if name != "loss"] or broken  # a finite sum may still overflow
        raise _diverged(epoch, step, ", ".join(f"{name} is {values[name]}{_on(name, batch)}" for name in terms))
    return values


def _on(term: str, batch: Batch) -> str:
    """The samples that a term is computed on; penalties look at the target's."""
    names = batch.names[batch.source if term == "loss_source" or not batch.names[batch.target] else batch.target]
    return f" on {shown(names)}" if names else ""


def _finite_score(metrics: dict[str, Any], epoch: int, step: int) -> dict[str, Any]:
    """A model whose validation loss is no number is never the best. Raises DivergedError."""
    if not math.isfinite(metrics["loss"]):
        raise _diverged(epoch, step, f"the validation loss is {metrics['loss']}")
    return metrics


def _diverged(epoch: int, step: int, what: str) -> DivergedError:
    advice = "lower optimizer.lr, λ or the penalties' weights, or look at the data. What is saved stays as it is"
    return DivergedError(f"epoch {epoch}, step {step}: {what}; {advice}")


def _score(metrics: Mapping[str, Any]) -> tuple[float, float]:
    return metrics["accuracy"], -metrics["loss"]


def _epoch_line(epoch: int, epochs: int, sums: _Sums, val: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    means = sums.means()
    named = means if len(means) > 2 else {"loss": means["loss"]}  # one term alone is the loss
    terms = " ".join(f"{name} {value:.4f}" for name, value in named.items())
    mark = "; best so far" if best["epoch"] == epoch else f"; best: epoch {best['epoch']}"
    return f"epoch {epoch}/{epochs}: {terms}; val accuracy {val['accuracy']:.4f} loss {val['loss']:.4f}{mark}"
