"""When a training saves itself, and how it goes on from what was saved: mid-epoch, with the same bits."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from transferctl import checkpoint, results, trainingstate
from transferctl.checkpoint import STATE_FILE, WEIGHTS_FILE, Checkpoint
from transferctl.display import Display
from transferctl.ema import Ema
from transferctl.errors import CheckpointError, ResourceError, from_os_error
from transferctl.model import TransferModel, load_state, state_for_checkpoint
from transferctl.runs import Run
from transferctl.savesettings import Every
from transferctl.sizes import in_words
from transferctl.trainingstate import Course

SPARE_BYTES = 16 << 20  # for what a run writes besides checkpoints


class Saver:
    """Of one training in a run folder. course: how far an earlier process came with it, whose checkpoint has been
    verified; at its beginning without one, and then `begins`.

    An epoch that is due is saved scored, with its links; between epochs what is due is saved unscored, for resuming.
    """

    _saved: tuple[int, int] | None  # step and epochs

    def __init__(self, run: Run, every: Every, display: Display):
        """Raises ResourceError. Says loudly which checkpoints cannot be used."""
        self._run, self._every, self._display = run, every, display
        self._found: Checkpoint | None = None
        self.course = Course()
        if run.is_resumed:
            self._find()
        self.begins = self._found is None
        self._saved = None if self.begins else (self.course.step, self.course.epochs)
        self._saved_at_s = time.monotonic()

    def begin(self, model: TransferModel, optimizer: torch.optim.Optimizer, ema: Ema | None) -> Course:
        """Ready to save these; they and the course are as they were when the checkpoint was written, where one was
        found. Raises CheckpointError, and ResourceError where the disk has no room."""
        self._model, self._optimizer, self._ema = model, optimizer, ema
        if self._found is not None:
            self._restore(self._found)
            self._found = None
        self._refuse_full_disk()
        return self.course

    def step_done(self, *, at_epochs_end: bool) -> None:
        """Saves where a save is due. The end of an epoch is saved once it is scored."""
        if not at_epochs_end and self._every.due(self.course.step, self._elapsed_s()):
            self._save(scored=False)

    def epoch_done(self, *, is_best: bool) -> None:
        """To be called with the model as it was scored."""
        course = self.course
        if self._every.due(course.step, self._elapsed_s(), course.epochs):
            self._save(scored=True, links=("best", "last") if is_best else ("last",))

    def interrupted(self) -> None:
        """Save where the training stands, between two steps, unless that is saved already."""
        if self._saved != (self.course.step, self.course.epochs):
            self._save(scored=False)
        self._display.note(f"saved at epoch {self.course.epochs + 1}, step {self.course.step}")

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._saved_at_s

    def _save(self, *, scored: bool, links: tuple[str, ...] = ()) -> None:
        course, run = self.course, self._run
        tensors = trainingstate.tensors_of(self._optimizer, self._ema)
        if not self._best_is_saved(is_best="best" in links):
            tensors |= {f"best.{name}": tensor for name, tensor in course.best_state.items()}
        training = course.as_dict() | {"metrics_bytes": run.metrics_bytes()}
        if self._ema:
            training["ema"] = {"steps": self._ema.steps, "is_applied": self._ema.is_applied}
        manifest = self._model.describe() | {"epoch": course.epochs, "step": course.step, "training": training}
        if scored:
            manifest["val"] = results.headline(course.last["val"])
        files = {WEIGHTS_FILE: state_for_checkpoint(self._model), STATE_FILE: tensors}
        checkpoint.save(run.path, checkpoint.name_of(course.step, scored=scored), files, manifest, links)
        self._saved, self._saved_at_s = (course.step, course.epochs), time.monotonic()

    def _best_is_saved(self, *, is_best: bool) -> bool:
        """Whether the best epoch has a checkpoint of its own, or is getting one."""
        return not self.course.best or is_best or self._best_on_disk(self.course)

    def _best_on_disk(self, course: Course) -> bool:
        best = self._run.path / "checkpoints" / "best"
        return best.is_dir() and best.resolve().name == checkpoint.name_of(course.best["step"])

    # -- going on

    def _find(self) -> None:
        """The newest checkpoint that is whole, and its best one too; links and metrics as they were with it."""
        run, say, size = self._run, self._display.warn, 0
        for found in checkpoint.resumable(run.path, say):
            try:
                course = Course.from_dict(found.manifest["training"])
                course.best_state = self._best_state(course, found)
                size = int(found.manifest["training"]["metrics_bytes"])
            except CheckpointError as error:
                say(f"{found.path.name} cannot be used, falling back to an older one: {error}")
                continue
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                say(f"{found.path.name}/manifest.json does not describe a training ({error!r}); falling back")
                continue
            self._found, self.course = found, course
            break
        try:
            checkpoint.discard_newer(run.path, self._found.path.name if self._found else None)
            if self._found:
                self._relink(self._found)
            run.rewind_metrics(size)
        except OSError as error:
            raise from_os_error(error, run.path) from None
        if self._found:
            epochs = f"{self.course.epochs} epochs and " if self.course.epochs else ""
            self._display.note(f"resuming {run.path} after {epochs}step {self.course.step} ({self._found.path.name})")

    def _relink(self, found: Checkpoint) -> None:
        """A kill can come between a checkpoint and its links."""
        links = {}
        if checkpoint.UNSCORED not in found.path.name:
            links["last"] = found.path.name
            if self.course.best.get("step") == self.course.step:
                links["best"] = found.path.name
        checkpoint.link(self._run.path, links)

    def _best_state(self, course: Course, found: Checkpoint) -> dict[str, Tensor]:
        """By the model's own names, from the checkpoint itself or from that of the best epoch."""
        if not course.best:
            return {}
        prefix = "best."
        kept = {name.removeprefix(prefix): tensor for name, tensor in found.tensors(STATE_FILE).items()
                if name.startswith(prefix)}  # fmt: skip
        if kept:
            return kept
        name = checkpoint.name_of(int(course.best["step"]))
        state = found.state if name == found.path.name else checkpoint.load(self._run.path, name).state
        return {key.replace("backbone.", "backbone.net.", 1): tensor for key, tensor in state.items()}

    def _restore(self, found: Checkpoint) -> None:
        tensors = found.tensors(STATE_FILE)
        load_state(self._model, found)
        trainingstate.restore_optimizer(self._optimizer, tensors)
        facts = found.manifest["training"].get("ema")
        if (facts is None) != (self._ema is None):
            raise CheckpointError(f"{found.path}: was saved {'without' if facts is None else 'with'} an average (ema)")
        if self._ema:
            mean = {name.removeprefix("ema."): t for name, t in tensors.items() if name.startswith("ema.")}
            self._ema.restore(mean, int(facts["steps"]), was_applied=bool(facts["is_applied"]))

    def _refuse_full_disk(self) -> None:
        """Before the first step rather than after hours. The optimizer's state and the average are not there yet."""
        weights = sum(t.numel() * t.element_size() for t in state_for_checkpoint(self._model).values())
        trained = sum(p.numel() * p.element_size() for g in self._optimizer.param_groups for p in g["params"])
        per_weight = (2 if "betas" in self._optimizer.defaults else 1) + (self._ema is not None)
        each = weights + per_weight * trained
        needed = (checkpoint.KEPT + 2) * each + SPARE_BYTES  # those kept, the best, and the one that is being written
        there = _bytes_in(self._run.path / "checkpoints")
        free = shutil.disk_usage(self._run.path).free
        if needed - there > free:
            raise ResourceError(
                f"{self._run.path}: checkpoints of {in_words(each)} each may take {in_words(needed)} here, and "
                f"{in_words(free)} are free; free some space, or move the runs with --runs-dir"
            )


def _bytes_in(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
