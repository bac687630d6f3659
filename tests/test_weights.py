"""Weights come in whole, checked, and without running anything."""

from __future__ import annotations

import os
import urllib.error
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transferctl import weights
from transferctl.backbones import torchvision as plugin
from transferctl.errors import CheckpointError, SpecError


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
    assert list(weights.read(tmp_path / "w.pth")) == ["a"]


def test_safetensors_load_even_where_torchvision_wants_version_numbers(tmp_path: Path) -> None:
    save_file(plugin._network("mnasnet0_5", 5, 32).state_dict(), tmp_path / "w.safetensors")
    backbone, head = plugin.build("mnasnet0_5", image_size=32, state=weights.read(tmp_path / "w.safetensors"))
    assert head is not None
    assert backbone.feature_dim == 1280


def test_weights_without_a_head_give_no_head() -> None:
    state = {k: v for k, v in plugin._network("resnet18", 5, 32).state_dict().items() if not k.startswith("fc.")}
    assert plugin.build("resnet18", image_size=32, state=state)[1] is None


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
