"""How a stage is trained: the settings that pretraining, heads and fine-tuning share. No torch here."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from transferctl.settings import Settings, Text, across, as_mapping, of_kind

# -- images -------------------------------------------------------------------------------------------


class RandAugmentSettings(Settings):
    """RandAugment: Cubuk et al., CVPR Workshops 2020."""

    magnitude: int = Field(9, ge=0, le=30, description="Strength of each operation, 0 to 30.")
    operations: int = Field(2, gt=0, le=16, description="Operations an image, drawn at random.")


def _randaugment_shorthand(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return {"magnitude": value}
    return None if value is None else as_mapping(value, "a whole number or a mapping")


class AugmentSettings(Settings):
    """Training images only: random resized crop, mirror, RandAugment; then mixed with others of the batch."""

    crop_scale: Annotated[tuple[float, float], Field(strict=False)] = Field(
        (0.35, 1.0), description="Smallest and largest part of the image's area that a crop covers."
    )
    flip: bool = Field(True, description="Mirror half of the images left to right.")
    randaugment: Annotated[
        RandAugmentSettings | None,
        BeforeValidator(_randaugment_shorthand, json_schema_input_type=int | RandAugmentSettings),
    ] = Field(None, description="RandAugment after the crop; a bare number is the magnitude.")
    views: int | None = Field(
        None,
        gt=0,
        le=1000,
        description="Only this many random versions of each image, in turn by epoch, instead of a new one each time: "
        "what frozen stages make of them is then computed once and cached.",
    )
    mixup: float | None = Field(
        None, gt=0, le=100, description="Mixup's α: two images of a domain blended, and their labels."
    )
    cutmix: float | None = Field(
        None, gt=0, le=100, description="CutMix's α: a box of one image in another; with mixup, one of both a step."
    )

    @field_validator("crop_scale")
    @classmethod
    def _in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("must be two numbers in order, between 0 and 1")
        return scale


# -- optimizers ---------------------------------------------------------------------------------------

Rate = Annotated[float, Field(gt=0, le=1e6)]
Decay = Annotated[float, Field(ge=0, lt=1)]


class _OptimizerSettings(Settings):
    """What every optimizer accepts."""

    stage_lr: dict[Text, Rate] = Field(
        {}, description="Learning rates of single stages (layer4), of `head` and of `source_head`, in place of lr."
    )
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="Each stage's rate is this times that of the stage after it; the heads have lr."
    )
    decayed: Literal["weights", "all"] = Field(
        "weights", description="What weight decay is for: weights alone, or norms and biases too."
    )


class SgdSettings(_OptimizerSettings):
    name: Literal["sgd"] = Field("sgd", description="Stochastic gradient descent.")
    lr: Rate = Field(0.01, description="Learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")
    nesterov: bool = Field(False, description="Nesterov's momentum.")
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="L2 weight decay.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdSettings:
        if self.nesterov and not self.momentum:
            raise across("nesterov", "momentum", "needs a momentum greater than 0")
        return self


class AdamSettings(_OptimizerSettings):
    name: Literal["adam"] = Field(description="Adam.")
    lr: Rate = Field(0.001, description="Learning rate.")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999), description="Decay of the running means of the gradient and of its square."
    )
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="L2 weight decay, through the gradient.")


class AdamWSettings(AdamSettings):
    name: Literal["adamw"] = Field(description="Adam with decoupled weight decay.")  # type: ignore[assignment]
    weight_decay: float = Field(0.01, ge=0, le=1e6, description="Decoupled weight decay.")


# -- schedules ----------------------------------------------------------------------------------------


class _ScheduleSettings(Settings):
    """What every schedule accepts."""

    warmup: float = Field(
        0.0, ge=0, lt=1, description="Part of the training in which the rate first rises, linearly from 1 %."
    )


class CosineSettings(_ScheduleSettings):
    name: Literal["cosine"] = Field("cosine", description="Half a cosine down to 0.")


class ConstantSettings(_ScheduleSettings):
    name: Literal["constant"] = Field(description="The same rate throughout.")


class LinearSettings(_ScheduleSettings):
    name: Literal["linear"] = Field(description="A straight line down to 0.")


class StepSettings(_ScheduleSettings):
    name: Literal["step"] = Field(description="The rate falls at given parts of the training.")
    at: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False, min_length=1)] = Field(
        (0.5, 0.75), description="Where it falls, as parts of the training: [0.5, 0.75]."
    )
    factor: float = Field(0.1, gt=0, lt=1, description="What the rate is multiplied by each time.")

    @model_validator(mode="after")
    def _falls_after_the_warm_up(self) -> StepSettings:
        if min(self.at) < self.warmup:
            raise across("at", "warmup", f"falls at {min(self.at):g}, before the warm-up ends at {self.warmup:g}")
        return self


class OneCycleSettings(Settings):
    name: Literal["one_cycle"] = Field(description="Up to lr and down to almost 0, each half a cosine.")
    warmup: float = Field(0.3, gt=0, lt=1, description="Part of the training in which the rate rises, from lr/25.")


_OPTIMIZERS = {"sgd": SgdSettings, "adam": AdamSettings, "adamw": AdamWSettings}
_SCHEDULES = {
    "cosine": CosineSettings,
    "constant": ConstantSettings,
    "linear": LinearSettings,
    "step": StepSettings,
    "one_cycle": OneCycleSettings,
}


def _named(kinds: dict[str, type[Settings]], default: str) -> Any:
    """The settings of one of the kinds, by `name`; a bare name takes its defaults."""

    def shorthand(value: Any) -> Any:
        if isinstance(value, str):
            value = {"name": value}
        return of_kind(as_mapping(value, f"a name ({', '.join(kinds)}) or a mapping with `name`"), "name", kinds)

    def name_of(value: Any) -> str | None:
        name = value.get("name", default) if isinstance(value, dict) else getattr(value, "name", None)
        return name if isinstance(name, str) else None

    return Annotated[
        reduce(or_, [Annotated[settings, Tag(name)] for name, settings in kinds.items()]),
        Discriminator(name_of),
        BeforeValidator(shorthand, json_schema_input_type=reduce(or_, kinds.values(), Literal[tuple(kinds)])),
    ]


Schedule = CosineSettings | ConstantSettings | LinearSettings | StepSettings | OneCycleSettings
if TYPE_CHECKING:
    Optimizer = SgdSettings | AdamSettings | AdamWSettings
    NamedSchedule = Schedule
else:
    Optimizer = _named(_OPTIMIZERS, "sgd")
    NamedSchedule = _named(_SCHEDULES, "cosine")

# -- stages -------------------------------------------------------------------------------------------


def _or_auto(schema: dict[str, Any]) -> None:
    bounds = {key: schema.pop(key) for key in ("type", "exclusiveMinimum") if key in schema}
    schema["anyOf"] = [bounds, {"const": "auto"}]


class HeadTrainingSettings(Settings):
    """Settings of a training on features, which are computed once: no augmentation."""

    epochs: int = Field(10, gt=0, description="Passes over the training data.")
    batch_size: int = Field(
        32,
        gt=0,
        description="At most this many samples a step; an epoch is cut into equal batches. auto: 32, with on_oom: "
        "halve.",
        json_schema_extra=_or_auto,
    )
    on_oom: Literal["stop", "halve"] = Field(
        "stop",
        description="Where a step does not fit into memory: stop, or halve, which makes it in two, four … "
        "micro-batches whose gradients add up to those of the batch.",
    )
    optimizer: Optimizer = Field(
        default_factory=SgdSettings, description="How parameters are updated; a bare name takes its defaults."
    )
    schedule: NamedSchedule = Field(
        default_factory=CosineSettings, description="Learning rate over the training; a bare name takes its defaults."
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Part of each label spread over all classes (Szegedy et al., CVPR 2016)."
    )
    keep: Literal["best", "last"] = Field(
        "best",
        description="The epoch that is kept: the best by validation accuracy, or the last, where validation data is "
        "too little to choose by.",
    )
    early_stopping: int | None = Field(
        None,
        gt=0,
        description="Stop after this many epochs without a better validation score; the learning rate still "
        "follows all `epochs`.",
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Validate and keep the running mean of the weights, with this decay a step: 0.999.",
    )

    @model_validator(mode="before")
    @classmethod
    def _auto_batch_size(cls, values: Any) -> Any:
        """batch_size: auto is 32 samples, whatever fits into memory at once."""
        if not isinstance(values, dict) or values.get("batch_size") != "auto":
            return values
        if values.get("on_oom", "halve") != "halve":
            raise across("batch_size", "on_oom", "is auto, which halves micro-batches, but on_oom is not; remove one")
        return values | {"batch_size": 32, "on_oom": "halve"}

    @model_validator(mode="after")
    def _early_stopping_needs_a_best(self) -> HeadTrainingSettings:
        if self.early_stopping and self.keep == "last":
            raise across("early_stopping", "keep", "waits for a better epoch, but keep is last; remove one")
        return self


class TrainingSettings(HeadTrainingSettings):
    """Settings of one training stage."""

    augment: AugmentSettings | Literal["none"] = Field(
        default_factory=AugmentSettings,
        description="Random changes to training images; extract never augments, as features are computed once.",
    )
