"""Which classes are mistaken for which, and how far probabilities can be believed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from transferctl import calibration
from transferctl.calibration import Bin
from transferctl.reporting import checked, figures, headline
from transferctl.reporting.gather import ClassRow, RunRecord, Score
from transferctl.reporting.predictions import Predicted

SMALL_MATRIX = 12  # classes whose confusion is a table; more are a picture
MOST_CLASSES = 1000  # rows of the table of classes
MOST_PAIRS = 12


@dataclass(frozen=True)
class Classes:
    """table: the confusion of few classes, as shares of their rows, beside the counts; picture: that of many. pairs:
    true, predicted, how many, of how many. rows: the worst first."""

    score: Score
    table: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    picture: Markup | None
    pairs: tuple[tuple[str, str, int, int], ...]
    rows: tuple[ClassRow, ...]


def classes(score: Score | None) -> Classes | None:
    if score is None or not score.classes:
        return None
    table: tuple[tuple[str, tuple[tuple[int, float], ...]], ...] = ()
    picture, pairs = None, tuple[tuple[str, str, int, int], ...]()
    if score.confusion:
        counts = np.array(score.confusion, dtype=np.int64)
        pairs = tuple(_pairs(score.classes, counts))
        if len(counts) <= SMALL_MATRIX:
            table = tuple(_matrix(score.classes, counts))
        else:
            words = f"Confusion matrix of {len(counts)} classes; the most confused pairs are listed beside it"
            picture = figures.confusion("confusion", counts, words)
    rows = sorted(score.classes, key=lambda row: (not row.support, row.f1, row.recall))
    return Classes(score, table, picture, pairs, tuple(rows[:MOST_CLASSES]))


def _matrix(rows: Sequence[ClassRow], counts: np.ndarray) -> Iterator[tuple[str, tuple[tuple[int, float], ...]]]:
    for row, own in zip(rows, counts.tolist(), strict=True):
        total = sum(own) or 1
        yield row.name, tuple((count, count / total) for count in own)


def _pairs(rows: Sequence[ClassRow], counts: np.ndarray) -> Iterator[tuple[str, str, int, int]]:
    """The most frequent mistakes."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    for place in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS].tolist():
        true, predicted = divmod(place, len(counts))
        if wrong[true, predicted]:
            yield rows[true].name, rows[predicted].name, int(wrong[true, predicted]), int(counts[true].sum())


@dataclass(frozen=True)
class Calibration:
    """of: which images; raw, after: pictures before and after temperature scaling; ece, ece_after: expected calibration
    errors."""

    of: str
    raw: Markup
    after: Markup | None
    ece: float
    ece_after: float | None
    temperature: float | None


def calibrated(run: RunRecord, predicted: Predicted | None, split: str) -> Calibration | None:
    """Of the headline's score; where it has no bins (an older version), of what predictions.csv has of `split`."""
    score = run.score
    raw: Sequence[Bin] = score.reliability.get("raw", ()) if score else ()
    after: Sequence[Bin] = score.reliability.get("calibrated", ()) if score else ()
    if score and raw:
        of, scalars = headline.images_of(run, score), score.scalars
    elif predicted:
        of = headline.some_images(predicted.n, predicted.of, headline.on(run, split))
        raw, after, scalars = predicted.bins, (), {}
    else:
        return None
    ece = scalars.get("ece", expected_error(raw))
    later = scalars.get("calibrated_ece", expected_error(after)) if after else None
    return Calibration(
        of,
        _diagram("reliability-raw", "as trained", raw, ece),
        None if later is None else _diagram("reliability-after", "at the temperature", after, later),
        ece,
        later,
        scalars.get("temperature", _temperature(run)) if later is not None else None,
    )


def _diagram(name: str, title: str, bins: Sequence[Bin], ece: float) -> Markup:
    words = f"Reliability diagram {title}: expected calibration error {100 * ece:.1f} per cent"
    return figures.reliability(name, f"{title}: ECE {100 * ece:.1f} %", bins, words)


def expected_error(bins: Sequence[Bin]) -> float:
    """ECE: the mean over samples of |accuracy − confidence| of their bins."""
    n = sum(one.n for one in bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / n if n else 0.0


def _temperature(run: RunRecord) -> float | None:
    step = checked.count(checked.mapping(run.summary.get("best")).get("step"))
    return None if step is None else calibration.temperature_of(run.path, f"step-{step:06d}")
