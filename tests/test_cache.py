"""The cache on disk: what is found again, what is not, and what damage, haste and full disks do to it."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transferctl import sizes
from transferctl.cache import entries, rows, shards, store
from transferctl.cache.cache import Cache, open_cache
from transferctl.cache.settings import CacheSettings
from transferctl.cache.store import Product
from transferctl.errors import ResourceError, SpecError

ROW_BYTES = 24
LIMIT = 10**9
PRODUCT = Product({"architecture": "resnet18", "weights": "ab12", "crop": 224}, ROW_BYTES, "features of resnet18")


def keys_of(*samples: int) -> np.ndarray:
    """uint8 [n, 32]: random, but always the same for the same sample."""
    made = [np.random.default_rng([7, sample]).integers(0, 256, 32, dtype=np.uint8) for sample in samples]
    return np.array(made, np.uint8).reshape(-1, 32)


def values_of(*samples: int, row_bytes: int = ROW_BYTES) -> np.ndarray:
    made = [np.random.default_rng([8, sample]).integers(0, 256, row_bytes, dtype=np.uint8) for sample in samples]
    return np.array(made, np.uint8).reshape(-1, row_bytes)


class Folder:
    """A cache's folder, with what was warned of."""

    def __init__(self, root: Path | None, limit: int = LIMIT):
        self.warnings: list[str] = []
        self.cache = Cache(root, limit, self.warnings.append)

    def fill(self, *samples: int, product: Product = PRODUCT) -> list[int]:
        """What a run does: look up, compute what is missing, read all. The samples that had to be computed."""
        keys = keys_of(*samples)
        with self.cache.rows(product, keys) as found:
            missing = found.missing
            computed = [samples[i] for i in missing]
            found.add(missing, keys[missing], values_of(*computed, row_bytes=product.row_bytes))
            read = found.read(np.arange(len(samples)))
        assert np.array_equal(read, values_of(*samples, row_bytes=product.row_bytes))
        return computed


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four rows a shard."""
    monkeypatch.setattr(shards, "SHARD_ROWS", 4)


def entry_folder(root: Path, product: Product = PRODUCT) -> Path:
    return entries.folder_of(root, product.key)


def files(root: Path, pattern: str) -> list[Path]:
    return sorted(entry_folder(root).glob(pattern))


# -- what is found again ------------------------------------------------------------------------------


def test_what_was_computed_once_is_read_ever_after(root: Path) -> None:
    assert Folder(root).fill(1, 2, 3) == [1, 2, 3]
    folder = Folder(root)
    assert folder.fill(3, 1, 2) == []
    assert folder.fill(3, 9) == [9]
    assert folder.warnings == []


def test_rows_of_several_shards_are_read_in_any_order_and_repeatedly(root: Path, small_shards: None) -> None:
    samples = range(30)
    Folder(root).fill(*samples)
    assert len(files(root, "*.rows")) == 8
    with Folder(root).cache.rows(PRODUCT, keys_of(*samples)) as found:
        assert len(found.missing) == 0
        positions = np.random.default_rng(0).integers(0, 30, 500)
        assert np.array_equal(found.read(positions), values_of(*positions))
        assert found.read(np.array([], np.int64)).shape == (0, ROW_BYTES)


def test_rows_are_read_while_others_are_still_added_and_after_closing(root: Path, small_shards: None) -> None:
    keys = keys_of(*range(10))
    found = Folder(root).cache.rows(PRODUCT, keys)
    for i in range(10):
        found.add(np.array([i]), keys[[i]], values_of(i))
        assert np.array_equal(found.read(np.arange(i + 1)), values_of(*range(i + 1)))
    found.close()
    entries.remove(entries.found(root)[0])
    assert np.array_equal(found.read(np.arange(10)), values_of(*range(10)))


def test_equal_samples_share_a_row_and_are_computed_once(root: Path) -> None:
    assert Folder(root).fill(5, 6, 5, 5, 7, 6) == [5, 6, 7]
    assert Folder(root).fill(7, 7, 5) == []


def test_no_samples_are_no_fault(root: Path) -> None:
    Folder(root).fill(1)
    assert Folder(root).fill() == []


def test_a_sample_without_a_key_equals_no_other_and_is_never_found(root: Path) -> None:
    keys = np.zeros((3, 32), np.uint8)
    with Folder(root).cache.rows(PRODUCT, keys) as found:
        assert found.missing.tolist() == [0, 1, 2]
        found.add(np.array([1]), keys_of(4), values_of(4))  # it could be read after all
        assert found.missing.tolist() == [0, 2]
        assert np.array_equal(found.read(np.array([1])), values_of(4))
    assert Folder(root).fill(4) == []


def test_keys_that_agree_in_their_first_bytes_are_told_apart(root: Path) -> None:
    keys = keys_of(*[1] * 4)
    keys[:, -1] = [4, 3, 2, 1]
    with Folder(root).cache.rows(PRODUCT, keys[:3]) as found:
        found.add(np.arange(3), keys[:3], values_of(4, 3, 2))
    with Folder(root).cache.rows(PRODUCT, keys) as found:
        assert found.missing.tolist() == [3]
        assert np.array_equal(found.read(np.array([2, 0, 1])), values_of(2, 4, 3))


def test_the_index_agrees_with_a_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    from transferctl import scratch
    from transferctl.cache import keyindex

    monkeypatch.setattr(scratch, "PIECE", 7)
    drawn = np.random.default_rng(3).integers(0, 40, 200).tolist()
    index = keyindex.KeyIndex(keys_of(*drawn))
    first: dict[int, int] = {}
    for position, sample in enumerate(drawn):
        first.setdefault(sample, position)
    assert index.first.tolist() == [first[sample] for sample in drawn]
    samples, found_rows = index.find(keys_of(*range(20, 60)))
    expected = {(first[sample], sample - 20) for sample in range(20, 60) if sample in first}
    assert set(zip(samples.tolist(), found_rows.tolist(), strict=True)) == expected
    assert len(samples) == len(expected)


# -- what is never found ------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 77, 255])
def test_one_bit_of_a_samples_digest_misses(root: Path, bit: int) -> None:
    Folder(root).fill(1)
    changed = keys_of(1)
    changed[0, bit // 8] ^= 1 << bit % 8
    with Folder(root).cache.rows(PRODUCT, changed) as found:
        assert found.missing.tolist() == [0]


CHANGES = [
    {"identity": {**PRODUCT.identity, "architecture": "resnet34"}},
    {"identity": {**PRODUCT.identity, "weights": "ab13"}},
    {"identity": {**PRODUCT.identity, "crop": 225}},
    {"identity": {**PRODUCT.identity, "precision": "bf16"}},
    {"identity": {"architecture": "resnet18", "weights": "ab12"}},
    {"row_bytes": 2 * ROW_BYTES},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_any_part_of_the_identity_misses(root: Path, change: dict[str, Any]) -> None:
    Folder(root).fill(1, 2)
    other = Product(**{"identity": PRODUCT.identity, "row_bytes": ROW_BYTES, "title": PRODUCT.title, **change})
    assert other.key != PRODUCT.key
    assert Folder(root).fill(1, 2, product=other) == [1, 2]
    assert Folder(root).fill(1, 2) == Folder(root).fill(1, 2, product=other) == []


def test_the_title_and_the_order_of_the_identity_are_no_part_of_the_key() -> None:
    turned = dict(reversed(PRODUCT.identity.items()))
    assert Product(turned, ROW_BYTES, "another title").key == PRODUCT.key


def test_another_version_of_the_format_misses(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Folder(root).fill(1)
    before = PRODUCT.key
    other_version(monkeypatch, 2)
    product = Product(PRODUCT.identity, ROW_BYTES, PRODUCT.title)
    assert product.key != before
    assert Folder(root).fill(1, product=product) == [1]


def other_version(monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    for module in (shards, entries, store):
        monkeypatch.setattr(module, "FORMAT", version)


def test_a_file_that_changed_since_it_was_looked_at_is_kept_as_what_it_is_now(root: Path) -> None:
    keys = keys_of(1, 1, 1, 2)
    with Folder(root).cache.rows(PRODUCT, keys) as found:
        assert found.missing.tolist() == [0, 3]
        found.add(np.array([0, 3]), keys_of(9, 2), values_of(9, 2))
        assert found.missing.tolist() == [1]  # it went with the first, whose content is another now
        found.add(np.array([1]), keys_of(1), values_of(1))
        assert np.array_equal(found.read(np.arange(4)), values_of(9, 1, 1, 2))
    assert Folder(root).fill(1, 2, 9) == []


# -- damage -------------------------------------------------------------------------------------------


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("at", [0, 2 * ROW_BYTES + 5, 4 * ROW_BYTES + 3, -1])
def test_a_flipped_byte_is_noticed_said_once_and_the_shard_rebuilt(root: Path, small_shards: None, at: int) -> None:
    """In the values as in the keys."""
    Folder(root).fill(*range(8))
    damaged = files(root, "*-0000.rows")[0]
    flip(damaged, at)
    folder = Folder(root)
    assert folder.fill(*range(8)) == [0, 1, 2, 3]
    assert folder.warnings == [f"{damaged}: damaged (its checksum is another); its 4 rows are computed again"]
    assert not damaged.exists()
    folder = Folder(root)
    assert (folder.fill(*range(8)), folder.warnings) == ([], [])


def test_only_shards_that_hold_what_is_wanted_are_verified(root: Path, small_shards: None) -> None:
    Folder(root).fill(*range(8))
    flip(files(root, "*-0001.rows")[0], 0)
    folder = Folder(root)
    assert (folder.fill(0, 1), folder.warnings) == ([], [])


@pytest.mark.parametrize("end", [0, 40, -1])
def test_a_truncated_shard_is_noticed(root: Path, end: int) -> None:
    Folder(root).fill(1, 2, 3)
    damaged = files(root, "*.rows")[0]
    os.truncate(damaged, end % damaged.stat().st_size)
    folder = Folder(root)
    assert folder.fill(1, 2, 3) == [1, 2, 3]
    assert len(folder.warnings) == 1 and f"{damaged}: damaged (it has " in folder.warnings[0]


def test_a_byte_flipped_anywhere_in_a_manifest_never_gives_wrong_rows(root: Path) -> None:
    Folder(root).fill(1, 2)
    manifest = files(root, "*-0000.json")[0]
    kept = shutil.copytree(root, root.with_name("kept"))
    for at in range(0, manifest.stat().st_size, 3):
        shutil.rmtree(root)
        shutil.copytree(kept, root)
        flip(manifest, at)
        folder = Folder(root)
        assert (folder.fill(1, 2) == []) == (folder.warnings == [])


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 10**12},
        {"rows": -1},
        {"rows": True},
        {"row_bytes": 0},
        {"row_bytes": ROW_BYTES + 1},
        {"bytes": 1},
        {"format": 0},
        {"sha256": "../../etc"},
        {"sha256": None},
    ],
    ids=str,
)
def test_a_manifest_is_believed_nothing(root: Path, change: dict[str, Any]) -> None:
    Folder(root).fill(1, 2)
    manifest = files(root, "*-0000.json")[0]
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | change))
    folder = Folder(root)
    assert folder.fill(1, 2) == [1, 2]
    assert len(folder.warnings) == 1 and "damaged" in folder.warnings[0]


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, "{}" + " " * 10_000, "\x00"])
def test_a_manifest_that_is_none_costs_its_shard_alone(root: Path, small_shards: None, text: str) -> None:
    Folder(root).fill(*range(8))
    files(root, "*-0000.json")[0].write_text(text)
    assert Folder(root).fill(*range(8)) == [0, 1, 2, 3]


def test_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    Folder(root).fill(1)
    shard = files(root, "*.rows")[0]
    outside = tmp_path / "outside"
    shard.rename(outside)
    shard.symlink_to(outside)
    assert Folder(root).fill(1) == [1]
    assert outside.exists()
    away = tmp_path / "away"
    entry_folder(root).rename(away)
    entry_folder(root).symlink_to(away)
    before = sorted(path.name for path in away.iterdir())
    folder = Folder(root)
    assert folder.fill(1) == [1]
    assert "link" in folder.warnings[0]
    assert sorted(path.name for path in away.iterdir()) == before


def test_a_shard_that_may_not_be_read_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Folder(root).fill(1)
    opened = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).endswith("-0000.rows"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        folder = Folder(root)
        assert folder.fill(1) == [1]
    assert "cannot be read (Permission denied)" in folder.warnings[0]
    assert len(files(root, "*.rows")) == 2


# -- several processes, and dead ones -----------------------------------------------------------------


def _fill_in_steps(root: Path, samples: range, started: Any) -> None:
    keys = keys_of(*samples)
    with Folder(root).cache.rows(PRODUCT, keys) as found:
        started.wait(30)
        for i in found.missing:
            found.add(np.array([i]), keys[[i]], values_of(samples[i]))
        assert np.array_equal(found.read(np.arange(len(keys))), values_of(*samples))


def test_two_processes_fill_one_entry_at_once(root: Path, small_shards: None) -> None:
    context = multiprocessing.get_context("fork")
    started = context.Barrier(2)
    both = [context.Process(target=_fill_in_steps, args=(root, range(i, 30 + i), started)) for i in (0, 5)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    folder = Folder(root)
    assert (folder.fill(*range(35)), folder.warnings) == ([], [])
    assert not files(root, "*.tmp")


FILLER = """
import sys, time
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from transferctl.cache import shards
shards.SHARD_ROWS = 4
from test_cache import PRODUCT, keys_of, values_of
from transferctl.cache.cache import Cache
found = Cache(Path(sys.argv[1]), 10**9, print).rows(PRODUCT, keys_of(*range(100)))
for i in range(10):
    found.add(np.array([i]), keys_of(i), values_of(i))
