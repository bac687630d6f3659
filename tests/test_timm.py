"""Networks of timm through the whole tool, and the tool without timm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from transferctl import checkpoint, pipeline, plugins, yamlfile
from transferctl.backbones import _timm_patches
from transferctl.backbones import timm as library
from transferctl.errors import CheckpointError, SpecError, Terminated
from transferctl.model import TransferModel, restore, state_for_checkpoint
from transferctl.preprocess import Preprocessing
from transferctl.reporting import attribution
from transferctl.spec import Spec

timm = pytest.importorskip("timm", reason="needs timm: pip install 'transferctl[timm]'")

Invoke = Callable[..., tuple[int, dict[str, Any]]]
VIT, RESNET = "test_vit", "test_resnet"  # timm's own, of 0.4 million parameters


def _spec(**backbone: object) -> Spec:
    return Spec.model_validate({
        "name": "t", "backbone": backbone, "preprocess": {"resize": 36, "crop": 32}, "target": {"train": "t"},
    })  # fmt: skip


@pytest.fixture
def written(spec: Path) -> Callable[..., Path]:
    """written(name): the tiny spec with this network of timm, from random weights."""

    def write(name: str) -> Path:
        spec.write_text(spec.read_text().replace("name: resnet18", f"name: timm/{name}"))
        return spec

    return write


# -- the verbs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "frozen"), [(VIT, "blocks.2"), (RESNET, "layer3")])
def test_extract_finetune_eval_predict(
    name: str, frozen: str, written: Callable[..., Path], tmp_path: Path, invoke: Invoke
) -> None:
    spec, runs = written(name), tmp_path / "runs"
    code, extracted = invoke("extract", spec, "--runs-dir", runs, "--set", "epochs=20")
    assert code == 0 and extracted["best"]["val"]["accuracy"] >= 0.8
    arguments = (
        "--runs-dir",
        runs,
        "--from",
        extracted["run"],
        "--set",
        f"frozen={frozen}",
        "--set",
        "optimizer.lr=0.01",
    )
    code, tuned = invoke("finetune", spec, *arguments)
    assert code == 0, tuned
    before, after = (load_file(Path(r["run"]) / "checkpoints/last/model.safetensors") for r in (extracted, tuned))
    tuned_backbone = restore(checkpoint.load(Path(tuned["run"]))).backbone
    stages = tuned_backbone.stages()
    kept = stages[: [stage.name for stage in stages].index(frozen) + 1]
    is_same = {
        key: torch.equal(before[f"backbone.{key}"], after[f"backbone.{key}"]) for key in tuned_backbone.net.state_dict()
    }
    assert all(same for key, same in is_same.items() if any(stage.owns(key) for stage in kept))
    assert not all(is_same.values())
    code, scored = invoke("eval", tuned["run"], "--runs-dir", runs)
    assert code == 0 and scored["accuracy"] == tuned["best"]["val"]["accuracy"]
    code, _ = invoke("predict", tuned["run"], tmp_path / "val", "--out", tmp_path / "p.csv")
    assert code == 0 and len((tmp_path / "p.csv").read_text().splitlines()) == 1 + 15


def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    written: Callable[..., Path], tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_resume import outcome, stopped_after, the_run

    spec, cut, whole = written(RESNET), tmp_path / "cut", tmp_path / "whole"
    assert stopped_after(7, Terminated(), monkeypatch, "finetune", spec, "--runs-dir", cut) == 143
    assert invoke("finetune", "--resume", the_run(cut))[0] == invoke("finetune", spec, "--runs-dir", whole)[0] == 0
    assert outcome(the_run(cut)) == outcome(the_run(whole))


@pytest.mark.parametrize("name", [VIT, RESNET])
def test_export_computes_what_the_model_does(
    name: str, written: Callable[..., Path], tmp_path: Path, invoke: Invoke
) -> None:
    _, answer = invoke("extract", written(name), "--runs-dir", tmp_path / "runs", "--set", "epochs=1")
    code, exported = invoke("export", answer["run"], "--format", "pt2")
    assert code == 0 and exported["parity"]["formats"]["pt2"]["parity"]
    code, refused = invoke("export", answer["run"], "--format", "torchvision")
    assert code == 2 and "it is for torchvision's networks, and this is one of timm" in refused["error"]


def test_init_writes_a_spec_for_a_network_of_timm(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    out = tmp_path / "new.yaml"
    code, _ = invoke("init", tmp_path / "train", "--backbone", f"timm/{VIT}", "--weights", "none", "--out", out)
    chosen = yamlfile.load(out).spec.backbone
    assert code == 0 and (chosen.library, chosen.name) == ("timm", VIT)
    code, refused = invoke("init", tmp_path / "train", "--backbone", "timm/test_vitt", "--out", tmp_path / "no.yaml")
    assert code == 2 and "--backbone timm/test_vitt: timm has no model" in refused["error"]


def test_a_stage_that_a_network_does_not_have_is_answered_with_those_it_has(
    written: Callable[..., Path], tmp_path: Path, invoke: Invoke
) -> None:
    arguments = (
        "--set",
        "frozen=layer3",
        "--set",
        "preprocess={resize: 224, crop: 224}",
        "--runs-dir",
        tmp_path / "runs",
    )
    code, answer = invoke("finetune", written("levit_128s"), *arguments)
    assert code == 2 and "levit_128s has no stage 'layer3'. It has features, pool" in answer["error"]


# -- weights and runs ---------------------------------------------------------------------------------


def test_a_file_with_its_classes_gives_a_named_head(tmp_path: Path) -> None:
    net = timm.create_model(VIT, num_classes=3, img_size=32)
    torch.save({"model": net.state_dict()}, tmp_path / "w.pth")
    (tmp_path / "c.json").write_text(json.dumps(["ant", "bee", "wasp"]))
    weights = {"path": str(tmp_path / "w.pth"), "classes": str(tmp_path / "c.json")}
    start = pipeline.load_backbone(_spec(name=f"timm/{VIT}", weights=weights))
    assert start.head_names == [("ant",), ("bee",), ("wasp",)]
    assert start.origin == f"{tmp_path / 'w.pth'} (taken from its entry `model`)"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert start.head is not None
        assert torch.equal(start.head.eval()(start.backbone.eval()(images)), net.eval()(images))


def test_random_weights_are_keyed_by_the_seed() -> None:
    prints = [
        pipeline.load_backbone(
            _spec(name=f"timm/{VIT}", weights="none").model_copy(update={"seed": seed})
        ).backbone.fingerprint()
        for seed in (0, 0, 1)
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_run_of_another_librarys_network_of_the_same_name_is_refused(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    _, answer = invoke("extract", spec, "--runs-dir", tmp_path / "runs", "--set", "epochs=1")
    with pytest.raises(
        CheckpointError, match=r"holds a network of torchvision, not a network of timm; change backbone.lib"
    ):
        pipeline.load_backbone(_spec(name="timm/resnet18", weights=answer["run"]))
    arguments = ("--from", answer["run"], "--set", "backbone.library=timm", "--runs-dir", tmp_path / "runs")
    code, refused = invoke("finetune", spec, *arguments)
    assert code == 4 and "holds a network of torchvision, not a network of timm" in refused["error"]


def test_a_checkpoint_keeps_the_published_head(tmp_path: Path) -> None:
    net = timm.create_model("test_resnet", num_classes=5)
    backbone, head = library.build("test_resnet", image_size=32, state=net.state_dict())
    model = TransferModel("timm", backbone, Preprocessing(36, 32), "classification")
    names = [(f"n{i}", f"class {i}") for i in range(5)]
    pipeline.keep_source_head(model, pipeline.Pretrained(backbone, head, names, model.preprocessing, ""))
    files = {"model.safetensors": state_for_checkpoint(model)}
    checkpoint.save(tmp_path, "step-000000", files, model.describe(), ("best",))
    restored = restore(checkpoint.load(tmp_path)).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert restored.output_names("source") == names
    with torch.no_grad():
        assert torch.equal(restored.heads["source"](restored.backbone(images)), net.eval()(images))


# -- sizes that patches do not divide -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        (
            "vit_small_patch14_dinov2",
            64,
            "sees 56 of 64 rows and columns, as its patches have 14 pixels; set 56 or 70",
        ),
        ("convnext_atto", 66, "sees 64 of 66 rows and columns, as its patches have 4 pixels; set 64 or 68"),
    ],
)
def test_a_crop_whose_border_would_be_left_out_is_refused(name: str, size: int, said: str) -> None:
    """An independent look: on timm's own network, the border that is named changes nothing."""
    sizes = {"img_size": size} if name.startswith("vit") else {}
    net = timm.create_model(name, num_classes=2, **sizes).eval()
    images = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    cut = images.clone()
    seen = int(said.split()[1])
    cut[..., seen:, :] = cut[..., seen:] = 0
    with torch.no_grad():
        assert torch.equal(net(images), net(cut))
    with pytest.raises(SpecError, match=rf"^preprocess\.crop: {name} {said}$"):
        library.build(name, image_size=size)


