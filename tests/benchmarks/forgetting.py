"""Target accuracy gained against source accuracy forgotten, for every method on the same data and seeds.

    python tests/benchmarks/forgetting.py OUT            (a folder `data` beside the checkout, as configs/*.yaml have it)

Each line is a `transferctl finetune configs/cifar10-joint.yaml --set …` in a process of its own; its answer goes to
OUT/results.jsonl as it comes, so an interrupted measurement goes on. Ends with OUT/forgetting.md and forgetting.svg.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from commandline import transferctl

CONFIG = Path(__file__).parent.parent.parent / "configs" / "cifar10-joint.yaml"
PLAIN = ("source.rehearsal=false", "lambda=null")

METHODS: dict[str, tuple[str, ...]] = {
    "plain": PLAIN,
    "joint λ=0.5": ("lambda=0.5",),
    "joint λ=1": ("lambda=1",),
    "joint λ=2": ("lambda=2",),
    "joint λ=4": ("lambda=4",),
    "joint λ=3": ("lambda=3",),
    "joint λ=0.25": ("lambda=0.25",),
    "L2-SP 0.01": (*PLAIN, "penalties.l2sp=0.01"),
    "L2-SP 0.1": (*PLAIN, "penalties.l2sp=0.1"),
    "EWC 100": (*PLAIN, "penalties.ewc=100"),
    "EWC 500": (*PLAIN, "penalties.ewc=500"),
    "LwF 0.3": (*PLAIN, "penalties.lwf=0.3"),
    "LwF 1": (*PLAIN, "penalties.lwf=1"),
    "DELTA 1": (*PLAIN, "penalties.delta=1"),
    "Co-Tuning 1": (*PLAIN, "penalties.cotuning=1"),
    "BSS 0.01": (*PLAIN, "penalties.bss=0.01"),
    "LP-FT": (*PLAIN, "head_first={epochs: 50}"),
    "frozen: layer3": (*PLAIN, "frozen=layer3"),
    "layer decay 0.5": (*PLAIN, "optimizer.layer_decay=0.5"),
    "BatchNorm trains": (*PLAIN, "batchnorm=train"),
    "joint λ=2, BatchNorm trains": ("lambda=2", "batchnorm=train"),
}
WISE = "WiSE-FT"
MOST_LOST = -12  # points of target accuracy: what gives up more is in the table, not in the plot


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", help="names of methods")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    done = {(row["method"], row["seed"]) for row in _rows(results)}
    for method, settings in METHODS.items():
        for seed in arguments.seeds:
            if (method, seed) not in done and method in (arguments.only or METHODS):
                _measure(method, settings, seed, arguments.out, results)
    rows = list(_rows(results))
    if any(row["method"] == "plain" for row in rows):
        (arguments.out / "forgetting.md").write_text(_table(rows), encoding="utf-8")
        _draw(rows, arguments.out / "forgetting.svg")


def _rows(results: Path) -> Iterator[dict[str, Any]]:
    if results.exists():
        yield from map(json.loads, results.read_text(encoding="utf-8").splitlines())


def _measure(method: str, settings: Sequence[str], seed: int, out: Path, results: Path) -> None:
    words = [word for text in (*settings, f"seed={seed}") for word in ("--set", text)]
    tuned = transferctl("finetune", CONFIG, *words, "--runs-dir", out / "runs")
    source = tuned["source"]
    row = {"method": method, "seed": seed, "target": tuned["test"]["accuracy"], "elapsed_s": tuned["elapsed_s"]}
    row |= {"source": source["after"]["accuracy"], "source_before": source["before"]["accuracy"]}
    rows = [row]
    if method == "plain":
        curve = transferctl(
            "eval", tuned["run"], "--interpolate", "0:1:0.2", "--split", "test", "--runs-dir", out / "runs"
        )
        rows += [
            {"method": f"{WISE} α={point['alpha']:g}", "seed": seed, "target": point["target"]["accuracy"],
             "source": point["source"]["accuracy"], "source_before": row["source_before"]}
            for point in curve["interpolation"]
        ]  # fmt: skip
    with results.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    print(f"{method}, seed {seed}: target {row['target']:.4f}, source {row['source']:.4f}", file=sys.stderr)


def _summaries(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Means and standard deviations over seeds, in per cent. Against plain fine-tuning of the same seeds: the points of
    target accuracy gained, and the part kept of the source accuracy that it loses."""
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    plain = {row["seed"]: row for row in by_method["plain"]}
    found = {}
    for method, own in by_method.items():
        beside = [plain[row["seed"]] for row in own]
        summary: dict[str, Any] = {"seeds": len(own)}
        for key in ("target", "source"):
            sd = stdev([row[key] for row in own]) if len(own) > 1 else 0.0
            summary[key] = (100 * mean(row[key] for row in own), 100 * sd)
        summary["gained"] = 100 * mean(row["target"] - other["target"] for row, other in zip(own, beside, strict=True))
        lost = mean(other["source_before"] - other["source"] for other in beside)
        kept = mean(row["source"] - other["source"] for row, other in zip(own, beside, strict=True))
        found[method] = summary | {"kept": 100 * kept / lost}
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| method | seeds | target, % | source, % | target less plain's | kept of what plain loses |"]
    lines.append("|---|---|---|---|---|---|")
    for method, summary in _summaries(rows).items():
        n = summary["seeds"]
        target, source = (
            f"{summary[key][0]:.1f}" + (f" ± {summary[key][1]:.1f}" if n > 1 else "") for key in ("target", "source")
        )
        lines.append(f"| {method} | {n} | {target} | {source} | {summary['gained']:+.1f} | {summary['kept']:.0f} % |")
    return "\n".join(lines) + "\n"


def _draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "transferctl"  # the same numbers give the same file
    from matplotlib import pyplot as plt

    found = _summaries(rows)
    figure, axes = plt.subplots(figsize=(8.5, 5.5), layout="constrained")
    before = 100 * mean(row["source_before"] for row in rows)
    axes.axvline(before, color="0.7", linestyle=":", label=f"source before: {before:.1f} %")
    curves = {"joint λ": "tab:blue", WISE: "tab:orange"}
    for prefix, colour in curves.items():
        own = [(name, summary) for name, summary in found.items() if name.startswith(prefix) and "," not in name]
        own.sort(key=lambda item: float(item[0].split("=")[1]))
        own = [(name, summary) for name, summary in own if summary["gained"] > MOST_LOST]
        points = [(summary["source"][0], summary["target"][0]) for _, summary in own]
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=prefix.removesuffix(" λ"))
        for (name, _), point in zip(own, points, strict=True):
            axes.annotate(name.split("=")[1], point, (4, 4), textcoords="offset points", fontsize=7, color=colour)
    for name, summary in found.items():
        if not name.startswith(tuple(curves)) or "," in name:
            (x, x_sd), (y, y_sd) = summary["source"], summary["target"]
            axes.errorbar(
                x, y, y_sd, x_sd, fmt="s", markersize=4, color="black" if name == "plain" else "0.45", elinewidth=0.6
            )
            axes.annotate(name, (x, y), (5, -9), textcoords="offset points", fontsize=7)
    axes.set(xlabel="source accuracy, %", ylabel="target accuracy, %", title="What fine-tuning gains and forgets")
    axes.legend(loc="lower left", fontsize=8)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
