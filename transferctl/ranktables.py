"""A ranking of backbones for people, and for scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from transferctl import plugins
from transferctl.assessment import Assessed, Share
from transferctl.display import Display
from transferctl.sizes import in_words as bytes_in_words
from transferctl.spec import WeightsFile
from transferctl.standing import Standing
from transferctl.wording import counted, shortened, shown, two_digits

EXACT = 0.05  # width of an interval, below which its ends are shown to a tenth of a point
FLATTERED = "†"  # beside a backbone that has learnt from these images
REASON_LENGTH = 1000  # characters, of what is shown; summary.json has the whole
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Columns = dict[str, list[str]]


def show(ordered: Sequence[Assessed], places: Sequence[Standing], facts: Mapping[str, Any], display: Display) -> None:
    """Accuracies, costs and scores, then what is left out and why. One table of accuracies and costs where it fits;
    else several, whose rows have letters; long names then have one of their own. facts: the summary's n, classes,
    folds, majority, copies and failed."""
    sizes = sorted({one.costs.crop for one in ordered})
    at = f" at {sizes[0]} px" if len(sizes) == 1 else ""
    title = f"Backbones by a linear probe: {counted(facts['n'], 'image')} of target.train{at}, "
    title += f"{facts['classes']} classes, {facts['folds']} folds"
    names = {"backbone": [_name(one) for one in ordered]}
    accuracies, costs, scores = _accuracies(ordered), _costs(ordered, len(sizes) > 1), _scores(ordered)
    rank = {"rank": [str(place) for place in places]}
    behind = {"to the first": ["", *(_behind(place) for place in places[1:])]}
    if display.fits(*_as_table(whole := rank | names | accuracies | behind | costs)):
        display.table(title, *_as_table(whole))
    else:
        letters = {"": [_letter(i) for i in range(len(ordered))]}
        if display.fits(*_as_table(with_names := letters | rank | names | accuracies)):
            display.table(title, *_as_table(with_names))
        else:
            display.table(title, *_as_table(letters | rank | accuracies))
            display.table("Names", *_as_table(letters | names))
        display.table("Distance on the same images, and costs", *_as_table(letters | behind | costs))
        names = letters
    if scores:
        display.table("Scores; higher is better", *_as_table(names | scores))
    for line in _remarks(ordered, facts):
        display.remark(line)


def _as_table(columns: Columns) -> tuple[list[str], list[list[str]]]:
    """Titles and rows."""
    return list(columns), [list(row) for row in zip(*columns.values(), strict=True)]


def _letter(i: int) -> str:
    """A to Z, then A1."""
    turn, place = divmod(i, len(LETTERS))
    return LETTERS[place] + (str(turn) if turn else "")


def _accuracies(ordered: Sequence[Assessed]) -> Columns:
    return {
        "probe, %": [percent(one.probe) for one in ordered],
        "k-NN, %": [percent(one.knn) for one in ordered],
    }


def _costs(ordered: Sequence[Assessed], sizes_differ: bool) -> Columns:
    costs = [one.costs for one in ordered]
    return {
        **({"input": [f"{cost.crop} px" for cost in costs]} if sizes_differ else {}),
        "parameters": [f"{cost.parameters / 1e6:.1f} M" for cost in costs],
        "GFLOP": [f"{cost.gflop:.3g}" for cost in costs],
        "images/s": [two_digits(cost.images_per_s) for cost in costs],
        "cache": [bytes_in_words(cost.cache_bytes) for cost in costs],
    }


def _scores(ordered: Sequence[Assessed]) -> Columns:
    """Of each score that some backbone has."""
    found: Columns = {}
    for name in plugins.names("scores"):
        values = [one.scores[name] for one in ordered]
        if any(value is not None for value in values):
            cells = ["" if value is None else f"{value:.4g}" for value in values]
            found[plugins.load("scores", name).LABEL] = cells
    return found


def _name(one: Assessed) -> str:
    return one.label + (f" {FLATTERED}" if one.learnt else "")


def percent(share: Share | None) -> str:
    """Ends of an interval to a tenth where that is more than its noise."""
    if share is None:
        return ""
    digits = 0 if share.high - share.low > EXACT else 1
    return f"{100 * share.value:.1f} ({100 * share.low:.{digits}f}–{100 * share.high:.{digits}f})"


def _behind(place: Standing) -> str:
    value, low, high = (100 * place.behind[f"accuracy_to_best{end}"] for end in ("", "_low", "_high"))
    digits = 0 if high - low > 100 * EXACT else 1
    return f"{value:+.1f} ({low:+.{digits}f} to {high:+.{digits}f})"


def _remarks(ordered: Sequence[Assessed], facts: Mapping[str, Any]) -> list[str]:
    """Why cells are empty, whose accuracy flatters, which are the same, what could not be ranked."""
    titles = {name: plugins.load("scores", name).LABEL for name in plugins.names("scores")} | {"knn": "k-NN"}
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in ordered:
        for name, reason in one.empty.items():
            reasons.setdefault((reason, one.label), []).append(titles[name])
    grouped: dict[tuple[str, str], list[str]] = {}
    for (reason, label), columns in reasons.items():
        grouped.setdefault((", ".join(columns), reason), []).append(label)
    lines = ["in brackets: 95 % intervals; GFLOP: of an image, 2 a multiply-add; images/s: here, decoding apart"]
    lines.append(f"always naming the most frequent class would be right on {100 * facts['majority']:.1f} %")
    if copies := facts["copies"]:
        lines.append(
            f"{counted(copies, 'image')} of {facts['n']:,} {'is a copy' if copies == 1 else 'are copies'} of another; "
            "what was seen in one fold is asked in the next, so that all accuracies flatter: leave one of each"
        )
    lines += [f"no {columns} of {shown(labels, 20)}: {reason}" for (columns, reason), labels in grouped.items()]
    if learnt := [one.label for one in ordered if one.learnt]:
        lines.append(f"† {shown(learnt, 20)}: learnt from these very images, so that accuracies and scores flatter")
    lines += [f"{one.label} computes the very features of {one.twin}" for one in ordered if one.twin]
    failed = {label: shortened(reason, REASON_LENGTH) for label, reason in facts["failed"].items()}
    return [*lines, *(f"not ranked: {label}: {reason}" for label, reason in failed.items())]


def in_words(one: Assessed) -> str:
    neighbours = f", k-NN {100 * one.knn.value:.1f} %" if one.knn else ""
    return f"probe {percent(one.probe)} %{neighbours}; {one.elapsed_s:.1f} s"


def numbers(one: Assessed) -> dict[str, Any]:
    """The scalars: accuracies with their intervals, scores, costs."""
    neighbours = _share("knn_accuracy", one.knn) | {"knn_n": one.knn.n} if one.knn else {"knn_accuracy": None}
    return _share("accuracy", one.probe) | neighbours | one.scores | asdict(one.costs)


def _share(name: str, share: Share) -> dict[str, float]:
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}


def in_json(one: Assessed, place: Standing | None = None) -> dict[str, Any]:
    settings = one.candidate.settings
    weights = settings.weights.path if isinstance(settings.weights, WeightsFile) else settings.weights
    values = numbers(one)
    standing: dict[str, Any] = {}
    if place:
        standing = {"rank": [place.first, place.last], "ties": list(place.ties), **place.behind}
    return {
        "backbone": one.label, "library": settings.library, "name": settings.name, "weights": str(weights),
        "origin": one.origin, **standing, **{key: values[key] for key in values if key not in one.scores},
        "scores": one.scores, "empty": one.empty, "learnt_from_these": one.learnt, "same_as": one.twin or None,
        "elapsed_s": round(one.elapsed_s, 3),
    }  # fmt: skip
