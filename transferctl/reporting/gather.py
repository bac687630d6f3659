"""What a run folder says of its run. Its files may come from anyone: what lies, is missing or is of another version is
left out, never a crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transferctl import jsontext, runrows, runs, yamlfile
from transferctl.calibration import Bin
from transferctl.errors import SpecError
from transferctl.reporting import checked, metricsfile
from transferctl.spec import Spec
from transferctl.yamltree import Document


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval; both or none, as half an interval says nothing."""

    value: float
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.low is None or self.high is None:
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)


@dataclass(frozen=True)
class ClassRow:
    name: str
    support: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Score:
    """How good a model is on one split. scalars: every metric that is a number; confusion: row true, column predicted,
    in the order of `classes`; reliability: by `raw` and `calibrated`. All but the split may be unknown. so_far: of a
    run without an end, in words."""

    split: str
    n: int | None = None
    accuracy: Interval | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[ClassRow, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    reliability: Mapping[str, tuple[Bin, ...]] = field(default_factory=dict)
    so_far: str = ""


@dataclass(frozen=True)
class RunRecord:
    """A run, as its folder tells it. scores: the headline's first; state: finished, running, interrupted, failed or
    unknown; settings: of the spec, as plain values; metrics: lines of metrics.jsonl, by split; unshown: which of them
    were left out, in words."""

    path: Path
    verb: str
    name: str
    state: str
    error: str
    summary: Mapping[str, Any]
    environment: Mapping[str, Any]
    spec_text: str
    spec: Spec | None
    settings: Mapping[str, Any]
    metrics: Mapping[str, Sequence[Mapping[str, Any]]]
    unshown: str
    scores: tuple[Score, ...]

    @property
    def score(self) -> Score | None:
        return self.scores[0] if self.scores else None

    @property
    def was_killed(self) -> bool:
        """Interrupted so that it could not say so."""
        return self.state == "interrupted" and self.summary.get("status") == "running"

    @property
    def is_solved(self) -> bool:
        """Whether L-BFGS found its head on training data: without epochs or rate, and validation data chose nothing."""
        return _is_solved(self.verb, self.spec, self.summary)

    @property
    def best_epoch(self) -> int | None:
        if self.is_solved:
            return None
        return checked.count(checked.mapping(self.summary.get("best")).get("epoch"))

    @property
    def is_of_source(self) -> bool:
        """Whether its scores are the source head's: of stage 0, and of `eval --source`."""
        seen = checked.mapping(self.environment.get("data"))
        of_source = bool(seen) and all(str(name).startswith("source.") for name in seen)
        return self.verb == "pretrain" or (self.verb == "eval" and of_source)

    @property
    def domain(self) -> str:
        """Whose classes its scores are about."""
        return "source" if self.is_of_source else "target"

    def lines(self, split: str) -> Sequence[Mapping[str, Any]]:
        """Those of metrics.jsonl about a split (train, val, source_val)."""
        return self.metrics.get(split, ())


def gather(path: Path) -> RunRecord:
    """A folder that is no run tells nothing: its state is unknown."""
    summary = _mapping_in(path / "summary.json")
    verb, state = checked.text(summary.get("verb"), 40), runrows.state_of(path, summary)
    state = "unknown" if state == "unreadable" else state
    text = _text_of(path / "spec.yaml")
    spec = _spec(path / "spec.yaml") if text else None
    metrics, unshown = metricsfile.read(path / "metrics.jsonl")
    so_far = _so_far(metrics["val"], by_epoch=not _is_solved(verb, spec, summary))
    return RunRecord(
        path=path,
        verb=verb,
        name=checked.text(summary.get("name"), 120) or path.name,
        state=state,
        error=checked.text(summary.get("error"), 2000),
        summary=summary,
        environment=runs.read_environment(path),
        spec_text=text,
        spec=spec,
        settings=_settings(path / "spec.yaml", text),
        metrics=metrics,
        unshown=unshown,
        scores=tuple(_scores(verb, summary) or ([] if state == "finished" else so_far)),
    )


def score_of(metrics: Any, split: str) -> Score:
    """Of the metrics of one split, as summary.json has them."""
    found = checked.mapping(metrics)
    scalars = {
        checked.text(name, 60): value
        for name, given in found.items()
        if isinstance(name, str) and (value := checked.number(given)) is not None
    }
    classes = _classes(found.get("per_class"))
    return Score(
        split=split,
        n=checked.count(found.get("n")),
        accuracy=interval(found, "accuracy"),
        scalars=scalars,
        classes=classes,
        confusion=_confusion(found.get("confusion"), len(classes)),
        reliability={
            kind: bins
            for kind in ("raw", "calibrated")
            if (bins := _bins(checked.mapping(found.get("reliability")).get(kind)))
        },
    )


def interval(metrics: Mapping[str, Any], name: str) -> Interval | None:
    """A metric with its `_low` and `_high`; accuracies are shares, or are not believed."""
    take = checked.share if name == "accuracy" else checked.number
    value = take(metrics.get(name))
    low, high = (take(metrics.get(f"{name}_{end}")) for end in ("low", "high"))
    return None if value is None else Interval(value, low, high)


def _scores(verb: str, summary: Mapping[str, Any]) -> list[Score]:
    """Test data speaks first, where there is any: validation data chose the epoch."""
    if verb == "eval":
        split = checked.text(summary.get("split"), 40) or "data"
        found = [score_of(summary, split)]
    else:
        best = checked.mapping(summary.get("best")).get("val")
        found = [score_of(summary.get("test"), "test"), score_of(best, "val")]
    return [score for score in found if score.accuracy is not None]


def _is_solved(verb: str, spec: Spec | None, summary: Mapping[str, Any]) -> bool:
    solver = spec.head.solver if spec else ""
    return verb == "extract" and (solver == "lbfgs" or bool(checked.mapping(summary.get("probe"))))


def _so_far(rows: Sequence[Mapping[str, Any]], *, by_epoch: bool) -> list[Score]:
    """The last validation of a run without an end. rows: of metrics.jsonl."""
    if not rows:
        return []
    last, epoch = rows[-1], checked.count(rows[-1].get("epoch")) if by_epoch else None
    metrics = {key: value for key, value in last.items() if key not in ("step", "epoch")}
    score = replace(score_of(metrics, "val"), so_far="so far" if epoch is None else f"so far, epoch {epoch}")
    return [] if score.accuracy is None else [score]


def _classes(rows: Any) -> tuple[ClassRow, ...]:
    found = []
    for row in map(checked.mapping, checked.sequence(rows)):
        support, name = checked.count(row.get("support")), row.get("class")
        values = [checked.share(row.get(key)) for key in ("precision", "recall", "f1")]
        if support is None or not isinstance(name, str) or None in values:
            return ()
        precision, recall, f1 = (value or 0.0 for value in values)
        found.append(ClassRow(checked.text(name, 80), support, precision, recall, f1))
    return tuple(found)


def _confusion(rows: Any, classes: int) -> tuple[tuple[int, ...], ...]:
    """Square, of so many classes; else none."""
    found = []
    for row in checked.sequence(rows):
        counts = [checked.count(value) for value in checked.sequence(row)]
        if len(counts) != classes or None in counts:
            return ()
        found.append(tuple(count or 0 for count in counts))
    return tuple(found) if len(found) == classes else ()


def _bins(rows: Any) -> tuple[Bin, ...]:
    found = []
    for row in map(checked.mapping, checked.sequence(rows)):
        n = checked.count(row.get("n"))
        shares = [checked.share(row.get(key)) for key in ("low", "high", "confidence", "accuracy")]
        if not n or None in shares:
            return ()
        low, high, confidence, accuracy = (value or 0.0 for value in shares)
        found.append(Bin(low, high, n, confidence, accuracy))
    return tuple(found[:100])


def _text_of(path: Path) -> str:
    try:
        return jsontext.read_text(path)
    except (OSError, ValueError):
        return ""


def _mapping_in(path: Path) -> dict[str, Any]:
    try:
        found = jsontext.read(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _spec(path: Path) -> Spec | None:
    try:
        return yamlfile.load(path).spec
    except SpecError:
        return None


def _settings(path: Path, text: str) -> Mapping[str, Any]:
    """The spec's plain values, also where it is of another version and is no spec any more."""
    if len(text) > yamlfile.MAX_BYTES:
        return {}
    try:
        return checked.mapping(Document(str(path)).parse(text))
    except SpecError:
        return {}
