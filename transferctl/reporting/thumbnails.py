"""Small pictures inside the page, as data URIs."""

from __future__ import annotations

import base64
import io

from PIL import Image

from transferctl.contracts import BadSample
from transferctl.data import Split

SIDE = 128  # pixels, of the longer side
LEAST = 64  # smaller pictures are enlarged, each pixel a square
QUALITY = 78


def of(split: Split, position: int) -> str | None:
    """The image, upright; None where it cannot be read any more."""
    try:
        image: Image.Image = split.dataset.read(int(split.indices[position]), at_least=SIDE)
    except BadSample:
        return None
    longest = max(image.size)
    if longest < LEAST:
        enlarged = SIDE * image.width // longest or 1, SIDE * image.height // longest or 1
        image = image.resize(enlarged, Image.Resampling.NEAREST)
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return as_uri(image)


def as_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
