"""Run folders that are damaged, or made to do harm."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from entries import add, bad
from sound import checking_weights, safetensors, scoring, sound_run, with_manifest, with_weights

BEST = Path("checkpoints", "best")
MANIFEST = BEST / "manifest.json"
WEIGHTS = BEST / "model.safetensors"
HERE = "run/checkpoints/best/manifest.json: cannot be read"
FIX = "copy the run folder again, or name another checkpoint"
DESCRIBED = ("manifest.json: does not describe a model", "use a run folder as transferctl wrote it")
HEAD = {"kind": "new", "named": True, "hidden": [], "dropout": 0.0, "outputs": 2, "classes": ["0", "1"]}
PIXELS = {"resize": 32, "crop": 32, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}


def _replaced(path: Path, content: str | bytes) -> None:
    path.unlink()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _spoiled(folder: Path, spoil: Callable[[Path], object]) -> list[str]:
    run = sound_run(folder)
    spoil(run)
    return scoring(run)


def _manifest(content: str | bytes) -> Callable[[Path], None]:
    return lambda run: _replaced(run / MANIFEST, content)


def _elsewhere(run: Path) -> None:
    shutil.copytree(run / "checkpoints" / "step-000001", run.parent / "elsewhere")
    _linked(run, "../../elsewhere")


def _linked(run: Path, to: str) -> None:
    (run / BEST).unlink()
    (run / BEST).symlink_to(to)


def _as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(run: Path) -> None:
    (run / WEIGHTS).unlink()
    (run / WEIGHTS).symlink_to("/dev/zero")


def _one_bit_changed(run: Path) -> None:
    content = bytearray((run / WEIGHTS).read_bytes())
    content[-1] ^= 1
    _replaced(run / WEIGHTS, bytes(content))


# name, what it is, what is done to a sound run, what the message holds
DAMAGE: list[tuple[str, str, Callable[[Path], object], tuple[str, ...]]] = [
    ("manifest_gone", "a checkpoint without manifest", lambda run: (run / MANIFEST).unlink(), ("no checkpoint `best`",)),
    ("manifest_cut", "half of a manifest", _manifest('{"files": {"mo'), (HERE, FIX)),
    ("manifest_binary", "a binary manifest", _manifest(bytes(range(256))), (HERE, FIX)),
    ("manifest_list", "a manifest that is a list", _manifest("[]"), (HERE, FIX)),
    ("manifest_deep", "a manifest nested 100,000 deep", _manifest("[" * 100_000), (HERE, "is nested too deeply", FIX)),
    ("manifest_huge_int", "a number of 5,000 digits", _manifest('{"a": ' + "9" * 5000 + "}"), (HERE, "4300 digits", FIX)),
    ("manifest_pipe", "a pipe in place of a manifest", lambda run: _as_pipe(run / MANIFEST), (HERE, "regular file", FIX)),
    ("weights_gone", "a checkpoint without weights", lambda run: (run / WEIGHTS).unlink(), ("model.safetensors", FIX)),
    ("weights_changed", "weights with one bit changed", _one_bit_changed, ("model.safetensors", "SHA-256", FIX)),
    ("weights_cut", "half of the weights", lambda run: os.truncate(run / WEIGHTS, 10**6), ("model.safetensors", FIX)),
    ("weights_pipe", "a pipe in place of weights", lambda run: _as_pipe(run / WEIGHTS), ("model.safetensors", FIX)),
    ("weights_endless", "weights that lead to an endless file", _endless, ("model.safetensors", FIX)),
    ("best_to_itself", "`best` that links to itself", lambda run: _linked(run, "best"), ("checkpoints/best", FIX)),
    ("best_to_nothing", "`best` that links to nothing", lambda run: _linked(run, "absent"), ("no checkpoint `best`",)),
    ("best_outside", "`best` that leads out of the run", _elsewhere, ("run/checkpoints/best", "a step beside it")),
    ("spec_gone", "a run without spec.yaml", lambda run: (run / "spec.yaml").unlink(), ("run: is no run folder", "name one of those in runs/")),
    ("not_finished", "a run that was stopped at its start", lambda run: shutil.rmtree(run / "checkpoints"),
     ("run: has no checkpoint `best`", "stopped before it had one")),
]  # fmt: skip

# name, what it is, what the manifest says instead, what the message holds
CLAIMS: list[tuple[str, str, dict[str, Any], tuple[str, ...]]] = [
    ("schema", "another schema version", {"schema_version": 99}, ("written by another version", "schema 99")),
    ("files_outside", "a manifest that lists files elsewhere",
     {"files": {"model.safetensors": {"sha256": ""}, "../../../../etc/passwd": {"sha256": ""}}},
     ("lists files that are none of a checkpoint", "../../../../etc/passwd")),
    ("files_absolute", "a manifest that lists an absolute path",
     {"files": {"model.safetensors": {"sha256": ""}, "/etc/passwd": {"sha256": ""}}}, ("/etc/passwd", FIX)),
    ("wrong_hash", "another SHA-256", {"files": {"model.safetensors": {"sha256": "0" * 64}}}, ("SHA-256", FIX)),
    ("library", "a library that is a path", {"library": "../../evil"}, (*DESCRIBED, "library")),
    ("task", "an unknown task", {"task": "os"}, (*DESCRIBED, "task")),
    ("architecture", "an unknown architecture", {"architecture": "resnet\x1b[2J"}, ("has no architecture", "did you mean")),
    ("other_architecture", "the weights of another architecture", {"architecture": "alexnet"}, ("do not fit alexnet", "name weights of this network")),
    ("no_heads", "no heads", {"heads": {}}, (*DESCRIBED, "heads")),
    ("heads_list", "heads that are a list", {"heads": [1]}, (*DESCRIBED, "heads")),
    ("head_unknown", "a head that is a path", {"heads": {"../x": HEAD}}, (*DESCRIBED, "heads")),
    ("outputs", "more outputs than classes", {"heads": {"target": HEAD | {"outputs": 9}}}, (*DESCRIBED, "for 9 outputs")),
    ("hidden", "a head of a petabyte", {"heads": {"target": HEAD | {"hidden": [2**40]}}}, ("which its weights do not fill", "use a run folder as")),
    ("dropout", "a dropout of 3", {"heads": {"target": HEAD | {"dropout": 3}}}, (*DESCRIBED, "dropout")),
    ("classes", "classes that are numbers", {"heads": {"target": HEAD | {"classes": [0, 1]}}}, (*DESCRIBED, "classes")),
    ("crop", "a crop of 10⁹ pixels", {"preprocessing": PIXELS | {"crop": 10**9}}, (*DESCRIBED, "preprocessing.crop")),
    ("resize", "a size that is text", {"preprocessing": PIXELS | {"resize": "32"}}, (*DESCRIBED, "preprocessing.resize")),
    ("mean", "a mean that is empty", {"preprocessing": PIXELS | {"mean": []}}, (*DESCRIBED, "preprocessing.mean")),
    ("std", "a deviation of 0", {"preprocessing": PIXELS | {"std": [0, 1, 1]}}, (*DESCRIBED, "preprocessing.std")),
    ("interpolation", "an unknown interpolation", {"preprocessing": PIXELS | {"interpolation": "x"}},
     (*DESCRIBED, "preprocessing.interpolation")),
    ("other_pixels", "an unknown preprocessing", {"preprocessing": PIXELS | {"gamma": 2.2}},
     (*DESCRIBED, "preprocessing.gamma")),
    ("val", "scores that are a number", {"val": 3}, (*DESCRIBED, "val")),
]  # fmt: skip

for _name, _what, _spoil, _says in DAMAGE:
    add("run", _name, _what, 4, _says, partial(_spoiled, spoil=_spoil))
for _name, _what, _changes, _says in CLAIMS:
    add("run", f"says_{_name}", f"a manifest with {_what}".replace("with a manifest that", "that"), 4, _says,
        partial(with_manifest, **_changes))  # fmt: skip


@bad("run", "a folder that is not there", 4, "absent: is no run folder", "name one of those in runs/")
def absent(folder: Path) -> list[str]:
    return ["eval", str(folder / "absent")]


@bad("run", "a path of 5,000 characters", 4, "cannot be looked for: File name too long", "name a run folder")
def long_path(folder: Path) -> list[str]:
    return ["eval", 5000 * "a"]


def _on(folder: Path, spoil: Callable[[Path], object]) -> list[str]:
    spoil(folder / "m.csv")
    return ["eval", str(sound_run(folder)), "--data", str(folder / "m.csv")]


@bad("run", "a pipe in place of other data to score", 3, "m.csv: is not a regular file", "name a CSV file")
def data_pipe(folder: Path) -> list[str]:
    return _on(folder, os.mkfifo)


@bad("run", "an endless file in place of other data to score", 3, "m.csv: is not a regular file", "name a CSV file")
def data_endless(folder: Path) -> list[str]:
    return _on(folder, lambda path: path.symlink_to("/dev/zero"))


@bad("run", "other data to score with a line of a megabyte", 3, "m.csv:1: is longer than", "that is no manifest")
def data_long_line(folder: Path) -> list[str]:
    return _on(folder, lambda path: path.write_text("x" * 10**6))


@bad("run", "a spec.yaml that is no YAML", 2, "run/spec.yaml:2", "is not YAML")
def spec_damaged(folder: Path) -> list[str]:
    return _spoiled(folder, lambda run: _replaced(run / "spec.yaml", "a: [\n"))


@bad("run", "weights whose header is nested deep, with the right SHA-256", 4, "model.safetensors: cannot be read", FIX)
def header_deep(folder: Path) -> list[str]:
    return with_weights(folder, safetensors(b'{"a":' + b"[" * 100_000))


def _changed(change: Callable[[Any], Any]) -> bytes:
    import sound
    from safetensors.torch import load, save

    content = (sound.template() / WEIGHTS).read_bytes()
    return save({name: change(tensor) for name, tensor in load(content).items()})


@bad("run", "weights of NaN, with the right SHA-256", 4, "NaN or infinity in 52", "from before training diverged")
def weights_nan(folder: Path) -> list[str]:
    return with_weights(folder, _changed(lambda tensor: tensor * float("nan")))


@bad("run", "integers in place of weights, with the right SHA-256", 4, "of no floating-point numbers", "int32")
def weights_integer(folder: Path) -> list[str]:
    return with_weights(folder, _changed(lambda tensor: tensor.int()))


@bad(
    "run",
    "a summary.json nested 100,000 deep, of the run that a spec starts from",
    0,
    "warning: ",
    "it may have changed",
)
def summary_deep(folder: Path) -> list[str]:
    run = sound_run(folder)
    (run / "summary.json").write_text("[" * 100_000)
    (run / "environment.json").write_text("[" * 100_000)
    return scoring(run)


@bad(
    "run",
    "a class map with names that would clear the terminal",
    4,
    r"its classes (\x1b[2J",
    "not those of target.train",
)
def classes_escape(folder: Path) -> list[str]:
    words = with_manifest(folder, heads={"target": HEAD | {"classes": ["\x1b[2J", "\u202e1"]}})
    spec = checking_weights(folder, "none")[1]
    return ["finetune", spec, "--from", words[1]]


@bad("run", "a run of another architecture in the spec", 4, "run: holds a squeezenet1_1", "change backbone.name")
def backbone_differs(folder: Path) -> list[str]:
    sound_run(folder)
    words = checking_weights(folder, "run")
    spec = Path(words[1])
    spec.write_text(spec.read_text().replace("name: squeezenet1_1", "name: resnet18"))
    return words


@bad("run", "a manifest without preprocessing", 4, *DESCRIBED)
def says_no_preprocessing(folder: Path) -> list[str]:
    run = sound_run(folder)
    manifest = json.loads((run / MANIFEST).read_text())
    del manifest["preprocessing"]
    (run / MANIFEST).write_text(json.dumps(manifest))
    return scoring(run)
