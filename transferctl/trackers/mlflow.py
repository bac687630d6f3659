"""MLflow: parameters, metrics and state on a tracking server, or in a local store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from transferctl.settings import Settings as _Settings
from transferctl.settings import Text, refuse_password

if TYPE_CHECKING:
    from transferctl.tracking import Ending, Tracked

LIBRARY = "mlflow"
MAX_VALUE = 500  # characters of a parameter; older servers take no more
MAX_BATCH = 100  # parameters, or metrics, a request
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class Settings(_Settings):
    uri: Text | None = Field(
        None,
        description="The tracking server or store: https://…, sqlite:///mlflow.db, a folder; default: "
        "MLFLOW_TRACKING_URI, else a store in the working folder. Credentials are MLflow's own environment variables.",
    )
    experiment: Text = Field("transferctl", description="The experiment that the run belongs to.")

    _no_password = field_validator("uri")(refuse_password)


def start(settings: Settings, run: Tracked) -> MLflow:
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # asked for, or all there is without a database
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # only the server that was named hears of a run
    return MLflow(settings, run)


class MLflow:
    def __init__(self, settings: Settings, run: Tracked):
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=_uri(settings))
        if run.id is None:
            created = self._client.create_run(self._experiment(settings.experiment), run_name=run.path.name)
            self.id = created.info.run_id
        else:
            self.id = run.id
            self._client.update_run(self.id, status="RUNNING")
        self.where = f"run {self.id} of experiment {settings.experiment}"
        self._client.set_tag(self.id, "transferctl.run", str(run.path))
        self._client.set_tag(self.id, "transferctl.verb", run.verb)
        self._log_parameters(run.parameters)

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self.id, metrics=[Metric(_name(name), v, now, step) for name, v in values.items()])

    def end(self, ending: Ending) -> None:
        for name, value in ending.summary.items():
            if isinstance(value, str):
                self._client.set_tag(self.id, f"summary.{_name(name)}", value)
        numbers = {name: value for name, value in ending.summary.items() if isinstance(value, int | float)}
        for some in _batches(list(numbers.items())):
            self.log({f"summary/{name}": value for name, value in some}, ending.step)
        self._client.set_terminated(self.id, _STATUS.get(ending.status, "KILLED"))

    def _experiment(self, name: str) -> str:
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return str(found.experiment_id)
        try:
            return str(self._client.create_experiment(name))
        except Exception:
            if (found := self._client.get_experiment_by_name(name)) is not None:  # another run was faster
                return str(found.experiment_id)
            raise

    def _log_parameters(self, parameters: Mapping[str, Any]) -> None:
        """Those that the run does not have yet: MLflow changes none, and a resumed run may have been allowed to."""
        from mlflow.entities import Param

        there = self._client.get_run(self.id).data.params
        new = [Param(_name(name), _short(value)) for name, value in parameters.items() if _name(name) not in there]
        for some in _batches(new):
            self._client.log_batch(self.id, params=some)


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (items[i : i + MAX_BATCH] for i in range(0, len(items), MAX_BATCH))


def _uri(settings: Settings) -> str | None:
    """None: the library's own default, a database, for which mlflow-skinny lacks the library."""
    if settings.uri or os.environ.get("MLFLOW_TRACKING_URI") or find_spec("sqlalchemy"):
        return settings.uri
    return Path("mlruns").absolute().as_uri()


def _name(name: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:250]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_VALUE else f"{text[: MAX_VALUE - 1]}…"
