"""The rows of one product for some samples: found in the cache, or added as they are computed."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from transferctl import scratch
from transferctl.cache.keyindex import KeyIndex
from transferctl.cache.shards import Damaged, ShardWriter
from transferctl.cache.store import OpenEntry
from transferctl.errors import ResourceError

SHARD_S = 60.0  # then a shard is finished, full or not: a kill costs no more
SHARD_SHIFT = 32  # a place: the shard's number above, the row in it below


class Rows:
    """n samples' rows, uint8 [row_bytes] each. Samples with equal keys share one row.

    Rows that the cache cannot take are kept in a temporary file of this process. After `close` rows can still be read.
    """

    def __init__(self, row_bytes: int, keys: np.ndarray, entry: OpenEntry | None, give_up: Callable[[OSError], None]):
        """keys: uint8 [n, 32]. entry: where rows are looked for and added; None: nowhere. give_up: told why the entry
        takes no more."""
        self._row_bytes, self._entry, self._give_up = row_bytes, entry, give_up
        self._index = KeyIndex(keys)
        self._places = scratch.filled(len(keys), -1, np.int64)
        self._shards: list[np.ndarray] = []  # each uint8 [rows, row_bytes], mapped
        self._writer: ShardWriter | None = None
        self._private = entry is None
        if entry:
            self._look_up(entry)
        self._expected = len(self.missing)

    def _look_up(self, entry: OpenEntry) -> None:
        """Find rows by their keys; verify each shard that has any before it is used."""
        for shard, keys in entry.shards():
            samples, rows = self._index.find(keys)
            new = self._places[samples] < 0
            if not new.any():
                continue
            try:
                values = shard.values()
            except Damaged as damage:
                entry.drop(shard.path, damage)
                continue
            self._places[samples[new]] = (len(self._shards) << SHARD_SHIFT) + rows[new]
            self._shards.append(values)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def distinct(self) -> int:
        """How many different keys the samples have."""
        parts = scratch.pieces(len(self))
        return sum(int((self._index.first[part] == np.arange(part.start, part.stop)).sum()) for part in parts)

    @property
    def missing(self) -> np.ndarray:
        """int64, in order: the samples whose rows are not there yet; of samples with equal keys, the first."""
        wanted = [self._missing_in(part) for part in scratch.pieces(len(self))]
        count = sum(map(np.count_nonzero, wanted))
        missing = scratch.empty(int(count), np.int64)
        done = 0
        for part, flags in zip(scratch.pieces(len(self)), wanted, strict=True):
            found = np.flatnonzero(flags) + part.start
            missing[done : done + len(found)] = found
            done += len(found)
        return missing

    def _missing_in(self, part: slice) -> np.ndarray:
        """bool."""
        missing: np.ndarray = (self._index.first[part] == np.arange(part.start, part.stop)) & (self._places[part] < 0)
        return missing

    def read(self, positions: np.ndarray) -> np.ndarray:
        """positions: int64 [m], in any order, of samples that are not missing. uint8 [m, row_bytes]."""
        places = self._places[self._index.first[positions]]
        assert (places >= 0).all(), "rows were read that had not been added"
        self._map_written()
        numbers, rows = places >> SHARD_SHIFT, places & ((1 << SHARD_SHIFT) - 1)
        read = np.empty((len(positions), self._row_bytes), np.uint8)
        order = np.argsort(numbers, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if len(order) else []:
            _as_items(read)[group] = _as_items(self._shards[numbers[group[0]]])[rows[group]]
        return read

    def _map_written(self) -> None:
        """What was written since the last look at the unfinished shard is to be read too."""
        if self._writer and self._writer.rows > len(self._shards[-1]):
            self._shards[-1] = self._writer.values()

    def add(self, positions: np.ndarray, keys: np.ndarray, values: np.ndarray) -> None:
        """Rows that were computed. positions: int64 [m]; keys: uint8 [m, 32], of what was really read; values: uint8
        [m, row_bytes]. Where a key is not the one that the sample had, samples that shared it go without.

        Raises ResourceError where not even the temporary folder has room.
        """
        assert len(positions) == len(keys) == len(values) and values.shape[1:] == (self._row_bytes,)
        assert keys.any(axis=1).all(), "a sample without a key was added"
        self._part(positions, keys)
        done = 0
        while done < len(positions):
            writer = self._open_writer()
            before, part = writer.rows, slice(done, done + writer.room)
            try:
                writer.append(keys[part], values[part])
            except OSError as error:
                self._fall_back(error)
            written = positions[done : done + writer.rows - before]
            self._places[written] = ((len(self._shards) - 1) << SHARD_SHIFT) + np.arange(before, writer.rows)
            done += len(written)
            if not writer.room or writer.age_s > SHARD_S:
                self._finish_shard()

    def _part(self, positions: np.ndarray, keys: np.ndarray) -> None:
        """Who is added stands for itself; those that it stood for go with it only if its key is still theirs."""
        first, index = self._index.first, self._index
        first[positions] = positions
        changed = positions[(index.keys[positions] != keys).any(axis=1)]
        for position in changed[index.keys[changed].any(axis=1)].tolist():
            others = np.flatnonzero(first == position)
            others = others[others != position]
            first[others] = others[:1]

    def _open_writer(self) -> ShardWriter:
        if self._writer is None and not self._private:
            assert self._entry is not None
            try:
                self._writer = self._entry.new_shard(max(1, self._expected))
            except OSError as error:
                self._fall_back(error)
        if self._writer is None:
            self._writer = self._private_writer()
        if self._writer.rows == 0:
            self._shards.append(np.empty((0, self._row_bytes), np.uint8))
        return self._writer

    def _private_writer(self) -> ShardWriter:
        folder = Path(tempfile.gettempdir())
        try:
            writer = ShardWriter(folder / f"transferctl-{secrets.token_hex(8)}.rows", self._row_bytes)
            writer.unname()
        except OSError as error:
            raise _no_temporary_room(folder, error) from None
        return writer

    def _fall_back(self, error: OSError) -> None:
        """Where the cache takes no more: keep what it has taken, and the rest in a temporary file."""
        if self._private:
            raise _no_temporary_room(Path(tempfile.gettempdir()), error) from None
        self._give_up(error)
        self._finish_shard()
        self._private = True

    def _finish_shard(self) -> None:
        """The shard that is being written, as it is. Where it cannot be finished it is kept as a file without name."""
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if writer.rows:
            self._shards[-1] = writer.values()
            self._expected -= writer.rows
        try:
            if writer.rows and not self._private:
                writer.finish()
        except OSError as error:
            self._private = True
            self._give_up(error)
        writer.unname()
        writer.close()

    def close(self) -> None:
        """Write what is not yet a whole shard, and let the entry go."""
        self._finish_shard()
        if self._entry:
            self._entry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_items(rows: np.ndarray) -> np.ndarray:
    """[n] of items as long as a row: numpy moves each at once."""
    items: np.ndarray = rows.view(f"V{rows.shape[1]}")[:, 0]
    return items


def _no_temporary_room(folder: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{folder}: cannot write what is computed: {error.strerror or error}; free some space there, or set TMPDIR to "
        "a folder on a larger disk"
    )
