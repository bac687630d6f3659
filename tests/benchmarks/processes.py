"""A command as a process tree: its wall time, its memory, and when lines came to a file it writes."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from time import monotonic, sleep

ROOT = Path(__file__).parent.parent.parent  # its transferctl is the one that is measured
LOOK_S = 0.02
WEIGH_S = 0.5


@dataclass(frozen=True)
class Timed:
    """wall_s: from start to end of the process, imports and all. rss, pss: the largest sums over the process tree,
    bytes, sampled every half second (pss counts shared pages once; None where there is no /proc). epochs_s: when each
    line of validation came to the run's metrics, seconds from the start."""

    command: list[str]
    wall_s: float
    rss: int | None
    pss: int | None
    epochs_s: list[float]
    stdout: str


def timed(command: Sequence[object], environment: Mapping[str, str], metrics_in: Path | None = None) -> Timed:
    """metrics_in: the folder in which a run folder with metrics.jsonl appears. Ends the benchmark, with what the
    command wrote, where it fails."""
    words = [str(word) for word in command]
    epochs: list[float] = []
    rss = pss = weighed = 0.0
    with TemporaryFile() as out, TemporaryFile() as err:
        start = monotonic()
        process = subprocess.Popen(
            words, stdout=out, stderr=err, env={**os.environ, **environment}, start_new_session=True, cwd=ROOT
        )
        try:
            while process.poll() is None:
                now = monotonic()
                epochs += [now - start] * (_validations(metrics_in) - len(epochs))
                if now - weighed >= WEIGH_S:
                    sums = _memory(process.pid)
                    rss, pss, weighed = max(rss, sums[0]), max(pss, sums[1]), now
                sleep(LOOK_S)
            wall = monotonic() - start
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        out.seek(0), err.seek(0)
        stdout, stderr = out.read().decode(), err.read().decode()
    if process.returncode:
        raise SystemExit(f"exit code {process.returncode}: {' '.join(words)}\n{stderr[-4000:]}")
    return Timed(words, wall, int(rss) or None, int(pss) or None, epochs, stdout)


def _validations(folder: Path | None) -> int:
    """Lines of validation so far in the only run folder in `folder`."""
    if folder is None:
        return 0
    return sum(path.read_text(encoding="utf-8").count('"split": "val"') for path in folder.glob("*/metrics.jsonl"))


def _memory(root: int) -> tuple[int, int]:
    """Sums over a process and its descendants, bytes: resident, and proportional."""
    rss = pss = 0
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        try:
            waiting += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended, or this is not Linux
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in rollup[1:]}
        rss, pss = rss + sizes.get("Rss", 0), pss + sizes.get("Pss", 0)
    return rss, pss
