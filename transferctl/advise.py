"""`transferctl advise`: how should I fine-tune? It looks at the data and a linear probe, draws a learning curve, makes
a few cheap trials within a time budget, and proposes a spec, each choice with its evidence. No test data is read."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transferctl import (
    advicewords,
    advisedspec,
    crossvalidation,
    datafacts,
    features,
    jsontext,
    learningcurve,
    loaders,
    pipeline,
    pretrain,
    results,
    runs,
    signals,
    strategies,
    trials,
    trialsearch,
    yamlfile,
)
from transferctl.advicewords import Found
from transferctl.budget import Clock, Forecast, in_words
from transferctl.cache.cache import open_cache
from transferctl.data import DomainData
from transferctl.datafacts import DataFacts
from transferctl.display import Display
from transferctl.errors import (
    DataError,
    OutOfTime,
    Problem,
    SpecError,
    from_os_error,
)
from transferctl.features import FeatureTable
from transferctl.frozen import FrozenStages
from transferctl.learningcurve import Curves
from transferctl.model import BatchNorm, TransferModel
from transferctl.paired import Round
from transferctl.runs import Run
from transferctl.spec import Spec, WeightsFile
from transferctl.speccomments import quoted
from transferctl.strategies import Measured, Space
from transferctl.trialsearch import Asked, Search
from transferctl.wording import printable, shown

FILE = "advised.yaml"
LEAST_SCRATCH_SHARE = 0.05  # even where what is left of the budget may not do for the trials
CURVE_SHARE, SCRATCH_SHARE = 0.2, 0.3  # of the budget, at most, for the probe's curve and for training from scratch


def run(
    spec: Spec, budget_s: float, out: Path | None, force: bool, runs_dir: Path, display: Display, *, asked_by: str
) -> dict[str, Any]:  # fmt: skip
    """Propose a spec, into the run folder and to `out`. asked_by: the command, for the spec's first lines.

    Raises SpecError where `out` is there already and `force` is not given, for a spec that starts from a run, and for a
    budget in which not even the features can be computed.
    """
    _refuse(spec, out, force)
    asked = _set_up(spec, budget_s, runs_dir, display)
    splits = asked.target.named_splits("target")
    with (
        runs.start(runs_dir, "advise", spec.name, yamlfile.dump(spec), display) as folder,
        pipeline.naming_all_broken(asked.target.splits(), spec, display),
        _saying_what_there_is(folder, display),
    ):
        results.describe_run(folder, spec.seed, asked.compute, asked.model, splits, display)
        told = "it is a run of advise, which has not come to its advice"
        folder.summary |= {"budget_s": budget_s, "skipped": asked.target.skipped, "without_model": told}
        facts = _look_at_the_data(asked, folder)
        curves = _learning_curve(asked, facts, folder)
        found = _decide(asked, facts, curves, folder)
        _tell(asked, spec, found, folder)
        _write(asked, spec, found, folder, out, asked_by)
        told = f"it is a run of advise; train the spec that it advised, {folder.path / FILE}"
        folder.summary["without_model"] = told
    display.result(str(folder.path))
    return folder.summary


def _refuse(spec: Spec, out: Path | None, force: bool) -> None:
    if spec.from_run:
        message = "starts from a run, whose head has seen what other seeds hold out; remove it: trials start from "
        raise SpecError.at("from", f"{message}backbone.weights")
    if out is None:
        return
    where = f"--out {printable(str(out))}"
    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder" if out.is_dir() else f"there is no folder {printable(str(out.parent))}"
        raise SpecError([Problem("", f"{what}; name a file", where)])
    if not os.access(out.parent, os.W_OK):
        raise from_os_error(PermissionError(errno.EACCES, os.strerror(errno.EACCES)), out, "--out")
    if os.path.lexists(out) and not force:
        raise SpecError([Problem("", "is there already; name another file, or write it anew with --force", where)])


def _set_up(spec: Spec, budget_s: float, runs_dir: Path, display: Display) -> Asked:
    blind = spec.model_copy(update={"target": spec.target.model_copy(update={"test": None})})
    target = pipeline.load_target(blind, display)
    source = pipeline.load_source(blind, display) if blind.source else None
    compute = pipeline.chosen_device(spec, display)
    pipeline.refuse_reused_hold_out(spec, target, display)
    start = pretrain.ensure_source(blind, runs_dir, display, source)
    stage0_s = 0.0
    if start is not blind:
        assert isinstance(start.backbone.weights, WeightsFile)
        stage0_s = float(jsontext.read(start.backbone.weights.path / "summary.json")["elapsed_s"])
        display.note("stage 0 comes before the budget; that of other seeds, which confirm, is part of it")
    clock = Clock(budget_s, time.monotonic())
    display.note(f"budget: {in_words(budget_s)}; test data is not looked at")
    model = pipeline.transfer_model(start, pipeline.load_backbone(start), target.classes, display)
    space = _space(spec, target, model, display)
    model.freeze("all", BatchNorm())
    model.place(compute)
    with pipeline.naming_all_broken(target.splits(), spec, display):
        rates = trials.measured_rates(model, pipeline.task_of(spec), target.train, compute)
    return Asked(
        blind, start, stage0_s, target, source, model, compute, space, clock, Forecast(rates), display
    )  # fmt: skip


def _space(spec: Spec, target: DomainData, model: TransferModel, display: Display) -> Space:
    stages, thawed = trials.thawed_stages(spec, model)
    head: dict[str, Any] = {"solver": "lbfgs"}
    if spec.head.hidden or spec.head.dropout:
        head = {"solver": "sgd"}
        display.note("head: it has hidden layers or dropout, so trials train it by sgd, as your spec says")
    elif spec.head.regularisation == "auto":
        try:
            crossvalidation.fold_count(target.train.labels, target.classes, "target.train", "")
        except DataError:
            head["regularisation"] = learningcurve.FIXED_REGULARISATION
    rehearses = spec.source is not None and spec.source.rehearsal
    weight = (1.0 if spec.target_weight is None else spec.target_weight) if rehearses else None
    rates = spec.optimizer.stage_lr
    return Space(stages, thawed, spec.optimizer.lr, rates, weight, head, spec.head_first is not None)


@contextmanager
def _saying_what_there_is(folder: Run, display: Display) -> Iterator[None]:
    """What was found before a signal stays, and that is said."""
    try:
        yield
    except signals.ENDING:
        there = [key for key in ("data", "probe", "learning_curve", "trials") if key in folder.summary]
        found = f"what was found so far ({shown(there)}) is in {folder.path}/summary.json" if there else "nothing yet"
        display.note(f"stopped: {found}; run again, what frozen stages computed comes from the cache")
        raise


# -- data, probe, learning curve ----------------------------------------------------------------------------


def _look_at_the_data(asked: Asked, folder: Run) -> DataFacts:
    size = asked.model.preprocessing
    facts = datafacts.look(asked.target, size.resize, size.crop)
    asked.display.table("Data", ["", ""], datafacts.rows(facts))
    folder.summary["data"] = facts.as_json()
    return facts


def _learning_curve(asked: Asked, facts: DataFacts, folder: Run) -> Curves:
    tables, spec, display = _tables(asked), asked.start, asked.display
    allowed_s = CURVE_SHARE * asked.clock.budget_s
    try:
        with signals.ending_after(asked.clock.left_s):
            curves = learningcurve.probe_curve(
                tables["train"], tables["val"], len(asked.target.classes), spec.seed, asked.compute, asked.clock,
                allowed_s,
            )  # fmt: skip
    except OutOfTime:
        curves = Curves((), left_out=("the probe: stopped, as the time was up",))
    display.table("Linear probe", ["", "accuracy", ""], advicewords.probe_rows(curves, facts))
    if fold := curves.out_of_fold:
        low, high = fold.interval
        folder.summary["probe"] = {"accuracy": fold.accuracy, "accuracy_low": low, "accuracy_high": high, "n": fold.n}
    budget_s, spare_s = asked.clock.budget_s, asked.clock.left_s - trialsearch.least_s(asked)
    allowed_s = max(min(SCRATCH_SHARE * budget_s, spare_s), LEAST_SCRATCH_SHARE * budget_s)
    curves = learningcurve.with_scratch(
        curves, spec, asked.target, asked.compute, asked.clock, asked.forecast, allowed_s, display
    )
    columns = ["labels", "transfer: linear probe, %", "draws' sd", "from scratch, %"]
    display.table(f"Learning curve, on {facts.val:,} validation images", columns, learningcurve.rows(curves))
    for why in curves.left_out:
        display.note(f"learning curve: left out: {why}")
    for sentence in learningcurve.sentences(curves):
        display.result(sentence)
    folder.write_text(learningcurve.PLOT, learningcurve.drawn(curves, facts.majority))
    folder.summary["learning_curve"] = learningcurve.as_json(curves)
    return curves


def _tables(asked: Asked) -> dict[str, FeatureTable]:
    """The features of train and val, from the cache where it has them. Raises SpecError where computing them takes
    longer than there is."""
    spec, display = asked.start, asked.display
    task, cache = pipeline.task_of(spec), open_cache(spec.cache, display.warn)
    stages = FrozenStages(
        asked.model, len(asked.model.backbone.stages()), asked.compute, display, compile_=spec.compile
    )
    found = {split.name: features.find(stages, split, cache) for split in (asked.target.train, asked.target.val)}
    missing, rates = sum(len(table.rows.missing) for table in found.values()), asked.forecast.rates
    expected_s = missing * (rates.decode_s + sum(rates.stages_s))
    if expected_s > asked.clock.left_s:
        for table in found.values():
            table.rows.close()
        enough = in_words(10 * (expected_s + asked.forecast.overhead_s))
        spent = f"starting took {in_words(asked.clock.spent_s)}"
        message = f"is too little: {spent}, and the features of {missing:,} images take {in_words(expected_s)} or so"
        raise SpecError([Problem("", f"{message}; {enough} would do", f"--budget {asked.clock.budget_s:g}s")])
    for table in found.values():
        features.complete(table, task, display, workers=loaders.workers_for(spec.workers, table.split))
    return found


# -- the decision -------------------------------------------------------------------------------------------


def _decide(asked: Asked, facts: DataFacts, curves: Curves, folder: Run) -> Found:
    """Trials, then the contenders again on images and with seeds that chose nothing."""
    search = Search(trials.choosing(asked.target.val, asked.is_held_out, asked.spec.seed))
    decision = strategies.Decision(strategies.as_given(asked.space))  # stays where nothing was tried
    try:
        trialsearch.explore(asked, search, folder.path / "trials")
        if search.measured:
            contending = strategies.contenders(search.measured)
            if len(contending) > 1:
                candidates = [one.candidate for one in contending]
                trialsearch.confirm(asked, candidates, search, folder.path / "trials")
            standing = [one for one in contending if _stands(one, search)]
            decision = strategies.decide(standing or contending, search.rounds if standing else ())
        elif not curves.probe:
            message = "is too little: there was no time for a linear probe, nor for a trial"
            raise SpecError([Problem("", message, f"--budget {asked.clock.budget_s:g}s")])
    finally:
        spread = _by_seed(search.rounds)
        folder.summary |= advicewords.trials_as_json(search.measured, search.left_out)
        folder.summary["confirmation"] = {"rounds": len(search.rounds), "by_seed": spread}
    images = {name for one in search.rounds for name in next(iter(one.values())).names}
    return Found(
        facts, curves, asked.space, search.measured, search.left_out, decision, len(search.choosing), len(images),
        spread,
    )  # fmt: skip


def _stands(trial: Measured, search: Search) -> bool:
    name = trial.candidate.name
    return name not in search.failed and (not search.rounds or name in search.rounds[0])


def _by_seed(rounds: Sequence[Mapping[str, Round]]) -> dict[str, list[float]]:
    """Each contender's accuracies."""
    return {name: [float(one[name].right.mean()) for one in rounds] for name in (rounds[0] if rounds else ())}


