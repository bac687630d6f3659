"""Digests of samples: which files are read again, and which must be."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transferctl import data, plugins
from transferctl.cache import hashes
from transferctl.cache.cache import Cache
from transferctl.cache.hashes import Memo, digests, open_memo
from transferctl.data import Split
from transferctl.errors import DataError
from transferctl.images import ImageFiles

LIMIT = 10**9


def written(path: Path, content: bytes, age_s: float = 60) -> Path:
    path.write_bytes(content)
    then = time.time_ns() - int(age_s * 10**9)
    os.utime(path, ns=(then, then))
    return path


def split_of(paths: Sequence[Path]) -> Split:
    dataset = ImageFiles([str(path) for path in paths], [0] * len(paths), ["ants"])
    return Split("train", dataset, np.arange(len(paths)), np.zeros(len(paths), np.int64))


def sha256(*contents: bytes) -> list[bytes]:
    return [hashlib.sha256(content).digest() for content in contents]


def found(split: Split, memo: Memo | None, **named: bool) -> list[bytes]:
    result = digests(split, memo, **named)
    assert (result.dtype, result.shape) == (np.uint8, (len(split), 32))
    return [row.tobytes() for row in result]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [written(tmp_path / f"{i}.jpg", f"image {i}".encode()) for i in range(5)]


@pytest.fixture
def memo(cache_folder: Path) -> Any:
    with open_memo(cache_folder, LIMIT) as memo:  # type: ignore[union-attr]
        yield memo


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that were read, as they are read."""
    names: list[str] = []
    inner = hashes.read_bytes

    def spy(path: str) -> bytes:
        names.append(Path(path).name)
        return inner(path)

    monkeypatch.setattr(hashes, "read_bytes", spy)
    return names


def test_digests_are_the_sha256_of_the_files_in_the_splits_order(paths: list[Path]) -> None:
    split = split_of(paths).rows(np.array([3, 0, 3]))
    assert found(split, None) == sha256(b"image 3", b"image 0", b"image 3")


def test_with_a_memo_an_unchanged_file_is_read_once(paths: list[Path], memo: Memo, read: list[str]) -> None:
    first = found(split_of(paths), memo)
    assert sorted(read) == [f"{i}.jpg" for i in range(5)]
    read.clear()
    assert found(split_of(paths), memo) == first == sha256(*(f"image {i}".encode() for i in range(5)))
    assert read == []


def test_the_memo_outlives_the_run(paths: list[Path], read: list[str], cache_folder: Path) -> None:
    for expected in (5, 0):
        with Cache(cache_folder, LIMIT, print).memo() as memo:  # type: ignore[union-attr]
            read.clear()
            found(split_of(paths), memo)
            assert len(read) == expected
    assert Cache(None, LIMIT, print).memo() is None


def other_size(path: Path) -> None:
    written(path, b"a longer image")


def other_time(path: Path) -> None:
    written(path, b"IMAGE 2", age_s=50)


def other_file_of_that_time(path: Path) -> None:
    """Size and time as before, but written aside and renamed, as editors do: another inode."""
    before = path.stat().st_mtime_ns
    aside = written(path.with_name("aside"), b"IMAGE 2")
    os.utime(aside, ns=(before, before))
    aside.rename(path)


@pytest.mark.parametrize("change", [other_size, other_time, other_file_of_that_time])
def test_a_changed_file_is_read_again_and_no_other(
    paths: list[Path], memo: Memo, read: list[str], change: Callable[[Path], None]
) -> None:
    before = found(split_of(paths), memo)
    change(paths[2])
    read.clear()
    after = found(split_of(paths), memo)
    assert read == ["2.jpg"]
    assert after[2] == sha256(paths[2].read_bytes())[0] != before[2]
    assert after[:2] + after[3:] == before[:2] + before[3:]


def test_an_edit_in_place_that_restores_the_time_is_noticed(paths: list[Path], memo: Memo) -> None:
    """As `cp -p` and archives do. The time of change tells."""
    found(split_of(paths), memo)
    status = paths[2].stat()
    with paths[2].open("r+b") as file:
        file.write(b"IMAGE 2")
    os.utime(paths[2], ns=(status.st_atime_ns, status.st_mtime_ns))
    assert found(split_of(paths), memo)[2] == sha256(b"IMAGE 2")[0]


def test_verify_believes_no_memo(paths: list[Path], memo: Memo) -> None:
    found(split_of(paths), memo)
    memo.add([(hashes._stamp(str(paths[2])), bytes(range(32)))])
    assert found(split_of(paths), memo)[2] == bytes(range(32))
    assert found(split_of(paths), memo, verify=True)[2] == sha256(b"image 2")[0]
    assert found(split_of(paths), memo)[2] == sha256(b"image 2")[0]  # and the memo has learnt it


def test_a_moved_file_is_another_file(paths: list[Path], memo: Memo, read: list[str]) -> None:
    found(split_of(paths), memo)
    moved = paths[0].rename(paths[0].with_name("moved.jpg"))
    read.clear()
    assert found(split_of([moved]), memo) == sha256(b"image 0")
    assert read == ["moved.jpg"]


@pytest.mark.parametrize("age_s", [0, 1.5, -3600])
def test_a_file_that_may_still_change_within_its_times_resolution_is_not_remembered(
    tmp_path: Path, memo: Memo, read: list[str], age_s: float
) -> None:
    split = split_of([written(tmp_path / "young.jpg", b"young", age_s)])
    assert found(split, memo) == found(split, memo) == sha256(b"young")
    assert read == ["young.jpg"] * 2


