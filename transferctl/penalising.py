"""The spec's penalties: what each needs, and each built from the model as it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from transferctl import plugins
from transferctl.contracts import Batch, Penalty, PenaltyStart
from transferctl.data import Split
from transferctl.display import Display
from transferctl.errors import Problem, SpecError
from transferctl.inputs import Inputs
from transferctl.model import Original, TransferModel
from transferctl.spec import Spec

STATISTICS_BATCH = 64


def needs(spec: Spec) -> dict[str, tuple[str, ...]]:
    """What each chosen penalty cannot do without."""
    return {name: plugins.load("penalties", name).NEEDS for name in spec.penalties.chosen()}


def source_head_trains(spec: Spec) -> bool:
    """Whether something in the objective goes through the source head: L_S, or a penalty."""
    return bool(spec.source and spec.source.rehearsal) or any(
        "source head" in wanted for wanted in needs(spec).values()
    )


def refuse_unmet_needs(spec: Spec, model: TransferModel | None = None, fresh_heads: Sequence[str] = ()) -> None:
    """Raises SpecError for penalties that lack something: by the spec alone, or with the model as it starts too."""
    from_random = spec.backbone.weights == "none" and spec.from_run is None
    lacking = {
        "pretrained weights": "there are none to look back at: backbone.weights is none" if from_random else "",
        "source data": "" if spec.source else "there is no `source`; add it",
        "source head": "" if model is None or _knows_source(model, fresh_heads) else "the source head is a new one",
    }
    problems = [
        Problem(f"penalties.{name}", f"needs {_article(need)}{need}, but {lacking[need]}")
        for name, wanted in needs(spec).items()
        for need in wanted
        if lacking[need]
    ]
    if problems:
        raise SpecError(problems)


def _knows_source(model: TransferModel, fresh_heads: Sequence[str]) -> bool:
    return "source" in model.heads and "source" not in fresh_heads


def _article(need: str) -> str:
    return "a pretrained " if need == "source head" else ""


def build(
    spec: Spec,
    model: TransferModel,
    original: Original,
    inputs: Inputs,
    splits: Mapping[str, Split],
    references: dict[str, Tensor],
    display: Display,
) -> dict[str, Penalty]:
    """splits: what PenaltyStart.batches may ask for, as far as it is there. references: what an earlier process of the
    run has computed once, by PENALTY/NAME; what is not there yet is computed, and put there."""
    batches = partial(_batches, inputs, spec.seed, splits, display)
    built = {}
    for name, settings in spec.penalties.chosen().items():
        once = partial(_once, references, name, inputs.compute.device)
        start = PenaltyStart(model, original, batches, spec.seed, display.note, once)
        built[name] = plugins.load("penalties", name).build(settings, start)
    return built


def _once(
    references: dict[str, Tensor], name: str, device: torch.device, compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    prefix = f"{name}/"
    kept = {key.removeprefix(prefix): t.to(device) for key, t in references.items() if key.startswith(prefix)}
    if not kept:
        # laid out as a file gives it back: what a penalty sums in another order has other last bits
        kept = {key: tensor.contiguous() for key, tensor in compute().items()}
        references |= {prefix + key: tensor for key, tensor in kept.items()}
    return kept


def _batches(
    inputs: Inputs, seed: int, splits: Mapping[str, Split], display: Display, name: str, most: int | None
) -> Iterator[Batch]:
    """See PenaltyStart. In the split's order, so that what is read ahead lies together."""
    if not len(splits.get(name, ())):
        return
    split = splits[name]
    n = len(split) if most is None else min(most, len(split))
    if n < len(split):
        drawn = np.sort(np.random.default_rng([seed, 3]).permutation(len(split))[:n])
        batches = inputs.drawn_batches(split, drawn, STATISTICS_BATCH)
    else:
        batches = inputs.scoring_batches(split, STATISTICS_BATCH)
    with display.progress(f"penalties look at {name}", n) as progress:
        for batch in batches:
            here = batch.to(inputs.compute.device)
            yield replace(here, inputs=here.inputs.float()) if here.after else here  # gradients are taken in fp32
            progress.advance(len(batch.labels))
