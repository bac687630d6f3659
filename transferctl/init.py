"""`transferctl init`: look at a folder of images, write a spec for it (firstspec.py), and say what comes next."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from transferctl import backbonetext, checkpoint, firstspec, imagefolder, plugins, runs, yamlfile
from transferctl.backbonetext import DEFAULT_LIBRARY
from transferctl.display import Display
from transferctl.errors import Problem, SpecError, from_os_error
from transferctl.firstspec import Network
from transferctl.model import preprocessing_of
from transferctl.spec import PUBLISHED_NAME
from transferctl.speccomments import quoted
from transferctl.wording import printable

DEFAULT = "resnet18"


def run(
    folder: Path, out: Path | None, backbone: str | None, weights: str, force: bool, display: Display
) -> dict[str, Any]:
    """Look at the folder, write the spec, and say what comes next. backbone None: that of the weights, where they are a
    run's, else DEFAULT. Raises DataError, SpecError, CheckpointError, ResourceError."""
    out = out or Path(f"{_file_name(folder)}.yaml")
    _refuse_existing(out, force)
    network = _network(backbone, weights)
    found = imagefolder.look(folder, firstspec.VAL_FRACTION, display)
    text = firstspec.text(found, network, folder, out)
    try:
        runs.write_atomically(out, text)
    except OSError as error:
        raise from_os_error(error, out) from None
    spec = yamlfile.load(out).spec
    for line in (*firstspec.facts(found), f"wrote {out}; every choice in it has its reason beside it", "", "next:"):
        display.result(line)
    steps = _next(out, spec.name)
    for number, (command, why) in enumerate(steps, 1):
        display.result(f"{number}. {command}")
        display.result(f"     {why}")
    splits = {split.name: found.counts(split) for split in found.data.splits()}
    return {
        "spec": str(out), "layout": found.layout, "classes": splits, "unreadable": found.sizes.unreadable.first,
        "chosen": yaml.safe_load(text), "next": [command for command, _ in steps],
    }  # fmt: skip


def _file_name(folder: Path) -> str:
    return re.sub(r"[^\w.,+ ()-]+", "_", folder.resolve().name.removesuffix(".csv")).lstrip("-. ") or "spec"


def _refuse_existing(out: Path, force: bool) -> None:
    where = printable(str(out))
    if out.is_dir() or not out.parent.is_dir():
        what = "is a folder" if out.is_dir() else f"there is no folder {printable(str(out.parent))}"
        raise SpecError([Problem("", f"{what}; name a file", f"--out {where}")])
    if os.path.lexists(out) and not force:
        raise SpecError([Problem("", "is there already; --out FILE writes another one, --force writes it anew", where)])


def _network(name: str | None, weights: str) -> Network:
    """Raises SpecError for an unknown architecture, published name or file; CheckpointError for a run without one."""
    is_published = bool(PUBLISHED_NAME.fullmatch(weights))
    if not is_published and checkpoint.is_run(path := Path(weights).expanduser()):
        return _of_run(name, path)
    written = name or DEFAULT
    library, name = backbonetext.split(written)
    plugin = plugins.load("backbones", library or DEFAULT_LIBRARY)
    try:
        asked = plugin.published_preprocessing(name, weights) if is_published else plugin.default_preprocessing(name)
    except SpecError as error:
        flags = {"backbone.weights": f"--weights {weights}"}
        problems = [Problem("", one.message, flags.get(one.key, f"--backbone {written}")) for one in error.problems]
        raise SpecError(problems) from None
    if not is_published and weights != "none" and not Path(weights).expanduser().exists():
        raise SpecError([Problem("", "no such file or run", f"--weights {printable(weights)}")])
    return Network(written, weights, False, asked.resize, asked.crop, _stages(plugin, name, asked.crop))


def _of_run(name: str | None, run: Path) -> Network:
    """As its best checkpoint says, and as a spec that names the run gets it."""
    saved = checkpoint.load(run)
    asked, library, architecture = preprocessing_of(saved), saved.manifest["library"], saved.manifest["architecture"]
    its_name = str(architecture if library == DEFAULT_LIBRARY else f"{library}/{architecture}")
    if name not in (None, its_name):
        message = f"the run of --weights holds a {printable(its_name)}; leave --backbone out"
        raise SpecError([Problem("", message, f"--backbone {name}")])
    stages = _stages(plugins.load("backbones", library), architecture, asked.crop)
    return Network(its_name, str(run), True, asked.resize, asked.crop, stages)


def _stages(plugin: Any, name: str, image_size: int) -> tuple[str, ...]:
    """Names of those that can be frozen, input to output."""
    try:
        with torch.device("meta"):  # without the room that its weights take
            built, _ = plugin.build(name, image_size=image_size)
    except SpecError:  # regnet computes with its weights as it is built
        built, _ = plugin.build(name, image_size=image_size)
    return tuple(stage.name for stage in built.stages()[:-1])


def _next(out: Path, name: str) -> list[tuple[str, str]]:
    spec, extracted, tuned = quoted(out), f"'runs/*-extract-{name}'", f"'runs/*-finetune-{name}'"  # no shell's pattern
    return [
        (f"transferctl check {spec}", "looks at every image, and prints the plan; trains nothing"),
        (
            f"transferctl extract {spec}",
            "trains a new head; its last line names the run folder; a pattern in quotes is the latest such run",
        ),
        (f"transferctl finetune {spec} --from {extracted}", "goes on from there, and lets layers learn"),
        (f"transferctl eval {tuned}", "scores the best epoch, class by class"),
        (f"transferctl report {tuned}", "a page that shows all of it"),
        (f"transferctl predict {tuned} NEW_IMAGES", "what is in images that nobody has labelled"),
    ]
