"""`eval --interpolate`: models between the one that fine-tuning started from and its best, target against source.

WiSE-FT: Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022. It trains nothing: a step back towards
the start often gives back much of the source for little of the target.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferctl import checkpoint, evaldata, evaluate, forgetting, gates, pipeline, plots, results, runs, scoring
from transferctl.cache.cache import open_cache
from transferctl.checkpoint import Checkpoint
from transferctl.conditions import Condition
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import CheckpointError, Problem, SpecError
from transferctl.forgetting import CHANGES
from transferctl.model import TransferModel, restore, state_for_checkpoint
from transferctl.paired import Scored
from transferctl.results import Predictions
from transferctl.runs import Run
from transferctl.spec import Spec

MOST_POINTS = 101
PLOT = "interpolation.svg"


def alphas(text: str) -> list[float]:
    """'0:1:0.1' (start:stop:step, both ends included), '0.5' or '0,0.5,1'. Raises SpecError."""
    try:
        parts = [Decimal(part.strip()) for part in (text.split(":") if ":" in text else text.split(","))]
        if ":" not in text:
            found = parts
        else:
            start, stop, step = parts
            if not (0 <= start <= stop <= 1 and 0 < step <= 1):
                raise _odd(text, "start:stop:step must have 0 ≤ start ≤ stop ≤ 1 and a step above 0, at most 1")
            if step * MOST_POINTS <= stop - start:
                raise _odd(text, f"gives more than {MOST_POINTS} points; take a longer step")
            found = [start + i * step for i in range(int((stop - start) / step) + 1)]
            found += [stop] if found[-1] < stop else []
        if not all(0 <= alpha <= 1 for alpha in found):
            raise _odd(text, "α must be from 0 (the start) to 1 (the fine-tuned model)")
    except (ArithmeticError, ValueError):
        raise _odd(text, "write start:stop:step (0:1:0.1), one number (0.5), or several (0,0.3,1)") from None
    if len(found) > MOST_POINTS:
        raise _odd(text, f"gives more than {MOST_POINTS} points")
    return [float(alpha) for alpha in found]


def _odd(text: str, message: str) -> SpecError:
    return SpecError([Problem("", message, f"--interpolate {text}")])


def refuse_beside(points: Sequence[float], conditions: Sequence[Condition], options: Sequence[str], which: str) -> None:
    """Options of `eval` that mean nothing here. Raises SpecError."""
    why = {"--source": "--interpolate scores the source too; leave out --source"}
    problems = [Problem("", why.get(name, "does not go with --interpolate; leave it out"), name) for name in options]
    if which != "best":
        message = "--interpolate goes from the start to the best checkpoint; leave out --checkpoint"
        problems.append(Problem("", message, f"--checkpoint {which}"))
    if conditions and len(points) > 1:
        message = "a gate beside --interpolate needs one α, such as --interpolate 0.5"
        problems += [Problem("", message, f"--fail-if {gate.text}") for gate in conditions]
    if problems:
        raise SpecError(problems)


def run(
    spec: Spec, trained: Path, runs_dir: Path, display: Display, *, points: Sequence[float], split: str | None,
    data_path: str | None, conditions: Sequence[Condition],
) -> dict[str, Any]:  # fmt: skip
    """Score each point between start and best on target data, as `eval` takes it, and on the source's validation
    data, if the run has that. One point alone becomes the checkpoint of the eval run.

    Raises CheckpointError where the run keeps no start; GateMissed as `eval` does.
    """
    asked = evaldata.asked(data_path, split)
    start, best = _ends(trained)
    model, started = restore(best), restore(start)
    start_state, best_state = _states(started, model, trained)
    fresh = start.manifest.get("untrained_heads", [])
    _say(start, best, model, fresh, display)
    compute, task = pipeline.chosen_device(spec, display), pipeline.task_of(spec)
    splits = {"target": evaldata.load(asked, spec, trained, model, "target", display)}
    if spec.source and spec.source.val != "none" and model.output_names("source"):
        splits["source"] = evaldata.load(evaldata.asked(None, None), spec, trained, model, "source", display)
    is_own_val = asked.other is None and splits["target"].name == "val"
    compared = len(points) == 1 and "source" in splits and "source" not in fresh
    n = len(splits["target"])
    known = evaluate.metrics_of(best, n, len(model.classes["target"]), (), calibrated=is_own_val)
    gates.refuse_odd(conditions, known + (CHANGES if compared else ()))
    with evaluate.in_run_folder(spec, trained, runs_dir, list(splits.values()), display) as folder:
        named = {f"{domain}.{scored.name}": scored for domain, scored in splits.items()}
        results.describe_run(folder, spec.seed, compute, model, named, display, seen=runs.data_fingerprints(trained))
        folder.summary |= {"checkpoint": best.path.name, "data": data_path, "split": splits["target"].name}
        inputs = evaluate.inputs_as_trained(model, task, spec, trained, "target", compute, display)
        if inputs.stages and len(points) > 1:
            cache = open_cache(spec.cache, display.warn)
            for name, scored in named.items():
                inputs.compute_ahead(scored, name, cache, display, views=None)
        is_one, rows, predictions, scores = len(points) == 1, [], Predictions(), dict[str, Scored]()
        score = partial(scoring.score, task=task, inputs=inputs, in_full=is_one, say=display.warn)
        with display.progress("interpolating", len(points) * sum(map(len, splits.values()))) as progress:
            for alpha in points:
                _set(model, between(start_state, best_state, alpha, fresh))
                scores["target"] = score(
                    model, scored=splits["target"], domain="target", calibrate=is_own_val,
                    predictions=predictions if is_one else None,
                )  # fmt: skip
                if "source" in splits:
                    scores["source"] = score(model, scored=splits["source"], domain="source")
                rows.append(_logged(alpha, scores, splits, folder))
                progress.advance(sum(map(len, splits.values())), f"α {alpha:g}")
        folder.summary["interpolation"] = rows
        where = evaldata.in_words(asked, splits["target"])
        _show(display, f"(1 − α)·start + α·best on {where}", rows)
        folder.write_text(PLOT, _drawn(rows))
        if not is_one:
            return folder.summary
        metrics, report = scores["target"][0], dict[str, Any]()
        results.write_predictions(folder, model.classes["target"], [(splits["target"], predictions)])
        _keep(folder, model, started, metrics, best, fresh)
        if is_own_val:
            name = checkpoint.name_of(best.manifest.get("step", 0))
            scoring.keep_temperature(folder, name, metrics.get("temperature"), n, display)
        results.show_classes(display, metrics)
        if compared:
            before = score(started.place(compute), scored=splits["source"], domain="source")
            folder.summary["source"] = report = forgetting.report(before, scores["source"])
            forgetting.show(display, "Source validation", report)
        gates.enforce(conditions, metrics | report, trained, folder)
    return folder.summary


def _say(start: Checkpoint, best: Checkpoint, model: TransferModel, fresh: Sequence[str], display: Display) -> None:
    display.note(f"models: from {start.path} (α = 0) to {best.path} (α = 1); preprocessing: {model.preprocessing}")
    for domain in fresh:
        display.note(f"the {domain} head was new at the start: at every α it is the fine-tuned one")


def _logged(alpha: float, scores: Mapping[str, Scored], splits: Mapping[str, Split], folder: Run) -> dict[str, Any]:
    """The scalars of a point by domain, which metrics.jsonl has a line each of."""
    row: dict[str, Any] = {"alpha": alpha}
    for domain, scored in splits.items():
        row[domain] = results.headline(scores[domain][0])
        name = scored.name if domain == "target" else f"source_{scored.name}"
        folder.log_metrics(alpha=alpha, split=name, **row[domain])
    return row


def _keep(
    folder: Run, model: TransferModel, started: TransferModel, metrics: Mapping[str, Any], best: Checkpoint,
    fresh: Sequence[str],
) -> None:  # fmt: skip
    """The model in between, as a run's own: its scores, what fine-tuning started from, the weights."""
    folder.summary |= metrics
    results.save_start(folder, started, {"untrained_heads": list(fresh)}, {})
    results.save_checkpoint(folder, model, _epoch(best, metrics), ("best", "last"))


