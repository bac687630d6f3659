"""export: each file computes what the model computes, and says what it needs to be used without transferctl."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from torchvision import models
from typer.testing import CliRunner

from transferctl import checkpoint, exportfolder, images, lock, parity, plugins
from transferctl.cli import app
from transferctl.errors import ResourceError, SpecError
from transferctl.exportable import Exportable
from transferctl.model import TransferModel, restore
from transferctl.preprocess import Preprocessing, evaluation_image, short_side_needed

onnx, onnxruntime, _ = (  # every export here is made in all formats
    pytest.importorskip(name, reason=f"needs {name}: pip install 'transferctl[onnx]'")
    for name in ("onnx", "onnxruntime", "onnxscript")
)

Invoke = Callable[..., tuple[int, dict[str, Any]]]
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]

FORMATS = ["onnx", "pt2", "torchvision"]
CLASSES = ["ants", "bées", 'wasps "3"']
TEMPERATURE = 1.7
SPEC = """
name: tiny
backbone: {name: resnet18, weights: source}
preprocess: {resize: 36, crop: 32}
source:
  train: {dataset: digits, split: train, classes: [0, 1, 2, 3], per_class: 8}
  val: {dataset: digits, split: val, classes: [0, 1, 2, 3], per_class: 4}
pretrain: {epochs: 1, batch_size: 16, augment: none, optimizer: {name: sgd, lr: 0.01}}
target: {train: photos, val: 0.3}
epochs: 2
workers: 0
optimizer: {lr: 0.05}
"""


class Exported(NamedTuple):
    """run: with a fitted temperature; folder: all formats of it; answer: what --json said; program, converted: the
    graph as torch.export and torch.onnx have it, to be patched in where making it anew shows nothing."""

    run: Path
    folder: Path
    answer: dict[str, Any]
    program: Any
    converted: Any


@pytest.fixture(scope="module")
def run(call: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    for number, name in enumerate(CLASSES):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng([number, i]).integers(0, 56, (40, 60, 3)) + 66 * number
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / name / f"{i}.png")
    (folder / "spec.yaml").write_text(SPEC)
    path = Path(call("extract", folder / "spec.yaml", "--runs-dir", folder / "runs")["run"])
    best = (path / "checkpoints" / "best").resolve().name
    fitted = {"schema_version": 1, "checkpoint": best, "temperature": TEMPERATURE, "n": 9}
    (path / "calibration.json").write_text(json.dumps(fitted))
    return path


@pytest.fixture(scope="module")
def exported(call: Any, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder, convert, made = tmp_path_factory.mktemp("exported") / "model", torch.onnx.export, list[Any]()

    def kept(program: Any, *arguments: Any, **options: Any) -> Any:
        made.extend((program, convert(program, *arguments, **options)))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", kept)
        answer = call("export", run, "--out", folder)
    return Exported(run, folder, answer, *made)


@pytest.fixture
def made_already(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graphs are those of `exported`."""
    monkeypatch.setattr(Exportable, "program", exported.program)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: exported.converted)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def loaded(folder: Path, name: str) -> Predict:
    """uint8 [N, 3, H, W] -> logits, probabilities, by the libraries alone."""
    card = json.loads((folder / "model.json").read_text())
    if name == "onnx":
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(["logits", "probabilities"], {"images": pixels})
    if name == "pt2":
        network = torch.export.load(folder / "model.pt2").module()
        return lambda pixels: tuple(out.detach().numpy() for out in network(torch.from_numpy(pixels)))
    net = models.resnet18(num_classes=len(card["classes"]))
    net.load_state_dict(torch.load(folder / "model.pth", weights_only=True), strict=True)
    net.eval()
    mean, std = (np.array(card["preprocessing"][key], np.float32).reshape(3, 1, 1) for key in ("mean", "std"))

    def predict(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits = net(torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std)).numpy()
        return logits, softmax(logits / card["temperature"], axis=1)

    return predict


