"""sweep."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transferctl.commands.options import (
    RUNS,
    DebugOption,
    JsonOption,
    OptionalSpec,
    ResumeOption,
    RunsDirOption,
    SetOption,
    is_run,
)
from transferctl.commands.running import load_spec, one_of, run_verb, usage
from transferctl.errors import SpecError

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.resuming import Resumed
    from transferctl.sweeps.space import Axis
    from transferctl.yamlfile import SpecFile

app = typer.Typer()
VERBS = ["finetune", "extract"]
OVER = (
    "A setting and its values: lambda=0.1,0.3,1; epochs=2:10:2 (start:stop:step); optimizer.lr=log:0.001:0.1:3 (three "
    "points); without the last number a range to draw from. seed=0,1,2 are repeats. Repeatable."
)


@app.command(epilog="Example: transferctl sweep configs/ants-bees-finetune.yaml --over frozen=layer1,layer2,layer3")
def sweep(
    spec: OptionalSpec = None,
    over: Annotated[list[str] | None, typer.Option("--over", metavar="KEY=VALUES", help=OVER)] = None,
    verb: Annotated[str, typer.Option("--verb", help="What members do: finetune or extract.", autocompletion=lambda: VERBS)] = "finetune",  # noqa: E501
    method: Annotated[str, typer.Option("--method", help="grid: all combinations; random: --trials of them, or of ranges; optuna: TPE proposes each by what the others scored.", autocompletion=lambda: ["grid", "random", "optuna"])] = "grid",  # noqa: E501
    trials: Annotated[int | None, typer.Option("--trials", metavar="N", min=1, help="Settings to draw, with random and optuna; default: 20, or all there are.", show_default=False)] = None,  # noqa: E501
    jobs: Annotated[int, typer.Option("--jobs", metavar="N", min=1, help="Members at a time, each in a process of its own with its share of the threads.")] = 1,  # noqa: E501
    prune: Annotated[bool, typer.Option("--prune", help="ASHA: end members early that are not among the best third after 1, 3, 9 … epochs.")] = False,  # noqa: E501
    set_: SetOption = None, runs_dir: RunsDirOption = RUNS, resume: ResumeOption = None, json: JsonOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Run a training with several settings, each an ordinary run; pick the best by validation, then test that one."""
    axes: list[Axis] = []
    resumed: Resumed | None = None

    def load() -> SpecFile:
        nonlocal resumed
        if resume is not None:
            given = {"--over": over, "--trials": trials, "--prune": prune}
            given |= {"--verb": verb != "finetune", "--method": method != "grid"}
            if fixed := [flag for flag, value in given.items() if value]:
                raise usage(", ".join(fixed), "a sweep that is resumed goes over what it went over; leave it out")
            from transferctl import resuming

            file, resumed = resuming.load(resume, "sweep", spec, set_ or [], [])
            return file
        if spec is None:
            raise usage("", "name the SPEC, or a sweep to go on with by --resume RUN; see transferctl sweep --help")
        if is_run(spec):
            raise usage(str(spec), "is a run, not a spec")
        return _new(spec)

    def _new(spec: Path) -> SpecFile:
        from transferctl.sweeps import methods, space, specs

        one_of("--verb", verb, VERBS)
        one_of("--method", method, [*methods.METHODS])
        if method == "grid" and trials is not None:
            raise usage("--trials", "is for --method random or optuna; a grid has as many members as it has points")
        found, problems = space.parse(over or [], set_ or [])
        problems += methods.problems(found, method, methods.trials_of(found, trials), prune=prune)
        problems += specs.faults(spec, set_ or [], specs.corners(found))
        if problems:
            raise SpecError(problems)
        axes.extend(found)
        return load_spec(spec, set_)

    def go_on(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import sweep
        from transferctl.sweeps import methods
        from transferctl.sweeps.book import Asked

        if resumed is not None and resumed.finished is not None:
            display.note(f"{resumed.run} is finished; there is nothing to go on with")
            display.result(str(resumed.run))
            return dict(resumed.finished)
        if resumed is not None:
            return sweep.run(file, None, resumed.run.parent, display, jobs=jobs, resumed=resumed)
        drawn = 0 if method == "grid" else methods.trials_of(axes, trials)
        asked = Asked(verb, axes, method, drawn, prune, file.spec.seed)
        return sweep.run(file, asked, runs_dir, display, jobs=jobs)

    run_verb(go_on, load, json, debug)
