"""What is looked at before any member runs: that each setting which is swept is read, and that all data is there."""

from __future__ import annotations

from collections.abc import Sequence

from transferctl import data, errors, jsontext, pipeline, plan
from transferctl.display import Display
from transferctl.spec import Spec
from transferctl.sweeps.book import Asked


def refuse_unused(asked: Asked, wholes: Sequence[Spec]) -> None:
    """Raises SpecError for what none of the members reads, and for pruning where none has epochs. wholes: their
    specs."""
    unread = set.intersection(*(_unread(spec, asked.verb) for spec in wholes))
    problems = [
        errors.Problem("", _why_unused(key, asked.verb), f"--over {axis.written}")
        for axis in asked.axes
        for key in unread
        if f"{axis.key}.".startswith(f"{key}.")
    ]
    if asked.prune and asked.verb == "extract" and all(spec.head.solver == "lbfgs" for spec in wholes):
        problems.append(errors.Problem("", "head.solver: lbfgs has no epochs to prune after; leave it out", "--prune"))
    if problems:
        raise errors.SpecError(problems)


def look_at_data(wholes: Sequence[Spec], display: Display) -> None:
    """List the data of all members, test data too, so that what is missing is told before anything runs; no image is
    read. What is odd of test data is told here, as no member sees it. Raises DataError with all that is wrong."""
    problems: dict[str, None] = {}
    notes: dict[str, None] = {}
    for spec in {_data_of(spec): spec for spec in reversed(wholes)}.values():
        target, source = spec.target, spec.source
        try:
            found = data.load_domain(target.train, target.val, target.test, spec.seed, domain="target")
            notes |= dict.fromkeys(note for note in found.notes if note.startswith("target.test"))
            pipeline.check_head_size(spec, found.classes)
            if source:
                data.load_domain(source.train, source.val, None, spec.seed, domain="source")
        except errors.DataError as error:
            problems[str(error)] = None
    if problems:
        raise errors.DataError("\n".join(problems))
    for note in notes:
        display.warn(note)


def _unread(spec: Spec, verb: str) -> set[str]:
    """Keys that a member does not look at."""
    unused = {"extract": plan.unused_by_extract, "finetune": plan.unused}[verb](
        spec.model_copy(update={"baseline": None})
    )
    return set(map(_as_written, unused))


def _as_written(name: str) -> str:
    """A field's dotted name, as people write it."""
    first, _, rest = name.partition(".")
    return ".".join(filter(None, [Spec.model_fields[first].alias or first, rest]))


def _why_unused(key: str, verb: str) -> str:
    """With what would use it."""
    if verb == "extract" and key in map(_as_written, plan.OF_FINETUNE):
        return "extract does not use it; sweep it with --verb finetune"
    solver = " with head.solver: lbfgs" if verb == "extract" and key in plan.OF_SGD else ""
    return f"{verb} does not use it{solver}, so that members would not differ; leave it out"


def _data_of(spec: Spec) -> str:
    """Equal where the same data is listed; another fraction that is held out is a part of the same."""
    domains = [spec.target.model_dump(mode="json", include={"train", "val", "test"})]
    domains += [spec.source.model_dump(mode="json", include={"train", "val"})] if spec.source else []
    fraction = [one | ({"val": "a part"} if isinstance(one["val"], float) else {}) for one in domains]
    return jsontext.dumps([*fraction, spec.head.size])
