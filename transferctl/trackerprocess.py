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
from itertools import chain
from pathlib import Path
from typing import Any

from transferctl import jsontext, plugins
from transferctl.tracking import Ending, Tracked, Tracker
from transferctl.wording import one_line, printable

STATE = "transferctl.json"  # in RUN/NAME: the tracker's id of the run, the settings it is of, how much it has taken


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
    known, taken = _known(folder, begin["settings"])
    tracked = Tracked(run, folder, begin["verb"], begin["parameters"], known)
    tracker: Tracker = module.start(module.Settings.model_validate(begin["settings"]), tracked)
    state = {"id": tracker.id, "settings": begin["settings"], "lines": taken}
    _keep(folder, state)
    _say(says, note=printable(tracker.where))
    step = 0
    earlier = _lines(run / "metrics.jsonl", begin["replay"])
    for number, message in enumerate(chain(earlier, messages), 1):
        if "end" in message:
            summary = message["end"]
            tracker.end(Ending(str(summary["status"]), int(summary["exit_code"]), summary, step))
            return
        step = message["metrics"].get("step", step)
        if number > taken:
            _log(tracker, message["metrics"], step)
            _keep(folder, state | {"lines": number})
    tracker.end(Ending("interrupted", 128 + signal.SIGKILL, {"status": "interrupted"}, step))


def _known(folder: Path, settings: Mapping[str, Any]) -> tuple[str | None, int]:
    """The id that an earlier process of the run left, if it was told to the same tracker, and how many lines of
    metrics.jsonl that took: a run that goes on writes the lines after its checkpoint once more, the very same."""
    try:
        state = jsontext.read(folder / STATE)
        found, taken = (state["id"], state["lines"]) if state["settings"] == settings else (None, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None, 0
    is_id = isinstance(found, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", found)
    return (found, taken) if is_id and isinstance(taken, int) else (None, 0)


def _keep(folder: Path, state: Mapping[str, Any]) -> None:
    """Whole whenever this process ends; not flushed to the disk, which would take longer than a line does."""
    aside = folder / f".{STATE}.tmp"
    aside.unlink(missing_ok=True)
    with aside.open("x", encoding="utf-8") as file:
        file.write(jsontext.dumps(state))
    aside.replace(folder / STATE)


def _lines(path: Path, size: int) -> Iterator[dict[str, Any]]:
    """The first `size` bytes of metrics.jsonl, as the messages that they would be."""
    with path.open("rb") as file:
        for line in file.read(size).splitlines():
            yield {"metrics": json.loads(line)}


def _log(tracker: Tracker, values: Mapping[str, Any], step: int) -> None:
    """A line of metrics.jsonl. step: its own, or where it has none the last one before it."""
    split = values.get("split", "")
    numbers = {
        name if name == "epoch" else f"{split}/{name}": float(value)
        for name, value in values.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }
    tracker.log(numbers, step)


if __name__ == "__main__":
    sys.exit(main())
