"""predict: a row an image, in order, the same as eval says, whatever is wrong with some and however it was ended."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from typer.testing import CliRunner, Result

from transferctl import inputs, predictionfiles, scoring
from transferctl.checkpoint import WEIGHTS_FILE
from transferctl.cli import app
from transferctl.errors import SpecError
from transferctl.predictionfiles import PredictionFile, Tally, chained
from transferctl.predictionpaths import Paths
from transferctl.predictionrows import PathPrediction, RowFormat

Invoke = Callable[..., tuple[int, dict[str, Any]]]


@pytest.fixture(scope="module")
def trained(call: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extract run with three classes, one of whose names is hard to write, and without a temperature."""
    folder = tmp_path_factory.mktemp("trained")
    for split, n in (("train", 6), ("val", 4)):
        for label, name in enumerate(('=1+1, "x"', "bees", "ציפור")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n):
                _image(folder / split / name / f"{i}.png", 60 * label + i)
    (folder / "tiny.yaml").write_text("""
name: tiny
backbone: {name: resnet18, weights: none}
preprocess: {resize: 36, crop: 32}
target: {train: train, val: val}
epochs: 2
batch_size: 8
workers: 0
""")
    path = Path(call("extract", folder / "tiny.yaml", "--runs-dir", folder / "runs")["run"])
    (path / "calibration.json").unlink(missing_ok=True)
    return path


def _image(path: Path, seed: int) -> Path:
    noise = np.random.default_rng(seed).integers(0, 120, (40, 48, 3)) + seed % 130
    Image.fromarray(noise.astype(np.uint8)).save(path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """photos/a/0.png … 4.png, photos/b/…, and what is none."""
    for name in ("b", "a"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(5):
            _image(tmp_path / "photos" / name / f"{i}.png", i)
    (tmp_path / "photos" / ".hidden.png").write_bytes(b"x")
    (tmp_path / "photos" / "notes.txt").write_text("x")
    return tmp_path / "photos"


def run(*arguments: object, stdin: bytes = b"") -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], input=stdin)


def rows_of(text: str | bytes) -> list[dict[str, str]]:
    text = text if isinstance(text, str) else text.decode("utf-8", "surrogateescape")
    return list(csv.DictReader(io.StringIO(text, newline="")))


# -- what is said of an image


def test_predictions_equal_those_of_eval_to_the_last_digit(trained: Path, tmp_path: Path, invoke: Invoke) -> None:
    val = trained.parent.parent / "val"
    code, answer = invoke("eval", trained, "--data", val, "--runs-dir", tmp_path / "evals")
    assert code == 0
    with (Path(answer["run"]) / "predictions.csv").open(encoding="utf-8", newline="") as file:
        expected = [(row["path"], row["predicted"], row["probability"]) for row in csv.DictReader(file)]
    found = run(trained, val)
    assert [(row["path"], row["predicted"], row["probability"]) for row in rows_of(found.stdout)] == expected
    assert len(expected) == 12 and "not calibrated: the run keeps no temperature" in found.stderr


def test_probabilities_are_softmax_of_logits_over_the_temperature_that_the_run_keeps(
    trained: Path, photos: Path, tmp_path: Path
) -> None:
    """p^(1/T), normalised, is softmax(logits / T) of p = softmax(logits)."""
    plain = rows_of(run(trained, photos, "--probabilities", "--top", 3).stdout)
    copy = shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    step = (copy / "checkpoints" / "best").resolve().name
    (copy / "calibration.json").write_text(json.dumps({"schema_version": 1, "checkpoint": step, "temperature": 2.5}))
    result = run(copy, photos, "--probabilities", "--top", 3)
    assert "calibrated: softmax(logits / 2.5)" in result.stderr
    names = [name for name in plain[0] if name.startswith("probability of ")]
    for before, after in zip(plain, rows_of(result.stdout), strict=True):
        expected = np.array([float(before[name]) for name in names]) ** (1 / 2.5)
        assert np.allclose([float(after[name]) for name in names], expected / expected.sum(), atol=3e-6)
        assert [before[key] for key in ("predicted", "class_2", "class_3")] == [
            after[key] for key in ("predicted", "class_2", "class_3")
        ]


