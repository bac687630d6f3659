"""python tests/benchmarks/nearduplicates.py [DATA]: what the audit's hash finds, what it mistakes, and what both cost.

DATA (default: ../shared/data) holds folders of photographs. Of each: how many changed copies are within the radius of
their originals, in %; how many pairs of different photographs are, of all pairs (they are named, as some may be copies);
the processor time of the audit's pass without and with the hash, in turn. Then the search in made-up hashes, with a
thousand planted copies: found, seconds. Its memory: memory.py --only audit.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from transferctl import audit, nearduplicates, perceptual
from transferctl.contracts import BadSample, Dataset
from transferctl.data import Split
from transferctl.display import Display
from transferctl.images import ImageFiles
from transferctl.nearduplicates import RADIUS, WHOLE_RADIUS, differing

FOLDERS = ("ants-bees", "tiny-imagenet-mini", "cifar10-mini")
CHANGED = 300  # photographs of each folder that are changed
TIMED = 400
PLANTED = 1000
Pixels = Image.Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser.add_argument("data", type=Path, nargs="?", default=default)
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=5)
    asked = parser.parse_args()
    for name in FOLDERS:
        paths = sorted(path for path in (asked.data / name).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
        drawn = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
        print(f"{name}: {len(drawn):,} photographs")
        _recall(drawn[:CHANGED])
        _mistaken(drawn)
        _cost(drawn[:TIMED], asked.turns)
    for n in asked.sizes:
        _searched(n)


def _recall(paths: Sequence[Path]) -> None:
    images = [_opened(path) for path in paths]
    hashes = np.array([perceptual.hash_of(image) for image in images])
    for name, change in CHANGES.items():
        changed = np.array([perceptual.hash_of(change(image)) for image in images])
        print(f"  {name:24s} {100 * _near(hashes, changed).mean():6.1f} %", flush=True)


def _mistaken(paths: Sequence[Path]) -> None:
    hashes = np.array([perceptual.hash_of(_opened(path)) for path in paths])
    found = []
    for i in range(1, len(paths)):
        found += [(int(other), i) for other in np.flatnonzero(_near(hashes[:i], hashes[i]))]
    pairs = len(paths) * (len(paths) - 1) // 2
    print(f"  {len(found)} of {pairs:,} pairs are within {RADIUS} of 64 and {WHOLE_RADIUS} of 256 bits")
    for one, other in found:
        bits = differing(hashes[one] ^ hashes[other])
        print(f"    {paths[one]} {paths[other]} {bits[0]} of 64, {bits.sum()} of 256")


def _near(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    bits = differing(hashes ^ others)
    near: np.ndarray = (bits[:, 0] <= RADIUS) & (bits.sum(axis=1) <= WHOLE_RADIUS) & others.any(axis=-1)
    return near


def _cost(paths: Sequence[Path], turns: int) -> None:
    """Processor time of the audit's pass, files in the page cache."""
    files: Dataset = ImageFiles([str(path) for path in paths], [0] * len(paths), ["all"])
    split = Split("all", files, np.arange(len(paths), dtype=np.int32), np.zeros(len(paths), np.int32))
    spent: dict[str, list[float]] = {"without": [], "with": []}
    hash_of = perceptual.hash_of
    for _ in range(turns):
        for kind, times in spent.items():
            perceptual.hash_of = hash_of if kind == "with" else lambda image: np.zeros(perceptual.WORDS, np.uint64)
            started = time.process_time()
            audit.look(split, 0, Display())
            times.append(1e6 * (time.process_time() - started) / len(paths))
    perceptual.hash_of = hash_of
    ratios = sorted(one / other for one, other in zip(spent["with"], spent["without"], strict=True))
    medians = {kind: sorted(times)[turns // 2] for kind, times in spent.items()}
    print(
        f"  {medians['without']:.0f} µs an image without the hash, {medians['with']:.0f} with it; "
        f"ratio {ratios[turns // 2]:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})",
        flush=True,
    )


def _searched(n: int) -> None:
    random = np.random.default_rng(0)
    words = random.integers(0, 2**64, (n, perceptual.WORDS), dtype=np.uint64)
    train, val = (random.permutation(n * part // 5)[:PLANTED] + start for part, start in ((4, 0), (1, n * 4 // 5)))
    words[val] = words[train]
    for i, row in enumerate(val):
        for bit in random.choice(64, i % (RADIUS + 1), replace=False):
            words[row, 0] ^= np.uint64(1 << int(bit))
    splits = (np.arange(n) >= n * 4 // 5).astype(np.uint8)
    started = time.perf_counter()
    near = nearduplicates.search(words, splits, np.zeros(n, np.int32), np.arange(n, dtype=np.int32))
    found = {later: first for later, first, _ in nearduplicates.pairs(near.across)}
    elapsed_s = time.perf_counter() - started
    right = sum(found.get(int(later)) == int(first) for first, later in zip(train, val, strict=True))
    print(
        f"{n:,} hashes: {right} of {PLANTED} planted pairs, {len(found) - right} others; {elapsed_s:.1f} s", flush=True
    )


def _opened(path: Path) -> Pixels:
    files = ImageFiles([str(path)], [0], ["all"])
    try:
        return files.read(0)
    except BadSample as error:
        raise SystemExit(f"{path} {error}") from None


def _jpeg(image: Pixels, quality: int) -> Pixels:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def _resized(image: Pixels, factor: float) -> Pixels:
    sides = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    return image.resize(sides, Image.Resampling.BICUBIC)


def _cropped(image: Pixels, part: float) -> Pixels:
    """Less `part` of each side, at least a pixel."""
    x, y = max(1, round(image.width * part)), max(1, round(image.height * part))
    return image.crop((x, y, image.width - x, image.height - y))


def _brightened(image: Pixels, factor: float) -> Pixels:
    return ImageEnhance.Brightness(image).enhance(factor)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "JPEG, quality 75": lambda image: _jpeg(image, 75),
    "JPEG, quality 30": lambda image: _jpeg(image, 30),
    "half as large": lambda image: _resized(image, 0.5),
    "twice as large": lambda image: _resized(image, 2),
    "1 % off each side": lambda image: _cropped(image, 0.01),
    "2 % off each side": lambda image: _cropped(image, 0.02),
    "3 % off each side": lambda image: _cropped(image, 0.03),
    "5 % off each side": lambda image: _cropped(image, 0.05),
    "brightness 1.2": lambda image: _brightened(image, 1.2),
    "brightness 1.4": lambda image: _brightened(image, 1.4),
    "brightness 0.7": lambda image: _brightened(image, 0.7),
    "2 %, 0.7 as large, 1.15, 60": lambda image: _jpeg(_brightened(_resized(_cropped(image, 0.02), 0.7), 1.15), 60),
}

if __name__ == "__main__":
    main()
