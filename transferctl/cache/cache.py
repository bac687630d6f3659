"""The cache as runs use it: rows of a product by sample, within a limit, or temporary where nothing can be kept."""

from __future__ import annotations

import contextlib
import errno
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from transferctl.cache import entries
from transferctl.cache.rows import Rows
from transferctl.cache.shards import FORMAT
from transferctl.cache.store import OpenEntry, Product, disk_room, lacking, total_bytes
from transferctl.wording import counted, printable

if TYPE_CHECKING:
    from transferctl.cache.hashes import Memo
    from transferctl.cache.settings import CacheSettings


LEAST_WITH_MEMO = 10**6  # bytes of a limit, of which a memo may take a tenth


class Cache:
    """root: the folder; None keeps rows in temporary files alone. limit: bytes that it may take. verify: whether files
    are read to see whether they changed. warn: tells people what went wrong, each thing once."""

    def __init__(self, root: Path | None, limit: int, warn: Callable[[str], None], *, verify: bool = False):
        self.root, self.limit, self.verify, self._warn = root, limit, verify, warn
        self._said: set[str] = set()

    def rows(self, product: Product, keys: np.ndarray) -> Rows:
        """keys: uint8 [n, 32], one a sample, zeros for one that has none. Raises OSError where the temporary folder
        is full."""
        entry = OpenEntry(self.root, self.limit, product, self._say) if self.root else None
        try:
            return Rows(product.row_bytes, keys, entry, self._give_up)
        except BaseException:
            if entry:
                entry.close()
            raise

    def room_for(self, product: Product, n_bytes: int) -> bool:
        """Whether the limit and the disk allow so many more bytes of a product, once all others are removed that
        nobody uses."""
        try:
            if not n_bytes:
                return True
            if self.root is None:
                return n_bytes <= disk_room(Path(tempfile.gettempdir()))
            kept, found = total_bytes(self.root)
            lack = lacking(self.root, self.limit, n_bytes, kept)
            free = (entry.bytes for entry in found if entry.key != product.key and entries.is_free(entry))
            return not lack or lack <= sum(free)
        except OSError:
            return False

    def bytes_of(self, product: Product) -> int:
        """What the product's rows take already."""
        found = entries.found(self.root) if self.root else []
        return sum(entry.bytes for entry in found if (entry.key, entry.format) == (product.key, FORMAT))

    def memo(self) -> Memo | None:
        """Digests of files from earlier runs. None where none can be kept, or the limit has no room for one."""
        from transferctl.cache.hashes import open_memo

        return open_memo(self.root, self.limit) if self.root and self.limit >= LEAST_WITH_MEMO else None

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._warn(text)

    def _give_up(self, error: OSError) -> None:
        fixes = {errno.ENOSPC: "make room on the disk, or ", errno.EDQUOT: "raise cache.limit, or "}
        self._say(
            f"{printable(str(self.root))}: the cache takes no more: {error.strerror or error}; the rest is kept in "
            f"{printable(tempfile.gettempdir())} until the run ends; {fixes.get(error.errno or 0, '')}name another "
            "folder as cache.path"
        )


def _allow_many_files() -> None:
    """Each mapped shard holds a descriptor; the usual limit of 1,024 is a courtesy to programs that use select()."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def open_cache(settings: CacheSettings, warn: Callable[[str], None]) -> Cache:
    """Raises SpecError where its folder is no folder."""
    if settings.path == "none":
        return Cache(None, settings.limit, warn, verify=settings.verify)
    root = entries.root_of(settings.path)
    _allow_many_files()
    if others := [entry for entry in entries.found(root) if entry.format != FORMAT]:
        warn(
            f"{printable(str(root))}: {counted(len(others), 'entry', 'entries')} of cache format {others[0].format}, "
            "not read by this version: counted towards cache.limit, removed first"
        )
    return Cache(root, settings.limit, warn, verify=settings.verify)
