"""What one pass over a split finds of every sample: its digest, its hash, its size, and how it was stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from struct import Struct
from typing import Any

import numpy as np

from transferctl import loaders, perceptual, scratch
from transferctl.contracts import Dataset
from transferctl.data import Split
from transferctl.display import Display
from transferctl.images import STORED_AS
from transferctl.loaders import Audit

SAMPLE = np.dtype(
    [
        ("digest", np.uint8, 32),
        ("hash", "<u8", perceptual.WORDS),
        ("sides", "<i4", 2),  # pixels, the short one first
        ("mode", "S8"),  # PIL's name
        ("format", "S8"),  # the file's; empty without one
    ]
)
_ROW = Struct("<32s32s2i8s8s")  # the same bytes: numpy takes ten times as long for one row
COLUMNS = ("", "images", "short side from", "median", "to", "longest side", "below crop", "modes", "formats")


@dataclass(frozen=True)
class Looked(Audit):
    """samples: SAMPLE [n], zeros where unreadable; the digests are those in them."""

    samples: np.ndarray


def look(split: Split, workers: int, display: Display) -> Looked:
    """Read and decode every sample once."""
    broken, samples = loaders.look_at_all(split, _seen, SAMPLE, workers, display)
    return Looked(split, broken, samples["digest"], samples)


def _seen(dataset: Dataset, index: int) -> bytes:
    """A row of SAMPLE. Raises BadSample."""
    image, digest = dataset.read_hashed(index)
    mode, file_format = image.info.get(STORED_AS, (image.mode, None))
    looks = perceptual.hash_of(image).tobytes()
    return _ROW.pack(digest, looks, *sorted(image.size), mode.encode(), (file_format or "").encode())


def measured(audit: Looked, crop: int | None) -> dict[str, Any]:
    """Sizes of a split's readable images in pixels, how many there are, and how many are stored how. crop:
    `preprocess.crop`, where it is known."""
    readable = len(audit.split) - len(audit.broken)
    found: dict[str, Any] = {"images": readable}
    if not readable:
        return found
    short, long = (_ascending(audit.samples["sides"][:, side])[-readable:] for side in (0, 1))  # what is unread is 0
    median = int(short[readable // 2])
    found |= {"short_side": {"smallest": int(short[0]), "median": median, "largest": int(short[-1])}}
    found |= {"longest_side": int(long[-1])}
    found |= {"below_crop": int(np.searchsorted(short, crop))} if crop is not None else {}
    found |= {"modes": _counted(audit.samples, "mode"), "formats": _counted(audit.samples, "format")}
    return found


def row(name: str, found: Mapping[str, Any]) -> list[Any]:
    """A row of COLUMNS of what `measured` found."""
    if "short_side" not in found:
        return [name, found["images"], *[""] * (len(COLUMNS) - 2)]
    kinds = (", ".join(f"{kind} {n:,}" for kind, n in found[key].items()) for key in ("modes", "formats"))
    return [
        name,
        found["images"],
        *found["short_side"].values(),
        found["longest_side"],
        found.get("below_crop", ""),
        *kinds,
    ]


def _counted(samples: np.ndarray, key: str) -> dict[str, int]:
    """How many readable samples have each value, the most frequent first."""
    counts: Counter[str] = Counter()
    for part in scratch.pieces(len(samples)):
        piece = samples[part]
        values, times = np.unique(piece[key][piece["mode"] != b""], return_counts=True)
        for value, n in zip(values.tolist(), times.tolist(), strict=True):
            counts[value.decode() or "none"] += n
    return dict(counts.most_common())


def _ascending(values: np.ndarray) -> np.ndarray:
    """Sorted, in a file: np.sort of a million would be memory."""
    found = scratch.empty(len(values), values.dtype)
    found[:] = values
    found.sort()
    return found
