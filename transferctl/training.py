"""The loop: step, validate, save. Every verb that trains runs through `fit`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transferctl import microbatches, nonfinite, optim, signals
from transferctl.contracts import Batch
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.ema import Ema
from transferctl.errors import SpecError
from transferctl.loaders import Stream
from transferctl.model import BatchNorm, TransferModel, norms
from transferctl.objective import Losses, Objective, gradient_cosine
from transferctl.preprocess import keyed_randomness
from transferctl.results import headline
from transferctl.runs import Run
from transferctl.saving import Saver
from transferctl.scoring import Forward, measure
from transferctl.trainingstate import Course, Fitted, Sums
from transferctl.trainsettings import HeadTrainingSettings

GoesOn = Callable[[int, Mapping[str, Any]], bool]


def to_the_end(epochs: int, val: Mapping[str, Any]) -> bool:
    """Nobody stops the training."""
    return True


def fit(  # noqa: PLR0912, PLR0915 (the loop tells the story)
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
    saver: Saver | None = None,
    goes_on: GoesOn = to_the_end,
) -> Fitted:
    """Minimise the objective over the stream; after each epoch validate, keep the best, save.

    seed: with the step, keys dropout and whatever else is random in the model. frozen: what is frozen from which
    epoch on; the first is 1. forward: a batch -> Features (the whole model, or nothing where features were
    computed before). settings_key: where in the spec `settings` stand ("pretrain."), for messages. log_cosine: between
    the gradients of both domains, every step. run: where metrics go; None leaves no trace. saver: saves what is due,
    and has the course of an earlier process, from whose last step the stream goes on; None saves nothing. goes_on:
    asked before each epoch but the first, with how many are done and what the last one scored on validation data;
    where it says no, the training is pruned, and ends as if it had been as long as that.

    Best is the highest accuracy on validation data of `domain`, then the lowest loss, then the earliest; or the last,
    with `keep: last`. The model is left as it was validated last: with the running mean of its weights, where `ema`
    asks for that. At a signal, what is done is saved first. Raises DivergedError, SpecError, CheckpointError.
    """
    trained = _ever_trained(model, frozen.values(), batchnorm)
    _refuse_single_samples(model, stream, frozen.values(), batchnorm, settings_key)
    groups = optim.groups(settings.optimizer, model, trained, settings_key)
    optimizer = optim.build(settings.optimizer, groups)
    ema = Ema(model, trained, settings.ema) if settings.ema else None
    total_steps = settings.epochs * stream.steps_per_epoch
    weights = {name: p for name, p in model.named_parameters() if name in trained}
    course = Course(steps_per_epoch=stream.steps_per_epoch)
    if saver:
        course = saver.begin(model, weights, optimizer, ema, course, settings.epochs)
    pruned: dict[str, int] = {}
    step_of = partial(_gradients, model, weights, objective, forward, compute, seed, log_cosine=log_cosine)
    with closing(stream), display.progress("training", settings.epochs * stream.samples_per_epoch) as progress:
        progress.skip(course.step * stream.samples_per_epoch // stream.steps_per_epoch)
        try:
            while course.epochs < settings.epochs and not _waited_enough(course, settings, frozen):
                if course.epochs and not goes_on(course.epochs, course.last["val"]):
                    pruned = {"epoch": course.epochs, "of": settings.epochs}
                    break
                epoch = course.epochs + 1
                model.freeze(_latest(frozen, epoch), batchnorm)
                model.train()
                for _ in range(course.step, epoch * stream.steps_per_epoch):
                    batch = next(stream.batches).to(compute.device)
                    with signals.held():  # a step is made whole, or not at all
                        rate = optim.rate_factor(settings.schedule, course.step / total_steps)
                        optim.set_learning_rates(optimizer, groups, rate)

                        # ---- one step: min over θ of L_S + λ·L_T + Σ w·Ω
                        gradients = partial(step_of, batch, epoch, course.step)
                        if settings.on_oom == "halve":
                            terms, course.parts = microbatches.halving(
                                gradients, course.parts, batch, model, compute, display.warn
                            )
                        else:
                            terms = gradients(course.parts)
                        optimizer.step()
                        if ema:
                            ema.update()
                        # ----

                        course.step += 1
                        course.sums.add(terms)
                    if saver:
                        saver.step_done(at_epochs_end=course.step == epoch * stream.steps_per_epoch)
                    loss = f"epoch {epoch}/{settings.epochs} loss {course.sums.mean('loss'):.4f}"
                    progress.advance(len(batch.labels), loss)

                with ema.applied() if ema else nullcontext():
                    val = measure(model, objective.task, validation(), forward, compute, domain, say=display.warn)
                    with signals.held():
                        is_best = _score_epoch(course, val, settings, model, trained)
                        means, course.sums = course.sums.means(), Sums()
                        if run:
                            rate = optim.rate_factor(settings.schedule, (course.step - 1) / total_steps)
                            at = {"step": course.step, "epoch": epoch}
                            run.log_metrics(**at, split="train", lr=rate * settings.optimizer.lr, **means)
                            run.log_metrics(**at, split="val", **headline(val))
                        if saver:
                            saver.epoch_done(is_best=is_best)
                is_over = epoch == settings.epochs or _waited_enough(course, settings, frozen)
                if run:
                    display.epoch(_epoch_line(epoch, settings.epochs, means, val, course.best), is_over)
        except signals.ENDING:
            if saver:
                saver.interrupted()
            raise
        finally:
            if run:
                run.summary |= course.epochs_of_note() | ({"pruned": pruned} if pruned else {})
    if pruned:
        display.note(f"pruned after epoch {course.epochs} of {settings.epochs}: others were better by then")
    elif course.epochs < settings.epochs:
        display.note(f"stopped early, after epoch {course.epochs}: no better one since epoch {course.best['epoch']}")
    if ema:
        ema.settle()
    return Fitted(course.best, course.last, course.best_state)


def _gradients(
    model: TransferModel,
    weights: Mapping[str, nn.Parameter],
    objective: Objective,
    forward: Forward,
    compute: Compute,
    seed: int,
    batch: Batch,
    epoch: int,
    step: int,
    parts: int,
    *,
    log_cosine: bool,
) -> dict[str, float]:
    """∇θ of L_S + λ·L_T + Σ w·Ω into `.grad`, one micro-batch after the other; the terms, by name. weights: θ, what
    some epoch trains. Raises DivergedError, which names the terms, weights and samples, before any weight moves."""
    for weight in weights.values():
        weight.grad = None
    sums: dict[str, Tensor] = {}

    def passes() -> Iterator[Losses]:
        with keyed_randomness(seed, "step", step, device=compute.device):
            for part, share in microbatches.of(batch, parts):
                with torch.autocast(compute.device.type, torch.bfloat16, enabled=compute.bf16):
                    features = forward(part)
                yield objective(model, features, part, share)

    for losses in passes():
        cosine = gradient_cosine(losses, model.backbone) if log_cosine else None
        losses.total.backward()  # type: ignore[no-untyped-call]
        for name, value in (losses.named() | ({} if cosine is None else {"cosine": cosine})).items():
            sums[name] = sums[name] + value.detach() if name in sums else value.detach()
    terms = {name: float(value) for name, value in sums.items()}
    nonfinite.refuse_terms(terms, batch, epoch, step + 1)
    nonfinite.refuse_gradients(weights, passes, batch, epoch, step + 1)
    return terms


def _latest(frozen: Mapping[int, str | Sequence[str]], epoch: int) -> str | Sequence[str]:
    """What is frozen in an epoch: as the schedule said last."""
    return frozen[max(start for start in frozen if start <= epoch)]


def _waited_enough(course: Course, settings: HeadTrainingSettings, frozen: Mapping[int, str | Sequence[str]]) -> bool:
    """Whether so many epochs have brought nothing better; for as long as stages are still to thaw, none count."""
    if settings.early_stopping is None or not course.best:
        return False
    best_epoch: int = course.best["epoch"]
    return course.epochs - max(best_epoch, max(frozen) - 1) >= settings.early_stopping


def _score_epoch(
    course: Course, val: dict[str, Any], settings: HeadTrainingSettings, model: TransferModel, trained: Collection[str]
) -> bool:
    """The epoch is done. Whether it is the best so far: never, if its loss is no number, for which DivergedError is
    raised."""
    epoch = course.epochs + 1
    nonfinite.refuse_score(val, epoch, course.step)
    val = headline(val)  # C classes' confusion matrix is C² numbers: the best model's is measured at the end
    is_best = not course.best or settings.keep == "last" or _score(val) > _score(course.best["val"])
    course.epochs, course.last = epoch, {"epoch": epoch, "step": course.step, "val": val}
    if is_best:
        course.best, course.best_state = course.last, _what_changes(model, trained)
    return is_best


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


def _score(metrics: Mapping[str, Any]) -> tuple[float, float]:
    return metrics["accuracy"], -metrics["loss"]


def _epoch_line(
    epoch: int, epochs: int, means: Mapping[str, float], val: Mapping[str, Any], best: Mapping[str, Any]
) -> str:
    named = means if len(means) > 2 else {"loss": means["loss"]}  # one term alone is the loss
    terms = " ".join(f"{name} {value:.4f}" for name, value in named.items())
    mark = "; best so far" if best["epoch"] == epoch else f"; best: epoch {best['epoch']}"
    return f"epoch {epoch}/{epochs}: {terms}; val accuracy {val['accuracy']:.4f} loss {val['loss']:.4f}{mark}"
