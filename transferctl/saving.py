"""When a training saves itself, and how it goes on from what was saved: mid-epoch, with the same bits."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from transferctl import checkpoint, trainingstate
from transferctl.checkpoint import STATE_FILE, WEIGHTS_FILE, Checkpoint, Damaged
from transferctl.display import Display
from transferctl.ema import Ema
from transferctl.errors import CheckpointError, ResourceError, from_os_error
from transferctl.model import TransferModel, load_state, state_for_checkpoint
from transferctl.runs import Run
from transferctl.savesettings import Every
from transferctl.sizes import in_words
from transferctl.trainingstate import Course, Position
from transferctl.wording import counted

SPARE_BYTES = 16 << 20  # for what a run writes besides checkpoints


class Saver:
    """Of one training in a run folder. first_step: how many steps an earlier process has taken, as its newest whole
    checkpoint has it; begins: whether there is none.

    An epoch that is due is saved scored, with its links; between epochs what is due is saved unscored, for resuming.
    """

    _model: TransferModel
    _weights: Mapping[str, nn.Parameter]
    _optimizer: torch.optim.Optimizer
    _ema: Ema | None
    _course: Course
    _saved: tuple[int, int] | None = None  # step and epochs

    def __init__(self, run: Run, every: Every, display: Display):
        """Says loudly which checkpoints cannot be used. Raises CheckpointError for one that only cannot be read now,
        ResourceError."""
        self._run, self._every, self._display = run, every, display
        self._found: tuple[Checkpoint, Position, dict[str, Tensor]] | None = None
        if run.is_resumed:
            self._found = self._newest()
            if self._found is None:
                self._go_back_to(None)
        self.begins = self._found is None
        self.first_step = self._found[1].step if self._found else 0
        self._saved_at_s = time.monotonic()

    def begin(
        self, model: TransferModel, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer,
        ema: Ema | None, course: Course, epochs: int,
    ) -> Course:  # fmt: skip
        """Ready to save these: weights, by name, are those that the optimizer trains. They and the course are as they
        were when the checkpoint was written, where one was found. epochs: of the whole training. Raises
        CheckpointError where it is of another training, ResourceError where the disk has no room."""
        self._model, self._weights, self._optimizer, self._ema = model, weights, optimizer, ema
        self._course = course
        if self._found:
            self._restore(*self._found, epochs)
            self._go_back_to(self._found)
            self._found = None
        self._refuse_full_disk()
        self._run.settle()
        return self._course

    def step_done(self, *, at_epochs_end: bool) -> None:
        """Saves where a save is due. The end of an epoch is saved once it is scored."""
        if not at_epochs_end and self._every.due(self._course.step, self._elapsed_s()):
            self._save(scored=False)

    def epoch_done(self, *, is_best: bool) -> None:
        """To be called with the model as it was scored."""
        course = self._course
        if self._every.due(course.step, self._elapsed_s(), course.epochs):
            self._save(scored=True, links=("best", "last") if is_best else ("last",))

    def interrupted(self) -> None:
        """Save where the training stands, between two steps, unless that is saved already."""
        if self._saved != (self._course.step, self._course.epochs):
            self._save(scored=False)
        self._display.note(f"saved at epoch {self._course.epochs + 1}, step {self._course.step}")

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._saved_at_s

    def _save(self, *, scored: bool, links: tuple[str, ...] = ()) -> None:
        course, run = self._course, self._run
        tensors = trainingstate.tensors_of(self._weights, self._optimizer, self._ema)
        if course.best and "best" not in links and not self._best_on_disk(course.best["step"]):
            tensors |= {f"best/{name}": tensor for name, tensor in course.best_state.items()}
        position = Position.of(course, self._optimizer, self._ema, run.metrics_bytes())
        manifest = self._model.describe() | {"epoch": course.epochs, "step": course.step}
        manifest |= {"training": position.model_dump()}
        if scored:
            manifest["val"] = course.last["val"]
        files = {WEIGHTS_FILE: state_for_checkpoint(self._model), STATE_FILE: tensors}
        checkpoint.save(run.path, checkpoint.name_of(course.step, scored=scored), files, manifest, links)
        self._saved, self._saved_at_s = (course.step, course.epochs), time.monotonic()

    def _best_on_disk(self, step: int) -> bool:
        best = self._run.path / "checkpoints" / "best"
        return best.is_dir() and best.resolve().name == checkpoint.name_of(step)

    # -- going on

    def _newest(self) -> tuple[Checkpoint, Position, dict[str, Tensor]] | None:
        """The newest checkpoint that is whole, and its best epoch's weights too."""
        for found, tensors in checkpoint.resumable(self._run.path, self._display.warn):
            try:
                position = trainingstate.read_position(found)
                return found, position, tensors | self._best_state(position, found, tensors)
            except Damaged as error:
                self._display.warn(f"{found.path.name} cannot be used, falling back to an older one: {error}")
        if checkpoint.any_of(self._run.path):
            self._display.note("no checkpoint is there to go on from: the training begins anew")
        return None

    def _best_state(self, position: Position, found: Checkpoint, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """best/NAME, by the model's own names, from the checkpoint of the best epoch; none where the training has them
        beside it, or has no best yet. Raises Damaged."""
        if position.best is None or any(name.startswith("best/") for name in tensors):
            return {}
        name = checkpoint.name_of(position.best.step)
        if name != found.path.name and not checkpoint.is_whole(self._run.path, name):
            raise Damaged(f"{name}, the best epoch that it knows, is damaged or gone")
        state = found.state if name == found.path.name else checkpoint.load(self._run.path, name).state
        return {f"best/{key.replace('backbone.', 'backbone.net.', 1)}": tensor for key, tensor in state.items()}

    def _go_back_to(self, newest: tuple[Checkpoint, Position, dict[str, Tensor]] | None) -> None:
        """Checkpoints, links and metrics as they were when it was saved: a kill can come between any two of them."""
        run, name = self._run, newest[0].path.name if newest else None
        try:
            checkpoint.discard_newer(run.path, name, whole_ones=run.may_differ)
            if newest and newest[1].last:
                best, last = newest[1].best, newest[1].last
                links = {"best": best and checkpoint.name_of(best.step), "last": checkpoint.name_of(last.step)}
                checkpoint.link(run.path, {key: name for key, name in links.items() if name and self._is_there(name)})
            if not run.rewind_metrics(newest[1].metrics_bytes if newest else 0):
                self._display.warn(f"{run.path}/metrics.jsonl is shorter than it was: lines of it are lost")
        except OSError as error:
            raise from_os_error(error, run.path) from None

    def _is_there(self, name: str) -> bool:
        return checkpoint.exists(self._run.path, name)

    def _restore(self, found: Checkpoint, position: Position, tensors: dict[str, Tensor], epochs: int) -> None:
        now, run = self._course.steps_per_epoch, self._run.path
        anew = f"begin anew, with --from {run} to start from its best model"
        if position.steps_per_epoch != now:
            raise CheckpointError(f"{run}: an epoch had {position.steps_per_epoch} steps and has {now} now; {anew}")
        if position.step > epochs * now:
            raise CheckpointError(f"{run}: has come to epoch {position.epochs + 1}, and epochs is {epochs} now; {anew}")
        if position.optimizer != type(self._optimizer).__name__ or (position.ema is None) != (self._ema is None):
            raise CheckpointError(f"{run}: was trained with another optimizer, or with or without ema; {anew}")
        load_state(self._model, found)
        trainingstate.restore_optimizer(self._optimizer, self._weights, tensors)
        if self._ema and position.ema:
            self._ema.restore(_part(tensors, "ema/"), position.ema.steps, was_applied=position.ema.is_applied)
        self._course = position.course()
        self._course.best_state = _part(tensors, "best/")
        self._saved = position.step, position.epochs
        epochs_done = f"{counted(position.epochs, 'epoch')} and " if position.epochs else ""
        self._display.note(f"resuming {run} after {epochs_done}step {position.step} ({found.path.name})")

    def _refuse_full_disk(self) -> None:
        """Before the first step rather than after hours. The optimizer's tensors and the average are not there yet."""
        weights = sum(t.numel() * t.element_size() for t in state_for_checkpoint(self._model).values())
        trained = sum(weight.numel() * weight.element_size() for weight in self._weights.values())
        each = weights + trained * ((2 if "betas" in self._optimizer.defaults else 1) + (self._ema is not None))
        needed = weights + (checkpoint.KEPT + 3) * each + SPARE_BYTES  # start, those kept, best, last, the next one
        there = _bytes_in(self._run.path / "checkpoints")
        free = shutil.disk_usage(self._run.path).free
        if needed - there > free:
            raise ResourceError(
                f"{self._run.path}: checkpoints of {in_words(each)} each may take {in_words(needed)} here, and "
                f"{in_words(free)} are free; free some space, or move the runs with --runs-dir"
            )


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
