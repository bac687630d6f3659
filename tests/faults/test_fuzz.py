"""Readers of what others wrote, on anything at all: an answer or an error of ours, no hang, no growing memory.

HYPOTHESIS_PROFILE=long runs thousands of examples of each; without it there are some dozens.
"""

from __future__ import annotations

import io
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from sound import ARCHITECTURE, DIGITS, template

from transferctl import checkpoint, model, weights, yamlfile
from transferctl.checkpoint import Checkpoint
from transferctl.contracts import BadSample
from transferctl.datasets import manifest
from transferctl.errors import CheckpointError, DataError, SpecError, TransferctlError
from transferctl.images import FORMATS, decode

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
MOST_S = 20.0  # of one example; most take milliseconds, the largest image that is read five seconds
PEAK_MB = 1600  # that such an image may take
GROWTH_MB = 200  # of a whole test; allocators keep some


def fuzz(few: int, many: int) -> settings:
    return settings(
        max_examples=many if LONG else few, deadline=None, database=None, derandomize=not LONG,
        suppress_health_check=list(HealthCheck), print_blob=True,
    )  # fmt: skip


@pytest.fixture
def folder() -> Iterator[Path]:
    """One for all examples of a test."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@pytest.fixture(autouse=True)
def _keeps_its_memory() -> Iterator[None]:
    """Against a bomb, the peak of this process; against a leak, what it has in the end."""
    peak, held = _peak_mb(), _held_mb()
    yield
    grown, kept = _peak_mb() - peak, _held_mb() - held
    print(f"peak +{grown:.0f} MB, held +{kept:.0f} MB")  # shown by pytest -rP
    assert grown < PEAK_MB
    assert kept < GROWTH_MB


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def _held_mb() -> float:
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() / 1e6 if status.exists() else 0.0


@contextmanager
def only(*kinds: type[Exception]) -> Iterator[None]:
    """Inside, nothing else is raised, its message is for people, and it takes no time."""
    started = time.monotonic()
    try:
        yield
    except kinds as error:
        assert str(error).strip() and "Traceback" not in str(error)
    assert time.monotonic() - started < MOST_S


# -- how bytes and values are spoiled -----------------------------------------------------------------


@st.composite
def spoiled(draw: st.DrawFn, sound: bytes) -> bytes:
    """Sound bytes with some flipped, cut out, repeated or put in."""
    data = bytearray(sound)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(data) - 1, 0)))
        length = draw(st.integers(0, 64))
        kind = draw(st.sampled_from(["flip", "set", "cut", "repeat", "insert", "end"]))
        if kind == "flip" and data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and data:
            data[place] = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
        elif kind == "cut":
            del data[place : place + length]
        elif kind == "repeat":
            data[place:place] = data[place : place + length] * draw(st.integers(1, 40))
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=16))
        else:
            del data[place:]
    return bytes(data)


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.floats(), st.text(max_size=12),
    st.sampled_from(["", "../../x", "/etc/passwd", "\x1b[2J", "\u202e", "none", "0", "best"]),
)  # fmt: skip
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def at_some_place(values: Any, pick: int, new: Any) -> Any:
    """A copy in which one of its inner values, the pick-th, is another one."""
    places = list(_places(values))
    copy = json.loads(json.dumps(values))
    *way, last = places[pick % len(places)]
    here = copy
    for part in way:
        here = here[part]
    here[last] = new
    return copy


def _places(values: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from _places(inner, (*way, key))


# -- specs --------------------------------------------------------------------------------------------

WHOLE_SPEC = (
    DIGITS
    + "name: a\nseed: 1\nepochs: 3\nhead: {size: auto, hidden: [8], dropout: 0.1}\nfrozen: {1: all, 3: layer3}\n"
    + "optimizer: {name: adam, lr: 1e-3, betas: [0.9, 0.99]}\naugment: {crop_scale: [0.3, 1], flip: true}\n"
    + "source: {train: &d {dataset: digits}, val: *d}\npenalties: {l2sp: 0.1}\nlambda: 2\ncache: none\n"
)


def _load_spec(folder: Path, content: bytes) -> None:
    (folder / "spec.yaml").write_bytes(content)
    with only(SpecError):
        yamlfile.load(folder / "spec.yaml")


@fuzz(100, 5_000)
@given(content=spoiled(WHOLE_SPEC.encode()))
def test_a_spoiled_spec_is_read_or_refused(folder: Path, content: bytes) -> None:
    _load_spec(folder, content)


@fuzz(60, 3_000)
@given(content=st.text(max_size=200))
def test_any_text_as_a_spec_is_read_or_refused(folder: Path, content: str) -> None:
    _load_spec(folder, content.encode("utf-8", "surrogatepass"))


# -- manifests of data --------------------------------------------------------------------------------

ROWS = 'path,label,split\na/0.png,a,train\n"b, c.png",b,train\n../d.png,"say ""b""",val\na/1.png,a,train\n'


def _load_manifest(folder: Path, content: bytes) -> None:
    (folder / "m.csv").write_bytes(content)
    for outside in ("read", "refuse"):
        wanted = manifest.Settings.model_validate(
            {"dataset": "manifest", "path": str(folder / "m.csv"), "outside": outside}
        )
        with only(DataError):
            found = manifest.load(wanted, "train", 0)
            assert len(found) and all(name.isprintable() for name in found.class_names)


