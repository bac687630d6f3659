"""A sweep: what it goes over, ordinary runs, an untouched test set, the same end after any stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from transferctl import checkpoint, finetune, images, members, training, yamlfile
from transferctl.errors import ResourceError, Terminated
from transferctl.sweeps import methods, schedule, show, space
from transferctl.sweeps.space import Member
from transferctl.sweeps.study import Study

Invoke = Callable[..., tuple[int, dict[str, Any]]]

SPEC = """
name: tiny
backbone: {name: shufflenet_v2_x0_5, weights: none}
preprocess: {resize: 32, crop: 32}
precision: fp32
target:
  train: {dataset: digits, classes: [5, 6, 7], per_class: 8}
  val: {dataset: digits, classes: [5, 6, 7], per_class: 30}
  test: {dataset: digits, classes: [5, 6, 7], per_class: 30}
epochs: 4
batch_size: 12
workers: 0
optimizer: {lr: 0.01}
"""
EXTRACT = ("--verb", "extract", "--set", "head.solver=lbfgs")
ALPHAS = "head.regularisation=0.01,0.1,1"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(SPEC)
    return tmp_path / "tiny.yaml"


@pytest.fixture
def sweep(spec: Path, invoke: Invoke) -> Invoke:
    return lambda *arguments: invoke("sweep", spec, *arguments)


@pytest.fixture(scope="module")
def whole(call: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a sweep over ALPHAS ends with that nothing stops."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(SPEC)
    return call("sweep", folder / "tiny.yaml", *EXTRACT, "--over", ALPHAS, "--runs-dir", folder)


def the_sweep(folder: Path | str = "runs") -> Path:
    (found,) = Path(folder).glob("*-sweep-*")
    return found


def table(answer: dict[str, Any]) -> list[Any]:
    """Less times, paths, and who computed what others found: all that a sweep says of its settings."""
    by_time = ("seconds", "fronts", "run", "leads")
    return [
        {key: value for key, value in one.items() if key not in by_time}
        | {"members": [{key: value for key, value in row.items() if key not in by_time} for row in one["members"]]}
        for one in answer["settings"]
    ]


def scores(answer: dict[str, Any]) -> list[Any]:
    picked = {key: value for key, value in answer["picked"].items() if key in ("member", "settings", "overlapping")}
    return [table(answer), picked, {key: value for key, value in answer["test"].items() if key != "run"}]


def runs_in(folder: Path) -> dict[str, int]:
    """Run folders and when their summaries were last written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/summary.json")}


# -- members ------------------------------------------------------------------------------------------


def test_members_are_the_runs_that_the_verb_makes_of_the_same_settings(
    sweep: Invoke, spec: Path, invoke: Invoke
) -> None:
    code, answer = sweep("--over", "optimizer.lr=0.001,0.01", "--over", "frozen=stage3,none", "--set", "epochs=2")
    assert code == 0 and len(answer["settings"]) == 4
    told = next(one for one in answer["settings"] if one["settings"] == {"optimizer.lr": 0.01, "frozen": "stage3"})
    settings = ("--set", "epochs=2", "--set", "optimizer.lr=0.01", "--set", "frozen=stage3")
    alone = invoke("finetune", spec, *settings, "--runs-dir", "alone")[1]
    assert (told["accuracy"], told["loss"]) == (alone["best"]["val"]["accuracy"], alone["best"]["val"]["loss"])
    run = Path(told["members"][0]["run"])
    own, other = yamlfile.load(run / "spec.yaml").spec, yamlfile.load(Path(alone["run"]) / "spec.yaml").spec
    assert own.target.test is None and own == other.model_copy(
        update={"name": own.name, "report": False, "target": own.target}
    )
    assert invoke("eval", run)[1]["accuracy"] == told["accuracy"]
    assert invoke("runs", the_sweep() / "members")[1]["total"] == 4


def test_the_best_by_validation_is_picked_and_it_alone_is_tested(sweep: Invoke, invoke: Invoke) -> None:
    answer = sweep(*EXTRACT, "--over", ALPHAS)[1]
    accuracies = [(-one["accuracy"], one["loss"]) for one in answer["settings"]]
    assert accuracies == sorted(accuracies)
    assert answer["picked"]["settings"] == answer["settings"][0]["settings"]
    evaluated = [json.loads(path.read_text()) for path in (the_sweep() / "test").glob("*/summary.json")]
    assert [Path(one["evaluated"]).name for one in evaluated] == [Path(answer["picked"]["run"]).name]
    data = "{dataset: digits, classes: [5, 6, 7], per_class: 30}"
    again = invoke("eval", answer["picked"]["run"], "--split", "test", "--set", f"target.test={data}")[1]
    assert (again["accuracy"], again["loss"]) == (answer["test"]["accuracy"], answer["test"]["loss"])


