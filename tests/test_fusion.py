"""Folded and fused networks compute what the plain ones do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from transferctl import fusion


def with_statistics(network: nn.Module) -> nn.Module:
    """Random weights and running statistics, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean):
                assert tensor is not None
                tensor.data.normal_(generator=generator)
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


class Net(nn.Module):
    """Convolutions a, b, c with a BatchNorm each; how they are put together is given."""

    def __init__(self, put_together: Callable[[Net, Tensor], Tensor]):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1, bias=bias) for bias in (False, True, False))
        self.norm_a, self.norm_b, self.norm_c = (nn.BatchNorm2d(3) for _ in range(3))
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6()
        self._put_together = put_together

    def forward(self, x: Tensor) -> Tensor:
        return self._put_together(self, x)


WAYS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "convolution, norm, relu": lambda net, x: net.relu(net.norm_a(net.a(x))),
    "functional relu": lambda net, x: F.relu(net.norm_b(net.b(x))),
    "another activation": lambda net, x: net.relu6(net.norm_a(net.a(x))),
    "residual": lambda net, x: net.relu(net.norm_b(net.b(net.relu(net.norm_a(net.a(x))))) + x),
    "residual through a convolution that comes after": lambda net, x: net.relu(
        net.norm_b(net.b(x)) + net.norm_c(net.c(x))
    ),
    "residual to itself": lambda net, x: net.relu(net.norm_a(net.a(x)) + net.norm_a(net.a(x))),
    "sum of the sum": lambda net, x: net.relu(torch.add(net.norm_a(net.a(x)), x, alpha=2)),
    "one convolution twice": lambda net, x: net.norm_a(net.a(x)) + net.norm_b(net.a(x * 2)),
    "norm before the convolution": lambda net, x: net.a(net.relu(net.norm_a(x))),
    "output looked at before the norm": lambda net, x: _both(net.a(x), net.norm_a),
    "relu of what is used elsewhere": lambda net, x: _both(net.norm_a(net.a(x)), F.relu),
}


def _both(x: Tensor, then: Callable[[Tensor], Tensor]) -> Tensor:
    return x + then(x)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_fused_network_computes_what_the_plain_one_does(way: str, on_cpu: bool) -> None:
    network = with_statistics(Net(WAYS[way]))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = torch.randn(5, 3, 9, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        fused = fusion.fused(network, torch.float32, on_cpu)
        torch.testing.assert_close(fused(x), network(x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(fused(x[:2]), network(x[:2]), rtol=1e-4, atol=1e-4)  # packed for five
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("on_cpu", [True, False])
def test_no_batchnorm_of_a_resnet_is_left_to_compute(on_cpu: bool) -> None:
    from torchvision.models import resnet18

    network = with_statistics(resnet18(num_classes=3))
    fused = fusion.fused(network, torch.float32, on_cpu)
    called = {str(node.target) for node in fused.graph.nodes if node.op == "call_module"}
    kinds = {type(fused.get_submodule(name)) for name in called}
    assert nn.BatchNorm2d not in kinds
    assert (nn.ReLU in kinds) != on_cpu
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(fused(x), network(x), rtol=1e-3, atol=1e-3)


def test_bf16_weights_are_rounded_once_after_folding_in_fp32() -> None:
    network = with_statistics(Net(WAYS["convolution, norm, relu"]))
    a, norm = network.a, network.norm_a
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        folded = (a.weight * scale[:, None, None, None]).bfloat16()
    fused = fusion.fused(network, torch.bfloat16, on_cpu=False)
    assert torch.equal(fused.a.weight, folded)
