"""transferctl against the loops that people write, in one session: time, images a second, memory, accuracy.

    export TRANSFERCTL_REAL_DATA=…                          (the folder with ants-bees, tiny-imagenet-mini and weights)
    python tests/benchmarks/speed.py OUT                    (about 40 minutes on two quiet cores; --turns 2: 30;
                                                             ten seeds take 20 more)
    python tests/benchmarks/speed.py OUT --quick            (a few minutes, into OUT/quick: to try the script; its figures say nothing)
    python tests/benchmarks/speed.py OUT --full             (into OUT/full: every training run to its end, most of a day)

Given the OUT of an earlier run it goes on there: whole turns and seeds that OUT/speed.json has are not run again.
Ends with OUT/speed.json (every raw timing), OUT/speed.md, and the same table on the terminal. Jobs: 2,000 training and
400 validation photographs, ResNet-50, 224 pixels, 10 epochs, batches of 32, validated each epoch; material.py says what
the images and the weights are, contenders.py what transferctl is measured against. All get the same files, weights,
split, epochs, batch size, learning rate, schedule and BatchNorm. Everyone is a process of its own, imports and all;
contenders take turns, A B C A B C, so that a machine that changes its speed changes it for all; a ratio is taken within
a turn, and medians over turns are shown with the least and the greatest.

What is not run whole (the tutorial's loop would take hours) is measured on a part and carried on, and marked ~:
  a contender   runs one epoch on a part of the images; the images that are missing are added at the rate of its steady
                state, without start-up, first batches and the start of workers, which favours it.
  transferctl   runs two epochs, on all images where the frozen part may be cached and else on a part: its wall time, plus
                the missing epochs at the pace of the second, with its validation and checkpoint. Whatever it decides by
                the number of images or of epochs, it decides for what it is given, unless --full.
`extract` and one-pass features in bf16 always run whole.

Cold: an empty TRANSFERCTL_CACHE (and an empty cache of compiled code). Warm: the same command again; `extract again`: with
another learning rate. Files are in the page cache for everyone. images/s: training images times epochs over the whole
time, so what is not computed again counts. Of the peak: FLOP/s in the steady state over the best bf16 matrix product
of the same turn; for extract, transferctl's rate is that of the 2,000 images by which a run on 4,000 is longer, their
part of the head's epochs included. Memory: the largest sum of proportional set sizes (a page that processes share counts
once) over the process tree; for what is marked ~, of the part.

Accuracy: all contenders run to the end on a cheaper copy of each job (a ResNet-18 trained on Tiny ImageNet, 64 pixels),
each seed; the last epoch is scored, as the best would be picked on the same images. A ratio counts only where the means
agree within half a point; where they do not, it is marked ✗. One seed's accuracy varies by about a point (400 images), so
each difference stands with its standard error, and --seeds 10 tells a difference from chance where 3 cannot.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import material
import report
from jobs import BATCH_SIZE, CONTENDERS, JOBS, Job, Sizes, command_of, contenders_of, spec_of
from processes import timed

HERE = Path(__file__).parent


SHARE = {"plain": 0.5, "sklearn": 0.8}  # of the part, for those that take long an image
VALIDATED = 4 * BATCH_SIZE  # validation images that a contender's rate is measured on, at least


@dataclass
class Session:
    """seen: what was measured, as it comes."""

    out: Path
    data: Path
    whole: bool
    seen: list[dict[str, Any]] = field(default_factory=list)

    def resume(self, jobs: list[Job]) -> None:
        """Take up the turns and seeds of an earlier run that had come to their end."""
        written = self.out / "speed.json"
        rows = json.loads(written.read_text(encoding="utf-8")) if written.exists() else []
        last = {(job.name, contenders_of(job)[-1]) for job in jobs}  # what each job ends with
        for kind, also in (("time", "machine"), ("accuracy", "accuracy")):
            for turn in {row["turn"] for row in rows}:
                of_turn = [row for row in rows if row["turn"] == turn and row["kind"] in (kind, also)]
                if last <= {(row["job"], row["run"]) for row in of_turn}:
                    self.seen += of_turn

    def has(self, kind: str, turn: int) -> bool:
        return any((row["kind"], row["turn"]) == (kind, turn) for row in self.seen)

    def add(self, row: dict[str, Any]) -> None:
        self.seen.append(row)
        seconds = f"{row['seconds']:.1f} s" + (" ~" if row["estimated"] else "") if "seconds" in row else ""
        print(f"{row['kind']} {row['turn']}: {row['job']}, {row['run']} {seconds}", file=sys.stderr, flush=True)
        (self.out / "speed.json").write_text(json.dumps(self.seen, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true", help="a small network, few images, one turn")
    parser.add_argument("--full", action="store_true", help="run every training to its end")
    parser.add_argument("--turns", type=int, help="default: 3; 1 with --quick")
    parser.add_argument("--seeds", type=int, help="of accuracy; default: 3; 1 with --quick")
    parser.add_argument("--jobs", nargs="+", choices=[job.name for job in JOBS], help="default: all")
    arguments = parser.parse_args()
    if "TRANSFERCTL_REAL_DATA" not in os.environ:
        parser.error("set TRANSFERCTL_REAL_DATA to the folder that holds ants-bees and tiny-imagenet-mini")
    data = Path(os.environ["TRANSFERCTL_REAL_DATA"]).resolve()
    apart = "quick" if arguments.quick else "full" if arguments.full else ""  # what would not go on from the other
    out = (arguments.out / apart).resolve()
    out.mkdir(parents=True, exist_ok=True)
    session = Session(out, data, arguments.full)
    small = data / "resnet18-tinyimagenet.pth"
    if arguments.quick:
        sizes = Sizes("resnet18", small, 110, 96, 160, 3, divisor=5)
        cheap = Sizes("resnet18", small, 73, 64, 160, 3)
    else:
        made = material.weights(session.out / "resnet50.pth", data)
        sizes = Sizes("resnet50", made, 256, 224, 2000, 10)
        cheap = Sizes("resnet18", small, 73, 64, 400, 6)
    jobs = [job for job in JOBS if job.name in (arguments.jobs or [job.name for job in JOBS])]
    repeats = 1 if arguments.quick else 3
    session.resume(jobs)
    for turn in range(arguments.turns or repeats):
        if not session.has("time", turn):
            _take_turn(session, jobs, sizes, turn)
    for seed in range(arguments.seeds or repeats):
        if not session.has("accuracy", seed):
            _score(session, jobs, cheap, seed)
    table = report.table(session.seen, {job.name: job.bar for job in JOBS}, CONTENDERS)
    (session.out / "speed.md").write_text(table, encoding="utf-8")
    print(table)


def _take_turn(session: Session, jobs: list[Job], sizes: Sizes, turn: int) -> None:
    """Every job once by everyone."""
    machine = json.loads(timed([sys.executable, HERE / "machine.py", sizes.arch, sizes.crop], {}).stdout)
    about = {"kind": "machine", "turn": turn, "job": "matrix product", "run": f"{machine['peak']:.3g} FLOP/s"}
    session.add(about | machine)
    train, val = _images(session, "photographs", sizes.n, None), _images(session, "photographs-val", sizes.n // 5, None)
    for job in jobs:
        if job.verb == "extract":
            _extract(session, job, sizes, turn, train, val)
        else:
            _finetune(session, job, sizes, turn, train, val)
        for contender in contenders_of(job):
            session.add(_contender(session, contender, job, sizes, turn, train, val))


def _score(session: Session, jobs: list[Job], sizes: Sizes, seed: int) -> None:
    """Every job to its end on the cheaper copy."""
    train = _images(session, "small", sizes.n, sizes.resize)
    val = _images(session, "small-val", sizes.n, sizes.resize)
    for job in jobs:
        own = _Folders(session.out, f"{job.name}-{seed}")
        row = _transferctl(session, job, sizes, train, val, sizes.epochs, own, seed=seed)
        session.add(_scored(job, seed, "transferctl", row["accuracy"]))
        own.remove()
        for contender in contenders_of(job):
            found = json.loads(timed(command_of(contender, job, sizes, train, val, sizes.epochs, seed), {}).stdout)
            session.add(_scored(job, seed, contender, found["accuracy"]))


def _scored(job: Job, seed: int, run: str, accuracy: float) -> dict[str, Any]:
    return {"kind": "accuracy", "turn": seed, "job": job.name, "run": run, "accuracy": accuracy}


def _images(session: Session, name: str, n: int, short_side: int | None) -> Path:
    photographs = session.data / "ants-bees" / ("val" if name.endswith("-val") else "train")
    return material.images(photographs, session.out / f"{name}-{n}", n // 2, short_side=short_side)


# ---- transferctl


@dataclass(frozen=True)
class _Folders:
    """Where one measurement of transferctl leaves its runs and its cache: emptied by whoever made it."""

    out: Path
    name: str

    @property
    def root(self) -> Path:
        return self.out / "work" / self.name

    def remove(self) -> None:
        shutil.rmtree(self.root)


def _extract(session: Session, job: Job, sizes: Sizes, turn: int, train: Path, val: Path) -> None:
    """Cold, again with another learning rate, and cold on twice as many images for the rate in the steady state."""
    own = _Folders(session.out, f"extract-{turn}")
    cold = _transferctl(session, job, sizes, train, val, sizes.epochs, own)
    again = _transferctl(session, job, sizes, train, val, sizes.epochs, own, lr=2 * job.lr)
    own.remove()
    twice = _transferctl(
        session, job, sizes, _images(session, "photographs", 2 * sizes.n, None), val, sizes.epochs, own
    )
    own.remove()
    steady = {"train": [sizes.n, twice["wall_s"] - cold["wall_s"]]}
    visits = sizes.n * sizes.epochs
    session.add(_timing(job, turn, "transferctl, cold", cold, cold["wall_s"], False, visits) | {"steady": steady})
    session.add(_timing(job, turn, "transferctl, again", again, again["wall_s"], False, visits))
    session.add(_timing(job, turn, "transferctl, twice the images", twice, twice["wall_s"], False, 2 * visits))


def _finetune(session: Session, job: Job, sizes: Sizes, turn: int, train: Path, val: Path) -> None:
    """Cold, and warm where the frozen part may be cached: on all images, as what it costs is paid once. Else on a part.
    Two epochs, carried on."""
    cached = job.frozen != "none" and not job.augment
    n = sizes.n if session.whole or cached else job.part // sizes.divisor
    epochs = sizes.epochs if session.whole else 2
    own = _Folders(session.out, f"{job.name}-{turn}")
    folders = material.part(train, n), material.part(val, n // 5)
    runs = {"transferctl, cold": _transferctl(session, job, sizes, *folders, epochs, own)}
    if cached:
        runs["transferctl, warm"] = _transferctl(session, job, sizes, *folders, epochs, own)
    own.remove()
    for name, row in runs.items():
        first, *_, last = row["epochs_s"]
        epoch_s = (last - first) / (epochs - 1)
        missing = (sizes.epochs * sizes.n / n - epochs) * epoch_s
        steady = {"train": [n, epoch_s], "val": [n // 5, 0.0]} if job.augment else None
        added = _timing(job, turn, name, row, row["wall_s"] + missing, not session.whole, sizes.n * sizes.epochs)
        session.add(added | {"steady": steady})


def _transferctl(
    session: Session, job: Job, sizes: Sizes, train: Path, val: Path, epochs: int, own: _Folders,
    *, lr: float | None = None, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """One run of the command line; its cache stays in `own`, its run folder goes."""
    runs = own.root / "runs"
    runs.mkdir(parents=True)
    spec = own.root / "job.yaml"
    values = spec_of(job, sizes, train, val, epochs, lr or job.lr, seed)
    spec.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML
    environment = {"TRANSFERCTL_CACHE": f"{own.root / 'cache'}", "TORCHINDUCTOR_CACHE_DIR": f"{own.root / 'compiled'}"}
    environment["TRANSFERCTL_REPORT"] = "none"  # tests/benchmarks/pages.py times it
    command = [sys.executable, "-m", "transferctl", job.verb, spec, "--runs-dir", runs, "--json"]
    found = timed(command, environment, runs)
    shutil.rmtree(runs)
    summary = json.loads(found.stdout)
    return asdict(found) | {"accuracy": summary["last"]["val"]["accuracy"]}


# ---- the others


def _contender(
    session: Session, contender: str, job: Job, sizes: Sizes, turn: int, train: Path, val: Path
) -> dict[str, Any]:
    """Whole, or one epoch on a part and the rest at the rate of the steady state."""
    whole = session.whole or contender == "one-pass"
    n = sizes.n if whole else int(job.part * SHARE.get(contender, 1.0)) // sizes.divisor
    folders = material.part(train, n), material.part(val, max(n // 5, min(VALIDATED, sizes.n // 5)))
    found = timed(command_of(contender, job, sizes, *folders, sizes.epochs if whole else 1, 0), {})
    phases = json.loads(found.stdout)["phases"]
    passes = 1 if contender == "sklearn" else sizes.epochs
    wanted = {"train": passes * sizes.n, "val": passes * (sizes.n // 5), "head": sizes.n}
    missing = 0.0
    for name, phase in ({} if whole else phases).items():
        images, seconds = _steady(phase)
        missing += (wanted[name] - phase["images"]) * seconds / images
    row = asdict(found) | {"phases": phases, "steady": {"train": _steady(phases["train"])}}
    return _timing(job, turn, contender, row, found.wall_s + missing, not whole, sizes.n * sizes.epochs)


def _steady(phase: dict[str, Any]) -> tuple[int, float]:
    """Images and seconds; of the whole phase, where it was too short for a steady state."""
    kind = "steady_" if phase["steady_images"] else ""
    return phase[f"{kind}images"], phase[f"{kind}seconds"]


def _timing(
    job: Job, turn: int, run: str, measured: dict[str, Any], seconds: float, estimated: bool, visits: int
) -> dict[str, Any]:
    """visits: training images times epochs, of the whole job."""
    about = {"kind": "time", "turn": turn, "job": job.name, "run": run, "seconds": seconds, "estimated": estimated}
    raw = {key: value for key, value in measured.items() if key != "stdout"}
    return about | {"visits": visits, "frozen": job.frozen} | raw


if __name__ == "__main__":
    main()
