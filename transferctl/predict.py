"""Classes of images that nobody has labelled, by a run's model: a row an image, in order, as they are computed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from transferctl import calibration, checkpoint, evaluate, loaders, pipeline, predictionimages, scoring
from transferctl.checkpoint import WEIGHTS_FILE, Checkpoint
from transferctl.contracts import Batch, Features
from transferctl.display import Display, Progress
from transferctl.errors import DataError, TransferctlError
from transferctl.features import COMPUTING_BATCH
from transferctl.inputs import SCORING_BATCH, Inputs
from transferctl.model import TransferModel, chosen_domain, restore
from transferctl.predictionfiles import NAMED, Begun, PredictionFile, Tally, chained
from transferctl.predictionimages import LoadedPaths
from transferctl.predictionpaths import ListedPath, Paths
from transferctl.predictionrows import PathPrediction, RowFormat
from transferctl.spec import Spec
from transferctl.wording import counted, printable

# What may differ from the run's spec; all else comes with the checkpoint, or is of no use here.
OVERRIDABLE = ("device", "precision", "workers")


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. out: None for stdout; head: "target", "source", or None for the target's, where
    there is one; top: classes a row; probabilities: of all classes too; skip_bad: bad files are named, and no error."""

    out: PredictionFile | None
    format: str
    top: int = 1
    probabilities: bool = False
    which: str = "best"
    head: str | None = None
    skip_bad: bool = False


def run(spec: Spec, trained: Path, paths: Paths, display: Display, asked: Asked) -> dict[str, Any]:
    """Predict every image that `paths` names, through the class map and preprocessing of the checkpoint; what the run
    froze is computed as `eval` does, so that both say the same of the same images.

    Raises DataError where nothing is found, and, after everything is written, where files are bad or an argument names
    no images.
    """
    found = iter(paths)
    first = list(islice(found, loaders.FEW_FILES))
    if not first:
        raise paths.nothing() or DataError("no PATH is left to predict")
    saved = checkpoint.load(trained, asked.which)
    model = restore(saved)
    head = chosen_domain(model, asked.head, trained)
    temperature = calibration.temperature_of(trained, saved.path.name) if head == "target" else None
    compute, task = pipeline.chosen_device(spec, display), pipeline.task_of(spec)
    _say_model(saved, model, head, temperature, display)
    inputs = evaluate.inputs_as_trained(model, task, spec, trained, head, compute, display)
    row_format = RowFormat(
        asked.format, model.classes[head], _top(asked.top, model.classes[head], display), asked.probabilities
    )
    facts = {"model": str(saved.path), "head": head, "temperature": temperature}
    begun = _begun(asked.out, _made_by(saved, facts, row_format, inputs), row_format)
    tally, already, started = begun.tally, begun.tally.rows, time.monotonic()
    left = _after(begun, chain(first, found), asked.out, display)
    if not begun.is_finished:
        predict = Predictor(model, head, inputs, temperature, row_format, display)
        workers = loaders.workers_for_files(spec.workers, len(first))
        batches = predictionimages.batches(left, task, model.preprocessing, batch_size=SCORING_BATCH, workers=workers)
        _write(batches, predict, row_format, begun, asked, display)
    summary = facts | _summary(tally, row_format, tally.rows - already, time.monotonic() - started, asked.out)
    _end(tally, paths, summary, asked, display)
    return summary


