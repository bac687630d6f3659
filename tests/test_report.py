"""The page of a run, and of several: what is in it, what becomes of what lies, and that it never costs a run."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from transferctl import report, signals
from transferctl.cli import app
from transferctl.display import Display
from transferctl.errors import Terminated
from transferctl.frozen import FrozenStages
from transferctl.reporting import beside, comparison, dataaudit, html, material, page
from transferctl.reporting.gather import gather

ROOT = Path(__file__).parent.parent
SPEC = """
backbone: {name: resnet18, weights: source}
preprocess: {resize: 36, crop: 36}
target: {train: train, val: val, test: test}
source: {train: old, val: 0.3}
lambda: 2
penalties: {l2sp: 0.1}
epochs: 2
batch_size: 8
workers: 0
optimizer: {lr: 0.01}
pretrain: {epochs: 1}
"""


def make_images(root: Path, **counts: int) -> None:
    """Noise around a colour of the class's own; a name in the keyword's place where it is one for no keyword."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng([i, len(str(root))]).integers(0, 120, (40, 48, 3))
            Image.fromarray((noise + 40 * number % 130).astype(np.uint8)).save(root / name / f"{i}.png")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, call: Any) -> dict[str, Path]:
    """Runs that all tests look at and none changes: pretrain, extract, finetune from that, eval of it."""
    folder = tmp_path_factory.mktemp("work")
    for name, counts in {"train": 8, "val": 6, "test": 6}.items():
        make_images(folder / name, ants=counts, bees=counts, wasps=counts)
    make_images(folder / "old", cats=10, dogs=10)
    (folder / "tiny.yaml").write_text(SPEC)
    where = ("--runs-dir", folder / "runs")
    extracted = call("extract", folder / "tiny.yaml", *where)["run"]
    tuned = call("finetune", folder / "tiny.yaml", "--from", extracted, *where)["run"]
    evaluated = call("eval", tuned, "--split", "test", *where)["run"]
    pretrained = next((folder / "runs").glob("*-pretrain-*"))
    names = {"extract": extracted, "finetune": tuned, "eval": evaluated, "pretrain": pretrained}
    return {name: Path(path) for name, path in names.items()} | {"folder": folder}


