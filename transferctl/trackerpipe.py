"""The run's side of a tracker: the process that trackerprocess.py runs in, and a pipe into it that is never waited for.

    {"begin": …}, {"metrics": …}, …, {"end": …}      to the process
    {"note": text}, {"error": text}                  from it

What the pipe does not take is kept, up to BACKLOG. At the end all trackers together have PATIENCE_S to finish.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferctl import jsontext
from transferctl.display import Display, appended
from transferctl.errors import TransferctlError
from transferctl.forked import closed_in_children

if TYPE_CHECKING:
    from transferctl.runs import Run

BACKLOG = 8 * 10**6  # bytes
PATIENCE_S = 8.0  # for all trackers together, at a run's end
AT_ONCE = 1 << 16  # bytes


class TrackerProcess:
    """The run's side of a tracker. Nothing here raises, and only `close` waits."""

    def __init__(
        self, name: str, settings: Mapping[str, Any], parameters: Mapping[str, Any], run: Run, display: Display
    ):
        self._name, self._settings, self._parameters = name, settings, parameters
        self._run, self._display = run, display
        self._process: subprocess.Popen[bytes] | None = None
        self._hears = -1
        self._heard, self._waiting = b"", bytearray()
        self._is_off = self._is_ended = False

    def begin(self) -> None:
        try:
            self._process, self._hears = self._started()
        except OSError as error:
            self._off(f"cannot be started: {error.strerror}")
            return
        closed_in_children.update(self._descriptors())
        replay = (self._run.path / "metrics.jsonl").stat().st_size if self._run.is_resumed else 0
        self._send(
            begin={
                "tracker": self._name, "settings": self._settings, "run": str(self._run.path.absolute()),
                "verb": self._run.summary["verb"], "parameters": self._parameters, "replay": replay,
            }
        )  # fmt: skip

    def log(self, values: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl, before it is written there."""
        if self._process is None and not self._is_off:
            self.begin()
        self._send(metrics=values)

    def end(self, summary: Mapping[str, Any]) -> None:
        if self._process is None and not self._is_off:
            self.begin()
        self._send(end=summary)
        self._is_ended = True

    def close(self, deadline: float) -> None:
        """Wait for it until then (time.monotonic), and end it."""
        process = self._process
        if process is None:
            return
        try:
            while not self._is_off and process.poll() is None and time.monotonic() < deadline:
                self._pump()
                if not self._waiting:
                    self._close_pipe()
                time.sleep(0.01)
            self._hear()
            if not self._is_off and process.poll() is None:
                where = self._run.path / self._name
                self._off(f"was not done {PATIENCE_S:.0f} s after the run's end; what it has by then is kept ({where})")
            elif not self._is_off and process.returncode:
                self._off("")
        finally:
            self._stop()

    def _started(self) -> tuple[subprocess.Popen[bytes], int]:
        folder = self._run.path / self._name
        if folder.is_symlink():  # a run folder may come from anyone
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
        folder.mkdir(exist_ok=True)
        package = str(Path(__file__).parent.parent)
        path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
        hears, says = os.pipe()
        try:
            with appended(folder / "log.txt") as log:
                process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-P", "-m", "transferctl.trackerprocess", str(says)],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, pass_fds=(says,), start_new_session=True,
                    env=os.environ | {"PYTHONPATH": path},
                )  # fmt: skip
        except BaseException:
            os.close(hears)
            raise
        finally:
            os.close(says)
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        os.set_blocking(hears, False)
        return process, hears

    def _descriptors(self) -> list[int]:
        assert self._process is not None and self._process.stdin is not None
        return [self._hears, self._process.stdin.fileno()]

    def _send(self, **message: Any) -> None:
        if self._is_off or self._is_ended:
            return
        self._waiting += (jsontext.dumps(message) + "\n").encode()
        self._pump()
        if len(self._waiting) > BACKLOG:
            self._off("takes nothing any more")

    def _pump(self) -> None:
        """Write what the pipe takes."""
        self._hear()
        assert self._process is not None and self._process.stdin is not None
        try:
            while self._waiting and not self._is_off:
                taken = os.write(self._process.stdin.fileno(), self._waiting[:AT_ONCE])
                del self._waiting[:taken]
        except BlockingIOError:
            pass
        except OSError:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.5)  # its last words
            self._hear()
            self._off("")

    def _hear(self) -> None:
        """Say what it says."""
        with suppress(BlockingIOError, OSError):
            self._heard += os.read(self._hears, AT_ONCE)
        *lines, self._heard = self._heard.split(b"\n")
        for said in map(json.loads, lines):
            if "error" in said:
                self._off(said["error"])
            else:
                with suppress(TransferctlError):  # stderr takes no more
                    self._display.note(f"{self._name}: {said['note']}")

    def _off(self, reason: str) -> None:
        """Once; the run goes on without it."""
        if self._is_off:
            return
        self._is_off = True
        self._waiting.clear()
        code = None if self._process is None else self._process.poll()
        reason = reason or f"its process ended ({code}); see {self._run.path / self._name / 'log.txt'}"
        with suppress(TransferctlError):  # stderr takes no more
            self._display.warn(f"{self._name} is off for the rest of this run: {reason}")
        if self._process:
            self._stop()

    def _stop(self) -> None:
        """The process, and what it has started."""
        process = self._process
        assert process is not None and process.stdin is not None
        if process.poll() is None:
            with suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
        self._close_pipe()
        if self._hears >= 0:
            closed_in_children.discard(self._hears)
            os.close(self._hears)
            self._hears = -1

    def _close_pipe(self) -> None:
        assert self._process is not None and self._process.stdin is not None
        if not self._process.stdin.closed:
            closed_in_children.discard(self._process.stdin.fileno())
            self._process.stdin.close()


def close(trackers: Sequence[TrackerProcess]) -> None:
    """Wait for all of them together, and no longer than PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    for tracker in trackers:
        tracker.close(deadline)
