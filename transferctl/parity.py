"""Whether an exported file computes what the model computes: on real images, the file loaded anew, in fp32.

It does where no probability and no logit differs by more than 1e-4. Where logits are larger than 50, their limit grows
with the largest, as the error of fp32's sums does, which go in another order for another number of images: it is two
millionths of that. (Measured, ResNet-50, VGG-11 and MobileNetV3 with logits of 500: up to 1.3 millionths.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from transferctl import data, evaluation, images
from transferctl.contracts import BadSample, Features
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import DataError, TransferctlError
from transferctl.exportable import Exportable, Predictor
from transferctl.loaders import Unreadable
from transferctl.predictionpaths import ListedPath, Paths
from transferctl.preprocess import Preprocessing, evaluation_image, short_side_needed
from transferctl.settings import DataSettings
from transferctl.spec import Spec
from transferctl.wording import counted, one_line, printable

LIMIT = 1e-4  # of a probability, and of logits up to LARGE
LARGE = 50.0
LIMITS = f"{LIMIT:g} of a probability and of logits up to {LARGE:g}; beyond, {LIMIT / LARGE:g} of the largest logit"
MOST = 32  # images
FIRST_BATCHES, BATCH = (1, 5), 16  # sizes: a graph that was made for one number of images fails at another


@dataclass(frozen=True)
class Sample:
    """pixels: uint8 [n, 3, H, W], preprocessed as `eval` does; origin: where from, in words."""

    pixels: np.ndarray
    origin: str
    is_real: bool = True


@dataclass(frozen=True)
class Reference:
    """What the restored model computes: logits float32 [n, C], probabilities float64 [n, C]."""

    logits: np.ndarray
    probabilities: np.ndarray

    @property
    def largest_logit(self) -> float:
        return float(np.abs(self.logits).max())

    @property
    def logit_limit(self) -> float:
        """By how much logits may differ: LIMIT, beyond LARGE as many times that as the largest is larger."""
        return LIMIT * max(1.0, self.largest_logit / LARGE)


def own_images(spec: Spec, domain: str, preprocessing: Preprocessing, display: Display) -> Sample:
    """Of the run's validation split, evenly spread: the domain's, or the other one's where it has no data; seeded
    noise, which is said, where neither is to be had."""
    for name in (domain, "source" if domain == "target" else "target"):
        try:
            return _of_run(spec, name, preprocessing, display)
        except (TransferctlError, OSError) as error:
            display.note(f"parity: no images of {name} validation data ({one_line(error)})")
    display.warn("parity is measured on noise; --images FOLDER names images to measure it on")
    crop = preprocessing.crop
    noise = np.random.default_rng(0).integers(0, 256, (MOST, 3, crop, crop), dtype=np.uint8)
    return Sample(noise, "noise, seed 0", is_real=False)


def _of_run(spec: Spec, domain: str, preprocessing: Preprocessing, display: Display) -> Sample:
    split, at_least = _validation(spec, domain), short_side_needed(preprocessing, None)
    opened = (
        (split.sample_name(i), lambda i=i: split.dataset.read(int(split.indices[i]), at_least))
        for i in _spread(len(split))
    )
    return Sample(_pixels(opened, preprocessing, display), f"{domain}.{split.name} of the run")


def images_in(folder: Path, preprocessing: Preprocessing, display: Display) -> Sample:
    """Of a folder and all below it, in order of their names. Raises DataError where there is none to be read."""
    label = f"--images {printable(str(folder))}"
    if not folder.is_dir():
        raise DataError(f"{label}: there is no such folder; name one that has images")
    paths = islice(Paths([str(folder.absolute())]), MOST)  # absolute: "-" would be stdin
    opened = ((path if isinstance(path, str) else path.name, partial(_decoded, path, preprocessing)) for path in paths)
    try:
        return Sample(_pixels(opened, preprocessing, display), str(folder))
    except DataError as error:
        raise DataError(f"{label}: {error}; images end in {', '.join(sorted(images.EXTENSIONS))}") from None


def _decoded(path: ListedPath, preprocessing: Preprocessing) -> Image:
    if isinstance(path, Unreadable):
        raise BadSample(path.reason)
    return images.decode(images.read_bytes(path), at_least=short_side_needed(preprocessing, None))


def _validation(spec: Spec, domain: str) -> Split:
    """Without its labels' meaning; the training split of a source without validation data."""
    own = spec.target if domain == "target" else spec.source
    if own is None:
        raise DataError(f"its spec has no {domain}")
    if isinstance(own.val, DataSettings):
        return data.load_unmapped(own.val, spec.seed, role="val", label=f"{domain}.val")[0]
    domain_data = data.load_domain(own.train, own.val, None, spec.seed, domain=domain)
    return domain_data.val if len(domain_data.val) else domain_data.train