def _tell(asked: Asked, given: Spec, found: Found, folder: Run) -> None:
    display = asked.display
    if found.trials:
        title = f"Trials, on {found.choosing} validation images, seed {asked.spec.seed}"
        display.table(title, advicewords.trial_columns(found), advicewords.trial_rows(found))
    choices = advicewords.choices(found)
    rows = [[choice.key, choice.value, choice.evidence, choice.otherwise] for choice in choices]
    display.table("Choices", ["", "choice", "evidence", "what would change it"], rows)
    chosen = found.decision.chosen
    verb = [["verb", "finetune", chosen.verb]] if chosen.verb != "finetune" else []
    if changed := [*verb, *advisedspec.differences(given, chosen.changes)]:
        display.table("Your spec → advised", ["setting", "your spec", "advised"], changed)
    display.result(advicewords.verdict(found))
    folder.summary |= advicewords.as_json(found) | {"changed": changed}


def _write(asked: Asked, given: Spec, found: Found, folder: Run, out: Path | None, asked_by: str) -> None:
    """The spec into the run folder and to `out`."""
    chosen = found.decision.chosen
    advised = advisedspec.applied(given, chosen.changes)
    told = [advicewords.verdict(found), *learningcurve.sentences(found.curves)]
    summary = [f"Written by `{asked_by}`: {chosen.words}.", *told]
    files = [folder.path / FILE, *([out] if out else [])]
    for file in files:
        text = advisedspec.text(
            advised, chosen.verb, summary, advicewords.choices(found), "As it was given:", file, file.parent
        )
        try:
            runs.write_atomically(file, text)
        except OSError as error:
            raise from_os_error(error, file, "--out") from None
        assert yamlfile.load(file).spec == advised, "what was written is what was meant"
    folder.summary["files"] = [str(file) for file in files]
    asked.display.result(f"the spec, each choice with its reason: {files[-1]}")
    asked.display.result(f"to run it: transferctl {chosen.verb} {quoted(files[-1])}")