class Predictor:
    """A batch's predictions by one head of a model, in halves once memory runs out."""

    def __init__(
        self, model: TransferModel, head: str, inputs: Inputs, temperature: float | None, row_format: RowFormat,
        display: Display,
    ):  # fmt: skip
        """temperature: what logits are divided by; None: nothing."""
        self._model, self._head, self._inputs = model.eval(), model.heads[head], inputs
        self._temperature, self._row_format, self._display = temperature or 1.0, row_format, display
        self._most = [sys.maxsize]

    def __call__(self, loaded: LoadedPaths) -> list[PathPrediction]:
        """One for each path, in order."""
        computed, bad = self._computed(loaded.batch) if loaded.batch else iter(()), loaded.bad
        return [
            PathPrediction(path, error=bad[i].reason) if i in bad else self._prediction(path, *next(computed))
            for i, path in enumerate(loaded.paths)
        ]

    def _prediction(self, path: str, ranked: Sequence[tuple[int, float]], each: np.ndarray) -> PathPrediction:
        if not math.isfinite(ranked[0][1]):
            return PathPrediction(path, error="makes the model compute NaN or infinity")
        return PathPrediction(path, ranked, each if self._row_format.probabilities else None)

    def _computed(self, batch: Batch) -> Iterator[tuple[list[tuple[int, float]], np.ndarray]]:
        """Of each sample the likeliest classes with their probabilities, and all probabilities [C]."""
        compute, say = self._inputs.compute, self._display.warn
        with torch.inference_mode():
            logits = scoring.logits_of(self._head, batch, self._features, compute, self._most, say)
        probabilities = torch.softmax(logits.double() / self._temperature, dim=1)
        ordered = torch.sort(probabilities, dim=1, descending=True, stable=True)  # of equals the first, as eval has it
        top = self._row_format.top
        labels, best = ordered.indices[:, :top].tolist(), ordered.values[:, :top].tolist()
        for row, each in enumerate(probabilities.numpy()):
            yield list(zip(labels[row], best[row], strict=True)), each

    def _features(self, batch: Batch) -> Features:
        """In parts of eval's size, as the last bits depend on what is computed together. Not compiled: whether that
        pays is found by measuring, and a resumed file has the bytes of one that was not interrupted."""
        stages = self._inputs.stages
        if stages is None:
            return self._model.features_of(batch)
        if not stages.is_whole:
            return self._model.features_of(stages.of(batch))
        return Features(torch.cat([stages(part) for part in torch.split(batch.inputs, COMPUTING_BATCH)]))


class Sink(Protocol):
    def add(self, rows: bytes, predictions: Sequence[PathPrediction]) -> None: ...


@dataclass(frozen=True)
class _Stdout:
    display: Display
    tally: Tally

    def add(self, rows: bytes, predictions: Sequence[PathPrediction]) -> None:
        self.display.rows(rows)
        self.tally.add(predictions)


def _begun(out: PredictionFile | None, made_by: Mapping[str, Any], row_format: RowFormat) -> Begun:
    if out is None:
        return Begun(made_by, is_finished=False, size=0, tally=Tally([0] * len(row_format.classes)))
    return out.begun(made_by, len(row_format.classes))


def _after(
    begun: Begun, paths: Iterator[ListedPath], out: PredictionFile | None, display: Display
) -> Iterator[ListedPath]:
    """What is left of the paths: nothing where the file is finished. Raises CheckpointError where those that are done
    are not the first of them, or all of a finished file."""
    done = begun.tally.rows
    if not done:
        return paths
    assert out is not None
    seen = (path if isinstance(path, str) else path.name for path in islice(paths, done))
    if chained("", seen) != begun.tally.paths:
        raise out.error(f"its first {done:,} rows are not of the first images of PATH…; name the same, in that order")
    if not begun.is_finished:
        display.note(f"going on after {counted(done, 'row')} of {out.part}")
        return paths
    if (more := next(paths, None)) is not None:
        name = printable(more if isinstance(more, str) else more.name)
        has = f"is finished and has {counted(done, 'row')}"
        raise out.error(f"{has}; PATH… names more, {name} first: predict those into another FILE")
    out.finish()
    display.note(f"{out.path} is finished; there is nothing to go on with")
    return paths


def _write(
    batches: Generator[LoadedPaths], predict: Predictor, row_format: RowFormat, begun: Begun, asked: Asked,
    display: Display,
) -> None:  # fmt: skip
    """Rows to the file or stdout, as they come."""
    sinking = _sink(asked.out, begun, row_format, display)
    with closing(batches), sinking as sink, _progress(asked, display) as progress:
        for loaded in batches:
            predictions = predict(loaded)
            _name_bad(predictions, begun.tally, display)
            sink.add(row_format.of(predictions), predictions)
            progress.advance(len(predictions))


