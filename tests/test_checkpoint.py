"""Checkpoints are whole or absent, and a damaged one is noticed."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch

from transferctl import checkpoint
from transferctl.errors import CheckpointError, ResourceError

STATE = {"w": torch.arange(6.0).view(2, 3)}


def _save(run: Path, step: int, links: tuple[str, ...] = (), *, scored: bool = True, training: bool = False) -> str:
    """A checkpoint whose one weight tells its step."""
    files = {"model.safetensors": {"w": STATE["w"] + step}}
    files |= {"state.safetensors": {"optimizer.0.momentum_buffer": STATE["w"] * step}} if training else {}
    name = checkpoint.name_of(step, scored=scored)
    checkpoint.save(run, name, files, {"step": step, **({"training": {}} if training else {})}, links)
    return name


def test_what_is_saved_is_loaded_and_only_best_and_last_stay(tmp_path: Path) -> None:
    for step, links in ((1, ("best", "last")), (2, ("last",)), (3, ("last",))):
        _save(tmp_path, step, links)
    assert torch.equal(checkpoint.load(tmp_path, "best").state["w"], STATE["w"] + 1)
    assert torch.equal(checkpoint.load(tmp_path, "last").state["w"], STATE["w"] + 3)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {"best", "last", "step-000001", "step-000003"}


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    _save(tmp_path, 1, ("best", "last"))
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
    _save(tmp_path, 1, ("best", "last"))
    calls, real = [0], os.fsync

    def fsync(handle: int) -> None:
        calls[0] += 1
        if calls[0] == failing_call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ResourceError, match="free some space"):
        _save(tmp_path, 2, ("last",))
    assert torch.equal(checkpoint.load(tmp_path, "best").state["w"], STATE["w"] + 1)
    assert torch.equal(checkpoint.load(tmp_path, "last").state["w"], STATE["w"] + 1)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no run folder"):
        checkpoint.load(tmp_path)


def test_whoever_may_read_the_run_may_read_its_weights(tmp_path: Path) -> None:
    _save(tmp_path, 1, ("last",))
    modes = {path.name: path.stat().st_mode for path in (tmp_path / "checkpoints" / "last").iterdir()}
    assert modes["model.safetensors"] == modes["manifest.json"]


def test_two_that_training_can_go_on_from_stay_besides_those_that_links_name(tmp_path: Path) -> None:
    _save(tmp_path, 1, ("best", "last"), training=True)
    for step in (2, 3, 4):
        _save(tmp_path, step, scored=False, training=True)
    kept = {p.name for p in (tmp_path / "checkpoints").iterdir() if not p.is_symlink()}
    assert kept == {"step-000001", "step-000003-unscored", "step-000004-unscored"}


def test_training_goes_on_from_the_newest_that_is_whole_and_says_loudly_what_is_not(tmp_path: Path) -> None:
    _save(tmp_path, 2, ("last",), training=True)
    _save(tmp_path, 3, scored=False, training=True)
    _save(tmp_path, 3, ("last",), training=True)  # of the same step, but scored: the newer one
    said: list[str] = []
    assert next(checkpoint.resumable(tmp_path, said.append))[0].path.name == "step-000003"
    assert not said
    state = tmp_path / "checkpoints" / "step-000003" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    assert next(checkpoint.resumable(tmp_path, said.append))[0].path.name == "step-000003-unscored"
    assert len(said) == 1 and "step-000003 cannot be used, falling back" in said[0] and "damaged" in said[0]


def test_the_manifest_is_written_after_the_files_that_it_vouches_for_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail at any instant: in the order of the calls each file is synced before the manifest is, that
    before the folder has its name, and that before a link points at it."""
    calls: list[str] = []
    real = os.fsync, Path.rename, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda h: (calls.append(f"sync {Path(f'/proc/self/fd/{h}').readlink().name}"), real[0](h))
    )
    monkeypatch.setattr(Path, "rename", lambda a, b: (calls.append(f"rename {Path(b).name}"), real[1](a, b))[1])
    monkeypatch.setattr(Path, "replace", lambda a, b: (calls.append(f"link {Path(b).name}"), real[2](a, b))[1])
    _save(tmp_path, 1, ("last",), training=True)
    assert calls == [
        "sync model.safetensors", "sync state.safetensors", "sync manifest.json", "sync .step-000001.tmp",
        "rename step-000001", "sync checkpoints", "link last", "sync checkpoints",
    ]  # fmt: skip


def test_a_checkpoint_that_is_there_whole_is_only_linked_and_a_damaged_one_is_written_again(tmp_path: Path) -> None:
    name = _save(tmp_path, 1, ("last",))
    weights = tmp_path / "checkpoints" / name / "model.safetensors"
    written = weights.stat().st_mtime_ns, weights.stat().st_ino
    _save(tmp_path, 1, ("best",))
    assert (weights.stat().st_mtime_ns, weights.stat().st_ino) == written
    weights.write_bytes(b"damaged")
    _save(tmp_path, 1, ("best",))
    assert torch.equal(checkpoint.load(tmp_path, "best").state["w"], STATE["w"] + 1)


def test_a_manifest_names_no_files_outside_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / _save(tmp_path, 1, ("last",), training=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["../../secret"] = {"sha256": "0" * 64, "bytes": 1}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"files that are none of a checkpoint \(../../secret\)"):
        list(checkpoint.resumable(tmp_path, print))
    assert (folder / "state.safetensors").exists()


@pytest.mark.parametrize("schema", [1, 3])
def test_what_another_version_saved_is_told_and_left_as_it_is(schema: int, tmp_path: Path) -> None:
    manifest = tmp_path / "checkpoints" / _save(tmp_path, 1, ("last",), training=True) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', f'"schema_version": {schema}'))
    with pytest.raises(CheckpointError, match="version"):
        list(checkpoint.resumable(tmp_path, print))


def test_what_cannot_be_read_now_is_told_and_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1, ("last",), training=True)

    def refuse(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoint, "_sha256", refuse)
    with pytest.raises(CheckpointError, match="Input/output error"):
        list(checkpoint.resumable(tmp_path, print))


def test_the_best_epoch_of_what_training_can_go_on_from_stays(tmp_path: Path) -> None:
    """Should the newest be damaged, the one before it needs the weights that were best then."""
    for step, best in ((4, 4), (8, 4), (12, 12)):
        files = {"model.safetensors": STATE, "state.safetensors": STATE}
        manifest = {"step": step, "training": {"best": {"step": best}}}
        links = ("best", "last") if step == best else ("last",)
        checkpoint.save(tmp_path, checkpoint.name_of(step), files, manifest, links)
    assert {p.name for p in (tmp_path / "checkpoints").glob("step-*")} == {"step-000004", "step-000008", "step-000012"}