@pytest.fixture
def run(work: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the fine-tuning run, to be changed; its data is where it was."""
    return Path(shutil.copytree(work["finetune"], tmp_path / work["finetune"].name, symlinks=True))


@pytest.fixture
def with_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(report.VARIABLE)


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def sections(text: str) -> list[str]:
    return re.findall(r'<section id="([a-z]+)"', text)


# -- what is in it ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("pretrain", "curves calibration mistakes looks map plan data spec environment"),
        ("extract", "curves classes calibration mistakes looks map plan data spec environment"),
        ("finetune", "curves forgetting classes calibration mistakes looks map plan data spec environment"),
        ("eval", "classes calibration mistakes looks map data spec environment"),
    ],
)
def test_every_verbs_run_has_its_sections(work: dict[str, Path], verb: str, expected: str) -> None:
    made = page.of(gather(work[verb]))
    assert (sections(made.html), made.missing) == (expected.split(), {})
    told = gather(work[verb]).score
    assert told and told.accuracy and f"{100 * told.accuracy.value:.1f}<small>%" in made.html


def test_the_page_is_the_same_bytes_each_time_and_loads_nothing(work: dict[str, Path]) -> None:
    first, again = (page.of(gather(work["finetune"])).html for _ in range(2))
    assert first == again
    tags = Tags(first)
    assert "script" not in tags.tags and "iframe" not in tags.tags
    for name, value in tags.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "xlink:href"):
            assert value.startswith(("#", "data:")), value
    assert "http:" not in re.sub(r'xmlns(:xlink)?="[^"]*"', "", first) and "https:" not in first
    assert len(first) < 3_000_000


def test_ids_of_all_figures_are_their_own(work: dict[str, Path]) -> None:
    ids = [value for name, value in Tags(page.of(gather(work["finetune"])).html).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_fine_tuning_stands_beside_the_linear_probe_it_started_from(work: dict[str, Path]) -> None:
    text = page.of(gather(work["finetune"])).html
    probe = gather(work["extract"]).score
    assert probe and probe.accuracy and "the linear probe it started from" in text
    assert re.search(rf"{work['extract'].name}; the same images.*?{100 * probe.accuracy.value:.1f} %", text, re.DOTALL)
    assert "min over θ of L_S + 2·L_T + 0.1·Ω_l2sp" in text


def test_a_probe_on_other_images_stands_beside_nothing(run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["target.test"] = "0" * 64
    (run / "environment.json").write_text(json.dumps(environment))
    assert "the linear probe it started from" not in page.of(gather(run)).html


def test_a_baseline_is_told_with_its_spread(run: Path) -> None:
    arms = {"transfer": [0.8, 0.9], "scratch": [0.5, 0.7]}
    told = {
        arm: {"mean": np.mean(v), "sd": float(np.std(v, ddof=1)), "min": v[0], "max": v[1]} for arm, v in arms.items()
    }
    rows = [{"seed": i, "transfer": arms["transfer"][i], "scratch": arms["scratch"][i]} for i in range(2)]
    summary = json.loads((run / "summary.json").read_text())
    summary["baseline"] = {"scored_on": "test", "train_samples": 24, "runs": rows, **told}
    (run / "summary.json").write_text(json.dumps(summary))
    text = page.of(gather(run)).html
    assert "transfer is 25.0 points better on average" in text and "sd 7.1 over 2 seeds" in text


def test_reliability_before_and_after_scaling_is_drawn_where_the_run_has_it(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    bins = [{"low": 0.8, "high": 0.9, "n": 18, "confidence": 0.85, "accuracy": 0.6}]
    summary["test"] |= {"ece": 0.25, "calibrated_ece": 0.125, "temperature": 1.5}
    summary["test"]["reliability"] = {"raw": bins, "calibrated": bins}
    (run / "summary.json").write_text(json.dumps(summary))
    text = page.of(gather(run)).html
    assert "as trained: ECE 25.0 %" in text and "at the temperature: ECE 12.5 %" in text
    assert "from 25.0 to 12.5 %" in text


# -- states and what is gone --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ("running", "stopped without being able to say so"),
        ("failed", "the loss is &lt;no&gt; number"),
        ("interrupted", 'class="state interrupted"'),
    ],
)
def test_a_run_that_did_not_finish_says_so(run: Path, status: str, words: str) -> None:
    summary = json.loads((run / "summary.json").read_text())
    kept = {key: summary[key] for key in ("verb", "name", "run")}
    error = {"error": "the loss is <no> number"} if status == "failed" else {}
    (run / "summary.json").write_text(json.dumps(kept | {"status": status} | error))
    shutil.rmtree(run / "checkpoints")
    (run / "predictions.csv").unlink()
    made = page.of(gather(run))
    assert words in made.html and "<b>so far, epoch 2</b>" in made.html
    before = "failed before it had a checkpoint" if status == "failed" else "has no checkpoint"
    assert "curves" in sections(made.html) and before in made.missing["model"]


def test_without_its_images_a_run_still_has_its_numbers(run: Path, tmp_path: Path) -> None:
    spec = (run / "spec.yaml").read_text()
    folder = re.search(r"path: (.*)/train$", spec, re.MULTILINE)
    assert folder
    (run / "spec.yaml").write_text(spec.replace(folder[1], str(tmp_path / "gone")))
    made = page.of(gather(run))
    assert set(made.missing) == {"images", "audit"}
    assert {"classes", "mistakes", "plan", "data"} <= set(sections(made.html))
    assert "Pictures cannot be shown" in made.html and "data:image/jpeg" not in made.html


def test_other_images_in_their_place_are_not_shown_as_the_runs_own(
    work: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    for name in ("train", "val", "test", "old"):
        shutil.copytree(work["folder"] / name, tmp_path / "moved" / name)
    spec = (run / "spec.yaml").read_text().replace(str(work["folder"]), str(tmp_path / "moved"))
    (run / "spec.yaml").write_text(spec)
    assert page.of(gather(run)).missing == {}  # moved as a whole, they are the same
    (tmp_path / "moved" / "val" / "ants" / "0.png").rename(tmp_path / "moved" / "val" / "bees" / "00.png")
    made = page.of(gather(run))
    assert "not those that the run had" in made.missing["images"] and "data:image/jpeg" not in made.html
    assert "not those that the run had" in made.missing["audit"] and "Audit of the data" not in made.html


@pytest.fixture
def moved(work: dict[str, Path], run: Path, tmp_path: Path) -> Path:
    """Copies of the data, which the run's spec names, to be changed."""
    for name in ("train", "val", "test", "old"):
        shutil.copytree(work["folder"] / name, tmp_path / "moved" / name)
    spec = (run / "spec.yaml").read_text().replace(str(work["folder"]), str(tmp_path / "moved"))
    (run / "spec.yaml").write_text(spec)
    return tmp_path / "moved"


def test_images_with_other_contents_are_not_shown_as_the_runs_own(moved: Path, run: Path) -> None:
    image = moved / "val" / "ants" / "0.png"
    status = image.stat()
    os.utime(image, (0, 0))  # the same bytes, or others as many: that cannot be told
    made = page.of(gather(run))
    assert "were written after the run read them" in made.missing["contents"] and set(made.missing) == {"contents"}
    assert made.missing["contents"] in made.html and "data:image/jpeg" in made.html
    Image.new("RGB", (30, 30)).save(image)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    made = page.of(gather(run))
    assert set(made.missing) == {"images", "audit"} and "data:image/jpeg" not in made.html
    assert all("their contents changed" in reason for reason in made.missing.values())


def test_data_that_has_grown_is_refused_before_it_is_decoded(
    moved: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(moved / "train" / "ants" / "0.png", moved / "train" / "ants" / "more.png")
    monkeypatch.setattr(dataaudit.audit, "look", None)
    assert page.of(gather(run)).missing == {"audit": "the images of target.train are not those that the run had"}


def test_unreadable_images_are_not_looked_for_again_among_many(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"skipped": 1}))
    assert "images" not in page.of(gather(run)).missing
    monkeypatch.setattr(material, "MOST_READ_AGAIN", 17)
    assert "18 of target.val are too many" in page.of(gather(run)).missing["images"]