def of_the_model(run: Path, pixels: np.ndarray, domain: str = "target") -> np.ndarray:
    model = restore(checkpoint.load(run)).eval()
    with torch.inference_mode():
        logits: np.ndarray = model.heads[domain](model.features(torch.from_numpy(pixels))).numpy()
    return logits


# -- the files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_computes_what_the_model_does_for_any_number_of_images(exported: Exported, name: str) -> None:
    predict = loaded(exported.folder, name)
    for n in (1, 2, 5):
        pixels = np.random.default_rng(n).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)
        logits, probabilities = predict(pixels)
        expected = of_the_model(exported.run, pixels)
        assert logits == pytest.approx(expected, abs=1e-5)
        assert probabilities == pytest.approx(softmax(expected.astype(np.float64) / TEMPERATURE, axis=1), abs=1e-6)
        assert np.abs(expected).max() > 0.1


def test_every_file_carries_classes_preprocessing_and_temperature(exported: Exported) -> None:
    beside = json.loads((exported.folder / "model.json").read_text())
    assert beside["classes"] == CLASSES
    assert (beside["temperature"], beside["calibrated"], beside["head"]) == (TEMPERATURE, True, "target")
    assert (beside["preprocessing"]["resize"], beside["preprocessing"]["crop"]) == (36, 32)
    embedded = {"model.json": ""}
    torch.export.load(exported.folder / "model.pt2", extra_files=embedded)
    in_onnx = {entry.key: entry.value for entry in onnx.load(exported.folder / "model.onnx").metadata_props}
    formats = beside.pop("formats")
    assert json.loads(embedded["model.json"]) == json.loads(in_onnx["model.json"]) == beside
    assert formats["torchvision"]["arguments"] == {"num_classes": 3}


def test_a_file_names_no_path_of_the_machine_that_made_it(exported: Exported) -> None:
    for name in ("model.pt2", "model.onnx", "model.pth", "model.json"):
        found = (exported.folder / name).read_bytes()
        assert str(Path(__file__).parent.parent).encode() not in found and sys.prefix.encode() not in found, name


def test_the_answer_has_the_parity_of_each_format_on_the_runs_validation_images(exported: Exported) -> None:
    report = json.loads((exported.folder / "parity.json").read_text())
    assert exported.answer["parity"] == report
    assert (report["images"], report["images_of"], report["real_images"]) == (9, "target.val of the run", True)
    assert list(report["formats"]) == FORMATS
    for values in report["formats"].values():
        assert values["parity"] and values["same_class"] == 9
        assert 0 <= values["max_logit_difference"] <= 1e-4 >= values["max_probability_difference"]
        assert values["bytes"] == (exported.folder / values["file"]).stat().st_size


