"""Does `advise` beat the spec that it was given, on test data that it has not seen?

    TRANSFERCTL_REAL_DATA=… python tests/benchmarks/advise.py [--budget 4m] [TASK…]

Of each task: the advice, then the given spec (finetune) and the advised one with seeds 10, 11, 12, which advise has
used for nothing, and their test accuracies side by side. Tasks: digits (embedded), ants-bees, cifar10.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from commandline import transferctl

SEEDS = (10, 11, 12)
DIGITS = """
backbone: {name: resnet18, weights: source}
preprocess: {resize: 32, crop: 32}
source: {train: {dataset: digits, classes: [0, 1, 2, 3, 4]}}
target:
  train: {dataset: digits, classes: [5, 6, 7, 8, 9], per_class: 30}
  val: 0.3
  test: {dataset: digits, classes: [5, 6, 7, 8, 9], split: test}
optimizer: {lr: 0.001}
pretrain: {epochs: 5, optimizer: adam}
"""
WEIGHTS = "{path: DATA/resnet18-tinyimagenet.pth, classes: DATA/tiny-imagenet-classes.json}"
ANTS_BEES = f"""
backbone: {{name: resnet18, weights: {WEIGHTS}}}
preprocess: {{resize: 146, crop: 128}}
frozen: layer2
target:
  train: {{path: DATA/ants-bees/train, exclude: [imageNotFound.gif]}}
  val: 0.2
  test: DATA/ants-bees/val
epochs: 5
optimizer: {{name: sgd, lr: 0.001}}
"""
CIFAR10 = f"""
backbone: {{name: resnet18, weights: {WEIGHTS}}}
preprocess: {{resize: 64, crop: 64}}
target:
  train: DATA/cifar10-mini/train
  val: 0.2
  test: DATA/cifar10-mini/val
"""
TASKS = {"digits": DIGITS, "ants-bees": ANTS_BEES, "cifar10": CIFAR10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--budget", default="4m")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    asked = parser.parse_args()
    data = os.environ.get("TRANSFERCTL_REAL_DATA")
    for task in asked.tasks or TASKS:
        if "DATA" in TASKS[task] and not data:
            print(f"{task}: skipped; TRANSFERCTL_REAL_DATA does not name the folder of real photographs")
            continue
        with tempfile.TemporaryDirectory() as folder:
            measure(task, Path(folder), data or "", asked.budget)


def measure(task: str, folder: Path, data: str, budget: str) -> None:
    given, advised = folder / f"{task}.yaml", folder / "advised.yaml"
    given.write_text(TASKS[task].replace("DATA", data))
    advice = command(folder, "advise", given, "--budget", budget, "--out", advised)
    chosen = advice["advised"]
    print(f"\n{task}, --budget {budget}: {chosen['strategy']}; took {advice['elapsed_s']:.0f} s", flush=True)
    print(advice["verdict"])
    for one in advice["trials"]:
        print(f"    {one['strategy']}: {100 * one['accuracy']:.1f} % of {one['n']}; {one['elapsed_s']:.0f} s")
    print(
        f"    {', '.join(one['strategy'] for one in advice['left_out'])} left out; {advice['confirmation']['by_seed']}"
    )
    scores = {}
    for name, verb, spec in (("given", "finetune", given), ("advised", chosen["verb"], advised)):
        seeds = [command(folder, verb, spec, "--set", f"seed={seed}", "--set", "report=false") for seed in SEEDS]
        scores[name] = np.array([100 * run["test"]["accuracy"] for run in seeds])
        n, each = seeds[0]["test"]["n"], ", ".join(f"{one:.1f}" for one in scores[name])
        print(f"{name:8} test, n = {n}: {each} %; mean {scores[name].mean():.1f}", flush=True)
    print(f"advised less given: {(scores['advised'] - scores['given']).mean():+.1f} points", flush=True)


def command(folder: Path, *words: object) -> dict[str, Any]:
    return transferctl(*words, "--runs-dir", folder / "runs")


if __name__ == "__main__":
    main()
