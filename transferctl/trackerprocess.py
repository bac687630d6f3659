"""The process of one tracker: `python -m transferctl.trackerprocess DESCRIPTOR`, started by tracking.py.

Lines of JSON come in on stdin, as tracking.py has them; what there is to say goes out on DESCRIPTOR. stdout and stderr
are RUN/NAME/log.txt, which takes what the tracker's library prints.
"""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from transferctl import jsontext, plugins, runs
from transferctl.tracking import Ending, Tracked, Tracker
from transferctl.wording import one_line, printable

STATE = "transferctl.json"  # in RUN/NAME: the tracker's id of the run, and the settings that it is of


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # sent to the run, which says how it ends
    says = int(sys.argv[1])
    os.set_inheritable(says, False)
    words = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # no library reads what is not for it
    try:
        _track((json.loads(line) for line in words), says)
    except BaseException as error:
        traceback.print_exc()
        _say(says, error=f"{type(error).__name__}: {one_line(error)}")
        return 1
    return 0


def _say(descriptor: int, **message: str) -> None:
    with suppress(OSError):  # the run was killed, and nobody hears
        os.write(descriptor, (jsontext.dumps(message) + "\n").encode())


def _track(messages: Iterator[dict[str, Any]], says: int) -> None:
    begin = next(messages)["begin"]
    module = plugins.load("trackers", begin["tracker"])
    run = Path(begin["run"])
    folder = run / begin["tracker"]
    known = _known_id(folder, begin["settings"])
    tracked = Tracked(run, folder, begin["verb"], begin["parameters"], known)
    tracker: Tracker = module.start(module.Settings.model_validate(begin["settings"]), tracked)
    runs.write_atomically(folder / STATE, jsontext.dumps({"id": tracker.id, "settings": begin["settings"]}))
    _say(says, note=printable(tracker.where))
    step = 0
    if known is None:
        for values in _lines(run / "metrics.jsonl", begin["replay"]):
            step = _log(tracker, values, step)
    for message in messages:
        if "end" in message:
            summary = message["end"]
            tracker.end(Ending(str(summary["status"]), int(summary["exit_code"]), summary, step))
            return
        values = message["metrics"]
        if known is None or values.get("step", 0) > begin["earlier"].get(str(values.get("split")), -1):
            step = _log(tracker, values, step)
    tracker.end(Ending("interrupted", 128 + signal.SIGKILL, {"status": "interrupted"}, step))


def _known_id(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The id that an earlier process of the run left, if it was told to the same tracker."""
    try:
        state = jsontext.read(folder / STATE)
        found = state["id"] if state["settings"] == settings else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", found) else None


def _lines(path: Path, size: int) -> Iterator[dict[str, Any]]:
    """Of the first `size` bytes of metrics.jsonl."""
    with path.open("rb") as file:
        for line in file.read(size).splitlines():
            yield json.loads(line)


def _log(tracker: Tracker, values: Mapping[str, Any], step: int) -> int:
    """A line of metrics.jsonl; the step it is of, or the last one before it."""
    step, split = values.get("step", step), values.get("split", "")
    numbers = {
        name if name == "epoch" else f"{split}/{name}": float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
    tracker.log(numbers, step)
    return step


if __name__ == "__main__":
    sys.exit(main())
