"""The trials of `advise` in turn: what is measured, what there is no time for, what is confirmed with other seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transferctl import advisedspec, pretrain, signals, strategies, trials, yamlfile
from transferctl.budget import Clock, Forecast, in_words
from transferctl.data import DomainData
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    OutOfTime,
    SpecError,
    is_out_of_memory,
)
from transferctl.model import TransferModel
from transferctl.paired import Round
from transferctl.spec import Spec
from transferctl.strategies import GIVEN, Candidate, LeftOut, Measured, Space
from transferctl.wording import one_line

MOST_ROUNDS = 5  # seeds that confirm
ALWAYS = 3  # trials that are made even if no time is then left to confirm them: without them there is no advice
FAILING = (DivergedError, SpecError, DataError, CheckpointError)  # a trial can; the others go on


@dataclass
class Asked:
    """What there is to advise on. spec: as trials take it, without test data; start: the same, with stage 0 done, which
    took `stage0_s` (0 where there is none); space: what there is to choose from; forecast: of how long a trial takes,
    which each teaches."""

    spec: Spec
    start: Spec
    stage0_s: float
    target: DomainData
    source: DomainData | None
    model: TransferModel
    compute: Compute
    space: Space
    clock: Clock
    forecast: Forecast
    display: Display

    @property
    def is_held_out(self) -> bool:
        """Whether validation data is another with each seed."""
        return isinstance(self.spec.target.val, float)

    def seconds(self, candidate: Candidate) -> float:
        """That a trial of it is likely to take. Raises SpecError for one that does not go with the spec."""
        spec = advisedspec.applied(self.spec, candidate.changes)
        return self.forecast.seconds(trials.work_of(spec, candidate, self.model, self.target, self.source))


@dataclass
class Search:
    """choosing: names of the validation images that choose; rounds: of each seed that confirms what each contender got
    right of the others, by its name; failed: the names of those that failed there."""

    choosing: frozenset[str]
    measured: list[Measured] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    rounds: list[Mapping[str, Round]] = field(default_factory=list)
    failed: set[str] = field(default_factory=set)


def explore(asked: Asked, search: Search, folder: Path) -> None:
    """Trial after trial into `search`, as long as what is left of the budget allows. folder: of their runs."""
    known: dict[str, Measured] = {}
    proposals = strategies.candidates(asked.space)
    candidate = next(proposals)
    while True:
        try:
            candidate = proposals.send(_tried(asked, candidate, search, known, folder))
        except StopIteration:
            return


def _tried(
    asked: Asked, candidate: Candidate, search: Search, known: dict[str, Measured], folder: Path
) -> Measured | None:
    """None where there was no time for it, or where it failed."""
    why = ""
    try:
        spec = advisedspec.applied(asked.start, candidate.changes)
        identity = candidate.verb + yamlfile.dump(spec)
        if identity in known:
            return known[identity]
        why, left = _no_time(asked, candidate, search.measured), in_words(asked.clock.left_s)
        with signals.ending_after(asked.clock.left_s):
            outcome = None if why else _run(asked, candidate, spec, asked.spec.seed, folder)
    except OutOfTime:
        why, outcome = f"stopped: it took longer than the {left} that were left", None
    except Exception as error:
        is_expected = isinstance(error, FAILING) or is_out_of_memory(error)
        if not is_expected or (candidate.name == GIVEN and not isinstance(error, DivergedError)):
            raise
        why, outcome = f"failed: {_in_words(error)}", None
    if outcome is None:
        search.left_out.append(LeftOut(candidate, why))
        asked.display.note(f"{candidate.words}: {why}")
        return None
    right = trials.those(outcome.val, search.choosing).right
    loss = float(outcome.metrics["loss"]) if asked.is_held_out else None  # elsewhere it is of what confirms too
    known[identity] = result = Measured(candidate, right, outcome.elapsed_s, loss, outcome.source_change)
    search.measured.append(result)
    told = f"{100 * result.accuracy:.1f} % of {len(right)} validation images; took {in_words(outcome.elapsed_s)}"
    asked.display.note(f"{candidate.words}: {told}; {in_words(asked.clock.left_s)} are left")
    return result


def _no_time(asked: Asked, candidate: Candidate, measured: Sequence[Measured]) -> str:
    """Why there is no time for it; empty where there is. Beyond the first few, time must be left to confirm what has
    been found."""
    expected, left = asked.seconds(candidate), asked.clock.left_s
    told = f"not tried: takes about {in_words(expected)}"
    if expected > left:
        return f"{told}; {in_words(left)} are left"
    if len(measured) < ALWAYS:
        return ""
    again = _round_s(asked, [one.candidate for one in strategies.contenders(measured)])
    return f"{told}; what is left is for confirming" if expected + strategies.ENOUGH_ROUNDS * again > left else ""


def least_s(asked: Asked) -> float:
    """How long the trials take that are always made, and to confirm them with enough seeds."""
    proposals = strategies.candidates(asked.space)
    first = [next(proposals), *(proposals.send(None) for _ in range(ALWAYS - 1))]
    return sum(map(asked.seconds, first)) + strategies.ENOUGH_ROUNDS * _round_s(asked, first)


def _round_s(asked: Asked, contending: Sequence[Candidate]) -> float:
    """How long all of them take with another seed."""
    return asked.stage0_s + sum(map(asked.seconds, contending))


def _run(asked: Asked, candidate: Candidate, spec: Spec, seed: int, folder: Path) -> trials.Outcome:
    outcome = trials.run(spec, candidate, seed, folder, asked.display)
    work = trials.work_of(spec, candidate, asked.model, asked.target, asked.source)
    asked.forecast = asked.forecast.taught(work, outcome.elapsed_s)
    return outcome


def confirm(asked: Asked, contending: Sequence[Candidate], search: Search, folder: Path) -> None:
    """All contenders again with other seeds, as many as there is time for, on validation images that did not choose,
    into `search.rounds`. A seed keys all that is random, stage 0 too. The last of them gives way where there is no time
    for all with enough of them. One that fails with a seed does not stand, whatever it did with others."""
    if len(contending) > 2 and strategies.ENOUGH_ROUNDS * _round_s(asked, contending) > asked.clock.left_s:
        asked.display.note(f"{contending[-1].words}: no time to confirm it too")
        contending = contending[:-1]
    for seed in range(asked.spec.seed + 1, asked.spec.seed + 1 + MOST_ROUNDS):
        if len(contending) < 2 or _round_s(asked, contending) > asked.clock.left_s:
            return
        try:
            with signals.ending_after(asked.clock.left_s):
                found = _confirmed(asked, contending, seed, search, folder)
        except OutOfTime:
            asked.display.note(f"seed {seed}: stopped, as the time was up; it does not count")
            return
        except FAILING as error:
            asked.display.warn(f"seed {seed}: confirming failed: {error}")
            return
        contending = [one for one in contending if one.name in found]
        if not contending:
            return
        if not len(found[contending[0].name].names):
            asked.display.note("no validation image is left that did not choose, so nothing can be confirmed")
            return
        search.rounds = [{name: one[name] for name in found} for one in (*search.rounds, found)]
        told = "; ".join(f"{one.words} {100 * found[one.name].right.mean():.1f} %" for one in contending)
        asked.display.note(f"seed {seed}, on {len(found[contending[0].name].names)} images that did not choose: {told}")


def _confirmed(
    asked: Asked, contending: Sequence[Candidate], seed: int, search: Search, folder: Path
) -> dict[str, Round]:
    """By name, of those that did not fail."""
    start, found = asked.start, dict[str, Round]()
    if asked.stage0_s:
        with asked.display.quietly(warnings=False):
            start = pretrain.ensure_source(asked.spec.model_copy(update={"seed": seed}), folder, asked.display)
    for one in contending:
        try:
            outcome = _run(asked, one, advisedspec.applied(start, one.changes), seed, folder)
        except Exception as error:
            if not isinstance(error, DivergedError) and not is_out_of_memory(error):
                raise
            search.failed.add(one.name)
            search.left_out.append(LeftOut(one, f"failed with seed {seed}: {_in_words(error)}"))
            asked.display.warn(f"{one.words}: {search.left_out[-1].why}")
            continue
        found[one.name] = trials.those(outcome.val, search.choosing, within=False)
    return found


def _in_words(error: Exception) -> str:
    return "out of memory" if is_out_of_memory(error) else one_line(error, 2000)
