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

from transferctl.reporting import beside
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
    from transferctl.reporting import comparison

    one, other, *_ = two
    page = comparison.of([gather(one), gather(other)])
    (pair,) = beside.against_first([gather(one), gather(other)])
    assert "McNemar" in page and f"{100 * pair.difference:+.1f}" in page and f'<td class="n">{pair.gained}</td>' in page
