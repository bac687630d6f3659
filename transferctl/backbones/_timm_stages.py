"""Where a network of timm's can be cut into stages: seen on one image from what runs after what, then checked.

timm's networks have in common that logits are forward_head(forward_features(images)). Most trunks run their modules
one after the other, each on what the one before gave; such a trunk is cut where timm's own layer groups begin
(`group_matcher`, which its layer-wise learning rates use). Vision transformers add position embeddings in between,
which `_tokens` knows. Whatever else there is stays whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Step = Callable[[Any], Tensor]
EMBEDDING, STEM, FEATURES, POOL = "embedding", "stem", "features", "pool"


@dataclass(frozen=True)
class Part:
    """A stage of any copy of the network: parameters are prefixes of names, step makes of the network what the stage
    computes."""

    name: str
    parameters: tuple[str, ...]
    step: Callable[[Any], Step]


@dataclass(frozen=True)
class Cut:
    """parts: input to output, `pool` last. is_coarse: the trunk is one part. layout: of what `pool` takes: NCHW, NHWC,
    tokens [N, L, D] or "" (other)."""

    parts: tuple[Part, ...]
    is_coarse: bool
    layout: str


def cut(net: nn.Module, seen: Seen, images: Tensor) -> Cut | None:
    """net: of timm's, in eval mode; seen: of it and these images, before its classifiers were taken off. None where it
    does not compute that any more."""
    with torch.no_grad():
        for trunk in (_chain, _tokens, _coarse, _whole):
            parts = trunk(net, seen, images)
            if parts and (layout := _checked(net, parts := _owning_all(net, seen, parts), seen, images)) is not None:
                return Cut(tuple(parts), trunk in (_coarse, _whole), layout)
    return None


# -- what runs after what -----------------------------------------------------------------------------


@dataclass
class Seen:
    """What a network did with one image. calls: of modules that it calls itself: name, input (None where it takes more
    than one), output. in_features, in_head: names of all modules that ran there. result: of forward_features. pooled:
    [1, D]; logits: [1, outputs]."""

    calls: list[tuple[str, Any, Any]] = field(default_factory=list)
    in_features: set[str] = field(default_factory=set)
    in_head: set[str] = field(default_factory=set)
    result: Any = None
    pooled: Tensor = field(default_factory=lambda: torch.empty(0))
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@torch.no_grad()
def observe(net: Any, images: Tensor) -> Seen:
    """net: of timm's, in eval mode; images: [1, 3, H, W]. Raises what the network raises for images of this size."""
    seen, entered = Seen(), set[str]()

    def enter(name: str, *_: Any) -> None:
        entered.add(name)

    def note(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        takes_one = all(value is None for value in (*args[1:], *kwargs.values()))
        seen.calls = [call for call in seen.calls if not call[0].startswith(f"{name}.")]  # it called those
        seen.calls.append((name, args[0] if args and takes_one else None, output))

    hooks = [m.register_forward_pre_hook(partial(enter, name)) for name, m in net.named_modules() if name]
    for name in _direct(net):
        hooks.append(net.get_submodule(name).register_forward_hook(partial(note, name), with_kwargs=True))
    try:
        seen.result = net.forward_features(images)
        seen.in_features, entered = entered, set()
        n_calls = len(seen.calls)
        seen.logits = net.forward_head(_copy(seen.result))
        seen.pooled = pooled(net, _copy(seen.result))
        seen.in_head = entered
        del seen.calls[n_calls:]
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _copy(x: Any) -> Any:
    """Heads may write into what they are given."""
    return x.clone() if isinstance(x, Tensor) else x


def _direct(net: nn.Module, prefix: str = "") -> Iterator[str]:
    """Names of modules that the network itself may call: its children, and items of lists and of sequences."""
    for name, module in net.named_children():
        if not isinstance(module, nn.ModuleList):
            yield f"{prefix}{name}"
        if isinstance(module, nn.ModuleList | nn.Sequential):
            yield from _direct(module, f"{prefix}{name}.")


def pooled(net: Any, x: Any) -> Tensor:
    """What timm's classifier takes, [N, D]. Where two tokens have a classifier each, both."""
    if takes_two_tokens(net):
        return torch.cat([x[:, 0], x[:, 1]], dim=1)
    return net.forward_head(x, pre_logits=True).flatten(1)  # type: ignore[no-any-return]


def takes_two_tokens(net: Any) -> bool:
    """Whether the classifiers are of the class token and the distillation token (DeiT, PiT: Touvron et al., ICML 2021).
    Of others with two classifiers, both take the same (LeViT)."""
    tokens = getattr(net, "num_prefix_tokens", getattr(net, "num_tokens", 1))
    return getattr(net, "head_dist", None) is not None and tokens == 2


# -- trunks that can be cut ---------------------------------------------------------------------------


def _chain(net: nn.Module, seen: Seen, images: Tensor) -> list[Part]:
    """Modules that each take just what the one before gave, from the images to the result; none if it is not so."""
    units, x = [], images
    for name, given, output in seen.calls:
        if given is not x:
            return []
        units.append(name)
        x = output
    if x is not seen.result:
        return []
    groups = _groups(net)
    units = [inner for name in units for inner in _expanded(net, name, groups)]
    tail = [units.pop()] if _ends_in_norm(net, units) else []
    stages: list[list[str]] = []
    for name in units:
        if not stages or _begins_stage(net, name, stages[-1], groups):
            stages.append([])
        stages[-1].append(name)
    if len(stages) < 2:
        return []
    parts = [Part(members[0], tuple(members), _run(*members)) for members in stages]
    return [replace(parts[0], name=STEM), *parts[1:], Part(POOL, tuple(tail), _pool(*tail))]


def _run(*names: str) -> Callable[[Any], Step]:
    def of(net: Any) -> Step:
        modules = [net.get_submodule(name) for name in names]

        def step(x: Tensor) -> Tensor:
            for module in modules:
                x = module(x)
            return x

        return step

    return of


def _pool(*before: str) -> Callable[[Any], Step]:
    return lambda net: lambda x: pooled(net, _run(*before)(net)(x))


def _groups(net: Any) -> dict[str, Any]:
    """A group for each parameter: timm's coarse ones; without these, parts of the network's direct modules."""
    from timm.models import group_parameters

    try:
        found: dict[str, Any] = group_parameters(net, net.group_matcher(coarse=True), reverse=True)
    except Exception:  # some networks have none, and say so in many ways
        found = {}
    return found or {name: ".".join(name.split(".")[:2]) for name, _ in net.named_parameters()}


def _groups_of(name: str, net: nn.Module, groups: Mapping[str, Any]) -> set[Any]:
    return {groups.get(f"{name}.{key}") for key, _ in net.get_submodule(name).named_parameters()}


def _expanded(net: nn.Module, name: str, groups: Mapping[str, Any]) -> list[str]:
    """The parts of a sequence that holds more than one group."""
    module = net.get_submodule(name)
    is_plain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    if not is_plain or len(_groups_of(name, net, groups)) < 2:
        return [name]
    return [inner for key, _ in module.named_children() for inner in _expanded(net, f"{name}.{key}", groups)]


def _begins_stage(net: nn.Module, name: str, stage: Sequence[str], groups: Mapping[str, Any]) -> bool:
    """What has no weight matrix (activations, pooling, norms) goes with what is before it."""
    before = [member for member in stage if _has_matrix(net, member)]
    if not _has_matrix(net, name) or not before:
        return False
    container, _, item = stage[0].partition(".")
    leaves = bool(item) and name.partition(".")[0] != container  # EfficientNet's conv_head, of the last blocks' group
    return leaves or _groups_of(name, net, groups) != _groups_of(before[-1], net, groups)


def _has_matrix(net: nn.Module, name: str) -> bool:
    return any(p.ndim > 1 for p in net.get_submodule(name).parameters())


def _ends_in_norm(net: nn.Module, units: Sequence[str]) -> bool:
    """Whether the last module is a norm of its own; after a convolution it is part of it."""
    last = net.get_submodule(units[-1])
    follows_layer = len(units) > 1 and isinstance(net.get_submodule(units[-2]), nn.Conv2d | nn.Linear)
    return not _has_matrix(net, units[-1]) and any(True for _ in last.parameters()) and not follows_layer


def _tokens(net: Any, seen: Seen, images: Tensor) -> list[Part]:
    """Vision transformers (ViT, DeiT, DINOv2; EVA, DINOv3; BEiT): patches become tokens, with class and register tokens
    and position embeddings, then blocks. Some blocks take a position bias too."""
    blocks = getattr(net, "blocks", None)
    if not isinstance(blocks, nn.Sequential | nn.ModuleList) or not hasattr(net, "patch_embed"):
        return []
    if not hasattr(net, "_pos_embed") and getattr(net, "cls_token", None) is None:
        return []
    layers = [Part(f"blocks.{i}", (f"blocks.{i}",), _block(i, images.shape[-1])) for i in range(len(blocks))]
    return [Part(EMBEDDING, ("patch_embed",), _embed), *layers, Part(POOL, ("norm",), _pool("norm"))]


def _embed(net: Any) -> Step:
    def with_positions(images: Tensor) -> Tensor:
        x = net._pos_embed(net.patch_embed(images))
        if isinstance(x, tuple):  # EVA's, with its rotary embedding; patches are dropped already
            return _norm_pre(net)(x[0])
        return _norm_pre(net)(getattr(net, "patch_drop", nn.Identity())(x))

    def with_class_token(images: Tensor) -> Tensor:  # BEiT's
        x = net.patch_embed(images)
        x = torch.cat([net.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        if net.pos_embed is not None:
            x = x + net.pos_embed
        return net.pos_drop(x)  # type: ignore[no-any-return]

    return with_positions if hasattr(net, "_pos_embed") else with_class_token


def _norm_pre(net: Any) -> Step:
    return getattr(net, "norm_pre", nn.Identity())


def _block(i: int, image_size: int) -> Callable[[Any], Step]:
    def of(net: Any) -> Step:
        def step(x: Tensor) -> Tensor:
            return net.blocks[i](x, **_beside(net, i, image_size))  # type: ignore[no-any-return]

        return step

    return of


def _beside(net: Any, i: int, image_size: int) -> dict[str, Any]:
    """What a block takes beside the tokens: rotary embeddings (Su et al. 2021), or a bias that all blocks share."""
    if getattr(net, "rope", None) is not None:
        if getattr(net, "dynamic_img_size", False) or not hasattr(net.rope, "feat_shape"):
            rope = net.rope.get_embed(shape=net.patch_embed.dynamic_feat_size((image_size, image_size)))
        else:
            rope = net.rope.get_embed()
        return {"rope": rope[i] if getattr(net, "rope_mixed", False) else rope}
    if getattr(net, "rel_pos_bias", None) is not None:
        return {"shared_rel_pos_bias": net.rel_pos_bias()}
    return {}


# -- what is left over, and the check ------------------------------------------------------------------


def _coarse(net: Any, seen: Seen, images: Tensor) -> list[Part]:
    """The trunk as one part."""
    if not isinstance(seen.result, Tensor):
        return []
    return [Part(FEATURES, (), lambda net: net.forward_features), Part(POOL, (), _pool())]


def _whole(net: Any, seen: Seen, images: Tensor) -> list[Part]:
    """Pooling with it, where it gives no single tensor."""
    features = Part(FEATURES, tuple(net.state_dict()), lambda net: lambda x: pooled(net, net.forward_features(x)))
    return [features, Part(POOL, (), lambda net: nn.Identity())]


def _owning_all(net: nn.Module, seen: Seen, parts: Sequence[Part]) -> list[Part]:
    """What no part owns yet goes to `pool` where only the head runs it, else to the first part."""
    owned = [prefix for part in parts for prefix in part.parameters]
    left = [name for name in net.state_dict() if not any(name == own or name.startswith(f"{own}.") for own in owned)]
    of_head = {name for name in left if _is_of_head(name, seen)}
    first, *between, pool = parts
    first = replace(first, parameters=first.parameters + tuple(name for name in left if name not in of_head))
    return [first, *between, replace(pool, parameters=pool.parameters + tuple(n for n in left if n in of_head))]


def _is_of_head(name: str, seen: Seen) -> bool:
    """By the innermost module around a parameter that ran: some weights are used without their layer being called."""
    while name := name.rpartition(".")[0]:
        if name in seen.in_features or name in seen.in_head:
            return name not in seen.in_features
    return False


def _checked(net: nn.Module, parts: Sequence[Part], seen: Seen, images: Tensor) -> str | None:
    """The layout of what `pool` takes; None unless the parts compute, bit for bit, what the network does, and hand on
    single tensors."""
    x = images
    *trunk, pool = parts
    try:
        for part in trunk:
            x = part.step(net)(x)
            if not isinstance(x, Tensor):
                return None
        layout = _layout(net, x)
        result = pool.step(net)(_copy(x))
    except Exception:  # a network of another making than these rules know
        return None
    return layout if _same(result, seen.pooled) else None


def _layout(net: Any, x: Tensor) -> str:
    if x.ndim == 3:
        return "tokens"
    if x.ndim != 4:
        return ""
    last = "NHWC" in str(getattr(net, "output_fmt", "")) or x.shape[1] == x.shape[2] != x.shape[3]
    return "NHWC" if last else "NCHW"


def _same(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.is_meta:
        return a.shape == b.shape
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
