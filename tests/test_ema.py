"""The running mean of the weights against torch's own averaging."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from transferctl.ema import Ema


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2)
    )


def _decay_by_hand(decay: float, step: int) -> float:
    return min(decay, (1 + step) / (10 + step))


def _averaged_as_torch_does(network: nn.Module, decay: float) -> AveragedModel:
    """Begins, as ours does, with the weights that there are: its first update is the copy."""

    def mean(averaged: Tensor, live: Tensor, updates: Tensor) -> Tensor:
        now = _decay_by_hand(decay, int(updates) - 1)
        return now * averaged + (1 - now) * live

    averaged = AveragedModel(network, avg_fn=mean, use_buffers=True)
    averaged.update_parameters(network)
    return averaged


def _steps(network: nn.Module, steps: int, after: list) -> None:
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        network(torch.randn(5, 3, 8, 8)).square().mean().backward()
        optimizer.step()
        for call in after:
            call()


def _floats(module: nn.Module) -> dict[str, Tensor]:
    return {name: t.detach().clone() for name, t in module.state_dict().items() if t.is_floating_point()}


@pytest.mark.parametrize("decay", [0.05, 0.5, 0.999])
def test_the_average_is_torchs_over_the_same_decays_running_statistics_included(decay: float) -> None:
    network = _network()
    theirs = _averaged_as_torch_does(network, decay)
    ema = Ema(network, [name for name, _ in network.named_parameters()], decay)
    _steps(network, 30, [ema.update, lambda: theirs.update_parameters(network)])
    live = _floats(network)
    with ema.applied():
        ours = _floats(network)
    for name, tensor in _floats(theirs.module).items():
        torch.testing.assert_close(ours[name], tensor, msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(ours[name], live[name])


def test_early_on_the_average_follows_and_later_it_has_the_decay_asked_for() -> None:
    """A weight that is 0 at the start and 1 from the first step on: 1 − the mean is the product of the decays."""
    cell = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        cell.weight.fill_(0.0)
    ema = Ema(cell, ["weight"], 0.9)
    with torch.no_grad():
        cell.weight.fill_(1.0)
    left = 1.0
    for step in range(120):
        ema.update()
        left *= (1 + step) / (10 + step) if step < 80 else 0.9  # (1 + 80)/(10 + 80) = 0.9
        with ema.applied():
            assert 1 - cell.weight.item() == pytest.approx(left, abs=1e-6)


@pytest.mark.parametrize("fails", [False, True])
def test_after_it_was_applied_the_models_own_weights_are_back_bit_for_bit(fails: bool) -> None:
    network = _network()
    ema = Ema(network, [name for name, _ in network.named_parameters()], 0.9)
    _steps(network, 3, [ema.update])
    live, means = _floats(network), []
    for _ in range(2):
        try:
            with ema.applied():
                means.append(_floats(network))
                if fails:
                    raise KeyboardInterrupt
        except KeyboardInterrupt:
            assert fails
        assert all(torch.equal(tensor, live[name]) for name, tensor in _floats(network).items())
    assert all(torch.equal(tensor, means[1][name]) for name, tensor in means[0].items())
    ema.settle()
    assert all(torch.equal(tensor, means[0][name]) for name, tensor in _floats(network).items())


def test_the_optimizer_goes_on_from_the_models_own_weights() -> None:
    """Applied between any two steps or never: the training is the same, bit for bit."""
    ends = []
    for looks in (False, True):
        network = _network()
        ema = Ema(network, [name for name, _ in network.named_parameters()], 0.9)

        def look(ema: Ema = ema, looks: bool = looks) -> None:
            ema.update()
            if looks:
                with ema.applied():
                    pass

        torch.manual_seed(1)
        _steps(network, 5, [look])
        ends.append(_floats(network))
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())


def test_what_is_frozen_keeps_its_bits_in_the_average() -> None:
    network = _network()
    network[0].requires_grad_(False)
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    before = _floats(network)
    ema = Ema(network, trained, 0.9)
    _steps(network, 5, [ema.update])
    with ema.applied():
        after = _floats(network)
    assert {name for name in before if torch.equal(before[name], after[name])} == {"0.weight"}


def test_statistics_that_stand_still_keep_their_bits_in_the_average() -> None:
    network = _network().eval()
    network[1].running_mean.uniform_()
    before = _floats(network)
    ema = Ema(network, [name for name, _ in network.named_parameters()], 0.9)
    _steps(network, 5, [ema.update])
    with ema.applied():
        after = _floats(network)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"1.running_mean", "1.running_var"}
