"""`trackers`: which experiment trackers hear of a run. Which there are is read from their folder; no torch here."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, create_model
from pydantic_core import PydanticCustomError

from transferctl import plugins
from transferctl.settings import Settings, as_mapping

NAMES = plugins.names("trackers")
WANTED = f"a name ({', '.join(NAMES)}), a list of names, or a mapping of names to settings"


def trackers_shorthand(value: Any) -> Any:
    """A name, or a list of names, is those trackers with their defaults; none is none."""
    if isinstance(value, str):
        value = [] if value == "none" else [value]
    if isinstance(value, list | tuple):
        if unknown := [name for name in value if name not in NAMES]:
            name = unknown[0] if isinstance(unknown[0], str) else json.dumps(unknown[0], default=str)
            context = {"wanted": f"{WANTED}; there is no {name}"}
            raise PydanticCustomError("wrong_form", "must be {wanted}", context)
        return {name: {} for name in value}
    return as_mapping(value, WANTED)


def _tracker_shorthand(value: Any) -> Any:
    if value is None:
        raise PydanticCustomError("wrong_form", "must be {wanted}", {"wanted": "a mapping; {} takes its defaults"})
    return value


if TYPE_CHECKING:

    class TrackersSettings(Settings):
        def chosen(self) -> dict[str, Settings]: ...
else:

    class _Trackers(Settings):
        """Experiment trackers that hear of a run."""

        def chosen(self) -> dict[str, Settings]:
            values = {name: getattr(self, name) for name in type(self).model_fields}
            return {name: value for name, value in values.items() if value is not None}

    TrackersSettings = create_model(
        "TrackersSettings",
        __base__=_Trackers,
        **{
            module.__name__.rsplit(".", 1)[1]: (
                Annotated[module.Settings | None, BeforeValidator(_tracker_shorthand)],
                Field(None, description=module.__doc__.splitlines()[0]),
            )
            for module in plugins.modules("trackers")
        },
    )
