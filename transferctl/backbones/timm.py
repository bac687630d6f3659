"""Any model of timm, by its name: its stages, its features, its classifier.

An optional library: pip install 'transferctl[timm]'. The network stays timm's own module with timm's own parameter
names; only the classifier is taken off and becomes the pretrained head, so that head(backbone(images)) is exactly what
timm computes. Where a network is cut into stages: _timm_stages.py; its published weights: _timm_published.py.
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from transferctl import leantorchvision  # noqa: F401  (before timm imports torchvision)
from transferctl.backbones import _timm_patches, _timm_published, _timm_weights
from transferctl.backbones._timm_published import Published
from transferctl.backbones._timm_stages import Cut, Seen, cut, observe
from transferctl.contracts import Features, Stage
from transferctl.errors import SpecError, is_out_of_memory
from transferctl.preprocess import Preprocessing
from transferctl.wording import counted, one_line, shown

# What timm's networks raise for sizes that they cannot take.
_TROUBLE = (ValueError, RuntimeError, AssertionError, TypeError, IndexError, ZeroDivisionError)

# -- building ---------------------------------------------------------------------------------------


def names() -> list[str]:
    """Architectures, and these with the tag of their published weights: resnet18, resnet18.a1_in1k …"""
    timm = _timm()
    return sorted({*timm.list_models(), *timm.list_pretrained()})


def build(
    name: str,
    *,
    image_size: int,
    outputs: int | None = None,
    state: Mapping[str, Tensor] | None = None,
    label: str = "",
) -> tuple[TimmBackbone, nn.Module | None]:
    """A backbone and its pretrained head.

    With `state` (timm's, or as the network's authors published it: timm's own code converts it and resizes position
    embeddings) both carry those weights; a state without any classifier gives no head. Without, both are random, and
    `outputs` sizes the head. Raises SpecError for an unknown name or an image size the architecture cannot take,
    CheckpointError for a state that does not fit.
    """
    cfg = _cfg(name)
    notes: tuple[str, ...] = ()
    if state is None:
        net, headless = _network(name, outputs or 2, image_size), False
    else:
        net, notes, headless = _with_weights(name, cfg, image_size, state, label)
    try:
        seen = observe(net.eval(), images := _noise(net, image_size))
    except NotImplementedError as error:  # encoders for other purposes
        message = f"timm's {name} cannot be used here: {one_line(error, 160)}"
        raise SpecError.at("backbone.name", message) from None
    except _TROUBLE as error:
        if is_out_of_memory(error):
            raise
        raise _wrong_size(name, image_size, error) from None
    if patch := _timm_patches.left_out(net, seen, images):
        raise _border_left_out(name, image_size, patch)
    layers = _take_classifiers(net)
    head = PretrainedHead(layers) if layers else None
    if head is not None and not _gives(head, seen):
        head, notes = None, (*notes, f"{name}: its classifier takes more than pooled features, and is left out")
    found = cut(net, seen, images)
    if found is None:
        raise SpecError.at(
            "backbone.name", f"timm's {name} cannot be used here: it has no features without its classifier"
        )
    if cfg.crop_mode == "squash" and state is not None:
        notes = (*notes, f"{name} was trained on images squeezed to squares; here their middle is cut out")
    backbone = TimmBackbone(name, net.train(), image_size, int(seen.pooled.shape[1]), found, notes)
    return backbone, None if headless else head


def _with_weights(
    name: str, cfg: Any, image_size: int, state: Mapping[str, Tensor], label: str
) -> tuple[nn.Module, tuple[str, ...], bool]:
    """The network with these weights, notes for people, and whether they are without a classifier."""
    label = f"{label}: these weights do not fit {name}"
    with _timm_weights.instead_of_loading() as how:
        net = _network(name, _timm_weights.likely_outputs(cfg, state) or 2, image_size, pretrained=True)
    fitted = _timm_weights.converted(net, state, how, label)
    outputs = _timm_weights.outputs_of(net, fitted)
    if outputs not in (None, net.num_classes):
        net = _network(name, outputs, image_size)
    unused = _timm_weights.load(net, fitted, is_strict=how.get("strict", True), label=label)
    notes = (f"{name}: {counted(len(unused), 'tensor')} of the weights ({shown(unused)}) not used",) if unused else ()
    if outputs is not None and _timm_published.is_projection(cfg, outputs):
        return net, (*notes, f"{name}: its last layer maps to a space shared with text; there is no classifier"), True
    return net, notes, outputs is None


def _network(name: str, outputs: int, image_size: int, *, pretrained: bool = False) -> Any:
    timm = _timm()
    arguments = {"pretrained": pretrained, "num_classes": outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            try:
                return timm.create_model(name, img_size=image_size, **arguments)
            except TypeError as error:  # a network for images of any size
                if "img_size" not in str(error):
                    raise
                return timm.create_model(name, **arguments)
        except _TROUBLE as error:
            if is_out_of_memory(error):
                raise
            raise _wrong_size(name, image_size, error) from None


def _wrong_size(name: str, image_size: int, error: Exception) -> SpecError:
    detail = one_line(error, 160)
    message = f"{name} cannot take {image_size}×{image_size} pixels ({detail}); set another preprocess.crop"
    return SpecError.at("preprocess.crop", message)


def _border_left_out(name: str, image_size: int, patch: int) -> SpecError:
    whole = image_size // patch * patch
    fitting = " or ".join(map(str, _timm_patches.nearest(image_size, patch)))
    message = f"{name} sees {whole} of {image_size} rows and columns, as its patches have {patch} pixels; set {fitting}"
    return SpecError.at("preprocess.crop", message)


def _noise(net: nn.Module, image_size: int) -> Tensor:
    device = next(net.parameters()).device
    if device.type == "meta":
        return torch.empty(1, 3, image_size, image_size, device=device)
    return torch.randn(1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))


class TimmBackbone(nn.Module):
    """timm's network less its classifier. Parameters are named as in timm (`net.` in front).

    prefix_tokens: of its tokens, how many (class, registers) come before the patches'. notes: what people should know.
    """

    def __init__(self, name: str, net: nn.Module, image_size: int, feature_dim: int, found: Cut, notes: Sequence[str]):
        super().__init__()
        self.name = name
        self.net = net
        self.image_size = image_size
        self.feature_dim = feature_dim
        self.prefix_tokens = int(getattr(net, "num_prefix_tokens", 1 if hasattr(net, "cls_token") else 0))
        self._parts, self._layout = found.parts, found.layout
        coarse = f"{name} has no finer stages than features and pool; frozen: is none, all, or patterns of names"
        self.notes = (*notes, coarse) if found.is_coarse else tuple(notes)

    def stages(self) -> list[Stage]:
        """Input to output. The last one, `pool`, gives [N, D], what timm's classifier takes, and may own layers."""
        return [Stage(part.name, part.parameters, part.step(self.net)) for part in self._parts]

    def forward(self, x: Tensor, after: int = 0) -> Features:
        *trunk, pool = self.stages()
        for stage in trunk[after:]:
            x = stage.forward(x)
        return Features(pool.forward(x), self._maps(x))

    def _maps(self, x: Tensor) -> Tensor | None:
        if self._layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        return x if self._layout == "NCHW" else None

    def fingerprint(self, stages: int | None = None) -> str:
        digest = hashlib.sha256(f"timm {_timm().__version__} {self.name}".encode())
        looked_at = self.stages()[:stages]
        for key, tensor in self.net.state_dict().items():
            if not any(stage.owns(key) for stage in looked_at):
                continue
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


