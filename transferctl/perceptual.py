"""A hash of what an image looks like: copies that were re-encoded, resized, brightened or slightly cropped get nearly
the same bits, different photographs bits that differ as coins do.

The signs of low-frequency coefficients of the discrete cosine transform: pHash (Zauner, "Implementation and
Benchmarking of Perceptual Image Hash Functions", 2010; Krawetz, "Looks Like It", 2011), but with 0 where these have the
median, so that the 64 bits that are searched are some of the 256 that decide. What it finds, and what it mistakes:
tests/benchmarks/nearduplicates.py.
"""

from __future__ import annotations

import numpy as np
from PIL.Image import Image, Resampling

WORDS = 4  # uint64: 256 bits, of which the first 64 are those of the lowest frequencies
SIDE = 32  # pixels of the grey image that is transformed
FREQUENCIES = 16  # along each side
SAMPLED = 128  # pixels a side of a larger image are looked at: averaging all of them takes a tenth of the decoding
FLAT = 2.0  # grey levels, standard deviation of the small image: what is less shows nothing to compare
SILENT = 1.0  # a coefficient, of sums of grey levels: what rounding makes of 0 is less


def hash_of(image: Image) -> np.ndarray:
    """uint64 [4] of an RGB image: bit i of the first word is the sign at the frequencies (i // 8, i % 8). All zeros
    where it is too small or too flat to be compared."""
    grey = _small(image)
    if min(image.size) < FREQUENCIES or _variance(grey.ravel()) < FLAT * FLAT:
        return np.zeros(WORDS, np.uint64)
    signs = (_COSINES @ grey @ _COSINES.T).ravel() > SILENT
    packed: np.ndarray = np.packbits(signs[_BY_FREQUENCY], bitorder="little")
    return packed.view("<u8")


def _small(image: Image) -> np.ndarray:
    """float32 [32, 32]: grey levels, means over the image's cells."""
    if image.width * image.height > 2 * SAMPLED * SAMPLED:
        image = image.resize((SAMPLED, SAMPLED), Resampling.NEAREST)
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Resampling.BOX), dtype=np.float32)


def _variance(values: np.ndarray) -> float:
    """In a third of the time of numpy's own, which counts where images have 32 pixels a side."""
    return float(values @ values / len(values) - (values.sum() / len(values)) ** 2)


def _cosines() -> np.ndarray:
    """float32 [16, 32]: the rows of DCT-II, not scaled."""
    frequencies, centres = np.arange(FREQUENCIES), np.arange(SIDE) + 0.5
    return np.cos(np.pi / SIDE * np.outer(frequencies, centres)).astype(np.float32)


def _by_frequency() -> np.ndarray:
    """Where the coefficients stand in 16 rows of 16, the 64 that are low in both directions first."""
    quarters = np.arange(FREQUENCIES**2).reshape(2, FREQUENCIES // 2, 2, FREQUENCIES // 2)
    return quarters.transpose(0, 2, 1, 3).ravel()


_COSINES, _BY_FREQUENCY = _cosines(), _by_frequency()