def pictures(text: str) -> set[tuple[str, str]]:
    return set(re.findall(r'<img src="([^"]*)" alt="([^"]*: labelled [^"]*)"', text))


def test_a_picture_is_of_the_image_that_its_row_names(run: Path) -> None:
    expected = pictures(page.of(gather(run)).html)
    header, *rows = (run / "predictions.csv").read_text().splitlines(keepends=True)
    (run / "predictions.csv").write_text("".join([header, *reversed(rows)]))
    made = page.of(gather(run))
    assert expected and (pictures(made.html), made.missing) == (expected, {})
    (run / "predictions.csv").write_text("".join([header, *rows]).replace("bees/0.png", "bees/zero.png"))
    made = page.of(gather(run))
    assert made.missing == {"pictures": "not in val: 1 image that predictions.csv names"}
    assert "zero.png: labelled" not in made.html and made.missing["pictures"] in made.html


def test_predictions_that_cannot_be_read_are_said_and_some_images_stand_for_all(
    run: Path, work: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(material, "MOST_IMAGES", 5)
    with (run / "predictions.csv").open("a") as file:
        file.write("val,cut")
    made = page.of(gather(run))
    words = "predictions.csv cannot be read: line 38: it has 2 cells, not 5; what is shown instead was predicted anew"
    assert made.missing == {"predictions": words}
    assert "of 5 of the 18 validation images (evenly spread) are wrong" in made.html
    assert made.missing["predictions"] in made.html
    text = page.of(gather(work["pretrain"])).html  # which keeps no predictions
    assert "of 5 of the 6 source validation images (evenly spread) are wrong" in text


def test_calibration_says_of_which_images_it_is(
    work: dict[str, Path], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "can be believed, on 6 source validation images:" in page.of(gather(work["pretrain"])).html
    monkeypatch.setattr(material, "MOST_IMAGES", 5)
    summary = json.loads((run / "summary.json").read_text())
    for score in (summary["test"], summary["best"]["val"]):
        score.pop("reliability", None)
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "predictions.csv").unlink()
    assert "can be believed, on 5 of the 18 validation images (evenly spread):" in page.of(gather(run)).html


def test_the_cache_is_read_and_never_filled(
    work: dict[str, Path], cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert page.of(gather(work["extract"])).missing == {} and not cache_folder.exists()
    monkeypatch.setenv("TRANSFERCTL_CACHE", str(cache_folder.parent / "shared"))  # where the run has its features
    monkeypatch.setattr(FrozenStages, "of", None)
    assert page.of(gather(work["extract"])).missing == {}


LIES: dict[str, Any] = {
    "a list": [],
    "nothing": None,
    "numbers that are none": {"verb": "finetune", "status": "finished", "best": {"epoch": 1e400, "val": {"accuracy": float("nan")}}},
    "text for numbers": {"verb": 7, "name": [], "status": {}, "best": "x", "test": {"accuracy": "1", "n": -1}},
    "shares beyond 1": {"verb": "eval", "split": "test", "accuracy": 17.0, "per_class": [1], "confusion": [[1]]},
    "a confusion of another size": {
        "verb": "eval", "accuracy": 0.5, "n": 2, "confusion": [[1], [2, 3]],
        "per_class": [{"class": "a", "support": 1, "precision": 1, "recall": 1, "f1": 1}],
    },
    "bins that are none": {"verb": "eval", "accuracy": 0.5, "reliability": {"raw": [{"low": 0}], "calibrated": 3}},
    "a digit of a thousand": {"verb": "eval", "accuracy": 10**400, "elapsed_s": 10**400},
    "odd comparisons": {"verb": "finetune", "baseline": {"transfer": {"mean": 2}}, "source": {"after": {"accuracy": 1, "n": "x"}},
                        "interpolation": [{"alpha": "x"}, 7], "head_first": [1], "best": {"epoch": [], "val": {"accuracy": 1}}},
    "half an interval": {"verb": "finetune", "best": {"epoch": 1, "val": {"accuracy": 0.5, "accuracy_low": 0.4}},
                         "baseline": {"transfer": {"mean": 0.5, "min": 0.4}, "scratch": {"mean": 0.5}}},
    "half a change": {"verb": "finetune", "status": "finished", "best": {"epoch": 1, "val": {"accuracy": 0.5}},
                      "source": {"after": {"accuracy": 0.5}, "accuracy_change": -0.1, "accuracy_change_low": -0.2}},
    "another run's folder": {"verb": "eval", "evaluated": "/proc/self", "checkpoint": "../..", "accuracy": 0.5, "data": "/dev/zero"},
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_summary_that_lies_is_a_page_without_the_lie(tmp_path: Path, lie: str) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(LIES[lie]))
    (tmp_path / "metrics.jsonl").write_text(
        '{"split": "val", "epoch": [1], "accuracy": 1}\n{"split": "val", "epoch": 1, "accuracy": 1e308, "accuracy_low": "x"}\n'
        '{"split": [], "epoch": 2}\n{"split": "train", "epoch": 1, "loss": NaN, "penalty_x": {}}\n[]\nnot json\n{"spl'
    )
    (tmp_path / "environment.json").write_text('{"data": [], "files": {"target.train": {"samples": {"a": "x"}}}}')
    (tmp_path / "spec.yaml").write_text("a: [1\n")
    (tmp_path / "predictions.csv").write_text("split,path,label,predicted,probability\nval,a,b,c,nan\n")
    both = comparison.of([gather(tmp_path)] * 2)
    for text in (page.of(gather(tmp_path)).html, both.html):
        own = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL).lower()
        assert "nan" not in own
    assert "2 runs" in both.html and "cannot be read: line 2" in both.missing["B less A"]
    if "half" in lie:
        assert "50.0" in both.html and "50.0" in text


@pytest.mark.parametrize(
    "names", [("summary.json", "metrics.jsonl", "environment.json"), ("spec.yaml", "predictions.csv")]
)
def test_a_pipe_in_a_files_place_does_not_make_it_wait(run: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (run / name).unlink()
        os.mkfifo(run / name)
    assert "<h1>" in page.of(gather(run)).html


HOSTILE = [
    "<script>alert(1)<_script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{$ a_b^",
    "é中{{7*7}}{% x %}",
]


def test_what_others_named_is_text_and_nothing_else(tmp_path: Path, call: Any) -> None:
    for name in ("train", "val"):
        make_images(tmp_path / name, **dict.fromkeys(HOSTILE, 4))
    (tmp_path / "tiny.yaml").write_text(
        "backbone: {name: resnet18, weights: none}\npreprocess: {crop: 32}\ntarget: {train: train, val: val}\nworkers: 0\n"
    )
    path = Path(call("extract", tmp_path / "tiny.yaml", "--set", "epochs=1", "--runs-dir", tmp_path / "runs")["run"])
    summary = json.loads((path / "summary.json").read_text())
    summary |= {"error": HOSTILE[1] + "\x1b[31m", "name": HOSTILE[0]}
    summary["best"]["val"] |= {HOSTILE[0]: 1.0}
    (path / "summary.json").write_text(json.dumps(summary))
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"split": "train", "epoch": 1, f"penalty_{HOSTILE[0]}": 1.0}) + "\n")
    for text in (page.of(gather(path)).html, comparison.of([gather(path)] * 2).html):
        tags = Tags(text)
        assert "script" not in tags.tags and not [name for name, _ in tags.attributes if name.startswith("on")]
        assert all(value.startswith("data:image/jpeg") for name, value in tags.attributes if name == "src")
        assert "\x1b" not in text and "&lt;script&gt;" in text
    assert "{{7*7}}" in page.of(gather(path)).html


