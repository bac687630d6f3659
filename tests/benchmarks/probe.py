"""python tests/benchmarks/probe.py 2000 2048 10: the converged probe beside scikit-learn's LogisticRegressionCV.

Both choose among the same regularisations by the log loss of the same five folds of the same features (samples,
dimensions, classes), in turn, and are refitted on all; transferctl ends at 1e-6 in float64, scikit-learn at its default,
1e-4, in the float32 of its input. `--limit` shortens the grid of both from its weak end, `--solvers` leaves one of them out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator

import numpy as np
import torch
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import StandardScaler

from transferctl import crossvalidation, probe
from transferctl.contracts import Batch


def features(n: int, dimensions: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectified mixtures of 64 hidden directions: correlated and sparse, as pooled features of a network are."""
    random = np.random.default_rng(0)
    y = np.arange(n) % classes
    hidden = 0.5 * random.normal(size=(classes, 64))[y] + random.normal(size=(n, 64))
    x = hidden @ random.normal(size=(64, dimensions)) / 8 + 0.5 * random.normal(size=(n, dimensions))
    return np.maximum(x, 0).astype(np.float32), y


def ours(x: np.ndarray, y: np.ndarray, fold_of: np.ndarray, grid: tuple[float, ...]) -> str:
    def passes(most: int) -> Iterator[Batch]:
        for i in range(0, len(y), most):
            yield Batch(torch.from_numpy(x[i : i + most]), torch.from_numpy(y[i : i + most]))

    samples = probe.Samples(passes, y, int(y.max()) + 1, torch.device("cpu"))
    curve = crossvalidation.cross_validate(samples, fold_of, grid)
    chosen = crossvalidation.choose(curve)
    best = min(score.losses.mean() for score in curve)
    found = probe.fit(samples, chosen.regularisation)
    return (
        f"{len(curve)} of {len(grid)} α, lowest loss {best:.4f}; {chosen.regularisation:g} chosen by one standard "
        f"error; ‖∇J‖∞ {found.gradient:.1e}"
    )


def scikit(x: np.ndarray, y: np.ndarray, fold_of: np.ndarray, grid: tuple[float, ...]) -> str:
    n = len(y) * (1 - 1 / (fold_of.max() + 1))
    model = LogisticRegressionCV(
        Cs=[1 / (n * alpha) for alpha in grid], cv=PredefinedSplit(fold_of), scoring="neg_log_loss", max_iter=2000,
        use_legacy_attributes=False, l1_ratios=(0.0,),
    )  # fmt: skip
    model.fit(StandardScaler().fit_transform(x), y)
    loss = -model.scores_.mean(0).ravel()
    return f"{len(grid)} of {len(grid)} α, lowest loss {loss.min():.4f} at {1 / (n * float(model.C_)):.3g}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", type=int, nargs=3, metavar="N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int, default=len(crossvalidation.GRID))
    parser.add_argument("--solvers", nargs="+", choices=["ours", "scikit"], default=["ours", "scikit"])
    asked = parser.parse_args()
    x, y = features(*asked.sizes)
    fold_of = crossvalidation.folds(y, crossvalidation.FOLDS, seed=0)
    for _ in range(asked.repeats):
        for solver in (globals()[name] for name in asked.solvers):
            wall, cpu = time.perf_counter(), time.process_time()
            said = solver(x, y, fold_of, crossvalidation.GRID[: asked.limit])
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            print(f"{solver.__name__:8s} {wall:7.1f} s wall {cpu:7.1f} s cpu; {said}", flush=True)


if __name__ == "__main__":
    main()
