"""`transferctl compare`: several runs on the terminal. What differs between their specs, how well each did, and whether
that is more than chance on the samples that they share. It reads what the runs left and computes nothing anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transferctl.display import Display
from transferctl.errors import CheckpointError, Problem, SpecError
from transferctl.reporting import beside, checked
from transferctl.reporting.beside import Paired
from transferctl.reporting.gather import Interval, RunRecord, Score, gather
from transferctl.runs import refuse_without_model
from transferctl.specdifferences import differing
from transferctl.wording import shown

SCALARS = {"macro_f1": "macro F1", "auroc": "AUROC", "loss": "loss", "ece": "ECE", "calibrated_ece": "ECE, calibrated"}


def run(folders: Sequence[Path], display: Display) -> dict[str, Any]:
    """Raises SpecError for fewer than two runs, CheckpointError where one is none."""
    if len(folders) < 2:
        raise SpecError([Problem("", "takes two or more; one alone is shown by `transferctl report RUN`", "RUN…")])
    for folder in folders:
        refuse_without_model(folder)
    runs = [gather(folder) for folder in folders]
    if strangers := [str(one.path) for one in runs if one.state == "unknown"]:
        raise CheckpointError(f"{shown(strangers)}: no run folder (no summary.json that says so); name those in runs/")
    labels = [beside.label(i) for i in range(len(runs))]
    named = [[label, str(one.path), one.state] for label, one in zip(labels, runs, strict=True)]
    display.table("Runs", ["", "run", "state"], named)
    settings = differing([beside.settings_of(one) for one in runs])
    rows = [[key, *values] for key, values in settings.items()]
    display.table("What differs between their specs", ["setting", *labels], rows or [["nothing", *("" for _ in runs)]])
    display.table("How well they did", ["", *labels], _scores(runs))
    for name in beside.not_the_same(runs):
        display.warn(f"{name} is not the same samples in all of them: scores on it do not compare")
    compared = beside.against_first(runs)
    _show(compared, display)
    told = [
        {"run": str(one.path), "verb": one.verb, "state": one.state, "domain": one.domain, "scores": _in_json(one)}
        for one in runs
    ]
    pairs, left_out = ([asdict(one) for one in found] for found in (compared.pairs, compared.left_out))
    return {"runs": told, "differences": settings, "against_first": pairs, "not_paired": left_out}


def _scores(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Of each domain and split that some run was scored on: accuracy with its interval, and what else tells; then what
    fine-tuning cost the source, and the time."""
    rows = []
    for domain, split in dict.fromkeys((one.domain, score.split) for one in runs for score in one.scores):
        scores = [
            next((score for score in one.scores if (one.domain, score.split) == (domain, split)), None) for one in runs
        ]
        where = f"source {split}" if domain == "source" else split
        rows.append([f"{where} accuracy, %", *(_accuracy(score) if score else "" for score in scores)])
        for key, words in SCALARS.items():
            values = [score.scalars.get(key) if score else None for score in scores]
            if any(value is not None for value in values):
                rows.append([f"{where} {words}", *("" if value is None else f"{value:.4f}" for value in values)])
    changes = [_change(one) for one in runs]
    rows += [["source accuracy, points", *changes]] if any(changes) else []
    times = [checked.number(one.summary.get("elapsed_s")) for one in runs]
    return [*rows, ["seconds", *("" if time is None else f"{time:.1f}" for time in times)]]


def _accuracy(score: Score) -> str:
    return _percent(score.accuracy) + (f", {score.so_far}" if score.so_far else "")


def _percent(value: Interval | None, sign: str = "") -> str:
    if value is None:
        return ""
    if value.low is None or value.high is None:
        return f"{100 * value.value:{sign}.1f}"
    return f"{100 * value.value:{sign}.1f} ({100 * value.low:{sign}.1f} to {100 * value.high:{sign}.1f})"


def _change(one: RunRecord) -> str:
    source = checked.mapping(one.summary.get("source"))
    value, low, high = (checked.number(source.get(f"accuracy_change{end}")) for end in ("", "_low", "_high"))
    return "" if value is None else _percent(Interval(value, low, high), "+")


def _in_json(one: RunRecord) -> dict[str, Any]:
    return {score.split: {"n": score.n, **score.scalars} for score in one.scores}


def _show(compared: Paired, display: Display) -> None:
    for one in compared.left_out:
        display.note(str(one))
    if not compared.pairs:
        display.note("no other was scored on the same samples as A, so chance cannot be told from merit")
        return
    rows = [
        [
            f"{pair.label} less A",
            pair.split,
            pair.n,
            _percent(Interval(pair.difference, pair.low, pair.high), "+"),
            pair.gained,
            pair.lost,
            f"{pair.p:.2g}",
        ]
        for pair in compared.pairs
    ]
    columns = ["", "split", "n", "accuracy, points (95 % interval)", "it alone right", "A alone right", "McNemar p"]
    display.table("On the same samples", columns, rows)
