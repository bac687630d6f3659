"""What is as long as the data is no memory: packed and in files, and yet the same samples in the same order."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from transferctl import audit, copies, data, grouping, loaders, paired, repeats, scratch
from transferctl.contracts import Dataset
from transferctl.data import Split
from transferctl.datasets import folder, manifest
from transferctl.errors import DataError, ResourceError
from transferctl.images import ImageFiles
from transferctl.loaders import Unreadable
from transferctl.paired import Outcomes
from transferctl.texts import Texts

Folder = Callable[..., Path]
MANY = 300_000  # int32 of so many are more than 1 MiB, and are five pieces


@pytest.fixture(params=["in memory", "in files"])
def in_small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that few samples are several pieces, and, "in files", as many are of millions."""
    monkeypatch.setattr(scratch, "PIECE", 7)
    monkeypatch.setattr(scratch, "IN_MEMORY", 1 << 20 if request.param == "in memory" else 0)


def labels_of(*counts: int) -> np.ndarray:
    return np.random.default_rng(5).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)


# -- the same order as before, when each of these was an array or a list in memory


def former_draws(labels: np.ndarray, balanced: bool, key: list[int]) -> np.ndarray:
    random, n = np.random.default_rng(key), len(labels)
    if not balanced:
        return np.stack([random.permutation(n), np.zeros(n, dtype=np.int64)], axis=1)
    classes = np.unique(labels)
    shares = np.full(len(classes), n // len(classes))
    shares[random.permutation(len(classes))[: n % len(classes)]] += 1
    parts = []
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == label)
        turns = -(-int(share) // len(members))
        positions = np.concatenate([random.permutation(members) for _ in range(turns)])
        parts.append(np.stack([positions, np.repeat(np.arange(turns), len(members))], axis=1)[:share])
    drawn: np.ndarray = random.permutation(np.concatenate(parts))
    return drawn


def former_hold_out(labels: np.ndarray, fraction: float, seed: int, classes: str) -> np.ndarray:
    held = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        count = min(max(round(len(members) * fraction), 1), len(members) - 1)
        held.append(data._generator(seed, "hold_out", name).permutation(members)[:count])
    return np.sort(np.concatenate(held))


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("counts", [(30, 3, 1), (5, 5, 5), (1, 1), (2, 97), (4, 0, 9, 4, 18), (1,)])
def test_draws_are_those_of_earlier_versions(counts: tuple[int, ...], balanced: bool) -> None:
    labels = labels_of(*counts)
    for key in ([0, 0], [3, 8, 1]):
        assert loaders.draws(labels, balanced, key).tolist() == former_draws(labels, balanced, key).tolist()
    for batch_size in (1, 2, 4, 1000):
        batches = list(loaders.epoch_batches(labels, batch_size, 3, 8, balanced))
        steps = loaders.steps_per_epoch(len(labels), batch_size)
        former = np.array_split(former_draws(labels, balanced, [3, 8]), steps)
        assert [batch.tolist() for batch in batches] == [batch.tolist() for batch in former]
        assert all(batch.dtype == np.int64 for batch in batches)


@pytest.mark.parametrize("balanced", [False, True])
def test_many_draws_in_a_file_are_those_of_earlier_versions(balanced: bool) -> None:
    labels = labels_of(MANY - 1000, 600, 400)
    assert np.array_equal(loaders.draws(labels, balanced, [1, 2]), former_draws(labels, balanced, [1, 2]))


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
def test_a_hold_out_is_that_of_earlier_versions(fraction: float) -> None:
    labels = labels_of(40, 2, 13)
    dataset: Any = SimpleNamespace(name=str)
    split = Split("train", dataset, np.arange(100, 155, dtype=np.int32), labels)
    train, val = data._hold_out(split, fraction, 4, "abc", "target", [])
    held = former_hold_out(labels, fraction, 4, "abc")
    assert val.indices.tolist() == (held + 100).tolist() and val.labels.tolist() == labels[held].tolist()
    assert train.indices.tolist() == [100 + i for i in range(55) if i not in set(held.tolist())]
    assert (val.indices.dtype, val.labels.dtype) == (np.int32, np.int32)


@pytest.mark.usefixtures("in_small_pieces")
def test_per_class_draws_are_those_of_earlier_versions() -> None:
    labels, kept = labels_of(40, 2, 13), np.arange(0, 55, 2)
    dataset: Any = SimpleNamespace(labels=labels, class_names=("a", "b", "c"))
    drawn = []
    for label in np.unique(labels[kept]):
        members = kept[labels[kept] == label]
        order = data._generator(9, "per_class", "abc"[label]).permutation(len(members))
        drawn.append(members[order[:5]])
    found = data._draw_per_class(dataset, kept.astype(np.int32), 5, 9)
    assert found.tolist() == np.sort(np.concatenate(drawn)).tolist()


@pytest.mark.usefixtures("in_small_pieces")
def test_the_bootstrap_of_a_change_has_the_numbers_of_earlier_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paired, "LOSS_DRAWS", 50)
    random, n = np.random.default_rng(0), 501
    before, after = (Outcomes(random.random(n) < 0.6, random.gamma(1.0, 1.0, n)) for _ in range(2))
    found = paired.difference(before, after, "change")
    random = np.random.default_rng(0)
    gained, lost = (np.count_nonzero(a & ~b) / n for a, b in ((after.right, before.right), (before.right, after.right)))
    random.multinomial(n, [gained, lost, max(1 - gained - lost, 0)], paired.ACCURACY_DRAWS)
    differences = after.losses - before.losses
    losses = np.array([differences[random.integers(n, size=n)].mean() for _ in range(50)])
    assert [found[f"loss_change_{end}"] for end in ("low", "high")] == np.quantile(losses, [0.025, 0.975]).tolist()


