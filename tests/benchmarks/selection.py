"""Does `rank` choose the backbone that fine-tunes best? Its order beside that of fine-tuning, task by task.

    python tests/benchmarks/selection.py DATA OUT [--seeds 0 1 2]          (DATA: the folder of real photographs)

Four starts of a ResNet-18 of known quality: trained on 100,000 images of Tiny ImageNet; the same stopped early; trained
here on 4,000 of them; random. Four tasks: ants and bees, CIFAR-10 with 50 images a class, handwritten digits, and 20 of these a class.
Each start is ranked by `transferctl rank` on training data, and fine-tuned by `transferctl finetune` with every seed,
whose test accuracies the order is held against. What is done stands in OUT/results.jsonl, so that an interrupted
measurement goes on; OUT/selection.md has the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml
from commandline import transferctl

HEAD = {"backbone": {"name": "resnet18"}, "precision": "fp32", "report": False}
TUNED = {"head_first": {"epochs": 50}, "epochs": 8, "optimizer": {"name": "sgd", "lr": 0.003}, "keep": "last"}
TINY = {"resize": 64, "crop": 64}
SCORES = ("probe", "knn", "logme", "leep", "nce", "hscore", "transrate", "gbc")


def tasks(data: Path) -> dict[str, dict[str, Any]]:
    photographs, cifar = data / "ants-bees", data / "cifar10-mini"
    bees = {"path": str(photographs / "train"), "exclude": ["imageNotFound.gif"]}
    return {
        "ants-bees": {
            "target": {"train": bees, "val": 0.2, "test": str(photographs / "val")},
            "preprocess": {"resize": 73, "crop": 64},
        },
        "cifar10": {
            "target": {"train": str(cifar / "train"), "val": 0.2, "test": str(cifar / "val")},
            "preprocess": TINY,
        },
        "digits": _digits(epochs=10),
        "digits, 20 a class": _digits(epochs=40, per_class=20),
    }


def _digits(epochs: int, **drawn: int) -> dict[str, Any]:
    """200 steps or so, as on the other tasks or more."""
    return {
        "target": {
            "train": {"dataset": "digits", "split": "train", **drawn},
            "val": 0.2,
            "test": {"dataset": "digits", "split": "test"},
        },
        "preprocess": {"resize": 32, "crop": 32},
        "augment": "none",  # a mirrored digit is none
        "epochs": epochs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    data, out = arguments.data.resolve(), arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    done = Done(out / "results.jsonl")
    starts = {
        "tiny-imagenet": str(data / "resnet18-tinyimagenet.pth"),
        "tiny-imagenet, early": str(data / "resnet18-tinyimagenet-early.pth"),
        "trained here": done.once(("pretrain",), lambda: {"run": _trained_here(data, out)})["run"],
        "random": "none",
    }
    for task, settings in tasks(data).items():
        spec = out / f"{task}.yaml"
        spec.write_text(yaml.safe_dump(HEAD | TUNED | settings), encoding="utf-8")
        options = [word for weights in starts.values() for word in ("--backbone", f"resnet18:{weights}")]
        done.once(("rank", task), lambda spec=spec, options=options: _ranked(spec, options, out))
        for start, weights in starts.items():
            for seed in arguments.seeds:
                done.once(
                    ("finetune", task, start, seed),
                    lambda spec=spec, weights=weights, seed=seed: _tuned(spec, weights, seed, out),
                )
    (out / "selection.md").write_text("\n".join(_report(done.rows, starts, arguments.seeds)), encoding="utf-8")
    print((out / "selection.md").read_text(encoding="utf-8"))


class Done:
    """What was measured, a line each, kept as it comes."""

    def __init__(self, file: Path):
        self._file, self.rows = file, dict[tuple[Any, ...], dict[str, Any]]()
        if file.exists():
            for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
                self.rows[tuple(line["what"])] = line["found"]

    def once(self, what: tuple[Any, ...], measure: Any) -> dict[str, Any]:
        if what not in self.rows:
            self.rows[what] = measure()
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"what": what, "found": self.rows[what]}) + "\n")
            print(*what, {k: v for k, v in self.rows[what].items() if k != "backbones"}, file=sys.stderr, flush=True)
        return self.rows[what]


def _trained_here(data: Path, out: Path) -> str:
    folder = data / "tiny-imagenet-mini"
    spec = {
        "backbone": {"name": "resnet18", "weights": "source"}, "preprocess": TINY, "precision": "fp32", "report": False,
        "target": {"train": str(folder / "val")}, "source": {"train": str(folder / "train"), "val": 0.05},
        "pretrain": {"epochs": 10},
    }  # fmt: skip
    (out / "here.yaml").write_text(yaml.safe_dump(spec), encoding="utf-8")
    return str(transferctl("pretrain", out / "here.yaml", "--runs-dir", out / "runs")["run"])


def _ranked(spec: Path, options: list[str], out: Path) -> dict[str, Any]:
    answer = transferctl("rank", spec, *options, "--runs-dir", out / "runs")
    return {"backbones": answer["backbones"], "advice": answer["advice"]}


def _tuned(spec: Path, weights: str, seed: int, out: Path) -> dict[str, Any]:
    chosen = ("--set", f"backbone.weights={weights}", "--set", f"seed={seed}", "--runs-dir", out / "runs")
    answer = transferctl("finetune", spec, *chosen)
    return {"test": answer["test"]["accuracy"], "elapsed_s": answer["elapsed_s"]}


def _report(rows: Mapping[tuple[Any, ...], Any], starts: Mapping[str, str], seeds: list[int]) -> Iterator[str]:
    yield "| task | start | probe, % | fine-tuned, % (mean ± sd) | " + " | ".join(SCORES[1:]) + " |"
    yield "|---" * (4 + len(SCORES) - 1) + "|"
    verdicts = []
    for task in dict.fromkeys(what[1] for what in rows if what[0] == "rank"):
        by_weights = {one["weights"]: one for one in rows["rank", task]["backbones"]}
        ranked = {start: by_weights[weights] for start, weights in starts.items()}
        tuned = {start: [100 * rows["finetune", task, start, seed]["test"] for seed in seeds] for start in starts}
        for start in sorted(starts, key=lambda start: -ranked[start]["accuracy"]):
            scores = [_cell(ranked[start], name) for name in SCORES[1:]]
            low, high = (100 * ranked[start][f"accuracy_{end}"] for end in ("low", "high"))
            interval = f"{100 * ranked[start]['accuracy']:.1f} ({low:.1f}–{high:.1f})"
            spread = f"{mean(tuned[start]):.1f} ± {stdev(tuned[start]) if len(seeds) > 1 else 0:.1f}"
            yield f"| {task} | {start} | {interval} | {spread} | " + " | ".join(scores) + " |"
        verdicts += [_verdict(task, ranked, tuned, rows["rank", task]["advice"])]
    yield from ["", *verdicts, ""]


def _cell(backbone: Mapping[str, Any], score: str) -> str:
    found = backbone["knn_accuracy"] if score == "knn" else backbone["scores"].get(score)
    return "" if found is None else f"{100 * found:.1f}" if score == "knn" else f"{found:.4g}"


def _verdict(task: str, ranked: Mapping[str, Any], tuned: Mapping[str, list[float]], advice: Mapping[str, Any]) -> str:
    """Pairs that the probe tells apart, how many of them fine-tuning orders alike; what the first and the advised one
    lose against the one that fine-tunes best."""
    told = agreeing = 0
    for one, other in combinations(ranked, 2):
        better, worse = sorted((one, other), key=lambda start: -ranked[start]["accuracy"])
        if ranked[better]["accuracy_low"] > ranked[worse]["accuracy_high"]:
            told += 1
            agreeing += mean(tuned[better]) > mean(tuned[worse])
    best = max(map(mean, tuned.values()))
    first = max(ranked, key=lambda start: ranked[start]["accuracy"])
    advised = next((start for start in ranked if ranked[start]["backbone"] == advice["backbone"]), None)
    lost = {start: f"{start} loses {best - mean(tuned[start]):.1f}" for start in ranked}
    return (
        f"{task}: {agreeing} of {told} pairs that the probe tells apart are in the order of fine-tuning; points: the first "
        f"by the probe, {lost[first]}; the one advised, {lost[advised] if advised else 'none'}."
    )


if __name__ == "__main__":
    main()