# -- the classifier -----------------------------------------------------------------------------------


class PretrainedHead(nn.Module):
    """timm's classifier. Where there are several, the mean of what they give: each takes the pooled features, or its
    own share of them."""

    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._widths = [int(_timm_weights.matrix(layer)[1].shape[1]) for layer in layers]

    def forward(self, features: Features) -> Tensor:
        """Logits [N, outputs]."""
        x = features.pooled
        is_shared = sum(self._widths) == x.shape[1]
        shares: Sequence[Tensor] = torch.split(x, self._widths, dim=1) if is_shared else [x] * len(self.layers)
        logits = [self._logits(layer, share) for layer, share in zip(self.layers, shares, strict=True)]
        return sum(logits[1:], logits[0]) / len(logits) if len(logits) > 1 else logits[0]

    def _logits(self, layer: nn.Module, x: Tensor) -> Tensor:
        is_convolution = _timm_weights.matrix(layer)[1].ndim == 4
        logits: Tensor = layer(x[:, :, None, None]).flatten(1) if is_convolution else layer(x)
        return logits


def _take_classifiers(net: nn.Module) -> list[nn.Module]:
    """Cut out of the network, in whose place nothing is computed."""
    found = _timm_weights.classifiers(net)
    for name in found:
        parent, _, attribute = name.rpartition(".")
        setattr(net.get_submodule(parent), attribute, nn.Identity())
    return list(found.values())


