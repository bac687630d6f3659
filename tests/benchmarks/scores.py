"""python tests/benchmarks/scores.py 1000 512 10: what each transferability score takes, alone and after the others.

Of samples, dimensions and classes as given; the source head has 1,000 classes. `moments`, which the scores of features
share, come first, with the eigenvectors of their scatter: each other figure is what the score takes once these are there.
`--probe`: the cross-validated linear probe of the same features, for comparison. Peak: how much more memory this process
needed than before, features and all.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable, Iterator

import probe as features_of
import torch

from transferctl import crossvalidation, knn, plugins
from transferctl.contracts import Batch
from transferctl.evidence import Evidence
from transferctl.probe import Samples

SOURCE_CLASSES = 1000


def evidence(n: int, dimensions: int, classes: int) -> Evidence:
    """Features in memory, float32; probabilities by a random head of them, computed anew in each pass."""
    x, y = features_of.features(n, dimensions, classes)
    head = torch.randn(dimensions, SOURCE_CLASSES, generator=torch.Generator().manual_seed(0)) / 8

    def passes(most: int) -> Iterator[Batch]:
        for i in range(0, n, most):
            yield Batch(torch.from_numpy(x[i : i + most]), torch.from_numpy(y[i : i + most]))

    samples = Samples(passes, y, classes, torch.device("cpu"))
    return Evidence(samples, lambda: ((batch.inputs @ head).softmax(1) for batch in passes(4096)))


def timed(name: str, work: Callable[..., object], *arguments: object) -> float:
    started = time.perf_counter()
    found = work(*arguments)
    elapsed_s = time.perf_counter() - started
    print(f"  {name:10s} {elapsed_s:8.3f} s" + (f"   {found:9.4f}" if isinstance(found, float) else ""), flush=True)
    return elapsed_s


def validated(samples: Samples) -> float:
    fold_of = crossvalidation.folds(samples.labels, crossvalidation.FOLDS, seed=0)
    curve = crossvalidation.cross_validate(samples, fold_of)
    return float((crossvalidation.out_of_fold(curve, fold_of) == samples.labels).mean())


def accuracy(samples: Samples) -> float:
    positions, predicted = knn.predict(samples, seed=0)
    return float((predicted == samples.labels[positions]).mean())


def peak() -> float:
    """MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", type=int, nargs=3, metavar="N")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--probe", action="store_true")
    asked = parser.parse_args()
    made = evidence(*asked.sizes)
    for _ in range(asked.repeats):
        fresh, before = Evidence(made.features, made.source_probabilities), peak()
        total = timed("moments", getattr, fresh, "moments")
        total += timed("spectrum", getattr, fresh.moments, "spectrum")
        for module in plugins.modules("scores"):
            total += timed(module.LABEL, module.score, fresh)
        print(f"  scores     {total:8.3f} s, peak {peak() - before:+.0f} MiB")
        timed("k-NN", accuracy, made.features)
        if asked.probe:
            timed("probe", validated, made.features)


if __name__ == "__main__":
    main()
