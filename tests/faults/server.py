"""A process that has imported what a run needs, and forks a child for each command: a trial costs no imports.

Run by harness.py, with faultio.so in LD_PRELOAD. Reads one JSON object a line, answers with one. It is the subreaper of
all that it starts, so that workers whose main process was killed are its children, and nothing outlives a trial.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

LOOK_S = 0.005
PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    for line in requests:
        request = json.loads(line)
        if "imports" in request:
            answer: dict[str, Any] = {"imported": _import(request["imports"])}
        elif "bury" in request:
            _bury(request["bury"])
            answer = {}
        else:
            answer = _run(request, library, [requests.fileno(), answers.fileno()])
        print(json.dumps(answer), file=answers, flush=True)


def _import(names: list[str]) -> int:
    for name in names:
        with contextlib.suppress(Exception):  # a module that only looks like one
            importlib.import_module(name)
    return len(sys.modules)


def _run(request: dict[str, Any], library: ctypes.CDLL, private: list[int]) -> dict[str, Any]:
    """The command in a child, to its end or until it is killed: its wait status, None where it ran out of time."""
    start = time.monotonic()
    child = os.fork()
    if not child:
        for descriptor in private:
            os.close(descriptor)
        _command(request, library)
    kill_after_s, timeout_s = request["kill_after_s"], request["timeout_s"]
    kill_worker_after_s = request["kill_worker_after_s"]
    workers_killed = 0
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        elapsed_s = time.monotonic() - start
        if pid:
            return {"group": child, "status": status, "seconds": elapsed_s, "workers_killed": workers_killed}
        if kill_after_s is not None and elapsed_s >= kill_after_s:
            os.kill(child, request["kill_signal"])  # it alone, as `kill` does: after -9 its workers live on for a while
            kill_after_s = None
        if kill_worker_after_s is not None and elapsed_s >= kill_worker_after_s and (found := _forked_by(child)):
            os.kill(found[0], signal.SIGKILL)
            workers_killed, kill_worker_after_s = 1, None
        if elapsed_s >= timeout_s:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return {"group": child, "status": None, "seconds": elapsed_s, "workers_killed": workers_killed}
        time.sleep(LOOK_S)


def _forked_by(pid: int) -> list[int]:
    """Its children that run no other program, as DataLoader's workers."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        program = Path(f"/proc/{pid}/exe").readlink()
        return [int(child) for child in children if Path(f"/proc/{child}/exe").readlink() == program]
    except OSError:  # ended meanwhile
        return []


def _bury(group: int) -> None:
    """End what a command left running, and wait for it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)


def _command(request: dict[str, Any], library: ctypes.CDLL) -> None:
    """In the child: arm the faults, run the command line, end as the interpreter would."""
    code = 1
    try:
        os.setsid()
        os.chdir(request["folder"])
        os.environ |= request["environment"]
        for name, descriptor in (("stdout", 1), ("stderr", 2)):
            file = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, descriptor)
            os.close(file)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
        sys.argv = ["transferctl", *request["arguments"]]
        fault = request["fault"]
        library.faultio_arm(
            os.fsencode(request["root"]), os.fsencode(request["calls"]), fault["mode"],
            ctypes.c_long(fault["at"]), ctypes.c_long(fault["value"]), fault["kinds"],
        )  # fmt: skip
        from transferctl.cli import main as transferctl

        transferctl()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        if wanted := request["modules"]:
            Path(wanted).write_text(json.dumps(sorted(sys.modules)))
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
