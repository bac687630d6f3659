"""One backbone, a head a domain; what is frozen, and how BatchNorm behaves."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from transferctl import described, plugins
from transferctl.checkpoint import Checkpoint
from transferctl.contracts import Batch, Features
from transferctl.device import Compute
from transferctl.errors import CheckpointError, SpecError
from transferctl.preprocess import Preprocessing, keyed_randomness, normalise
from transferctl.weights import load_whole

CHANNELS_LAST_PIXELS = 128  # measured, fp32, ResNets on a CPU: a fifth slower at 64 pixels, a third faster at 224


class TransferModel(nn.Module):
    """heads: "source" and "target", as far as they exist; classes: each head's class names, in output order.

    `heads_made_of` says how each head was made, so that a checkpoint can rebuild it.
    """

    def __init__(self, library: str, backbone: Any, preprocessing: Preprocessing, task: str):
        super().__init__()
        self.library, self.task = library, task
        self.backbone = backbone
        self.preprocessing = preprocessing
        self.heads = nn.ModuleDict()
        self.classes: dict[str, tuple[str, ...]] = {}
        self.heads_made_of: dict[str, dict[str, Any]] = {}
        self._frozen: set[str] = set()  # names of the backbone's frozen parameters
        self._moving: set[str] = set()  # names of the backbone's norms whose running statistics move
        self._format = torch.contiguous_format

    def add_new_head(
        self, domain: str, classes: Sequence[str], *, hidden: Sequence[int], dropout: float, seed: int
    ) -> None:
        """A head for these classes, its initial weights keyed by (seed, domain)."""
        task = plugins.load("tasks", self.task)
        with keyed_randomness(seed, "head", domain):
            head = task.head(self.backbone.feature_dim, len(classes), hidden=hidden, dropout=dropout)
        made_of = {"kind": "new", "named": True, "hidden": list(hidden), "dropout": dropout}
        self.add_made_head(domain, head, classes, made_of)

    def add_made_head(self, domain: str, head: nn.Module, classes: Sequence[str], made_of: dict[str, Any]) -> None:
        """made_of: as `heads_made_of` has it; without `named`, the classes are numbers for want of names; `names`:
        all of each output, where one has several."""
        self.heads[domain] = head
        self.classes[domain] = tuple(classes)
        self.heads_made_of[domain] = made_of | {"outputs": len(classes)}

    def output_names(self, domain: str) -> list[tuple[str, ...]]:
        """All names (id, name) of each output of a head; none where there is no such head, or it came without."""
        made_of = self.heads_made_of.get(domain, {})
        if not made_of.get("named"):
            return []
        return [tuple(names) for names in made_of.get("names", [[name] for name in self.classes[domain]])]

    def freeze_head(self, domain: str) -> None:
        """Kept as it is, if there is one: nothing trains it."""
        if domain in self.heads:
            self.heads[domain].requires_grad_(False)

    def place(self, compute: Compute) -> TransferModel:
        """On the device, in the memory format that its convolutions are fastest in."""
        channels_last = compute.bf16 or self.preprocessing.crop >= CHANNELS_LAST_PIXELS
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        return self.to(compute.device).to(memory_format=self._format)

    def features(self, inputs: Tensor, after: int = 0) -> Features:
        """inputs: images, uint8 [N, 3, H, W], or what they have become after the first `after` stages; of all stages
        only `pooled`. The backbone's own arithmetic may be bf16; heads and losses are fp32."""
        if after and after == len(self.backbone.stages()):
            return Features(inputs)
        if not after:
            inputs = normalise(inputs, self.preprocessing).contiguous(memory_format=self._format)
        features: Features = self.backbone(inputs, after)
        return features

    def features_of(self, batch: Batch) -> Features:
        """Of images, or of activations after the batch's first `after` stages."""
        return self.features(batch.inputs, batch.after)

    def changing(self) -> set[str]:
        """Names of the backbone's parameters that learn now, and of the norms whose running statistics move."""
        return {name for name, p in self.backbone.net.named_parameters() if p.requires_grad} | self._moving

    def freeze(self, frozen: str | Sequence[str], batchnorm: BatchNorm) -> None:
        """Thaw the backbone but for what `frozen` names: none, all, the last frozen stage, or name patterns.

        Raises SpecError for a stage or a pattern that names nothing.
        """
        net = self.backbone.net
        self._frozen, self._moving = frozen_parameters(self.backbone, frozen), set()
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
        for name, norm in norms(net).items():
            is_frozen = _within(norm, name, self._frozen)
            part = batchnorm.frozen if is_frozen else batchnorm.thawed
            if part != "frozen":
                self._moving.add(name)
                for key, parameter in norm.named_parameters():  # scale and shift
                    by_pattern = not is_frozen and f"{name}.{key}" in self._frozen
                    parameter.requires_grad_(part == "train" and not by_pattern)
        self.train(self.training)

    def train(self, mode: bool = True) -> TransferModel:
        """Frozen modules stay in eval mode, dropout included, whoever calls this; so do all norms whose statistics
        are kept."""
        super().train(mode)
        for name, module in self.backbone.net.named_modules():
            if _within(module, name, self._frozen):
                module.eval()
        for name, norm in norms(self.backbone.net).items():
            norm.train(mode and name in self._moving)
        for head in self.heads.values():
            if not any(p.requires_grad for p in head.parameters()):
                head.eval()
        return self

    def describe(self) -> dict[str, Any]:
        """What `restore` needs besides the weights."""
        return {
            "library": self.library,
            "architecture": self.backbone.name,
            "task": self.task,
            "preprocessing": self.preprocessing.as_dict(),
            "heads": {d: {**self.heads_made_of[d], "classes": list(self.classes[d])} for d in self.heads},
        }


