"""compare: what differs, how well each did, and whether that is more than chance, from what runs left."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from transferctl.cli import app
from transferctl.reporting import beside, comparison, page
from transferctl.reporting.gather import gather

Invoke = Callable[..., tuple[int, dict[str, Any]]]


def a_run(folder: Path, right: np.ndarray, *, paths: str = "photo", spec: str = "name: a", **summary: Any) -> Path:
    """A run folder with one prediction a sample, of class a, and what its summary says beside."""
    folder.mkdir(parents=True)
    accuracy = float(right.mean()) if len(right) else 0.0
    scores = {"n": len(right), "accuracy": accuracy, "accuracy_low": 0.0, "accuracy_high": 1.0, "loss": 0.5}
    told = {"verb": "extract", "name": "a", "status": "finished", "elapsed_s": 2.5, "best": {"epoch": 1, "val": scores}}
    (folder / "summary.json").write_text(json.dumps(told | summary))
    (folder / "spec.yaml").write_text(f"{spec}\nbackbone: resnet18\ntarget: {{train: /photos}}\n")
    with (folder / "predictions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["split", "path", "label", "predicted", "probability"])
        rows.writerows(["val", f"{paths}{i}.jpg", "a", "a" if hit else "b", "0.9"] for i, hit in enumerate(right))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    before, after = random.random(200) < 0.6, random.random(200) < 0.75
    one = a_run(tmp_path / "one", before)
    other = a_run(tmp_path / "other", after, spec="name: b\nepochs: 3\noptimizer: {lr: 0.5}")
    return one, other, before, after


def test_what_differs_and_how_well_each_did(two: Any, invoke: Invoke) -> None:
    one, other, before, after = two
    code, answer = invoke("compare", one, other)
    assert code == 0
    assert answer["differences"] == {"optimizer.lr": ["0.01", "0.5"], "epochs": ["10", "3"]}
    assert [run["scores"]["val"]["accuracy"] for run in answer["runs"]] == [before.mean(), after.mean()]


def test_on_the_same_samples_the_difference_has_an_interval_and_a_test(two: Any, invoke: Invoke) -> None:
    """Against the normal approximation of a paired difference, and scipy's binomial test."""
    one, other, before, after = two
    (pair,) = invoke("compare", one, other)[1]["against_first"]
    difference = after.astype(float) - before
    assert (pair["n"], pair["difference"]) == (200, pytest.approx(difference.mean()))
    half = 1.96 * difference.std() / np.sqrt(200)
    assert (pair["low"], pair["high"]) == pytest.approx(
        (difference.mean() - half, difference.mean() + half), abs=0.2 * half
    )
    assert (pair["gained"], pair["lost"]) == ((after & ~before).sum(), (before & ~after).sum())
    assert pair["p"] == pytest.approx(stats.binomtest(pair["gained"], pair["gained"] + pair["lost"]).pvalue)


@pytest.mark.parametrize("how", ["other paths", "fewer", "none", "cut", "another order"])
def test_samples_that_are_not_the_same_are_not_paired(how: str, two: Any, tmp_path: Path, invoke: Invoke) -> None:
    one, other, _, after = two
    file = other / "predictions.csv"
    lines = file.read_text().splitlines(keepends=True)
    if how == "other paths":
        other = a_run(tmp_path / "third", after, paths="picture")
    elif how == "none":
        file.unlink()
    else:
        shorter = {"fewer": lines[:-1], "cut": [*lines[:-1], lines[-1][:5]], "another order": [lines[0], *lines[:0:-1]]}
        file.write_text("".join(shorter[how]))
    code, answer = invoke("compare", one, other)
    assert (code, answer["against_first"]) == (0, [])
    reasons = {"none": "B has no predictions.csv", "cut": "of B, predictions.csv cannot be read: line 201"}
    assert answer["not_paired"][0]["reason"].startswith(reasons.get(how, "not the same samples, labels and order"))


def test_splits_that_both_predicted_are_paired_and_others_are_named(two: Any, invoke: Invoke) -> None:
    """Of extract, val and then test, beside `eval --split test` of the same run."""
    one, other, before, after = two
    for run, splits in ((one, ("val", "test")), (other, ("test",))):
        header, *rows = (run / "predictions.csv").read_text().splitlines(keepends=True)
        text = header + "".join(row.replace("val,", f"{split},", 1) for split in splits for row in rows)
        (run / "predictions.csv").write_text(text)
    code, answer = invoke("compare", one, other)
    (pair,), (left_out,) = answer["against_first"], answer["not_paired"]
    assert (code, pair["split"], pair["n"], pair["gained"]) == (0, "test", 200, (after & ~before).sum())
    assert (left_out["split"], left_out["reason"]) == ("val", "only A predicted it")
    made = comparison.of([gather(one), gather(other)])
    assert made.missing == {"B less A val": "only A predicted it"}
    assert "B is not paired with A on val: only A predicted it." in made.html


