"""The run folder: a name of its own, what ran where, metrics as they come, a summary at the end.

runs/20261124-015703-finetune-ants-bees/
  spec.yaml environment.json metrics.jsonl summary.json classes.json log.txt predictions.csv checkpoints/
  lock, while a process writes it
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from transferctl import jsontext, lock, signals, tracking
from transferctl.display import Display, appended
from transferctl.errors import CheckpointError, ExitCode, TransferctlError, ending, from_os_error
from transferctl.resuming import RESUMABLE, Resumed
from transferctl.trackerpipe import TrackerProcess
from transferctl.tracking import Trackers

SCHEMA_VERSION = 1
WITHOUT_MODEL = ("rank", "sweep", "advise")  # verbs


class Run:
    """An open run folder, which this process alone writes. `summary` is what summary.json will say; `is_resumed`:
    whether an earlier process began it."""

    def __init__(self, path: Path, verb: str, name: str, metrics: IO[str], resumed: Resumed | None = None):
        self.path, self.is_resumed, self.may_differ = path, resumed is not None, bool(resumed and resumed.allowed)
        self._unsettled: dict[str, str] | None = None if resumed is None else {}
        self.summary: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "verb": verb, "name": name, "run": str(path)}
        self._metrics = metrics
        self.trackers: Sequence[TrackerProcess] = ()

    def log_metrics(self, **values: Any) -> None:
        """One line of metrics.jsonl, on disk when this returns (to the operating system's buffers)."""
        for tracker in self.trackers:
            tracker.log(values)
        self._metrics.write(jsontext.dumps(values) + "\n")

    def metrics_bytes(self) -> int:
        """Of metrics.jsonl, all of it on the disk."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        return os.fstat(self._metrics.fileno()).st_size

    def rewind_metrics(self, size: int) -> bool:
        """Forget the lines after the first `size` bytes: what they are about is done again. False where the file does
        not have so many; then what is whole of it stays."""
        there = self.metrics_bytes()
        if there < size:
            lines = (self.path / "metrics.jsonl").read_bytes()
            os.truncate(self._metrics.fileno(), lines.rfind(b"\n") + 1)
            return False
        os.truncate(self._metrics.fileno(), size)
        return True

    def describe(self, name: str, text: str) -> None:
        """A file that says what the run is: written now, or for a resumed one once nothing speaks against going on."""
        if self._unsettled is None:
            self.write_text(name, text)
        else:
            self._unsettled[name] = text

    def settle(self) -> None:
        """Nothing speaks against going on with it as it is described now."""
        described, self._unsettled = self._unsettled or {}, None
        for name, text in described.items():
            self.write_text(name, text)

    @property
    def is_settled(self) -> bool:
        return self._unsettled is None

    def write_json(self, name: str, values: Any) -> None:
        self.write_text(name, json_text(values))

    def write_text(self, name: str, text: str) -> None:
        write_atomically(self.path / name, text)


@contextmanager
def start(
    runs_dir: Path, verb: str, name: str, spec_yaml: str, display: Display, resumed: Resumed | None = None,
    trackers: Trackers | None = None,
) -> Iterator[Run]:  # fmt: skip
    """Create the run folder, or open that of a run that is resumed; hold its lock, tell its trackers, and leave a
    summary of how the run ended, whatever happens.

    Raises ResourceError where the folder cannot be made or filled, LockedError where another process writes it.
    """
    started = time.monotonic()
    with ExitStack() as files:
        try:
            path = resumed.run if resumed else _new_folder(runs_dir, f"{datetime.now():%Y%m%d-%H%M%S}-{verb}-{name}")
            if left_behind := files.enter_context(lock.locked(path)):
                display.warn(left_behind)
            metrics = files.enter_context(appended(path / "metrics.jsonl"))
            run = Run(path, verb, name, metrics, resumed)
            before = (path / "summary.json").read_text(encoding="utf-8") if resumed else ""
            run.write_json("summary.json", run.summary | {"status": "running"})
            run.describe("spec.yaml", spec_yaml)
            files.enter_context(display.log_to(path / "log.txt"))
            run.trackers = files.enter_context(tracking.telling(trackers or Trackers(), run, display))
        except OSError as error:
            raise from_os_error(error, resumed.run if resumed else runs_dir) from None
        with _summarised(run, started, display, before):
            yield run
            run.settle()


@contextmanager
def _summarised(run: Run, started: float, display: Display, before: str) -> Iterator[None]:
    """before: the summary of a resumed run, which stays where going on with it is refused."""
    status, code, message = "finished", ExitCode.OK, ""
    try:
        yield
    except BaseException as error:
        code, message = ending(error)
        status = "interrupted" if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED) else "failed"
        error.summary = run.summary  # type: ignore[attr-defined]  # for --json, which says what summary.json says
        if run.summary["verb"] in RESUMABLE and code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED, ExitCode.RESOURCES):
            with suppress(OSError, TransferctlError):  # stderr may take no more
                display.note(f"to go on with it: transferctl {run.summary['verb']} --resume {run.path}")
        raise
    finally:
        ended = {"status": status, "exit_code": int(code), **({"error": message} if message else {})}
        run.summary |= ended | {"elapsed_s": round(time.monotonic() - started, 3)}
        try:
            with signals.held():
                is_refused = before and code == ExitCode.CHECKPOINT and not run.is_settled
                run.write_text("summary.json", before if is_refused else json_text(run.summary))
        except OSError as error:
            if status == "finished":
                raise from_os_error(error, run.path) from None


def _new_folder(runs_dir: Path, name: str) -> Path:
    """Exclusive mkdir; a suffix where another run took the name in the same second."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        path = runs_dir / (name + suffix)
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("a thousand runs in one second")


def json_text(values: Any) -> str:
    return jsontext.dumps(values, indent=1) + "\n"


def write_atomically(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[str]]:
    """The whole new content or the old one, never a part: aside, flush to disk, rename. Bytes of names that no
    text file can hold become escapes."""
    aside = path.with_name(f".{path.name}.tmp")
    aside.unlink(missing_ok=True)
    try:
        with aside.open("x", encoding="utf-8", errors="backslashreplace", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with suppress(OSError):  # a part of it would only take the room that is lacking
            aside.unlink(missing_ok=True)
        raise


def environment(seed: int, device: str, fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What else the result depends on: versions, machine, threads, commit, data."""
    import torch

    packages = ("torch", "torchvision", "numpy", "pillow", "scikit-learn", "safetensors", "pydantic", "transferctl")
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
        "packages": {name: _version(name) for name in packages},
        "commit": _commit(),
        "command": sys.argv,
        "seed": seed,
        "data": dict(fingerprints),
    }


def verb_of(run: Path) -> str | None:
    """The verb that made a run folder, if it is one and says so."""
    try:
        found = jsontext.read(run / "summary.json")["verb"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(found)


def refuse_without_model(run: Path) -> None:
    """Raises CheckpointError for a run of a verb that makes no model of its own, with what to look at or name instead,
    which such a verb leaves in its summary."""
    verb = verb_of(run)
    if verb not in WITHOUT_MODEL:
        return
    told = f"it is a run of {verb}, which makes none"  # for one that was killed before it could say more
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = str(jsontext.read(run / "summary.json")["without_model"])
    raise CheckpointError(f"{run}: has no model of its own, as {told}")


def data_fingerprints(run: Path) -> dict[str, str]:
    """What a finished or running run saw, by domain and split; empty where it does not say."""
    found = read_environment(run).get("data")
    return found if isinstance(found, dict) else {}


def read_environment(run: Path) -> dict[str, Any]:
    """environment.json; empty where it cannot be read."""
    try:
        found = jsontext.read(run / "environment.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the working folder, if it is under git: where the user's specs and scripts live."""
    try:
        command = ["git", "rev-parse", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
