"""torch.compile is used where it is measured to pay, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transferctl import compiling, frozen
from transferctl.backbones import torchvision as plugin
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.frozen import FrozenStages
from transferctl.model import TransferModel
from transferctl.preprocess import Preprocessing

EXAMPLE = torch.ones(4, 3, 8, 8)


@pytest.fixture
def rates(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """Fixes the measured images/s: of the fused network, then of the compiled one."""

    def fix(before: float, after: float) -> None:
        compiled = nn.Identity()
        monkeypatch.setattr(compiling, "_compiled", lambda *_: compiled)
        monkeypatch.setattr(
            compiling, "_images_per_second", lambda network, _: after if network is compiled else before
        )

    return fix


def decided(asked: str, n_images: int) -> compiling.Decision:
    return compiling.decide(asked, n_images, nn.ReLU(), nn.ReLU(), EXAMPLE, largest_error=10.0)


def test_it_compiles_where_the_images_make_up_for_it(rates: Callable[[float, float], None]) -> None:
    rates(100.0, 120.0)
    assert decided("auto", 11_000).network is None  # 110 s, of which a sixth would be saved: 18 s
    network, why, _ = decided("auto", 13_000)
    assert network is not None and "then 120 images/s against 100" in why
    assert decided("always", 1).network is not None


def test_what_compiling_makes_slower_is_not_used(rates: Callable[[float, float], None]) -> None:
    rates(35.0, 5.0)
    network, why, _ = decided("auto", 100_000)
    assert network is None and "5 images/s against 35: not used" in why


def test_without_a_compiler_the_fused_network_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any) -> Any:
        raise RuntimeError("no g++")

    monkeypatch.setattr(compiling, "_compiled", cannot)
    assert decided("always", 1) == (None, "cannot be compiled (RuntimeError: no g++)", True)


def stages_of(compile_: str) -> FrozenStages:
    torch.manual_seed(0)
    backbone, _ = plugin.build("squeezenet1_1", image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(32, 32), "classification")
    cpu = Compute(torch.device("cpu"), False, "")
    return FrozenStages(model, 4, cpu, Display(as_json=True), compile_=compile_)


def test_what_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "_compiled", lambda *_: lambda x: 1.01 * x)
    network, why, _ = compiling.decide("always", 1, nn.ReLU(), nn.ReLU(), EXAMPLE, largest_error=0.001)
    assert network is None and "off by 1.0%" in why


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_stages_compute_what_fused_ones_do_and_all_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Batches of 6 in chunks of 4: what is left over is filled up if it is at least half a chunk."""
    monkeypatch.setattr(frozen, "CHUNK_PIXELS", 4 * 32 * 32)
    monkeypatch.setattr(
        compiling, "_images_per_second", lambda network, _: 2.0 if isinstance(network, Counted) else 1.0
    )
    compile_ = compiling._compiled
    monkeypatch.setattr(compiling, "_compiled", lambda plain, example: Counted(compile_(plain, example)))
    stages, images = stages_of("always"), torch.arange(7 * 3 * 32 * 32).reshape(7, 3, 32, 32).to(torch.uint8)
    with torch.inference_mode():
        before = stages(images)
    key = stages.product.key
    stages.prepare(1, 6)
    compiled = stages._compiled
    assert isinstance(compiled, Counted) and "compiled in" in capsys.readouterr().err
    compiled.sizes.clear()
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(stages(images), before, rtol=1e-4, atol=1e-4)  # 4 and 3
    with torch.inference_mode():
        torch.testing.assert_close(stages(images[:5]), before[:5], rtol=1e-4, atol=1e-4)  # 4 and 1, which stays fused
    assert compiled.sizes == [4, 4, 4]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == frames, "nothing is compiled anew"
    assert stages.product.key == key


class Counted:
    """A network that remembers how many images it was given."""

    def __init__(self, network: Any):
        self.network, self.sizes = network, list[int]()

    def __call__(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.network(x)  # type: ignore[no-any-return]


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_extract_compiles_where_it_is_told_to(
    spec: Path, call: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what torch.compile returns, as it is."""
    is_compiled = lambda network: isinstance(network, torch._dynamo.OptimizedModule)  # noqa: E731
    monkeypatch.setattr(compiling, "_images_per_second", lambda network, _: 2.0 if is_compiled(network) else 1.0)
    words = ["--runs-dir", spec.parent / "runs", "--set", "backbone.name=squeezenet1_1", "--set", "device=cpu"]
    plain = call("extract", spec, *words, "--set", "compile=never", "--set", "cache=none")
    compiled = call("extract", spec, *words, "--set", "compile=always", "--set", "cache=none")
    assert compiled["best"]["val"]["loss"] == pytest.approx(plain["best"]["val"]["loss"], rel=1e-3)
    assert "s, then 2 images/s against 1\n" in (Path(compiled["run"]) / "log.txt").read_text()


def test_it_is_decided_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def decide(*how: Any) -> compiling.Decision:
        asked.append(how[1])
        return compiling.Decision(None, "not used")

    monkeypatch.setattr(compiling, "decide", decide)
    stages = stages_of("always")
    stages.prepare(10, 4)
    stages.prepare(20, 4)
    assert asked == [10]


def test_too_few_images_are_no_answer_for_more(
    rates: Callable[[float, float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validation split is small; the training that comes after it may make up for compiling."""
    rates(100.0, 120.0)
    stages = stages_of("auto")
    monkeypatch.setattr(compiling, "relative_error", lambda *_: 0.0)  # what `rates` calls compiled computes nothing
    stages.prepare(11_000, 64)
    assert stages._compiled is None
    stages.prepare(13_000, 64)
    assert stages._compiled is not None


def test_few_images_and_never_cost_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        pytest.fail("measured")

    monkeypatch.setattr(compiling, "decide", refuse)
    stages_of("auto").prepare(1000, 64)
    stages_of("never").prepare(10**9, 64)