def _gives(head: PretrainedHead, seen: Seen) -> bool:
    """Whether it gives timm's logits of the image that was looked at."""
    if seen.pooled.is_meta:
        return True
    try:
        with torch.no_grad():
            logits = head.eval()(Features(seen.pooled))
    except _TROUBLE:  # it takes something else
        return False
    head.train()
    return torch.equal(logits, seen.logits) or bool(seen.logits.isnan().any())


# -- names, weights, preprocessing --------------------------------------------------------------------


def published(name: str, weights_name: str) -> Published:
    """timm's weights, by the tag in the name; without one, its default.

    Raises SpecError where there are none, CheckpointError where they are not at hand and cannot be fetched, or are not
    what they are said to be.
    """
    cfg = _published_cfg(name, weights_name)
    return _timm_published.fetch(cfg, _full_name(cfg))


def default_preprocessing(name: str) -> Preprocessing:
    """What the published weights ask for; ImageNet's statistics at 224 pixels where there are none."""
    return _timm_published.preprocessing(_cfg(name))


def published_preprocessing(name: str, weights_name: str) -> Preprocessing:
    return _timm_published.preprocessing(_published_cfg(name, weights_name))


def _cfg(name: str) -> Any:
    """timm's description of the weights that a name stands for. Raises SpecError for an unknown name."""
    timm = _timm()
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, names(), 1, 0.5)
        raise SpecError.at("backbone.name", f"timm has no model {name!r}{f'; did you mean {near[0]}?' if near else ''}")
    if tag and name not in timm.list_pretrained():
        raise SpecError.at("backbone.name", f"timm has no weights {tag!r} of {architecture}{_tags(architecture)}")
    return timm.get_pretrained_cfg(name, allow_unregistered=True) or timm.models.PretrainedCfg()


def _published_cfg(name: str, weights_name: str) -> Any:
    cfg = _cfg(name)
    architecture = name.partition(".")[0]
    if weights_name != "DEFAULT":
        message = f"is {weights_name}, but timm's weights are named by a tag in backbone.name; write DEFAULT here"
        raise SpecError.at("backbone.weights", f"{message}{_tags(architecture)}")
    if not cfg.has_weights:
        message = f"timm publishes no weights of {name}; write none, or a file"
        raise SpecError.at("backbone.weights", message)
    return cfg


def _tags(architecture: str) -> str:
    known = [name for name in _timm().list_pretrained() if name.partition(".")[0] == architecture]
    return f"; there is {', '.join(known)}" if known else ""


def _full_name(cfg: Any) -> str:
    return f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)


def _timm() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import timm
    except ImportError:
        message = "timm must be installed: pip install 'transferctl[timm]'"
        raise SpecError.at("backbone.library", message) from None
    return timm
