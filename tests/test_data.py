"""Listing, splitting and the one class map."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from transferctl import data, loaders
from transferctl.contracts import BadSample
from transferctl.datasets import digits, folder, manifest
from transferctl.errors import DataError

Folder = Callable[..., Path]


def _load(train: Path, val: Path | float = 0.25, seed: int = 0) -> data.DomainData:
    held_out = val if isinstance(val, float) else folder.Settings(path=str(val))
    return data.load_domain(folder.Settings(path=str(train)), held_out, None, seed, domain="target")


def test_val_is_mapped_by_name_through_the_class_map_of_train(image_folder: Folder) -> None:
    domain = _load(image_folder("train", a=2, b=3, c=4), image_folder("val", c=2, a=1))
    assert domain.classes == ("a", "b", "c")
    assert domain.val.labels.tolist() == [0, 2, 2]
    assert any("no samples of b" in note for note in domain.notes)


def test_a_class_that_only_val_has_is_an_error_with_the_nearest_name(image_folder: Folder) -> None:
    with pytest.raises(DataError, match=r"antz.*meant to be 'ants'"):
        _load(image_folder("train", ants=2, bees=2), image_folder("val", antz=2))


def test_a_single_class_is_an_error(image_folder: Folder) -> None:
    with pytest.raises(DataError, match="has one class"):
        _load(image_folder("train", ants=4))


def test_the_hold_out_is_stratified_disjoint_and_depends_on_the_seed(image_folder: Folder) -> None:
    train = image_folder("train", a=8, b=16)
    one, same, other = _load(train, 0.25, 0), _load(train, 0.25, 0), _load(train, 0.25, 1)
    assert np.bincount(one.val.labels).tolist() == [2, 4]
    assert not set(one.train.indices) & set(one.val.indices)
    assert len(one.train) + len(one.val) == 24
    assert one.val.indices.tolist() == same.val.indices.tolist() != other.val.indices.tolist()


def test_hidden_is_counted_strays_are_reported_and_nested_images_belong_to_their_class(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2)
    (train / ".hidden").mkdir()
    (train / "a" / "notes.txt").write_text("x")
    (train / "a" / "deep").mkdir()
    (train / "a" / "0.png").rename(train / "a" / "deep" / "0.png")
    listed = folder.load(folder.Settings(path=str(train)), "train", 0)
    assert len(listed) == 4
    assert any("1 hidden" in note for note in listed.notes)
    assert any("notes.txt" in note for note in listed.notes)


def test_a_link_to_a_folder_around_it_is_an_error(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2)
    (train / "a" / "loop").symlink_to(train / "a")
    with pytest.raises(DataError, match="leads back"):
        folder.load(folder.Settings(path=str(train)), "train", 0)


def test_a_dangling_link_is_a_sample_that_cannot_be_read(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2)
    (train / "a" / "gone.jpg").symlink_to("nowhere.jpg")
    listed = folder.load(folder.Settings(path=str(train)), "train", 0)
    position = next(i for i in range(len(listed)) if listed.name(i).endswith("gone.jpg"))
    with pytest.raises(BadSample, match="link to a missing file"):
        listed.read(position)


@pytest.mark.parametrize("target", ["x", "x" * 300, "0.png/x"], ids=["itself", "too long a name", "below a file"])
@pytest.mark.parametrize("link", ["x", "a/x"])
def test_a_link_that_cannot_be_followed_is_named(image_folder: Folder, link: str, target: str) -> None:
    train = image_folder("train", a=2, b=2)
    (train / "0.png").touch()
    (train / link).symlink_to(target)
    with pytest.raises(DataError, match=f"{train / link}: cannot be listed: .*; mend or remove it"):
        folder.load(folder.Settings(path=str(train)), "train", 0)


def test_an_image_that_is_a_link_to_itself_is_a_sample_that_cannot_be_read(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2)
    (train / "a" / "x.jpg").symlink_to("x.jpg")
    listed = folder.load(folder.Settings(path=str(train)), "train", 0)
    with pytest.raises(BadSample, match="cannot be read: Too many levels of symbolic links"):
        listed.read([listed.name(i) for i in range(len(listed))].index(str(train / "a" / "x.jpg")))


def test_a_folder_whose_entries_may_not_be_looked_at_is_an_error(
    image_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permission to list but not to enter, which root, who may run the tests, always has."""
    train, stat = image_folder("train", a=2, b=2), os.stat

    def refuse(path: str, **options: bool) -> os.stat_result:
        if str(path) == str(train / "a"):
            raise PermissionError(13, "Permission denied", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(DataError, match=f"{train / 'a'}: cannot be listed: Permission denied; give"):
        folder.load(folder.Settings(path=str(train)), "train", 0)


def test_what_macos_and_windows_leave_is_hidden_and_no_class(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2, __MACOSX=1)
    (train / "desktop.ini").touch()
    (train / "a" / "Thumbs.db").touch()
    (train / "b" / "__MACOSX").mkdir()
    listed = folder.load(folder.Settings(path=str(train)), "train", 0)
    assert (listed.class_names, len(listed)) == (("a", "b"), 4)
    assert listed.notes == ("4 hidden ignored (names that start with a dot, __MACOSX, Thumbs.db, desktop.ini)",)


def test_a_file_name_that_is_not_utf8_is_named_in_the_error(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2)
    os.rename(train / "a" / "0.png", os.fsencode(train / "a") + b"/\xff.png")  # noqa: PTH104 (a bytes path)
    with pytest.raises(DataError, match=r"not printable UTF-8.*udcff.*; rename them"):
        folder.load(folder.Settings(path=str(train)), "train", 0)


def test_names_read_as_ascii_are_not_blamed_on_who_gave_them(image_folder: Folder) -> None:
    """They are UTF-8, in a locale that has no more than ASCII."""
    train = str(image_folder("train", μέλισσες=1, ants=1))
    code = "import sys; from transferctl.datasets import folder\nfolder.load(folder.Settings(path=sys.argv[1]), 'train', 0)"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code, train], env=environment, capture_output=True, check=False)
    assert b"names are read as ascii here; set PYTHONUTF8=1" in done.stderr