def _spread(n: int) -> list[int]:
    return sorted({int(i) for i in np.linspace(0, n - 1, min(n, MOST))}) if n else []


def _pixels(opened: Iterator[tuple[str, Any]], preprocessing: Preprocessing, display: Display) -> np.ndarray:
    """opened: names, and functions that read the image. Raises DataError where none can be read."""
    found = []
    for name, read in opened:
        try:
            image: Image = read()
        except BadSample as error:
            display.warn(f"left out of the parity: {printable(name)} {error}")
            continue
        found.append(evaluation_image(image, preprocessing).numpy())
    if not found:
        raise DataError("there is no readable image")
    return np.ascontiguousarray(np.stack(found))


def reference(exportable: Exportable, sample: Sample) -> Reference:
    """By the plain modules: nothing is folded, fused, cached or rounded to bf16."""
    model, head = exportable.model, exportable.model.heads[exportable.domain]
    rows = []
    with torch.inference_mode():
        for part in np.array_split(sample.pixels, -(-len(sample.pixels) // BATCH)):
            features: Features = model.features(torch.from_numpy(part))
            rows.append(head(features).numpy())
    logits = np.concatenate(rows)
    return Reference(logits, evaluation.softmax(logits.astype(np.float64) / exportable.temperature))


def compare(predict: Predictor, sample: Sample, expected: Reference) -> dict[str, Any]:
    """The largest differences over all images, and on how many the most probable class is the same.

    `parity`: whether logits differ by no more than `Reference.logit_limit`, probabilities by no more than LIMIT. Then
    classes can differ only where two logits of the model are within twice that of each other.
    """
    logit, probability, same = [0.0], [0.0], np.zeros(len(sample.pixels), dtype=bool)
    for rows in _batches(len(sample.pixels)):
        logits, probabilities = predict(sample.pixels[rows])
        assert logits.shape == probabilities.shape == (len(rows), expected.logits.shape[1])
        logit.append(float(np.abs(logits - expected.logits[rows]).max()))
        probability.append(float(np.abs(probabilities - expected.probabilities[rows]).max()))
        same[rows] = logits.argmax(1) == expected.logits[rows].argmax(1)
    worst = float(np.max(logit)), float(np.max(probability))  # NaN, should there be one
    return {
        "parity": worst[0] <= expected.logit_limit and worst[1] <= LIMIT and bool(np.isfinite(worst).all()),
        "max_logit_difference": worst[0],
        "max_probability_difference": worst[1],
        "same_class": int(same.sum()),
    }


def _batches(n: int) -> Iterator[np.ndarray]:
    """Positions: one image, five (some again where there are fewer), then all that is left."""
    done = 0
    for size in FIRST_BATCHES:
        yield np.arange(done, done + size) % n
        done += size
    yield from (np.arange(start, min(start + BATCH, n)) for start in range(done, n, BATCH))


def as_json(sample: Sample, expected: Reference, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What parity.json says."""
    return {
        "schema_version": 1,
        "logit_limit": expected.logit_limit,
        "probability_limit": LIMIT,
        "limits": LIMITS,
        "images": len(sample.pixels),
        "images_of": sample.origin,
        "real_images": sample.is_real,
        "largest_logit": expected.largest_logit,
        "formats": {name: dict(values) for name, values in found.items()},
    }


def table(sample: Sample, expected: Reference, found: Mapping[str, Mapping[str, Any]], display: Display) -> None:
    columns = ["format", "file", "MB", "s", "max |Δ logit|", "max |Δ probability|", "same class"]
    rows = [
        [name, values["file"], f"{values['bytes'] / 1e6:.1f}", f"{values['seconds']:.1f}",
         f"{values['max_logit_difference']:.1e}", f"{values['max_probability_difference']:.1e}",
         f"{values['same_class']} of {len(sample.pixels)}"]
        for name, values in found.items()
    ]  # fmt: skip
    display.table(f"Parity with the model, on {counted(len(sample.pixels), 'image')}: {sample.origin}", columns, rows)
    logit = f"{expected.logit_limit:.2g} of a logit (the largest is {expected.largest_logit:.3g})"
    display.note(f"parity is at most {logit} and {LIMIT:g} of a probability")
