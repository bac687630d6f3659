"""What swept settings name of a network, looked up in it before any member runs: architectures, stages, parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from transferctl import optim, pipeline, plugins
from transferctl.errors import Problem, SpecError, is_out_of_memory
from transferctl.model import TransferModel, frozen_parameters
from transferctl.spec import Spec
from transferctl.sweeps.book import Asked
from transferctl.sweeps.space import Member

NAMING = ("backbone", "preprocess", "frozen", "optimizer.stage_lr")  # keys of what a network may not have
OF_A_STAGE = ("head_first.", "pretrain.")  # that have an optimizer of their own


def faults(asked: Asked, members: Sequence[Member], wholes: Sequence[Spec]) -> list[Problem]:
    """What their networks do not have, each told once; nothing where no setting that is swept names a part of one. Each
    network is built once, with random weights. wholes: the specs of members."""
    if not any(_names_a_part(axis.key) for axis in asked.axes):
        return []
    models: dict[str, TransferModel | None] = {}
    found: dict[tuple[str, str], Problem] = {}
    for member, spec in zip(members, wholes, strict=True):
        for problem in _of_member(spec, asked.verb, models):
            found.setdefault((problem.key, problem.message), _located(problem, member))
    return list(found.values())


def _names_a_part(key: str) -> bool:
    parts = [*NAMING, *(f"{stage}optimizer.stage_lr" for stage in OF_A_STAGE)]
    return any(f"{key}.".startswith(f"{part}.") or part.startswith(f"{key}.") for part in parts)


def _of_member(spec: Spec, verb: str, models: dict[str, TransferModel | None]) -> Iterator[Problem]:
    network = f"{spec.backbone.model_dump_json()} {spec.preprocess.model_dump_json()}"
    try:
        if network not in models:
            models[network] = None  # it is told once that it cannot be built
            models[network] = _model(spec)
    except SpecError as error:
        yield from error.problems
    except (RuntimeError, MemoryError, OSError) as error:
        if not is_out_of_memory(error):
            raise
    model = models[network]
    for look in _looks(spec, verb, model) if model else ():
        try:
            look()
        except SpecError as error:
            yield from error.problems


def _model(spec: Spec) -> TransferModel:
    """As members start, but for weights. It has both heads, as which ones they have depends on weights and data."""
    chosen, backbone = spec.backbone.weights, spec.backbone
    if isinstance(chosen, str) and chosen not in ("none", "source"):
        plugins.load("backbones", backbone.library).published_preprocessing(backbone.name, chosen)
    start = pipeline.load_backbone(pipeline.from_random_weights(spec))
    model = TransferModel(backbone.library, start.backbone, start.preprocessing, spec.task)
    for domain in optim.HEADS.values():
        model.add_new_head(domain, ("one", "other"), hidden=(), dropout=0.0, seed=spec.seed)
    return model


def _looks(spec: Spec, verb: str, model: TransferModel) -> Iterator[Callable[[], Any]]:
    """What a member would look up. Each raises SpecError for what the model does not have."""
    if verb == "finetune" or spec.head.solver != "lbfgs":
        yield partial(optim.stage_rates, spec.optimizer, model)
    if verb == "finetune" or spec.backbone.weights == "source":
        yield partial(optim.stage_rates, spec.pretrain.optimizer, model, "pretrain.")
    if verb == "finetune":
        if spec.head_first:
            yield partial(optim.stage_rates, spec.head_first.optimizer, model, "head_first.")
        for frozen in spec.frozen_by_epoch().values():
            yield partial(frozen_parameters, model.backbone, frozen)


def _located(problem: Problem, member: Member) -> Problem:
    """At its `--over`, if it is of what is swept; else where the file has it."""
    for key, text in member.settings.items():
        if f"{problem.key}.".startswith(f"{key}."):
            return Problem(problem.key, problem.message, f"--over {key}={text}")
    return problem
