"""Folders of images and manifests that are broken, or made to do harm."""

from __future__ import annotations

import io
import os
import tarfile
from functools import partial
from pathlib import Path

from entries import add, bad
from sound import DIGITS, MEND, SPEC, checking, checking_data, images

ROWS = "data/a/0.png,a\ndata/a/1.png,a\ndata/b/0.png,b\ndata/b/1.png,b\n"
HEADED = f"path,label\n{ROWS}"


# name, what it is, where the link leads, what the message holds
LINKS = [
    ("broken_link", "a link to nothing", "gone.png", "z.png is a link to a missing file (gone.png)"),
    ("link_to_itself", "a link to itself", "z.png", "Too many levels of symbolic links"),
    ("link_to_device", "a link to /dev/zero", "/dev/zero", "z.png is not a regular file"),
    ("link_to_proc", "a link into /proc, whose files may block", "/proc/self/environ", "z.png is empty (0 bytes)"),
    ("link_to_text", "a link to a file with secrets", "/etc/passwd", "z.png is not a readable image"),
]

# name, what it is, the manifest, what the message holds
MANIFESTS: list[tuple[str, str, str | bytes, tuple[str, ...]]] = [
    ("empty", "an empty manifest", "", ("m.csv:1", "it must be path,label")),
    ("no_rows", "a header alone", "path,label\n", ("m.csv", "has no rows below its header")),
    ("semicolons", "semicolons for commas", HEADED.replace(",", ";"), ("m.csv:1", "lacks path and label")),
    ("wrong_columns", "other columns", HEADED.replace("path,label", "file,class"), ("m.csv:1", "it must be path,label")),
    ("column_twice", "a column twice", f"path,label,path\n{ROWS}", ("m.csv:1", "names a column twice")),
    ("short_row", "a row with a cell too few", f"{HEADED}x.png\n", ("m.csv:6", "has 1 cell where the header has 2")),
    ("long_row", "a row with a cell too many", f"{HEADED}x.png,a,b\n", ("m.csv:6", "has 3 cells")),
    ("no_label", "a row without label", f"{HEADED}x.png,\n", ("m.csv:6", "label is empty")),
    ("nul", "a NUL in a path", f"{HEADED}a\0.png,a\n", ("m.csv:6", r"unprintable characters: a\x00.png")),
    ("escapes", "a label that would clear the terminal", f"{HEADED}x.png,\x1b[2J\n", ("m.csv:6", r"\x1b[2J")),
    ("right_to_left", "a label written backwards", f"{HEADED}x.png,\u202egpj\n", ("m.csv:6", r"\u202egpj")),
    ("spaces", "a space before each label", HEADED.replace(",a", ", a"), ("m.csv:2", "begins or ends with a space")),
    ("long_label", "a label of 50,000 characters", HEADED + "x.png," + "a" * 50_000, ("m.csv:6", "50,000 characters")),
    ("long_line", "a line of a megabyte", HEADED + "x" * 10**6, ("m.csv:6", "that is no manifest")),
    ("unclosed_quote", "a quote that is not closed", f'{HEADED}"x.png,a\n', ("m.csv:6", "is not CSV")),
    ("binary", "binary", bytes(range(256)), ("m.csv", "save it as UTF-8")),
    ("utf16", "UTF-16", HEADED.encode("utf-16"), ("m.csv", "save it as UTF-8")),
    ("path_twice", "an image in two classes", f"{HEADED}data/a/0.png,b\n", ("m.csv:6", "as 'b', but as 'a' in line 2")),
    ("same_path", "an image twice, by another path", f"{HEADED}data/./a/0.png,a\n", ("m.csv:6", "again, as in line 2")),
    ("traversal", "a path to a file with secrets", f"{HEADED}{'../' * 20}etc/passwd,a\n",
     ("etc/passwd is not a readable image", MEND)),
    ("missing_image", "an image that is not there", f"{HEADED}data/a/9.png,a\n", ("data/a/9.png is missing", MEND)),
]  # fmt: skip

# name, what it is, the class folder beside another
CLASSES = [
    ("newline", "a class name with a newline", "a\nb", r"a\nb"),
    ("tab", "a class name with a tab", "a\tb", r"a\tb"),
    ("escapes", "a class name that would clear the terminal", "a\x1b[2J", r"a\x1b[2J"),
    ("right_to_left", "a class name with a right-to-left mark", "a\u202eb", r"a\u202eb"),
    ("zero_width", "a class name with an invisible space", "a\u200bb", r"a\u200bb"),
    ("no_text", "a class name that is no text", "a\udcff", r"a\udcff"),
]

