"""A run's model for others: files that need no transferctl, checked against the model, with scripts that use them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from transferctl import __version__, calibration, checkpoint, exportfolder, jsontext, parity, plugins, runs
from transferctl.checkpoint import Checkpoint
from transferctl.display import Display
from transferctl.errors import CheckpointError, Problem, SpecError
from transferctl.exportable import CARD, INPUT, OUTPUTS, Exportable
from transferctl.model import TransferModel, chosen_domain, restore
from transferctl.spec import Spec
from transferctl.wording import counted

SCHEMA_VERSION = 1
FOLDER, PARITY = "export", "parity.json"


def run(
    spec: Spec, trained: Path, display: Display, *, formats: Sequence[str], out: Path | None, which: str,
    head: str | None, images: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Export a checkpoint's network. formats: those that are asked for; none: all that can be made here.

    Raises SpecError for a format that is asked for and cannot be made, CheckpointError where a file does not compute
    what the model does (nothing is written then), DataError for `images` without any.
    """
    folder = exportfolder.refuse_other(out or trained / FOLDER, _names(), is_chosen=out is not None)
    saved = checkpoint.load(trained, which)
    model = restore(saved).eval()
    exportable = _exportable(model, chosen_domain(model, head, trained), saved, trained, display)
    exporters, left_out = _choose(exportable, formats, display)
    if images is not None:
        sample = parity.images_in(images, model.preprocessing, display)
    else:
        sample = parity.own_images(spec, exportable.domain, model.preprocessing, display)
    expected = parity.reference(exportable, sample)
    found: dict[str, dict[str, Any]] = {}
    card = dict(exportable.card) | {"formats": {}}
    with exportfolder.replacing(folder, _names()) as aside:
        for name, exporter in exporters.items():
            display.note(f"{name}: {exporter.FILE} and {exporter.SCRIPT}")
            started = time.monotonic()
            facts = exporter.write(exportable, aside)
            seconds = round(time.monotonic() - started, 3)
            card["formats"][name] = {"file": exporter.FILE, "script": exporter.SCRIPT, **facts}
            runs.write_atomically(aside / exporter.SCRIPT, exporter.script())
            written = {"file": exporter.FILE, "bytes": _bytes(aside, exporter.FILE), "seconds": seconds}
            found[name] = written | parity.compare(exporter.predictor(aside, card), sample, expected)
        runs.write_atomically(aside / CARD, runs.json_text(card))
        report = parity.as_json(sample, expected, found)
        runs.write_atomically(aside / PARITY, runs.json_text(report))
        summary = _summary(trained, folder, card, left_out) | {"parity": report}
        parity.table(sample, expected, found, display)
        _refuse_different(report, trained, summary)
    display.result(str(folder))
    return summary


def _names() -> set[str]:
    """All that the folder of an export may have."""
    exporters = plugins.modules("exporters")
    files = {name for exporter in exporters for name in (exporter.FILE, f"{exporter.FILE}.data", exporter.SCRIPT)}
    return files | {CARD, PARITY}


def _exportable(model: TransferModel, domain: str, saved: Checkpoint, trained: Path, display: Display) -> Exportable:
    fitted = calibration.temperature_of(trained, saved.path.name) if domain == "target" else None
    temperature = fitted or 1.0
    crop = model.preprocessing.crop
    card = {
        "schema_version": SCHEMA_VERSION,
        "transferctl": __version__,
        "run": trained.name,
        "checkpoint": saved.path.name,
        "library": model.library,
        "architecture": model.backbone.name,
        "head": domain,
        "classes": list(model.classes[domain]),
        "preprocessing": model.preprocessing.as_dict(),
        "temperature": temperature,
        "calibrated": fitted is not None,
        "input": {"name": INPUT, "dtype": "uint8", "shape": ["N", 3, crop, crop], "channels": "RGB"},
        "outputs": list(OUTPUTS),
    }
    display.note(
        f"model: {saved.path}, {domain} head, {counted(len(card['classes']), 'class', 'classes')}; fp32 on the CPU; "
        f"preprocessing: {model.preprocessing}"
    )
    how = f"/ {temperature:.4g}), the temperature fitted on validation data" if fitted else "): no temperature is known"
    display.note(f"probabilities are softmax(logits{' ' if fitted else ''}{how}")
    return Exportable(model, domain, temperature, card, jsontext.dumps(card, indent=1))


def _choose(
    exportable: Exportable, asked: Sequence[str], display: Display
) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """The formats to write, and why others are left out. Raises SpecError for one that was asked for."""
    names = list(dict.fromkeys(asked)) or plugins.names("exporters")
    exporters = {name: plugins.load("exporters", name) for name in names}
    reasons = {name: _missing(exporter) or exporter.unfit(exportable) for name, exporter in exporters.items()}
    left_out = {name: reason for name, reason in reasons.items() if reason}
    if asked and left_out:
        raise SpecError([Problem("", reason, f"--format {name}") for name, reason in left_out.items()])
    for name, reason in left_out.items():
        display.warn(f"{name} is left out: {reason}")
    return {name: exporter for name, exporter in exporters.items() if name not in left_out}, left_out


def _missing(exporter: ModuleType) -> str:
    absent = [name for name in exporter.LIBRARIES if find_spec(name) is None]
    return f"{', '.join(absent)} must be installed: pip install 'transferctl[{exporter.EXTRA}]'" if absent else ""


def _bytes(folder: Path, name: str) -> int:
    """Of a model's file, and of the weights beside it that are too many for it."""
    return sum(path.stat().st_size for path in (folder / name, folder / f"{name}.data") if path.exists())


def _summary(trained: Path, folder: Path, card: Mapping[str, Any], left_out: Mapping[str, str]) -> dict[str, Any]:
    """What --json prints."""
    return {"schema_version": SCHEMA_VERSION, "verb": "export", "run": str(trained), "export": str(folder)} | {
        key: card[key] for key in ("checkpoint", "architecture", "head", "classes", "temperature", "calibrated")
    } | {"left_out": dict(left_out)}  # fmt: skip


def _refuse_different(report: Mapping[str, Any], trained: Path, summary: Mapping[str, Any]) -> None:
    lines = [
        f"{trained}: {values['file']} does not compute what the model does: logits differ by up to "
        f"{values['max_logit_difference']:.1e}, probabilities by {values['max_probability_difference']:.1e} (at most "
        f"{report['logit_limit']:.2g} and {report['probability_limit']:g} are parity); nothing was written. Name other "
        f"formats with --format"
        for values in report["formats"].values()
        if not values["parity"]
    ]
    if lines:
        raise CheckpointError("\n".join(lines), summary)
