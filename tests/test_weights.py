"""Weights come in whole, checked, and without running anything."""

from __future__ import annotations

import json
import os
import urllib.error
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transferctl import checkpoint, data, errors, pipeline, starting, weights
from transferctl.backbones import torchvision as plugin
from transferctl.datasets import folder
from transferctl.display import Display
from transferctl.errors import CheckpointError, DataError, SpecError
from transferctl.model import TransferModel, restore, state_for_checkpoint
from transferctl.preprocess import Preprocessing
from transferctl.spec import Spec


def _spec(path: Path, **changes: object) -> Spec:
    """squeezenet1_1 from this file."""
    settings = {"name": "squeezenet1_1", "weights": {"path": str(path), **changes}}
    return Spec.model_validate({
        "name": "w", "backbone": settings, "preprocess": {"resize": 36, "crop": 32}, "target": {"train": "t"},
    })  # fmt: skip


class _Canary:
    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_nothing_in_a_malicious_pickle_runs(tmp_path: Path) -> None:
    torch.save({"fc.weight": _Canary(str(tmp_path / "canary"))}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="nothing in it was run"):
        weights.read(tmp_path / "evil.pth")
    assert not (tmp_path / "canary").exists()


def test_what_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    state = plugin._network("resnet18", 5, 32).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2)
    state["extra"] = torch.zeros(1)
    del state["conv1.weight"]
    with pytest.raises(CheckpointError) as caught:
        plugin.build("resnet18", image_size=32, state=state, label="x.pth")
    text = str(caught.value)
    assert "1 missing (conv1.weight)" in text
    assert "1 unexpected (extra)" in text
    assert "layer1.0.conv1.weight is 1×2, not 64×64×3×3" in text


def test_wrappers_and_prefixes_of_training_scripts_come_off(tmp_path: Path) -> None:
    state = {"module.a": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "w.pth")
    read = weights.read(tmp_path / "w.pth")
    assert list(read.state) == ["a"]
    assert read.changes == ("taken from its entry `state_dict`", "prefix `module.` removed")


def test_safetensors_load_even_where_torchvision_wants_version_numbers(tmp_path: Path) -> None:
    save_file(plugin._network("mnasnet0_5", 5, 32).state_dict(), tmp_path / "w.safetensors")
    backbone, head = plugin.build("mnasnet0_5", image_size=32, state=weights.read(tmp_path / "w.safetensors").state)
    assert head is not None
    assert backbone.feature_dim == 1280


def test_weights_without_a_head_give_no_head() -> None:
    state = {k: v for k, v in plugin._network("resnet18", 5, 32).state_dict().items() if not k.startswith("fc.")}
    assert plugin.build("resnet18", image_size=32, state=state)[1] is None


@pytest.mark.parametrize(
    ("prefix", "left_out", "said"),
    [
        ("module.", "classifier.1.", " (taken from its entry `model`; prefix `module.` removed; no head)"),
        ("", "none", " (taken from its entry `model`)"),
    ],
)
def test_where_the_backbone_comes_from_says_what_was_done_to_the_file(
    tmp_path: Path, prefix: str, left_out: str, said: str
) -> None:
    state = plugin._network("squeezenet1_1", 5, 32).state_dict()
    state = {prefix + name: tensor for name, tensor in state.items() if not name.startswith(left_out)}
    torch.save({"model": state}, tmp_path / "w.pth")
    assert pipeline.load_backbone(_spec(tmp_path / "w.pth")).origin == f"{tmp_path / 'w.pth'}{said}"


def test_plain_weights_are_called_by_their_path_alone(tmp_path: Path) -> None:
    torch.save(plugin._network("squeezenet1_1", 5, 32).state_dict(), tmp_path / "w.pth")
    assert pipeline.load_backbone(_spec(tmp_path / "w.pth")).origin == str(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_an_empty_file_is_called_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"is empty \(0 bytes\); copy or download it again$"):
        weights.read(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("w.pth", b"hello world\n", "KeyError: 101"),
        ("w.pth", b"PK\x03\x04 cut", "RuntimeError: PytorchStreamReader failed"),
        ("w.safetensors", b"hello world\n", "SafetensorError: Error while deserializing header"),
    ],
)
def test_what_cannot_be_parsed_is_refused_with_the_parsers_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    message = rf"is no file that torch.save or safetensors wrote, or is damaged \({reason}"
    with pytest.raises(CheckpointError, match=message):
        weights.read(tmp_path / name)


def test_a_lack_of_memory_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")

    (tmp_path / "w.pth").write_bytes(b"x")
    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RuntimeError) as caught:
        weights.read(tmp_path / "w.pth")
    assert errors.ending(caught.value)[0] == errors.ExitCode.RESOURCES


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf, 1e300])
def test_weights_that_are_not_finite_in_single_precision_are_refused(tmp_path: Path, number: float) -> None:
    broken = {f"{i}.weight": torch.tensor([0.0, number], dtype=torch.float64) for i in range(5)}
    torch.save({"sound": torch.ones(2), "count": torch.tensor(3), **broken}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"infinity in 5 tensors \(0.weight, 1.weight, 2.weight and 2 more\)"):
        weights.read(tmp_path / "w.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("tensor", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"])
