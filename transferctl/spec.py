"""The spec: every setting, its type, its default and what it means.

`transferctl schema` prints this as JSON Schema. Nothing here imports torch, so a mistake is told in
a fraction of a second. Which kinds of data and which penalties exist is read from their folders.
"""

from __future__ import annotations

import re
from functools import reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from transferctl import backbonetext, plugins
from transferctl.cache.settings import CacheSettings, cache_shorthand
from transferctl.savesettings import CheckpointSettings, checkpoint_shorthand
from transferctl.settings import DataSettings, InputPath, PenaltySettings, Settings, Text, across, as_mapping, of_kind
from transferctl.trackersettings import TrackersSettings, trackers_shorthand
from transferctl.trainsettings import AugmentSettings, HeadTrainingSettings, TrainingSettings

PUBLISHED_NAME = backbonetext.PUBLISHED_NAME


# -- backbone and head --------------------------------------------------------------------------------


class WeightsFile(Settings):
    """Weights from this machine: a state dict, or a run folder of ours."""

    path: InputPath = Field(description="A .safetensors, .pth or .pt state dict, or a run folder.")
    classes: InputPath | None = Field(
        None,
        description="The classes of the file's head, in output order: JSON (names, or objects with id and "
        "name) or a text file with one name a line.",
    )


def _weights_shorthand(value: Any) -> Any:
    """`source`, `none` and published names (upper case) stay; any other text is a path."""
    if not isinstance(value, str):
        return as_mapping(value, "a name, a path or a mapping with `path`")
    return value if value in ("source", "none") or PUBLISHED_NAME.fullmatch(value) else {"path": value}


class BackboneSettings(Settings):
    library: Literal[tuple(plugins.names("backbones"))] = Field(  # type: ignore[valid-type]
        backbonetext.DEFAULT_LIBRARY, description="Where the architecture comes from."
    )
    name: Text = Field(
        description="Architecture, by the library's name: resnet18, vgg16_bn, vit_b_16 …; another library's "
        "with that before it: "
        "timm/vit_small_patch14_dinov2."
    )
    weights: Annotated[
        str | WeightsFile,
        BeforeValidator(_weights_shorthand, json_schema_input_type=str | WeightsFile),
    ] = Field(
        "DEFAULT",
        description="Where it starts: a published name (DEFAULT, IMAGENET1K_V2), a file, {path, classes}, "
        "a run folder, source (train it on `source` first) or none (random).",
    )


def _backbone_shorthand(value: Any) -> Any:
    """A bare name; LIBRARY/NAME stands for both, unless `library` is there."""
    value = {"name": value} if isinstance(value, str) else as_mapping(value, "a name or a mapping with `name`")
    if isinstance(value, dict) and isinstance(value.get("name"), str) and "library" not in value:
        library, name = backbonetext.split(value["name"])
        if library:
            return {**value, "library": library, "name": name}
    return value


def _candidate(value: Any, info: ValidationInfo) -> Any:
    """A text with its path looked for as any other; which files a pattern names is looked at by `rank` alone."""
    if isinstance(text := getattr(value, "text", value), str):
        return str(backbonetext.read(text, (info.context or {}).get("folders", (Path.cwd(),))))
    return as_mapping(value, "a text (NAME, NAME:WEIGHTS, a file, a run) or a mapping with `name`")


Candidate = Annotated[
    str | BackboneSettings, BeforeValidator(_candidate, json_schema_input_type=str | BackboneSettings)
]


