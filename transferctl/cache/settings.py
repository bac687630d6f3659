"""Where what was computed once is kept, and how much of it. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from transferctl import sizes
from transferctl.settings import InputPath, Settings, as_mapping


def _size(value: Any) -> Any:
    return sizes.parse(value) if isinstance(value, str) else value


class CacheSettings(Settings):
    """Features and activations of frozen parts are kept for later runs, by content."""

    path: Literal["auto", "none"] | InputPath = Field(
        "auto",
        description="A folder; auto = $TRANSFERCTL_CACHE, else transferctl in $XDG_CACHE_HOME or ~/.cache; none: "
        "nothing is kept after the run.",
    )
    verify: bool = Field(
        False,
        description="Read every file to see whether it changed; --verify does the same. Else its size, time, "
        "inode and device tell.",
    )
    limit: Annotated[int, Field(gt=0, le=1 << 60), BeforeValidator(_size, json_schema_input_type=int | str)] = Field(
        sizes.LIMIT,
        description="What the whole folder may take: 20GB, 500MB, or bytes; what was not used for longest goes first.",
    )


def cache_shorthand(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else as_mapping(value, "auto, none, a path or a mapping")
