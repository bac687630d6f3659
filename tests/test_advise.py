"""`transferctl advise`: a spec with its evidence, in time, without a look at test data."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transferctl import advisedspec, jsontext, signals, trials, trialsearch, yamlfile
from transferctl.errors import DivergedError, OutOfTime, SpecError, Terminated
from transferctl.paired import Round
from transferctl.spec import Spec

Invoke = Callable[..., tuple[int, dict[str, Any]]]
CONFIGS = Path(__file__).parent.parent / "configs"
DIGITS = """
name: five
backbone: {name: shufflenet_v2_x0_5, weights: none}
preprocess: {resize: 32, crop: 32}
target:
  train: {dataset: digits, classes: [5, 6], per_class: 16}
  val: 0.25
  test: {dataset: digits, classes: [5, 6], per_class: 8}
workers: 0
epochs: 1
baseline: {epochs: 1}
trackers: [tensorboard]
"""


@pytest.fixture(scope="module", autouse=True)
def _few_rounds() -> Iterator[None]:
    """Budgets are ample, so that what happens does not depend on the machine; two seeds confirm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trialsearch, "MOST_ROUNDS", 2)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("advise")
    (found / "five.yaml").write_text(DIGITS)
    return found


@pytest.fixture(scope="module")
def advice(call: Any, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = call(
        "advise",
        folder / "five.yaml",
        "--budget",
        "1h",
        "--out",
        folder / "advised.yaml",
        "--runs-dir",
        folder / "runs",
    )
    return found


# -- what is found ----------------------------------------------------------------------------------------


def test_data_probe_learning_curve_and_trials_are_all_told(advice: dict[str, Any]) -> None:
    assert advice["data"]["counts"] == {"5": 12, "6": 12} and advice["data"]["val"] == 8
    assert advice["data"]["median_side"] == 8 and advice["data"]["enlarged"] == 1.0, "digits are 8 pixels wide"
    assert advice["probe"]["n"] == 24 and advice["probe"]["accuracy_low"] < advice["probe"]["accuracy"]
    curve = advice["learning_curve"]
    assert [(one["labels"], len(one["accuracies"])) for one in curve["probe"]] == [(4, 5), (6, 5), (12, 5), (24, 1)]
    assert [one["labels"] for one in curve["scratch"]] == [4, 6, 12, 24] and curve["left_out"] == []
    assert [row["labels"] for row in curve["compared"]] == [4, 6, 12, 24]
    tried = [trial["name"] for trial in advice["trials"]]
    assert tried[:2] == ["given", "features"] and tried[2] == "thaw-conv5"
    assert all(0 <= trial["accuracy"] <= 1 and trial["n"] == 8 for trial in advice["trials"])


def test_its_verdict_says_what_it_can_and_that_test_was_not_seen(advice: dict[str, Any]) -> None:
    assert "Test data was not looked at" in advice["verdict"]
    against = advice["confirmation"]["against_given"]
    claims = advice["advised"]["beats_given"]
    assert claims == bool(against and advice["confirmation"]["rounds"] > 1 and against["accuracy_difference_low"] > 0)
    assert ("beats your spec:" in advice["verdict"]) == claims or "cannot be shown" in advice["verdict"]


def test_no_trial_and_no_part_of_the_run_saw_test_data(advice: dict[str, Any]) -> None:
    run = Path(advice["run"])
    runs = [run, *(run / "trials").iterdir()]
    assert len(runs) > 3
    for one in runs:
        assert not any("test" in name for name in jsontext.read(one / "environment.json")["data"])
        assert "test" not in jsontext.read(one / "summary.json")
        if (one / "predictions.csv").exists():
            assert "\ntest," not in (one / "predictions.csv").read_text()


def test_trials_are_ordinary_runs_without_weights_baselines_and_trackers(
    advice: dict[str, Any], invoke: Invoke
) -> None:
    trials = Path(advice["run"]) / "trials"
    code, listed = invoke("runs", trials)
    assert code == 0 and {one["verb"] for one in listed["runs"]} == {"extract", "finetune"}
    for one in trials.iterdir():
        assert not (one / "checkpoints").exists() and not (one / "tensorboard").exists()
        assert "baseline" not in jsontext.read(one / "summary.json")
    code, answer = invoke("eval", next(trials.iterdir()))
    assert code == 4 and "trial of advise, which keeps no weights" in answer["error"]


def test_what_confirms_is_not_what_chose(advice: dict[str, Any]) -> None:
    """Of each seed but the first, the images that the first held out chose, and do not count."""
    trials, confirmation = Path(advice["run"]) / "trials", advice["confirmation"]
    assert confirmation["rounds"] == 2
    chose = _val_names(next(trials.glob("*-finetune-given")))
    confirmed: set[str] = set()
    for seed in range(1, 1 + confirmation["rounds"]):
        confirmed |= _val_names(next(trials.glob(f"*-finetune-given-seed{seed}"))) - chose
    assert confirmation["n"] == len(confirmed)


def _val_names(run: Path) -> set[str]:
    rows = (line.split(",") for line in (run / "predictions.csv").read_text().splitlines()[1:])
    return {row[1] for row in rows if row[0] == "val"}


def test_an_advice_is_no_model_and_each_verb_says_so(advice: dict[str, Any], invoke: Invoke) -> None:
    trial = next((Path(advice["run"]) / "trials").iterdir())
    for words in (
        ["eval"],
        ["export"],
        ["report"],
        ["compare", trial],
        ["finetune", CONFIGS / "quickstart.yaml", "--from"],
    ):
        code, answer = invoke(*words, advice["run"])
        assert code == 4 and "is a run of advise" in answer["error"] and "advised.yaml" in answer["error"]
    code, answer = invoke("runs", Path(advice["run"]).parent, "--verb", "advise")
    assert code == 0 and [one["run"] for one in answer["runs"]] == [advice["run"]]


# -- the spec that is proposed ------------------------------------------------------------------------------


def test_the_advised_spec_is_complete_commented_and_opens_with_its_command(
    advice: dict[str, Any], folder: Path, invoke: Invoke
) -> None:
    given = yamlfile.load(folder / "five.yaml").spec
    expected = advisedspec.applied(given, advice["advised"]["changes"])
    assert advice["files"] == [f"{advice['run']}/advised.yaml", str(folder / "advised.yaml")]
    for file in advice["files"]:
        assert yamlfile.load(file).spec == expected, "all else is as it was given, test data too"
        lines = Path(file).read_text().splitlines()
        assert lines[0] == f"# transferctl {advice['advised']['verb']} {file}"
        assert max(map(len, lines[1:])) <= 120  # a command is one line, however long its path
        assert invoke("check", file, "--set", "trackers=[]")[0] == 0  # whose libraries are extras
    text = " ".join((folder / "advised.yaml").read_text().replace("\n#", "").split())
    for choice in advice["choices"]:
        assert choice["value"] in text and choice["evidence"] in text and choice["otherwise"] in text


def test_a_file_that_is_there_is_kept_unless_forced(folder: Path, advice: dict[str, Any], invoke: Invoke) -> None:
    before = (folder / "advised.yaml").read_text()
    code, answer = invoke("advise", folder / "five.yaml", "--out", folder / "advised.yaml")
    assert code == 2 and "is there already" in answer["error"] and "--force" in answer["error"]
    assert (folder / "advised.yaml").read_text() == before


@pytest.mark.parametrize("config", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_any_spec_is_written_as_it_is_wherever_it_goes(config: Path, tmp_path: Path) -> None:
    spec = yamlfile.load(config).spec
    changes = {"head.solver": "lbfgs", "head_first": {}, "frozen": "layer3", "optimizer.lr": 0.003}
    advised = advisedspec.applied(spec, changes)
    assert (advised.frozen, advised.optimizer.lr, advised.head.solver) == ("layer3", 0.003, "lbfgs")
    (tmp_path / "x.yaml").write_text(
        advisedspec.text(advised, "finetune", [], [], "As given:", Path("x.yaml"), tmp_path)
    )
    assert yamlfile.load(tmp_path / "x.yaml").spec == advised


def test_paths_below_the_file_are_relative_and_others_absolute(image_folder: Any, tmp_path: Path) -> None:
    inner = image_folder("inner/my data: #1", ants=2, bees=2)
    spec = Spec.model_validate({"backbone": "resnet18", "target": {"train": str(inner)}})
    texts = {
        where: advisedspec.text(spec, "extract", [], [], "As given:", Path("x.yaml"), tmp_path / where)
        for where in ("inner", "elsewhere")
    }
    assert "path: 'my data: #1'" in texts["inner"] and str(inner) in texts["elsewhere"]
    for where, text in texts.items():
        (tmp_path / where).mkdir(exist_ok=True)
        (tmp_path / where / "x.yaml").write_text(text)
        assert yamlfile.load(tmp_path / where / "x.yaml").spec.target == spec.target


def test_a_change_that_does_not_go_with_the_spec_is_refused() -> None:
    spec = Spec.model_validate({"backbone": "resnet18", "target": {"train": "x"}, "head": {"dropout": 0.5}})
    with pytest.raises(SpecError, match="lbfgs"):
        advisedspec.applied(spec, {"head.solver": "lbfgs"})


def test_the_difference_names_what_changes_alone() -> None:
    spec = Spec.model_validate({"backbone": "resnet18", "target": {"train": "x"}})
    rows = advisedspec.differences(spec, {"optimizer.lr": 0.01, "frozen": "layer3", "head_first": {}})
    assert rows == [["frozen", "none", "layer3"], ["head_first", "no", "yes"]]


# -- time, and what is odd ----------------------------------------------------------------------------------


def test_too_little_for_a_trial_leaves_the_spec_as_it_is(folder: Path, invoke: Invoke, monkeypatch: Any) -> None:
    monkeypatch.setattr("transferctl.trialsearch.Asked.seconds", lambda self, candidate: 1e6)
    code, answer = invoke("advise", folder / "five.yaml", "--budget", "1h", "--runs-dir", folder / "few")
    assert code == 0 and answer["trials"] == [] and answer["advised"]["verb"] == "finetune" and not answer["changed"]
    assert "nothing speaks for another spec than yours: keep it" in answer["verdict"]
    assert answer["left_out"][0]["strategy"] == "your spec" and "not tried" in answer["left_out"][0]["reason"]


def test_one_that_is_stopped_before_its_advice_names_no_file_and_keeps_the_probe(
    folder: Path, invoke: Invoke, monkeypatch: Any
) -> None:
    def stop(*_: Any) -> Any:
        raise Terminated

    monkeypatch.setattr("transferctl.learningcurve.with_scratch", stop)
    code, answer = invoke("advise", folder / "five.yaml", "--budget", "1h", "--runs-dir", folder / "stopped")
    assert code == 143 and answer["probe"]["n"] > 0
    code, answer = invoke("eval", answer["run"])
    assert code == 4 and "has not come to its advice" in answer["error"] and "advised.yaml" not in answer["error"]


def test_all_unreadable_images_are_named_at_once(image_folder: Any, spec: Path, invoke: Invoke) -> None:
    broken = [next((spec.parent / split / "ants").iterdir()) for split in ("train", "val")]
    for path in broken:
        path.write_bytes(b"no image")
    code, answer = invoke("advise", spec, "--budget", "1h", "--runs-dir", spec.parent / "runs")
    assert code == 3 and all(str(path) in answer["error"] for path in broken)


def test_a_trial_that_takes_far_longer_than_expected_is_stopped_at_the_budget(
    folder: Path, invoke: Invoke, monkeypatch: Any
) -> None:
    monkeypatch.setattr("transferctl.trialsearch.Asked.seconds", lambda self, candidate: 0.1)
    monkeypatch.setattr("transferctl.advise.CURVE_SHARE", 1e-6)
    monkeypatch.setattr("transferctl.learningcurve.with_scratch", lambda curves, *rest: curves)
    started = time.monotonic()
    code, answer = invoke(
        "advise", folder / "five.yaml", "--budget", "12s", "--runs-dir", folder / "late", "--set", "epochs=100000"
    )  # fmt: skip
    assert code == 0 and time.monotonic() - started < 40
    assert answer["left_out"][0]["strategy"] == "your spec" and answer["left_out"][0]["reason"].startswith("stopped: ")
    assert answer["trials"] == [] and not list(Path(answer["run"]).glob("trials/*/checkpoints"))
    (trial,) = Path(answer["run"]).glob("trials/*")
    assert jsontext.read(trial / "summary.json")["error"] == "stopped, as its time was up"


@pytest.fixture
def made_up(monkeypatch: Any) -> Callable[[dict[tuple[int, str], BaseException]], None]:
    """Trials without training: all get half of their images right, or raise what stands by seed and name."""

    def made(raised: dict[tuple[int, str], BaseException]) -> None:
        def run(spec: Spec, candidate: Any, seed: int, *rest: Any) -> trials.Outcome:
            if (seed, candidate.name) in raised:
                raise raised[seed, candidate.name]
            names = tuple(f"{seed}/{i}" for i in range(8))
            return trials.Outcome(Path(), Round(names, np.arange(8) < 4), {"loss": 1.0}, None, 0.01)

        monkeypatch.setattr(trials, "run", run)
        monkeypatch.setattr(trials, "choosing", lambda *asked: frozenset(f"0/{i}" for i in range(8)))
        monkeypatch.setattr("transferctl.learningcurve.with_scratch", lambda curves, *rest: curves)

    return made


def test_a_seed_that_time_ends_in_does_not_count(folder: Path, invoke: Invoke, made_up: Any) -> None:
    made_up({(2, "features"): OutOfTime()})
    code, answer = invoke("advise", folder / "five.yaml", "--budget", "1h", "--runs-dir", folder / "cut")
    assert code == 0 and answer["confirmation"]["rounds"] == 1
    assert set(answer["confirmation"]["by_seed"]) >= {"given", "features"}
    assert all(seeds == [0.5] for seeds in answer["confirmation"]["by_seed"].values())


@pytest.mark.parametrize("which", ["given", "features"])
@pytest.mark.parametrize("error", [DivergedError(f"the loss is{' not' * 100} a number; lower lr"), MemoryError()])
def test_what_fails_with_another_seed_does_not_stand_whatever_it_did_with_others(
    which: str, error: Exception, folder: Path, invoke: Invoke, made_up: Any
) -> None:
    made_up({(2, which): error})
    code, answer = invoke("advise", folder / "five.yaml", "--budget", "1h", "--runs-dir", folder / "fails")
    assert code == 0 and answer["advised"]["name"] != which and which not in answer["confirmation"]["by_seed"]
    (failed,) = [one["reason"] for one in answer["left_out"] if one["reason"].startswith("failed with seed 2: ")]
    assert failed.endswith(str(error) or "out of memory")  # whole, with what to do at its end
    assert (f"Your spec: {failed}. So nothing is said" in answer["verdict"]) == (which == "given")
    assert not answer["advised"]["beats_given"]


def test_an_interrupt_while_it_confirms_leaves_the_seeds_that_are_done(
    folder: Path, invoke: Invoke, made_up: Any
) -> None:
    made_up({(2, "features"): KeyboardInterrupt()})
    code, answer = invoke("advise", folder / "five.yaml", "--budget", "1h", "--runs-dir", folder / "stopped late")
    assert code == 130 and answer["confirmation"]["by_seed"]["given"] == [0.5] and answer["trials"]


def test_the_file_says_how_it_was_asked_for_settings_too(folder: Path, invoke: Invoke, monkeypatch: Any) -> None:
    monkeypatch.setattr("transferctl.trialsearch.Asked.seconds", lambda self, candidate: 1e6)
    out = folder / "asked.yaml"
    code, answer = invoke(
        "advise", folder / "five.yaml", "--budget", " 1 h", "--out", out, "--runs-dir", folder / "asked",
        "--set", "optimizer={name: adam, lr: 0.002}",
    )  # fmt: skip
    assert code == 0, answer
    said = f"transferctl advise {folder}/five.yaml --budget '1 h' --set 'optimizer={{name: adam, lr: 0.002}}'"
    assert said in " ".join(out.read_text().replace("\n#", "").split())


def test_a_probe_that_takes_longer_than_the_budget_is_stopped_and_what_then_is_unknown_is_no_advice(
    folder: Path, invoke: Invoke, monkeypatch: Any
) -> None:
    def endless(*asked: Any) -> Any:
        while True:
            time.sleep(0.01)

    ending_after = signals.ending_after
    monkeypatch.setattr("transferctl.learningcurve.probe_curve", endless)
    monkeypatch.setattr("transferctl.signals.ending_after", lambda seconds: ending_after(min(seconds, 1)))
    monkeypatch.setattr("transferctl.trialsearch.Asked.seconds", lambda self, candidate: 1e6)
    code, answer = invoke("advise", folder / "five.yaml", "--budget", "1h", "--runs-dir", folder / "endless")
    assert code == 2 and "is too little: there was no time for a linear probe" in answer["error"]
    (run,) = (folder / "endless").iterdir()
    assert "the probe: stopped" in jsontext.read(run / "summary.json")["learning_curve"]["left_out"][0]


def test_a_budget_below_the_features_is_refused_with_what_would_do(folder: Path, invoke: Invoke) -> None:
    code, answer = invoke("advise", folder / "five.yaml", "--budget", "0.001s", "--runs-dir", folder / "less")
    assert code == 2 and "--budget 0.001s: is too little" in answer["error"] and "would do" in answer["error"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--budget", "soon"], "--budget soon: write a number and s, m or h"),
        (["--budget", "0m"], "--budget 0m: must be more than 0"),
        (["--out", "no/where.yaml"], "there is no folder no"),
        (["--out", "."], "is a folder; name a file"),
        (["--out", ""], "is a folder; name a file"),
        (["--force"], "--force: is about the FILE of --out"),
        (["--set", "from=runs/x"], "from: starts from a run"),
        (["--set", "frozen=layer9"], "has no stage 'layer9'"),
    ],
)
def test_mistakes_exit_2_before_anything_is_computed(
    arguments: list[str], said: str, folder: Path, invoke: Invoke, tmp_path: Path
) -> None:
    code, answer = invoke("advise", folder / "five.yaml", "--runs-dir", tmp_path / "runs", *arguments)
    assert code == 2 and said in answer["error"]
    assert not (tmp_path / "runs").exists()


def test_a_given_spec_that_diverges_is_left_out_and_the_others_go_on(folder: Path, invoke: Invoke) -> None:
    code, answer = invoke(
        "advise", folder / "five.yaml", "--budget", "1h", "--runs-dir", folder / "diverging",
        "--set", "optimizer.lr=1e6", "--set", "optimizer.momentum=0.99", "--set", "epochs=8",
    )  # fmt: skip
    assert code == 0
    failed = [one for one in answer["left_out"] if one["strategy"] == "your spec"]
    assert failed and failed[0]["reason"].startswith("failed: ")
    assert "Your spec: failed: " in answer["verdict"] and answer["trials"][0]["name"] == "features"


def test_named_validation_data_is_halved_into_what_chooses_and_what_confirms(image_folder: Any) -> None:
    from transferctl import data
    from transferctl.spec import TargetSettings

    settings = TargetSettings.model_validate(
        {"train": str(image_folder("t", a=4, b=4)), "val": str(image_folder("v", a=6, b=5))}
    )
    val = data.load_domain(settings.train, settings.val, None, 0, domain="target").val
    chosen = trials.choosing(val, is_held_out=False, seed=0)
    assert len(chosen) == 6 and sum("/a/" in name for name in chosen) == 3
    assert trials.choosing(val, is_held_out=True, seed=0) == frozenset(val.names())
    outcomes = Round(tuple(val.names()), np.arange(11) % 2 == 0)
    halves = [trials.those(outcomes, chosen, within=within) for within in (True, False)]
    assert sorted(halves[0].names + halves[1].names) == sorted(outcomes.names) and len(halves[1].right) == 5


def test_the_source_counts_where_there_is_one(spec: Path, image_folder: Any, invoke: Invoke) -> None:
    """Its change stands beside each trial: extract changes nothing; λ is tried, as L_S is in the objective."""
    image_folder("source", cats=8, dogs=8)
    settings = ["source={train: source, val: 0.5}", "epochs=1", "pretrain={epochs: 1}", "baseline={epochs: 1}"]
    settings += ["backbone={name: shufflenet_v2_x0_5, weights: source}"]
    words = [word for text in settings for word in ("--set", text)]
    code, answer = invoke("advise", spec, "--budget", "1h", "--runs-dir", spec.parent / "runs", *words)
    assert code == 0, answer
    changes = {one["name"]: one["source_change"] for one in answer["trials"]}
    assert changes["features"] == 0.0 and all(change is not None for change in changes.values())
    tried = [*answer["trials"], *answer["left_out"]]
    assert any("λ" in one["strategy"] for one in tried)
    assert "lambda" in {choice["key"] for choice in answer["choices"]} or answer["advised"]["verb"] == "extract"


def test_an_interrupt_leaves_what_was_found_and_says_where(folder: Path) -> None:
    command = [sys.executable, "-m", "transferctl", "advise", str(folder / "five.yaml"), "--budget", "1h"]
    command += ["--runs-dir", str(folder / "stopped"), "--json", "--set", "epochs=500"]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in a shell's background ignores it
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while not list((folder / "stopped").glob("*/trials/*-finetune-given")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)
    answer = json.loads(stdout)
    assert (process.returncode, answer["status"]) == (130, "interrupted") and "Traceback" not in stderr
    assert answer["learning_curve"]["probe"] and answer["trials"] == []
    assert re.search(r"stopped: what was found so far \(data, probe, learning_curve.*summary\.json", stderr)
    assert jsontext.read(Path(answer["run"]) / "summary.json")["data"] == answer["data"]


@pytest.mark.real
def test_on_ants_and_bees_it_leaves_the_raw_fine_tuning_behind(real_data: Path, invoke: Invoke, tmp_path: Path) -> None:
    """A new head and a low rate for one epoch learn nothing; frozen features have about 80 %."""
    (tmp_path / "ab.yaml").write_text(f"""
backbone: {{name: resnet18, weights: {real_data}/resnet18-tinyimagenet.pth}}
preprocess: {{resize: 64, crop: 64}}
frozen: layer3
target: {{train: {{path: {real_data}/ants-bees/train, exclude: [imageNotFound.gif]}}, val: 0.3}}
epochs: 1
optimizer: {{lr: 0.0001}}
""")
    code, answer = invoke("advise", tmp_path / "ab.yaml", "--budget", "40s", "--runs-dir", tmp_path / "runs")
    assert code == 0 and answer["advised"]["name"] != "given"
    best = {one["name"]: one["accuracy"] for one in answer["trials"]}
    assert best["features"] > 0.7 > best["given"]
    assert 0.7 < answer["probe"]["accuracy"] < 0.9  # scikit-learn on features of 64 pixels: 79.7 %
