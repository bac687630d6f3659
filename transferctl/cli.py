"""The command line: what there is, and the process around it. Nothing here imports torch."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from transferctl import __version__, signals
from transferctl.commands import (
    advising,
    caching,
    choosing,
    exporting,
    looking,
    predicting,
    reporting,
    scoring,
    specs,
    sweeping,
    training,
)
from transferctl.commands.options import SEVERAL_RUNS, is_run
from transferctl.commands.running import fail
from transferctl.errors import ExitCode, ending

app = typer.Typer(
    help="From a pretrained backbone and labelled images to the model that transfers best, driven by one YAML file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 ok · 1 a bug · 2 usage or spec · 3 data · 4 checkpoint · 5 resources · 6 diverged · "
    "7 run locked · 8 gate missed · 130 SIGINT · 143 SIGTERM",
)


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


app.add_typer(training.app)
app.add_typer(sweeping.app)
app.add_typer(scoring.app)
app.add_typer(choosing.app)
app.add_typer(predicting.app)
app.add_typer(exporting.app)
app.add_typer(reporting.app)
app.add_typer(specs.app)
app.add_typer(looking.app)
app.add_typer(advising.app)
app.add_typer(caching.app, name="cache")


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
            code, words = ExitCode.SPEC, error.format_message().rstrip(".") or "name a command"
            message = f"{words}; see {getattr(getattr(error, 'ctx', None), 'command_path', 'transferctl')} --help"
            if "unexpected extra argument" in message and sum(is_run(Path(word)) for word in sys.argv[1:]) > 1:
                message = f"{words}: {SEVERAL_RUNS}"
        elif isinstance(error, OSError):
            silence(sys.stdout)
            message = f"stdout: cannot write: {error.strerror}"
        fail(Display("--json" in sys.argv), code, message)


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
