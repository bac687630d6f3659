"""The direction of imports, read from the source: nothing is imported to check it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import transferctl

PACKAGE = Path(transferctl.__file__).parent
PLUGIN_FOLDERS = ("backbones", "tasks", "penalties", "datasets", "exporters", "trackers", "scores")
VERBS = {
    "pretrain",
    "extract",
    "finetune",
    "evaluate",
    "predict",
    "check",
    "report",
    "export",
    "init",
    "runslist",
    "compare",
    "sweep",
    "advise",
    "rank",
    "cli",
}
SOURCES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}
PLUGINS = [name for name in SOURCES if name.split("/")[0] in PLUGIN_FOLDERS and not name.endswith("__init__.py")]
CORE = [name for name in SOURCES if name.split("/")[0] not in PLUGIN_FOLDERS]


def imports(name: str, *, module_level_only: bool = False) -> set[str]:
    """Dotted names of what a file imports; `from a import b` counts as a.b."""
    return set(_imports(ast.parse(SOURCES[name].read_text(encoding="utf-8")), module_level_only))


def _imports(node: ast.AST, module_level_only: bool) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports are absolute here"
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif module_level_only and (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or _typing_only(child)):
            continue
        else:
            yield from _imports(child, module_level_only)


def _typing_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def own_parts(imported: set[str]) -> set[str]:
    """transferctl.x.y -> x, for what is ours."""
    return {name.split(".")[1] for name in imported if name.startswith("transferctl.")}


def test_the_walk_sees_the_package() -> None:
    assert len(PLUGINS) >= 6 and {"model.py", "cli.py", "data.py"} <= set(CORE)
    assert "torch.Tensor" in imports("model.py") and own_parts(imports("model.py")) >= {"plugins", "weights"}
    assert {verb for verb in VERBS if f"{verb}.py" in SOURCES} == VERBS


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_imports_no_other_plugin_and_no_verb(name: str) -> None:
    """But its own helpers, whose names begin with its name after an underscore."""
    own = f"transferctl.{name.split('/', maxsplit=1)[0]}._{Path(name).stem.strip('_').split('_')[0]}_"
    assert not own_parts({i for i in imports(name) if not i.startswith(own)}) & (VERBS | set(PLUGIN_FOLDERS))


@pytest.mark.parametrize("name", CORE)
def test_the_core_imports_no_plugin(name: str) -> None:
    assert not own_parts(imports(name)) & set(PLUGIN_FOLDERS)


COMMANDS = {name for name in CORE if name.startswith("commands/")}
ABOVE_VERBS = {f"{verb}.py" for verb in VERBS} | COMMANDS | {"interpolation.py", "baseline.py", "__main__.py"}
ABOVE_VERBS |= {"members.py"}  # runs a verb among others
ABOVE_VERBS |= {"trials.py", "trialsearch.py"}  # of advise
ABOVE_VERBS |= {"reporting/material.py"}  # computes what a run froze as `eval` does


@pytest.mark.parametrize("name", sorted(set(CORE) - ABOVE_VERBS))
def test_the_core_imports_no_verb(name: str) -> None:
    assert not own_parts(imports(name)) & VERBS


@pytest.mark.parametrize("name", sorted(set(CORE) - {"display.py"}))
def test_only_display_imports_rich(name: str) -> None:
    assert "rich" not in {imported.split(".")[0] for imported in imports(name)}


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugin_writes_nothing_to_the_terminal(name: str) -> None:
    assert "rich" not in {imported.split(".")[0] for imported in imports(name)}
    assert "display" not in own_parts(imports(name))


@pytest.mark.parametrize(
    "name",
    [
        "cli.py",
        *sorted(COMMANDS),
        "spec.py",
        "yamlfile.py",
        "settings.py",
        "errors.py",
        "display.py",
        "cachecommands.py",
        "runslist.py",
        "trackerprocess.py",
        "cache/cache.py",
        "cache/hashes.py",
    ],
)
def test_start_up_imports_no_torch(name: str) -> None:
    """Neither do the modules that these import, followed through the package."""
    seen = _followed(name)
    assert name in seen and not {root for file in seen for root in _roots(file)} & {"torch", "torchvision", "sklearn"}


@pytest.mark.parametrize(
    "name", ["cli.py", *sorted(COMMANDS), "spec.py", "cachecommands.py", "runslist.py", "trackerprocess.py"]
)
def test_what_answers_at_once_imports_no_numpy(name: str) -> None:
    assert "numpy" not in {root for file in _followed(name) for root in _roots(file)}


def test_what_is_imported_is_followed_into_folders() -> None:
    assert {"cache/__init__.py", "cache/settings.py"} <= _followed("spec.py")
    assert {"cache/rows.py", "cache/store.py"} <= _followed("cache/cache.py")


def _roots(file: str) -> set[str]:
    return {item.split(".")[0] for item in imports(file, module_level_only=True)}


def _followed(name: str) -> set[str]:
    """name and what it imports of the package as it starts, to the end."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        if (file := waiting.pop()) not in seen:
            seen.add(file)
            waiting += [found for item in imports(file, module_level_only=True) for found in _files_of(item)]
    return seen


def _files_of(imported: str) -> Iterator[str]:
    """transferctl.a.b -> a/__init__.py and a/b.py or a.py, whichever there are."""
    parts = imported.split(".")[1:] if imported.startswith("transferctl.") else []
    for n in range(1, len(parts) + 1):
        path = "/".join(parts[:n])
        yield from (found for found in (f"{path}.py", f"{path}/__init__.py") if found in SOURCES)


@pytest.mark.parametrize("name", sorted(set(CORE) - {"cli.py", "__main__.py"} - COMMANDS))
def test_nothing_imports_the_command_line(name: str) -> None:
    assert not own_parts(imports(name)) & {"cli", "commands"}
