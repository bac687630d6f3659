"""The seams: what a backbone, a task, a data set and a penalty must offer. Plain types, no behaviour.

Shapes: N samples, D feature dimensions, C classes, H x W pixels or positions.

How other domains fit (so that these contracts need no change of form when they come):

* *Faster R-CNN* computes its losses inside `forward`, from targets of varying size. A `Task` therefore
  gets the head, the features and the targets together (`Task.loss(head, features, labels)`) and may call
  the head as it needs to; the proposals and box head are the "head", `Features.maps` its input, `labels`
  a list of per-image boxes, and `collate` keeps that list ragged.
* *A BERT token classifier* takes ids and a mask and gives one label a token. `Batch.inputs` is whatever
  `collate` makes (there: a mapping of ids and mask), a backbone reads it, and `Features` gains a third
  optional field, `tokens: [N, L, D]`; `Task.loss` ignores the padded labels and stays a mean per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from transferctl.evaluation import Evaluation
    from transferctl.model import Original, TransferModel


@dataclass(frozen=True)
class Features:
    """What a backbone computes. pooled: [N, D], one vector a sample; maps: [N, D', H, W] before pooling."""

    pooled: Tensor
    maps: Tensor | None = None

    def __getitem__(self, rows: slice) -> Features:
        return Features(self.pooled[rows], None if self.maps is None else self.maps[rows])

    def in_fp32(self) -> Features:
        """What heads and losses take, whatever the backbone computed in."""
        return Features(self.pooled.float(), None if self.maps is None else self.maps.float())


@dataclass(frozen=True)
class Mixed:
    """What mixup or CutMix made of a batch: each row is `share` [N] itself and 1 − share a partner of its own
    domain, whose labels are `partners` [N] int64."""

    partners: Tensor
    share: Tensor

    def __getitem__(self, rows: slice) -> Mixed:
        return Mixed(self.partners[rows], self.share[rows])


@dataclass(frozen=True)
class Batch:
    """One step's samples of both domains; the first `n_source` rows are source, the rest target.

    inputs: uint8 [N, 3, H, W] (images, not yet normalised; float, of 0 to 255, once they are mixed), or what these have
    become after the backbone's first `after` stages. labels: int64 [N], each a position in its own domain's class map.
    names: what people call the samples, for messages. digests: SHA-256 of what each was read from, uint8 [N, 32], where
    it was asked for.
    """

    inputs: Any
    labels: Tensor
    n_source: int = 0
    names: tuple[str, ...] = ()
    mixed: Mixed | None = None
    digests: np.ndarray | None = None
    after: int = 0

    @property
    def source(self) -> slice:
        return slice(0, self.n_source)

    @property
    def target(self) -> slice:
        return slice(self.n_source, len(self.labels))

    def to(self, device: torch.device) -> Batch:
        """A GPU fetches what is pinned while the CPU goes on."""
        fetched = device.type == "cuda"
        inputs, labels = (tensor.to(device, non_blocking=fetched) for tensor in (self.inputs, self.labels))
        return replace(self, inputs=inputs, labels=labels)

    def pin_memory(self) -> Batch:
        """What a DataLoader calls."""
        return replace(self, inputs=self.inputs.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class StepContext:
    """What a penalty may look at: the model as it is in this step, what it computed on the batch, and the model as
    fine-tuning started it."""

    model: TransferModel
    features: Features
    batch: Batch
    original: Original | None = None

    @cached_property
    def original_target_features(self) -> Features:
        """What the original computes on the batch's target rows, no gradient; once a step, whoever asks."""
        assert self.original is not None, "fine-tuning with penalties keeps the original"
        return self.original.features(self.batch.inputs[self.batch.target], self.batch.after)


@dataclass(frozen=True)
class PenaltyStart:
    """What a penalty is built from, before the first step.

    model: as it starts; original: its frozen copy. batches(name, most): training images of "target" or "source", or
    the images of "source_val", or what frozen stages made of them (`Batch.after`), on the model's device, each once,
    not augmented; `most` samples, drawn by the seed, or all (None); no batch where there is no such data. seed: keys
    what is drawn. note: tells people what was inferred. once(compute): the tensors that compute() gives, by name, kept
    with the run, so that a resumed one does not compute them again; to be called once at most.
    """

    model: TransferModel
    original: Original
    batches: Callable[[str, int | None], Iterator[Batch]]
    seed: int
    note: Callable[[str], None]
    once: Callable[[Callable[[], dict[str, Tensor]]], dict[str, Tensor]] = lambda compute: compute()


@dataclass(frozen=True)
class Stage:
    """A part of a backbone, in the order in which the input passes through.

    `parameters` are name prefixes in the network; `forward` takes the stage before's output.
    """

    name: str
    parameters: tuple[str, ...]
    forward: Callable[[Tensor], Tensor]

    def owns(self, parameter: str) -> bool:
        return any(parameter == prefix or parameter.startswith(f"{prefix}.") for prefix in self.parameters)


class Backbone(Protocol):
    """A feature extractor, an nn.Module. Its parameters are named as its library names them.

    `stages()` are composable, input to output, and together own every parameter, so that a prefix can be
    frozen, run once and its output cached. `feature_dim` is D of `Features.pooled`. `prefix_tokens`: where stages hand
    on tokens [N, L, D], how many come before those of patches. `notes`: what people should know of it.
    """

    name: str
    feature_dim: int
    prefix_tokens: int
    notes: tuple[str, ...]

    def stages(self) -> Sequence[Stage]: ...
    def fingerprint(self, stages: int | None = None) -> str:
        """SHA-256 over the architecture's name and every weight, or those of the first `stages`: the identity of what
        they compute."""
        ...

    def forward(self, x: Tensor, after: int = 0) -> Features:
        """x: float [N, 3, H, W], normalised, or the output of the first `after` stages."""
        ...


class Dataset(Protocol):
    """Labelled samples. Listing is cheap; `read` decodes one.

    `class_names` are the names that occur here, sorted; `labels` ([N] int32) are positions in them and
    mean nothing outside this object: data.py maps them through the one class map, by name.
    `notes` say what was ignored or looks odd, for the plan and the log. `reads_files`: whether a sample costs
    enough to decode that worker processes pay.
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    notes: tuple[str, ...]
    reads_files: bool

    def __len__(self) -> int: ...
    def name(self, index: int) -> str:
        """What people call this sample: its path, as a rule."""
        ...

    def read(self, index: int, at_least: int = 0) -> Any:
        """The decoded sample (an RGB PIL image), the caller's own. at_least: its short side may be reduced to so many
        pixels where decoding gets cheaper by it; 0: whole. Its `info` may say how it was stored, see
        images.STORED_AS. Raises BadSample."""
        ...

    def read_hashed(self, index: int, at_least: int = 0) -> tuple[Any, bytes]:
        """As `read`, and `content_hash` as 32 bytes, of the very bytes that were decoded. Raises BadSample."""
        ...

    def content_hash(self, index: int) -> str:
        """SHA-256 of the stored bytes (or pixels): equal for identical samples. Raises BadSample."""
        ...


class Meter(Protocol):
    """A running score kept as sums and counts: exact under any batching, mergeable across processes."""

    def update(self, logits: Tensor, labels: Tensor) -> None: ...
    def merge(self, other: Any) -> None: ...
    def compute(self) -> dict[str, Any]: ...


class Task(Protocol):
    """What is predicted, how it is scored."""

    def head(self, feature_dim: int, outputs: int, *, hidden: Sequence[int] = (), dropout: float = 0.0) -> nn.Module:
        """A new head: Features -> logits [N, outputs]."""
        ...

    def collate(self, samples: Sequence[Any], labels: Sequence[int], n_source: int, names: Sequence[str]) -> Batch: ...

    def loss(
        self,
        head: nn.Module,
        features: Features,
        targets: Tensor,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Mean loss over the given samples, a scalar in fp32. targets: labels, or what `soft_targets` makes."""
        ...

    def soft_targets(self, labels: Tensor, mixed: Mixed, outputs: int) -> Tensor:
        """Targets of mixed samples: `share` of each label and 1 − share of its partner's."""
        ...

    def meter(self, class_names: Sequence[str]) -> Meter: ...

    def evaluation(self, class_names: Sequence[str], top: Sequence[int] = ()) -> Evaluation:
        """What scores a finished model, where `meter` does while it trains. top: further k of top-k accuracy."""
        ...


class Penalty(Protocol):
    """A term added to the objective; its value does not depend on the batch size.

    A penalty's module has `Settings`, `NEEDS` (which of "pretrained weights", "source data" and "source head" it
    cannot do without), and `build(settings, start: PenaltyStart) -> Penalty`. Its docstring's first line says what it
    is, with its formula; the rest names the paper.
    """

    weight: float

    def __call__(self, context: StepContext) -> Tensor: ...


class BadSample(Exception):
    """One sample that cannot be read. The message says why; the loader knows which."""