def _ends(trained: Path) -> tuple[Checkpoint, Checkpoint]:
    best = checkpoint.load(trained)
    if not checkpoint.exists(trained, "start"):
        message = "has no `start` checkpoint, where interpolation begins; finetune keeps one (older versions did not)"
        raise CheckpointError(f"{trained}: {message}: fine-tune again, or name such a run")
    return checkpoint.load(trained, "start"), best


def _states(start: TransferModel, best: TransferModel, trained: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of the weights of both, by their names in a checkpoint."""
    states = [{name: t.clone() for name, t in state_for_checkpoint(model).items()} for model in (start, best)]
    shapes = [{name: t.shape for name, t in state.items()} for state in states]
    if shapes[0] != shapes[1]:
        raise CheckpointError(f"{trained}: its `start` and `best` are not the same network; one was put there by hand")
    return states[0], states[1]


def between(
    start: Mapping[str, Tensor], best: Mapping[str, Tensor], alpha: float, fresh: Collection[str]
) -> dict[str, Tensor]:
    """θ(α) = (1 − α)·θ_start + α·θ_best of every floating-point tensor; α = 0 and 1 give the ends themselves.

    BatchNorm's running statistics are interpolated as weights are. They are then not quite what the model in between
    would measure, which takes a pass over training data (Izmailov et al., UAI 2018, do that for averaged weights).
    Counters are those of best, as are the heads of the domains in `fresh`, which had random weights at the start.
    """
    kept = tuple(f"heads.{domain}." for domain in fresh)
    return {
        name: tensor
        if name.startswith(kept) or not tensor.is_floating_point() or torch.equal(start[name], tensor)  # to the bit
        else (1 - alpha) * start[name] + alpha * tensor
        for name, tensor in best.items()
    }


def _set(model: TransferModel, state: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, own in state_for_checkpoint(model).items():  # the model's own memory
            own.copy_(state[name])


def _show(display: Display, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    has_source = "source" in rows[0]
    columns = ["α", "target accuracy, %", "95 % interval", *(["source accuracy, %"] if has_source else [])]
    cells = [
        [f"{row['alpha']:g}", *_percent(row["target"]), *(_percent(row["source"])[:1] if has_source else [])]
        for row in rows
    ]
    display.table(title, columns, cells)


def _percent(metrics: Mapping[str, float]) -> list[str]:
    """Accuracy and its interval."""
    value, low, high = (f"{100 * metrics[key]:.1f}" for key in ("accuracy", "accuracy_low", "accuracy_high"))
    return [value, f"{low}–{high}"]


def _drawn(rows: Sequence[Mapping[str, Any]]) -> str:
    """Target accuracy against that of the source, or, without source, against α."""
    has_source = "source" in rows[0]
    points = [
        (100 * row["source"]["accuracy"] if has_source else row["alpha"], 100 * row["target"]["accuracy"])
        for row in rows
    ]
    labels = [f"α = {row['alpha']:g}" for row in rows]
    return plots.labelled_curve(points, labels, "source accuracy, %" if has_source else "α", "target accuracy, %")


def _epoch(best: Checkpoint, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its epoch: that of the best, with the scores of the model in between."""
    return {"epoch": best.manifest.get("epoch", 0), "step": best.manifest.get("step", 0), "val": metrics}
