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
    headline,
    html,
    material,
    planned,
    predictions,
    quality,
    shown,
)
from transferctl.reporting.gather import Told
from transferctl.reporting.heard import Heard
from transferctl.wording import one_line

Made = TypeVar("Made")


@dataclass(frozen=True)
class Page:
    """missing: by part, why it could not be made."""

    html: str
    missing: Mapping[str, str]


def of(run: Told) -> Page:
    parts = _Parts()
    split_name = run.scores[0].split if run.verb == "eval" and run.scores else "val"
    loaded = parts.made("model", partial(material.load, run))
    split = parts.made("images", partial(material.split_of, run, loaded, Heard())) if loaded else None
    looked = parts.made("features", partial(material.look, run, loaded, split, Heard())) if loaded and split else None
    predicted = predictions.read(run.path / "predictions.csv", split_name, shown.EXAMPLES)
    if predicted is None and loaded and split and looked:
        predicted = shown.predicted_of(looked, split, loaded.model.classes[loaded.domain])
    context: dict[str, Any] = {
        "run": run,
        "score": run.score,
        "images_of": headline.images_of(run, run.score) if run.score else "",
        "bars": headline.bars(run),
        "baseline": headline.baseline(run),
        "metrics": headline.other_metrics(run),
        "curves": course.curves(run),
        "forgetting": course.forgetting(run),
        "interpolated": course.interpolated(run),
        "classes": quality.classes(run.score),
        "calibration": quality.calibrated(run, predicted, split_name),
        "mistakes": parts.made("mistakes", partial(shown.mistakes, predicted, split)) if predicted else None,
        "mistakes_on": headline.on(run, split_name),
        "counts": dataaudit.counts(run),
        "environment": _environment(run),
    }
    if loaded and split and predicted:
        context["explanations"] = parts.made("explanations", partial(shown.explanations, predicted, loaded, split))
    else:
        context["explanations"] = None
    if loaded and split and looked:
        names = loaded.model.classes[loaded.domain]
        context["map"] = parts.made("map", partial(shown.features_map, looked, split, names))
    else:
        context["map"] = None
    context["plan"] = parts.made("plan", partial(planned.of, run, loaded))
    context["audit"] = parts.made("audit", partial(dataaudit.audited, run, loaded))
    return Page(html.rendered("run.html.j2", context | {"missing": parts.missing}), parts.missing)


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


def _environment(run: Told) -> list[tuple[str, str]]:
    """What else the result depends on, in short lines."""
    told = run.environment
    rows = [(key, html.in_words(told[key])) for key in ENVIRONMENT if told.get(key) is not None]
    for group in ("packages", "data"):
        values = told.get(group)
        if isinstance(values, Mapping):
            rows += [(f"{group}: {html.in_words(name)}", html.in_words(value)) for name, value in values.items()]
    rows += [("weights at the start", html.in_words(run.summary["start"]))] if run.summary.get("start") else []
    return rows[:100]
