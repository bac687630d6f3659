"""What can go wrong, for people: one exception family, one exit code each.

Anything that is not a `TransferctlError` is a bug of ours and exits 1.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar


class ExitCode(IntEnum):
    """The process's exit status; scripts rely on these numbers, so they never change meaning."""

    OK = 0
    BUG = 1
    SPEC = 2
    DATA = 3
    CHECKPOINT = 4
    RESOURCES = 5
    DIVERGED = 6
    LOCKED = 7
    GATE_MISSED = 8
    INTERRUPTED = 130
    TERMINATED = 143


class TransferctlError(Exception):
    """Something a person can mend. The message names the path, the cause and the fix.

    `summary`: the numbers that were found before it, for --json.
    """

    exit_code: ClassVar[ExitCode] = ExitCode.BUG

    def __init__(self, message: str, summary: Mapping[str, Any] | None = None):
        super().__init__(message)
        self.summary = dict(summary or {})


@dataclass(frozen=True)
class Problem:
    """One fault in a spec. `key` is dotted (`head.size`); `where` is `file:line` or the flag, once known."""

    key: str
    message: str
    where: str = ""

    def __str__(self) -> str:
        return ": ".join(part for part in (self.where, self.key, self.message) if part)


class SpecError(TransferctlError):
    """Usage or spec: every problem found, a line each."""

    exit_code = ExitCode.SPEC

    def __init__(self, problems: Iterable[Problem]):
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def at(cls, key: str, message: str) -> SpecError:
        return cls([Problem(key, message)])


class DataError(TransferctlError):
    """Labelled data that cannot be trained on or scored as asked."""

    exit_code = ExitCode.DATA


class CheckpointError(TransferctlError):
    """Weights, a checkpoint or a run folder that cannot be used."""

    exit_code = ExitCode.CHECKPOINT


class ResourceError(TransferctlError):
    """Memory, disk, permission or device: the machine cannot give what was asked."""

    exit_code = ExitCode.RESOURCES


class DivergedError(TransferctlError):
    """A loss stopped being a finite number."""

    exit_code = ExitCode.DIVERGED


class LockedError(TransferctlError):
    """Another process writes this run."""

    exit_code = ExitCode.LOCKED


class GateMissed(TransferctlError):
    """`eval --fail-if` found its condition true. The evaluation is done: `summary` has its numbers."""

    exit_code = ExitCode.GATE_MISSED


def of_code(code: ExitCode, message: str) -> TransferctlError:
    """The error that another process, or an earlier one, ended with."""
    if code == ExitCode.SPEC:
        where, _, cause = message.partition(": ")  # a place of its own, so that it is given no line of a file
        return SpecError([Problem("", cause, where)])
    kinds = (DataError, CheckpointError, ResourceError, DivergedError, LockedError, GateMissed)
    return next((kind for kind in kinds if kind.exit_code == code), TransferctlError)(message)


class Terminated(BaseException):
    """SIGTERM, as an exception, so that `with` blocks close what they opened."""


class OutOfTime(Terminated):
    """What had so many seconds, and no more, has not ended by then."""


def from_os_error(error: OSError, path: Path | str | None = None, flag: str = "--runs-dir") -> ResourceError:
    """The operating system's refusal to write, as an error with its fix. flag: what chooses another folder."""
    where = path or error.filename or "the run folder"
    elsewhere = f"move the runs with {flag}" if flag == "--runs-dir" else f"choose another folder with {flag}"
    fixes = {
        errno.ENOSPC: f"free some space, or {elsewhere}",
        errno.EDQUOT: f"free some of your quota, or {elsewhere}",
        errno.EACCES: f"give this user permission, or choose another folder with {flag}",
        errno.EPERM: f"give this user permission, or choose another folder with {flag}",
        errno.EROFS: f"choose a writable folder with {flag}",
    }
    fix = fixes.get(error.errno or 0, f"choose another folder with {flag}")
    return ResourceError(f"{where}: cannot write: {error.strerror or error}; {fix}")


def is_out_of_memory(error: BaseException) -> bool:
    """Python's own, the system's, torch's on a CPU or on a GPU (which is not imported here), or oneDNN's, which has no
    other words for it."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, ImportError):
        return "failed to map segment" in str(error)
    words = ("DefaultCPUAllocator", "std::bad_alloc", "could not create a primitive", "could not execute a primitive")
    is_torchs = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return isinstance(error, MemoryError) or is_torchs or type(error).__name__ == "OutOfMemoryError"


def ending(error: BaseException) -> tuple[ExitCode, str]:  # noqa: PLR0911 (a table)
    """How an exception ends the process: the exit code, and what to tell a person."""
    text = " ".join(str(error).split())
    if isinstance(error, TransferctlError):
        return error.exit_code, str(error)
    if isinstance(error, KeyboardInterrupt):
        return ExitCode.INTERRUPTED, "interrupted (SIGINT)"
    if isinstance(error, OutOfTime):
        return ExitCode.TERMINATED, "stopped, as its time was up"
    if isinstance(error, Terminated):
        return ExitCode.TERMINATED, "terminated (SIGTERM)"
    if isinstance(error, BrokenPipeError):
        return ExitCode.RESOURCES, "stdout was closed"
    if isinstance(error, OSError):
        return ExitCode.RESOURCES, str(from_os_error(error))
    if is_out_of_memory(error):
        whose = "the GPU is " if type(error).__name__ == "OutOfMemoryError" else ""
        fix = "write on_oom: halve, which makes each step in parts, or lower batch_size or preprocess.crop"
        return ExitCode.RESOURCES, f"{whose}out of memory; {fix}"
    if isinstance(error, RuntimeError) and "DataLoader worker" in text:  # raised wherever SIGCHLD interrupts
        return ExitCode.RESOURCES, (
            f"a process that reads images was killed ({text}); most often memory, or shared memory (/dev/shm), "
            "ran out: lower workers or batch_size, or write workers: 0"
        )
    return (
        ExitCode.BUG,
        f"this is a bug in transferctl: {type(error).__name__}: {text}; run again with --debug and report it",
    )
