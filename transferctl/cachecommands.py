"""`transferctl cache`: what is kept, whether it is whole, and its removal. Starts without numpy and pydantic."""

from __future__ import annotations

import re
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from transferctl.cache import entries
from transferctl.cache.entries import Entry
from transferctl.cache.shards import (
    FORMAT,
    Damaged,
    Unreadable,
    manifests,
    read_manifest,
    remove_leftovers,
    remove_shard,
)
from transferctl.cache.store import total_bytes
from transferctl.display import Display
from transferctl.errors import CheckpointError, Problem, SpecError
from transferctl.sizes import LIMIT, in_words
from transferctl.wording import counted, printable

SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
KEY_SHOWN = 12


def show(path: Path | None, display: Display) -> dict[str, Any]:
    """A row an entry, those used last first."""
    root = entries.root_of(path or "auto")
    total, found = total_bytes(root)
    rows = [_described(entry) for entry in reversed(found)]
    cells = [
        [printable(row["title"]), row["rows"], in_words(row["bytes"]), row["used"], row["key"][:KEY_SHOWN]]
        for row in rows
    ]
    display.table(str(root), ["what", "rows", "size", "last used", "key"], cells)
    display.result(f"{in_words(total)} in all; at most {in_words(LIMIT)}, unless a spec says otherwise (cache.limit)")
    return {"path": str(root), "bytes": total, "limit": LIMIT, "entries": rows}


def _described(entry: Entry) -> dict[str, Any]:
    title = entry.title if entry.format == FORMAT else f"{entry.title} (of format {entry.format}: not read)"
    used = datetime.fromtimestamp(entry.used).astimezone().isoformat(" ", "seconds")[:19]
    return {"key": entry.key, "title": title, "rows": entry.rows(), "bytes": entry.bytes, "used": used}


def verify(path: Path | None, display: Display) -> dict[str, Any]:
    """Read every shard. Raises CheckpointError, once all are read, for those that were damaged and are removed."""
    root = entries.root_of(path or "auto")
    whole, faults = 0, list[str]()
    for entry in entries.found(root):
        if entry.format != FORMAT:
            display.note(f"{printable(entry.title)}: of cache format {entry.format}, which this version does not read")
            continue
        remove_leftovers(entry.folder)
        for manifest in manifests(entry.folder):
            try:
                read_manifest(manifest).verify()
                whole += 1
            except Damaged as damage:
                faults += _settled(manifest.with_suffix(".rows"), damage)
    report = {"path": str(root), "whole": whole, "damaged": faults}
    if faults:
        raise CheckpointError("\n".join(faults), report)
    display.result(f"{root}: {counted(whole, 'shard')}, all whole")
    return report


def _settled(path: Path, damage: Damaged) -> list[str]:
    """What is wrong with a shard, which is removed if it is damaged; nothing where another process removed it."""
    name = printable(str(path))
    if isinstance(damage, Unreadable):
        return [f"{name}: cannot be read: {damage}; give this user permission, or remove it"]
    if not path.with_suffix(".json").exists():
        return []
    fate = "it is removed" if remove_shard(path) else "it may not be removed by this user"
    return [f"{name}: damaged ({damage}); {fate}, and its rows are computed again when they are needed"]


def clear(path: Path | None, key: str, older_than: str | None, display: Display) -> dict[str, Any]:
    """Remove entries; with neither a key nor an age the memo of digests too."""
    root, before = entries.root_of(path or "auto"), time.time() - _age(older_than)
    found = entries.found(root)
    chosen = [entry for entry in found if entry.key.startswith(key) and (older_than is None or entry.used < before)]
    if key and not any(entry.key.startswith(key) for entry in found):
        raise SpecError([Problem("", "no key begins like this; transferctl cache list shows them", f"KEY {key}")])
    removed, kept = list[str](), list[str]()
    freed = 0
    for entry in chosen:
        if entries.remove(entry):
            removed.append(entry.key)
            freed += entry.bytes
        else:
            kept.append(entry.key)
            name = f"{printable(entry.title)} ({entry.key[:KEY_SHOWN]})"
            display.warn(f"{name} stays: a run uses it, or it may not be removed")
    if not key and older_than is None and not kept:
        freed += entries.memo_bytes(root)
        entries.remove_memo(root)
    display.result(f"{root}: {counted(len(removed), 'product')} removed, {in_words(freed)}")
    return {"path": str(root), "removed": removed, "kept": kept, "bytes": freed}


def _age(text: str | None) -> float:
    """Seconds of 30d, 12h, 2w, 45m. Raises SpecError."""
    match = re.fullmatch(r"([0-9]{1,6})([mhdw])", text or "0m")
    if not match:
        raise SpecError([Problem("", "must be an age such as 30d, 12h or 2w", f"--older-than {text}")])
    return int(match[1]) * SECONDS[match[2]]
