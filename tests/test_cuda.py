"""What a CUDA GPU computes, where there is one: in fp32 the same as the CPU, but for the order of sums."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from transferctl.contracts import Batch
from transferctl.errors import Terminated

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")

Call = Callable[..., dict[str, Any]]


def _weights(answer: dict[str, Any]) -> torch.Tensor:
    tensors = load_file(Path(answer["run"]) / "checkpoints" / "last" / "model.safetensors")
    return torch.cat([tensor.float().flatten() for tensor in tensors.values()])


def _run(call: Call, verb: str, spec: Path, *settings: str) -> torch.Tensor:
    words = [word for setting in settings for word in ("--set", setting)]
    return _weights(call(verb, spec, *words, "--runs-dir", spec.parent / "runs"))


@pytest.mark.parametrize(
    ("verb", "settings"),
    [
        ("extract", []),
        ("extract", ["head={solver: lbfgs}"]),
        ("finetune", ["frozen=layer3", "augment=none"]),
        ("finetune", ["frozen=layer3"]),
        ("finetune", ["frozen=none", "epochs=1", "optimizer.lr=0.0001"]),  # more, and rounding alone moves it by 10 %
    ],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_weights_end_where_those_of_the_cpu_do(
    verb: str, settings: list[str], workers: int, spec: Path, call: Call
) -> None:
    shared = ["precision=fp32", "optimizer.lr=0.01", *settings, f"workers={workers}"]
    on_cpu = _run(call, verb, spec, *shared, "device=cpu")
    on_gpu = _run(call, verb, spec, *shared, "device=cuda")
    assert float((on_gpu - on_cpu).norm() / on_cpu.norm()) < 0.01


def test_a_run_that_is_stopped_and_resumed_ends_with_the_same_bits(
    spec: Path, tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_resume import outcome, stopped_after, the_run

    arguments = ["finetune", spec, "--set", "device=cuda", "--set", "workers=2", "--set", "ema=0.9", "--runs-dir"]
    assert stopped_after(7, Terminated(), monkeypatch, *arguments, tmp_path / "runs") == 143
    run = the_run(tmp_path / "runs")
    call("finetune", "--resume", run)
    call(*arguments, tmp_path / "whole")
    assert outcome(run) == outcome(the_run(tmp_path / "whole"))


def test_a_batch_is_pinned_and_fetched() -> None:
    batch = Batch(torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2), torch.tensor([1]), names=("a",))
    pinned = batch.pin_memory()
    assert pinned.inputs.is_pinned() and pinned.labels.is_pinned() and pinned.names == ("a",)
    moved = pinned.to(torch.device("cuda"))
    assert moved.inputs.is_cuda and torch.equal(moved.inputs.cpu(), batch.inputs)
