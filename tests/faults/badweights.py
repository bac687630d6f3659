"""Files of weights and of their classes that are broken, or made to do harm."""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from entries import add, bad
from sound import checking_weights, safetensors, state

AGAIN = "copy or download it again"
NOT_RUN = "nothing in it was run"
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


class Calls:
    """Unpickled, it would call `function`."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


def saved(values: Any, *, legacy: bool = False) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(values, stream, _use_new_zipfile_serialization=not legacy)
    return stream.getvalue()


def with_canary(*, legacy: bool) -> bytes:
    """The commands run in the folder of the input, where `canary` would appear."""
    return saved({"fc.weight": Calls(os.mkdir, "canary")}, legacy=legacy)


def compressed() -> bytes:
    """A megabyte of zeros in five kilobytes, as a zip bomb would have terabytes."""
    import torch

    stream, plain = io.BytesIO(), zipfile.ZipFile(io.BytesIO(saved({"a": torch.zeros(1 << 18)})))
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in plain.namelist():
            archive.writestr(name, plain.read(name))
    return stream.getvalue()


def claiming(numbers: int) -> bytes:
    """In the old format a tensor of four numbers that says how many it has."""
    import torch

    written = saved({"a": torch.zeros(4)}, legacy=True)
    assert written.count(b"cpuq\x06K\x04") == 1
    return written.replace(b"cpuq\x06K\x04", b"cpuq\x06\x8a\x07" + numbers.to_bytes(7, "little"))


def view_of_many() -> bytes:
    import torch

    return saved({"a": torch.zeros(1).expand(10**10)})


def changed(change: Callable[[Any], Any], *names: str) -> bytes:
    """Sound weights, of which those with these names (all by default) are changed."""
    from safetensors.torch import save

    found = state()
    return save({name: change(tensor) if name in names or not names else tensor for name, tensor in found.items()})


def to(kind: str) -> bytes:
    import torch

    return changed(lambda tensor: tensor.to(getattr(torch, kind)))


def two(first: list[int], second: list[int]) -> bytes:
    return safetensors({"a": {**ONE, "data_offsets": first}, "b": {**ONE, "data_offsets": second}}, bytes(8))


def other_network() -> bytes:
    from safetensors.torch import save

    from transferctl.backbones import torchvision

    return save(torchvision._network("mobilenet_v3_small", 5, 32).state_dict())


TWICE = b'{"a":%s,"a":%s}' % ((json.dumps(ONE).encode(),) * 2)

# name, what it is, the file's name, its content, what the message holds
FILES: list[tuple[str, str, str, Callable[[], bytes], str]] = [
    ("pickle", "a pickle that would make a folder", "w.pth", partial(with_canary, legacy=False), NOT_RUN),
    ("legacy_pickle", "the same in the old format", "w.pth", partial(with_canary, legacy=True), NOT_RUN),
    ("bare_pickle", "a bare pickle of a function", "w.pt", lambda: b"cos\nmkdir\n(S'canary'\ntR.", NOT_RUN),
    ("bytearray", "a pickle that asks for 8 GB", "w.pth", lambda: saved({"a": Calls(bytearray, 1 << 33)}), NOT_RUN),
    ("legacy_bytearray", "the same in the old format", "w.pth",
     lambda: saved({"a": Calls(bytearray, 1 << 33)}, legacy=True), NOT_RUN),
    ("zip_bomb", "a compressed .pth", "w.pth", compressed, "more than it has; save it with torch.save"),
    ("strides", "a view that says 40 GB of one number", "w.pth", view_of_many, "save it again with tensor.contiguous()"),
    ("terabytes", "a tensor of 4 TB in a file of 1 kB", "w.pth", lambda: claiming(10**12), AGAIN),
    ("no_state_dict", "a .pth without tensors", "w.pth", lambda: saved([1, 2]), "is not a state dict"),
    ("cut_pth", "half of a .pth", "w.pth", lambda: saved(state())[:2_000_000], AGAIN),
    ("empty", "weights of zero bytes", "w.pth", bytes, AGAIN),
    ("text", "text that is named .safetensors", "w.safetensors", lambda: b"no weights\n", AGAIN),
    ("extension", "weights by another name", "w.bin", lambda: b"x", "weights end in .safetensors, .pth or .pt"),
    ("cut", "half of a .safetensors", "w.safetensors", lambda: changed(lambda t: t)[:2_000_000], AGAIN),
    ("long_header", "a header longer than the file", "w.safetensors", lambda: safetensors({}, length=10**6), AGAIN),
    ("endless_header", "a header of 2⁶³ bytes", "w.safetensors", lambda: safetensors({}, length=2**63), AGAIN),
    ("overlap", "tensors that overlap", "w.safetensors", lambda: two([0, 4], [2, 6]), AGAIN),
    ("out_of_range", "a tensor beyond the end", "w.safetensors", lambda: two([0, 4], [400, 404]), AGAIN),
    ("negative", "a tensor before the start", "w.safetensors", lambda: two([-4, 0], [0, 4]), AGAIN),
    ("overflow", "a tensor of 2⁸⁰ numbers", "w.safetensors",
     lambda: safetensors({"a": {**ONE, "shape": [2**40, 2**40]}}, bytes(4)), AGAIN),
    ("wrong_size", "a dtype that does not fit the size", "w.safetensors",
     lambda: safetensors({"a": {**ONE, "dtype": "F64"}}, bytes(4)), AGAIN),
    ("unknown_dtype", "an unknown dtype", "w.safetensors", lambda: safetensors({"a": {**ONE, "dtype": "F99"}}), AGAIN),
    ("four_bits", "numbers of four bits", "w.safetensors",
     lambda: safetensors({"a": {"dtype": "F4", "shape": [8], "data_offsets": [0, 4]}}, bytes(4)), "Nothing was loaded"),
    ("same_name", "two tensors of one name", "w.safetensors", lambda: safetensors(TWICE, bytes(4)), "do not fit"),
    ("deep_header", "a header of 100,000 brackets", "w.safetensors",
     lambda: safetensors(b'{"a":' + b"[" * 100_000), AGAIN),
    ("integers", "integers in place of weights", "w.safetensors", lambda: to("int32"), "of no floating-point numbers"),
    ("complex", "complex numbers", "w.safetensors", lambda: to("complex64"), "features.0.weight is complex64"),
    ("nan", "a NaN", "w.safetensors", lambda: changed(lambda t: t * float("nan"), "features.0.bias"),
     "use a file from before training diverged"),
    ("other_network", "another network's weights", "w.safetensors", other_network, "do not fit squeezenet1_1"),
    ("other_shape", "a tensor of another shape", "w.safetensors", lambda: changed(lambda t: t[:2], "features.0.weight"),
     "features.0.weight is 2×3×3×3, not 64×3×3×3"),
]  # fmt: skip

CLASSES_FIX = 'JSON: ["ant", …]'
# name, what it is, the classes file's name, its content, what the message holds
CLASSES: list[tuple[str, str, str, bytes, str]] = [
    ("no_list", "classes that are no list", "c.json", b'{"0": "a"}', CLASSES_FIX),
    ("deep", "classes nested 100,000 deep", "c.json", b"[" * 100_000, CLASSES_FIX),
    ("huge_int", "a number of 5,000 digits", "c.json", b"[" + b"9" * 5000 + b"]", CLASSES_FIX),
    ("no_text", "classes that are no text", "c.txt", bytes(range(256)), CLASSES_FIX),
    ("empty_name", "a class without name", "c.json", b'["a", "b", "c", "d", " "]', CLASSES_FIX),
    ("fewer", "fewer classes than the head has", "c.txt", b"a\nb\n", "names 2 classes; the head of"),
    ("twice", "two classes of one name", "c.txt", b"a\na\nb\nc\nd\n", "tell them apart, best by ids"),
]


def _with_weights(folder: Path, name: str, content: Callable[[], bytes]) -> list[str]:
    (folder / name).write_bytes(content())
    return checking_weights(folder, name)


def _with_classes(folder: Path, name: str, content: bytes) -> list[str]:
    (folder / "w.safetensors").write_bytes(changed(lambda tensor: tensor))
    (folder / name).write_bytes(content)
    return checking_weights(folder, f"{{path: w.safetensors, classes: {name}}}")


for _name, _what, _file, _content, _says in FILES:
    add("weights", _name, _what, 4, (f"{_file}: ", _says), partial(_with_weights, name=_file, content=_content))
for _name, _what, _file, _bytes, _says in CLASSES:
    add("classes-file", _name, _what, 4, (f"{_file}: ", _says), partial(_with_classes, name=_file, content=_bytes))


@bad("weights", "weights that are not there", 4, "absent.pth: no such weights", "write a published name")
def missing(folder: Path) -> list[str]:
    return checking_weights(folder, "absent.pth")


@bad("weights", "a folder that is no run", 4, "data: is neither a file nor a run folder", "name one of these")
def plain_folder(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    return checking_weights(folder, "data")


@bad("classes-file", "an endless file in place of classes", 4, "c.txt: ", CLASSES_FIX)
def endless(folder: Path) -> list[str]:
    (folder / "w.safetensors").write_bytes(changed(lambda tensor: tensor))
    (folder / "c.txt").symlink_to("/dev/zero")
    return checking_weights(folder, "{path: w.safetensors, classes: c.txt}")
