"""What was trained and what was not, in symbols and stage by stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from transferctl import penalising, plan
from transferctl.reporting.gather import RunRecord
from transferctl.reporting.material import Loaded
from transferctl.spec import BatchNormSettings, Spec


@dataclass(frozen=True)
class StageRow:
    """trained: parameters that some epoch trains; rate: its learning rate; epochs: in which it trains; both
    empty for a head that was solved."""

    name: str
    parameters: int
    trained: int
    rate: str
    epochs: str
    batchnorm: str

    @property
    def short(self) -> str:
        """Of a long name its last word: encoder_layer_9."""
        return self.name if len(self.name) <= 16 else self.name.rpartition(".")[2]


@dataclass(frozen=True)
class Plan:
    """objective: in symbols; words: what else there is to say, by its name."""

    objective: str
    words: tuple[tuple[str, str], ...]
    stages: tuple[StageRow, ...]

    @property
    def parameters(self) -> int:
        return sum(stage.parameters for stage in self.stages)

    @property
    def trained(self) -> int:
        return sum(stage.trained for stage in self.stages)


def of(run: RunRecord, loaded: Loaded | None) -> Plan | None:
    """None for an evaluation, which trains nothing, and for a run whose spec cannot be read. Without a model there are
    no stages."""
    spec = run.spec
    if spec is None or run.verb not in _AS_TRAINED:
        return None
    trained = _AS_TRAINED[run.verb](spec)
    needs = penalising.needs(spec)
    rows = [
        ("head first", plan.head_first(spec) if spec.head_first and run.verb == "finetune" else ""),
        *(
            (f"Ω_{name}", plan.penalty(name, settings, needs[name]))
            for name, settings in spec.penalties.chosen().items()
            if run.verb == "finetune"
        ),
        ("optimizer", "" if run.is_solved else plan.optimizer(trained)),
        ("also", "" if run.is_solved else plan.extras(trained)),
        ("source", plan.source(spec.source) if spec.source and run.verb == "finetune" else ""),
        ("preprocessing", str(loaded.model.preprocessing) if loaded else ""),
    ]
    stages = _stages(run, trained, loaded) if loaded else ()
    return Plan(_objective(run, spec), tuple(row for row in rows if row[1]), stages)


_AS_TRAINED: dict[str, Callable[[Spec], Spec]] = {
    "finetune": lambda spec: spec,
    "extract": lambda spec: spec.model_copy(update={"frozen": "all", "head_first": None}),
    "pretrain": lambda spec: spec.model_copy(
        update=dict(spec.pretrain)
        | {"frozen": "none", "head_first": None, "batchnorm": BatchNormSettings(thawed="train")}
    ),
}


def _objective(run: RunRecord, spec: Spec) -> str:
    if run.verb == "pretrain":
        return "min over θ of L_S"
    return plan.extract(spec) if run.verb == "extract" else plan.in_symbols(spec)


def _stages(run: RunRecord, spec: Spec, loaded: Loaded) -> tuple[StageRow, ...]:
    model = loaded.model.requires_grad_(True)
    if run.verb == "extract" or (run.verb == "finetune" and not penalising.source_head_trains(spec)):
        model.freeze_head("source")
    rows = plan.stage_rows(spec, model)
    model.eval()
    found = [StageRow(*row) for row in rows]
    if run.is_solved:  # the optimizer's settings had no effect
        found = [replace(row, rate="", epochs="") for row in found]
    return tuple(found)
