"""One backbone on the target's training data: cached features, the cross-validated probe, k-NN, scores, costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from transferctl import bootstrap, costs, crossvalidation, features, heads, knn, lineage, loaders, pipeline, plugins
from transferctl.cache.cache import Cache
from transferctl.candidates import Candidate
from transferctl.contracts import Features, Task
from transferctl.costs import Costs
from transferctl.data import Split
from transferctl.decodedonce import DecodedOnce
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.evidence import Evidence, Undefined
from transferctl.features import FeatureTable
from transferctl.frozen import FrozenStages
from transferctl.pipeline import Pretrained
from transferctl.spec import Spec

SPEED_BATCH = 64  # images, or as many as a CPU computes at once
HEAD_ROWS = 512  # of heads of 21,841 classes 90 MB in float64
LEAST_GAIN = 1e-5  # of J by a step: in two fifths of the time, accuracy within 0.2 points of the converged probe's


@dataclass(frozen=True)
class Share:
    """The part of n predictions that is right, with Wilson's 95 % interval (1927)."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, right: np.ndarray) -> Share:
        """right: bool [n]."""
        return cls(float(right.mean()), *bootstrap.wilson(int(right.sum()), len(right)), len(right))


@dataclass(frozen=True)
class Assessed:
    """right: bool [n], whether the probe predicts each sample that it was not trained on. scores: by the name of each
    score's file; what is not defined is None there, and has its reason in `empty`, as an absent k-NN has. learnt: from
    these very samples; copies: samples that are another's very image; twin: the label of an earlier candidate that has
    the same weights."""

    candidate: Candidate
    origin: str
    right: np.ndarray
    probe: Share
    knn: Share | None
    scores: dict[str, float | None]
    empty: dict[str, str]
    costs: Costs
    learnt: bool
    copies: int
    product: str
    elapsed_s: float
    twin: str = ""

    @property
    def label(self) -> str:
        return self.candidate.label


@dataclass(frozen=True)
class Assessor:
    """What all candidates share. train: the samples; fold_of: int64 [n], the fold of each."""

    train: Split
    classes: tuple[str, ...]
    fold_of: np.ndarray
    compute: Compute
    cache: Cache
    display: Display
    decode: DecodedOnce = field(default_factory=DecodedOnce)

    def __call__(self, candidate: Candidate, spec: Spec) -> Assessed:
        """spec: with the candidate as its backbone. Nothing of the backbone is kept. Raises SpecError, CheckpointError,
        DivergedError (features that are no numbers) and what memory that runs out raises, for this backbone; DataError
        for the samples."""
        started = time.monotonic()
        start, task = pipeline.load_backbone(spec), pipeline.task_of(spec)
        learnt = lineage.learnt_from(spec, self.train)
        model = pipeline.transfer_model(spec, start, self.classes, self.display).eval()
        gflop = costs.gflop(model.backbone, model.preprocessing.crop)
        model.place(self.compute)
        stages = FrozenStages(
            model, len(model.backbone.stages()), self.compute, self.display, compile_=spec.compile
        )  # fmt: skip
        images_per_s = costs.images_per_s(stages, self._some_images(stages, task))
        workers = loaders.workers_for(spec.workers, self.train)
        table = features.compute(
            stages, self.train, task, self.cache, self.display, workers=workers, decode=self.decode
        )
        samples = heads.samples_of(table, len(self.classes), self.compute)
        curve = crossvalidation.cross_validate(samples, self.fold_of, least_gain=LEAST_GAIN)
        predicted = crossvalidation.out_of_fold(curve, self.fold_of)
        evidence = Evidence(samples, *_source_head(start, table, self.compute, learnt.head))
        scores, empty = _scores(evidence)
        neighbours = _neighbours(evidence, spec.seed, empty)
        parameters = sum(parameter.numel() for parameter in model.backbone.parameters())
        cost = Costs(
            model.preprocessing.crop, model.backbone.feature_dim, parameters, gflop, images_per_s,
            table.rows.distinct * stages.row_bytes,
        )  # fmt: skip
        right = predicted == self.train.labels
        return Assessed(
            candidate, start.origin, right, Share.of(right), neighbours, scores, empty, cost, learnt.backbone,
            len(table) - table.rows.distinct, stages.product.key, time.monotonic() - started,
        )  # fmt: skip

    def _some_images(self, stages: FrozenStages, task: Task) -> Tensor:
        """The first ones, as the backbone wants them: uint8 [N, 3, H, W] on its device."""
        size = min(SPEED_BATCH, stages.chunk if self.compute.device.type == "cpu" else SPEED_BATCH, len(self.train))
        first = self.decode(
            self.train, np.arange(size), None, task, stages.preprocessing, batch_size=size, workers=0
        )  # fmt: skip
        with closing(first):
            images: Tensor = next(first).to(self.compute.device).inputs
        return images


def _source_head(
    start: Pretrained, table: FeatureTable, compute: Compute, has_learnt: bool
) -> tuple[Callable[[], Iterable[Tensor]] | None, str]:
    """The source head's probabilities, and why there are none."""
    if start.head is None:
        return None, "it has no source head" if start.origin != "random weights" else "random weights have no head"
    if has_learnt:
        return None, "its head has learnt these very labels"
    head = start.head.to(compute.device).eval()
    if not _takes_pooled_features(head, table, compute):
        return None, "its source head works on feature maps, which are not kept"
    return partial(_probabilities, head, table, compute), ""


def _takes_pooled_features(head: nn.Module, table: FeatureTable, compute: Compute) -> bool:
    try:
        next(iter(_probabilities(head, table, compute, rows=1)))
    except (AttributeError, TypeError, RuntimeError):
        return False
    return True


def _probabilities(head: nn.Module, table: FeatureTable, compute: Compute, rows: int = HEAD_ROWS) -> Iterator[Tensor]:
    """float32 [m, Z] a chunk, on the features' device."""
    for batch in features.evaluation_batches(table, rows):
        with torch.no_grad():
            logits: Tensor = head(Features(batch.inputs.to(compute.device)))
            yield logits.float().softmax(1)


def _scores(evidence: Evidence) -> tuple[dict[str, float | None], dict[str, str]]:
    found: dict[str, float | None] = {}
    empty: dict[str, str] = {}
    for name in plugins.names("scores"):
        plugin = plugins.load("scores", name)
        found[name] = None
        if plugin.NEEDS_SOURCE_HEAD and evidence.source_probabilities is None:
            empty[name] = evidence.no_source_head
            continue
        try:
            value = float(plugin.score(evidence))
        except Undefined as reason:
            empty[name] = str(reason)
            continue
        if math.isfinite(value):
            found[name] = value
        else:
            empty[name] = f"it is {value}"
    return found, empty


def _neighbours(evidence: Evidence, seed: int, empty: dict[str, str]) -> Share | None:
    try:
        positions, predicted = knn.predict(evidence.features, seed)
    except Undefined as reason:
        empty["knn"] = str(reason)
        return None
    return Share.of(predicted == evidence.features.labels[positions])
