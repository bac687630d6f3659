"""How a stage is trained: the settings that pretraining, heads and fine-tuning share. No torch here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from transferctl.settings import Settings, across, as_mapping, of_kind


class AugmentSettings(Settings):
    """Training images only: random resized crop, then a random mirror image."""

    crop_scale: Annotated[tuple[float, float], Field(strict=False)] = Field(
        (0.35, 1.0), description="Smallest and largest part of the image's area that a crop covers."
    )
    flip: bool = Field(True, description="Mirror half of the images left to right.")

    @field_validator("crop_scale")
    @classmethod
    def _in_order(cls, scale: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError("must be two numbers in order, between 0 and 1")
        return scale


Decay = Annotated[float, Field(ge=0, lt=1)]


class SgdSettings(Settings):
    name: Literal["sgd"] = Field("sgd", description="Stochastic gradient descent.")
    lr: float = Field(0.01, gt=0, le=1e6, description="Learning rate.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum.")
    nesterov: bool = Field(False, description="Nesterov's momentum.")
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="L2 weight decay on every trained parameter.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SgdSettings:
        if self.nesterov and not self.momentum:
            raise across("nesterov", "momentum", "needs a momentum greater than 0")
        return self


class AdamSettings(Settings):
    name: Literal["adam"] = Field(description="Adam.")
    lr: float = Field(0.001, gt=0, le=1e6, description="Learning rate.")
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = Field(
        (0.9, 0.999), description="Decay of the running means of the gradient and of its square."
    )
    weight_decay: float = Field(0.0, ge=0, le=1e6, description="L2 weight decay, through the gradient.")


class AdamWSettings(AdamSettings):
    name: Literal["adamw"] = Field(description="Adam with decoupled weight decay.")  # type: ignore[assignment]
    weight_decay: float = Field(0.01, ge=0, le=1e6, description="Decoupled weight decay.")


def _optimizer_name(value: Any) -> str | None:
    name = value.get("name", "sgd") if isinstance(value, dict) else getattr(value, "name", None)
    return name if isinstance(name, str) else None


_OPTIMIZERS = ("sgd", "adam", "adamw")


def _optimizer_shorthand(value: Any) -> Any:
    if isinstance(value, str):
        value = {"name": value}
    return of_kind(
        as_mapping(value, f"a name ({', '.join(_OPTIMIZERS)}) or a mapping with `name`"), "name", _OPTIMIZERS
    )


Optimizer = Annotated[
    Annotated[SgdSettings, Tag("sgd")] | Annotated[AdamSettings, Tag("adam")] | Annotated[AdamWSettings, Tag("adamw")],
    Discriminator(_optimizer_name),
    BeforeValidator(
        _optimizer_shorthand,
        json_schema_input_type=Literal[_OPTIMIZERS] | SgdSettings | AdamSettings | AdamWSettings,
    ),
]


class TrainingSettings(Settings):
    """Settings of one training stage."""

    epochs: int = Field(10, gt=0, description="Passes over the training data.")
    batch_size: int = Field(
        32, gt=0, description="At most this many samples a step; an epoch is cut into equal batches."
    )
    optimizer: Optimizer = Field(
        default_factory=SgdSettings, description="How parameters are updated; a bare name takes its defaults."
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="Learning rate over the training: half a cosine down to 0, or constant."
    )
    augment: AugmentSettings | Literal["none"] = Field(
        default_factory=AugmentSettings,
        description="Random changes to training images; extract never augments, as features are computed once.",
    )