@contextmanager
def _sink(out: PredictionFile | None, begun: Begun, row_format: RowFormat, display: Display) -> Iterator[Sink]:
    if out is None:
        display.rows(row_format.header())
        yield _Stdout(display, begun.tally)
        return
    try:
        with out.growing(begun, row_format.header()) as growing:
            yield growing
    except BaseException:
        if out.safe_rows:
            with suppress(TransferctlError):  # stderr may take no more
                done = counted(out.safe_rows, "row")
                how = "--resume in place of --overwrite" if out.overwrite else "--resume"
                display.note(f"to go on: the same command with {how} ({done} of {out.part} are safe)")
        raise


def _top(asked: int, classes: Sequence[str], display: Display) -> int:
    if asked > len(classes):
        display.note(f"--top {asked}: there are {len(classes)} classes, and so many stand in a row")
    return min(asked, len(classes))


def _say_model(saved: Checkpoint, model: TransferModel, head: str, temperature: float | None, display: Display) -> None:
    display.note(f"model: {saved.path}; preprocessing: {model.preprocessing}")
    if not model.output_names(head):
        display.note(f"the {head} head came without names: its classes are numbers")
    if temperature is None:
        why = "the source head has no temperature" if head == "source" else "the run keeps no temperature for it"
        display.note(f"probabilities are softmax(logits), not calibrated: {why}")
    else:
        display.note(f"probabilities are calibrated: softmax(logits / {temperature:.4g}), fitted on validation data")


def _made_by(saved: Checkpoint, facts: Mapping[str, Any], row_format: RowFormat, inputs: Inputs) -> dict[str, Any]:
    """What rows depend on besides the images: where one differs, a file is not gone on with."""
    compute = inputs.compute
    return {
        "checkpoint": saved.path.name,
        "weights": str(saved.manifest["files"][WEIGHTS_FILE]["sha256"]),
        "head": facts["head"],
        "temperature": facts["temperature"],
        "format": row_format.format,
        "top": row_format.top,
        "probabilities": row_format.probabilities,
        "device": f"{compute.device}, {'bf16' if compute.bf16 else 'fp32'}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _progress(asked: Asked, display: Display) -> AbstractContextManager[Progress]:
    """On stderr, unless rows go to the same terminal."""
    return nullcontext(Progress()) if asked.out is None and display.is_on_screen else display.progress("predicting")


def _name_bad(predictions: Sequence[PathPrediction], tally: Tally, display: Display) -> None:
    """As they come; a million of them would be a million lines that nobody reads."""
    room = NAMED - tally.bad
    for one in islice((one for one in predictions if one.error), max(room, 0)):
        display.warn(f"{one.path} {one.error}")


def _summary(
    tally: Tally, row_format: RowFormat, n_now: int, seconds: float, out: PredictionFile | None
) -> dict[str, Any]:
    """What --json prints. images_per_s: of those that this process read, bad ones too."""
    counts = {name: n for name, n in zip(row_format.classes, tally.counts, strict=True) if n}
    return {
        "out": None if out is None else str(out.path),
        "n": tally.rows,
        "bad": tally.bad,
        "predicted": counts,
        "elapsed_s": round(seconds, 3),
        "images_per_s": round(n_now / max(seconds, 1e-9), 1),
    }


def _end(tally: Tally, paths: Paths, summary: Mapping[str, Any], asked: Asked, display: Display) -> None:
    """Raises DataError for bad files and arguments without images."""
    for note in paths.notes():
        display.warn(note)
    bad = f", of which {tally.bad:,} bad" if tally.bad else ""
    rate = f": {summary['images_per_s']:,.0f} a second" if summary["images_per_s"] else ""
    display.note(f"{counted(tally.rows, 'file')}{bad}{rate}")
    if asked.out is not None:
        display.result(str(asked.out.path))
    problems = [] if asked.skip_bad or not tally.bad else [_bad_in_words(tally)]
    problems += [str(nothing)] if (nothing := paths.nothing()) else []
    if problems:
        raise DataError("\n".join(problems), summary)


def _bad_in_words(tally: Tally) -> str:
    lines = [f"{counted(tally.bad, 'bad file')} of {tally.rows:,}; mend or remove them, or allow them by --skip-bad"]
    lines += [f"  {printable(path)} {reason}" for path, reason in tally.first_bad]
    lines += [f"  and {tally.bad - len(tally.first_bad):,} more"] if tally.bad > len(tally.first_bad) else []
    return "\n".join(lines)