def test_a_crop_smaller_than_a_patch_is_answered_with_one_patch() -> None:
    assert _timm_patches.nearest(10, 14) == (14,) and _timm_patches.nearest(64, 14) == (56, 70)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        (VIT, 64),
        ("vit_small_patch14_dinov2", 56),
        ("davit_tiny", 65),  # pads
        ("pvt_v2_b0", 65),  # patches overlap
    ],
)
def test_a_crop_that_is_seen_whole_is_taken(name: str, size: int) -> None:
    assert library.build(name, image_size=size)[0].image_size == size


def test_a_network_that_pads_to_whole_patches_takes_any_crop(monkeypatch: pytest.MonkeyPatch) -> None:
    create, padding = timm.create_model, {"dynamic_img_size": True, "dynamic_img_pad": True}
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, **k, **padding))
    assert library.build("vit_tiny_patch16_224", image_size=40)[0].image_size == 40


# -- where a network looks ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "method"),
    [
        (RESNET, 96, "Grad-CAM on the output of layer4, 3×3 places"),
        ("swin_s3_tiny_224", 96, "Grad-CAM on the output of layers.3, 3×3 places"),
        (VIT, 64, "Gradient × activation of the tokens before blocks.5, 4×4 places"),
        ("test_vit3", 64, "Gradient × activation of the tokens before blocks.8, 4×4 places"),  # pools by attention
        ("vit_small_patch14_reg4_dinov2", 56, "Gradient × activation of the tokens before blocks.11, 4×4 places"),
        ("levit_128s", 224, None),
    ],
)
def test_evidence_is_shown_where_patches_have_a_place(name: str, size: int, method: str | None) -> None:
    torch.manual_seed(0)
    backbone, _ = library.build(name, image_size=size)
    model = TransferModel("timm", backbone, Preprocessing(size, size), "classification")
    model.add_new_head("target", ["a", "b"], hidden=(), dropout=0.0, seed=0)
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3)).astype(np.uint8)
    found = attribution.evidence(model, "target", [Image.fromarray(pixels)], np.array([[0, 1]]))
    assert (found and found.method) == method
    if found is not None:
        assert found.maps.max() == pytest.approx(1.0) and found.maps.min() >= 0


