"""What a checkpoint's manifest must say for a model to be rebuilt from it. A manifest may come from anyone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from transferctl import plugins
from transferctl.checkpoint import Checkpoint
from transferctl.errors import CheckpointError
from transferctl.spec import Pixels, Triple
from transferctl.weights import is_finite
from transferctl.wording import counted, faults_in, shown


class _Described(BaseModel):
    """As strict as the spec, but open: later versions may say more."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Preprocessing(_Described):
    """Closed: what this version does not know would make other pixels."""

    model_config = ConfigDict(extra="forbid")

    resize: Pixels
    crop: Pixels
    mean: Triple
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=3, max_length=3)]
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    decode: Literal["reduced", "whole"] = "reduced"


class _Head(_Described):
    kind: Literal["new", "pretrained"]
    outputs: Annotated[int, Field(gt=0)]
    classes: list[str]
    named: bool = False
    names: list[Annotated[list[str], Field(min_length=1)]] | None = None
    hidden: list[Annotated[int, Field(gt=0)]] = []
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _as_many_names_as_outputs(self) -> _Head:
        for key, names in (("classes", self.classes), ("names", self.names)):
            if names is not None and len(names) != self.outputs:
                raise ValueError(f"{key} has {len(names)} for {self.outputs} outputs")
        return self


class _Model(_Described):
    library: Literal[tuple(plugins.names("backbones"))]  # type: ignore[valid-type]
    task: Literal[tuple(plugins.names("tasks"))]  # type: ignore[valid-type]
    architecture: str
    preprocessing: _Preprocessing
    heads: Annotated[dict[Literal["source", "target"], _Head], Field(min_length=1)]
    epoch: int = 0
    step: int = 0
    val: dict[str, Any] = {}
    untrained_heads: list[str] = []


def refuse_faulty(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError, naming the manifest and each key in it that is not what it must be."""
    try:
        _Model.model_validate(checkpoint.manifest)
    except ValidationError as error:
        raise CheckpointError(
            f"{checkpoint.path}/manifest.json: does not describe a model ({faults_in(error)}); use a run folder as "
            "transferctl wrote it"
        ) from None


def refuse_larger(feature_dim: int, made_of: Mapping[str, Any], state: Mapping[str, Tensor], label: str) -> None:
    """Where a head is described larger than its weights are: it would take memory that they do not fill.

    state: the head's weights. Raises CheckpointError."""
    widths = [feature_dim, *made_of.get("hidden", []), made_of["outputs"]]
    if sum(a * b for a, b in pairwise(widths)) > sum(tensor.numel() for tensor in state.values()):
        described = "→".join(map(str, widths))
        raise CheckpointError(
            f"{label}: its manifest describes layers {described}, which its weights do not "
            "fill; use a run folder as transferctl wrote it"
        )


def refuse_not_finite(state: Mapping[str, Tensor], label: str) -> None:
    """Raises CheckpointError, naming the tensors."""
    if broken := [name for name, tensor in state.items() if not is_finite(tensor)]:
        raise CheckpointError(
            f"{label}: NaN or infinity in {counted(len(broken), 'tensor')} ({shown(broken)}), with which nothing can "
            "be predicted; use a checkpoint from before training diverged"
        )