print("filled", flush=True)
time.sleep(60)
"""


def test_a_killed_process_leaves_whole_shards_and_nothing_else_for_long(root: Path, small_shards: None) -> None:
    command = [sys.executable, "-c", FILLER, str(root), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "filled\n"
        with Folder(root).cache.rows(PRODUCT, keys_of(0)):
            unfinished = files(root, "*.tmp")
            assert len(unfinished) == 1  # its writer lives
        process.send_signal(signal.SIGKILL)
    (entry_folder(root) / "0123456789abcdef-0000.rows").write_bytes(b"no manifest")
    for path in files(root, "*"):
        os.utime(path, (time.time() - 3600,) * 2)
    folder = Folder(root)
    assert folder.fill(*range(12)) == [8, 9, 10, 11]
    assert folder.warnings == []
    assert not files(root, "*.tmp") and not files(root, "0123456789abcdef*")


def test_what_a_living_writer_has_not_finished_is_not_removed(root: Path) -> None:
    keys = keys_of(1, 2)
    with Folder(root).cache.rows(PRODUCT, keys) as found:
        found.add(np.array([0]), keys[:1], values_of(1))
        aside = files(root, "*.tmp")[0]
        os.utime(aside, (0, 0))
        Folder(root).fill(8)
        assert aside.exists()
        found.add(np.array([1]), keys[1:], values_of(2))
    assert Folder(root).fill(1, 2, 8) == []


def test_an_interrupted_run_keeps_what_it_has_computed(root: Path, small_shards: None) -> None:
    keys = keys_of(*range(10))
    with pytest.raises(KeyboardInterrupt), Folder(root).cache.rows(PRODUCT, keys) as found:
        found.add(np.arange(6), keys[:6], values_of(*range(6)))
        raise KeyboardInterrupt
    assert Folder(root).fill(*range(10)) == [6, 7, 8, 9]


# -- limits -------------------------------------------------------------------------------------------


def products(*names: str, row_bytes: int = 1000) -> list[Product]:
    return [Product({"name": name}, row_bytes, name) for name in names]


def age(root: Path, product: Product, seconds: float) -> None:
    os.utime(entry_folder(root, product) / "lock", (time.time() - seconds,) * 2)


def test_the_least_recently_used_entry_goes_first(root: Path) -> None:
    a, b, c = products("a", "b", "c")
    limit = 300_000
    for product, seconds in ((a, 300), (b, 200)):
        Folder(root, limit).fill(*range(100), product=product)
        age(root, product, seconds)
    Folder(root, limit).fill(1, product=a)  # used now
    folder = Folder(root, limit)
    folder.fill(*range(100), product=c)
    assert [entry.title for entry in entries.found(root)] == ["a", "c"]
    assert sum(entry.bytes for entry in entries.found(root)) <= limit
    assert folder.warnings == []


def test_an_entry_in_use_is_never_removed_and_the_rest_is_kept_privately(root: Path) -> None:
    a, b = products("a", "b")
    folder = Folder(root, 150_000)
    keys = keys_of(*range(100))
    with folder.cache.rows(a, keys) as found:
        found.add(np.arange(100), keys, values_of(*range(100), row_bytes=1000))
        os.utime(entry_folder(root, a) / "lock", (0, 0))
        assert folder.fill(*range(100), product=b) == list(range(100))
        assert np.array_equal(found.read(np.arange(100)), values_of(*range(100), row_bytes=1000))
    assert [entry.title for entry in entries.found(root) if entry.rows()] == ["a"]
    assert len(folder.warnings) == 1
    assert f"{root}: the cache takes no more: its limit of 150 kB is reached" in folder.warnings[0]
    assert Folder(root, 150_000).fill(*range(100), product=a) == []


def test_nothing_is_removed_where_that_would_not_make_room(root: Path) -> None:
    a, b = products("a", "b")
    Folder(root, 150_000).fill(*range(100), product=a)
    folder = Folder(root, 150_000)
    folder.fill(*range(400), product=b)
    assert len(folder.warnings) == 1
    assert Folder(root, 150_000).fill(*range(100), product=a) == []


def test_a_limit_that_is_reached_on_the_way_leaves_what_was_kept_and_reads_all(root: Path, small_shards: None) -> None:
    product = products("a")[0]
    folder = Folder(root, 50_000)
    assert folder.fill(*range(100), product=product) == list(range(100))
    assert len(folder.warnings) == 1
    kept = 100 - len(Folder(root, 50_000).fill(*range(100), product=product))
    assert 20 <= kept < 50


def test_room_is_judged_with_what_could_be_removed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = products("a", "b")
    cache = Folder(root, 150_000).cache
    assert cache.room_for(b, 140_000) and not cache.room_for(b, 160_000)
    Folder(root, 150_000).fill(*range(100), product=a)
    assert cache.room_for(b, 140_000)
    assert not cache.room_for(a, 140_000), "what it has of the same product is not removed for it"
    assert cache.bytes_of(a) > 100_000 and cache.bytes_of(b) == 0
    with cache.rows(a, keys_of(0)):
        assert not cache.room_for(b, 140_000) and cache.room_for(b, 20_000) and cache.room_for(b, 0)
    assert [entry.title for entry in entries.found(root)] == ["a"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12 - 2**30, 2**30))
    assert not cache.room_for(b, 120_000)  # less than the margin is free; 103 kB could be removed
    assert not Cache(None, LIMIT, print).room_for(b, 1)


def test_a_lock_that_was_removed_and_made_anew_protects_as_the_new_one(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that waits at the old lock file must not take its lock for the entry's."""
    Folder(root).fill(1)
    (entry,) = entries.found(root)
    flock, using = fcntl.flock, list[int | None]()

    def meanwhile(file: Any, how: int) -> None:
        if how & fcntl.LOCK_EX and not using:
            (entry.folder / "lock").unlink()
            using.append(None)
            using[0] = entries.use(entry.folder, create=True)
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    assert not entries.remove(entry)
    assert Folder(root).fill(1) == []


