"""From image files to upright 8-bit RGB, and the data set of image files that folder and manifest share.

Accepted: JPEG, PNG, WebP, BMP, TIFF, GIF (first frame). Everything else about the pixels is settled here,
once: EXIF orientation is applied, 16-bit greys are scaled to 8 bits, transparency is laid over white. A JPEG that is
much larger than wanted is decoded at a half, a quarter or an eighth, which libjpeg does in the inverse DCT.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL
from PIL import Image, ImageOps, UnidentifiedImageError

from transferctl.contracts import BadSample
from transferctl.sizes import in_words
from transferctl.texts import Texts, packed
from transferctl.wording import counted, printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
EXTENSIONS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"))
STORED_AS = "stored_as"  # key of an image's `info`: mode and format of what it was made of; format None without a file
MAX_PIXELS = 178_956_970  # 512 MiB as RGB, PIL's own limit; larger is refused from the header
MAX_BYTES = 10**9  # of a file; that many pixels with transparency, uncompressed, are 716 MB
MAX_SCANS = 100  # of a progressive JPEG; encoders write ten, and each is a pass over all pixels for a few bytes
BAND_PIXELS = 1 << 22  # that are converted at a time, so that a large image takes little more memory than its pixels


def decode(data: bytes, formats: tuple[str, ...] = FORMATS, at_least: int = 0) -> Image.Image:
    """Upright RGB image (first frame) from a file's bytes. at_least: the short side, pixels, that a JPEG may be
    reduced to; 0: never reduced. Raises BadSample, whatever is wrong."""
    if not data:
        raise BadSample("is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL warns of what is checked below, and of odd EXIF
            image = Image.open(io.BytesIO(data), formats=formats)
            _refuse_huge(image)
            _refuse_many_scans(image, data)
            if at_least:
                image.draft(None, (at_least, at_least))  # before anything is decoded; JPEG alone heeds it
            return upright_rgb(image)
    except BadSample:
        raise
    except UnidentifiedImageError:
        raise BadSample(f"is not a readable image ({', '.join(formats)})") from None
    except Image.DecompressionBombError as error:  # "Image size (2500000000 pixels) exceeds …": no other way to it
        size = re.search(r"\d+", str(error))
        pixels = f"{int(size[0]):,} pixels" if size else "too many pixels"
        raise BadSample(f"has {pixels}, more than the {MAX_PIXELS:,} that are read") from None
    except Exception as error:  # decoders raise whatever they like on broken data: OSError, SyntaxError, …
        raise BadSample(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


def header_size(path: str) -> tuple[int, int]:
    """Width and height as stored, pixels, from the head of the file alone. Raises BadSample."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would block
            raise BadSample("is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return image.size
    except BadSample:
        raise
    except Exception as error:  # as in `decode`
        raise BadSample(f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}") from None


def versions() -> str:
    """What the pixels depend on besides the files."""
    from PIL import features

    return f"Pillow {PIL.__version__}, libjpeg-turbo {features.version('libjpeg_turbo')}"


def upright_rgb(image: Image.Image) -> Image.Image:
    """What every image becomes, whoever opened it. Raises BadSample, and what PIL raises on broken data."""
    _refuse_huge(image)
    stored_as = image.info.get(STORED_AS, (image.mode, image.format))
    ImageOps.exif_transpose(image, in_place=True)
    rgb = _rgb(image)
    rgb.info[STORED_AS] = stored_as
    return rgb


def _refuse_huge(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadSample(f"is {width}×{height} pixels, more than the {MAX_PIXELS:,} that are read")


def _refuse_many_scans(image: Image.Image, data: bytes) -> None:
    if image.format in ("JPEG", "MPO") and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise BadSample(f"has {scans:,} scans, more than the {MAX_SCANS} that are read")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _deep_grey(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _over_white(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # convert would copy


def _over_white(image: Image.Image) -> Image.Image:
    flat = Image.new("RGB", image.size)
    for box in _bands(image):
        rgba = image.crop(box).convert("RGBA")
        flat.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), box)
    return flat


def _deep_grey(image: Image.Image) -> Image.Image:
    """16-bit greys scaled by 255/65535, floats from 0–1. PIL's own convert() would clip them at 255."""
    top = 1.0 if image.mode == "F" else 65535.0
    ends = [(values.min(), values.max()) for box in _bands(image) for values in [np.asarray(image.crop(box))]]
    low, high = np.min(ends), np.max(ends)
    if not (low >= 0 and high <= top):  # nor are NaNs
        raise BadSample(f"has grey values from {low:g} to {high:g}; 0 to {top:g} are expected of mode {image.mode}")
    grey = Image.new("L", image.size)
    for box in _bands(image):
        values = np.asarray(image.crop(box), dtype=np.float64)
        grey.paste(Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8), "L"), box)
    return grey


def _bands(image: Image.Image) -> Iterator[tuple[int, int, int, int]]:
    rows = max(BAND_PIXELS // image.width, 1)
    for top in range(0, image.height, rows):
        yield 0, top, image.width, min(top + rows, image.height)


def read_bytes(path: str) -> bytes:
    """The file's content. Raises BadSample, also for what is no regular file (a FIFO would block) or is huge. What says
    that it is empty is not opened: in /proc are files that are not, and that block."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise BadSample("is not a regular file")
        if status.st_size > MAX_BYTES:
            raise BadSample(f"has {in_words(status.st_size)}, more than the {in_words(MAX_BYTES)} that are read")
        if not status.st_size:
            return b""
        return Path(path).read_bytes()
    except FileNotFoundError:
        points_at = printable(os.readlink(path)) if os.path.islink(path) else ""
        raise BadSample(f"is a link to a missing file ({points_at})" if points_at else "is missing") from None
    except OSError as error:
        raise BadSample(f"cannot be read: {error.strerror}") from None


class ImageFiles:
    """Labelled image files. Paths are packed, so a million cost what they measure, and no memory of a process."""

    def __init__(
        self,
        paths: Iterable[str] | Texts,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str],
        notes: Sequence[str] = (),
    ):
        self._paths = packed(paths)
        self.labels = np.asarray(labels, dtype=np.int32)
        self.class_names = tuple(class_names)
        self.notes = tuple(notes)
        self.reads_files = True
        assert len(self.labels) == len(self._paths)

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return self._paths[index]

    def read(self, index: int, at_least: int = 0) -> Image.Image:
        return decode(read_bytes(self.name(index)), at_least=at_least)

    def read_hashed(self, index: int, at_least: int = 0) -> tuple[Image.Image, bytes]:
        data = read_bytes(self.name(index))
        return decode(data, at_least=at_least), hashlib.sha256(data).digest()

    def content_hash(self, index: int) -> str:
        return hashlib.sha256(read_bytes(self.name(index))).hexdigest()


def is_gif(path: str) -> bool:
    return path.lower().endswith(".gif")


def first_frame_notes(gifs: int) -> list[str]:
    return [f"{counted(gifs, 'GIF')}: the first frame is used"] if gifs else []
