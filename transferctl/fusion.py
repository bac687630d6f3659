"""A network that nothing trains, made fast: BatchNorm folded into convolutions, ReLU and sums fused to them.

Folding: W' = W·γ/σ, b' = (b − μ)·γ/σ + β, in fp32 (Jacob et al., CVPR 2018, section 3.2). Fusing: oneDNN applies ReLU,
or the residual sum and its ReLU, while a convolution's output is in the cache; its weights are laid out for the CPU
once. Nothing is compiled, so this pays from the first image on.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

_ADD = (operator.add, operator.iadd, torch.add)
_RELU: tuple[Any, ...] = (torch.relu, torch.relu_, F.relu)


def fused(network: nn.Module, dtype: torch.dtype, on_cpu: bool) -> nn.Module:
    """A copy for inference, in eval mode, whose convolutions and linear layers have weights of `dtype`; to be called
    under autocast to it. `network` stays as it is. Raises what torch.fx raises where it cannot follow `forward`."""
    copied = copy.deepcopy(fx.symbolic_trace(network)).eval().requires_grad_(False)
    _fold(copied)
    for module in copied.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype).to(memory_format=torch.channels_last)
    if on_cpu:
        _fuse(copied)
    copied.graph.eliminate_dead_code()
    copied.recompile()
    return copied


def _fold(network: fx.GraphModule) -> None:
    """Every BatchNorm whose input is a convolution's output, and its alone."""
    modules = dict(network.named_modules())
    for node in list(network.graph.nodes):
        norm, before = modules.get(str(node.target)) if node.op == "call_module" else None, node.all_input_nodes[:1]
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None or not before:
            continue
        convolution = modules.get(str(before[0].target)) if before[0].op == "call_module" else None
        if type(convolution) is nn.Conv2d and len(before[0].users) == 1 and _called_once(network, before[0].target):
            network.set_submodule(str(before[0].target), fuse_conv_bn_eval(convolution, norm))
            modules[str(before[0].target)] = network.get_submodule(str(before[0].target))
            node.replace_all_uses_with(before[0])
            network.graph.erase_node(node)


def _called_once(network: fx.GraphModule, target: Any) -> bool:
    return [node.target for node in network.graph.nodes if node.op == "call_module"].count(target) == 1


def _fuse(network: fx.GraphModule) -> None:
    modules = dict(network.named_modules())
    place = {node: i for i, node in enumerate(network.graph.nodes)}
    for node in list(network.graph.nodes):
        convolution = modules.get(str(node.target)) if node.op == "call_module" else None
        if type(convolution) is not nn.Conv2d or not _can_pack(convolution):
            continue
        last, others = node, list[fx.Node]()
        after = _only_user(node)
        if after is not None and _is_relu(after, modules):
            last, kind = after, "relu"
        elif after is not None and (summed := _residual(after, node, modules)) and place[summed[0]] < place[node]:
            (other, last), kind = summed, "sum"
            others = [other]
        else:
            kind = "none"
        name = f"packed_{place[node]}"
        network.add_submodule(name, _Packed(convolution, kind))
        with network.graph.inserting_before(last):
            packed = network.graph.call_module(name, (node.args[0], *others))
        place[packed] = place[last]
        last.replace_all_uses_with(packed)
    network.graph.eliminate_dead_code()


def _can_pack(convolution: nn.Conv2d) -> bool:
    return convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return isinstance(modules.get(str(node.target)), nn.ReLU)
    return bool(node.op == "call_function" and node.target in _RELU)


def _residual(node: fx.Node, convolution: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, fx.Node] | None:
    """For convolution + other, then ReLU: other and the ReLU."""
    after = _only_user(node)
    if node.op != "call_function" or node.target not in _ADD or after is None or not _is_relu(after, modules):
        return None
    others = [value for value in node.args if value is not convolution]
    if len(node.args) != 2 or node.kwargs or len(others) != 1 or not isinstance(others[0], fx.Node):
        return None
    return others[0], after


class _Packed(nn.Module):
    """A convolution, with what follows it: nothing, ReLU, or the sum with another tensor and ReLU. The operators are
    those that torch.compile's CPU back end calls."""

    def __init__(self, convolution: nn.Conv2d, then: str):
        super().__init__()
        self._convolution, self._then = convolution, then
        self._weight: Tensor | None = None

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        conv = self._convolution
        shape = (list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups)
        x = x.to(conv.weight.dtype)
        if self._weight is None:  # packed for the size of the first images
            pack: Callable[..., Tensor] = torch.ops.mkldnn._reorder_convolution_weight
            self._weight = pack(conv.weight, *shape, list(x.shape))
        run = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            return run(x, self._weight, conv.bias, *shape, self._then, [], "")  # type: ignore[no-any-return]
        other = other.to(x.dtype)
        return run.binary(x, other, self._weight, conv.bias, *shape, "add", 1.0, "relu", [], "")  # type: ignore[no-any-return]