def test_an_entry_whose_lock_is_gone_is_still_found(root: Path) -> None:
    Folder(root).fill(1, 2)
    (entry_folder(root) / "lock").unlink()
    assert Folder(root).fill(1, 2) == []


def test_a_shard_is_finished_after_a_while_so_that_a_kill_costs_no_more(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Folder(root).cache.rows(PRODUCT, keys_of(1, 2, 3)) as found:
        found.add(np.array([0]), keys_of(1), values_of(1))
        assert len(files(root, "*.json")) == 1  # entry.json
        monkeypatch.setattr(rows, "SHARD_S", 0.0)
        found.add(np.array([1]), keys_of(2), values_of(2))
        assert len(files(root, "*-*.json")) == 1, "both are safe"
        assert np.array_equal(found.read(np.array([1, 0])), values_of(2, 1))
    assert Folder(root).fill(1, 2) == []


# -- where it cannot be written -----------------------------------------------------------------------


def test_without_a_cache_rows_are_kept_for_the_run_and_equal_samples_are_still_one(tmp_path: Path) -> None:
    folder = Folder(None)
    assert folder.fill(1, 2, 1, 3) == [1, 2, 3]
    assert folder.fill(1) == [1]
    assert folder.warnings == []


def refuse_writes(monkeypatch: pytest.MonkeyPatch, root: Path, error: int, after: int = 0) -> None:
    """Writing below `root` fails after so many bytes a shard, as on a full or read-only disk."""

    class Refusing(shards.ShardWriter):
        def __init__(self, path: Path, row_bytes: int):
            if path.is_relative_to(root) and not after:
                raise OSError(error, os.strerror(error), str(path))
            super().__init__(path, row_bytes)
            if path.is_relative_to(root):
                self._file = _FullFile(self._file, error, after)  # type: ignore[assignment]

    monkeypatch.setattr(store, "ShardWriter", Refusing)


class _FullFile:
    def __init__(self, file: Any, error: int, room: int):
        self._file, self._error, self._room = file, error, room

    def write(self, data: memoryview) -> int:
        if self._room <= 0:
            raise OSError(self._error, os.strerror(self._error))
        part = data[: self._room]
        self._room -= len(part)
        return int(self._file.write(part))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT], ids=errno.errorcode.get)
