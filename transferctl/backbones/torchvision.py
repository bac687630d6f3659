"""Every classification architecture of torchvision: its stages, its features, its pretrained head.

The network stays torchvision's own module with torchvision's own parameter names; only the last layer
(with the dropout right before it) is taken off and becomes the pretrained head, so that
head(backbone(images)) is exactly what torchvision computes.
"""

from __future__ import annotations

import difflib
import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from transferctl import weights
from transferctl.contracts import Features, Stage
from transferctl.errors import CheckpointError, SpecError, is_out_of_memory
from transferctl.leantorchvision import torchvision
from transferctl.preprocess import Preprocessing

models = torchvision.models

# Trained in TensorFlow on inputs from −1 to 1. torchvision's preset normalises by ImageNet's mean and these
# networks (transform_input, set wherever published weights are asked for) undo that. Ours are built
# without it: their Preprocessing says what the weights were trained on, and checkpoints carry it.
_SCALED_TO_ONE = ("googlenet", "inception_v3")
_HALF = (0.5, 0.5, 0.5)

# -- building ---------------------------------------------------------------------------------------


def names() -> list[str]:
    return sorted(models.list_models(module=models))


def build(
    name: str,
    *,
    image_size: int,
    outputs: int | None = None,
    state: Mapping[str, Tensor] | None = None,
    label: str = "",
) -> tuple[TorchvisionBackbone, nn.Module | None]:
    """A backbone and its pretrained head.

    With `state` (a torchvision state dict) both carry those weights; a state without any head gives no
    head. Without, both are random, and `outputs` sizes the head. Raises SpecError for an unknown name or
    an image size the architecture cannot take, CheckpointError for a state that does not fit.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SpecError.at("backbone.name", f"torchvision has no architecture {name!r}{hint}")
    headless = state is not None and not any(key.startswith(f"{_head_name(name)}.") for key in state)
    if state is not None and not headless:
        outputs = _outputs(name, state, label)
    net = _network(name, outputs or 2, image_size)
    if state is not None:
        _load(net, name, state, headless, label)
    head = _take_head(net, name)
    backbone = TorchvisionBackbone(name, net, image_size, _form(head))
    return backbone, None if headless else head


def _network(name: str, outputs: int, image_size: int) -> nn.Module:
    arguments = _arguments(name, outputs, image_size)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net: nn.Module = models.get_model(name, weights=None, **arguments)
    except (ValueError, RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        raise _wrong_size(name, image_size, error) from None
    return net


def _arguments(name: str, outputs: int, image_size: int) -> dict[str, Any]:
    arguments: dict[str, Any] = {"num_classes": outputs}
    if name in _SCALED_TO_ONE:
        arguments |= {"aux_logits": False, "init_weights": True, "transform_input": False}
    if name.startswith("vit_"):
        arguments["image_size"] = image_size
    if name == "maxvit_t":
        arguments["input_size"] = (image_size, image_size)
    return arguments


def _load(net: nn.Module, name: str, state: Mapping[str, Tensor], headless: bool, label: str) -> None:
    """googlenet and inception_v3 are published with auxiliary classifiers, which only their training uses."""
    if name in _SCALED_TO_ONE:
        state = {key: value for key, value in state.items() if not key.lower().startswith("aux")}
    if headless:
        own = net.state_dict()
        state = dict(state) | {key: own[key] for key in own if key.startswith(f"{_head_name(name)}.")}
    weights.load_whole(net, state, f"{label}: these weights do not fit {name}")


def _outputs(name: str, state: Mapping[str, Tensor], label: str) -> int:
    weight = state.get(f"{_head_name(name)}.weight")
    if weight is None or weight.ndim < 2:
        raise CheckpointError(f"{label}: these weights do not fit {name}: {_head_name(name)}.weight is missing")
    return int(weight.shape[0])


def _wrong_size(name: str, image_size: int, error: Exception) -> SpecError:
    detail = " ".join(str(error).split())[:160]
    message = f"{name} cannot take {image_size}×{image_size} pixels ({detail}); set another preprocess.crop"
    return SpecError.at("preprocess.crop", message)


class TorchvisionBackbone(nn.Module):
    """torchvision's network less its last layer. Parameters are named as in torchvision (`net.` in front)."""

    notes: tuple[str, ...] = ()
    prefix_tokens = 1  # of vision transformers: the class token

    def __init__(self, name: str, net: nn.Module, image_size: int, own_head: _Form):
        """own_head: of the last layer that was taken off."""
        super().__init__()
        self.name = name
        self.net = net
        self.image_size = image_size
        self._own_head = own_head
        self._family = _family(net)
        self.feature_dim = self._measure()

    def stages(self) -> list[Stage]:
        """Input to output. The last one, `pool`, turns the maps into [N, D] and may own layers (VGG's fc6, fc7)."""
        return self._family.stages(self.net)

    def forward(self, x: Tensor, after: int = 0) -> Features:
        *trunk, pool = self.stages()
        for stage in trunk[after:]:
            x = stage.forward(x)
        return Features(pool.forward(x), self._family.maps(x))

    def whole(self, head: nn.Module, outputs: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state dict of torchvision's own network with this head as its last layer, and the arguments that its
        builder makes that network by. Raises ValueError, saying why, for a head of another form."""
        layers = _weighted(head)
        if len(layers) != 1:
            raise ValueError(f"its head has {len(layers)} layers with weights, where {self.name} has one")
        if _form(head) != self._own_head:
            raise ValueError(f"its head is of another form than the last layer of {self.name}")
        state = self.net.state_dict()
        state.update({f"{self._family.head}.{key}": tensor for key, tensor in layers[0].state_dict().items()})
        arguments = _arguments(self.name, outputs, self.image_size)
        return state, arguments | ({"init_weights": False} if "init_weights" in arguments else {})

    def fingerprint(self, stages: int | None = None) -> str:
        digest = hashlib.sha256(f"torchvision {self.name}".encode())
        looked_at = self.stages()[:stages]
        for key, tensor in self.net.state_dict().items():
            if not any(stage.owns(key) for stage in looked_at):
                continue
            digest.update(f"{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _measure(self) -> int:
        """D, from one blank image, which also shows whether the architecture can take this size."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                pooled = self(torch.zeros(1, 3, self.image_size, self.image_size)).pooled
        except (RuntimeError, ValueError, AssertionError) as error:
            if is_out_of_memory(error):
                raise
            raise _wrong_size(self.name, self.image_size, error) from None
        self.train(training)
        return int(pooled.shape[1])


# -- published weights --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """state: the state dict; names: of each output of its head, all its names, as read_classes gives them."""

    state: dict[str, Tensor]
    names: list[tuple[str, ...]]
    origin: str


def published(name: str, weights_name: str) -> Published:
    """torchvision's weights, fetched once into $TORCH_HOME and checked against the hash in their name.

    Raises SpecError for a name that this architecture does not have, CheckpointError where the file is
    not at hand and cannot be fetched, or is not what its name says.
    """
    entry = _entry(name, weights_name)
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    try:
        if not file.exists():
            entry.get_state_dict(progress=False, check_hash=True, weights_only=True)
        _check_hash(file)
    except OSError as error:
        raise CheckpointError(
            f"{file}: {name}'s weights {entry.name} are not here and cannot be fetched "
            f"({getattr(error, 'reason', None) or error.strerror or error}). Put the file from {entry.url} there, "
            "or set TORCH_HOME to the folder whose hub/checkpoints holds it"
        ) from None
    except RuntimeError as error:  # torch.hub's hash check
        raise CheckpointError(f"{file}: {' '.join(str(error).split())}; the download was broken, try again") from None
    names_of: list[tuple[str, ...]] = [(category,) for category in entry.meta["categories"]]
    return Published(weights.read(file).state, names_of, f"torchvision {name} {entry.name}")


def _entry(name: str, weights_name: str) -> Any:
    if name not in names():
        build(name, image_size=224)  # raises with a suggestion
    known = models.get_model_weights(name)
    if weights_name not in known.__members__:
        choices = list(known.__members__) or ["none (torchvision publishes no weights for it)"]
        near = difflib.get_close_matches(weights_name, known.__members__, 1, 0.6)
        hint = f"; did you mean {near[0]}?" if near else f"; there is {', '.join(choices)}"
        raise SpecError.at("backbone.weights", f"{name} has no published weights {weights_name!r}{hint}")
    return known[weights_name]


def _check_hash(file: Path) -> None:
    """The name ends in the first digits of the content's SHA-256 (torch.hub's rule)."""
    expected = file.stem.rsplit("-", 1)[-1]
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(expected):
        raise CheckpointError(
            f"{file}: its SHA-256 starts with {digest.hexdigest()[:8]}, not {expected} as its name says; "
            "the file is broken or not what it claims: remove it"
        )


def default_preprocessing(name: str) -> Preprocessing:
    """What the architecture's default published weights ask for (ImageNet at 224 where there are none)."""
    if name not in names():
        build(name, image_size=224)
    known = models.get_model_weights(name)
    return _preprocessing(name, known["DEFAULT"]) if "DEFAULT" in known.__members__ else Preprocessing(256, 224)


def published_preprocessing(name: str, weights_name: str) -> Preprocessing:
    return _preprocessing(name, _entry(name, weights_name))


def _preprocessing(name: str, entry: Any) -> Preprocessing:
    preset = entry.transforms()
    return Preprocessing(
        preset.resize_size[0],
        preset.crop_size[0],
        _HALF if name in _SCALED_TO_ONE else tuple(preset.mean),
        _HALF if name in _SCALED_TO_ONE else tuple(preset.std),
        preset.interpolation.value,
    )


# -- families: where the stages are, where the features come out --------------------------------------

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Family:
    """head: the name of the layer that gives the logits; stages: input to output, `pool` last."""

    head: str
    stages: Callable[[Any], list[Stage]]
    maps: Callable[[Tensor], Tensor | None] = lambda x: x


def _chain(*steps: Step) -> Step:
    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


def _children(net: nn.Module, names: Sequence[str]) -> list[Stage]:
    """A stage for each named submodule."""
    return [Stage(name, (name,), net.get_submodule(name)) for name in names]


def _resnet(net: Any) -> list[Stage]:
    stem = Stage("stem", ("conv1", "bn1"), _chain(net.conv1, net.bn1, net.relu, net.maxpool))
    pool = Stage("pool", (), _chain(net.avgpool, nn.Flatten()))
    return [stem, *_children(net, ("layer1", "layer2", "layer3", "layer4")), pool]


def _vgg(net: Any) -> list[Stage]:
    """Blocks end with their max-pooling. Features are fc7's: the layer before the last."""
    stages: list[Stage] = []
    block: list[str] = []
    for name, layer in net.features.named_children():
        block.append(f"features.{name}")
        if isinstance(layer, nn.MaxPool2d):
            layers = [net.get_submodule(inner) for inner in block]
            stages.append(Stage(f"block{len(stages) + 1}", tuple(block), _chain(*layers)))
            block = []
    return [*stages, _classifier_pool(net)]


def _classifier_pool(net: Any, *before: Step) -> Stage:
    """Pool, flatten, then what is left of the classifier (its last layer is an Identity by now)."""
    return Stage("pool", ("classifier",), _chain(*before, net.avgpool, nn.Flatten(), net.classifier))


def _sequential(trunk: str, pool: Callable[[Any], Stage]) -> Callable[[Any], list[Stage]]:
    """Networks whose trunk is one nn.Sequential: each of its parts is a stage, named as in torchvision."""

    def stages(net: Any) -> list[Stage]:
        parts = [f"{trunk}.{name}" for name, _ in net.get_submodule(trunk).named_children()]
        return [*_children(net, parts), pool(net)]

    return stages


def _mean_pool(net: Any) -> Stage:
    return Stage("pool", ("classifier",), _chain(lambda x: x.mean((2, 3)), net.classifier))


def _convnext_pool(net: Any) -> Stage:
    return Stage("pool", ("classifier",), _chain(net.avgpool, net.classifier))


def _densenet_pool(net: Any) -> Stage:
    relu_and_pool = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Stage("pool", ("classifier",), _chain(*relu_and_pool, net.classifier))


def _squeezenet_pool(net: Any) -> Stage:
    return Stage("pool", (), _chain(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


def _swin_pool(net: Any) -> Stage:
    return Stage("pool", ("norm",), _chain(net.norm, net.permute, net.avgpool, net.flatten))


def _shufflenet(net: Any) -> list[Stage]:
    stem = Stage("stem", ("conv1",), _chain(net.conv1, net.maxpool))
    pool = Stage("pool", (), lambda x: x.mean((2, 3)))
    return [stem, *_children(net, ("stage2", "stage3", "stage4", "conv5")), pool]


def _regnet(net: Any) -> list[Stage]:
    blocks = [f"trunk_output.{name}" for name, _ in net.trunk_output.named_children()]
    pool = Stage("pool", (), _chain(net.avgpool, nn.Flatten()))
    return [*_children(net, ("stem", *blocks)), pool]


def _maxvit(net: Any) -> list[Stage]:
    blocks = [f"blocks.{name}" for name, _ in net.blocks.named_children()]
    pool = Stage("pool", ("classifier",), net.classifier)
    return [*_children(net, ("stem", *blocks)), pool]


def _googlenet(net: Any) -> list[Stage]:
    return [
        _group(net, "stem", "conv1 maxpool1 conv2 conv3 maxpool2"),
        _group(net, "inception3", "inception3a inception3b maxpool3"),
        _group(net, "inception4", "inception4a inception4b inception4c inception4d inception4e maxpool4"),
        _group(net, "inception5", "inception5a inception5b"),
        Stage("pool", (), _chain(net.avgpool, nn.Flatten())),
    ]


def _inception(net: Any) -> list[Stage]:
    stem = "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2"
    return [
        _group(net, "stem", stem),
        _group(net, "Mixed_5", "Mixed_5b Mixed_5c Mixed_5d"),
        _group(net, "Mixed_6", "Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e"),
        _group(net, "Mixed_7", "Mixed_7a Mixed_7b Mixed_7c"),
        Stage("pool", (), _chain(net.avgpool, nn.Flatten())),
    ]


def _group(net: nn.Module, stage: str, parts: str) -> Stage:
    return Stage(stage, tuple(parts.split()), _chain(*(net.get_submodule(part) for part in parts.split())))


def _vit(net: Any) -> list[Stage]:
    """Tokens [N, 1 + patches, D]; the class token, after the last norm, is the feature."""
    encoder = net.encoder

    def embed(images: Tensor) -> Tensor:
        patches = net._process_input(images)
        tokens = torch.cat([net.class_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        return encoder.dropout(tokens + encoder.pos_embedding)  # type: ignore[no-any-return]

    layers = [f"encoder.layers.{name}" for name, _ in encoder.layers.named_children()]
    owned = ("conv_proj", "class_token", "encoder.pos_embedding")
    pool = Stage("pool", ("encoder.ln", "heads"), _chain(encoder.ln, lambda x: x[:, 0], net.heads))
    return [Stage("embedding", owned, embed), *_children(net, layers), pool]


def _no_maps(tokens: Tensor) -> None:
    return None


_FAMILIES: dict[type[nn.Module], _Family] = {
    models.ResNet: _Family("fc", _resnet),  # also ResNeXt and Wide ResNet
    models.VGG: _Family("classifier.6", _vgg),
    models.AlexNet: _Family("classifier.6", _sequential("features", _classifier_pool)),
    models.DenseNet: _Family("classifier", _sequential("features", _densenet_pool)),
    models.MobileNetV2: _Family("classifier.1", _sequential("features", _mean_pool)),
    models.MobileNetV3: _Family("classifier.3", _sequential("features", _classifier_pool)),
    models.MNASNet: _Family("classifier.1", _sequential("layers", _mean_pool)),
    models.EfficientNet: _Family("classifier.1", _sequential("features", _classifier_pool)),
    models.ConvNeXt: _Family("classifier.2", _sequential("features", _convnext_pool)),
    models.SqueezeNet: _Family("classifier.1", _sequential("features", _squeezenet_pool)),
    models.SwinTransformer: _Family("head", _sequential("features", _swin_pool), lambda x: x.permute(0, 3, 1, 2)),
    models.ShuffleNetV2: _Family("fc", _shufflenet),
    models.RegNet: _Family("fc", _regnet),
    models.MaxVit: _Family("classifier.5", _maxvit),
    models.GoogLeNet: _Family("fc", _googlenet),
    models.Inception3: _Family("fc", _inception),
    models.VisionTransformer: _Family("heads.head", _vit, _no_maps),
}


def _family(net: nn.Module) -> _Family:
    return _FAMILIES[type(net)]


def _head_name(name: str) -> str:
    """By the builder's return annotation, so that nothing is built to learn it."""
    builder = models.get_model_builder(name)
    kind = builder.__annotations__["return"]
    return next(family.head for cls, family in _FAMILIES.items() if kind in (cls, cls.__name__))


class PretrainedHead(nn.Module):
    """torchvision's last layers. On pooled features, or on the maps where the layer is a convolution."""

    def __init__(self, layers: nn.Sequential, on_maps: bool):
        super().__init__()
        self.layers = layers
        self._on_maps = on_maps

    def forward(self, features: Features) -> Tensor:
        """Logits [N, outputs]."""
        x = features.maps if self._on_maps else features.pooled
        return self.layers(x).flatten(1)  # type: ignore[no-any-return]


def _take_head(net: nn.Module, name: str) -> PretrainedHead:
    """Cut the last layer, and the dropout right before it, out of the network."""
    if isinstance(net, models.SqueezeNet):  # dropout, 1×1 convolution, ReLU, pool: the head works on maps
        layers, net.classifier = net.classifier, nn.Identity()
        return PretrainedHead(layers, on_maps=True)
    parent_name, _, attribute = _head_name(name).rpartition(".")
    parent = net.get_submodule(parent_name)
    layers = nn.Sequential(getattr(parent, attribute))
    setattr(parent, attribute, nn.Identity())
    if isinstance(parent, nn.Sequential) and attribute.isdigit() and int(attribute) > 0:
        before = parent[int(attribute) - 1]
        if isinstance(before, nn.Dropout):
            layers = nn.Sequential(nn.Dropout(before.p), *layers)
            parent[int(attribute) - 1] = nn.Identity()
    return PretrainedHead(layers, on_maps=False)


_Form = tuple[type[nn.Module], dict[str, tuple[int, ...]]]


def _weighted(head: nn.Module) -> list[nn.Module]:
    """Its layers that have weights of their own."""
    return [module for module in head.modules() if next(module.parameters(recurse=False), None) is not None]


def _form(head: nn.Module) -> _Form:
    """What the last layer of a head is, whatever the number of its outputs: kind, and shapes less their first side."""
    last = _weighted(head)[-1]
    return type(last), {name: tuple(tensor.shape[1:]) for name, tensor in last.named_parameters()}
