"""What fine-tuning forgot: the source task, scored before and after on the same validation images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transferctl import paired
from transferctl.display import Display
from transferctl.paired import Scored
from transferctl.results import headline

CHANGES = tuple(paired.scalars("change"))


def report(before: Scored | None, after: Scored) -> dict[str, Any]:
    """The scalars after fine-tuning and, where the source head is not new, those before and how they changed."""
    told: dict[str, Any] = {"after": headline(after[0])}
    if before is not None:
        told |= {"before": headline(before[0])} | paired.difference(before[1], after[1], "change")
    return told


def show(display: Display, scored: str, reported: Mapping[str, Any]) -> None:
    """The report: source accuracy and loss before and after, and the change with its interval. scored: on what."""
    before, after = reported["before"], reported["after"]
    title = f"{scored}, n = {after['n']}: before and after"
    paired.show(display, title, ("before", "after"), before, after, reported, "change")
