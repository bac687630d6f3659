"""State dicts into networks of timm's: converted by timm's own code, loaded whole by ours."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferctl import weights
from transferctl.errors import CheckpointError, is_out_of_memory
from transferctl.wording import one_line

_COUNTER = "num_batches_tracked"


@contextmanager
def instead_of_loading() -> Iterator[dict[str, Any]]:
    """Inside, timm's builders load no weights; they say how they would: `filter_fn`, which converts state dicts of
    other layouts, and `strict`. A builder alone knows that, and loads where `pretrained` is asked for."""
    from timm.models import _builder

    how: dict[str, Any] = {}
    loading = _builder.load_pretrained
    _builder.load_pretrained = lambda model, **arguments: how.update(arguments)
    try:
        yield how
    finally:
        _builder.load_pretrained = loading


def converted(net: nn.Module, state: Mapping[str, Tensor], how: Mapping[str, Any], label: str) -> dict[str, Tensor]:
    """The state by the network's own names, position embeddings resized to its image size. how: what
    `instead_of_loading` was told. Raises CheckpointError."""
    own, of_head = net.state_dict(), _of_classifiers(net)
    missing = {name for name in own if name not in state and not name.endswith(_COUNTER)}
    is_native = missing <= of_head and state.keys() <= own.keys()
    if is_native and all(state[name].shape == own[name].shape for name in state if name not in of_head):
        return dict(state)
    convert = how.get("filter_fn")
    if convert is None:
        return dict(state)
    # Some filters know timm's own layout by its classifier, and would take a state without one for another's.
    given = dict(state) | ({name: own[name] for name in missing} if is_native else {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = _call(convert, given, net)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = ": ".join(filter(None, [type(error).__name__, one_line(error)]))
        raise CheckpointError(f"{label}: timm cannot convert them ({reason}); name weights of this network") from None
    return {name: tensor for name, tensor in found.items() if not (is_native and name in missing)}


def _call(convert: Any, state: dict[str, Tensor], net: nn.Module) -> Mapping[str, Tensor]:
    """Some filters take the state alone."""
    takes_network = len(inspect.signature(convert).parameters) > 1
    found: Mapping[str, Tensor] = convert(state, net) if takes_network else convert(state)
    return found


def load(net: nn.Module, state: Mapping[str, Tensor], *, is_strict: bool, label: str) -> list[str]:
    """Load every tensor, but for a classifier that the state lacks. Names of what was left over are given back, which
    only is where timm does not load strictly. Raises CheckpointError listing what differs."""
    own, of_head = net.state_dict(), _of_classifiers(net)
    unused = [] if is_strict else [name for name in state if name not in own]
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    if not of_head & state.keys():
        state |= {name: own[name] for name in of_head}
    weights.load_whole(net, state, label)
    return unused


# -- classifiers --------------------------------------------------------------------------------------


def classifiers(net: Any) -> dict[str, nn.Module]:
    """The layers that give logits, by name; most networks have one. Of a head that pools too, its last layer; of a
    BatchNorm and a linear layer, both."""
    found = net.get_classifier()
    given = found if isinstance(found, tuple | list | nn.ModuleList) else (found,)
    layers = [getattr(layer, "fc", layer) for layer in given]
    places = {id(module): name for name, module in net.named_modules()}
    names = [places.get(id(layer), "") for layer in layers if isinstance(layer, nn.Module) and _has_matrix(layer)]
    whole = [_with_norm(net, name) for name in names if name]
    return {name: net.get_submodule(name) for name in whole}


def _with_norm(net: nn.Module, name: str) -> str:
    """The name of what holds a BatchNorm before this layer, and nothing else that computes."""
    around = name.rpartition(".")[0]
    beside = [part for part in net.get_submodule(around).children() if part is not net.get_submodule(name)]
    is_norm = [isinstance(part, _BatchNorm) for part in beside]
    idle = all(isinstance(part, _BatchNorm | nn.Dropout | nn.Identity) for part in beside)
    return around if around and any(is_norm) and idle else name


def matrix(layer: nn.Module) -> tuple[str, Tensor]:
    """The name and the weight [outputs, inputs, …] of its last linear layer or convolution."""
    return [(name, parameter) for name, parameter in layer.named_parameters() if parameter.ndim > 1][-1]


def _has_matrix(layer: nn.Module) -> bool:
    return any(parameter.ndim > 1 for parameter in layer.parameters())


def _of_classifiers(net: nn.Module) -> set[str]:
    return {f"{name}.{key}" for name, layer in classifiers(net).items() for key in layer.state_dict()}


def outputs_of(net: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """How many outputs the classifier of a state has; None: it has none."""
    for name, layer in classifiers(net).items():
        weight = state.get(f"{name}.{matrix(layer)[0]}")
        if weight is not None and weight.ndim > 1:
            return int(weight.shape[0])
    return None


def likely_outputs(cfg: Any, state: Mapping[str, Tensor]) -> int | None:
    """As `outputs_of`, before there is a network, by where timm's description has the classifier."""
    names = cfg.classifier if isinstance(cfg.classifier, tuple | list) else (cfg.classifier,)
    for name in names:
        weight = state.get(f"{name}.weight")
        if weight is not None and weight.ndim > 1:
            return int(weight.shape[0])
    return None