# name, what it is, the class folders, the warning
ODD_CLASSES = [
    ("formula", "a class name that spreadsheets compute", ("=cmd()", "b"), "import the columns of predictions.csv as"),
    ("outer_space", "a class name that ends in a space", ("a ", "b"), "names begin or end with a space: 'a '"),
    ("alike", "class names that look alike", ("é", "e\u0301"), "look alike, and are two classes"),
]


def _with_link(folder: Path, to: str) -> list[str]:
    (images(folder / "data", "a", "b") / "a" / "z.png").symlink_to(to)
    return checking_data(folder)


def _with_manifest(folder: Path, content: str | bytes) -> list[str]:
    images(folder / "data", "a", "b")
    (folder / "m.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    return checking_data(folder, "{train: m.csv, val: 0.5}")


def _with_classes(folder: Path, *names: str) -> list[str]:
    images(folder / "data", *names)
    return checking_data(folder)


for _name, _what, _to, _says in LINKS:
    add("data", _name, _what, 3, (_says, MEND), partial(_with_link, to=_to))
for _name, _what, _text, _both in MANIFESTS:
    add("manifest", _name, _what, 3, _both, partial(_with_manifest, content=_text))
for _name, _what, _class, _says in CLASSES:
    make = lambda folder, name=_class: _with_classes(folder, name, "b")  # noqa: E731
    add("class", _name, _what, 3, ("data: 1 name not printable", _says, "rename them"), make)
for _name, _what, _names, _says in ODD_CLASSES:
    make = lambda folder, names=_names: _with_classes(folder, *names)  # noqa: E731
    add("class", _name, _what, 0, ("warning: target.train:", _says), make)


@bad("class", "a manifest's class that is called ..", 0, "target: 2 classes (.., b)")
def dots(folder: Path) -> list[str]:
    return _with_manifest(folder, HEADED.replace(",a", ",.."))


@bad("class", "a class name with HTML", 0, "target: 2 classes (<script>alert(1)<%2Fscript>, b)")
def html(folder: Path) -> list[str]:
    return _with_classes(folder, "<script>alert(1)<%2Fscript>", "b")


@bad("data", "a folder that is not there", 3, "absent: no such folder", "relative to the spec's folder")
def missing_folder(folder: Path) -> list[str]:
    return checking_data(folder, "{train: absent, val: 0.5}")


@bad("data", "an empty folder", 3, "data: has no class folders", "put the images of each class")
def empty_folder(folder: Path) -> list[str]:
    (folder / "data").mkdir()
    return checking_data(folder)


@bad("data", "an empty class folder", 3, "data: no images in the class folders c", "fill them or remove them")
def empty_class(folder: Path) -> list[str]:
    (images(folder / "data", "a", "b") / "c").mkdir()
    return checking_data(folder)


@bad("data", "one class", 3, "target.train: has one class (a)", "needs at least two")
def one_class(folder: Path) -> list[str]:
    return _with_classes(folder, "a")


@bad("data", "splits in place of classes", 3, "data: holds splits, not classes", "data/train and its siblings")
def splits(folder: Path) -> list[str]:
    return _with_classes(folder, "train", "val")


@bad("data", "an image where a folder of classes belongs", 3, "0.png: is a file, not a folder")
def image_for_folder(folder: Path) -> list[str]:
    images(folder / "data", "a")
    return checking_data(folder, "{train: data/a/0.png, val: 0.5}")


@bad(
    "data", "a class that only validation data has", 3, "target.val: classes that training data does not", "meant to be"
)
def unknown_class(folder: Path) -> list[str]:
    images(folder / "data", "ants", "bees")
    images(folder / "val", "ants", "bee")
    return checking_data(folder, "{train: data, val: val}")


@bad(
    "data", "one image of a class, and a fraction to hold out", 3, "one sample of a", "add samples or name a target.val"
)
def too_few(folder: Path) -> list[str]:
    images(folder / "data", "a", count=1)
    images(folder / "data", "b")
    return checking_data(folder)


@bad("data", "a folder that is named like an image", 3, "data: holds no images")
def folder_as_image(folder: Path) -> list[str]:
    for name in "ab":
        (folder / "data" / name / "0.png").mkdir(parents=True)
    return checking_data(folder)


@bad("data", "a pipe that is named like an image", 0, "1 file not used, being no images by name")
def pipe(folder: Path) -> list[str]:
    os.mkfifo(images(folder / "data", "a", "b") / "a" / "z.png")
    return checking_data(folder)


@bad("data", "an image of a terabyte", 3, "data/a/z.jpg has 1 TB, more than the 1 GB that are read", MEND)
def terabyte(folder: Path) -> list[str]:
    with (images(folder / "data", "a", "b") / "a" / "z.jpg").open("wb") as file:
        file.truncate(10**12)
    return checking_data(folder)


@bad("data", "a link to a folder around it", 3, "a link that leads back to a folder around it; remove it")
def link_loop(folder: Path) -> list[str]:
    (images(folder / "data", "a", "b") / "a" / "loop").symlink_to("..")
    return checking_data(folder)


def _links_out(folder: Path) -> None:
    images(folder / "private", "x")
    (images(folder / "data", "a", "b") / "a" / "z.png").symlink_to(folder / "private" / "x" / "0.png")
    (folder / "data" / "c").symlink_to("../private/x")


@bad("data", "links out of the data folder", 0, "5 images outside", "reached by links", "outside: refuse would refuse")
def links_out(folder: Path) -> list[str]:
    _links_out(folder)
    return checking_data(folder)


@bad("data", "links out of the data folder, where they are refused", 3, "5 images outside", "reached by links: ",
     "remove them, or write outside: read")  # fmt: skip
def links_refused(folder: Path) -> list[str]:
    _links_out(folder)
    return checking_data(folder, "{train: {path: data, outside: refuse}, val: 0.5}")


@bad("manifest", "paths out of the manifest's folder", 0, "2 images outside", "reached by absolute paths or ..")
def paths_out(folder: Path) -> list[str]:
    images(folder / "data", "a", "b")
    (folder / "sub").mkdir()
    (folder / "sub" / "m.csv").write_text(f"path,label\n../data/a/0.png,a\n{folder}/data/b/0.png,b\n")
    return checking(folder, f"{SPEC}target: {{train: sub/m.csv, val: sub/m.csv}}\n")


@bad("manifest", "paths out of the manifest's folder, where they are refused", 3, "2 images outside",
     "reached by links, absolute paths or ..", "write outside: read")  # fmt: skip
def paths_refused(folder: Path) -> list[str]:
    images(folder / "data", "a", "b")
    (folder / "sub").mkdir()
    (folder / "sub" / "link").symlink_to("../data")
    (folder / "sub" / "m.csv").write_text("path,label\n../data/a/0.png,a\nlink/b/0.png,b\n")
    return checking_data(folder, "{train: {path: sub/m.csv, outside: refuse}, val: 0.5}")


@bad("manifest", "an endless file in place of a manifest", 3, "m.csv: is not a regular file", "name a CSV file")
def endless(folder: Path) -> list[str]:
    (folder / "m.csv").symlink_to("/dev/zero")
    return checking_data(folder, "{train: m.csv, val: 0.5}")


@bad("manifest", "a split that it does not have", 3, "m.csv: no row has split 'train'", "the file has training")
def split(folder: Path) -> list[str]:
    images(folder / "data", "a", "b")
    rows = "".join(f"{row},training\n" for row in ROWS.splitlines())
    (folder / "m.csv").write_text(f"path,label,split\n{rows}")
    return checking_data(folder, "{train: m.csv, val: 0.5}")


@bad("archive", "an archive whose member leads out of its folder", 3, "FGVCAircraft", "outside the destination")
def member_outside(folder: Path) -> list[str]:
    (folder / "root").mkdir()
    with tarfile.open(folder / "root" / "fgvc-aircraft-2013b.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../canary"), io.BytesIO())
    return checking_data(folder, "{train: {dataset: torchvision, name: FGVCAircraft, root: root, download: true}}")


@bad("archive", "a data set that would unpickle what lies in the working folder", 2, "LSUN", "export its images")
def lsun(folder: Path) -> list[str]:
    return checking_data(folder, "{train: {dataset: torchvision, name: LSUN, root: .}}")


@bad("data", "a class that the data does not have", 3, "target.train: no class 7x; there are 0")
def class_not_there(folder: Path) -> list[str]:
    return checking(folder, DIGITS.replace("'1'", "7x"))
