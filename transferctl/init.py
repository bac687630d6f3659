"""`transferctl init`: look at a folder of images, write a spec for it (firstspec.py), and say what comes next."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from transferctl import firstspec, imagefolder, plugins, runs, yamlfile
from transferctl.display import Display
from transferctl.errors import Problem, SpecError, from_os_error
from transferctl.firstspec import Network, quoted
from transferctl.spec import PUBLISHED_NAME
from transferctl.wording import printable

LIBRARY = "torchvision"


def run(folder: Path, out: Path | None, backbone: str, weights: str, force: bool, display: Display) -> dict[str, Any]:
    """Look at the folder, write the spec, and say what comes next. Raises DataError, SpecError, ResourceError."""
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


def _network(name: str, weights: str) -> Network:
    """Raises SpecError for an unknown architecture, published name or file."""
    plugin = plugins.load("backbones", LIBRARY)
    is_published = bool(PUBLISHED_NAME.fullmatch(weights))
    try:
        asked = plugin.published_preprocessing(name, weights) if is_published else plugin.default_preprocessing(name)
    except SpecError as error:
        flags = {"backbone.weights": f"--weights {weights}"}
        problems = [Problem("", one.message, flags.get(one.key, f"--backbone {name}")) for one in error.problems]
        raise SpecError(problems) from None
    if not is_published and weights != "none" and not Path(weights).expanduser().exists():
        raise SpecError([Problem("", "no such file or run", f"--weights {printable(weights)}")])
    try:
        with torch.device("meta"):  # its stages, without the room that its weights take
            built, _ = plugin.build(name, image_size=asked.crop)
    except SpecError:  # regnet computes with its weights as it is built
        built, _ = plugin.build(name, image_size=asked.crop)
    return Network(name, weights, asked.resize, asked.crop, tuple(stage.name for stage in built.stages()[:-1]))


def _next(out: Path, name: str) -> list[tuple[str, str]]:
    spec, extracted, tuned = quoted(out), f"runs/*-extract-{name}", f"runs/*-finetune-{name}"
    return [
        (f"transferctl check {spec}", "looks at every image, and prints the plan; trains nothing"),
        (
            f"transferctl extract {spec}",
            "trains a new head; its last line names the run folder (runs/*…)",
        ),
        (f"transferctl finetune {spec} --from {extracted}", "goes on from there, and lets layers learn"),
        (f"transferctl eval {tuned}", "scores the best epoch, class by class"),
        (f"transferctl report {tuned}", "a page that shows all of it"),
        (f"transferctl predict {tuned} NEW_IMAGES", "what is in images that nobody has labelled"),
    ]