def test_a_folder_that_cannot_be_listed_is_an_error(image_folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    train = image_folder("train", a=2, b=2)

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match="cannot be listed: Permission denied; give"):
        folder.load(folder.Settings(path=str(train)), "train", 0)


def test_naming_the_folder_of_the_splits_points_to_train(image_folder: Folder) -> None:
    image_folder("both/train", a=1, b=1)
    with pytest.raises(DataError, match="holds splits, not classes"):
        folder.load(folder.Settings(path=str(image_folder("both/val", a=1).parent)), "train", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\nx,a\n", ":1: the header lacks path"),
        ("path,label\nx.png,a,extra\n", ":2: has 3 cells"),
        ("path,label\nx.png,\n", ":2: label is empty"),
        ("path,label\nx.png,a\n./x.png,b\n", ":3: ./x.png stands here as 'b', but as 'a' in line 2"),
        ("path,label,split\nx.png,a,test\n", "no row has split 'train'; the file has test"),
        ("path,label\n", "has no rows"),
        ("path,label,split\n", "has no rows"),
        ('path,label\nx.png,\ny.png,"a\n', ":3: is not CSV"),
    ],
)
def test_a_faulty_manifest_is_an_error_at_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(DataError) as caught:
        manifest.load(manifest.Settings(path=str(tmp_path / "m.csv")), "train", 0)
    assert message in str(caught.value)


