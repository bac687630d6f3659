"""`transferctl cache`: list, verify, clear, as scripts call them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from transferctl import yamlfile
from transferctl.cache import entries
from transferctl.cache.cache import Cache
from transferctl.cache.store import Product
from transferctl.cli import app

Invoke = Callable[..., tuple[int, dict[str, Any]]]
PRODUCTS = {name: Product({"name": name}, 1000, f"features of {name}") for name in ("resnet18", "vgg16")}


@pytest.fixture
def filled(cache_folder: Path) -> Path:
    """Two entries, of 50 and 20 rows; the second was used an hour ago."""
    for name, count in (("resnet18", 50), ("vgg16", 20)):
        keys = np.random.default_rng(0).integers(0, 256, (count, 32), dtype=np.uint8)
        with Cache(cache_folder, 10**9, print).rows(PRODUCTS[name], keys) as found:
            found.add(np.arange(count), keys, np.zeros((count, 1000), np.uint8))
    os.utime(folder_of(cache_folder, "vgg16") / "lock", (time.time() - 3600,) * 2)
    return cache_folder


def folder_of(root: Path, name: str) -> Path:
    return entries.folder_of(root, PRODUCTS[name].key)


def titles(root: Path) -> list[str]:
    return sorted(entry.title for entry in entries.found(root))


def test_list_shows_what_is_kept_the_latest_first(filled: Path, invoke: Invoke) -> None:
    code, answer = invoke("cache", "list")
    assert (code, answer["path"], answer["limit"]) == (0, str(filled), 20 * 10**9)
    assert [(entry["title"], entry["rows"]) for entry in answer["entries"]] == [
        ("features of resnet18", 50),
        ("features of vgg16", 20),
    ]
    assert answer["entries"][1]["key"] == PRODUCTS["vgg16"].key
    assert answer["bytes"] == sum(path.stat().st_size for path in filled.rglob("*") if path.is_file())
    shown = CliRunner().invoke(app, ["cache", "list"]).output
    assert "features of vgg16" in shown and PRODUCTS["vgg16"].key[:12] in shown and "at most 20 GB" in shown


def test_an_empty_or_missing_cache_is_no_fault(invoke: Invoke, cache_folder: Path) -> None:
    assert invoke("cache", "list")[1]["entries"] == []
    assert invoke("cache", "verify")[0] == invoke("cache", "clear")[0] == 0
    assert not cache_folder.exists()


def test_another_folder_is_named_by_path(filled: Path, invoke: Invoke, tmp_path: Path) -> None:
    assert invoke("cache", "list", "--path", tmp_path / "other")[1]["entries"] == []
    assert len(invoke("cache", "list", "--path", filled)[1]["entries"]) == 2
    (tmp_path / "file").write_text("")
    code, answer = invoke("cache", "list", "--path", tmp_path / "file")
    assert code == 2 and "is a file; the cache needs a folder" in answer["error"]


def test_verify_finds_whole_shards_whole(filled: Path, invoke: Invoke) -> None:
    code, answer = invoke("cache", "verify")
    assert (code, answer["whole"], answer["damaged"]) == (0, 2, [])


def test_verify_removes_what_is_damaged_and_exits_4(filled: Path, invoke: Invoke) -> None:
    shard = next(folder_of(filled, "vgg16").glob("*.rows"))
    data = bytearray(shard.read_bytes())
    data[777] ^= 1
    shard.write_bytes(data)
    code, answer = invoke("cache", "verify")
    assert (code, answer["whole"]) == (4, 1)
    assert answer["damaged"] == [answer["error"]]
    assert answer["error"].startswith(f"{shard}: damaged (its checksum is another); it is removed")
    assert invoke("cache", "verify")[0] == 0
    assert [entry["rows"] for entry in invoke("cache", "list")[1]["entries"]] == [50, 0]


def test_verify_says_where_a_damaged_shard_may_not_be_removed(
    filled: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    (shard,) = folder_of(filled, "vgg16").glob("*.rows")
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    code, answer = invoke("cache", "verify")
    assert code == 4 and "it may not be removed by this user" in answer["damaged"][0]
    assert shard.exists()


def test_clear_removes_all_of_ours(filled: Path, invoke: Invoke) -> None:
    (filled / "digests.sqlite").write_bytes(b"memo")
    (filled / "notes.txt").write_text("foreign")
    code, answer = invoke("cache", "clear")
    assert (code, len(answer["removed"]), answer["kept"]) == (0, 2, [])
    assert answer["bytes"] > 70_000
    assert sorted(path.name for path in filled.rglob("*")) == ["notes.txt", "v1"]


@pytest.mark.parametrize(
    ("arguments", "left"),
    [
        (["KEY"], ["features of resnet18"]),
        (["--older-than", "30m"], ["features of resnet18"]),
        (["--older-than", "2h"], ["features of resnet18", "features of vgg16"]),
        (["KEY", "--older-than", "1d"], ["features of resnet18", "features of vgg16"]),
    ],
)
def test_clear_by_key_and_by_age(filled: Path, invoke: Invoke, arguments: list[str], left: list[str]) -> None:
    (filled / "digests.sqlite").write_bytes(b"memo")
    given = [PRODUCTS["vgg16"].key[:9] if argument == "KEY" else argument for argument in arguments]
    assert invoke("cache", "clear", *given)[0] == 0
    assert titles(filled) == left
    assert (filled / "digests.sqlite").exists()


def test_clear_leaves_what_a_run_uses_and_says_so(filled: Path) -> None:
    with Cache(filled, 10**9, print).rows(PRODUCTS["vgg16"], np.zeros((1, 32), np.uint8)):
        result = CliRunner().invoke(app, ["cache", "clear", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["kept"] == [PRODUCTS["vgg16"].key]
    assert "features of vgg16" in result.stderr and "stays: a run uses it" in result.stderr
    assert titles(filled) == ["features of vgg16"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--older-than", "soon"], "--older-than soon: must be an age such as 30d, 12h or 2w"),
        (["0123456789"], "KEY 0123456789: no key begins like this; transferctl cache list shows them"),
    ],
)
def test_clear_refuses_what_it_does_not_understand(
    filled: Path, invoke: Invoke, arguments: list[str], message: str
) -> None:
    code, answer = invoke("cache", "clear", *arguments)
    assert (code, answer["error"]) == (2, message)
    assert len(titles(filled)) == 2


@pytest.mark.parametrize("command", ["list", "verify", "clear"])
def test_help_shows_an_example(command: str) -> None:
    result = CliRunner().invoke(app, ["cache", command, "--help"])
    assert f"Example: transferctl cache {command}" in " ".join(result.output.split())


def test_the_command_starts_without_numpy_and_torch(filled: Path) -> None:
    code = (
        "import sys; from transferctl.cli import app\ntry: app(['cache', 'list'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("written", "path", "limit"),
    [
        ("auto", "auto", 20 * 10**9),
        ("none", "none", 20 * 10**9),
        ("kept", "HERE/kept", 20 * 10**9),
        ("{path: kept, limit: 1.5GB}", "HERE/kept", 1_500_000_000),
        ("{limit: 1000000}", "auto", 10**6),
    ],
)
def test_the_spec_says_where_and_how_much(tmp_path: Path, written: str, path: str, limit: int) -> None:
    (tmp_path / "spec.yaml").write_text(f"backbone: resnet18\ntarget: {{train: photos}}\ncache: {written}\n")
    spec = yamlfile.load(tmp_path / "spec.yaml").spec
    assert (str(spec.cache.path), spec.cache.limit) == (path.replace("HERE", str(tmp_path)), limit)
    (tmp_path / "again.yaml").write_text(yamlfile.dump(spec))
    assert yamlfile.load(tmp_path / "again.yaml").spec == spec


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{limit: 5XB}", "cache.limit: must be a size such as 500MB or 20GB, or a number of bytes, not 5XB"),
        ("{limit: 0}", "cache.limit: must be greater than 0, not 0"),
        ("{limt: 5GB}", "cache.limt: is not a setting; did you mean cache.limit?"),
        ("3", "cache: must be auto, none, a path or a mapping, not 3"),
    ],
)
def test_a_faulty_setting_is_told_with_its_line(tmp_path: Path, invoke: Invoke, written: str, message: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(f"backbone: resnet18\ntarget: {{train: photos}}\ncache: {written}\n")
    code, answer = invoke("check", path)
    assert (code, answer["error"]) == (2, f"{path}:3: {message}")
