"""TensorBoard: curves and settings as event files in RUN/tensorboard; `tensorboard --logdir runs` shows all runs.

A run that is resumed goes on in another file of the same folder, which TensorBoard reads as one.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transferctl.settings import Settings as _Settings

if TYPE_CHECKING:
    from transferctl.tracking import Ending, Tracked

LIBRARY = "tensorboard"


class Settings(_Settings):
    """Nothing to set."""


def start(settings: Settings, run: Tracked) -> TensorBoard:
    return TensorBoard(run)


class TensorBoard:
    def __init__(self, run: Tracked):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.id = run.id or "tensorboard"
        self.where = f"tensorboard --logdir {shlex.quote(str(run.folder))}"
        self._writer = EventFileWriter(str(run.folder))
        if run.id is None:
            self._add(0, [_text("spec", run.parameters)])

    def log(self, values: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._add(step, [Summary.Value(tag=name, simple_value=value) for name, value in values.items()])

    def end(self, ending: Ending) -> None:
        self._add(ending.step, [_text("summary", ending.summary)])
        self._writer.close()

    def _add(self, step: int, values: list[Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
        self._writer.flush()


def _text(tag: str, values: Mapping[str, Any]) -> Any:
    """A summary for the text page: a code block of Markdown, as others' words may look like markup."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.compat.proto.tensor_pb2 import TensorProto

    lines = [f"    {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text"))
    tensor = TensorProto(dtype="DT_STRING", string_val=["\n".join(lines).encode("utf-8", "backslashreplace")])
    return Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
