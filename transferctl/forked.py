"""Descriptors that no forked worker keeps: one that outlives its parent for a moment must not hold the parent's lock,
nor keep a tracker waiting for more."""

from __future__ import annotations

import contextlib
import os

closed_in_children: set[int] = set()


def _close() -> None:
    for descriptor in closed_in_children:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    closed_in_children.clear()


os.register_at_fork(after_in_child=_close)