def test_top_is_sorted_and_sums_to_one_with_all_classes(trained: Path, photos: Path) -> None:
    result = run(trained, photos, "--format", "jsonl", "--top", 9, "--probabilities")
    assert "--top 9: there are 3 classes" in result.stderr
    for line in map(json.loads, result.stdout.splitlines()):
        shares = [one["probability"] for one in line["top"]]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=3e-6)
        assert line["predicted"] == line["top"][0]["class"] and line["probability"] == shares[0]
        assert line["probabilities"] == {one["class"]: one["probability"] for one in line["top"]}


def test_workers_that_decode_change_no_byte(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transferctl.predict.SCORING_BATCH", 3)
    (photos / "a" / "1.png").write_bytes(b"no image")
    files = [tmp_path / f"{workers}.csv" for workers in (0, 2)]
    for workers, out in zip((0, 2), files, strict=True):
        assert run(trained, photos, "--out", out, "--set", f"workers={workers}").exit_code == 3
    assert files[0].read_bytes() == files[1].read_bytes()


def test_memory_that_runs_out_is_halved_and_changes_no_class(
    trained: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(run(trained, photos).stdout)
    transfer = scoring.Batch.to

    def scarce(batch: Any, device: Any) -> Any:
        if len(batch.labels) > 3:
            raise torch.OutOfMemoryError
        return transfer(batch, device)

    monkeypatch.setattr(scoring.Batch, "to", scarce)
    result = run(trained, photos)
    assert "out of memory: 10 images do not fit at once" in result.stderr
    assert [row["predicted"] for row in rows_of(result.stdout)] == [row["predicted"] for row in whole]


# -- what PATH… names


def paths_of(*arguments: str, stdin: bytes = b"", null: bool = False, monkeypatch: Any = None) -> list[str]:
    if monkeypatch:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    return [path if isinstance(path, str) else f"{path.name}: {path.reason}" for path in Paths(arguments, null)]


def test_a_folder_is_all_images_below_it_in_order_and_what_is_left_out_is_said(trained: Path, photos: Path) -> None:
    result = run(trained, photos)
    expected = [str(photos / name / f"{i}.png") for name in "ab" for i in range(5)]
    assert [row["path"] for row in rows_of(result.stdout)] == expected
    assert "1 hidden ignored" in result.stderr and "1 file not used, being no images by name" in result.stderr


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("photos/*/0.png", ["a/0.png", "b/0.png"]),
        ("photos/**/[34].png", ["a/3.png", "a/4.png", "b/3.png", "b/4.png", "deep/er/3.png"]),
        ("photos/**", [*(f"a/{i}.png" for i in range(5)), *(f"b/{i}.png" for i in range(5)), "deep/er/3.png"]),
        ("photos/[b-d]*", [*(f"b/{i}.png" for i in range(5)), "deep/er/3.png"]),
        ("photos/**/er/**/*.png", ["deep/er/3.png"]),
        ("photos/?/1.*", ["a/1.png", "b/1.png"]),
        ("photos/.h*", [".hidden.png"]),
        ("**/er/*", ["deep/er/3.png"]),
        ("nowhere/*.png", []),
        ("photos/*.jpg", []),
    ],
)
def test_a_pattern_names_each_image_once_in_order(
    pattern: str, expected: list[str], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "deep" / "er").mkdir(parents=True)
    _image(photos / "deep" / "er" / "3.png", 3)
    monkeypatch.chdir(photos.parent)
    assert paths_of(pattern) == [f"photos/{path}" for path in expected]
    assert paths_of(str(photos.parent / pattern)) == [str(photos / path) for path in expected]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(photos: Path) -> None:
    odd = _image(photos / "[1] *?.png", 1)
    assert paths_of(str(odd)) == [str(odd)]


def test_links_are_followed_but_not_to_a_folder_around_them(photos: Path) -> None:
    (photos / "a" / "loop").symlink_to(photos)
    (photos / "c").symlink_to(photos / "b")
    found = paths_of(str(photos))
    assert f"{photos}/a/loop: is a link that leads back to a folder around it" in found
    assert f"{photos}/c/0.png" in found and len(found) == 16


def test_a_folder_that_is_deeper_than_python_recurses_is_listed(tmp_path: Path) -> None:
    path = "/".join([str(tmp_path), *("d" * 1100)])
    here = Path.cwd()
    try:
        for part in [tmp_path, *("d" * 1100)]:
            Path(part).mkdir(exist_ok=True)
            os.chdir(part)
        Path("x.png").write_bytes(b"")
    finally:
        os.chdir(here)
    try:
        assert paths_of(str(tmp_path)) == [f"{path}/x.png"]
    finally:
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)