# -- several ------------------------------------------------------------------------------------------


def test_runs_side_by_side_begin_with_what_differs_between_their_specs(work: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "both.html"
    done = CliRunner().invoke(app, ["report", str(work["extract"]), str(work["finetune"]), "--out", str(out)])
    assert (done.exit_code, done.stdout) == (0, f"{out}\n")
    text = out.read_text()
    assert sections(text)[:2] == ["differences", "scores"]
    row = re.search(r'<th scope="row">from</th><td data-label="A">(.*?)</td><td data-label="B">(.*?)</td>', text)
    assert row and row[1] == "-" and row[2].endswith(work["extract"].name)
    assert "not the same images" not in text


def test_scores_on_other_images_are_said_not_to_compare(work: dict[str, Path], run: Path) -> None:
    environment = json.loads((run / "environment.json").read_text())
    environment["data"]["target.test"] = "0" * 64
    (run / "environment.json").write_text(json.dumps(environment))
    assert beside.not_the_same([gather(run), gather(work["finetune"])]) == ["target.test"]


# -- the command --------------------------------------------------------------------------------------


def test_the_path_is_the_last_line_and_json_has_it(run: Path, invoke: Any) -> None:
    code, answer = invoke("report", run)
    assert (code, answer["report"], answer["missing"]) == (0, str(run / "report.html"), {})
    assert answer["bytes"] == (run / "report.html").stat().st_size


def test_a_file_that_is_no_report_is_never_replaced_and_a_report_is(run: Path, invoke: Any, tmp_path: Path) -> None:
    (run / "report.html").write_text("my notes")
    code, answer = invoke("report", run)
    assert code == 2 and "is no report of transferctl" in answer["error"]
    assert (run / "report.html").read_text() == "my notes"
    (run / "report.html").unlink()
    (tmp_path / "elsewhere").write_text(f'<meta name="generator" content="{html.GENERATOR} 0">')
    (run / "report.html").symlink_to(tmp_path / "elsewhere")
    assert invoke("report", run)[0] == 2  # a link that someone planted
    (run / "report.html").unlink()
    (run / "report.html").write_text(f'<meta name="generator" content="{html.GENERATOR} 0">')
    assert invoke("report", run)[0] == 0 and "<h1>" in (run / "report.html").read_text()


def test_what_is_no_run_or_cannot_be_written_is_one_error(run: Path, invoke: Any, tmp_path: Path) -> None:
    assert invoke("report", tmp_path / "nowhere")[0] == 4
    (tmp_path / "empty").mkdir()
    code, answer = invoke("report", tmp_path / "empty")
    assert code == 4 and "is no run folder" in answer["error"]
    assert "`transferctl runs` shows them" in answer["error"]
    code, answer = invoke("report", run, "--out", tmp_path / "no" / "such" / "folder.html")
    assert code == 5 and "cannot write" in answer["error"] and "with --out" in answer["error"]


# -- at the end of a run ------------------------------------------------------------------------------


@pytest.fixture
def tiny(spec: Path) -> Iterator[tuple[Any, ...]]:
    yield "extract", spec, "--set", "epochs=1", "--runs-dir", spec.parent / "runs"


@pytest.mark.usefixtures("with_reports")
def test_a_run_ends_with_its_report_unless_it_is_not_wanted(tiny: Any, invoke: Any, monkeypatch: Any) -> None:
    code, answer = invoke(*tiny)
    assert code == 0 and "<h1>tiny</h1>" in (Path(answer["run"]) / "report.html").read_text()
    code, answer = invoke(*tiny, "--set", "report=false")
    assert code == 0 and not (Path(answer["run"]) / "report.html").exists()
    monkeypatch.setenv(report.VARIABLE, "none")
    code, answer = invoke(*tiny)
    assert code == 0 and not (Path(answer["run"]) / "report.html").exists()


@pytest.mark.usefixtures("with_reports")
@pytest.mark.parametrize("error", [RuntimeError("a bug"), MemoryError(), OSError(28, "No space left on device")])
def test_a_report_that_fails_leaves_a_finished_run(
    tiny: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(run: Any) -> Any:
        raise error

    monkeypatch.setattr(page, "of", failing)
    done = CliRunner().invoke(app, list(map(str, tiny)))
    assert done.exit_code == 0
    path = Path(done.stdout.splitlines()[-1])
    assert json.loads((path / "summary.json").read_text())["status"] == "finished"
    assert f"make it by `transferctl report {path}`" in " ".join(done.stderr.split())


@pytest.mark.usefixtures("with_reports")
@pytest.mark.parametrize(("signal", "code"), [(KeyboardInterrupt, 130), (Terminated, 143)])
def test_a_signal_in_the_report_passes_and_leaves_a_finished_run(
    tiny: Any, invoke: Any, monkeypatch: pytest.MonkeyPatch, signal: type[BaseException], code: int
) -> None:
    def interrupted(run: Any) -> Any:
        raise signal

    assert signal in signals.ENDING
    monkeypatch.setattr(page, "of", interrupted)
    assert invoke(*tiny)[0] == code
    (path,) = (tiny[-1]).iterdir()
    assert json.loads((path / "summary.json").read_text())["status"] == "finished"
    assert not list(path.glob(".*.tmp"))


@pytest.mark.usefixtures("with_reports")
def test_the_report_says_of_a_foreign_file_that_it_stays(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = gather(run).spec
    assert spec
    (run / "report.html").write_text("my notes")
    report.at_end(run, spec, Display())
    assert "is no report of transferctl" in " ".join(capsys.readouterr().err.split())
    assert (run / "report.html").read_text() == "my notes"


@pytest.mark.usefixtures("with_reports")
def test_runs_inside_a_baseline_have_no_report_of_their_own(
    tiny: Any, invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "of", lambda run: page.Page("<h1>", {}))
    code, answer = invoke(*tiny, "--set", "baseline={epochs: 1, repeats: 2}")
    assert code == 0 and len(list(tiny[-1].glob("*/summary.json"))) > 1
    assert list(tiny[-1].glob("*/report.html")) == [Path(answer["run"]) / "report.html"]


def test_the_templates_are_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for pattern in settings["transferctl.reporting"]
        for path in (ROOT / "transferctl" / "reporting").glob(pattern)
    }
    assert packaged == set(html.TEMPLATES.iterdir()) and len(packaged) == 5