def test_seeds_are_repeats_of_a_setting_which_is_picked_by_their_mean(sweep: Invoke) -> None:
    answer = sweep(*EXTRACT, "--over", "head.regularisation=0.001,1", "--over", "seed=0,1,2")[1]
    for one in answer["settings"]:
        accuracies = [row["accuracy"] for row in one["members"]]
        assert [row["seed"] for row in one["members"]] == [0, 1, 2]
        assert one["accuracy"] == pytest.approx(sum(accuracies) / 3)
        variance = sum((value - one["accuracy"]) ** 2 for value in accuracies) / 2
        assert one["accuracy_sd"] == pytest.approx(variance**0.5)
    means = [one["accuracy"] for one in answer["settings"]]
    middle = sorted(answer["settings"][0]["members"], key=lambda row: (row["accuracy"], -row["loss"]))[1]
    assert means == sorted(means, reverse=True) and answer["picked"]["member"] == middle["member"]


def test_seeds_alone_are_one_setting_whose_median_member_is_tested(sweep: Invoke) -> None:
    data = "{dataset: digits, classes: [5, 6, 7], per_class: 30}"
    fraction = ("--set", f"target={{train: {data}, val: 0.5, test: {data}}}")
    answer = sweep(*EXTRACT, "--over", "seed=0,1,2,3", *fraction)[1]
    (setting,) = answer["settings"]
    ordered = sorted(setting["members"], key=lambda row: (-row["accuracy"], row["loss"]))
    assert len({row["accuracy"] for row in ordered}) > 1
    assert answer["picked"]["member"] == ordered[2]["member"]  # of two in the middle the worse
    assert answer["picked"]["accuracy"] == setting["accuracy"] and answer["picked"]["seeds"] == 4
    assert answer["picked"]["accuracy_sd"] == setting["accuracy_sd"]
    assert Path(answer["test"]["run"]).parent.name == "test" and not setting["fronts"]
    log = (the_sweep() / "log.txt").read_text()
    assert "one setting with 4 seeds" in log and "each holds out other images" in log
    accuracy, sd = 100 * setting["accuracy"], 100 * setting["accuracy_sd"]
    assert f"seeds are repeats: val accuracy {accuracy:.1f} ± {sd:.1f} % (mean ± sd over 4 seeds)" in log
    assert "the median of its seeds, not the luckiest" in log and "best so far" not in log


def test_a_member_that_diverges_is_a_row_with_its_reason(sweep: Invoke) -> None:
    code, answer = sweep("--over", "optimizer.lr=1e5,0.01", "--set", "epochs=2")
    assert code == 0
    assert [one["state"] for one in answer["settings"]] == ["finished", "failed"]
    (row,) = answer["settings"][1]["members"]
    assert row["exit_code"] == 6 and "nan" in row["error"]
    assert answer["members"] == {"finished": 1, "failed": 1}


