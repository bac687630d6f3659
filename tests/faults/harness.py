"""Runs the command line under faults: compiles faultio.c, keeps a fork server, says how each command ended."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent  # its transferctl is the one that is put under faults
TIMEOUT_S = 120.0
KINDS = ("open", "write", "fsync", "rename", "link", "unlink", "mkdir", "truncate", "chmod")  # as in faultio.c
GROWING = ("open", "write", "mkdir", "link")  # what a full disk refuses
COUNT, KILL, KILL_HALFWAY, FAIL_ONCE, FAIL_ON, CLOCK_BACK, SIGNAL = range(7)


class Call(NamedTuple):
    """One call below the root: its kind (of KINDS), and the path, of a rename the new one."""

    kind: str
    path: str


@dataclass(frozen=True)
class Fault:
    """What faultio.c is armed with; `value` is an errno, seconds or a signal, and `kinds` a mask of KINDS."""

    mode: int = COUNT
    at: int = 0
    value: int = 0
    kinds: int = 0


NO_FAULT = Fault()


def mask(kinds: Sequence[str]) -> int:
    return sum(1 << KINDS.index(kind) for kind in kinds)


@dataclass(frozen=True)
class Ending:
    """How a command ended. exit_code: None where a signal ended it, or it ran out of time (`signal` is None too).
    calls: those below the root, in order; `left`: of the process group, whose workers may live on."""

    exit_code: int | None
    signal: int | None
    seconds: float
    calls: list[Call]
    stdout: str
    stderr: str
    left: int
    workers_killed: int

    @property
    def killed(self) -> bool:
        return self.signal == signal.SIGKILL

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout of a command with --json; {} where there is none."""
        with contextlib.suppress(ValueError):
            found = json.loads(self.stdout)
            return found if isinstance(found, dict) else {}
        return {}

    def __str__(self) -> str:
        how = f"exit {self.exit_code}" if self.exit_code is not None else f"signal {self.signal}"
        return how if self.exit_code is not None or self.signal else "out of time"


def unable() -> str:
    """Why there can be no harness on this machine; empty where there can."""
    if sys.platform != "linux":
        return f"the fault harness needs Linux (LD_PRELOAD, /proc), not {sys.platform}"
    return "" if shutil.which("cc") else "the fault harness needs a C compiler, `cc`"


def compiled(folder: Path) -> Path:
    """faultio.so, in `folder`."""
    library = folder / "faultio.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-o", str(library), str(HERE / "faultio.c"), "-ldl"]
    subprocess.run(command, check=True)
    return library


class Server:
    """A fork server. One command at a time; `bury` ends what it left."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def run(
        self,
        arguments: Sequence[object],
        folder: Path,
        *,
        fault: Fault = NO_FAULT,
        kill_after_s: float | None = None,
        kill_signal: int = signal.SIGKILL,
        kill_worker_after_s: float | None = None,
        modules: Path | None = None,
        below: str = "root",
        timeout_s: float = TIMEOUT_S,
    ) -> Ending:
        """transferctl with `arguments`, faults at calls below a folder of `folder`. The cache is in its root/cache.

        kill_after_s: kill_signal for the main process after that time.
        kill_worker_after_s: SIGKILL for one DataLoader worker, as soon as there is one after that time. modules: a file
        for the names of all modules that the command imported.
        """
        calls, out, err = folder / "calls.txt", folder / "stdout.txt", folder / "stderr.txt"
        for file in (calls, out, err):  # a child that is killed at once makes none
            file.write_bytes(b"")
        answer = self._ask(
            arguments=[str(argument) for argument in arguments], folder=str(folder), root=str(folder / below),
            calls=str(calls), stdout=str(out), stderr=str(err), fault=asdict(fault), kill_after_s=kill_after_s,
            kill_signal=int(kill_signal), kill_worker_after_s=kill_worker_after_s, modules=modules and str(modules), timeout_s=timeout_s,
            environment={"TRANSFERCTL_CACHE": str(folder / "root" / "cache"), "TRANSFERCTL_REPORT": "none"},
        )  # fmt: skip
        status = answer["status"]
        ended = status is not None
        return Ending(
            os.WEXITSTATUS(status) if ended and os.WIFEXITED(status) else None,
            os.WTERMSIG(status) if ended and os.WIFSIGNALED(status) else None,
            answer["seconds"], _calls(calls, folder), out.read_text("utf-8", "replace"),
            err.read_text("utf-8", "replace"), answer["group"], answer["workers_killed"],
        )  # fmt: skip

    def bury(self, ending: Ending) -> None:
        self._ask(bury=ending.left)

    def imports(self, modules: Path) -> None:
        """What a run imported is there from the start for those that come after."""
        self._ask(imports=json.loads(modules.read_text()))

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def _calls(path: Path, folder: Path) -> list[Call]:
    lines = (line.split(" ", 2) for line in path.read_text("utf-8", "replace").splitlines())
    return [Call(kind, where.removeprefix(f"{folder}/")) for _, kind, where in lines]


@contextlib.contextmanager
def served(folder: Path) -> Iterator[Server]:
    """A fork server that lives as long as the block; `folder` takes the compiled library, and what killed processes
    leave among the temporary files."""
    (folder / "tmp").mkdir()
    environment = {
        **os.environ, "LD_PRELOAD": str(compiled(folder)), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT),
        "TMPDIR": str(folder / "tmp"),
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, str(HERE / "server.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=environment, cwd=folder,
    )  # fmt: skip
    try:
        yield Server(process)
    finally:
        assert process.stdin
        process.stdin.close()  # it ends by itself, as it waits for nothing else
        process.wait()
        assert process.stdout
        process.stdout.close()