class HeadSettings(Settings):
    """The target head: hidden layers (Linear, ReLU), then Linear(…, size)."""

    size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="Outputs; auto = the classes found."
    )
    hidden: Annotated[tuple[Annotated[int, Field(gt=0, le=1_000_000)], ...], Field(strict=False)] = Field(
        (), description="Widths of hidden layers before the last one; none makes a linear head."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before each linear layer of the head.")
    solver: Literal["sgd", "lbfgs"] = Field(
        "sgd",
        description="How a head is trained on frozen features (extract, head_first): sgd, with the settings of "
        "`optimizer` and its kin; or lbfgs, the converged linear probe, which needs none of them.",
    )
    regularisation: Annotated[float, Field(gt=0, le=1e6)] | Literal["auto"] = Field(
        "auto",
        description="lbfgs: α in mean loss + α/2·‖W‖², of standardised features; auto = by cross-validation on "
        "training data.",
    )

    @model_validator(mode="after")
    def _lbfgs_is_for_a_linear_head(self) -> HeadSettings:
        if self.solver == "sgd" and self.regularisation != "auto":
            message = "is for solver: lbfgs; with sgd write optimizer.weight_decay"
            raise across("regularisation", "solver", message)
        for key in ("hidden", "dropout"):
            if self.solver == "lbfgs" and getattr(self, key):
                message = "is for solver: sgd; lbfgs trains a linear head without dropout, whose objective is convex"
                raise across(key, "solver", message)
        return self


# -- images -------------------------------------------------------------------------------------------

Pixels = Annotated[int, Field(gt=0, le=10_000)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


class PreprocessSettings(Settings):
    """What is left out comes from the weights."""

    resize: Pixels | None = Field(None, description="Short side after resizing, pixels.")
    crop: Pixels | None = Field(None, description="Side of the centre crop, pixels: the input size.")
    mean: Triple | None = Field(None, description="Channel means, of values in 0–1.")
    std: Triple | None = Field(None, description="Channel standard deviations, of values in 0–1.")
    interpolation: Literal["bilinear", "bicubic"] | None = Field(None, description="How to resize.")
    decode: Literal["reduced", "whole"] | None = Field(
        None,
        description="reduced (the default): a JPEG of at least four times `resize` is decoded at a half, a quarter or "
        "an eighth of its size, never below twice `resize`: faster, and features move by a few per cent; whole: as it "
        "is.",
    )

    @model_validator(mode="after")
    def _crop_fits(self) -> PreprocessSettings:
        if self.resize and self.crop and self.crop > self.resize:
            raise across("crop", "resize", f"is {self.crop}, larger than preprocess.resize, which is {self.resize}")
        return self

    @field_validator("std")
    @classmethod
    def _std_positive(cls, std: tuple[float, float, float] | None) -> tuple[float, float, float] | None:
        if std and min(std) <= 0:
            raise ValueError("standard deviations must be greater than 0")
        return std


# -- data ---------------------------------------------------------------------------------------------

_DATASETS = {name: plugins.load("datasets", name).Settings for name in plugins.names("datasets")}


def _data_shorthand(value: Any) -> Any:
    """A bare path is a manifest if it ends in .csv, else a folder; `dataset` may be left out beside `path`."""
    if isinstance(value, str):
        value = {"path": value}
    if isinstance(value, dict) and "dataset" not in value and "path" in value:
        kind = "manifest" if str(value["path"]).lower().endswith(".csv") else "folder"
        value = {"dataset": kind, **value}
    return of_kind(as_mapping(value, "a path or a mapping with `dataset`", "dataset"), "dataset", _DATASETS)


def _dataset_name(value: Any) -> str | None:
    name = value.get("dataset") if isinstance(value, dict) else getattr(value, "dataset", None)
    return name if isinstance(name, str) else None


if TYPE_CHECKING:
    Data = DataSettings
else:
    Data = Annotated[
        reduce(or_, [Annotated[settings, Tag(name)] for name, settings in _DATASETS.items()])
        if len(_DATASETS) > 1
        else next(iter(_DATASETS.values())),
        Discriminator(_dataset_name),
        BeforeValidator(_data_shorthand, json_schema_input_type=reduce(or_, _DATASETS.values(), str)),
    ]


Balance = Literal["none", "weights", "sampling"]
_BALANCE = "Against unequal class counts: weights in the loss (each class counts the same), or balanced sampling."


class TargetSettings(Settings):
    train: Data = Field(description="Labelled training data: a folder, a manifest, or {dataset: …}.")
    val: Annotated[float, Field(gt=0, lt=1)] | Data = Field(
        0.2, description="Validation data, or the fraction of train to hold out (stratified, by seed)."
    )
    test: Data | None = Field(None, description="Test data: read once, after training.")
    balance: Balance = Field("none", description=_BALANCE)


class SourceSettings(Settings):
    """What the backbone was pretrained for; turns L_S on in `finetune`."""

    train: Data = Field(description="Labelled source data.")
    val: Annotated[float, Field(gt=0, lt=1)] | Literal["none"] | Data = Field(
        0.2,
        description="Source validation data, or the fraction of train to hold out; none: what is forgotten is not "
        "measured.",
    )
    rehearsal: bool = Field(
        True,
        description="Whether L_S is in the objective of finetune; false: source data is there to measure what is "
        "forgotten, and for penalties that need it.",
    )
    balance: Balance = Field("none", description=_BALANCE)
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Label smoothing of L_S in finetune.")
    augment: AugmentSettings | Literal["none"] = Field(
        "none",
        description="Random changes to source images in finetune. None by default: crops that the backbone was not "
        "pretrained with teach it another task than the one it is to keep.",
    )
    gradient_cosine: bool = Field(
        False, description="Log the cosine between the gradients of L_S and L_T; a step takes about twice the time."
    )
    batch_size: int | None = Field(
        None, gt=0, description="Source samples in a fine-tuning step; default: as many as target."
    )


# -- the whole ---------------------------------------------------------------------------------------


class BaselineSettings(Settings):
    """Beside the result: the same network from random weights on the same target images, honestly."""

    epochs: int = Field(30, gt=0, description="Epochs of the training from scratch.")
    repeats: int = Field(1, gt=0, description="Repeat both with seeds seed, seed+1, … and report the spread.")


def _penalty_shorthand(value: Any) -> Any:
    if value is None:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return {"weight": value} if is_number else as_mapping(value, "a number or a mapping with `weight`")


if TYPE_CHECKING:

    class PenaltiesSettings(Settings):
        def chosen(self) -> dict[str, PenaltySettings]: ...
else:

    class _Penalties(Settings):
        """Terms added to the objective; a bare number is the weight."""

        def chosen(self) -> dict[str, PenaltySettings]:
            values = {name: getattr(self, name) for name in type(self).model_fields}
            return {name: value for name, value in values.items() if value is not None}

    PenaltiesSettings = create_model(
        "PenaltiesSettings",
        __base__=_Penalties,
        **{
            module.__name__.rsplit(".", 1)[1]: (
                Annotated[
                    module.Settings | None,
                    BeforeValidator(_penalty_shorthand, json_schema_input_type=float | module.Settings),
                ],
                Field(None, description=module.__doc__.splitlines()[0]),
            )
            for module in plugins.modules("penalties")
        },
    )


# -- what is thawed -----------------------------------------------------------------------------------

Frozen = Text | Annotated[tuple[Text, ...], Field(strict=False)]
ThawedBatchNorm = Literal["auto", "frozen", "statistics", "train"]


class BatchNormSettings(Settings):
    """frozen: pretrained statistics, unchanged. statistics: those of the batch, and the running ones move; scale and
    shift stay. train: statistics move, scale and shift learn."""

    thawed: ThawedBatchNorm = Field(
        "auto",
        description="In thawed stages: frozen (statistics as pretrained; scale and shift learn), statistics (those of "
        "the batch; scale and shift stay) or train (both); auto = train from random weights, else frozen.",
    )
    frozen: Literal["frozen", "statistics", "train"] = Field(
        "frozen", description="In frozen stages: frozen, statistics (they adapt to the data) or train (scale too)."
    )


def _batchnorm_shorthand(value: Any) -> Any:
    return {"thawed": value} if isinstance(value, str) else as_mapping(value, "a word or a mapping")


class HeadFirstSettings(HeadTrainingSettings):
    """The new heads' own training, before fine-tuning."""

    epochs: int = Field(50, gt=0, description="Epochs of the heads' training; features are computed once.")


class Spec(TrainingSettings):
    """One training: what to start from, what to learn, how."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")] = Field(
        "run", description="Names the run folder; default: the file's name."
    )
    seed: int = Field(0, ge=0, description="Keys every random choice.")
    task: Literal[tuple(plugins.names("tasks"))] = Field(  # type: ignore[valid-type]
        "classification", description="What is predicted."
    )
    device: Annotated[Text, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?|mps)$")] = Field(
        "auto", description="auto, cpu, cuda, cuda:1 or mps."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="Arithmetic of the backbone; auto = bf16 on GPUs and CPUs that have it, else fp32. fp32 is that on "
        "GPUs too, not TF32.",
    )
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="torch.compile for frozen stages, on a CPU; auto = where the images to compute make up for it.",
    )
    workers: Annotated[int, Field(ge=0, le=256)] | Literal["auto"] = Field(
        "auto", description="Processes that decode images, 256 at most; 0 decodes in the main process."
    )
    backbone: Annotated[
        BackboneSettings,
        BeforeValidator(_backbone_shorthand, json_schema_input_type=str | BackboneSettings),
    ] = Field(description="The pretrained network; a bare name takes its default weights.")
    candidates: Annotated[tuple[Candidate, ...], Field(strict=False, min_length=1)] | None = Field(
        None,
        description="rank: further backbones beside `backbone`: NAME, NAME:WEIGHTS, a weights file, a run folder, a "
        "pattern of files or runs, or a mapping as `backbone` takes it.",
    )
    from_run: InputPath | None = Field(
        None,
        alias="from",
        description="finetune: start from this run's best model, its target head included, instead of from "
        "backbone.weights; --from RUN is the same.",
    )
    frozen: Frozen | dict[str, Frozen] = Field(
        "none",
        description="What fine-tuning leaves untouched: none, all, the last frozen stage (layer3), or a list "
        "of parameter-name patterns (layer1.*); or by epoch, to thaw gradually: {1: all, 3: layer3, 6: none}. extract "
        "always freezes all.",
    )
    batchnorm: Annotated[
        BatchNormSettings,
        BeforeValidator(_batchnorm_shorthand, json_schema_input_type=ThawedBatchNorm | BatchNormSettings),
    ] = Field(
        default_factory=BatchNormSettings,
        description="What BatchNorm does in training; a bare word is for thawed stages.",
    )
    head_first: HeadFirstSettings | None = Field(
        None,
        description="finetune: first train the new heads on frozen features, then go on with them: LP-FT (Kumar et "
        "al., ICLR 2022).",
    )
    head: HeadSettings = Field(default_factory=HeadSettings, description="The new head.")
    preprocess: PreprocessSettings = Field(
        default_factory=PreprocessSettings, description="From image to input; default: as the weights ask."
    )
    target: TargetSettings = Field(description="The task to learn.")
    source: SourceSettings | None = Field(None, description="The task the backbone knows; turns L_S on.")
    target_weight: float | None = Field(
        None, alias="lambda", ge=0, description="λ in L_S + λ·L_T; needs `source`; default 1."
    )
    penalties: PenaltiesSettings = Field(
        default_factory=PenaltiesSettings, description="Terms added to the fine-tuning objective."
    )
    pretrain: TrainingSettings = Field(
        default_factory=TrainingSettings, description="Stage 0: how the backbone is trained on `source`."
    )
    baseline: BaselineSettings | None = Field(
        None, description="extract: also train from random weights, for comparison."
    )
    checkpoint: Annotated[
        CheckpointSettings, BeforeValidator(checkpoint_shorthand, json_schema_input_type=str | CheckpointSettings)
    ] = Field(default_factory=CheckpointSettings, description="How often training is saved, to be resumed from.")
    cache: Annotated[CacheSettings, BeforeValidator(cache_shorthand, json_schema_input_type=str | CacheSettings)] = (
        Field(
            default_factory=CacheSettings,
            description="What frozen parts computed is kept for later runs: auto, none, a folder, or settings.",
        )
    )
    trackers: Annotated[
        TrackersSettings,
        BeforeValidator(trackers_shorthand, json_schema_input_type=str | list[str] | TrackersSettings),
    ] = Field(
        default_factory=TrackersSettings,
        description="Experiment trackers that hear of a training: a name, a list of names, or names and settings. None "
        "by default; what goes wrong there never stops a run.",
    )
    report: bool = Field(
        True,
        description="Whether a run ends with report.html in its folder; `transferctl report RUN` makes it at any time.",
    )
    on_bad_sample: Literal["stop", "skip"] = Field(
        "stop", description="An unreadable sample stops the run, or is named, counted and left out."
    )

    @field_validator("frozen")
    @classmethod
    def _from_the_first_epoch(cls, frozen: Frozen | dict[str, Frozen]) -> Frozen | dict[str, Frozen]:
        """A schedule's keys are epochs, in order, from 1."""
        if isinstance(frozen, dict):
            if not all(re.fullmatch("[1-9][0-9]{0,6}", epoch) for epoch in frozen):
                raise ValueError(f"a schedule's keys are epochs, counted from 1; these are {', '.join(frozen)}")
            epochs = [int(epoch) for epoch in frozen]
            if epochs[:1] != [1] or epochs != sorted(epochs):
                raise ValueError("a schedule begins with epoch 1, and its epochs are in order")
        return frozen

    @model_validator(mode="after")
    def _thaws_within_the_training(self) -> Spec:
        if late := [epoch for epoch in self.frozen_by_epoch() if epoch > self.epochs]:
            raise across("frozen", "epochs", f"thaws at epoch {late[0]}, but epochs is {self.epochs}")
        return self

    @model_validator(mode="after")
    def _source_where_needed(self) -> Spec:
        if self.source is None and self.target_weight is not None:
            raise across(
                "lambda", "source", "weighs L_T against L_S, but there is no `source`; add it, or remove lambda"
            )
        if self.source is None and self.backbone.weights == "source":
            raise across("backbone.weights", "source", "is source, but there is no `source` to train on; add it")
        if self.source and not self.source.rehearsal and self.target_weight is not None:
            message = "weighs L_T against L_S, which source.rehearsal: false takes out of the objective; remove one"
            raise across("lambda", "source", message)
        return self

    @model_validator(mode="after")
    def _cosine_needs_the_whole_step(self) -> Spec:
        if self.on_oom == "halve" and self.source and self.source.gradient_cosine:
            message = "needs the gradients of whole steps, which on_oom: halve makes in parts; remove one"
            raise across("source.gradient_cosine", "on_oom", message)
        return self

    def frozen_by_epoch(self) -> dict[int, Frozen]:
        """What is frozen from which epoch on."""
        return {int(k): v for k, v in self.frozen.items()} if isinstance(self.frozen, dict) else {1: self.frozen}


def json_schema() -> dict[str, Any]:
    """The spec as JSON Schema (draft 2020-12), for editors."""
    schema = Spec.model_json_schema(by_alias=True, mode="validation")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "transferctl spec", **schema}
