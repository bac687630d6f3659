"""torch.compile is used where it is measured to pay, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
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

EXAMPLE = torch.zeros(4, 3, 8, 8)


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
    return compiling.decide(asked, n_images, nn.ReLU(), nn.ReLU(), EXAMPLE)


def test_it_compiles_where_the_images_make_up_for_it(rates: Callable[[float, float], None]) -> None:
    rates(100.0, 120.0)
    assert decided("auto", 11_000).network is None  # 110 s, of which a sixth would be saved: 18 s
    network, why = decided("auto", 13_000)
    assert network is not None and "then 120 images/s against 100" in why
    assert decided("always", 1).network is not None


def test_what_compiling_makes_slower_is_not_used(rates: Callable[[float, float], None]) -> None:
    rates(35.0, 5.0)
    network, why = decided("auto", 100_000)
    assert network is None and "5 images/s against 35: not used" in why


def test_without_a_compiler_the_fused_network_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any) -> Any:
        raise RuntimeError("no g++")

    monkeypatch.setattr(compiling, "_compiled", cannot)
    assert decided("always", 1) == (None, "cannot be compiled (RuntimeError: no g++)")


def stages_of(compile_: str) -> FrozenStages:
    torch.manual_seed(0)
    backbone, _ = plugin.build("squeezenet1_1", image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(32, 32), "classification")
    cpu = Compute(torch.device("cpu"), False, "")
    return FrozenStages(model, 4, cpu, Display(as_json=True), compile_=compile_)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_stages_compute_what_fused_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "CHUNK_PIXELS", 4 * 32 * 32)
    ran: list[int] = []

    def decide(asked: str, n_images: int, plain: nn.Module, fused: Any, example: Tensor) -> compiling.Decision:
        network = compiling._compiled(plain, example)
        return compiling.Decision(lambda x: ran.append(len(x)) or network(x), "compiled")

    monkeypatch.setattr(compiling, "decide", decide)
    stages, images = stages_of("always"), torch.arange(6 * 3 * 32 * 32).reshape(6, 3, 32, 32).to(torch.uint8)
    before = stages(images)
    key = stages.product.key
    stages.prepare(1)
    torch.testing.assert_close(stages(images), before, rtol=1e-4, atol=1e-4)
    assert ran == [4], "what is left over, of another shape, is not compiled for"
    assert stages.product.key == key


def test_few_images_and_never_cost_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        pytest.fail("measured")

    monkeypatch.setattr(compiling, "decide", refuse)
    stages_of("auto").prepare(1000)
    stages_of("never").prepare(10**9)