def test_the_reason_of_a_member_that_failed_is_told_whole(sweep: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = f"/{'long/' * 100}run: cannot write: No space left on device; free some space"
    run = members.run

    def fails_once(task: members.Task, *given: Any) -> Any:
        if task.spec.name.endswith("-002"):
            raise ResourceError(reason)
        return run(task, *given)

    monkeypatch.setattr(members, "run", fails_once)
    code, answer = sweep(*EXTRACT, "--over", ALPHAS)
    log = (the_sweep() / "log.txt").read_text()
    assert code == 0 and log.count(f": failed: {reason}\n") == log.count(f"failed: member 2: {reason}\n") == 1
    assert [row["error"] for one in answer["settings"] for row in one["members"] if "error" in row] == [reason]


@pytest.mark.parametrize(
    ("near", "others", "words"),
    [
        (0, 1, "the interval of the other complete setting does not overlap its own"),
        (0, 4, "none of the 4 other complete settings has an interval that overlaps its own"),
        (1, 1, "the other complete setting cannot be told from it"),
        (2, 4, "2 of the 4 other complete settings cannot be told from it"),
        (4, 4, "all 4 other complete settings cannot be told from it"),
    ],
)
def test_how_sure_the_choice_is_reads_as_a_sentence_for_any_number(near: int, others: int, words: str) -> None:
    assert show.how_sure(near, others).startswith(words)


def test_where_all_fail_the_exit_code_is_the_first_ones(sweep: Invoke) -> None:
    code, answer = sweep("--over", "optimizer.lr=1e5,1e6", "--set", "epochs=2")
    assert code == 6 and answer["error"].startswith("all 2 members failed") and "nan" in answer["error"]


def test_a_fault_that_all_share_is_told_once_with_its_line(sweep: Invoke, spec: Path) -> None:
    spec.write_text(f"{SPEC}frozen: stage9\n")
    code, answer = sweep("--over", "optimizer.lr=0.1,0.01")
    assert code == 2 and answer["error"].count("stage9") == 1
    assert answer["error"].startswith(f"{spec}:14: frozen: shufflenet_v2_x0_5 has no stage 'stage9'")


@pytest.mark.parametrize(
    ("over", "key", "message"),
    [
        ("frozen=stage3,stage9", "frozen", "shufflenet_v2_x0_5 has no stage 'stage9'; did you mean stage4?"),
        ("frozen={1: all, 3: stage9},none", "frozen", "shufflenet_v2_x0_5 has no stage 'stage9'; did you mean stage4?"),
        ("frozen=[nothing.*],none", "frozen", "the pattern 'nothing.*' matches no parameter"),
        ("optimizer.stage_lr.stage9=0.1,0.2", "optimizer.stage_lr.stage9", "the model has no stage 'stage9'"),
        ("head_first.optimizer.stage_lr={hade: 0.1},{}", "head_first.optimizer.stage_lr.hade", "did you mean head?"),
        ("backbone.name=resnet18,resnet81", "backbone.name", "torchvision has no architecture 'resnet81'"),
    ],
)
def test_what_a_network_does_not_have_is_told_before_there_is_a_run(
    sweep: Invoke, over: str, key: str, message: str
) -> None:
    code, answer = sweep("--over", over, "--over", "optimizer.lr=0.1,0.01", "--set", "cache=none")
    assert code == 2 and answer["error"].startswith(f"--over {over.partition('=')[0]}=") and not Path("runs").exists()
    assert answer["error"].count(message) == 1 and f": {key}: " in answer["error"]


def test_all_that_networks_do_not_have_is_told_at_once(sweep: Invoke) -> None:
    code, answer = sweep("--over", "frozen=stage8,stage9", "--over", "backbone.name=shufflenet_v2_x0_5,vgg99")
    assert code == 2 and [name in answer["error"] for name in ("stage8", "stage9", "vgg99")] == [True] * 3


def test_parts_that_networks_have_are_no_fault(sweep: Invoke) -> None:
    over = ("--over", "frozen=stage3,all", "--over", "optimizer.stage_lr={head: 0.1, stage4: 0.01},{source_head: 1}")
    assert sweep(*over, "--set", "epochs=1")[0] == 0


def test_missing_data_is_told_before_there_is_a_run(sweep: Invoke) -> None:
    code, answer = sweep("--over", "optimizer.lr=0.1,0.01", "--set", "target.test=nowhere")
    assert code == 3 and "nowhere: no such folder" in answer["error"] and not Path("runs").exists()


def test_a_broken_image_stops_the_sweep_at_its_first_member(
    sweep: Invoke, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    broken = image_folder("train", ants=6, bees=6) / "ants" / "3.png"
    broken.write_bytes(b"no image")
    data = ("--set", f"target={{train: {tmp_path}/train, val: 0.5}}")
    code, answer = sweep(*EXTRACT, "--over", ALPHAS, *data)
    assert code == 3 and answer["error"].count(str(broken)) == 1 and answer["members"] == {"failed": 1, "missing": 2}


def test_a_sweep_that_a_broken_image_stopped_goes_on_with_all_members_once_it_is_mended(
    sweep: Invoke, invoke: Invoke, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    broken = image_folder("train", ants=6, bees=6) / "ants" / "3.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    asked = (*EXTRACT, "--over", ALPHAS, "--set", f"target={{train: {tmp_path}/train, val: 0.5}}")
    assert sweep(*asked)[0] == 3
    broken.write_bytes(whole)
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 0 and answer["members"] == {"finished": 3} and len(runs_in(the_sweep() / "members")) == 3
    assert table(answer) == table(sweep(*asked, "--runs-dir", "whole")[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--verb", "extract", "--over", "frozen=all,none"), "extract does not use it; sweep it with --verb finetune"),
        ((*EXTRACT, "--over", "optimizer.lr=0.1,0.01"), "extract does not use it with head.solver: lbfgs"),
        (("--over", "pretrain.epochs=1,2"), "finetune does not use it, so that members would not differ"),
    ],
)
def test_a_setting_that_no_member_reads_is_not_swept(sweep: Invoke, arguments: Any, message: str) -> None:
    code, answer = sweep(*arguments)
    assert code == 2 and answer["error"].startswith("--over") and message in answer["error"]


def test_a_setting_that_some_members_read_is_swept(sweep: Invoke) -> None:
    over = ("--over", "optimizer.lr=0.1,0.01", "--over", "head.solver=lbfgs,sgd", "--set", "epochs=1")
    assert sweep("--verb", "extract", *over)[0] == 0


@pytest.mark.parametrize("over", ["target.val=0.25,0.5", "target.balance=none,weights", "seed=0,1"])
def test_missing_test_data_costs_no_training_whatever_is_swept(sweep: Invoke, over: str) -> None:
    code, answer = sweep(*EXTRACT, "--over", over, "--set", "target.test=nowhere")
    assert code == 3 and answer["error"].count("nowhere: no such folder") == 1 and not Path("runs").exists()


def test_test_data_that_is_training_data_is_told_though_no_member_sees_it(
    sweep: Invoke, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    for name in ("train", "val"):
        image_folder(name, ants=6, bees=6)
    data = f"target={{train: {tmp_path}/train, val: {tmp_path}/val, test: {tmp_path}/train}}"
    assert sweep(*EXTRACT, "--over", "head.regularisation=1", "--set", data)[0] == 0
    assert "target.test: has the very samples of target.train" in (the_sweep() / "log.txt").read_text()


def test_what_is_frozen_is_computed_by_one_member_and_found_by_the_others(
    sweep: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes = []
    write = members.Quiet.line

    def line(self: Any, text: str, *how: Any, **more: Any) -> None:
        notes.append(text)
        write(self, text, *how, **more)

    monkeypatch.setattr(members.Quiet, "line", line)
    answer = sweep(*EXTRACT, "--over", ALPHAS)[1]
    computed = [note for note in notes if ": train: " in note]
    assert [note.rsplit(": ", 1)[1] for note in computed] == [
        "0 of 24 from the cache", "24 of 24 from the cache", "24 of 24 from the cache"
    ]  # fmt: skip
    leads = {row["member"]: row["leads"] for one in answer["settings"] for row in one["members"]}
    assert leads == {1: True, 2: False, 3: False}


# -- test data ----------------------------------------------------------------------------------------


def test_test_images_are_read_after_the_last_member_has_ended(
    sweep: Invoke, tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder("train", ants=6, bees=6)
    image_folder("test", ants=3, bees=3)
    read: list[str] = []
    open_image = images.ImageFiles.read

    def noted(self: Any, index: int, *size: Any) -> Any:
        read.append(f"{'test' if '/test/' in self.name(index) else 'other'} {len(runs_in(the_sweep() / 'members'))}")
        return open_image(self, index, *size)

    def noted_hashed(self: Any, index: int, *size: Any) -> Any:
        read.append(f"{'test' if '/test/' in self.name(index) else 'other'} {len(runs_in(the_sweep() / 'members'))}")
        return open_hashed(self, index, *size)

    open_hashed = images.ImageFiles.read_hashed
    monkeypatch.setattr(images.ImageFiles, "read", noted)
    monkeypatch.setattr(images.ImageFiles, "read_hashed", noted_hashed)
    data = ("--set", f"target={{train: {tmp_path}/train, val: 0.5, test: {tmp_path}/test}}")
    assert sweep(*EXTRACT, "--over", ALPHAS, *data)[0] == 0
    assert [note for note in read if note.startswith("test")] == ["test 3"] * 6
    assert read.index("test 3") == len(read) - 6


def test_a_broken_test_image_costs_no_member_and_the_sweep_goes_on_once_it_is_mended(
    sweep: Invoke, invoke: Invoke, tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    image_folder("train", ants=6, bees=6)
    broken = image_folder("test", ants=3, bees=3) / "ants" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"no image")
    data = ("--set", f"target={{train: {tmp_path}/train, val: 0.5, test: {tmp_path}/test}}")
    code, answer = sweep(*EXTRACT, "--over", ALPHAS, *data)
    assert code == 3 and str(broken) in answer["error"] and answer["members"] == {"finished": 3}
    broken.write_bytes(whole)
    before = runs_in(the_sweep() / "members")
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 0 and answer["test"]["n"] == 6 and runs_in(the_sweep() / "members") == before


def test_without_optuna_the_error_names_the_extra(sweep: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferctl.sweeps.study.find_spec", lambda name: None)
    for flags in (["--prune"], ["--method", "optuna"]):
        code, answer = sweep("--over", "optimizer.lr=0.1,0.01", *flags)
        assert code == 2 and answer["error"].endswith("pip install 'transferctl[sweep]'")


# -- which settings -----------------------------------------------------------------------------------


def test_random_settings_are_drawn_by_the_specs_seed(sweep: Invoke) -> None:
    over = ("--over", "head.regularisation=log:0.001:10", "--over", "label_smoothing=0:0.2")
    answer = sweep(*EXTRACT, *over, "--method", "random", "--trials", 2, "--set", "seed=5")[1]
    found = {row["member"]: one["settings"] for one in answer["settings"] for row in one["members"]}
    axes, _ = space.parse(over[1::2])
    drawn = [{key: float(text) for key, text in one.items()} for one in methods.random(axes, 2, seed=5)]
    assert [found[1], found[2]] == drawn and answer["sweep"]["seed"] == 5


def test_optuna_learns_from_what_settings_have_scored_and_goes_on_after_a_stop(
    spec: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    over = ("--over", "head.regularisation=log:0.0001:100", "--over", "seed=0,1")
    asked = ("sweep", spec, *EXTRACT, *over, "--method", "optuna", "--trials", 2)
    whole = invoke(*asked, "--runs-dir", "whole")[1]
    assert stopped(3, KeyboardInterrupt(), monkeypatch, invoke, *asked) == 130
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 0 and scores(answer) == scores(whole)
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(the_sweep() / "optuna.journal"))
    )
    trials = optuna.load_study(study_name="settings", storage=storage).get_trials(
        states=[optuna.trial.TrialState.COMPLETE]
    )
    told = {trial.user_attrs["setting"]: trial.value for trial in trials}
    means = {(one["members"][0]["member"] - 1) // 2: one["accuracy"] for one in answer["settings"]}
    assert told == pytest.approx(means) and len(told) == 2


def test_optuna_tries_no_setting_twice_and_ends_when_there_are_no_others(sweep: Invoke) -> None:
    """Twice the same would be taken for repeats of a setting, which agree to the bit."""
    pytest.importorskip("optuna")
    whole = ("--over", "batch_size=10:11", "--over", "head.hidden=[],[4]")  # four settings
    code, answer = sweep("--verb", "extract", *whole, "--set", "epochs=1", "--method", "optuna", "--trials", 5)
    assert code == 0 and len(answer["settings"]) == 4
    assert all(len(one["members"]) == 1 and one["accuracy_sd"] is None for one in answer["settings"])


def test_what_optuna_said_of_a_member_is_what_it_says_once_the_member_has_gone_back_some_epochs(
    tmp_path: Path,
) -> None:
    pytest.importorskip("optuna")
    study = Study(tmp_path, 0)
    assert all(study.goes_on(1, epochs, 0.9) for epochs in (1, 2, 3))
    assert [study.goes_on(2, epochs, accuracy) for epochs, accuracy in ((1, 0.95), (2, 0.5), (3, 0.5))] == [
        True, True, False
    ]  # fmt: skip
    again = Study(tmp_path, 0)
    assert [again.goes_on(2, epochs, 0.5) for epochs in (1, 2, 3)] == [True, True, False]


def test_a_score_that_was_told_before_a_kill_and_not_judged_is_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    study = Study(tmp_path, 0)
    assert study.goes_on(1, 1, 0.9)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(optuna.trial.Trial, "should_prune", interrupted)
        study.goes_on(2, 1, 0.1)
    assert not Study(tmp_path, 0).goes_on(2, 1, 0.1)


def interrupted(*given: Any) -> bool:
    raise KeyboardInterrupt


def test_pruned_members_are_finished_runs_that_say_when_and_are_not_picked(sweep: Invoke, invoke: Invoke) -> None:
    pytest.importorskip("optuna")
    network = ("--set", "backbone.name=resnet18", "--set", "batch_size=4", "--set", "epochs=8")
    code, answer = sweep("--verb", "extract", "--over", "optimizer.lr=0.01,1e-7,1e-8", "--prune", *network)
    assert code == 0
    states = {one["settings"]["optimizer.lr"]: one["state"] for one in answer["settings"]}
    assert states[0.01] == "finished" and "pruned" in states.values()
    for row in (row for one in answer["settings"] for row in one["members"] if row["state"] == "pruned"):
        summary = json.loads((Path(row["run"]) / "summary.json").read_text())
        assert (summary["status"], summary["pruned"]) == ("finished", row["pruned"])
        assert summary["last"]["epoch"] == row["pruned"]["epoch"] < 8 == row["pruned"]["of"]
        assert checkpoint.load(Path(row["run"])) and invoke("eval", row["run"])[1]["accuracy"] == row["accuracy"]
    assert answer["settings"][0]["state"] == "finished" and answer["picked"]["settings"] == {"optimizer.lr": 0.01}


def test_training_asks_before_each_epoch_but_the_first_whether_it_goes_on(spec: Path) -> None:
    asked = []

    def goes_on(epochs: int, val: Any) -> bool:
        asked.append((epochs, val["accuracy"]))
        return epochs < 2

    task = members.Task(yamlfile.load(spec).spec, "finetune", Path("runs"), Path("runs"))
    summary = members.run(task, pytest.fail, goes_on)
    lines = [json.loads(line) for line in (Path(summary["run"]) / "metrics.jsonl").read_text().splitlines()]
    assert asked == [(line["epoch"], line["accuracy"]) for line in lines if line["split"] == "val"]
    assert summary["pruned"] == {"epoch": 2, "of": 4} and len(asked) == 2


# -- side by side -------------------------------------------------------------------------------------


def test_two_at_a_time_score_to_the_bit_as_one_after_the_other(sweep: Invoke) -> None:
    over = ("--verb", "extract", "--over", "optimizer.lr=0.01,0.1", "--over", "seed=0,1")
    one = sweep(*over, "--runs-dir", "one")[1]
    two = sweep(*over, "--runs-dir", "two", "--jobs", 2)[1]
    assert scores(two) == scores(one)


@pytest.fixture
def spec_of(spec: Path) -> Callable[[Member], Any]:
    return lambda member: yamlfile.load(spec, member.sets).spec


def test_without_a_cache_nothing_is_found_and_nobody_waits(spec_of: Callable[[Member], Any]) -> None:
    waiting = schedule.Schedule(spec_of, "extract")
    for number in (1, 2):
        waiting.add(Member(number, {"cache": "none", "optimizer.lr": str(number)}))
    assert waiting.next() and waiting.next() and not waiting.leaders


def test_no_member_starts_that_would_compute_what_another_is_computing(spec_of: Callable[[Member], Any]) -> None:
    settings = [("stage3", 1), ("stage3", 2), ("stage2", 1), ("none", 1)]
    found = [
        Member(i, {"frozen": frozen, "optimizer.lr": str(rate)}) for i, (frozen, rate) in enumerate(settings, 1)
    ]  # fmt: skip
    waiting = schedule.Schedule(spec_of, "finetune")
    for member in found:
        waiting.add(member)
    assert [waiting.next(), waiting.next(), waiting.next()] == [found[0], found[3], None]  # one computes, one need not
    waiting.has_computed(1)
    assert [waiting.next(), waiting.next()] == [found[1], found[2]]
    assert waiting.leaders == {1}


@pytest.mark.parametrize(
    ("sets", "is_same"),
    [
        (["optimizer.lr=1"], True),
        (["target.val=0.5"], True),
        (["preprocess.crop=24"], False),
        (["backbone.name=resnet18"], False),
        (["seed=1"], False),  # random weights are the seed's
    ],
)
def test_members_of_one_network_compute_one_after_the_other(sets: list[str], is_same: bool, spec: Path) -> None:
    one, other = (schedule.network_of(yamlfile.load(spec, some).spec) for some in ([], sets))
    assert (one == other) is is_same


# -- stopped and gone on with -------------------------------------------------------------------------


def stopped(
    members_done: int, error: BaseException, monkeypatch: pytest.MonkeyPatch, invoke: Invoke, *arguments: object
) -> int:
    """The exit code of a sweep that is stopped when it starts the member after so many."""
    started = []
    run = members.run

    def run_or_stop(*given: Any, **more: Any) -> Any:
        if len(started) == members_done:
            raise error
        started.append(1)
        return run(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(members, "run", run_or_stop)
        return invoke(*arguments)[0]


@pytest.mark.parametrize("done", [0, 2])
def test_a_sweep_that_is_stopped_between_members_goes_on_with_those_that_are_missing(
    done: int, spec: Path, whole: dict[str, Any], invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("sweep", spec, *EXTRACT, "--over", ALPHAS)
    assert stopped(done, Terminated(), monkeypatch, invoke, *asked) == 143
    summary = json.loads((the_sweep() / "summary.json").read_text())
    assert summary["status"] == "interrupted" and summary["members"].get("finished", 0) == done
    before = runs_in(the_sweep() / "members")
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 0 and scores(answer) == scores(whole)
    after = runs_in(the_sweep() / "members")
    assert len(after) == 3 and {name: after[name] for name in before} == before


def test_a_member_that_is_stopped_within_its_training_goes_on_from_there(
    spec: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("sweep", spec, "--over", "optimizer.lr=0.001,0.01", "--set", "frozen=conv5")
    whole = invoke(*asked, "--runs-dir", "whole")[1]
    fit, calls = training.fit, []

    def stopping(*given: Any, **more: Any) -> Any:
        calls.append(1)

        def goes_on(epochs: int, val: Any) -> bool:
            if len(calls) == 2 and epochs == 2:
                raise KeyboardInterrupt
            return True

        return fit(*given, **more | {"goes_on": goes_on})

    with monkeypatch.context() as patch:
        patch.setattr(finetune.training, "fit", stopping)
        assert invoke(*asked)[0] == 130
    assert json.loads((the_sweep() / "summary.json").read_text())["members"] == {"finished": 1, "stopped": 1}
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 0 and scores(answer) == scores(whole)
    (log,) = (the_sweep() / "members").glob("*-002/log.txt")
    assert "resuming" in log.read_text() and len(runs_in(the_sweep() / "members")) == 2
    times = {row["member"]: row["seconds"] for one in answer["settings"] for row in one["members"]}
    assert times[1] is not None and times[2] is None  # of two processes, of which the last one is known
    assert [one["fronts"] for one in answer["settings"] if one["members"][0]["member"] == 2] == [[]]


def test_a_sweep_that_is_resumed_needs_the_file_that_it_was_made_of_no_more(
    spec: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Defaults of one optimizer are not taken for settings of another."""
    asked = ("sweep", spec, "--verb", "extract", "--set", "epochs=2", "--over", "optimizer.name=sgd,adam")
    whole = invoke(*asked, "--runs-dir", "whole")[1]
    assert stopped(1, Terminated(), monkeypatch, invoke, *asked) == 143
    spec.unlink()
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 0 and scores(answer) == scores(whole)


def test_relative_paths_that_are_swept_are_looked_for_where_they_were_when_a_sweep_is_resumed(
    spec: Path, invoke: Invoke, tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        image_folder(f"specs/{name}", ants=6, bees=6)
    there = spec.rename(tmp_path / "specs" / spec.name)
    data = ("--over", "target.train=one,two", "--set", "target.val=0.5", "--set", "target.test=null")
    assert stopped(1, Terminated(), monkeypatch, invoke, "sweep", there, *EXTRACT, *data) == 143
    there.unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, answer = invoke("sweep", "--resume", the_sweep(tmp_path / "runs"))
    assert code == 0 and answer["members"] == {"finished": 2}


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"verb": "rm", "over": ["lambda=1"], "method": "grid"}'])
def test_a_book_that_cannot_be_used_is_one_clear_error(
    text: str, spec: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stopped(0, Terminated(), monkeypatch, invoke, "sweep", spec, *EXTRACT, "--over", ALPHAS) == 143
    (the_sweep() / "sweep.json").write_text(text)
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 4 and answer["error"].endswith("; sweep anew") and "sweep.json" in answer["error"]


def test_a_journal_that_cannot_be_read_is_one_clear_error(
    spec: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    asked = ("sweep", spec, *EXTRACT, "--over", ALPHAS, "--method", "optuna", "--trials", 2)
    assert stopped(1, Terminated(), monkeypatch, invoke, *asked) == 143
    with monkeypatch.context() as patch:
        patch.setattr("transferctl.sweeps.study.find_spec", lambda name: None)
        code, answer = invoke("sweep", "--resume", the_sweep())
        assert code == 2 and answer["error"].endswith("pip install 'transferctl[sweep]'")
    (the_sweep() / "optuna.journal").write_text('{"of": "another program"}\n')
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 4 and "optuna.journal: cannot be read" in answer["error"]


@pytest.mark.parametrize("option", ["--over=lambda=1", "--method=random", "--trials=3", "--prune", "--verb=extract"])
def test_a_sweep_that_is_resumed_takes_no_other_members(option: str, spec: Path, invoke: Invoke) -> None:
    code, answer = invoke("sweep", "--resume", spec.parent, option)
    assert code == 2 and answer["error"].startswith(option.split("=", maxsplit=1)[0])


KILLED = """
import os, signal
from transferctl import {module}
whole, calls = {module}.{name}, []
def killing(*given, **more):
    calls.append(1)
    if len(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*given, **more)
{module}.{name} = killing
from transferctl.cli import main
main()
"""


@pytest.mark.parametrize(
    ("module", "name", "at"),
    [
        ("runs", "write_atomically", 4),  # its book is not there yet, or just there
        ("checkpoint", "save", 2),  # within the second member
        ("evaluate", "run", 1),  # between the table and the test
    ],
)
def test_a_sweep_that_is_killed_ends_as_one_that_was_not(
    module: str, name: str, at: int, spec: Path, whole: dict[str, Any], invoke: Invoke
) -> None:
    asked = ("sweep", spec, *EXTRACT, "--over", ALPHAS)
    code = KILLED.format(module=module, name=name, call=at)
    command = [sys.executable, "-c", code, *map(str, asked)]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    code, answer = invoke("sweep", "--resume", the_sweep())
    assert code == 0 and scores(answer) == scores(whole)
    assert len(runs_in(the_sweep() / "members")) == 3


def _workers(parent: int) -> list[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
def test_a_worker_that_is_killed_costs_its_member_alone_and_the_sweep_does_not_hang(spec: Path) -> None:
    arguments = ["sweep", spec, "--over", "optimizer.lr=0.001,0.01", "--set", "epochs=8", "--jobs", "2", "--json"]
    command = [sys.executable, "-m", "transferctl", *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        give_up = time.monotonic() + 60
        while not list(Path("runs").glob("*-sweep-*/members/*-001/checkpoints")) and time.monotonic() < give_up:
            time.sleep(0.05)
        workers = _workers(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        answer = json.loads(process.communicate(timeout=120)[0])
    assert answer["exit_code"] == 0 and answer["members"] == {"finished": 1, "failed": 1}
    (error,) = (row["error"] for one in answer["settings"] for row in one["members"] if row["state"] == "failed")
    assert error.startswith("its process was killed (signal 9)")


@pytest.mark.skipif(sys.platform != "linux", reason="looks for child processes in /proc")
def test_ctrl_c_while_workers_still_import_shows_no_traceback(spec: Path) -> None:
    arguments = ["sweep", spec, "--over", "optimizer.lr=0.001,0.01", "--jobs", "2"]
    command = [sys.executable, "-m", "transferctl", *map(str, arguments)]
    pipes: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "start_new_session": True}
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in a shell's background ignores it
    with subprocess.Popen(command, preexec_fn=heard, **pipes) as process:  # noqa: PLW1509
        give_up = time.monotonic() + 60
        while not _workers(process.pid) and time.monotonic() < give_up:
            time.sleep(0.01)
        time.sleep(0.2)  # they have come to where Python would raise KeyboardInterrupt
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        told = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130 and "Traceback" not in told and "to go on with it" in told


# -- what else reads the folder -----------------------------------------------------------------------


def test_a_sweep_is_listed_with_the_picked_members_scores_and_is_no_model(sweep: Invoke, invoke: Invoke) -> None:
    answer = sweep(*EXTRACT, "--over", ALPHAS)[1]
    folder = the_sweep()
    (row,) = invoke("runs", "runs", "--verb", "sweep")[1]["runs"]
    assert (row["split"], row["metrics"]["accuracy"]) == ("test", answer["test"]["accuracy"])
    for command in (["report", folder], ["eval", folder], ["export", folder], ["compare", folder, folder]):
        code, told = invoke(*command)
        assert code == 4 and told["error"].endswith(f"the one that it picked: {answer['picked']['run']}")
    code, told = invoke("runs", folder)
    assert code == 2 and "its members: transferctl runs" in told["error"]
    assert invoke("report", answer["picked"]["run"])[0] == 0
    assert (folder / "sweep.svg").read_text().startswith("<?xml")
    code, told = invoke("sweep", "--resume", folder)
    assert code == 0 and told["picked"] == answer["picked"]


def test_the_source_and_what_it_forgot_are_columns_and_a_front(sweep: Invoke, invoke: Invoke) -> None:
    source = "{train: {dataset: digits, classes: [0, 1], per_class: 10}, val: {dataset: digits, classes: [0, 1]}}"
    sets = ("--set", f"source={source}", "--set", "backbone.weights=source", "--set", "epochs=1")
    answer = sweep(*sets, "--set", "pretrain={epochs: 2}", "--over", "lambda=0.1,10")[1]
    assert len(list(Path("runs").glob("*-pretrain-tiny"))) == 1  # for both, beside the sweep
    points = [(one["accuracy"], one["source_accuracy"]) for one in answer["settings"]]
    for one, point in zip(answer["settings"], points, strict=True):
        summary = json.loads((Path(one["members"][0]["run"]) / "summary.json").read_text())
        assert one["source_change"] == summary["source"]["accuracy_change"]
        beaten = any(other != point and other[0] >= point[0] and other[1] >= point[1] for other in points)
        assert ("source" in one["fronts"]) is not beaten