# -- where it is


def anonymous_kib() -> int:
    return next(
        int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line
    )


needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux's /proc says what memory is")


@needs_proc
def test_what_many_samples_need_is_not_memory() -> None:
    """An index, its hold-out and draws of 400,000, in a process of its own."""
    code = """
from types import SimpleNamespace
import numpy as np
from test_memory import anonymous_kib
from transferctl import data, loaders
from transferctl.data import Split
from transferctl.images import ImageFiles
def work(n):
    labels = np.broadcast_to(np.int32(0), n)
    files = ImageFiles((f"/some/folder/of/images/class/{i:08}.jpg" for i in range(n)), labels, ["a", "b"])
    whole = Split("train", files, data.scratch.arange(n), data.scratch.mapped(lambda x: x % 2, data.scratch.arange(n), np.int32))
    train, val = data._hold_out(whole, 0.2, 0, "ab", "target", [])
    for balanced in (False, True):
        keys = loaders.cycle(train.labels, 0, balanced)
        batches = loaders.epoch_batches(train.labels, 32, 0, 0, balanced)
        next(keys), next(batches)
    return train, val, keys, batches
few = work(10_000)
before = anonymous_kib()
many = work(400_000)
print(anonymous_kib() - before)
"""
    assert said(code) < 4 * 1024  # as objects, the paths alone would be 40 MB


@needs_proc
def test_what_the_audit_knows_of_many_samples_is_not_memory() -> None:
    """400,000 rows of a pass and all that is made of them, with one choice of bands for the 220; in a process of its
    own."""
    code = """
from types import SimpleNamespace
import numpy as np
from test_memory import anonymous_kib
from transferctl import audit, copies, nearduplicates, scratch
from transferctl.data import Split
nearduplicates.combinations = lambda bands, k: [tuple(bands[:k])]
def work(n):
    audits = []
    for name, size in (("train", n * 4 // 5), ("val", n // 5)):
        samples, random = scratch.empty(size, audit.SAMPLE), np.random.default_rng(len(name))
        for start in range(0, size, 1000):
            content = random.bytes(1000 * audit.SAMPLE.itemsize)
            samples[start : start + 1000] = np.frombuffer(content, audit.SAMPLE)
        samples["mode"], samples["format"], samples["sides"] = b"RGB", b"JPEG", (375, 500)
        dataset = SimpleNamespace(name=str)
        split = Split(name, dataset, scratch.arange(size), scratch.filled(size, 0, np.int32))
        audits.append(audit.Looked(split, {}, samples["digest"], samples))
    audits[1].samples["hash"][:10] = audits[0].samples["hash"][:10]
    found = copies.find(audits, ["a"])
    measured = [audit.measured(looked, 224) for looked in audits]
    assert [(pair.names, pair.bits) for pair in found.near] == [((str(i), str(i)), 0) for i in range(10)]
    return audits, found, measured
few = work(10_000)
before = anonymous_kib()
many = work(400_000)
print(anonymous_kib() - before)
"""
    assert said(code) < 4 * 1024  # in memory, the rows and the hashes alone would be 45 MB


