"""The base of every settings class, and the field types that a YAML file needs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationInfo
from pydantic_core import PydanticCustomError


class Settings(BaseModel):
    """Frozen, strict, closed: an unknown key or a wrong type is an error, never a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _as_written(value: Any) -> Any:
    """The text of a plain YAML scalar, so that a class named 05 is not renamed 5."""
    return getattr(value, "text", value)


def _resolve(value: Any, info: ValidationInfo) -> Any:
    """A relative path is looked for beside the YAML file first, then in the working folder."""
    if not isinstance(value, str):
        return value
    if not value.strip() or "\0" in value:  # Path("") is the working folder; no file's name has a NUL
        raise ValueError(f"must be a path, not {value!r}")
    try:
        path = Path(value).expanduser()
    except RuntimeError:
        raise ValueError(f"there is no such user's home folder: {value!r}") from None
    folders: tuple[Path, ...] = (info.context or {}).get("folders", (Path.cwd(),))
    candidates = [folder / path for folder in folders]
    try:
        found = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
    except (OSError, ValueError) as error:  # too long, a folder that may not be entered, a NUL
        raise ValueError(f"cannot look for this path: {getattr(error, 'strerror', None) or error}") from None
    return _without_dots(found.absolute())


def _without_dots(path: Path) -> Path:
    """configs/../data is data, unless configs is a link to elsewhere."""
    shorter = Path(os.path.normpath(path))
    return shorter if path.exists() and shorter.exists() and shorter.samefile(path) else path


Text = Annotated[str, Field(min_length=1), BeforeValidator(_as_written)]
InputPath = Annotated[
    Path,
    Field(strict=False, json_schema_extra={"format": "path"}),
    BeforeValidator(_resolve, json_schema_input_type=str),
    PlainSerializer(str, return_type=str),
]


class DataSettings(Settings):
    """What every kind of labelled data accepts; `transferctl/datasets/*.py` add their own keys."""

    dataset: str = Field(description="Kind of data: the name of a file in transferctl/datasets.")
    classes: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description="Keep only these classes, by name."
    )
    per_class: int | None = Field(
        None, gt=0, description="Keep at most this many samples of each class, drawn by the seed."
    )


class PenaltySettings(Settings):
    """What every penalty accepts; `transferctl/penalties/*.py` add their own keys."""

    weight: float = Field(ge=0, description="Factor on the penalty in the objective.")


def refuse_password(url: str | None) -> str | None:
    """A spec is copied into every run folder, which people share."""
    if url and re.match(r"[a-z][a-z0-9+.-]*://[^/@]*:[^/@]*@", url, re.IGNORECASE):
        raise ValueError("has a password in it, which would be copied into every run; use the environment")
    return url


# -- faults that pydantic has no words for; specfaults tells them


def as_mapping(value: Any, wanted: str, key: str = "") -> Any:
    """The value if it is a mapping (with `key`, if given); `wanted` says what would do."""
    if isinstance(value, Settings) or (isinstance(value, dict) and (not key or key in value)):
        return value
    raise PydanticCustomError("wrong_form", "must be {wanted}", {"wanted": wanted})


def across(key: str, other: str, message: str) -> PydanticCustomError:
    """What `key` cannot be beside `other`: told at `key`, unless `other` is wrong itself."""
    return PydanticCustomError("across_keys", "{message}", {"message": message, "key": key, "other": other})


def of_kind(value: Any, key: str, kinds: Iterable[str]) -> Any:
    """The value, unless it is a mapping whose `key` names none of the kinds."""
    if isinstance(value, dict) and key in value and value[key] not in list(kinds):
        context = {"key": key, "kinds": list(kinds), "written": value[key]}
        raise PydanticCustomError("unknown_kind", "unknown kind", context)
    return value
