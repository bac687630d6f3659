"""The commands: thin, each imports its verb when it runs. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from transferctl import __version__, signals
from transferctl.errors import ExitCode, Problem, SpecError, Terminated, TransferctlError, ending

if TYPE_CHECKING:
    from transferctl.display import Display
    from transferctl.resuming import Resumed
    from transferctl.yamlfile import SpecFile

app = typer.Typer(
    help="From a pretrained backbone and labelled images to the model that transfers best, driven by one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok · 1 a bug · 2 usage or spec · 3 data · 4 checkpoint · 5 resources · 6 diverged · "
    "7 run locked · 8 gate missed · 130 SIGINT · 143 SIGTERM",
)


def _folder(written: str | Path) -> Path:
    """Path("") would be the working folder; it is most often a shell's variable that is not set."""
    if not str(written).strip() or "\0" in str(written):
        raise typer.BadParameter(f"must be a folder, not {str(written)!r}")
    return Path(written)


SpecArgument = Annotated[Path, typer.Argument(metavar="SPEC", help="The YAML file.", show_default=False)]
OptionalSpec = Annotated[
    Path | None,
    typer.Argument(metavar="[SPEC]", help="The YAML file; with --resume the run's own.", show_default=False),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
]
RunsDirOption = Annotated[Path, typer.Option("--runs-dir", metavar="DIR", parser=_folder, help="Where run folders go.")]
ResumeOption = Annotated[
    Path | None,
    typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped.", show_default=False),
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow", metavar="KEY", help="With --resume: a setting, data or weights that may differ."),
]
VerifyOption = Annotated[
    bool, typer.Option("--verify", help="Read every file to see whether it changed since it was cached.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
RUNS = Path("runs")
SPLITS = ["train", "val", "test"]
CHECKPOINTS = ["best", "last"]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"transferctl {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: transferctl check configs/ants-bees-finetune.yaml")
def check(spec: SpecArgument, set_: SetOption = None, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Print the plan and audit all data: leakage, balance, names, sizes; train nothing. Exits as training would."""

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import check

        return check.run(file.spec, display)

    _run(verb, lambda: _load(spec, set_), json, debug)


@app.command(epilog="Example: transferctl pretrain configs/quickstart.yaml --set pretrain.epochs=3")
def pretrain(
    spec: OptionalSpec = None, set_: SetOption = None, runs_dir: RunsDirOption = RUNS, resume: ResumeOption = None,
    allow: AllowOption = None, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Stage 0: train the backbone on `source`. The run serves as backbone.weights."""

    def verb(file: SpecFile, runs_dir: Path, display: Display, resumed: Resumed | None) -> dict[str, Any]:
        from transferctl import pretrain

        return pretrain.run(file.spec, runs_dir, display, resumed)

    _train("pretrain", verb, spec, set_ or [], runs_dir, resume, allow, json, debug)


@app.command(epilog="Example: transferctl extract configs/ants-bees-extract.yaml --set optimizer.lr=0.003")
def extract(
    spec: OptionalSpec = None, set_: SetOption = None, runs_dir: RunsDirOption = RUNS, resume: ResumeOption = None,
    allow: AllowOption = None, verify: VerifyOption = False, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Stage 1: train a new head on frozen features, computed once an image."""

    def verb(file: SpecFile, runs_dir: Path, display: Display, resumed: Resumed | None) -> dict[str, Any]:
        from transferctl import extract

        return extract.run(file.spec, runs_dir, display, resumed)

    _train("extract", verb, spec, _verifying(set_, verify), runs_dir, resume, allow, json, debug)


@app.command(
    epilog="Example: transferctl finetune configs/ants-bees-finetune.yaml --from runs/20261124-015703-extract-ants-bees"
)
def finetune(
    spec: OptionalSpec = None, set_: SetOption = None, runs_dir: RunsDirOption = RUNS,
    from_: Annotated[Path | None, typer.Option("--from", metavar="RUN", help="Start from this run's best model.")] = None,  # noqa: E501
    resume: ResumeOption = None, allow: AllowOption = None, verify: VerifyOption = False, json: JsonOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Stage 2: thaw layers and minimise L_S + λ·L_T (L_T alone without `source`)."""

    def verb(file: SpecFile, runs_dir: Path, display: Display, resumed: Resumed | None) -> dict[str, Any]:
        from transferctl import finetune

        if from_ and resumed:
            raise _usage("--from", "a run that is resumed starts where it started; leave it out")
        update = {"from_run": from_.absolute()} if from_ else {}
        return finetune.run(file.spec.model_copy(update=update), runs_dir, display, resumed)

    _train("finetune", verb, spec, _verifying(set_, verify), runs_dir, resume, allow, json, debug)


@app.command("eval", epilog="Example: transferctl eval runs/20261124-015703-extract-ants-bees --fail-if 'accuracy<0.9'")
def evaluate(
    run: RunArgument,
    data: Annotated[str | None, typer.Option("--data", metavar="PATH", help="A folder or manifest to score on instead.")] = None,  # noqa: E501
    split: Annotated[str | None, typer.Option("--split", help="train, val (the default) or test of the run's own data; with --data, the rows of this split.", autocompletion=lambda: SPLITS)] = None,  # noqa: E501
    source: Annotated[bool, typer.Option("--source", help="Score the source head instead, before and after fine-tuning: what was forgotten.")] = False,  # noqa: E501
    interpolate: Annotated[str | None, typer.Option("--interpolate", metavar="ALPHAS", help="Score (1 − α)·start + α·best for these α: 0:1:0.1 (start:stop:step), 0.5, or 0,0.3,1. One α alone makes the run folder a model.")] = None,  # noqa: E501
    checkpoint: Annotated[str, typer.Option("--checkpoint", help="best or last.", autocompletion=lambda: CHECKPOINTS)] = "best",  # noqa: E501
    fail_if: Annotated[
        list[str] | None, typer.Option("--fail-if", metavar="CONDITION", help="Exit 8 if it holds: 'accuracy<0.9'; repeatable.")  # noqa: E501
    ] = None,
    set_: SetOption = None, runs_dir: RunsDirOption = RUNS, verify: VerifyOption = False, json: JsonOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Score a run's model: loss, accuracy with its interval, per class, confusion matrix."""

    def verb(file: SpecFile, display: Display) -> dict[str, Any]:
        from transferctl import evaluate, gates, interpolation

        conditions = [gates.parse(text) for text in fail_if or []]
        if interpolate is not None:
            return interpolation.run(
                file.spec, run, runs_dir, display, points=interpolation.alphas(interpolate), split=split,
                data_path=data, conditions=conditions,
            )  # fmt: skip
        return evaluate.run(
            file.spec, run, runs_dir, display, which=checkpoint, split=split, data_path=data, source=source,
            conditions=conditions,
        )  # fmt: skip

    def load() -> SpecFile:
        if split is not None and data is None:  # a manifest's split column may hold any name
            _one_of("--split", split, SPLITS)
        _one_of("--checkpoint", checkpoint, CHECKPOINTS)
        from transferctl import evaluate, gates, interpolation

        conditions = [gates.parse(text) for text in fail_if or []]
        if interpolate is not None:
            points = interpolation.alphas(interpolate)
            interpolation.refuse_beside(points, conditions, source=source, which=checkpoint)
        return evaluate.load_spec(run, _verifying(set_, verify))

    _run(verb, load, json, debug)


cache = typer.Typer(
    help="What frozen parts computed, kept for later runs: list, verify and clear it.", no_args_is_help=True
)
app.add_typer(cache, name="cache")
CacheOption = Annotated[
    Path | None,
    typer.Option("--path", metavar="DIR", help="The cache's folder, where a spec names one.", show_default=False),
]


@cache.command("list", epilog="Example: transferctl cache list")
def list_cache(path: CacheOption = None, json: JsonOption = False, debug: DebugOption = False) -> None:
    """What is kept: title, rows, size, when it was used last, key."""
    from transferctl import cachecommands

    _run(lambda _, display: cachecommands.show(path, display), lambda: None, json, debug)


@cache.command("verify", epilog="Example: transferctl cache verify")
def verify_cache(path: CacheOption = None, json: JsonOption = False, debug: DebugOption = False) -> None:
    """Compare every shard with its checksum; damaged ones are removed. Exits 4 if there were any."""
    from transferctl import cachecommands

    _run(lambda _, display: cachecommands.verify(path, display), lambda: None, json, debug)


@cache.command("clear", epilog="Example: transferctl cache clear --older-than 30d")
def clear_cache(
    key: Annotated[str, typer.Argument(metavar="[KEY]", help="The first characters of a key; default: all.", show_default=False)] = "",  # noqa: E501
    older_than: Annotated[str | None, typer.Option("--older-than", metavar="AGE", help="What was not used for 30d, 12h.")] = None,  # noqa: E501
    path: CacheOption = None, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Remove entries, all or some. What a run uses now stays, and is said."""
    from transferctl import cachecommands

    _run(lambda _, display: cachecommands.clear(path, key, older_than, display), lambda: None, json, debug)


@app.command(epilog="Example: transferctl schema > transferctl.schema.json")
def schema() -> None:
    """Print the spec's JSON Schema, for editors."""
    import json

    from transferctl.spec import json_schema

    typer.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


TrainingVerb = Callable[["SpecFile", Path, "Display", "Resumed | None"], dict[str, Any]]


def _train(
    name: str, verb: TrainingVerb, spec: Path | None, overrides: list[str], runs_dir: Path, resume: Path | None,
    allowed: list[str] | None, json: bool, debug: bool,
) -> None:  # fmt: skip
    """A verb that trains: from its spec, or going on with a run, in whose folder's folder other runs are looked for."""
    resumed: Resumed | None = None

    def load() -> SpecFile:
        nonlocal resumed
        if resume is None and spec is None:
            raise _usage("", f"name the SPEC, or a run to go on with by --resume RUN; see transferctl {name} --help")
        if resume is None and allowed:
            raise _usage("--allow", "is for --resume RUN, and names what may differ from that run")
        if resume is None:
            assert spec is not None
            return _load(spec, overrides)
        from transferctl import resuming

        file, resumed = resuming.load(resume, name, spec, overrides, allowed or [])
        return file

    def run(file: SpecFile, display: Display) -> dict[str, Any]:
        if resumed is None:
            return verb(file, runs_dir, display, None)
        if resumed.finished is not None:
            display.note(f"{resumed.run} is finished; there is nothing to go on with")
            display.result(str(resumed.run))
            return dict(resumed.finished)
        return verb(file, resumed.run.parent, display, resumed)

    _run(run, load, json, debug)


def _usage(where: str, message: str) -> SpecError:
    return SpecError([Problem("", message, where)])


def _load(spec: Path, overrides: list[str] | None) -> SpecFile:
    from transferctl import yamlfile

    return yamlfile.load(spec, overrides or [])


def _verifying(overrides: list[str] | None, asked: bool) -> list[str]:
    return [*(overrides or []), *(["cache.verify=true"] if asked else [])]


def _one_of(flag: str, value: str, choices: list[str]) -> None:
    if value not in choices:
        raise _usage(f"{flag} {value}", f"must be one of {', '.join(choices)}")


def _run(
    verb: Callable[[Any, Display], dict[str, Any]], load: Callable[[], SpecFile | None], as_json: bool, debug: bool
) -> None:
    """Run a verb on what was loaded; turn every ending into one message and its exit code."""
    from transferctl.display import Display

    display = Display(as_json)
    with signals.handled():
        _run_handled(verb, load, display, debug)


def _run_handled(
    verb: Callable[[Any, Display], dict[str, Any]], load: Callable[[], SpecFile | None], display: Display, debug: bool
) -> None:
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # a verb hears of a closed pipe, saves and says so
    file: SpecFile | None = None
    numbers: dict[str, Any] = {}
    try:
        file = load()
        display.json({"status": "finished", "exit_code": int(ExitCode.OK)} | verb(file, display))
        return
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if isinstance(error, SpecError) and file:
            error = file.locate(error)
        code, message = ending(error)
        numbers = getattr(error, "summary", {})
    if debug:
        traceback.print_exc()
    _fail(display, code, message, numbers)


def _fail(display: Display, code: ExitCode, message: str, numbers: dict[str, Any] | None = None) -> NoReturn:
    message = message.encode("utf-8", "backslashreplace").decode()  # names on disk may be no text
    with contextlib.suppress(TransferctlError):  # stderr takes no more
        display.error(message)
    with contextlib.suppress(TransferctlError):  # stdout takes no more; told above
        status = "interrupted" if code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED) else "failed"
        display.json({"status": status} | (numbers or {}) | {"exit_code": int(code), "error": message})
    sys.exit(int(code))


def main() -> None:
    """The process: usage errors end like all others, in one line, or one JSON object, and exit 2."""
    _mend_streams()
    try:
        code = app(prog_name="transferctl", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code or ExitCode.OK)
    except SystemExit as ended:
        if ended.code in (ExitCode.INTERRUPTED, ExitCode.TERMINATED):
            _leave_at_once(int(ended.code))
        raise
    except signals.ENDING as error:  # while another ending was told
        _leave_at_once(int(ending(error)[0]))
    except Exception as error:
        from transferctl.display import Display, silence

        code, message = ending(error)
        if hasattr(error, "format_message"):  # typer's usage errors; which class it is depends on its version
            command = getattr(getattr(error, "ctx", None), "command_path", "transferctl")
            code, message = ExitCode.SPEC, f"{error.format_message().rstrip('.')}; see {command} --help"
        elif isinstance(error, OSError):
            silence(sys.stdout)
            message = f"stdout: cannot write: {error.strerror}"
        _fail(Display("--json" in sys.argv), code, message)


def _leave_at_once(code: int) -> NoReturn:
    """CPython ends a `-m` by SIGINT, whatever the exit code, once an interrupt has passed through an import."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _mend_streams() -> None:
    """A stream that was closed before we started takes everything; a locale without θ or – gets escapes;
    `transferctl --help | head` ends as any filter does."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 (for as long as we live)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