def test_tensors_without_plain_numbers_are_no_weights(tmp_path: Path, tensor: torch.Tensor) -> None:
    torch.save({"a": tensor}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match="is not a state dict"):
        weights.read(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"])
def test_low_precision_weights_are_looked_through_too(tmp_path: Path, name: str) -> None:
    numbers = torch.tensor([1.0, torch.nan])
    for path, values in ((tmp_path / "nan.pth", numbers), (tmp_path / "sound.pth", numbers[:1])):
        torch.save({"a": values.to(getattr(torch, name))}, path)
    assert list(weights.read(tmp_path / "sound.pth").state) == ["a"]
    with pytest.raises(CheckpointError, match=r"in 1 tensor \(a\)"):
        weights.read(tmp_path / "nan.pth")


@pytest.mark.parametrize(
    ("name", "hint"),
    [("default", "did you mean DEFAULT? "), ("imagenet1k_v2", "did you mean IMAGENET1K_V2? "), ("w.pth", "write ")],
)
def test_a_published_name_in_small_letters_is_suggested_in_capitals(tmp_path: Path, name: str, hint: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        weights.read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name}: no such weights; {hint}")


def test_classes_are_read_from_json_and_text(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('[{"id": "n1", "name": "crane"}, {"id": "n2", "name": "crane"}, "ant"]')
    (tmp_path / "c.txt").write_text("ant\n\n bee \n")
    assert weights.read_classes(tmp_path / "c.json") == [("n1", "crane"), ("n2", "crane"), ("ant",)]
    assert weights.read_classes(tmp_path / "c.txt") == [("ant",), ("bee",)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("c.txt", "a\n" * 200 + "b\nc\nc"), ("c.json", json.dumps(["a", "c", "c", {"id": "a", "name": "b"}]))],
)
def test_classes_that_cannot_be_told_apart_are_named(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name}: several classes are called a, c; tell them apart"):
        weights.read_classes(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("c.json", '"ant"'), ("c.json", '{"0": "ant", "1": "bee"}'), ("c.json", "[]"), ("c.json", "[1]"), ("c.txt", "\n")],
)
def test_what_is_no_list_of_classes_is_refused(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match="is no list of classes"):
        weights.read_classes(tmp_path / name)


_NAMES = [("n0", "ant"), ("n1", "crane"), ("n2", "crane")]


def _aligned(source: Path) -> data.DomainData:
    """The data of this folder through a head with the outputs _NAMES."""
    backbone, head = plugin.build("squeezenet1_1", image_size=32, outputs=len(_NAMES))
    assert head is not None
    model = TransferModel("torchvision", backbone, Preprocessing(36, 32), "classification")
    model.add_made_head("source", head, [names[0] for names in _NAMES], {"kind": "pretrained", "named": True})
    domain = data.load_domain(folder.Settings(path=str(source)), 0.5, None, 0, domain="source")
    return starting.align_source(domain, model, _NAMES, 0, Display())[0]


def test_source_folders_go_to_the_outputs_of_their_id_or_name(image_folder: Callable[..., Path]) -> None:
    aligned = _aligned(image_folder("source", ant=2, n2=2))
    assert (aligned.classes, sorted(aligned.train.labels)) == (("n0", "n1", "n2"), [0, 2])


def test_a_later_stage_finds_source_folders_by_every_name_that_the_weights_gave(tmp_path: Path) -> None:
    backbone, head = plugin.build("squeezenet1_1", image_size=32, outputs=len(_NAMES))
    model = TransferModel("torchvision", backbone, Preprocessing(36, 32), "classification")
    pipeline.keep_source_head(model, pipeline.Pretrained(backbone, head, _NAMES, model.preprocessing, ""))
    checkpoint.save(
        tmp_path, "step-000000", {"model.safetensors": state_for_checkpoint(model)}, model.describe(), ("best",)
    )
    restored = restore(checkpoint.load(tmp_path))
    assert (restored.classes["source"], restored.output_names("source")) == (("n0", "n1", "n2"), _NAMES)
    called = starting.outputs_called(["ant", "n2"], restored.output_names("source"), "source.train")
    assert called is not None and called.tolist() == [0, 2]


def test_a_source_folder_whose_name_two_outputs_share_is_an_error(image_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="several outputs of the pretrained head are called crane; name those folders"):
        _aligned(image_folder("source", ant=2, crane=2))


def test_without_network_the_error_says_which_file_to_put_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(CheckpointError) as caught:
        plugin.published("resnet18", "DEFAULT")
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in str(caught.value)
    assert "TORCH_HOME" in str(caught.value)


def test_a_cached_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="not f37072fd as its name says"):
        plugin.published("resnet18", "DEFAULT")


def test_an_unknown_published_name_suggests_one() -> None:
    with pytest.raises(SpecError, match="did you mean IMAGENET1K_V1"):
        plugin.published("resnet18", "IMAGENET1K_V2")


def test_a_size_that_the_architecture_cannot_take_is_one_clear_error() -> None:
    with pytest.raises(SpecError, match="inception_v3 cannot take 32×32 pixels"):
        plugin.build("inception_v3", image_size=32)
