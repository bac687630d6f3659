"""Decoding: every accepted format comes out as the same upright RGB; everything else is a BadSample."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from transferctl import images
from transferctl.contracts import BadSample
from transferctl.images import FORMATS, ImageFiles, decode, read_bytes, upright_rgb
from transferctl.wording import printable, shown

LOSSY = {"JPEG": 12, "WEBP": 40}  # largest deviation away from the edge; the others are exact


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def two_halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    image = Image.new(mode, (16, 8), left)
    image.paste(right, (8, 0, 16, 8))
    return image


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# -- formats and modes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_decodes_to_the_pixels_that_were_saved(kind: str) -> None:
    original = two_halves((200, 30, 30), (30, 30, 200))
    difference = np.abs(pixels(decode(encoded(original, kind))) - pixels(original))
    away_from_edge = difference[2:6, [2, 3, 4, 11, 12, 13]] if kind in LOSSY else difference
    assert away_from_edge.max() <= LOSSY.get(kind, 0)


@pytest.mark.parametrize("kind", ["PPM", "ICO", "TGA", "PCX"])
def test_a_format_that_is_not_listed_is_refused(kind: str) -> None:
    with pytest.raises(BadSample, match="not a readable image"):
        decode(encoded(two_halves((0, 0, 0), (9, 9, 9)), kind))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    decoded = pixels(decode(encoded(Image.new("L", (8, 8), 77), kind)))
    assert (decoded == 77).all()


def test_one_bit_black_and_white_becomes_0_and_255() -> None:
    image = Image.new("1", (4, 1), 0)
    image.putpixel((2, 0), 1)
    assert pixels(decode(encoded(image, "PNG")))[0, :, 0].tolist() == [0, 0, 255, 0]


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(decode(encoded(image, "PNG"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_is_laid_over_white(kind: str) -> None:
    image = two_halves((255, 0, 0, 255), (255, 0, 0, 0), "RGBA")
    options = {"lossless": True} if kind == "WEBP" else {}
    decoded = pixels(decode(encoded(image, kind, **options)))
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[0, 12].tolist() == [255, 255, 255]


def test_half_transparent_black_becomes_mid_grey() -> None:
    decoded = pixels(decode(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG")))
    assert (decoded == 127).all()


def test_grey_with_alpha_is_laid_over_white() -> None:
    decoded = pixels(decode(encoded(Image.new("LA", (2, 2), (0, 0)), "PNG")))
    assert (decoded == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_becomes_white(kind: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    decoded = pixels(decode(encoded(image, kind, transparency=1)))
    assert decoded.tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    decoded = pixels(decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind)))
    assert np.abs(decoded - [255, 0, 0]).max() <= 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257 * 64, 257 * 128, 65535]], dtype=np.uint16)
    decoded = pixels(decode(encoded(Image.fromarray(values), kind)))
    assert decoded[0, :, 0].tolist() == [0, 64, 128, 255]


def test_floats_up_to_255_are_refused_in_words_that_follow_a_path() -> None:
    values = np.array([[0, 255]], dtype=np.float32)
    with pytest.raises(BadSample, match=r"^has grey values from 0 to 255; 0 to 1 are expected of mode F$"):
        decode(encoded(Image.fromarray(values), "TIFF"))


def test_float_grey_from_0_to_1_is_scaled() -> None:
    values = np.array([[0.0, 0.2, 1.0]], dtype=np.float32)
    assert pixels(decode(encoded(Image.fromarray(values), "TIFF")))[0, :, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize("value", [np.nan, 2.0, -0.5])
def test_float_grey_outside_0_to_1_is_a_bad_sample(value: float) -> None:
    values = np.array([[0.0, value]], dtype=np.float32)
    with pytest.raises(BadSample, match="grey values"):
        decode(encoded(Image.fromarray(values), "TIFF"))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_270),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_90),
    ],
)
def test_exif_orientation_is_applied(orientation: int, turn: Image.Transpose) -> None:
    stored = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert np.array_equal(pixels(decode(encoded(stored, "PNG", exif=exif))), pixels(stored.transpose(turn)))


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(decode(data)) == [255, 0, 0]).all()


# -- what is broken ---------------------------------------------------------------------------------------


def test_an_empty_file_is_a_bad_sample() -> None:
    with pytest.raises(BadSample, match="0 bytes"):
        decode(b"")


def test_text_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("no picture at all")
    with pytest.raises(BadSample, match="not a readable image"):
        decode(read_bytes(str(tmp_path / "notes.jpg")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_a_truncated_image_is_a_bad_sample(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(BadSample):
        decode(data[: len(data) // 2])


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims this size in its header and holds one compressed row of zeros."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(1 + 3 * width))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_the_hand_made_png_is_valid_where_it_is_small() -> None:
    assert decode(png_of(5, 1)).size == (5, 1)


def test_50000_by_50000_pixels_are_refused_from_the_header() -> None:
    data = png_of(50_000, 50_000)
    tracemalloc.start()
    try:
        with pytest.raises(BadSample, match=r"^has 2,500,000,000 pixels, more than the 178,956,970 that are read$"):
            decode(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_large_image_below_the_bomb_limit_raises_no_warning() -> None:
    """PIL warns from half the limit on; pytest turns a warning that escapes into a failure."""
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode(png_of(100_000_000, 1)[:200])


def test_a_jpeg_of_more_scans_than_any_encoder_writes_is_refused() -> None:
    """Each is a pass over all pixels for fifty bytes: a megabyte of them would take minutes."""
    data = encoded(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    assert decode(data).size == (64, 64)
    last = data[data.rfind(b"\xff\xc4", 0, data.rfind(b"\xff\xda")) : -2]
    with pytest.raises(BadSample, match="has 1,010 scans, more than the 100 that are read"):
        decode(data[:-2] + 1000 * last + data[-2:])


_RAMP = np.arange(161).reshape(23, 7)
_UNUSUAL = [np.stack([_RAMP] * 4, 2).astype(np.uint8), np.stack([_RAMP] * 2, 2).astype(np.uint8),
            (_RAMP * 400).astype(np.uint16), (_RAMP / 161).astype(np.float32)]  # fmt: skip


@pytest.mark.parametrize("values", _UNUSUAL, ids=["RGBA", "LA", "I;16", "F"])
def test_conversion_by_bands_of_rows_changes_no_pixel(monkeypatch: pytest.MonkeyPatch, values: np.ndarray) -> None:
    whole = pixels(upright_rgb(Image.fromarray(values)))
    monkeypatch.setattr(images, "BAND_PIXELS", 21)
    assert np.array_equal(pixels(upright_rgb(Image.fromarray(values))), whole)
    assert len(np.unique(whole)) > 50


def test_a_file_that_is_larger_than_any_image_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10**12)  # sparse: takes no room
    with pytest.raises(BadSample, match="has 1 TB, more than the 1 GB that are read"):
        read_bytes(str(tmp_path / "a.jpg"))


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
def test_files_of_proc_which_say_that_they_are_empty_are_not_opened() -> None:
    assert read_bytes("/proc/self/environ") == b""


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(BadSample, match="not a regular file"):
        read_bytes(str(tmp_path / "pipe.jpg"))


def test_a_dangling_link_says_what_it_points_at(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("gone.jpg")
    with pytest.raises(BadSample, match=r"link to a missing file \(gone.jpg\)"):
        read_bytes(str(tmp_path / "a.jpg"))


def test_a_link_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").symlink_to("\x1b[2J")
    with pytest.raises(BadSample, match=r"^is a link to a missing file \(\\x1b\[2J\)$"):
        read_bytes(str(tmp_path / "a.jpg"))


def test_a_missing_file_is_a_bad_sample(tmp_path: Path) -> None:
    with pytest.raises(BadSample, match="is missing"):
        read_bytes(str(tmp_path / "a.jpg"))


def test_a_folder_named_like_an_image_is_a_bad_sample(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").mkdir()
    with pytest.raises(BadSample, match="not a regular file"):
        read_bytes(str(tmp_path / "a.jpg"))


_NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 255, (12, 12, 3), dtype=np.uint8))
_SEEDS = {kind: encoded(_NOISE, kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.one_of(st.none(), st.integers(0, 10**6)),
)
def test_mutated_bytes_give_an_image_or_a_bad_sample(kind: str, edits: list[tuple[int, int]], cut: int | None) -> None:
    data = bytearray(_SEEDS[kind])
    for place, value in edits:
        data[place % len(data)] = value
    try:
        image = decode(bytes(data[: cut % len(data)] if cut is not None else data))
    except BadSample as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert image.mode == "RGB" and image.width > 0 and image.height > 0


# -- the list of files and how names are shown ------------------------------------------------------------


def test_packed_paths_come_back_as_they_were() -> None:
    paths = ["a/1.jpg", "", "ü/é.png", "b/\udcff.gif"]
    files = ImageFiles(paths, [0, 1, 0, 1], ["x", "y"])
    assert [files.name(i) for i in range(len(files))] == paths


def test_equal_bytes_have_equal_content_hashes(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    files = ImageFiles([str(tmp_path / name) for name in "abc"], [0, 0, 0], ["x"])
    assert files.content_hash(0) == files.content_hash(1) != files.content_hash(2)


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[2Jb\udcff\nü") == r"a\x1b[2Jb\udcff\nü"


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    assert shown(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert shown(["a", "b", "c"]) == "a, b, c"