@dataclass(frozen=True)
class BatchNorm:
    """What BatchNorm does in thawed and in frozen stages.

    frozen: it computes with the pretrained running statistics, which stay; scale and shift learn where thawed.
    statistics: it computes with the batch's, and the running ones follow (as AdaBN, Li et al. 2017, adapts to a
    domain); scale and shift stay. train: both (in frozen stages: Frankle et al., ICLR 2021).
    """

    thawed: str = "frozen"
    frozen: str = "frozen"


class Original:
    """The model as fine-tuning starts it: a frozen copy in eval mode, which penalties look back at."""

    def __init__(self, model: TransferModel, compute: Compute):
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self._compute = compute

    def features(self, inputs: Tensor, after: int = 0) -> Features:
        """inputs, after: as `TransferModel.features` takes them, on the model's device."""
        with torch.no_grad(), torch.autocast(self._compute.device.type, torch.bfloat16, enabled=self._compute.bf16):
            return self.model.features(inputs, after)


def norms(net: nn.Module) -> dict[str, nn.Module]:
    """Every BatchNorm of a network, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, _BatchNorm)}


def _within(module: nn.Module, name: str, parameters: set[str]) -> bool:
    """Whether a module has parameters, and all are among those named."""
    own = [f"{name}.{key}" if name else key for key, _ in module.named_parameters()]
    return bool(own) and parameters.issuperset(own)


def in_words(frozen: str | Sequence[str] | Mapping[int, str | Sequence[str]]) -> str:
    if isinstance(frozen, Mapping):
        first, *later = [f"{in_words(what)} from epoch {epoch}" for epoch, what in frozen.items()]
        return ", ".join([first, *later]) if later else in_words(next(iter(frozen.values())))
    return frozen if isinstance(frozen, str) else ", ".join(frozen)


def frozen_parameters(backbone: Any, frozen: str | Sequence[str]) -> set[str]:
    """Names of the parameters that `frozen` names. Raises SpecError where it names nothing."""
    names = [name for name, _ in backbone.net.named_parameters()]
    if frozen == "none":
        return set()
    if frozen == "all":
        return set(names)
    if isinstance(frozen, str):
        return _up_to_stage(backbone, names, frozen)
    for pattern in frozen:
        if not any(fnmatch(name, pattern) for name in names):
            message = f"the pattern {pattern!r} matches no parameter of {backbone.name}; they look like {names[0]}"
            raise SpecError.at("frozen", message)
    return {name for name in names if any(fnmatch(name, pattern) for pattern in frozen)}


def _up_to_stage(backbone: Any, names: Sequence[str], last: str) -> set[str]:
    import difflib

    stages = backbone.stages()
    stage_names = [stage.name for stage in stages]
    if last not in stage_names:
        near = difflib.get_close_matches(last, stage_names, 1, 0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise SpecError.at(
            "frozen",
            f"{backbone.name} has no stage {last!r}{hint} It has {', '.join(stage_names)}; or write none or all",
        )
    prefix = stages[: stage_names.index(last) + 1]
    return {name for name in names if any(stage.owns(name) for stage in prefix)}


def state_for_checkpoint(model: TransferModel) -> dict[str, Tensor]:
    """The backbone's weights under the library's own names after `backbone.`, the heads' after `heads.…`."""
    state = {f"backbone.{name}": tensor for name, tensor in model.backbone.net.state_dict().items()}
    return state | {f"heads.{name}": tensor for name, tensor in model.heads.state_dict().items()}