@fuzz(100, 5_000)
@given(content=spoiled(ROWS.encode()))
def test_a_spoiled_manifest_is_read_or_refused(folder: Path, content: bytes) -> None:
    _load_manifest(folder, content)


@fuzz(50, 3_000)
@given(rows=st.lists(st.lists(st.text(max_size=10), max_size=4), max_size=6))
def test_any_cells_as_a_manifest_are_read_or_refused(folder: Path, rows: list[list[str]]) -> None:
    text = "path,label\n" + "\n".join(",".join(cells) for cells in rows)
    _load_manifest(folder, text.encode("utf-8", "surrogatepass"))


# -- checkpoints --------------------------------------------------------------------------------------


@cache
def _saved() -> Checkpoint:
    return checkpoint.load(template())


@fuzz(120, 3_000)
@given(pick=st.integers(0, 200), new=VALUES)
def test_a_manifest_that_says_anything_else_makes_a_model_or_is_refused(pick: int, new: Any) -> None:
    saved = _saved()
    changed = Checkpoint(saved.path, saved.state, at_some_place(saved.manifest, pick, new))
    with only(CheckpointError):
        restored = model.restore(changed)
        assert restored.backbone.name == ARCHITECTURE and set(restored.heads) <= {"source", "target"}


@fuzz(60, 3_000)
@given(values=VALUES)
def test_any_json_as_a_manifest_is_refused(folder: Path, values: Any) -> None:
    step = folder / "checkpoints" / "best"
    step.mkdir(parents=True, exist_ok=True)
    (step / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError):
        checkpoint.load(folder)


@fuzz(60, 3_000)
@given(content=spoiled((template() / "checkpoints" / "best" / "manifest.json").read_bytes()))
def test_a_spoiled_manifest_of_a_checkpoint_is_read_or_refused(folder: Path, content: bytes) -> None:
    step = folder / "checkpoints" / "step-000001"
    if not step.exists():
        step.mkdir(parents=True)
        (folder / "checkpoints" / "best").symlink_to("step-000001")
        os.link(template() / "checkpoints" / "best" / "model.safetensors", step / "model.safetensors")
    (step / "manifest.json").write_bytes(content)
    with only(CheckpointError):
        model.restore(checkpoint.load(folder))


# -- weights ------------------------------------------------------------------------------------------


def _as_file(kind: str) -> bytes:
    from safetensors.torch import save

    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2), "n": torch.tensor(3)}
    if kind == "safetensors":
        return bytes(save(state))
    stream = io.BytesIO()
    torch.save({"state_dict": state, "epoch": 3}, stream, _use_new_zipfile_serialization=kind == "pth")
    return stream.getvalue()


def _read_weights(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with only(CheckpointError):
        assert weights.read(path).state


@fuzz(80, 3_000)
@given(content=spoiled(_as_file("safetensors")))
def test_spoiled_safetensors_are_read_or_refused(folder: Path, content: bytes) -> None:
    _read_weights(folder / "w.safetensors", content)


@pytest.mark.filterwarnings("ignore")  # torch warns of what it then refuses
@fuzz(80, 3_000)
@given(content=spoiled(_as_file("pth")))
def test_a_spoiled_pth_is_read_or_refused(folder: Path, content: bytes) -> None:
    _read_weights(folder / "w.pth", content)


@pytest.mark.filterwarnings("ignore")
@fuzz(80, 3_000)
@given(content=spoiled(_as_file("legacy")))
def test_a_spoiled_pth_of_the_old_format_is_read_or_refused(folder: Path, content: bytes) -> None:
    _read_weights(folder / "w.pth", content)


@fuzz(60, 3_000)
@given(
    content=spoiled(json.dumps([{"id": "n1", "name": "ant"}, {"name": "bee"}, "fly"]).encode()) | st.binary(max_size=40)
)
def test_spoiled_classes_are_read_or_refused(folder: Path, content: bytes) -> None:
    for name in ("c.json", "c.txt"):
        (folder / name).write_bytes(content)
        with only(CheckpointError):
            assert all(all(names) for names in weights.read_classes(folder / name))


# -- images -------------------------------------------------------------------------------------------


def _encoded(kind: str, mode: str, **options: Any) -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (24, 20, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _variants() -> dict[str, Callable[[], bytes]]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "described"
    return {
        **{kind: lambda kind=kind: _encoded(kind, "RGB") for kind in FORMATS},
        "JPEG-progressive": lambda: _encoded("JPEG", "CMYK", progressive=True, exif=exif),
        "PNG-alpha": lambda: _encoded("PNG", "RGBA", exif=exif),
        "PNG-palette": lambda: _encoded("PNG", "P", transparency=3),
        "TIFF-deflate": lambda: _encoded("TIFF", "RGBA", compression="tiff_deflate"),
        "WEBP-lossless": lambda: _encoded("WEBP", "RGBA", lossless=True),
    }


@pytest.mark.parametrize("variant", _variants())
def test_a_spoiled_image_is_decoded_or_refused(variant: str) -> None:
    @fuzz(40, 5_000)
    @given(content=spoiled(_variants()[variant]()), at_least=st.sampled_from([0, 4]))
    def spoil(content: bytes, at_least: int) -> None:
        with only(BadSample):
            image = decode(content, at_least=at_least)
            assert image.mode == "RGB" and min(image.size) > 0

    spoil()


def test_our_errors_are_one_family() -> None:
    assert all(issubclass(kind, TransferctlError) for kind in (SpecError, DataError, CheckpointError))
