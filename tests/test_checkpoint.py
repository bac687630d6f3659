"""Checkpoints are whole or absent, and a damaged one is noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from transferctl import checkpoint
from transferctl.errors import CheckpointError, ResourceError

STATE = {"w": torch.arange(6.0).view(2, 3)}


def test_what_is_saved_is_loaded_and_only_best_and_last_stay(tmp_path: Path) -> None:
    for step, links in ((1, ("best", "last")), (2, ("last",)), (3, ("last",))):
        checkpoint.save(tmp_path, step, {"w": STATE["w"] + step}, {"task": "t"}, links)
    assert torch.equal(checkpoint.load(tmp_path, "best").state["w"], STATE["w"] + 1)
    assert torch.equal(checkpoint.load(tmp_path, "last").state["w"], STATE["w"] + 3)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best", "last", "step-000001", "step-000003"}


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, STATE, {}, ("best", "last"))
    file = tmp_path / "checkpoints" / "best" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("failing_call", range(1, 5))
def test_a_full_disk_leaves_the_earlier_checkpoint_loadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    checkpoint.save(tmp_path, 1, STATE, {}, ("best", "last"))
    calls, real = [0], os.fsync

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError, match="free some space"):
        checkpoint.save(tmp_path, 2, STATE, {}, ("last",))
    assert torch.equal(checkpoint.load(tmp_path, "best").state["w"], STATE["w"])
    assert torch.equal(checkpoint.load(tmp_path, "last").state["w"], STATE["w"])


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint `best`"):
        checkpoint.load(tmp_path)


def test_whoever_may_read_the_run_may_read_its_weights(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, STATE, {}, ("last",))
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "checkpoints" / "last").iterdir()}
    assert modes["model.safetensors"] == modes["manifest.json"]