def test_the_default_goes_into_the_run_and_only_what_is_asked_for(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    result = CliRunner().invoke(app, ["export", str(copy), "--format", "torchvision", "--checkpoint", "last"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(copy / "export")
    names = ["model.json", "model.pth", "parity.json", "use_torchvision.py"]
    assert sorted(path.name for path in (copy / "export").iterdir()) == names
    assert not list(copy.glob(".*"))


def test_without_a_temperature_probabilities_are_the_plain_softmax_and_that_is_said(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    (copy / "calibration.json").unlink()
    result = CliRunner().invoke(app, ["export", str(copy), "--format", "torchvision"])
    assert "probabilities are softmax(logits): no temperature is known" in result.stderr
    assert json.loads((copy / "export" / "model.json").read_text())["temperature"] == 1


def test_the_source_head_has_its_own_classes_and_no_temperature(run: Path, tmp_path: Path, call: Any) -> None:
    answer = call("export", run, "--head", "source", "--out", tmp_path / "out", "--format", "torchvision")
    assert (answer["classes"], answer["calibrated"]) == (["0", "1", "2", "3"], False)
    assert answer["parity"]["images_of"] == "source.val of the run"
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    logits, _ = loaded(tmp_path / "out", "torchvision")(pixels)
    assert logits == pytest.approx(of_the_model(run, pixels, "source"), abs=1e-5)


# -- the scripts --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd_images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A large JPEG that lies on its side, transparency, a palette, grey, CMYK; high, wide and smaller than the crop."""
    folder = tmp_path_factory.mktemp("odd")
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 4), dtype=np.uint8), "RGBA")
    big = smooth.convert("RGB").resize((600, 450), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    big.save(folder / "turned.jpg", exif=exif)
    smooth.resize((41, 97)).save(folder / "transparent.png")
    smooth.convert("RGB").resize((50, 40)).quantize(16).save(folder / "palette.gif")
    smooth.convert("L").resize((33, 20)).save(folder / "grey.png")
    big.convert("CMYK").save(folder / "cmyk.jpg")
    return sorted(folder.iterdir())


ONE_AFTER_THE_OTHER = """
import json, runpy, sys
sys.modules["transferctl"] = None
scripts, sys.argv[1:] = json.loads(sys.argv[1]), sys.argv[2:]
for script in scripts:
    runpy.run_path(script, run_name="__main__")
    print()
"""


def answers_of(scripts: list[Path], paths: list[Path]) -> list[list[list[str]]]:
    """The lines of each, by an interpreter in which transferctl cannot be imported."""
    names = json.dumps([str(script) for script in scripts])
    command = [sys.executable, "-I", "-X", "utf8", "-c", ONE_AFTER_THE_OTHER, names, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    return [[line.split("\t") for line in part.splitlines()] for part in done.stdout.split("\n\n")[:-1]]


def expected_answers(run: Path, paths: list[Path], temperature: float) -> list[tuple[str, str, float]]:
    model = restore(checkpoint.load(run))
    at_least = short_side_needed(model.preprocessing, None)
    pixels = [evaluation_image(images.decode(p.read_bytes(), at_least=at_least), model.preprocessing) for p in paths]
    probabilities = softmax(of_the_model(run, torch.stack(pixels).numpy()).astype(np.float64) / temperature, axis=1)
    return [
        (str(path), model.classes["target"][int(row.argmax())], float(row.max()))
        for path, row in zip(paths, probabilities, strict=True)
    ]


def assert_same(found: list[list[str]], expected: list[tuple[str, str, float]]) -> None:
    assert [row[:2] for row in found] == [[path, name] for path, name, _ in expected]
    assert [float(row[2]) for row in found] == pytest.approx([p for *_, p in expected], abs=6e-5)  # of four digits


def test_scripts_predict_as_the_model_without_transferctl(exported: Exported, odd_images: list[Path]) -> None:
    scripts = [exported.folder / f"use_{name}.py" for name in FORMATS]
    expected = expected_answers(exported.run, odd_images, TEMPERATURE)
    for found in answers_of(scripts, odd_images):
        assert_same(found, expected)
    for script in scripts:
        code = script.read_text().split('"""')[2]
        assert "transferctl" not in code and len(re.findall(r"^(?!import|from|\s*$).", code, re.MULTILINE)) <= 24


@pytest.mark.parametrize(("name", "kind"), [("deep.png", np.uint16), ("floats.tiff", np.float32)])
def test_a_script_refuses_greys_that_it_would_cut_off(
    exported: Exported, tmp_path: Path, name: str, kind: type[np.generic]
) -> None:
    Image.fromarray(np.zeros((40, 40), kind)).save(tmp_path / name)
    command = [sys.executable, "-I", str(exported.folder / "use_onnx.py"), str(tmp_path / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = f"{tmp_path / name}: greys of 16 bits, and floats, are not read here; save it with 8 bits\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


# -- what is refused ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("made_already")
def test_a_file_that_computes_otherwise_exits_4_with_the_numbers_and_the_earlier_export_stays(
    exported: Exported, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(exported.folder, tmp_path / "out")
    before, real = content(out), parity.reference

    def shifted(exportable: Exportable, sample: parity.Sample) -> parity.Reference:
        found = real(exportable, sample)
        return parity.Reference(found.logits + np.float32(2e-4), found.probabilities)

    monkeypatch.setattr(parity, "reference", shifted)
    code, answer = invoke("export", exported.run, "--out", out, "--format", "torchvision", "--format", "pt2")
    assert code == 4
    assert "model.pth does not compute what the model does: logits differ by up to 2.0e-04" in answer["error"]
    assert answer["parity"]["formats"]["pt2"]["max_logit_difference"] == pytest.approx(2e-4, rel=0.05)
    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(("largest", "limit"), [(0.0, 1e-4), (50.0, 1e-4), (500.0, 1e-3)])
def test_logits_may_differ_by_1e_4_and_large_ones_by_two_millionths_of_the_largest(
    largest: float, limit: float
) -> None:
    sample = parity.Sample(np.zeros((3, 3, 2, 2), np.uint8), "")
    expected = parity.Reference(np.array([[0, -largest]] * 3), np.array([[0.9, 0.1]] * 3))

    def is_parity(logit: float, probability: float) -> bool:
        found = [[logit, -largest]], [[0.9 - probability, 0.1 + probability]]
        shares: bool = parity.compare(lambda p: tuple(np.repeat(x, len(p), 0) for x in found), sample, expected)[
            "parity"
        ]
        return shares

    assert is_parity(0.99 * limit, 0.99e-4)
    assert not is_parity(1.01 * limit, 0.0)
    assert not is_parity(0.0, 1.01e-4)
    assert parity.as_json(sample, expected, {})["logit_limit"] == pytest.approx(limit)


def test_numbers_that_are_not_finite_are_no_parity() -> None:
    sample = parity.Sample(np.zeros((3, 3, 2, 2), np.uint8), "")
    expected = parity.Reference(np.zeros((3, 2), np.float32), np.full((3, 2), 0.5))
    broken = parity.compare(
        lambda pixels: (np.full((len(pixels), 2), np.nan), np.full((len(pixels), 2), 0.5)), sample, expected
    )
    assert not broken["parity"]
    assert parity.compare(lambda p: (np.zeros((len(p), 2)), np.full((len(p), 2), 0.5)), sample, expected)["parity"]


@pytest.mark.usefixtures("made_already")
@pytest.mark.parametrize("name", FORMATS)
def test_a_full_disk_exits_5_and_leaves_the_earlier_export(
    exported: Exported, tmp_path: Path, invoke: Invoke, name: str
) -> None:
    out = shutil.copytree(exported.folder, tmp_path / "out")
    before = content(out)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limit[1]))
    try:
        code, answer = invoke("export", exported.run, "--out", out, "--format", name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 5, answer
    assert answer["error"].startswith(f"{out}: cannot write: File too large; choose another folder with --out")
    assert content(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_formats_that_cannot_be_made_are_left_out_with_the_reason_and_exit_2_where_they_are_asked_for(
    tmp_path: Path, spec: Path, call: Any, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--set", "head.hidden=[8]", "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    trained = call("extract", spec, *settings)["run"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    reasons = {
        "onnx": "onnxruntime must be installed: pip install 'transferctl[onnx]'",
        "torchvision": "its head has 2 layers with weights, where resnet18 has one",
    }
    for name, reason in reasons.items():
        code, answer = invoke("export", trained, "--format", name)
        assert (code, answer["error"]) == (2, f"--format {name}: {reason}")
    answer = call("export", trained)
    assert (answer["left_out"], list(answer["parity"]["formats"])) == (reasons, ["pt2"])


def test_where_the_data_is_gone_parity_is_measured_on_other_images_or_noise_and_that_is_said(
    run: Path, tmp_path: Path, call: Any
) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    (copy / "spec.yaml").write_text((copy / "spec.yaml").read_text().replace("photos", "gone"))
    report = call("export", copy, "--format", "torchvision")["parity"]
    assert (report["images_of"], report["real_images"]) == ("source.val of the run", True)
    (copy / "spec.yaml").write_text("{backbone: {name: resnet18, weights: none}, target: {train: gone}}")
    result = CliRunner().invoke(app, ["export", str(copy), "--format", "torchvision"])
    assert result.exit_code == 0 and "warning: parity is measured on noise; --images FOLDER" in result.stderr
    report = json.loads((copy / "export" / "parity.json").read_text())
    assert (report["images_of"], report["real_images"], report["images"]) == ("noise, seed 0", False, 32)


def test_parity_is_measured_on_the_images_of_a_folder(
    exported: Exported, odd_images: list[Path], tmp_path: Path, call: Any, invoke: Invoke
) -> None:
    arguments = ("export", exported.run, "--out", tmp_path / "out", "--format", "torchvision", "--images")
    assert call(*arguments, odd_images[0].parent)["parity"]["images"] == len(odd_images)
    code, answer = invoke(*arguments, tmp_path / "nowhere")
    assert (code, answer["error"]) == (
        3,
        f"--images {tmp_path}/nowhere: there is no such folder; name one that has images",
    )
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "broken.png").write_text("no image")
    os.mkfifo(tmp_path / "texts" / "pipe.png")
    code, answer = invoke(*arguments, tmp_path / "texts")
    assert code == 3 and "there is no readable image" in answer["error"]


def test_a_folder_with_other_files_is_never_replaced(
    exported: Exported, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    code, answer = invoke("export", exported.run, "--out", tmp_path, "--format", "torchvision")
    assert code == 2
    assert answer["error"].startswith(f"{tmp_path}: has what no export writes (thesis.tex), and would be replaced")
    code, answer = invoke("export", exported.run, "--out", tmp_path / "thesis.tex")
    assert (code, answer["error"]) == (2, f"{tmp_path}/thesis.tex: is no folder; name another one with --out DIR")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    code, answer = invoke("export", exported.run, "--out", ".")
    assert code == 2 and "is the working folder, which would be replaced; name one in it" in answer["error"]


@pytest.mark.parametrize("link", ["export", ".export.tmp"])
def test_a_link_in_a_run_folder_is_not_written_through(run: Path, tmp_path: Path, invoke: Invoke, link: str) -> None:
    copy = shutil.copytree(run, tmp_path / "run", symlinks=True)
    (tmp_path / "elsewhere" / "old").mkdir(parents=True)
    (copy / link).symlink_to(tmp_path / "elsewhere")
    code, answer = invoke("export", copy, "--format", "torchvision")
    assert code == 4 and f"{copy / link}: is a link, which is not written through" in answer["error"]
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["old"]


def test_what_a_process_left_that_was_killed_while_it_replaced_an_export_is_put_back(
    exported: Exported, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / ".out.tmp" / "new").mkdir(parents=True)
    (tmp_path / ".out.tmp" / "new" / "model.pt2").write_text("a part")
    shutil.copytree(exported.folder, tmp_path / ".out.tmp" / "old")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, limit[1]))
    try:
        code, _ = invoke("export", exported.run, "--out", tmp_path / "out", "--format", "torchvision")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert code == 5
    assert content(tmp_path / "out") == content(exported.folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder with an export in it."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.pth").write_text("earlier")
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["notes.txt", "model.pt2/mine.txt"])
def test_what_is_put_into_an_export_while_it_is_made_anew_is_kept(earlier: Path, name: str) -> None:
    with (
        pytest.raises(SpecError, match=r"has what no export writes \((notes.txt|model.pt2)\)"),
        exportfolder.replacing(earlier, {"model.pth", "model.pt2"}) as aside,
    ):
        (aside / "model.pth").write_text("new")
        (earlier / name).parent.mkdir(exist_ok=True)
        (earlier / name).write_text("mine")
    assert ((earlier / name).read_text(), (earlier / "model.pth").read_text()) == ("mine", "earlier")
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]


def test_a_file_that_takes_the_place_of_an_export_while_it_is_made_is_kept(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="is no folder"), exportfolder.replacing(tmp_path / "out", set()):
        (tmp_path / "out").write_text("mine")
    assert (tmp_path / "out").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("failing", ["rename", "fsync", "every rename"])
def test_a_disk_that_fails_while_an_export_is_replaced_leaves_the_earlier_one(
    earlier: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Where nothing can be renamed any more it waits aside, and the next export puts it back."""
    rename, sync = Path.rename, os.fsync

    def second_fails(path: Path, target: Path) -> Path:
        if path.name == "new" or (failing == "every rename" and path.name == "old"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    def fails_for_the_parent(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == earlier.parent.stat().st_ino:
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    with monkeypatch.context() as patch:
        if failing == "fsync":
            patch.setattr(os, "fsync", fails_for_the_parent)
        else:
            patch.setattr(Path, "rename", second_fails)
        with pytest.raises(ResourceError), exportfolder.replacing(earlier, {"model.pth"}) as aside:
            (aside / "model.pth").write_text("new")
    if failing == "every rename":
        with pytest.raises(RuntimeError), exportfolder.replacing(earlier, {"model.pth"}):
            raise RuntimeError
    assert content(earlier) == {"model.pth": b"earlier"}
    assert [path.name for path in earlier.parent.iterdir()] == ["out"]


def test_two_exports_to_one_folder_at_once_exit_7(exported: Exported, tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / ".out.tmp").mkdir()
    with lock.locked(tmp_path / ".out.tmp"):
        code, answer = invoke("export", exported.run, "--out", tmp_path / "out", "--format", "torchvision")
    assert code == 7, answer


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--format", "tflite"], 2, "--format tflite: must be one of onnx, pt2, torchvision"),
    (["--head", "both"], 2, "--head both: must be one of target, source"),
    (["--checkpoint", "first"], 2, "--checkpoint first: must be one of best, last"),
])  # fmt: skip
def test_choices_are_named(run: Path, invoke: Invoke, arguments: list[str], code: int, message: str) -> None:
    assert invoke("export", run, *arguments) == (code, {"status": "failed", "exit_code": code, "error": message})


def test_a_head_that_the_run_does_not_have_exits_4(spec: Path, tmp_path: Path, call: Any, invoke: Invoke) -> None:
    trained = call("extract", spec, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")["run"]
    code, answer = invoke("export", trained, "--head", "source")
    assert code == 4
    assert answer["error"] == f"{trained}: has no source head; it has target: leave out --head source"


# -- conformance: every format, the architectures of the promise beside ResNet-18 ------------------------


def random_model(architecture: str, size: int) -> TransferModel:
    """Random weights, BatchNorm's statistics those of its own activations, so that logits are of a trained one's size."""
    torch.manual_seed(0)
    backbone, _ = plugins.load("backbones", "torchvision").build(architecture, image_size=size, outputs=2)
    model = TransferModel("torchvision", backbone, Preprocessing(size, size), "classification")
    model.add_new_head("target", ["a", "b", "c"], hidden=[], dropout=0.1, seed=0)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None
    pixels = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (8, 3, size, size), dtype=np.uint8))
    with torch.inference_mode():
        model.train()
        model.features(pixels)
        model.eval()
        features = model.features(pixels).pooled
        linear = model.heads["target"].layers[-1]
        linear.weight.mul_(5 / max(float((features @ linear.weight.T).abs().max()), 1e-12))
    return model


@pytest.mark.parametrize(
    ("architecture", "size"),
    [("resnet50", 64), ("vgg11", 32), ("mobilenet_v3_small", 64), ("vit_b_16", 32)],
)
def test_all_formats_of_an_architecture_compute_what_it_computes(architecture: str, size: int, tmp_path: Path) -> None:
    model = random_model(architecture, size)
    card = {
        "architecture": architecture,
        "preprocessing": model.preprocessing.as_dict(),
        "temperature": 1.3,
        "formats": {},
    }
    exportable = Exportable(model, "target", 1.3, card, json.dumps(card))
    pixels = np.random.default_rng(0).integers(0, 256, (7, 3, size, size), dtype=np.uint8)
    sample = parity.Sample(pixels, "noise")
    expected = parity.reference(exportable, sample)
    assert 1 < np.abs(expected.logits).max() < 20
    for name in FORMATS:
        exporter = plugins.load("exporters", name)
        assert exporter.unfit(exportable) == ""
        card["formats"][name] = exporter.write(exportable, tmp_path)
        found = parity.compare(exporter.predictor(tmp_path, card), sample, expected)
        assert found["parity"] and found["same_class"] == 7, (name, found)
        (tmp_path / exporter.FILE).unlink()


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "maxvit_t"])
def test_a_new_head_that_is_no_last_layer_of_the_architecture_is_told(architecture: str) -> None:
    """A convolution and ReLU before the mean; a layer without bias."""
    size = {"maxvit_t": 224}.get(architecture, 64)
    backbone, own = plugins.load("backbones", "torchvision").build(architecture, image_size=size, outputs=2)
    model = TransferModel("torchvision", backbone, Preprocessing(size, size), "classification")
    model.add_new_head("target", ["a", "b"], hidden=[], dropout=0.0, seed=0)
    model.add_made_head("source", own, ["0", "1"], {"kind": "pretrained"})
    exporter = plugins.load("exporters", "torchvision")
    reason = f"its head is of another form than the last layer of {architecture}"
    assert exporter.unfit(Exportable(model, "target", 1.0, {}, "")) == reason
    assert exporter.unfit(Exportable(model, "source", 1.0, {}, "")) == ""


@pytest.mark.parametrize("architecture", ["googlenet", "inception_v3", "mnasnet0_5"])
def test_torchvisions_own_builder_loads_a_state_strictly(architecture: str, tmp_path: Path) -> None:
    """Less auxiliary classifiers, which only training uses; mnasnet heeds the version of a state."""
    model = random_model(architecture, 96)
    exporter = plugins.load("exporters", "torchvision")
    facts = exporter.write(Exportable(model, "target", 1.0, {}, ""), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = models.get_model(architecture, **facts["arguments"]).eval()
    net.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 96, 96), dtype=np.uint8)
    card = {"architecture": architecture, "preprocessing": model.preprocessing.as_dict(), "temperature": 1.0}
    logits, _ = exporter.predictor(tmp_path, card | {"formats": {"torchvision": facts}})(pixels)
    expected = parity.reference(Exportable(model, "target", 1.0, {}, ""), parity.Sample(pixels, ""))
    assert logits == pytest.approx(expected.logits, abs=1e-4)


@pytest.mark.real
def test_all_formats_and_a_script_agree_with_a_trained_network_on_photographs(
    tmp_path: Path, real_data: Path, call: Any
) -> None:
    (tmp_path / "ants-bees.yaml").write_text(f"""
backbone:
  name: resnet18
  weights: {{path: {real_data}/resnet18-tinyimagenet.pth, classes: {real_data}/tiny-imagenet-classes.json}}
preprocess: {{resize: 73, crop: 64}}
target: {{train: {{path: {real_data}/ants-bees/train, exclude: [imageNotFound.gif]}}}}
epochs: 5
""")
    trained = Path(call("extract", tmp_path / "ants-bees.yaml", "--runs-dir", tmp_path / "runs")["run"])
    (trained / "calibration.json").unlink(missing_ok=True)
    report = call("export", trained)["parity"]
    assert (report["images"], report["real_images"], list(report["formats"])) == (32, True, FORMATS)
    for values in report["formats"].values():
        assert max(values["max_logit_difference"], values["max_probability_difference"]) <= 1e-5
        assert values["same_class"] == 32
    paths = sorted((real_data / "ants-bees" / "val").glob("*/*.jpg"))[::10]
    expected = expected_answers(trained, paths, 1.0)
    assert_same(*answers_of([trained / "export" / "use_onnx.py"], paths), expected)
