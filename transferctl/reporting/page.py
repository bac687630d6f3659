"""The page of one run: every part that can be made, and of the others why not; one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from transferctl.errors import TransferctlError, is_out_of_memory
from transferctl.reporting import (
    course,
    dataaudit,
    examples,
    headline,
    html,
    material,
    planned,
    predictions,
    quality,
)
from transferctl.reporting.gather import RunRecord
from transferctl.reporting.material import Loaded
from transferctl.reporting.predictions import Predicted
from transferctl.reporting.recording import RecordingDisplay
from transferctl.wording import counted, one_line

Made = TypeVar("Made")


@dataclass(frozen=True)
class Page:
    """missing: by part, why it could not be made."""

    html: str
    missing: Mapping[str, str]


def of(run: RunRecord) -> Page:
    parts = _Parts()
    if run.unshown:
        parts.missing["curves"] = run.unshown
    split_name = run.scores[0].split if run.verb == "eval" and run.scores else "val"
    predicted = parts.made("predictions", partial(predictions.read, run.path, split_name, examples.EXAMPLES))
    loaded = parts.made("model", partial(material.load, run))
    where = headline.on(run, split_name)
    shown = _of_the_model(run, loaded, predicted, where, parts) if loaded else {}
    predicted = shown.pop("predicted", predicted)
    context: dict[str, Any] = {
        "run": run,
        "score": run.score,
        "images_of": headline.images_of(run, run.score) if run.score else "",
        "bars": headline.bars(run),
        "baseline": headline.baseline(run),
        "metrics": headline.other_metrics(run),
        "solution": course.solution(run),
        "curves": course.curves(run),
        "forgetting": course.forgetting(run),
        "interpolated": course.interpolated(run),
        "classes": quality.classes(run.score),
        "calibration": quality.calibrated(run, predicted, split_name),
        "mistakes": examples.mistakes(predicted, None, where) if predicted else None,
        "mistakes_on": where,
        "explanations": None,
        "map": None,
        "counts": dataaudit.counts(run),
        "environment": _environment(run),
        "plan": parts.made("plan", partial(planned.of, run, loaded)),
        "audit": parts.made("audit", partial(dataaudit.audited, run, loaded)),
    }
    return Page(html.rendered("run.html.j2", context | shown | {"missing": parts.missing}), parts.missing)


def _of_the_model(
    run: RunRecord, loaded: Loaded, predicted: Predicted | None, where: str, parts: _Parts
) -> dict[str, Any]:
    """What takes the model and the images that it was validated on; nothing where they are not what they were."""
    split = parts.made("images", partial(material.split_of, run, loaded, RecordingDisplay()))
    if not split:
        return {}
    classes = loaded.model.classes[loaded.domain]
    if since := material.written_since(run, f"{loaded.domain}.{split.name}", split, classes):
        parts.missing["contents"] = since
    outputs = parts.made("features", partial(material.outputs_of, loaded, split, RecordingDisplay()))
    found: dict[str, Any] = {}
    if predicted:
        predicted = examples.placed(predicted, split)
        if lost := examples.lost(predicted):
            parts.missing["pictures"] = f"not in {split.name}: {counted(lost, 'image')} that predictions.csv names"
    elif outputs:
        predicted = examples.predicted_of(outputs, split, classes)
        if unread := parts.missing.get("predictions"):
            parts.missing["predictions"] = f"{unread}; what is shown instead was predicted anew"
    if predicted:
        found["predicted"] = predicted
        found["mistakes"] = parts.made("mistakes", partial(examples.mistakes, predicted, split, where))
        found["explanations"] = parts.made("explanations", partial(examples.explanations, predicted, loaded, split))
    if outputs:
        found["map"] = parts.made("map", partial(examples.features_map, outputs, split, classes))
    return found


class _Parts:
    """Makes one after the other; what fails for a reason that a person can mend, or for want of memory, is said."""

    def __init__(self) -> None:
        self.missing: dict[str, str] = {}

    def made(self, name: str, make: Callable[[], Made]) -> Made | None:
        try:
            return make()
        except (TransferctlError, OSError) as error:
            self.missing[name] = one_line(error, 300)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self.missing[name] = "memory ran out"
        return None


ENVIRONMENT = ("command", "seed", "device", "threads", "cores", "processor", "platform", "python", "commit")


def _environment(run: RunRecord) -> list[tuple[str, str]]:
    """What else the result depends on, in short lines."""
    told = run.environment
    rows = [(key, html.in_words(told[key])) for key in ENVIRONMENT if told.get(key) is not None]
    for group in ("packages", "data"):
        values = told.get(group)
        if isinstance(values, Mapping):
            rows += [(f"{group}: {html.in_words(name)}", html.in_words(value)) for name, value in values.items()]
    rows += [("weights at the start", html.in_words(run.summary["start"]))] if run.summary.get("start") else []
    return rows[:100]
