"""What the model shows on the images themselves: its mistakes, where it looks, how it lays them out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

import numpy as np
from markupsafe import Markup
from PIL import Image

from transferctl.contracts import BadSample
from transferctl.data import Split
from transferctl.errors import CheckpointError
from transferctl.evaluation import softmax
from transferctl.reporting import attribution, checked, embedding, figures, headline, predictions, thumbnails
from transferctl.reporting.figures import Point
from transferctl.reporting.material import Loaded, ModelOutputs
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
    """images: those with a prediction, in words. worst: wrong ones, the surest first; uncertain: the least probable
    predictions, right or wrong."""

    images: str
    wrong: int
    worst: tuple[Example, ...]
    uncertain: tuple[Example, ...]


def placed(predicted: Predicted, split: Split) -> Predicted:
    """With the position in the split of each example's image, found by its path: rows may stand in another order than
    the images do. None for an image that the split does not have."""
    first, last = min(split.names(), default=""), max(split.names(), default="")
    folder = predictions.shared_folder(_as_written(first), _as_written(last))

    def after_folder(position: int) -> str:
        return _as_written(split.sample_name(position)).removeprefix(folder)

    def is_in_place(row: Prediction) -> bool:
        return row.position is not None and row.position < len(split) and after_folder(row.position) == named(row)

    def named(row: Prediction) -> str:
        return row.path.removeprefix(predicted.folder)

    examples = (*predicted.worst, *predicted.uncertain)
    wanted = {named(row) for row in examples if not is_in_place(row)}
    found: dict[str, int] = {}
    for position in range(len(split)) if wanted else ():
        if (name := after_folder(position)) in wanted:
            found.setdefault(name, position)
    worst, uncertain = (
        tuple(row if is_in_place(row) else replace(row, position=found.get(named(row))) for row in rows)
        for rows in (predicted.worst, predicted.uncertain)
    )
    return replace(predicted, worst=worst, uncertain=uncertain)


def _as_written(name: str) -> str:
    """As predictions.csv has it: bytes that are no UTF-8 are escapes there."""
    return name.encode("utf-8", "backslashreplace").decode()


def lost(predicted: Predicted) -> int:
    """How many examples, once `placed`, have no image."""
    return len({row.path for row in (*predicted.worst, *predicted.uncertain) if row.position is None})


def mistakes(predicted: Predicted, split: Split | None, where: str) -> Mistakes:
    """predicted: `placed`, where there is a split; where: whose images, for the page."""
    worst, uncertain = ([_example(row, split) for row in rows] for rows in (predicted.worst, predicted.uncertain))
    images = headline.some_images(predicted.n, predicted.of, where)
    return Mistakes(images, predicted.wrong, tuple(worst), tuple(uncertain))


def predicted_of(outputs: ModelOutputs, split: Split, classes: Sequence[str]) -> Predicted | None:
    """Where the run kept no predictions: those of the images that were looked at."""
    return predictions.summarised(_rows(outputs, split, classes), EXAMPLES, of=len(split))


def _rows(outputs: ModelOutputs, split: Split, classes: Sequence[str]) -> Iterator[Prediction]:
    best, probability = outputs.logits.argmax(1), softmax(outputs.logits).max(1)
    for i, position in enumerate(outputs.positions.tolist()):
        label, found = classes[int(outputs.labels[i])], classes[int(best[i])]
        yield Prediction(position, split.sample_name(position), label, found, float(probability[i]))


def _example(row: Prediction, split: Split | None) -> Example:
    picture = thumbnails.of(split, row.position) if split is not None and row.position is not None else None
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
    CheckpointError where the model has other classes than the predictions. predicted: `placed`."""
    rows = [(row, row.position) for row in predicted.worst or predicted.uncertain if row.position is not None]
    places = {name: i for i, name in enumerate(loaded.model.classes[loaded.domain])}
    images, kept = [], []
    for row, position in rows[:EXPLAINED]:
        try:
            images.append(attribution.image_of(split, position, loaded.model))
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
    legend: tuple[figures.Mark, ...]
    method: str
    n: int
    of: int
    named: bool


def features_map(outputs: ModelOutputs, split: Split, classes: Sequence[str]) -> FeaturesMap | None:
    """None for features that are not finite."""
    if not np.isfinite(outputs.features).all():
        return None
    places, best = embedding.in_the_plane(outputs.features), outputs.logits.argmax(1)
    shown = [checked.text(name, 40) for name in classes]
    points = []
    for (x, y), label, found, position in zip(
        places.tolist(), outputs.labels.tolist(), best.tolist(), outputs.positions.tolist(), strict=True
    ):
        file = checked.text(PurePath(split.sample_name(position)).name, 48)
        verdict = f"{shown[label]}, right" if label == found else f"{shown[label]}, predicted {shown[found]}"
        points.append(Point(x, y, label, label == found, f"{file}: {verdict}"))
    present = sorted({point.label for point in points})
    named = {label: shown[label] for label in present} if len(present) <= figures.NAMED_CLASSES else {}
    words = f"Map of the features of {len(points)} images of {len(present)} classes"
    return FeaturesMap(
        figures.features_map("map", points, named, words), tuple(figures.legend(points, named)),
        embedding.method(len(points)), len(points), len(split),
        bool(named),
    )  # fmt: skip
