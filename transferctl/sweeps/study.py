"""Optuna, which proposes settings (TPE) and prunes members (ASHA); kept in the sweep's folder. The only file that
imports it."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transferctl.errors import CheckpointError, Problem, SpecError
from transferctl.sweeps.space import Axis, Range

FILE = "optuna.journal"
REDUCTION = 3  # of all that come so far, one in three goes on to three times as many epochs
PROPOSALS = 40  # of settings that were tried before, until they are drawn at random, and as many until there is none
SETTING, MEMBER = "setting", "member"  # user attributes: what a trial is of


Items = frozenset[tuple[str, str]]  # of a setting: keys and texts


def refuse_missing(method: str, *, prune: bool) -> None:
    """Raises SpecError where Optuna is needed and not installed."""
    if method != "optuna" and not prune:
        return
    flag = "--method optuna" if method == "optuna" else "--prune"
    found = find_spec("optuna")
    if found is None or found.origin is None:
        raise SpecError([Problem("", "needs Optuna, which is not installed: pip install 'transferctl[sweep]'", flag)])


class Study:
    """Two studies in one file: of settings, each told what its members score on average; and of members, each told
    after every epoch.

    TPE: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011. ASHA: Li et al., "A System for
    Massively Parallel Hyperparameter Tuning", MLSys 2020. Raises CheckpointError where their file cannot be read.
    """

    def __init__(self, folder: Path, seed: int):
        path = folder / FILE
        _mend(path)
        with _quiet() as optuna:
            from optuna.storages.journal import JournalFileBackend

            try:
                storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                message = f"{path}: cannot be read ({type(error).__name__}: {error}); sweep anew"
                raise CheckpointError(message) from None
            made: dict[str, Any] = {"storage": storage, "direction": "maximize", "load_if_exists": True}
            self._settings = optuna.create_study(study_name="settings", **made)
            pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
            self._members = optuna.create_study(study_name="members", pruner=pruner, **made)
        self._seed = seed

    def propose(self, index: int, axes: Sequence[Axis], tried: Collection[Items]) -> dict[str, str] | None:
        """The setting of this index, none of those tried, as their score is known; None where no other comes up. Asked
        again, after a kill, it is proposed anew, from the same seed."""
        import numpy as np

        with _quiet() as optuna:
            for trial in self._running(self._settings, SETTING, index):
                self._settings.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            for again in range(2 * PROPOSALS):
                seed = int(np.random.SeedSequence([self._seed, index, again]).generate_state(1)[0])
                by_chance = optuna.samplers.RandomSampler(seed=seed)
                tpe = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
                self._settings.sampler = tpe if again < PROPOSALS else by_chance
                asked = self._settings.ask()
                asked.set_user_attr(SETTING, index)
                settings = {axis.key: _suggested(asked, axis) for axis in axes}
                if frozenset(settings.items()) not in tried:
                    return settings
                self._settings.tell(asked.number, state=optuna.trial.TrialState.FAIL)
        return None

    def tell(self, index: int, accuracy: float | None) -> None:
        """What a setting's members scored on average; None: one has failed. Told twice, the first counts."""
        with _quiet() as optuna:
            failed = {"state": optuna.trial.TrialState.FAIL}
            for trial in self._running(self._settings, SETTING, index):
                self._settings.tell(trial.number, accuracy, **(failed if accuracy is None else {}))

    def goes_on(self, number: int, epochs: int, accuracy: float) -> bool:
        """Whether a member is among the best third of those that had as many epochs, where that is looked at. Asked
        again, by a member that was killed and has gone back some epochs, the answer is what it was."""
        with _quiet() as optuna:
            known = [trial for trial in self._members.trials if trial.user_attrs.get(MEMBER) == number]
            if not known:
                self._members.ask().set_user_attr(MEMBER, number)
                known = [trial for trial in self._members.trials if trial.user_attrs.get(MEMBER) == number]
            last = max(known[-1].intermediate_values, default=0)
            if epochs < last:
                return True
            if known[-1].state == optuna.trial.TrialState.PRUNED:
                return False
            trial = optuna.trial.Trial(self._members, known[-1]._trial_id)
            if epochs > last:
                trial.report(accuracy, epochs)
            if not trial.should_prune():
                return True
            self._members.tell(known[-1].number, state=optuna.trial.TrialState.PRUNED)
            return False

    def _running(self, study: Any, key: str, value: int) -> list[Any]:
        return [trial for trial in study.trials if trial.user_attrs.get(key) == value and not trial.state.is_finished()]


def _suggested(trial: Any, axis: Axis) -> str:
    if not isinstance(axis, Range):
        return str(trial.suggest_categorical(axis.key, list(axis.texts)))
    if axis.is_whole:
        return str(trial.suggest_int(axis.key, int(axis.low), int(axis.high), log=axis.is_log))
    return axis.rounded(trial.suggest_float(axis.key, axis.low, axis.high, log=axis.is_log))


@contextmanager
def _quiet() -> Iterator[Any]:
    """Optuna, which says nothing of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        yield optuna


def _mend(path: Path) -> None:
    """After a kill: the line that was being written, and the lock of whoever wrote it. The sweep's own lock says that
    nobody does now."""
    for lock in path.parent.glob(f"{path.name}.lock*"):
        lock.unlink(missing_ok=True)
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
