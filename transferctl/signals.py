"""SIGINT and SIGTERM: the first ends the command in order, as an exception; a second one ends it at once.

with signals.handled():            the whole command
    ...
    with signals.held():           what must not be cut in two: a training step, a save, ending workers
        ...
    with signals.ending_after(s):  what may take so many seconds
        ...
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from transferctl.errors import OutOfTime, Terminated

ENDING = (KeyboardInterrupt, Terminated)  # what the first signal becomes
SIGNALS = (signal.SIGINT, signal.SIGTERM)

_came: list[int] = []  # since `handled` was entered, in this process
_is_handling, _is_raised, _is_late, _holds = False, False, False, 0


@contextmanager
def handled() -> Iterator[None]:
    """Inside, a signal raises KeyboardInterrupt or Terminated where the main thread is, or at the end of what is
    `held`; a second one ends the process at once, its workers too. What the caller's shell has us ignore (SIGINT, of
    a command in the background) stays ignored."""
    global _is_handling, _is_raised  # noqa: PLW0603 (handlers are the process's, and so is this)
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _on_signal) for number in heeded}
    was_handling, _is_handling = _is_handling, True
    _came.clear()
    _is_raised = False
    try:
        yield
    finally:
        _is_handling = was_handling
        for number, handler in before.items():
            signal.signal(number, handler)


def has_come() -> bool:
    """Whether a signal came to this process since `handled` was entered."""
    return bool(_came)


@contextmanager
def held() -> Iterator[None]:
    """A first signal that comes inside is raised at its end (of the outermost, where they are nested), unless what is
    inside fails: its error goes first, and the signal is raised at the end of the next. Without `handled` around it, it
    sees to the handlers itself."""
    global _holds  # noqa: PLW0603
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread alone
        return
    if not _is_handling:
        with handled(), held():
            yield
        return
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
    if _came and not _holds and not _is_raised:
        raise _exception(_came[-1])
    if _is_late and not _holds:
        raise _out_of_time()


@contextmanager
def ending_after(seconds: float) -> Iterator[None]:
    """Inside, OutOfTime is raised once so many seconds have passed, wherever a signal would raise; a signal that has
    come goes first. Not to be nested. In another thread, or without timers (Windows), it never comes."""
    global _is_late  # noqa: PLW0603
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, _on_alarm)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))  # 0 would never come
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        _is_late = False


def _on_alarm(number: int, frame: FrameType | None) -> None:
    global _is_late  # noqa: PLW0603
    _is_late = not _came
    if _is_late and not _holds:
        raise _out_of_time()


def _out_of_time() -> OutOfTime:
    global _is_late  # noqa: PLW0603
    _is_late = False
    return OutOfTime()


def _on_signal(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    if len(_came) > 1:
        _end_at_once(number)
    if not _holds:
        raise _exception(number)


def _exception(number: int) -> BaseException:
    global _is_raised  # noqa: PLW0603
    _is_raised = True
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


def _end_at_once(number: int) -> None:
    """Nothing is unwound: what is on the disk is whole at every instant, and locks end with the process."""
    from multiprocessing import active_children

    for child in active_children():
        with suppress(OSError):
            child.kill()
    with suppress(OSError, ValueError):
        if sys.stderr.isatty():
            os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a progress bar has hidden the cursor
    os._exit(128 + number)