@pytest.mark.parametrize(
    ("stdin", "null", "expected"),
    [
        (b"a.png\nb c.png\r\n\n\xff.png", False, ["a.png", "b c.png", "\udcff.png"]),
        (b"a\n.png\0b.png\0\0c.png", True, ["a\n.png", "b.png", "c.png"]),
        (b"", False, []),
    ],
)
def test_a_list_on_stdin_has_a_path_a_line_or_a_nul(
    stdin: bytes, null: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert paths_of("-", stdin=stdin, null=null, monkeypatch=monkeypatch) == expected


def test_stdin_that_is_no_list_exits_3(trained: Path) -> None:
    result = run(trained, "-", stdin=b"x" * 100_000)
    assert result.exit_code == 3 and "path 1 has more than 65,536 bytes" in result.stderr


def test_paths_are_asked_for_as_they_are_needed(photos: Path) -> None:
    """Of an endless list the first are there at once."""

    class Endless(io.RawIOBase):
        def readable(self) -> bool:
            return True

        def readinto(self, buffer: Any) -> int:
            buffer[:6] = b"x.png\n"
            return 6

    paths = iter(Paths(["-"]))
    stdin = sys.stdin
    sys.stdin = io.TextIOWrapper(io.BufferedReader(Endless()))
    try:
        assert [next(paths) for _ in range(100_000)] == ["x.png"] * 100_000
    finally:
        sys.stdin = stdin


def test_an_image_that_is_named_twice_comes_twice(trained: Path, photos: Path) -> None:
    one = photos / "a" / "0.png"
    found = rows_of(run(trained, one, photos / "b", one).stdout)
    assert [row["path"] for row in found] == [str(one), *(str(photos / "b" / f"{i}.png") for i in range(5)), str(one)]
    assert found[0] == found[-1]


@pytest.mark.parametrize("kind", ["folder", "pattern"])
def test_nothing_found_exits_3_before_anything_is_written(
    kind: str, trained: Path, tmp_path: Path, invoke: Invoke
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("x")
    what = tmp_path / "empty" if kind == "folder" else f"{tmp_path}/empty/*.txt"
    code, answer = invoke("predict", trained, what, "--out", tmp_path / "x.csv")
    assert code == 3 and not list(tmp_path.glob("x.csv*"))
    assert answer["error"].startswith(str(what)) and "1 file not used" in answer["error"]


def test_one_path_of_several_without_images_is_named_at_the_end(trained: Path, photos: Path) -> None:
    result = run(trained, f"{photos}/*.tiff", photos)
    assert result.exit_code == 3 and len(rows_of(result.stdout)) == 10
    assert f"error: {photos}/*.tiff: matches no images" in result.stderr


# -- bad files


def test_bad_files_are_named_in_their_rows_and_exit_3_unless_skipped(
    trained: Path, photos: Path, invoke: Invoke
) -> None:
    (photos / "a" / "2.png").write_bytes(b"no image")
    (photos / "a" / "3.png").write_bytes(b"")
    os.mkfifo(photos / "fifo.png")
    arguments = (photos / "a", photos / "missing.png", photos / "b", photos / "fifo.png")
    found = run(trained, *arguments)
    rows = rows_of(found.stdout)
    assert found.exit_code == 3
    bad = {Path(row["path"]).name: row["error"] for row in rows if row["error"]}
    assert bad == {
        "2.png": "is not a readable image (JPEG, PNG, WEBP, BMP, TIFF, GIF)",
        "3.png": "is empty (0 bytes)",
        "missing.png": "is missing",
        "fifo.png": "is not a regular file",
    }
    assert all((row["predicted"] == "") == bool(row["error"]) for row in rows) and len(rows) == 12
    assert "error: 4 bad files of 12; mend or remove them, or allow them by --skip-bad" in found.stderr
    assert f"error:   {photos}/missing.png is missing" in found.stderr
    skipped = run(trained, *arguments, "--skip-bad")
    assert (skipped.exit_code, skipped.stdout) == (0, found.stdout)
    assert f"warning: {photos}/missing.png is missing" in skipped.stderr
    out = photos.parent / "x.jsonl"
    code, answer = invoke("predict", trained, *arguments, "--out", out)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert (code, answer["n"], answer["bad"], sum(answer["predicted"].values())) == (3, 12, 4, 8)
    assert [line for line in lines if "error" in line][2] == {"path": f"{photos}/missing.png", "error": "is missing"}


def test_a_batch_without_a_readable_image_is_rows_all_the_same(trained: Path) -> None:
    result = run(trained, "-", "--skip-bad", stdin=b"\n".join(b"missing %d" % i for i in range(300)))
    assert (result.exit_code, len(rows_of(result.stdout))) == (0, 300)
    assert result.stderr.count("warning: missing") == predictionfiles.NAMED


def test_the_other_images_are_what_they_are_without_the_bad_one(trained: Path, photos: Path) -> None:
    whole = rows_of(run(trained, photos).stdout)
    (photos / "a" / "2.png").write_bytes(b"no image")
    rest = rows_of(run(trained, photos).stdout)
    for before, after in zip(whole, rest, strict=True):
        if not after["error"]:
            assert before["predicted"] == after["predicted"]
            assert float(before["probability"]) == pytest.approx(float(after["probability"]), abs=2e-6)


# -- as a process: pipes, signals, memory


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "transferctl", "predict", *map(str, arguments)]


def test_a_closed_pipe_ends_without_traceback(trained: Path, photos: Path) -> None:
    """As `predict … | head` closes it."""
    process = subprocess.Popen(command(trained, photos), stdout=-1, stderr=-1)
    assert process.stdout and process.stderr
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read().decode()
    assert process.wait() == 5 and "stdout: cannot write: Broken pipe" in said and "Traceback" not in said


def test_rows_come_while_the_list_is_still_being_written(trained: Path, photos: Path, tmp_path: Path) -> None:
    """And SIGTERM ends it with 143."""
    process = subprocess.Popen(command(trained, "-"), stdin=-1, stdout=-1, stderr=-1)
    assert process.stdin and process.stdout
    process.stdin.write(f"{photos}/a/0.png\n".encode() * (3 * inputs.SCORING_BATCH))
    process.stdin.flush()
    assert process.stdout.readline() == b"path,predicted,probability,error\n"
    assert process.stdout.readline().startswith(bytes(photos))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143 and b"Traceback" not in said


def test_a_file_that_was_killed_at_random_times_is_gone_on_with_to_the_same_bytes(
    trained: Path, tmp_path: Path
) -> None:
    """SIGKILL; what is there in between is whole rows of the same file and at most a part of one."""
    for i in range(4):
        _image(tmp_path / f"{i}.png", i)
    (tmp_path / "list").write_bytes(b"".join(b"%s/%d.png\n" % (bytes(tmp_path), i % 5) for i in range(3000)))
    out, whole, moments = tmp_path / "x.csv", tmp_path / "whole.csv", random.Random(0)

    def start(path: Path) -> subprocess.Popen[bytes]:
        with (tmp_path / "list").open("rb") as stdin:
            return subprocess.Popen(command(trained, "-", "--out", path, "--resume"), stdin=stdin, stderr=-3, stdout=-3)

    assert start(whole).wait() == 3
    killed = 0
    while not out.exists() and killed < 3:
        before, process = len(part_of(out) or b""), start(out)
        while len(part_of(out) or b"") <= before and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        assert whole.read_bytes().startswith(part_of(out) or out.read_bytes())
    assert killed and start(out).wait() == 3
    assert out.read_bytes() == whole.read_bytes() and not part_of(out)


def part_of(out: Path) -> bytes | None:
    part = out.with_name(f"{out.name}.part")
    return part.read_bytes() if part.exists() else None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_images_take_no_more_memory_than_few(trained: Path, photos: Path) -> None:
    used = []
    for n in (600, 600, 3000):  # twice: in a rare run torch does not take a buffer of 44 MB at all
        listed = b"".join(b"%s/a/%d.png\n" % (bytes(photos), i % 5) for i in range(n))
        code = (
            "import sys\nfrom transferctl.cli import app\n"
            "try: app(sys.argv[1:])\nexcept SystemExit as end: assert not end.code\n"
            "print(next(line for line in open('/proc/self/status') if 'RssAnon' in line), file=sys.stderr)"
        )
        arguments = [sys.executable, "-c", code, "predict", str(trained), "-"]
        # One arena, and what is freed goes back: what is left at the end is what is held.
        plain = os.environ | {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(arguments, input=listed, capture_output=True, check=True, env=plain)
        assert done.stdout.count(b"\n") == n + 1
        used.append(int(done.stderr.split()[-2]))
    assert used[2] - max(used[:2]) < 3 * 1024, used  # KiB; a list of the images would be 7 MiB more


# -- real photographs


@pytest.mark.real
def test_a_thousand_photographs_with_a_bad_one_are_all_predicted_in_order_and_it_is_named(
    invoke: Invoke, real_data: Path, tmp_path: Path
) -> None:
    """A photograph that was cut off in transfer among 999; the others have the probabilities of a pass without it."""
    (tmp_path / "spec.yaml").write_text(f"""
backbone:
  name: resnet18
  weights: {{path: {real_data}/resnet18-tinyimagenet.pth, classes: {real_data}/tiny-imagenet-classes.json}}
preprocess: {{resize: 73, crop: 64}}
target: {{train: {{path: {real_data}/ants-bees/train, exclude: [imageNotFound.gif]}}, val: 0.2}}
epochs: 20
""")
    code, made = invoke("extract", tmp_path / "spec.yaml", "--runs-dir", tmp_path)
    assert code == 0
    photographs = sorted((real_data / "ants-bees").rglob("*.jpg"))
    listed = [str(photographs[i % len(photographs)]) for i in range(1000)]
    listed[500] = str(tmp_path / "cut off.jpg")
    (tmp_path / "cut off.jpg").write_bytes(photographs[0].read_bytes()[:9000])
    found = run(made["run"], "-", stdin="\n".join(listed).encode())
    rows = rows_of(found.stdout)
    assert found.exit_code == 3 and [row["path"] for row in rows] == listed
    assert [row["path"] for row in rows if row["error"]] == [listed[500]]
    assert "error: 1 bad file of 1,000;" in found.stderr
    assert f"error:   {listed[500]} cannot be decoded: image file is truncated" in found.stderr
    right = np.mean([Path(row["path"]).parent.name == row["predicted"] for row in rows if not row["error"]])
    assert right > 0.75
    once = {row["path"]: row for row in rows[: len(photographs)]}
    for row in rows[len(photographs) :]:
        if not row["error"]:
            assert float(row["probability"]) == pytest.approx(float(once[row["path"]]["probability"]), abs=2e-5)


# -- names


NAMES = [
    "=1+1",
    "a,b",
    'say "x"',
    "two\nlines",
    "return\r",
    "ab\u202edc",
    " spaces ",
    "日本",
    "\udcff\udcfe",
    "tab\t",
    "-",
    "'",
]


def test_names_survive_a_round_trip_in_csv_and_jsonl(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    for name in NAMES:
        _image(tmp_path / "odd" / "x.png", 1).rename(tmp_path / "odd" / f"{name}.png")
    wanted = sorted(str(tmp_path / "odd" / f"{name}.png") for name in NAMES)
    for stdout in (True, False):
        out = () if stdout else ("--out", tmp_path / "x.csv")
        found = run(trained, tmp_path / "odd", *out)
        assert found.exit_code == 0
        content = found.stdout_bytes if stdout else (tmp_path / "x.csv").read_bytes()
        assert sorted(row["path"] for row in rows_of(content)) == wanted
    assert {row["predicted"] for row in rows_of(content)} <= {'=1+1, "x"', "bees", "ציפור"}
    lines = run(trained, tmp_path / "odd", "--format", "jsonl").stdout_bytes.decode("utf-8").splitlines()
    assert sorted(json.loads(line)["path"] for line in lines) == wanted


def test_fields_are_read_back_by_the_csv_module_whatever_they_hold() -> None:
    rows = RowFormat("csv", ['a,"b"', "=x", "c\r"], top=3, probabilities=True)
    each = np.array([0.5, 0.3, 0.2])
    made = rows.header() + rows.of(
        [PathPrediction("p", [(2, 0.5), (0, 0.3), (1, 0.2)], each), PathPrediction("q", error='"\n,')]
    )
    header, one, other = csv.reader(io.StringIO(made.decode(), newline=""))
    assert header[-4:] == ['probability of a,"b"', "probability of =x", "probability of c\r", "error"]
    assert one == [
        "p",
        "c\r",
        "0.500000",
        'a,"b"',
        "0.300000",
        "=x",
        "0.200000",
        "0.500000",
        "0.300000",
        "0.200000",
        "",
    ]
    assert other == ["q", *[""] * 9, '"\n,']


def test_a_table_is_aligned_and_escapes_what_a_terminal_would_obey() -> None:
    rows = RowFormat("table", ["ant", "日本", "x" * 50], top=1, probabilities=False)
    made = rows.header() + rows.of([PathPrediction(f"\x1b[2J{i}.png", [(i, 0.5)]) for i in range(3)])
    header, *lines = made.decode().splitlines()
    assert [line.index("\\x1b[2J") for line in lines] == [
        header.index("path"),
        header.index("path") - 2,
        header.index("path"),
    ]
    assert "x" * 29 + "…" in lines[2] and "\x1b" not in made.decode()


# -- usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--json"], "--json: has its object on stdout"),
        (["x", "--out", "x.txt"], "--out x.txt: its ending is none of .csv, .jsonl, .ndjson"),
        (["x", "--resume"], "--resume: is about the FILE of --out"),
        (["x", "--out", "x.csv", "--resume", "--overwrite"], "choose one"),
        (["x", "--out", "nowhere/x.csv"], "there is no folder nowhere"),
        (["x", "--out", ".", "--format", "csv"], "is a folder; name a file in it"),
        (["x", "--out", "/dev/null", "--format", "csv"], "is no regular file"),
        (["x", "--format", "xml"], "--format xml: must be one of csv, jsonl, table"),
        (["x", "--format", "table", "--probabilities"], "--probabilities: is for csv and jsonl"),
        (["x", "-0"], "--null: is about the list on stdin"),
        (["-", "-"], "-: is stdin, which can be read once"),
        ([""], "PATH: is empty"),
        (["x", "--head", "both"], "--head both: must be one of"),
        (["x", "--set", "seed=1"], "predict takes this from the checkpoint; it can set device, precision, workers"),
    ],
)
def test_wrong_usage_exits_2(
    arguments: list[str], message: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(trained, *arguments)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, []), result.output
    assert message in result.stderr


def test_a_head_that_the_model_lacks_exits_4(trained: Path, photos: Path) -> None:
    result = run(trained, photos, "--head", "source")
    assert result.exit_code == 4 and "has no source head; it has target" in result.stderr


def test_a_pretrained_run_predicts_with_its_source_head(call: Any, image_folder: Any, tmp_path: Path) -> None:
    source = image_folder("source", ants=6, bees=6)
    (tmp_path / "spec.yaml").write_text(
        f"backbone: {{name: resnet18, weights: none}}\ntarget: {{train: {source}, val: 0.5}}\n"
        f"source: {{train: {source}, val: 0.5}}\npreprocess: {{resize: 32, crop: 32}}\nworkers: 0\npretrain: {{epochs: 1}}\n"
    )
    made = call("pretrain", tmp_path / "spec.yaml", "--runs-dir", tmp_path / "runs")["run"]
    answer = call("predict", made, source, "--out", tmp_path / "x.csv")
    assert (answer["head"], answer["n"], answer["temperature"]) == ("source", 12, None)
    assert set(answer["predicted"]) <= {"ants", "bees"}


# -- a file, gone on with


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferctl.predict.SCORING_BATCH", 3)
    monkeypatch.setattr(predictionfiles, "SAVE_INTERVAL_S", 0.0)


class Stopped(Exception):
    pass


def stop_after(batches: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next predict fails in the batch after so many."""
    from transferctl.predict import Predictor

    plain, done = Predictor.__call__, []

    def failing(self: Any, loaded: Any) -> Any:
        if len(done) == batches:
            monkeypatch.setattr(Predictor, "__call__", plain)
            raise error
        done.append(loaded)
        return plain(self, loaded)

    monkeypatch.setattr(Predictor, "__call__", failing)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_resumed_file_has_the_bytes_of_an_uninterrupted_one_and_decodes_nothing_twice(
    ending: str, batches: int, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a" / "1.png").write_bytes(b"no image")
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"x.{ending}"
    assert run(trained, photos, "--out", whole, "--top", 2).exit_code == 3
    stop_after(batches, KeyboardInterrupt(), monkeypatch)
    stopped = run(trained, photos, "--out", out, "--top", 2)
    assert stopped.exit_code == 130 and not out.exists()
    part = tmp_path / f"x.{ending}.part"
    assert whole.read_bytes().startswith(part.read_bytes())
    if batches:
        said = f"to go on: the same command with --resume ({3 * batches} rows of {part} are safe)"
        assert said in " ".join(stopped.stderr.split())
    part.write_bytes(part.read_bytes() + b"an incomplete li")
    for i in range(3 * batches):
        (photos / "ab"[i // 5] / f"{i % 5}.png").write_bytes(b"is not read again")
    resumed = run(trained, photos, "--out", out, "--top", 2, "--resume")
    assert (resumed.exit_code == 3 and "1 bad file of 10" in resumed.stderr) or batches == 0
    assert out.read_bytes() == whole.read_bytes() and not part.exists()


def nudge_weights(folder: Path) -> None:
    """Another model of the same step, whose manifest is true."""
    state = safetensors.torch.load_file(folder / WEIGHTS_FILE)
    bias = next(name for name in sorted(state) if name.startswith("heads.target.") and name.endswith("bias"))
    state[bias] += 1
    safetensors.torch.save_file(state, folder / WEIGHTS_FILE)
    manifest = json.loads((folder / "manifest.json").read_text())
    content = (folder / WEIGHTS_FILE).read_bytes()
    manifest["files"][WEIGHTS_FILE] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("changed", ["--top", "--probabilities", "--checkpoint", "weights", "paths"])
def test_a_file_begun_in_another_way_is_not_gone_on_with(
    changed: str, trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(2, KeyboardInterrupt(), monkeypatch)
    assert run(trained, photos, "--out", tmp_path / "x.csv").exit_code == 130
    before = (tmp_path / "x.csv.part").read_bytes()
    options: list[object] = {"--top": ["--top", 2], "--probabilities": ["--probabilities"]}.get(changed, [])
    said = {"--top": "top: 1 then, 2 now", "paths": "its first 6 rows are not of the first images of PATH"}
    if changed == "paths":
        _image(photos / "a" / "00.png", 3)
    if changed in ("weights", "--checkpoint"):
        trained = shutil.copytree(trained, tmp_path / "copy", symlinks=True)
    if changed == "--checkpoint":
        name = (trained / "checkpoints" / "best").resolve().name
        shutil.copytree(trained / "checkpoints" / name, trained / "checkpoints" / "step-000001")
        (trained / "checkpoints" / "last").unlink()
        (trained / "checkpoints" / "last").symlink_to("step-000001")
        options = ["--checkpoint", "last"]
        said[changed] = f"checkpoint: {name} then, step-000001 now"
    if changed == "weights":
        nudge_weights((trained / "checkpoints" / "best").resolve())
        said[changed] = "was begun by something else (weights: "
    result = run(trained, photos, "--out", tmp_path / "x.csv", "--resume", *options)
    assert result.exit_code == 4 and said.get(changed, "was begun by something else") in result.stderr
    assert (tmp_path / "x.csv.part").read_bytes() == before


@pytest.mark.usefixtures("small_batches")
def test_a_file_is_gone_on_with_where_the_run_was_moved(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(2, KeyboardInterrupt(), monkeypatch)
    assert run(trained, photos, "--out", tmp_path / "x.csv").exit_code == 130
    moved = shutil.copytree(trained, tmp_path / "moved", symlinks=True)
    assert run(moved, photos, "--out", tmp_path / "x.csv", "--resume").exit_code == 0


@pytest.mark.usefixtures("small_batches")
def test_the_way_to_go_on_after_overwrite_is_one_that_is_taken(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_after(1, KeyboardInterrupt(), monkeypatch)
    stopped = run(trained, photos, "--out", tmp_path / "x.csv", "--overwrite")
    assert "to go on: the same command with --resume in place of --overwrite" in " ".join(stopped.stderr.split())


@pytest.mark.parametrize("is_renamed", [True, False], ids=["finished", "but for its name"])
def test_a_finished_file_of_other_images_is_no_success(
    is_renamed: bool, trained: Path, photos: Path, tmp_path: Path
) -> None:
    out, part = tmp_path / "x.csv", tmp_path / "x.csv.part"
    assert run(trained, photos, "--out", out).exit_code == 0
    before = out.read_bytes()
    if not is_renamed:  # killed before the last step
        out.rename(part)
    other = run(trained, photos / "b", "--out", out, "--resume")
    assert other.exit_code == 4 and "its first 10 rows are not of the first images of PATH…" in other.stderr
    _image(photos / "b" / "9.png", 9)
    more = run(trained, photos, "--out", out, "--resume")
    said = f"is finished and has 10 rows; PATH… names more, {photos}/b/9.png first: predict those into another FILE"
    assert more.exit_code == 4 and said in more.stderr
    assert (out if is_renamed else part).read_bytes() == before
    (photos / "b" / "9.png").unlink()
    assert run(trained, photos, "--out", out, "--resume").exit_code == 0 and out.read_bytes() == before


def test_a_finished_file_is_kept_unless_it_is_to_be_overwritten(trained: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.csv"
    assert run(trained, photos, "--out", out).exit_code == 0
    before, inode = out.read_bytes(), out.stat().st_ino
    refused = run(trained, photos, "--out", out)
    assert refused.exit_code == 2 and "exists; --overwrite replaces it" in refused.stderr
    again = run(trained, photos, "--out", out, "--resume")
    assert again.exit_code == 0 and "is finished; there is nothing to go on with" in again.stderr
    assert (out.read_bytes(), out.stat().st_ino) == (before, inode)
    out.write_bytes(before + b"a line of someone's\n")
    assert run(trained, photos, "--out", out, "--resume").exit_code == 4
    assert run(trained, photos, "--out", out, "--overwrite").exit_code == 0
    assert out.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema_version": 1, "made_by": 1}', '{"tally": {"rows": -1}}'])
def test_a_progress_that_lies_is_refused(content: str, trained: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv.part").write_text("rows\n")
    (tmp_path / ".x.csv.progress.json").write_text(content)
    result = run(trained, photos, "--out", tmp_path / "x.csv", "--resume")
    assert result.exit_code == 4 and "was not begun by predict, or its progress is gone" in result.stderr


def test_a_link_is_replaced_and_its_target_left_alone(trained: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("precious")
    (tmp_path / "x.csv").symlink_to("theirs")
    (tmp_path / "y.csv.part").symlink_to("theirs")
    assert run(trained, photos, "--out", tmp_path / "x.csv").exit_code == 2
    assert run(trained, photos, "--out", tmp_path / "x.csv", "--overwrite").exit_code == 0
    result = run(trained, photos, "--out", tmp_path / "y.csv", "--overwrite")
    assert result.exit_code == 5 and "cannot write" in result.stderr
    assert (tmp_path / "theirs").read_text() == "precious" and not (tmp_path / "x.csv").is_symlink()


def test_two_processes_do_not_write_one_file(trained: Path, photos: Path, tmp_path: Path) -> None:
    file = PredictionFile(tmp_path / "x.csv", resume=False, overwrite=False)
    with file.growing(file.begun({}, 3), b"header\n"):
        result = run(trained, photos, "--out", tmp_path / "x.csv", "--overwrite")
        assert result.exit_code == 7 and "another process writes it" in result.stderr
        assert (tmp_path / "x.csv.part").read_bytes() == b"header\n"


@pytest.mark.usefixtures("small_batches")
def test_a_full_disk_exits_5_and_the_rows_so_far_are_gone_on_with(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "x.csv"
    assert run(trained, photos, "--out", whole).exit_code == 0
    room = [whole.stat().st_size // 2]
    write = os.write

    def filling(descriptor: int, content: Any) -> int:
        if room[0] == 0:
            raise OSError(28, "No space left on device")
        done = write(descriptor, content[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(predictionfiles.os, "write", filling)
    full = run(trained, photos, "--out", out)
    monkeypatch.setattr(predictionfiles.os, "write", write)
    assert full.exit_code == 5 and f"{out}: cannot write: No space left on device; free some space" in full.stderr
    assert "to go on: the same command with --resume" in full.stderr
    assert run(trained, photos, "--out", out, "--resume").exit_code == 0
    assert out.read_bytes() == whole.read_bytes()


def test_the_digest_of_paths_goes_on_from_that_of_the_first() -> None:
    names = [f"{i}\udcff" for i in range(9)]
    assert chained(chained("", names[:4]), names[4:]) == chained("", names) != chained("", names[1:])
    tally = Tally([0, 0])
    tally.add([PathPrediction("a", [(1, 0.5)]), PathPrediction("b", error="is bad")])
    assert (tally.counts, tally.bad, tally.first_bad, tally.paths) == ([0, 1], 1, [["b", "is bad"]], chained("", "ab"))


def test_an_output_that_cannot_be_looked_for_is_usage(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be looked for"):
        PredictionFile(tmp_path / ("x" * 5000) / "y.csv", resume=False, overwrite=False)