def _manifest_faults(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        manifest.load(manifest.Settings(path=str(path)), "train", 0)
    return str(caught.value).splitlines()


def test_every_faulty_row_of_a_manifest_is_told_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    assert _manifest_faults(path, "path,label\n1.png,a\n1.png,a\n , \n2.png\n\n3.png,\x1b[2J\n3.png,b\n") == [
        f"{path}:3: 1.png stands here again, as in line 2",
        f"{path}:4: label is empty",
        f"{path}:4: path is empty",
        f"{path}:5: has 1 cell where the header has 2",
        f"{path}:7: label has unprintable characters: \\x1b[2J",
    ]


def test_of_many_faulty_rows_twenty_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    faults = _manifest_faults(path, "path,label\n" + "x.png,\n" * 1021)
    assert faults[19:] == [f"{path}:21: label is empty", f"{path}: and 1,001 more faults"]


def test_a_path_may_stand_in_two_splits_of_a_manifest(tmp_path: Path) -> None:
    """That is told as a duplicate across splits, once the files are read."""
    (tmp_path / "m.csv").write_text("path,label,split\n1.png,a,train\n1.png,a,val\n")
    assert len(manifest.load(manifest.Settings(path=str(tmp_path / "m.csv")), "train", 0)) == 1


def test_the_split_column_defaults_to_where_the_manifest_stands(tmp_path: Path) -> None:
    (tmp_path / "m.csv").write_text("path,label,split\n1.png,a,train\n2.png,b,train\n3.png,b,val\n")
    rows = manifest.load(manifest.Settings(path=str(tmp_path / "m.csv")), "val", 0)
    assert [rows.name(i) for i in range(len(rows))] == [str(tmp_path / "3.png")]
    assert rows.notes == ("rows of split val; the file has others: train (2)",)


def test_digits_splits_are_disjoint_and_per_class_draws_by_seed() -> None:
    sizes = [len(digits.load(digits.Settings(dataset="digits", split=s), "train", 0)) for s in ("train", "val", "test")]
    assert sum(sizes) == len(digits.load(digits.Settings(dataset="digits", split="all"), "train", 0)) == 1797
    settings = digits.Settings(dataset="digits", classes=("5", "6"), per_class=10)
    one = data.load_domain(settings, 0.5, None, 0, domain="target")
    other = data.load_domain(settings, 0.5, None, 1, domain="target")
    assert len(one.train) + len(one.val) == 20
    assert set(one.train.indices) | set(one.val.indices) != set(other.train.indices) | set(other.val.indices)


def test_every_problem_of_a_domain_comes_at_once(image_folder: Folder) -> None:
    train, val = image_folder("train", ants=1, bees=3), image_folder("val", antz=2)
    with pytest.raises(DataError) as caught:
        data.load_domain(
            folder.Settings(path=str(train)), 0.5, folder.Settings(path=str(val)), 0, domain="target"
        )  # fmt: skip
    one, other = str(caught.value).splitlines()
    assert one.startswith("target.test: classes that training data does not have: antz")
    assert other.startswith("target.train: one sample of ants")


def test_a_training_folder_that_cannot_be_listed_does_not_hide_the_others_fault(tmp_path: Path) -> None:
    missing = [folder.Settings(path=str(tmp_path / name)) for name in ("train", "val", "test")]
    with pytest.raises(DataError) as caught:
        data.load_domain(*missing, 0, domain="target")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [str(m.path) for m in missing]


def test_a_fingerprint_survives_a_move_and_notices_a_new_file_and_another_label(image_folder: Folder) -> None:
    train = image_folder("train", a=3, b=3)
    before = _load(train).train.fingerprint()
    moved = train.rename(train.with_name("moved"))
    assert _load(moved).train.fingerprint() == before
    (moved / "a" / "0.png").rename(moved / "b" / "0a.png")
    relabelled = _load(moved).train.fingerprint()
    (moved / "b" / "0a.png").rename(moved / "b" / "9.png")
    assert len({before, relabelled, _load(moved).train.fingerprint()}) == 3


def test_beside_a_gpu_workers_are_started_where_files_are_decoded_and_there_are_enough(
    image_folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (_load(image_folder(name, a=n, b=n), 0.5).train for name, n in (("few", 10), ("many", 64)))
    settings = digits.Settings(dataset="digits")
    in_memory = data.load_domain(settings, settings, None, 0, domain="target").train
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)
    assert not any(loaders.workers_for("auto", split) for split in (few, many, in_memory))
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    assert [loaders.workers_for("auto", split) > 0 for split in (few, many, in_memory)] == [False, True, False]
    assert loaders.workers_for(3, few) == 3


def test_an_exclude_pattern_that_matches_nothing_is_an_error(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2)
    left = folder.load(folder.Settings(path=str(train), exclude=("a/0.png",)), "train", 0)
    assert len(left) == 3
    with pytest.raises(DataError, match=r"`exclude` names what is not there: nomatch\.gif"):
        folder.load(folder.Settings(path=str(train), exclude=("a/0.png", "nomatch.gif")), "train", 0)


class _Watched:
    """In a cycle of its own, so that only a collection frees it; where one does, it says in which process."""

    def __init__(self, freed_by: Path):
        self.me, self.freed_by = self, freed_by

    def __del__(self) -> None:
        (self.freed_by / str(os.getpid())).touch()


class _Collecting:
    def __getitem__(self, key: int) -> int:
        gc.collect()
        return key


def test_workers_never_free_what_they_inherit(tmp_path: Path) -> None:
    """A tensor on a GPU that a forked worker frees ends the worker."""
    gc.disable()
    try:
        _Watched(tmp_path)  # garbage from now on
        assert list(loaders.in_order(_Collecting(), [[0, 1], [2]], 1)) == [[0, 1], [2]]
    finally:
        gc.enable()
    gc.collect()
    assert [path.name for path in tmp_path.iterdir()] == [str(os.getpid())]
