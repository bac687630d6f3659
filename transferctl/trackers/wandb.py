"""Weights & Biases: configuration, metrics and state of a run, on its server or, offline, in RUN/wandb.

Machine and settings are told, the working folder's code and git state are not.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from transferctl.settings import Settings as _Settings
from transferctl.settings import Text

if TYPE_CHECKING:
    from transferctl.tracking import Ending, Tracked

LIBRARY = "wandb"


class Settings(_Settings):
    project: Text = Field("transferctl", description="The project that the run belongs to.")
    entity: Text | None = Field(None, description="The team or user; default: the key's own.")
    mode: Literal["online", "offline"] | None = Field(
        None,
        description="online needs WANDB_API_KEY or `wandb login`; offline writes to RUN/wandb, for `wandb sync`; "
        "default: as WANDB_MODE says, else online.",
    )


def start(settings: Settings, run: Tracked) -> Wandb:
    return Wandb(settings, run)


class Wandb:
    def __init__(self, settings: Settings, run: Tracked):
        import wandb

        self._run = wandb.init(
            project=settings.project, entity=settings.entity, mode=settings.mode, dir=str(run.path),
            name=run.path.name, job_type=run.verb, config=dict(run.parameters), id=run.id, resume="allow",
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )  # fmt: skip
        self._run.config.update({"transferctl.run": str(run.path)}, allow_val_change=True)  # type: ignore[no-untyped-call]
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")  # its own counts calls, and cannot go back
        self.id = str(self._run.id)
        offline = f"wandb sync {shlex.quote(str(run.path / 'wandb'))}/offline-run-*"
        self.where = self._run.url or offline

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def end(self, ending: Ending) -> None:
        self._run.summary.update({**ending.summary, "status": ending.status})
        self._run.finish(exit_code=ending.exit_code)
