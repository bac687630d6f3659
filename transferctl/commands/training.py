"""check, pretrain, extract, finetune."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from transferctl.commands.options import (
    RUNS,
    AllowOption,
    DebugOption,
    FromOption,
    JsonOption,
    OptionalSpec,
    ResumeOption,
    RunsDirOption,
    SetOption,
    SpecArgument,
    VerifyOption,
)
from transferctl.commands.running import load_spec, run_verb, train, usage, verifying

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.resuming import Resumed
    from transferctl.yamlfile import SpecFile

app = typer.Typer()


@app.command(epilog="Example: transferctl check configs/ants-bees-finetune.yaml")
def check(spec: SpecArgument, set_: SetOption = None, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Print the plan and audit all data: leakage, balance, names, sizes; train nothing. Exits as training would."""

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import check

        return check.run(file.spec, display)

    run_verb(verb, lambda: load_spec(spec, set_), json, debug)


@app.command(epilog="Example: transferctl pretrain configs/quickstart.yaml --set pretrain.epochs=3")
def pretrain(
    spec: OptionalSpec = None, set_: SetOption = None, runs_dir: RunsDirOption = RUNS, resume: ResumeOption = None,
    allow: AllowOption = None, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Stage 0: train the backbone on `source`. The run serves as backbone.weights."""

    def verb(file: SpecFile, runs_dir: Path, display: Display, resumed: Resumed | None) -> dict[str, Any]:
        from transferctl import pretrain

        return pretrain.run(file.spec, runs_dir, display, resumed)

    train("pretrain", verb, spec, set_ or [], runs_dir, resume, allow, json, debug)


@app.command(epilog="Example: transferctl extract configs/ants-bees-extract.yaml --set optimizer.lr=0.003")
def extract(
    spec: OptionalSpec = None, set_: SetOption = None, runs_dir: RunsDirOption = RUNS, resume: ResumeOption = None,
    allow: AllowOption = None, verify: VerifyOption = False, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Stage 1: train a new head on frozen features, computed once an image."""

    def verb(file: SpecFile, runs_dir: Path, display: Display, resumed: Resumed | None) -> dict[str, Any]:
        from transferctl import extract

        return extract.run(file.spec, runs_dir, display, resumed)

    train("extract", verb, spec, verifying(set_, verify), runs_dir, resume, allow, json, debug)


@app.command(
    epilog="Example: transferctl finetune configs/ants-bees-finetune.yaml --from runs/20261124-015703-extract-ants-bees"
)
def finetune(
    spec: OptionalSpec = None, set_: SetOption = None, runs_dir: RunsDirOption = RUNS, from_: FromOption = None,
    resume: ResumeOption = None, allow: AllowOption = None, verify: VerifyOption = False, json: JsonOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Stage 2: thaw layers and minimise L_S + λ·L_T (L_T alone without `source`)."""

    def verb(file: SpecFile, runs_dir: Path, display: Display, resumed: Resumed | None) -> dict[str, Any]:
        from transferctl import finetune

        if from_ and resumed:
            raise usage("--from", "a run that is resumed starts where it started; leave it out")
        update = {"from_run": from_.absolute()} if from_ else {}
        return finetune.run(file.spec.model_copy(update=update), runs_dir, display, resumed)

    train("finetune", verb, spec, verifying(set_, verify), runs_dir, resume, allow, json, debug)