@pytest.mark.parametrize("after", [0, 1, ROW_BYTES, 5 * ROW_BYTES + 3])
def test_a_disk_that_takes_no_more_is_said_once_and_the_run_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: int, after: int
) -> None:
    Folder(root).fill(1, 2)
    refuse_writes(monkeypatch, root, error, after)
    folder = Folder(root)
    assert folder.fill(*range(20)) == [0, *range(3, 20)]
    assert folder.fill(*range(30, 40)) == [*range(30, 40)]
    assert len(folder.warnings) == 1
    assert folder.warnings[0].startswith(f"{root}: the cache takes no more: {os.strerror(error)}; ")
    assert "cache.path" in folder.warnings[0]
    assert not files(root, "*.tmp")
    monkeypatch.undo()
    assert Folder(root).fill(1, 2) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not _mounts("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)):
        pytest.skip("a file system can be mounted by root alone")
    yield folder
    assert _mounts("umount", "--lazy", str(folder))


def _mounts(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.parametrize(
    ("margin", "cause"), [("kept", "the disk is nearly full"), ("none", os.strerror(errno.ENOSPC))]
)
def test_a_full_disk_loses_nothing(small_disk: Path, monkeypatch: pytest.MonkeyPatch, margin: str, cause: str) -> None:
    """`none`: another process takes what was free a moment ago."""
    a, b = products("a", "b", row_bytes=10_000)
    Folder(small_disk).fill(*range(100), product=a)
    if margin == "none":
        monkeypatch.setattr(store, "disk_room", lambda folder: 10**12)
    folder = Folder(small_disk)
    assert folder.fill(*range(100, 400), product=b) == list(range(100, 400))
    assert len(folder.warnings) == 1 and f"takes no more: {cause};" in folder.warnings[0]
    assert not list(small_disk.rglob("*.tmp"))
    folder = Folder(small_disk)
    assert (folder.fill(*range(100), product=a), folder.warnings) == ([], [])


def test_a_disk_mounted_read_only_is_read_and_said_once_where_it_is_to_be_written(small_disk: Path) -> None:
    Folder(small_disk).fill(1, 2)
    assert _mounts("mount", "-o", "remount,ro", str(small_disk))
    folder = Folder(small_disk)
    assert (folder.fill(1, 2), folder.warnings) == ([], [])
    assert folder.fill(1, 3) == folder.fill(4, 3, 1)[1:] == [3]
    assert len(folder.warnings) == 1 and os.strerror(errno.EROFS) in folder.warnings[0]
    assert folder.cache.memo() is None


def test_a_file_size_limit_keeps_the_rows_that_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "ShardWriter", _Unlimited)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = Folder(root)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 15, before[1]))
    try:
        assert folder.fill(*range(100), product=products("a")[0]) == list(range(100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(folder.warnings) == 1 and os.strerror(errno.EFBIG) in folder.warnings[0]


class _Unlimited(shards.ShardWriter):
    """The temporary folder, on a disk without that limit."""

    def append(self, keys: np.ndarray, values: np.ndarray) -> None:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (before[1], before[1]))
        super().append(keys, values)
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_where_the_temporary_folder_is_full_too_the_run_stops_with_the_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(shards.ShardWriter):
        def append(self, keys: np.ndarray, values: np.ndarray) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(rows, "ShardWriter", Full)
    with pytest.raises(ResourceError, match=r"No space left on device; free some space there, or set TMPDIR"):
        Folder(None).fill(1)


def test_a_read_only_cache_is_read_without_a_word(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another user's: no file may be made, changed or removed, but all may be read."""
    Folder(root).fill(1, 2)
    opened = os.open

    def read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).startswith(str(root)) and (
            flags & os.O_ACCMODE or (flags & os.O_CREAT and not Path(path).exists())
        ):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **named)

    def refuse(*arguments: Any, **named: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(os, "utime", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    folder = Folder(root)
    assert (folder.fill(1, 2), folder.warnings) == ([], [])


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = Folder(tmp_path / "file" / "cache")
    assert folder.fill(1, 2) == folder.fill(1, 2) == [1, 2]
    assert len(folder.warnings) == 1 and "Not a directory" in folder.warnings[0]


def test_what_is_not_ours_is_never_removed(root: Path) -> None:
    foreign = [root / "notes.txt", root / "v1" / "readme", root / "v9" / ("0" * 64) / "data", root / "photos" / "a.jpg"]
    Folder(root, 150_000).fill(*range(100), product=products("a")[0])
    foreign.append(entry_folder(root, products("a")[0]) / "mine.txt")
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("foreign")
    Folder(root, 150_000).fill(*range(100), product=products("b")[0])
    assert all(path.read_text() == "foreign" for path in foreign)
    assert not list(entry_folder(root, products("a")[0]).glob("*.rows"))


# -- another version, and where it is -----------------------------------------------------------------


def test_many_small_shards_are_more_than_the_usual_limit_of_open_files(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD_ROWS", 1)
    Folder(root).fill(*range(100))
    limits, warnings = resource.getrlimit(resource.RLIMIT_NOFILE), list[str]()
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 50, limits[1]))
    try:
        cache = open_cache(CacheSettings(path=root), warnings.append)
        with cache.rows(PRODUCT, keys_of(*range(100))) as found:
            assert len(found.missing) == 0 and warnings == []
            assert np.array_equal(found.read(np.arange(100)), values_of(*range(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_entries_of_another_version_are_said_counted_and_removed_first(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, newest = products("old", "new", "newest")
    with monkeypatch.context() as patch:
        other_version(patch, 7)
        Folder(root).fill(*range(100), product=old)
    Folder(root).fill(*range(100), product=new)
    age(root, new, 3600)  # used before the old one
    warnings: list[str] = []
    cache = open_cache(CacheSettings(path=root, limit=300_000), warnings.append)
    assert warnings == [
        f"{root}: 1 entry of cache format 7, not read by this version: counted towards cache.limit, removed first"
    ]
    with cache.rows(newest, keys_of(*range(100))) as found:
        found.add(np.arange(100), keys_of(*range(100)), values_of(*range(100), row_bytes=1000))
    assert [entry.title for entry in entries.found(root)] == ["new", "newest"]


def test_a_cache_is_where_the_spec_the_environment_or_the_home_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFERCTL_CACHE", str(tmp_path / "a"))
    assert open_cache(CacheSettings(path=tmp_path / "spec"), print).root == tmp_path / "spec"
    assert open_cache(CacheSettings(), print).root == tmp_path / "a"
    monkeypatch.delenv("TRANSFERCTL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_cache(CacheSettings(), print).root == tmp_path / "xdg" / "transferctl"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_cache(CacheSettings(), print).root == tmp_path / ".cache" / "transferctl"
    assert open_cache(CacheSettings(path="none"), print).root is None
    assert not list(tmp_path.iterdir())


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("TRANSFERCTL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(SpecError, match=r"cache: this user has no home folder; name a folder as cache\.path"):
        open_cache(CacheSettings(), print)


def test_a_cache_that_is_a_file_is_a_fault_of_the_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpecError, match=r"cache\.path: .*file is a file; the cache needs a folder"):
        open_cache(CacheSettings(path=tmp_path / "file"), print)
    monkeypatch.setenv("TRANSFERCTL_CACHE", str(tmp_path / "file"))
    with pytest.raises(SpecError, match=r"TRANSFERCTL_CACHE: "):
        open_cache(CacheSettings(), print)


@pytest.mark.parametrize(
    ("text", "size"), [("500MB", 5 * 10**8), ("20 GB", 2 * 10**10), ("1.5GiB", 3 << 29), ("7B", 7), ("2kB", 2000)]
)
def test_sizes_are_read_as_they_are_written(text: str, size: int) -> None:
    assert sizes.parse(text) == size == CacheSettings.model_validate({"limit": text}).limit
    assert sizes.parse(sizes.in_words(size)) == pytest.approx(size, rel=0.04)


@pytest.mark.parametrize(
    ("size", "words"), [(999_960_000, "1 GB"), (999_940_000, "999.9 MB"), (999, "999 B"), (0, "0 B")]
)
def test_sizes_are_said_in_the_unit_that_they_round_to(size: int, words: str) -> None:
    assert sizes.in_words(size) == words


@pytest.mark.parametrize("text", ["", "GB", "20", "-1GB", "20 XB", "20GBs", "1e3GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size such as"):
        sizes.parse(text)


def test_a_lock_is_what_marks_an_entry_as_used(root: Path) -> None:
    Folder(root).fill(1)
    entry = entries.found(root)[0]
    with (entry.folder / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert not entries.is_free(entry) and not entries.remove(entry)
    assert entries.is_free(entry) and entries.remove(entry)
    assert not entry.folder.exists()