# -- the spec, and without timm -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "library_and_name"),
    [
        ("timm/resnet18.a1_in1k", ("timm", "resnet18.a1_in1k")),
        ("torchvision/resnet18", ("torchvision", "resnet18")),
        ("resnet18", ("torchvision", "resnet18")),
        ({"name": "timm/resnet18"}, ("timm", "resnet18")),
        ({"library": "timm", "name": "resnet18"}, ("timm", "resnet18")),
        ("other/resnet18", ("torchvision", "other/resnet18")),
    ],
)
def test_a_library_may_stand_before_the_name(backbone: object, library_and_name: tuple[str, str]) -> None:
    spec = Spec.model_validate({"name": "t", "backbone": backbone, "target": {"train": "t"}})
    assert (spec.backbone.library, spec.backbone.name) == library_and_name
    again = Spec.model_validate(
        yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json", by_alias=True, exclude_none=True)))
    )
    assert again.backbone == spec.backbone


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    for asks in (
        library.names,
        lambda: library.build("resnet18", image_size=32),
        lambda: library.published("resnet18", "DEFAULT"),
    ):
        with pytest.raises(
            SpecError, match=r"^backbone.library: timm must be installed: pip install 'transferctl\[timm\]'$"
        ):
            asks()


def test_listing_and_loading_plugins_imports_no_timm() -> None:
    lists = "import sys; from transferctl import plugins, spec; plugins.load('backbones', 'timm'); print('timm' in sys.modules)"
    assert "timm" in plugins.names("backbones")
    found = subprocess.run([sys.executable, "-c", lists], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
