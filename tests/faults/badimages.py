"""Images that are broken, that claim to be huge, or take forever."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from entries import add
from sound import MEND, checking_data, images


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds one row."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 + 3 * min(width, 100_000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def gif(side: int) -> bytes:
    sizes = struct.pack("<HH", side, side)
    return b"GIF89a" + sizes + b"\x80\0\0\0\0\0\xff\xff\xff," + bytes(4) + sizes + b"\0\x02\x02\x44\x01\0;"


def bmp(side: int) -> bytes:
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)


def webp(side: int) -> bytes:
    bits = struct.pack("<I", (side - 1) | (side - 1) << 14)
    return b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8L" + struct.pack("<I", 17) + b"\x2f" + bits + bytes(12)


def tiff(side: int) -> bytes:
    """Width, height, bits, compression, photometric, one strip of 8 bytes at the header."""
    tags = [(256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8),
            (278, 4, 1, side), (279, 4, 1, 8)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded("JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    return data[:-2] + count * last + data[-2:]


def encoded(kind: str, **options: object) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(stream, kind, **options)
    return stream.getvalue()


def floats() -> bytes:
    import numpy as np
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(stream, "TIFF")
    return stream.getvalue()


# name, what it is, the file among sound images, its content, what the message holds
IMAGES: list[tuple[str, str, str, Callable[[], bytes], str]] = [
    ("zero_bytes", "an image of zero bytes", "z.jpg", bytes, "is empty (0 bytes)"),
    ("text", "text that is named .jpg", "z.jpg", lambda: b"no picture", "is not a readable image"),
    ("other_format", "a format that is not read", "z.png", lambda: encoded("TGA"), "is not a readable image"),
    ("truncated_jpeg", "half of a JPEG", "z.jpg", lambda: encoded("JPEG")[:700], "cannot be decoded"),
    ("truncated_png", "half of a PNG", "z.png", lambda: encoded("PNG")[:90], "cannot be decoded"),
    ("damaged_png", "a PNG with a wrong checksum", "z.png", lambda: encoded("PNG")[:29] + b"\0" + encoded("PNG")[30:],
     "is not a readable image"),
    ("nan_pixels", "a TIFF with NaN for a pixel", "z.tif", floats, "has grey values from nan to nan"),
    ("png_bomb", "a PNG of 60,000 × 60,000 pixels", "z.png", lambda: png(60_000, 60_000), "3,600,000,000 pixels"),
    ("png_overflow", "a PNG of 2³¹−1 pixels a side", "z.png", lambda: png(2**31 - 1, 2**31 - 1), "pixels, more than"),
    ("gif_bomb", "a GIF of 65,535 × 65,535 pixels", "z.gif", lambda: gif(65_535), "4,294,836,225 pixels"),
    ("bmp_bomb", "a BMP of 60,000 × 60,000 pixels", "z.bmp", lambda: bmp(60_000), "3,600,000,000 pixels"),
    ("webp_bomb", "a WebP of 16,384 × 16,384 pixels", "z.webp", lambda: webp(16_384), "268,435,456 pixels"),
    ("tiff_bomb", "a TIFF of 60,000 × 60,000 pixels", "z.tif", lambda: tiff(60_000), "3,600,000,000 pixels"),
    ("scan_bomb", "a JPEG of 5,000 scans", "z.jpg", lambda: scans(5000), "scans, more than the 100"),
]  # fmt: skip


def _with_image(folder: Path, name: str, content: Callable[[], bytes]) -> list[str]:
    (images(folder / "data", "a", "b") / "a" / name).write_bytes(content())
    return checking_data(folder)


for _name, _what, _file, _bytes, _says in IMAGES:
    add("image", _name, _what, 3, (f"data/a/{_file} ", _says, MEND), partial(_with_image, name=_file, content=_bytes))