def said(code: str) -> int:
    """The number that a process of its own prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="Linux's /proc says what is mapped")
def test_a_large_array_is_a_file_without_a_name_and_a_small_one_is_memory() -> None:
    large = scratch.empty((MANY, 2), np.int32)
    large[:] = 1
    address = f"{large.ctypes.data:x}-"
    (line,) = (line for line in Path("/proc/self/maps").read_text().splitlines() if line.startswith(address))
    assert " rw-s " in line and line.endswith("(deleted)")
    assert type(large) is np.ndarray  # numpy shuffles another type by another path
    small = f"{scratch.empty(100, np.int32).ctypes.data:x}-"
    assert not any(line.startswith(small) for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_full_temporary_folder_is_an_error_with_its_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match=r"No space left on device; free some space, or name another .* TMPDIR"):
        scratch.empty(MANY, np.int32)


def test_a_file_system_that_cannot_reserve_space_still_gives_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert scratch.filled(MANY, 3, np.int32).sum() == 3 * MANY


# -- arrays piece by piece, against numpy in one piece


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("n", [0, 1, 6, 7, 8, 14, 100])
def test_pieces_make_what_numpy_makes_at_once(n: int) -> None:
    random = np.random.default_rng(n)
    values, mask = random.random((5, 3)), random.random(n) < 0.4
    index, labels = random.integers(0, 5, n), random.integers(-1, 4, n)
    assert scratch.arange(n).tolist() == list(range(n))
    assert np.array_equal(scratch.taken(values, index), values[index])
    assert scratch.positions(mask).tolist() == np.flatnonzero(mask).tolist()
    assert grouping.counts(labels, 6).tolist() == np.bincount(labels[labels >= 0], minlength=6).tolist()
    labels = np.abs(labels)
    found = {label: positions.tolist() for label, positions in grouping.members(labels, 6)}
    assert found == {label: np.flatnonzero(labels == label).tolist() for label in np.unique(labels).tolist()}
    growing = scratch.Growing(np.int16)
    for part in np.array_split(index, 3):
        growing.append(part)
    assert growing.array().tolist() == index.tolist()
    growing.add(9)
    assert growing.array().tolist() == [*index, 9]


@pytest.mark.parametrize("n", [3, 9000, 200_000])
def test_packed_texts_come_back_also_from_another_process(n: int) -> None:
    texts = [f"é/{i}" if i % 3 else f"\udcff{'x' * (i % 50)}" for i in range(n)]
    packed = Texts(iter(texts))
    assert list(packed) == texts
    assert list(pickle.loads(pickle.dumps(packed))) == texts


# -- listing


def listing(root: Path, **settings: Any) -> tuple[list[str], list[int], tuple[str, ...]]:
    found = folder.load(folder.Settings(path=str(root), **settings), "train", 0)
    return [found.name(i) for i in range(len(found))], found.labels.tolist(), found.notes


def walked(below: Path) -> Iterator[str]:
    for path in sorted(below.iterdir(), key=lambda path: path.name):
        if path.is_dir():
            yield from walked(path)
        elif path.suffix in (".jpg", ".gif"):
            yield str(path)


@pytest.mark.parametrize("run", [1, 2, 5, 1000])
def test_files_are_in_the_order_of_their_names_however_a_folder_is_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: int
) -> None:
    """Names of which one begins another, with characters that sort below and above the others."""
    monkeypatch.setattr("transferctl.listing.RUN", run)
    names = [
        "a.jpg",
        "a!.jpg",
        "a/1.jpg",
        "a/0.jpg",
        "a b.jpg",
        "ä.jpg",
        "\U0001f41c.jpg",
        "￿.jpg",
        "b/c/2.gif",
        "b.jpg",
        "B.jpg",
    ]
    for name in [f"{label}/{name}" for label in ("x", "y", "x y") for name in names]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "y" / "linked").symlink_to(tmp_path / "x" / "b")
    (tmp_path / "y" / "linked.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "y" / "notes.txt").touch()
    paths, labels, notes = listing(tmp_path)
    expected = {name: list(walked(tmp_path / name)) for name in ("x", "x y", "y")}
    assert paths == [path for own in expected.values() for path in own]
    assert labels == [label for label, own in enumerate(expected.values()) for _ in own]
    assert any(path.endswith("y/linked/c/2.gif") for path in paths) and any(p.endswith("linked.jpg") for p in paths)
    assert notes == (
        f"1 file not used, being no images by name: {tmp_path}/y/notes.txt",
        "4 GIFs: the first frame is used",
    )


def test_of_many_strays_three_are_named_and_the_others_counted(image_folder: Folder) -> None:
    train = image_folder("train", a=2, b=2)
    for i in range(5):
        (train / "a" / f"{i}.xml").touch()
    _, _, (note,) = listing(train)
    assert note == (
        f"5 files not used, being no images by name: {', '.join(f'{train}/a/{i}.xml' for i in range(3))} and 2 more"
    )


def test_each_pattern_that_matches_something_counts_as_used(image_folder: Folder) -> None:
    """Also one that matches only what another excludes already."""
    train = image_folder("train", a=3, b=3)
    paths, _, _ = listing(train, exclude=("a/0.png", "0.png"))
    assert len(paths) == 4
    with pytest.raises(DataError, match="`exclude` names what is not there: c"):
        listing(train, exclude=("0.png", "c"))


def test_lines_of_a_manifest_end_as_they_like_and_a_byte_that_is_no_utf8_is_counted_from_its_start(
    tmp_path: Path,
) -> None:
    path = tmp_path / "m.csv"
    path.write_bytes(b'\xef\xbb\xbfpath,label\r\n1.gif,a\r\n"2,\r\n.png",b\r3.png,a\n')
    with pytest.raises(DataError, match=r"m\.csv:4: path has unprintable characters: 2,"):
        manifest.load(manifest.Settings(path=str(path)), "train", 0)
    path.write_bytes(b"path,label\r\n1.gif,b\r2.png,a\n")
    found = manifest.load(manifest.Settings(path=str(path)), "train", 0)
    assert ([found.name(i) for i in range(2)], found.labels.tolist()) == (
        [str(tmp_path / "1.gif"), str(tmp_path / "2.png")],
        [1, 0],
    )
    assert (found.class_names, found.notes) == (("a", "b"), ("1 GIF: the first frame is used",))
    path.write_bytes(b"path,label\n" + b"x.png,a\n" * 5000 + b"\xff.png,a\n")
    with pytest.raises(DataError, match=r"is not UTF-8 \(byte 40011\)"):
        manifest.load(manifest.Settings(path=str(path)), "train", 0)


# -- what is equal


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("kinds", [1, 3, 20, 1000])
@pytest.mark.parametrize("hash_bits", [0, 2, 32])
def test_each_repeat_is_found_with_the_first_of_its_kind_also_where_hashes_collide(kinds: int, hash_bits: int) -> None:
    values = np.random.default_rng(kinds).integers(0, kinds, 60).tolist()
    first: dict[int, int] = {}
    expected = [(i, first[value]) for i, value in enumerate(values) if first.setdefault(value, i) != i]
    hashes = np.array([value * 2654435761 % 2**hash_bits for value in values], dtype=np.uint32)
    assert list(repeats.earlier(hashes, values.__getitem__)) == expected


@pytest.mark.usefixtures("in_small_pieces")
def test_duplicates_are_pairs_across_splits_with_the_first_of_the_content_and_none_of_the_unreadable() -> None:
    random = np.random.default_rng(0)
    contents = random.integers(0, 256, (12, 32)).astype(np.uint8)
    audits = []
    for name, size in (("train", 20), ("val", 9), ("test", 11)):
        dataset: Any = SimpleNamespace(name=lambda i, name=name: f"{name}/{i}")
        samples = np.zeros(size, audit.SAMPLE)
        samples["digest"], samples["mode"] = contents[random.integers(0, 12, size)], b"RGB"
        broken = {3: Unreadable("x", "y"), 5: Unreadable("x", "y")}
        samples[list(broken)] = np.zeros(1, audit.SAMPLE)
        listed = Split(name, dataset, np.arange(size), np.zeros(size, np.int32))
        audits.append(audit.Looked(listed, broken, samples["digest"], samples))
    first: dict[bytes, tuple[str, str]] = {}
    expected = []
    for looked in audits:
        for position, row in enumerate(looked.digests):
            if position not in looked.broken:
                split, seen = first.setdefault(row.tobytes(), (looked.split.name, looked.split.sample_name(position)))
                expected += [(seen, looked.split.sample_name(position))] if split != looked.split.name else []
    assert len(expected) > 10
    assert [pair.names for pair in copies.find(audits, ["a"]).identical] == expected


def test_samples_that_two_splits_share_are_counted_by_name() -> None:
    files: Dataset = ImageFiles([f"{i}.png" for i in range(10)], [0] * 10, ["a"])
    one, other = (Split("x", files, np.array(rows), np.zeros(len(rows))) for rows in ([1, 2, 3, 7, 7], [7, 3, 9]))
    assert (data.count_shared(one, other), data.count_shared(other, one)) == (3, 2)


@pytest.mark.usefixtures("in_small_pieces")
def test_a_split_without_some_samples_keeps_the_others_in_order() -> None:
    files: Dataset = ImageFiles([f"{i}.png" for i in range(30)], [0] * 30, ["a"])
    split = Split("x", files, np.arange(0, 30, 2), np.arange(15)).without({2, 11})
    assert list(split.names()) == [f"{2 * i}.png" for i in range(15) if i not in (2, 11)]
    assert split.relabelled(np.arange(15)[::-1]).labels.tolist() == [14 - i for i in range(15) if i not in (2, 11)]
