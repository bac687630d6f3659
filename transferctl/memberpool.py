"""Members side by side, each in a process of its own: processes stay, and take one member after the other.

Down a pipe go tasks, answers to "does it go on?" and the word to stop; up come the word that a process has begun, then
epochs, warnings and outcomes. A process that finds its pipe closed has lost the one that started it: it saves its run
and ends.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from transferctl import members, signals
from transferctl.errors import ExitCode, ending
from transferctl.members import Outcome, Task

STOP, BEGUN = "stop", "begun"
GONE = (EOFError, OSError)  # what a pipe says whose other end is closed


@dataclass(frozen=True)
class Epoch:
    """A member has scored so many epochs, and waits to hear whether it goes on."""

    number: int
    epochs: int
    val: Mapping[str, Any]


@dataclass(frozen=True)
class Warned:
    number: int
    text: str


@dataclass(frozen=True)
class Ended:
    number: int
    outcome: Outcome


Event = Epoch | Warned | Ended


class Pool:
    """Up to `jobs` processes of `threads` threads each. log: a file that takes what libraries print there."""

    def __init__(self, jobs: int, threads: int, log: Path):
        self._jobs, self._threads, self._log = jobs, threads, log
        self._workers: list[_Worker] = []

    @property
    def running(self) -> int:
        return sum(worker.number is not None for worker in self._workers)

    @property
    def has_room(self) -> bool:
        return self.running < self._jobs

    def start(self, number: int, task: Task) -> None:
        """number: what the member's events are known by."""
        idle = next((worker for worker in self._workers if worker.number is None), None)
        if idle is None:
            idle = _Worker(self._threads, self._log)
            self._workers.append(idle)
        idle.number = number
        idle.tell((number, task))

    def answer(self, number: int, goes_on: bool) -> None:
        for worker in self._workers:
            if worker.number == number:
                worker.tell(goes_on)

    def wait(self) -> list[Event]:
        """What has happened since; at least one thing."""
        found: list[Event] = []
        while not found:
            ready = wait([worker.pipe for worker in self._workers])
            for worker in [one for one in self._workers if one.pipe in ready]:
                found += self._heard(worker)
        return found

    def _heard(self, worker: _Worker) -> list[Event]:
        try:
            event: Event | str = worker.pipe.recv()
        except GONE:
            self._workers.remove(worker)
            worker.process.join()
            worker.pipe.close()
            return [] if worker.number is None else [Ended(worker.number, _killed(worker.process.exitcode))]
        if isinstance(event, str):
            worker.has_begun = True
            return []
        if isinstance(event, Ended):
            worker.number = None
        return [event]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Running members save themselves, as at a signal; a second signal to this process kills them all."""
        for worker in self._workers:
            worker.tell(STOP)
            if not worker.has_begun and not worker.pipe.poll():
                worker.process.kill()  # it still imports, which takes seconds, and has nothing to save
        for worker in self._workers:
            worker.drain()
            worker.process.join()
            worker.pipe.close()


def _killed(code: int | None) -> Outcome:
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    message = f"its process was killed ({how}); most often memory ran out: take fewer --jobs"
    return Outcome(ExitCode.RESOURCES, message)


class _Worker:
    """number: of the member that it runs; has_begun: whether it is known to take tasks."""

    def __init__(self, threads: int, log: Path):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.number: int | None = None
        self.has_begun = False
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs, threads, log))
        with signals.held(), _interrupts_blocked():  # one that was started is known, and stopped
            self.process.start()
        theirs.close()

    def tell(self, message: object) -> None:
        with suppress(*GONE):  # it was killed, which waiting for it tells
            self.pipe.send(message)

    def drain(self) -> None:
        """Until it has ended: one whose pipe is full would wait for ever."""
        with suppress(Exception):  # its pipe is closed, or this process was interrupted within a message
            while True:
                self.pipe.recv()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process that is started inside has SIGINT blocked, until it ignores it: while it still imports, Ctrl-C would
    end it with a traceback. To this one it comes at the end."""
    resource_tracker.ensure_running()  # which starts with the first process, and unblocks it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- in the process ---------------------------------------------------------------------------------------


def _serve(pipe: Connection, threads: int, log: Path) -> None:
    """Members, one after the other, until told to stop."""
    import torch

    with log.open("a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the starting process passes on one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    mail: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with suppress(*GONE):
        pipe.send(BEGUN)
    try:
        with signals.handled():
            threading.Thread(target=_listen, args=(pipe, mail), daemon=True).start()
            while (letter := mail.get()) != STOP:
                number, task = letter
                _serve_one(pipe, mail, number, task)
    except signals.ENDING as error:
        sys.exit(int(ending(error)[0]))


def _serve_one(pipe: Connection, mail: queue.SimpleQueue[Any], number: int, task: Task) -> None:
    def tell(event: Event) -> None:
        with suppress(*GONE):  # the signal that ends this process is on its way
            pipe.send(event)

    def goes_on(epochs: int, val: Mapping[str, Any]) -> bool:
        tell(Epoch(number, epochs, val))
        answer = mail.get()
        while answer == STOP:
            time.sleep(1)  # for the signal
        return bool(answer)

    outcome = members.attempt(task, lambda text: tell(Warned(number, text)), goes_on)
    tell(Ended(number, outcome))


def _listen(pipe: Connection, mail: queue.SimpleQueue[Any]) -> None:
    """In a thread: at the word to stop, or a closed pipe, the main thread gets the signal that ends it in order, unless
    it has had one."""
    while True:
        try:
            letter = pipe.recv()
        except GONE:
            letter = STOP
        if letter == STOP:
            mail.put(STOP)
            if not signals.has_come():
                os.kill(os.getpid(), signal.SIGTERM)
            return
        mail.put(letter)