def load_state(model: TransferModel, checkpoint: Checkpoint) -> None:
    """What `state_for_checkpoint` gave, into a model of the same making. Raises CheckpointError."""
    label = str(checkpoint.path)
    load_whole(model.backbone.net, _part(checkpoint, "backbone."), label)
    for domain, head in model.heads.items():
        load_whole(head, _part(checkpoint, f"heads.{domain}."), f"{label}: {domain} head")


def put_back(model: TransferModel, state: Mapping[str, Tensor]) -> None:
    """Some of the model's tensors as they were, by their names in it. `load_state_dict` would ask the module for more:
    mnasnet refuses a state without its version number."""
    own = model.state_dict()
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def digest(model: TransferModel) -> str:
    """SHA-256 over every weight and its name."""
    found = hashlib.sha256()
    for name, tensor in state_for_checkpoint(model).items():
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def preprocessing_of(checkpoint: Checkpoint) -> Preprocessing:
    """Raises CheckpointError where the manifest describes no model."""
    described.refuse_faulty(checkpoint)
    return Preprocessing.from_dict(checkpoint.manifest["preprocessing"])


def restore(checkpoint: Checkpoint, preprocessing: Preprocessing | None = None) -> TransferModel:
    """The model that a checkpoint holds. Raises CheckpointError where its manifest does not describe one, or its
    weights are not finite."""
    its_own, manifest, label = preprocessing_of(checkpoint), checkpoint.manifest, str(checkpoint.path)
    described.refuse_not_finite(checkpoint.state, label)
    preprocessing = preprocessing or its_own
    library, architecture = manifest["library"], manifest["architecture"]
    plugin = plugins.load("backbones", library)
    try:
        backbone, _ = plugin.build(
            architecture, image_size=preprocessing.crop, state=_part(checkpoint, "backbone."), label=label
        )
    except SpecError as error:
        if any(problem.key == "backbone.name" for problem in error.problems):
            raise CheckpointError(f"{label}/manifest.json: {error}") from None
        raise
    model = TransferModel(library, backbone, preprocessing, manifest["task"])
    for domain, made_of in manifest["heads"].items():
        state, head_label = _part(checkpoint, f"heads.{domain}."), f"{label}: {domain} head"
        described.refuse_larger(backbone.feature_dim, made_of, state, head_label)
        if made_of["kind"] == "pretrained":
            _, head = plugin.build(architecture, image_size=preprocessing.crop, outputs=made_of["outputs"])
            if head is None:
                raise CheckpointError(f"{head_label}: {architecture} has no classifier of its own to put weights into")
            kept = {key: value for key, value in made_of.items() if key != "classes"}
            model.add_made_head(domain, head, made_of["classes"], kept)
        else:
            sizes = {"hidden": made_of.get("hidden", ()), "dropout": made_of.get("dropout", 0.0)}
            model.add_new_head(domain, made_of["classes"], **sizes, seed=0)
        load_whole(model.heads[domain], state, head_label)
    return model


def chosen_domain(model: TransferModel, asked: str | None, trained: Path) -> str:
    """Whose head is used: what is asked for, else the target's, where there is one. Raises CheckpointError where the
    run's model has no such head."""
    domain = asked or ("target" if "target" in model.heads else "source")
    if domain not in model.heads:
        has = " and ".join(model.heads)
        raise CheckpointError(f"{trained}: has no {domain} head; it has {has}: leave out --head {domain}")
    return domain


def _part(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in checkpoint.state.items() if name.startswith(prefix)}
