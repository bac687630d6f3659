"""Anonymous memory of each process at a million images less that at ten thousand: 16 MiB are allowed.

    python tests/benchmarks/memory.py [PHOTOS]     (default: ../shared/data/ants-bees/train; some 6 minutes, two cores)

Makes both data sets of hard links to a hundred of the photographs, a hundred classes in ten folders each, and removes
them again. Each row is a process of its own, watched from outside: the largest RssAnon in /proc/PID/status of the main
process and of any worker, asked for 20 times a second, so that what is freed again counts too. A million images take
hours to decode, so each job reads the first batches of a pass, and `extract` is stopped after --watch seconds; what
is scored are random logits, of all images, and what `audit` compares are random hashes, of all images, with copies.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transferctl.data import DomainData

ROOT = Path(__file__).resolve().parent.parent.parent
FEW, MANY, CLASSES, FOLDERS = 10_000, 1_000_000, 100, 10
BATCHES, BATCH_SIZE = 24, 32
JOBS = {
    "list": (0,),
    "score": (0,),
    "audit": (0,),
    "train": (0, 2),
    "balanced": (0, 2),
    "evaluate": (0, 2),
    "predict": (0, 2),
    "extract": (2,),
}  # workers
INTERVAL_S = 0.05
MIB = 1024  # KiB
SPEC = """
name: memory
backbone: {name: resnet18, weights: none}
preprocess: {resize: 72, crop: 64}
target: {train: TRAIN, val: 0.2}
workers: 2
"""


@dataclass
class Seen:
    """The largest RssAnon, KiB, and how long the process took."""

    main: int = 0
    worker: int = 0
    elapsed_s: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="?", default=ROOT.parent / "shared" / "data" / "ants-bees" / "train")
    parser.add_argument("--watch", type=float, default=90, help="seconds of `transferctl extract`")
    parser.add_argument("--only", nargs="+", default=list(JOBS), choices=JOBS)
    parser.add_argument("--job", nargs=3, metavar=("JOB", "FOLDER", "WORKERS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job, folder, workers = arguments.job
        _work(job, folder, int(workers))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the million links go also then
    with tempfile.TemporaryDirectory(prefix="memory-") as made:
        _measure(Path(made), arguments.photos, arguments.only, arguments.watch)


def _measure(made: Path, photos: Path, only: Sequence[str], watch_s: float) -> None:
    few, many = (_data(made, photos, n) for n in (FEW, MANY))
    print("| job | workers | process | 10,000: MiB | 1,000,000: MiB | difference | s, 10,000 | s, 1,000,000 |")
    print("|---|---|---|---|---|---|---|---|")
    for job, workers in [(name, n) for name in only for n in JOBS[name]]:
        if job == "extract":
            seen = [_watched(_extract(made, folder), watch_s) for folder in (few, many)]
        else:
            command = [sys.executable, __file__, "--job", job]
            seen = [_watched([*command, str(folder), str(workers)]) for folder in (few, many)]
        _show(job, workers, seen)


def _data(made: Path, photos: Path, n: int) -> Path:
    """n hard links; a file may have 65,000 of them, so each of a hundred photographs has 10,000 at most."""
    root, started = made / f"images-{n}", time.monotonic()
    originals = made / f"originals-{n}"
    originals.mkdir()
    copies = [originals / f"{i}.jpg" for i in range(CLASSES)]
    for copy, photo in zip(copies, sorted(photos.rglob("*.jpg")), strict=False):
        shutil.copyfile(photo, copy)
    for label, copy in enumerate(copies):
        for part in range(FOLDERS):
            folder = root / f"class-{label:03}" / f"part-{part}"
            folder.mkdir(parents=True)
            for i in range(n // CLASSES // FOLDERS):
                os.link(copy, folder / f"image-{label:03}-{part}-{i:06}.jpg")
    print(f"{n:,} links made in {time.monotonic() - started:.1f} s", file=sys.stderr)
    return root


def _extract(made: Path, folder: Path) -> list[str]:
    spec = made / f"{folder.name}.yaml"
    spec.write_text(SPEC.replace("TRAIN", str(folder)))
    return [sys.executable, "-m", "transferctl", "extract", str(spec), "--runs-dir", str(made / "runs")]


def _watched(command: Sequence[str], most_s: float | None = None) -> Seen:
    seen, started = Seen(), time.monotonic()
    own = os.environ | {"PYTHONPATH": str(ROOT), "TRANSFERCTL_REPORT": "none"}  # this checkout, whichever is installed
    process = subprocess.Popen(command, env=own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while process.poll() is None:
            seen.main = max(seen.main, _anonymous(process.pid))
            seen.worker = max([seen.worker, *map(_anonymous, _children(process.pid))])
            if most_s and time.monotonic() - started > most_s:
                break
            time.sleep(INTERVAL_S)
    finally:
        process.terminate()
        errors = process.communicate()[1]
    seen.elapsed_s = time.monotonic() - started
    if process.returncode and not most_s:
        raise SystemExit(errors.decode())
    return seen


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _show(job: str, workers: int, seen: Sequence[Seen]) -> None:
    few, many = seen
    for process in ("main", *(["worker"] if workers else [])):
        one, other = getattr(few, process), getattr(many, process)
        memory = f"{one / MIB:.1f} | {other / MIB:.1f} | {(other - one) / MIB:+.1f}"
        print(f"| {job} | {workers} | {process} | {memory} | {few.elapsed_s:.1f} | {many.elapsed_s:.1f} |", flush=True)


def _work(job: str, folder: str, workers: int) -> None:
    """What a process of the benchmark does, after the imports that every verb has."""
    from dataclasses import replace

    import torch

    from transferctl import data, predictionimages
    from transferctl.datasets.folder import Settings
    from transferctl.device import Compute
    from transferctl.inputs import Inputs
    from transferctl.predictionpaths import Paths
    from transferctl.preprocess import Preprocessing
    from transferctl.tasks import classification
    from transferctl.trainsettings import AugmentSettings

    if job == "predict":  # all paths, of which the images of the last are read
        paths = iter(Paths([folder]))
        left = islice(paths, int(Path(folder).name.split("-")[1]) - BATCHES * BATCH_SIZE, None)
        size = Preprocessing(72, 64)
        _take(predictionimages.batches(left, classification, size, batch_size=BATCH_SIZE, workers=workers))
        return
    domain = data.load_domain(Settings(path=Path(folder)), 0.2, None, 0, domain="target")
    inputs = Inputs(classification, Preprocessing(72, 64), workers, Compute(torch.device("cpu"), bf16=False, reason=""))
    if job == "list":
        for split in domain.splits():
            split.fingerprint()
    elif job == "audit":
        _audit(domain)
    elif job == "score":
        _score(replace(domain, train=domain.val, val=domain.train))
    elif job == "evaluate":
        _take(inputs.scoring_batches(domain.train, BATCH_SIZE))
    else:
        stream = inputs.training_stream(
            replace(domain.train, balanced=job == "balanced"),
            domain.train,
            {"target": AugmentSettings(), "source": None},
            batch_size=BATCH_SIZE,
            source_batch_size=BATCH_SIZE,
            epochs=2,
            seed=0,
        )
        _take(stream.batches)


def _take(batches: Iterator[object]) -> None:
    for _ in islice(batches, BATCHES):
        time.sleep(0.02)  # for the watcher


def _audit(domain: DomainData) -> None:
    """Everything that check makes of a pass over the files, over random content: a thousand near copies across splits,
    a thousand identical ones, and a thousand in training data."""
    import numpy as np

    from transferctl import audit, findings, scratch
    from transferctl.display import Display

    random, audits = np.random.default_rng(0), []
    for split in domain.splits():
        samples = scratch.empty(len(split), audit.SAMPLE)
        for start in range(0, len(split), 1000):
            rows = samples[start : start + 1000]
            rows[:] = np.frombuffer(random.bytes(len(rows) * audit.SAMPLE.itemsize), audit.SAMPLE)
            rows["mode"], rows["format"], rows["sides"] = b"RGB", b"JPEG", (375, 500)
        audits.append(audit.Looked(split, {}, samples["digest"], samples))
    train, val = (looked.samples for looked in audits)
    train["hash"][-1000:] = train["hash"][:1000]
    val["hash"][:1000], val["digest"][1000:2000] = train["hash"][1000:2000], train["digest"][2000:3000]
    report = findings.say({"target": domain}, {"target": audits}, {"target": "none"}, 224, Display(as_json=True))
    keys = "near_duplicate_pairs", "duplicate_pairs", "label_conflict_pairs"
    assert [report[key] for key in keys] == [1000, 1000, 1000], [report[key] for key in keys]


def _score(domain: object) -> None:
    """Everything that scoring keeps of a split, over random logits: metrics, outcomes, predictions.csv, the change."""
    from types import SimpleNamespace

    import torch

    from transferctl import paired, results
    from transferctl.tasks import classification

    split, classes = domain.val, domain.classes  # type: ignore[attr-defined]
    scored = []
    with _folder() as made:
        for _ in range(2):
            predictions, recorder, meter = results.Predictions(), paired.Recorder(), classification.meter(classes)
            logits_of = torch.randn(1024, len(classes))
            for start in range(0, len(split), 1024):
                labels = torch.from_numpy(split.labels[start : start + 1024].astype("int64"))
                logits = logits_of[: len(labels)]
                for record in (predictions, recorder, meter.update):
                    record(logits, labels)
            scored.append((meter.compute(), recorder.outcomes()))
        run = SimpleNamespace(path=made)
        results.write_predictions(run, classes, [(split, predictions)])  # type: ignore[arg-type]
    paired.LOSS_DRAWS = 20  # the same memory, a hundredth of the time
    paired.difference(scored[0][1], scored[1][1], "change")


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="memory-") as made:
        yield Path(made)


if __name__ == "__main__":
    main()
