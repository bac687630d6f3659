"""What the model shows on the images themselves: its mistakes, where it looks, how it lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from markupsafe import Markup
from PIL import Image

from transferctl.contracts import BadSample
from transferctl.data import Split
from transferctl.errors import CheckpointError
from transferctl.reporting import attribution, checked, embedding, figures, predictions, thumbnails
from transferctl.reporting.figures import Point
from transferctl.reporting.material import Loaded, Looked
from transferctl.reporting.predictions import Predicted, Prediction

EXAMPLES = 12  # of each kind
EXPLAINED = 6


@dataclass(frozen=True)
class Example:
    """picture: a data URI; None where the image is gone or has changed."""

    picture: str | None
    file: str
    path: str
    label: str
    predicted: str
    probability: float
    is_right: bool


@dataclass(frozen=True)
class Mistakes:
    """worst: wrong ones, the surest first; uncertain: the least probable predictions, right or wrong."""

    n: int
    wrong: int
    worst: tuple[Example, ...]
    uncertain: tuple[Example, ...]


def mistakes(predicted: Predicted, split: Split | None) -> Mistakes:
    worst, uncertain = ([_example(row, split) for row in rows] for rows in (predicted.worst, predicted.uncertain))
    return Mistakes(predicted.n, predicted.wrong, tuple(worst), tuple(uncertain))


def predicted_of(looked: Looked, split: Split, classes: Sequence[str]) -> Predicted | None:
    """Where the run kept no predictions: those of the images that were looked at."""
    return predictions.summarised(_rows(looked, split, classes), EXAMPLES)


def _rows(looked: Looked, split: Split, classes: Sequence[str]) -> Iterator[Prediction]:
    best, probability = looked.logits.argmax(1), _softmax(looked.logits).max(1)
    for i, position in enumerate(looked.positions.tolist()):
        label, found = classes[int(looked.labels[i])], classes[int(best[i])]
        yield Prediction(position, split.sample_name(position), label, found, float(probability[i]))


def _softmax(logits: np.ndarray) -> np.ndarray:
    """[n, C], in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    exponents = np.exp(shifted)
    found: np.ndarray = exponents / exponents.sum(1, keepdims=True)
    return found


def _example(row: Prediction, split: Split | None) -> Example:
    is_there = split is not None and row.position < len(split)
    picture = thumbnails.of(split, row.position) if split is not None and is_there else None
    file, path = checked.text(PurePath(row.path).name, 48), checked.text(row.path, 1000)
    label, found = checked.text(row.label, 60), checked.text(row.predicted, 60)
    return Example(picture, file, path, label, found, row.probability, row.is_right)


# -- where it looks -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Explained:
    """An image as the network sees it, and where the evidence for the predicted and for the true class lies."""

    image: str
    for_predicted: str
    for_label: str | None
    label: str
    predicted: str
    probability: float


@dataclass(frozen=True)
class Explanations:
    method: str
    images: tuple[Explained, ...]


def explanations(predicted: Predicted, loaded: Loaded, split: Split) -> Explanations | None:
    """Of the worst mistakes, or of the least certain where there are none. None where the network has no maps. Raises
    CheckpointError where the model has other classes than the predictions."""
    rows = [row for row in (predicted.worst or predicted.uncertain)[:EXPLAINED] if row.position < len(split)]
    places = {name: i for i, name in enumerate(loaded.model.classes[loaded.domain])}
    images, kept = [], []
    for row in rows:
        try:
            images.append(attribution.image_of(split, row.position, loaded.model))
            kept.append(row)
        except BadSample:
            continue
    if not kept:
        return None
    try:
        classes = np.array([[places[row.predicted], places[row.label]] for row in kept])
    except KeyError:
        raise CheckpointError("the model has other classes than predictions.csv") from None
    found = attribution.evidence(loaded.model, loaded.domain, images, classes)
    if found is None:
        return None
    explained = []
    for row, image, (own, true) in zip(kept, images, found.maps, strict=True):
        pictures = [thumbnails.as_uri(_sized(attribution.overlaid(image, heat))) for heat in (own, true)]
        label, predicted_as = checked.text(row.label, 60), checked.text(row.predicted, 60)
        seen, for_label = thumbnails.as_uri(_sized(image)), None if row.is_right else pictures[1]
        explained.append(Explained(seen, pictures[0], for_label, label, predicted_as, row.probability))
    return Explanations(found.method, tuple(explained))


def _sized(image: Image.Image) -> Image.Image:
    how = Image.Resampling.NEAREST if image.width < thumbnails.LEAST else Image.Resampling.LANCZOS
    return image.resize((thumbnails.SIDE, thumbnails.SIDE), how)


# -- the map of the features --------------------------------------------------------------------------


@dataclass(frozen=True)
class FeaturesMap:
    """n: images in it, of `of`."""

    picture: Markup
    method: str
    n: int
    of: int
    named: bool


def features_map(looked: Looked, split: Split, classes: Sequence[str]) -> FeaturesMap | None:
    """None for features that are not finite."""
    if not np.isfinite(looked.features).all():
        return None
    places, best = embedding.in_the_plane(looked.features), looked.logits.argmax(1)
    shown = [checked.text(name, 40) for name in classes]
    points = []
    for (x, y), label, found, position in zip(
        places.tolist(), looked.labels.tolist(), best.tolist(), looked.positions.tolist(), strict=True
    ):
        file = checked.text(PurePath(split.sample_name(position)).name, 48)
        verdict = f"{shown[label]}, right" if label == found else f"{shown[label]}, predicted {shown[found]}"
        points.append(Point(x, y, label, label == found, f"{file}: {verdict}"))
    present = sorted({point.label for point in points})
    named = {label: shown[label] for label in present} if len(present) <= figures.NAMED_CLASSES else {}
    words = f"Map of the features of {len(points)} images of {len(present)} classes"
    return FeaturesMap(
        figures.features_map("map", points, named, words), embedding.method(len(points)), len(points), len(split),
        bool(named),
    )  # fmt: skip