def test_scores_of_the_source_head_are_no_rows_of_the_targets(two: Any, tmp_path: Path, invoke: Invoke) -> None:
    one, _, before, _ = two
    source = a_run(tmp_path / "source", before, verb="pretrain")
    for run in (one, source):
        (run / "metrics.jsonl").write_text('{"split": "val", "epoch": 1, "accuracy": 0.5, "loss": 1}\n')
    answer = invoke("compare", one, source)[1]
    assert [run["domain"] for run in answer["runs"]] == ["target", "source"] and not answer["against_first"]
    assert answer["not_paired"][0]["reason"] == "A was scored on the target, B on the source"
    done = CliRunner().invoke(app, ["compare", str(one), str(source)])
    assert "val accuracy, %" in done.stdout and "source val accuracy, %" in done.stdout
    page = comparison.of([gather(one), gather(source)]).html
    assert "<h3>Validation</h3>" in page and "<h3>Source validation</h3>" in page
    assert "Validation accuracy: A from" in page and "Source validation accuracy: B from" in page


def test_many_runs_are_each_compared_with_the_first(two: Any, tmp_path: Path, invoke: Invoke) -> None:
    one, other, before, _ = two
    code, answer = invoke("compare", one, other, a_run(tmp_path / "same", before))
    assert code == 0
    assert [(pair["label"], pair["gained"] + pair["lost"] > 0) for pair in answer["against_first"]] == [
        ("B", True), ("C", False),
    ]  # fmt: skip


def test_one_run_or_what_is_none_is_refused(two: Any, tmp_path: Path, invoke: Invoke) -> None:
    code, answer = invoke("compare", two[0])
    assert code == 2 and "takes two or more" in answer["error"]
    code, answer = invoke("compare", two[0], tmp_path)
    assert code == 4 and str(tmp_path) in answer["error"]


def test_the_page_of_several_runs_has_the_same_pairs(two: Any) -> None:
    one, other, *_ = two
    page = comparison.of([gather(one), gather(other)]).html
    (pair,) = beside.against_first([gather(one), gather(other)]).pairs
    assert "McNemar" in page and f"{100 * pair.difference:+.1f}" in page
    assert f'data-label="it alone right">{pair.gained}</td>' in page


PROBE = {
    "iterations": 63, "converged": True, "regularisation": 3.16, "folds": 5,
    "cross_validation": [{"regularisation": alpha, "loss": 0.5, "standard_error": 0.01, "accuracy": 0.7}
                         for alpha in (3.16, 1.0)],
}  # fmt: skip


def test_a_head_that_was_solved_has_no_epochs(two: Any, tmp_path: Path) -> None:
    _, other, before, _ = two
    solved = a_run(tmp_path / "solved", before, spec="name: a\nhead: {solver: lbfgs}", probe=PROBE)
    for run, epochs in ((solved, [63]), (other, [1, 2])):
        rows = [{"split": "val", "epoch": epoch, "accuracy": 0.5, "loss": 1} for epoch in epochs]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    text = page.of(gather(solved)).html
    assert "converged in 63 iterations" in text and "α = 3.16 was chosen by cross-validation in 5 folds" in text
    assert text.count('<tr class="chosen">') == 1 and 'id="curves"' not in text
    assert not [words for words in ("chose the epoch", "Epoch ", "learning rate", "kept") if words in text]
    text = page.of(gather(other)).html
    assert "chose the epoch" in text and 'id="curves"' in text and 'id="solution"' not in text
    both = comparison.of([gather(solved), gather(other)]).html
    assert "Validation accuracy: B from" in both and "A has none: the head was solved" in both


@pytest.mark.parametrize(("status", "state"), [("running", "interrupted"), ("failed", "failed")])
def test_a_run_without_an_end_has_the_score_of_its_last_epoch(
    status: str, state: str, two: Any, tmp_path: Path, invoke: Invoke
) -> None:
    killed = a_run(tmp_path / "killed", np.ones(0), best=None, status=status, error="the loss is nan")
    rows = [{"split": "val", "step": 7 * i, "epoch": i, "n": 49, "accuracy": 0.8 + i / 125} for i in (1, 2)]
    (killed / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows) + '{"split": "val", "ep')
    made = page.of(gather(killed))
    assert gather(killed).state == state and "81.6<small>%" in made.html and "<b>so far, epoch 2</b>" in made.html
    assert "No model was scored" not in made.html and "accuracy on 49 validation images" in made.html
    failed = "the run failed before it had a checkpoint: the loss is nan"
    assert made.missing["model"] == failed if state == "failed" else "was stopped" in made.missing["model"]
    done = CliRunner().invoke(app, ["compare", str(killed), str(two[0])])
    assert "81.6, so far, epoch 2" in " ".join(done.stdout.split()) and state in done.stdout
    assert invoke("compare", killed, two[0])[1]["runs"][0]["scores"]["val"]["accuracy"] == pytest.approx(0.816)
