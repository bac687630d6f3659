"""README and configs say what is so."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from transferctl import advise, learningcurve, rank, sweep, yamlfile
from transferctl.cli import app
from transferctl.errors import ExitCode
from transferctl.sweeps import book
from transferctl.trainsettings import SgdSettings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
VERBS = sorted(name for name, command in get_command(app).commands.items() if not hasattr(command, "commands"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_is_valid_and_opens_with_its_command(path: Path) -> None:
    yamlfile.load(path)
    first = path.read_text(encoding="utf-8").splitlines()[0]
    match = re.match(r"# transferctl (\w+) configs/([\w-]+\.yaml)", first)
    assert match and match[1] in VERBS and match[2] == path.name


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", README, re.DOTALL))
def test_every_yaml_block_of_the_readme_is_a_spec(block: str, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text(block, encoding="utf-8")
    yamlfile.load(tmp_path / "spec.yaml")


@pytest.mark.parametrize("verb", VERBS)
def test_the_readme_shows_every_verb_and_only_flags_that_it_has(verb: str) -> None:
    assert re.search(rf"^\| `{verb}\b", README, re.MULTILINE)
    known = set(re.findall(r"--[a-z-]+", CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200"}).output))
    for line in re.findall(rf"transferctl {verb}\b[^\n]*|^\| `{verb}\b[^`]*`", README, re.MULTILINE):
        assert set(re.findall(r"(?<!\S)\[?(--[a-z-]+)", line)) <= known, line


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its whole name, such as `cache list`, in the order of the help."""
    for name, command in get_command(app).commands.items():
        inner = getattr(command, "commands", None)
        if inner is None:
            yield name, command
        else:
            yield from ((f"{name} {inner_name}", one) for inner_name, one in inner.items())


COMMANDS = dict(commands())


def reference() -> str:
    """docs/commands.md: what --help says, of all commands."""
    lines = [
        "# Commands",
        "",
        "What `transferctl COMMAND --help` says, of all of them. Made from the commands themselves; after a change:",
        "`UPDATE_DOCS=1 pytest tests/test_docs.py`.",
    ]
    for name, command in COMMANDS.items():
        words = [_value(part) for part in command.params if part.param_type_name == "argument"]
        lines += ["", f"## {' '.join([name, *words])}", "", *_words(command.help).splitlines(), ""]
        lines += [f"    {command.epilog.removeprefix('Example: ')}", "", "| | |", "|---|---|"]
        lines += [f"| {_signature(option)} | {_words(option.help)} |" for option in command.params if option.help]
    return "\n".join([*lines, ""])


def _words(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _signature(part: Any) -> str:
    flags = ", ".join([*part.opts, *part.secondary_opts])
    if part.param_type_name == "argument":
        return f"`{_value(part)}`"
    return f"`{flags}`" if part.is_flag else f"`{flags} {_value(part)}`"


def _value(part: Any) -> str:
    return str(part.metavar or part.name.strip("_").upper())


def test_the_reference_is_what_the_help_says() -> None:
    path = ROOT / "docs" / "commands.md"
    if os.environ.get("UPDATE_DOCS"):
        path.write_text(reference(), encoding="utf-8")
    assert path.read_text(encoding="utf-8") == reference()


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_complete(name: str) -> None:
    """What it does, an example that names it, a sentence for each argument and option."""
    command = COMMANDS[name]
    assert command.help and command.help.strip().endswith(".")
    assert command.epilog and command.epilog.startswith(f"Example: transferctl {name}")
    without = [part.name for part in command.params if not (part.help or "").strip()]
    assert not without, f"no help for {without}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_has_only_flags_that_it_has(name: str) -> None:
    command = COMMANDS[name]
    known = {flag for part in command.params for flag in (*part.opts, *part.secondary_opts)}
    assert set(re.findall(r"(?<!\S)(--?[a-z0-9-]+)", command.epilog)) <= known


def test_the_readme_lists_every_exit_code() -> None:
    section = README.split("## Exit codes")[1].split("\n## ")[0]
    assert [int(code) for code in re.findall(r"(?:^|· )\s*(\d+) ", section, re.MULTILINE)] == [int(c) for c in ExitCode]


def test_the_classic_recipe_trains_a_linear_2048_to_10_and_nothing_else(image_folder: Any, invoke: Any) -> None:
    folder = image_folder("photos", **{f"class{i}": 2 for i in range(10)})
    settings = ["backbone.weights=none", f"target={{train: {folder}, val: 0.5}}", "preprocess={crop: 64}"]
    words = [word for text in settings for word in ("--set", text)]
    code, plan = invoke("check", ROOT / "configs" / "resnet50-classic.yaml", *words)
    assert (code, plan["trained_parameters"]) == (0, 2048 * 10 + 10)
    spec = yamlfile.load(ROOT / "configs" / "resnet50-classic.yaml").spec
    assert (spec.backbone.name, spec.frozen, spec.epochs) == ("resnet50", "all", 10)
    assert spec.optimizer == SgdSettings(lr=0.01, momentum=0.0)


def test_the_run_folder_names_what_rank_sweep_and_advise_leave() -> None:
    section = README.split("## The run folder")[1]
    files = [rank.PLOT, f"{book.MEMBERS}/", f"{sweep.TEST}/", book.FILE, sweep.PLOT, advise.FILE, learningcurve.PLOT]
    assert [name for name in files if name not in section] == []