def test_a_file_that_changes_while_it_is_read_is_read_again(
    paths: list[Path], memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, times = hashes.read_bytes, iter(range(2))

    def read_slowly(path: str) -> bytes:
        content = inner(path)
        for i in times:
            written(Path(path), b"written meanwhile" + bytes([i]))
            break
        return content

    monkeypatch.setattr(hashes, "read_bytes", read_slowly)
    assert found(split_of(paths[:1]), memo) == sha256(b"written meanwhile\x01")


def test_a_file_that_changes_all_the_time_is_named(
    paths: list[Path], memo: Memo, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = hashes.read_bytes

    def changing(path: str) -> bytes:
        content = inner(path)
        written(Path(path), content + b".")
        return content

    monkeypatch.setattr(hashes, "read_bytes", changing)
    with pytest.raises(DataError, match=r"0\.jpg: changes while it is read; run again once"):
        digests(split_of(paths[:1]), memo)


def test_what_cannot_be_read_has_no_digest_and_is_not_remembered(tmp_path: Path, paths: list[Path], memo: Memo) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to("nowhere")
    split = split_of([tmp_path / "missing.jpg", paths[1], tmp_path / "folder.jpg", tmp_path / "dangling.jpg"])
    for given in (memo, memo, None):
        assert found(split, given) == [bytes(32), *sha256(b"image 1"), bytes(32), bytes(32)]
    written(tmp_path / "missing.jpg", b"here now")
    assert found(split, memo)[0] == sha256(b"here now")[0]


def test_data_that_is_no_files_is_hashed_by_its_pixels(memo: Memo) -> None:
    module = plugins.load("datasets", "digits")
    dataset = module.load(module.Settings(dataset="digits"), "test", 0)
    split = data.Split("test", dataset, np.array([2, 5]), np.zeros(2, np.int64))
    assert [digest.hex() for digest in found(split, memo)] == [dataset.content_hash(2), dataset.content_hash(5)]


def test_more_samples_than_a_batch(
    tmp_path: Path, memo: Memo, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "BATCH", 3)
    files = [written(tmp_path / f"{i:02}.jpg", bytes([i])) for i in range(10)]
    assert found(split_of(files), memo) == found(split_of(files), memo) == sha256(*(bytes([i]) for i in range(10)))
    assert len(read) == 10
    assert found(split_of([]), memo) == []


# -- the memo's file ----------------------------------------------------------------------------------


def _hash_and_remember(folder: Path, paths: list[Path], started: Any) -> None:
    with open_memo(folder, LIMIT) as memo:  # type: ignore[union-attr]
        started.wait(30)
        for _ in range(5):
            assert found(split_of(paths), memo, verify=True) == sha256(*(path.read_bytes() for path in paths))


def test_several_processes_share_the_memo(paths: list[Path], cache_folder: Path, read: list[str]) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Barrier(3)
    workers = [context.Process(target=_hash_and_remember, args=(cache_folder, paths, started)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with open_memo(cache_folder, LIMIT) as memo:  # type: ignore[union-attr]
        found(split_of(paths), memo)
    assert read == []


def test_a_memo_that_another_process_holds_is_done_without(
    paths: list[Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "BUSY_S", 0.05)
    with open_memo(cache_folder, LIMIT) as memo:  # type: ignore[union-attr]
        other = sqlite3.connect(cache_folder / "digests.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        assert found(split_of(paths), memo) == sha256(*(path.read_bytes() for path in paths))
        other.execute("ROLLBACK")
        other.close()


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + bytes(range(256)) * 20, b""])
def test_a_damaged_memo_begins_anew(paths: list[Path], cache_folder: Path, read: list[str], content: bytes) -> None:
    cache_folder.mkdir()
    (cache_folder / "digests.sqlite").write_bytes(content)
    for expected in (5, 0):
        read.clear()
        with open_memo(cache_folder, LIMIT) as memo:  # type: ignore[union-attr]
            found(split_of(paths), memo)
        assert len(read) == expected


def test_a_memo_that_is_damaged_within_is_done_without_and_begins_anew(
    tmp_path: Path, cache_folder: Path, read: list[str]
) -> None:
    files = [written(tmp_path / f"{i:03}.jpg", bytes([i])) for i in range(200)]
    with open_memo(cache_folder, LIMIT) as memo:  # type: ignore[union-attr]
        found(split_of(files), memo)
    database = cache_folder / "digests.sqlite"
    database.write_bytes(database.read_bytes()[:4096] + b"\xff" * (database.stat().st_size - 4096))
    for expected in (200, 200, 0):
        read.clear()
        with open_memo(cache_folder, LIMIT) as memo:  # type: ignore[union-attr]
            assert found(split_of(files), memo) == sha256(*(bytes([i]) for i in range(200)))
        assert len(read) == expected


def test_a_memo_that_cannot_be_kept_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    assert open_memo(tmp_path / "file", LIMIT) is None
    (tmp_path / "cache" / "digests.sqlite").mkdir(parents=True)
    assert open_memo(tmp_path / "cache", LIMIT) is None


def test_a_memo_that_has_grown_past_its_part_of_the_limit_begins_anew(
    paths: list[Path], cache_folder: Path, read: list[str]
) -> None:
    for _ in range(2):
        with open_memo(cache_folder, 1000) as memo:  # type: ignore[union-attr]
            found(split_of(paths), memo)
    assert len(read) == 10


def test_hashing_needs_no_torch() -> None:

    code = "import sys; from transferctl.cache import hashes; assert not {'torch', 'sklearn'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
