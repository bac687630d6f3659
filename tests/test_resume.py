"""A run that was stopped goes on as if nothing had happened, from between any two steps."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from transferctl import loaders, lock, training
from transferctl.cli import app
from transferctl.contracts import Batch
from transferctl.errors import Terminated
from transferctl.penalties import cotuning, ewc

Invoke = Callable[..., tuple[int, dict[str, Any]]]

SPEC = """
name: tiny
backbone: {name: resnet18, weights: none}
preprocess: {resize: 36, crop: 32}
precision: fp32
target: {train: train, val: val, test: val}
source: {train: source, val: 0.4, batch_size: 5}
lambda: 0.7
penalties: {bss: 0.001}
head_first: {epochs: 2}
head: {dropout: 0.2}
augment: {mixup: 0.3}
batchnorm: statistics
frozen: {1: layer2, 2: layer1}
epochs: 3
batch_size: 8
ema: 0.8
optimizer: {name: adamw, lr: 0.001}
schedule: {name: cosine, warmup: 0.2}
checkpoint: 2 steps
workers: 0
"""
STEPS_PER_EPOCH, EPOCHS = 5, 3


@pytest.fixture
def spec(tmp_path: Path, image_folder: Callable[..., Path]) -> Path:
    image_folder("train", ants=12, bees=13, wasps=11)
    image_folder("val", ants=6, bees=5, wasps=4)
    image_folder("source", cats=7, dogs=8)
    (tmp_path / "tiny.yaml").write_text(SPEC)
    return tmp_path / "tiny.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What uninterrupted runs have ended with, by verb: computed once."""
    return {}


def outcome(run: Path) -> dict[str, Any]:
    """All that a run has found, less its times and its own name."""
    links = {which: run / "checkpoints" / which / "model.safetensors" for which in ("best", "last", "start")}
    files = {name: path for name, path in links.items() if path.exists()}
    files |= {name: run / name for name in ("metrics.jsonl", "predictions.csv", "classes.json", "spec.yaml")}
    digests = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if path.exists()}
    summary = json.loads((run / "summary.json").read_text())
    return digests | {"summary": {key: value for key, value in summary.items() if key not in ("run", "elapsed_s")}}


def the_run(folder: Path, verb: str = "finetune") -> Path:
    (run,) = folder.glob(f"*-{verb}-*")
    return run


def stopped_after(steps: int, error: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit code of a command whose training is stopped when it asks for the batch after so many steps."""
    taken = 0

    def counted(batches: Iterator[Batch]) -> Iterator[Batch]:
        nonlocal taken
        for batch in batches:
            if taken == steps:
                raise error
            taken += 1
            yield batch

    def fit(model: Any, objective: Any, settings: Any, stream: Any, *rest: Any, **how: Any) -> Any:
        if how.get("saver"):
            stream = loaders.Stream(counted(stream.batches), stream.steps_per_epoch, stream.samples_per_epoch)
        return whole_fit(model, objective, settings, stream, *rest, **how)

    whole_fit = training.fit
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", fit)
        return CliRunner().invoke(app, [*map(str, arguments)]).exit_code


# -- the same bits ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 5, 7, 10, 14])
def test_a_training_that_is_stopped_between_any_two_steps_ends_with_the_same_bits(
    steps: int, spec: Path, tmp_path: Path, whole: dict[str, Any], invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mid-epoch or at its end, with dropout, mixup, thawing, batch statistics, an average and both samplers."""
    monkeypatch.chdir(tmp_path)
    assert stopped_after(steps, Terminated(), monkeypatch, "finetune", spec, "--runs-dir", "runs") == 143
    run = the_run(tmp_path / "runs")
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    code, summary = invoke("finetune", "--resume", run)
    assert code == 0 and summary["last"]["step"] == STEPS_PER_EPOCH * EPOCHS
    found = outcome(run)
    if "finetune" not in whole:
        assert invoke("finetune", spec, "--runs-dir", "whole")[0] == 0
        whole["finetune"] = outcome(the_run(tmp_path / "whole"))
    with_own_paths = {name: found[name] for name in ("spec.yaml", "predictions.csv")}  # each test has its own folder
    assert found == whole["finetune"] | with_own_paths


def test_a_kill_loses_what_was_not_saved_and_no_more(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL leaves no time to save: the steps since the last save are taken again, with the same bits."""
    monkeypatch.chdir(tmp_path)
    killed = MemoryError()  # nothing is saved at this one either
    assert stopped_after(9, killed, monkeypatch, "finetune", spec, "--runs-dir", "runs") == 5
    run = the_run(tmp_path / "runs")
    newest = sorted(path.name for path in (run / "checkpoints").glob("step-*"))[-1]
    assert newest == "step-000008-unscored"
    assert invoke("finetune", "--resume", run)[0] == invoke("finetune", spec, "--runs-dir", "whole")[0] == 0
    assert outcome(run) == outcome(the_run(tmp_path / "whole"))


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0), (1, 2)])
def test_any_number_of_workers_before_and_after(
    before: int, after: int, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["finetune", spec, "--runs-dir", "runs", "--set", f"workers={before}"]
    assert stopped_after(7, Terminated(), monkeypatch, *arguments) == 143
    run = the_run(tmp_path / "runs")
    assert invoke("finetune", "--resume", run, "--set", f"workers={after}")[0] == 0
    assert invoke("finetune", spec, "--runs-dir", "whole", "--set", f"workers={after}")[0] == 0
    assert outcome(run) == outcome(the_run(tmp_path / "whole"))


@pytest.mark.parametrize("verb", ["pretrain", "extract"])
def test_the_other_verbs_that_train_are_resumed_alike(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [verb, spec, "--set", "pretrain={epochs: 2, batch_size: 4}", "--runs-dir"]
    assert stopped_after(3, KeyboardInterrupt(), monkeypatch, *arguments, "runs") == 130
    run = the_run(tmp_path / "runs", verb)
    assert invoke(verb, "--resume", run)[0] == invoke(*arguments, "whole")[0] == 0
    assert outcome(run) == outcome(the_run(tmp_path / "whole", verb))


def test_the_steps_of_a_resumed_run_are_not_taken_again(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stopped_after(13, Terminated(), monkeypatch, "finetune", spec, "--runs-dir", "runs") == 143
    run = the_run(tmp_path / "runs")
    assert stopped_after(3, Terminated(), monkeypatch, "finetune", "--resume", run) == 0  # two of fifteen were left


# -- what is damaged, finished or never began ----------------------------------------------------------


def test_a_damaged_checkpoint_is_said_loudly_and_the_one_before_it_taken(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stopped_after(9, Terminated(), monkeypatch, "finetune", spec, "--runs-dir", "runs") == 143
    run = the_run(tmp_path / "runs")
    state = run / "checkpoints" / "step-000009-unscored" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-9])
    result = CliRunner().invoke(app, ["finetune", "--resume", str(run)])
    assert result.exit_code == 0
    assert "warning: step-000009-unscored cannot be used, falling back to an older one" in result.stderr
    assert "(step-000008-unscored)" in result.stderr
    assert invoke("finetune", spec, "--runs-dir", "whole")[0] == 0
    assert outcome(run) == outcome(the_run(tmp_path / "whole"))


def test_where_every_checkpoint_is_damaged_the_run_begins_again_and_ends_the_same(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert stopped_after(9, Terminated(), monkeypatch, "finetune", spec, "--runs-dir", "runs") == 143
    run = the_run(tmp_path / "runs")
    for weights in run.glob("checkpoints/step-*/model.safetensors"):
        weights.write_bytes(b"damaged")
    assert invoke("finetune", "--resume", run)[0] == invoke("finetune", spec, "--runs-dir", "whole")[0] == 0
    assert outcome(run) == outcome(the_run(tmp_path / "whole"))


def test_a_finished_run_has_nothing_to_go_on_with_which_is_no_error(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    code, summary = invoke("extract", spec, "--runs-dir", tmp_path / "runs", "--set", "head_first=null")
    run = the_run(tmp_path / "runs", "extract")
    before = outcome(run), (run / "summary.json").stat().st_mtime_ns
    assert (code, *invoke("extract", "--resume", run)) == (0, 0, summary)
    assert (outcome(run), (run / "summary.json").stat().st_mtime_ns) == before


def test_a_run_that_was_stopped_before_it_began_is_to_be_started_anew(tmp_path: Path, invoke: Invoke) -> None:
    (tmp_path / "empty").mkdir()
    code, answer = invoke("finetune", "--resume", tmp_path / "empty")
    assert code == 4 and "start it anew" in answer["error"]
    code, answer = invoke("finetune", "--resume", tmp_path / "nowhere")
    assert code == 4 and "no such run folder" in answer["error"]


def test_a_run_of_another_verb_names_the_one_that_goes_on_with_it(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    assert invoke("extract", spec, "--runs-dir", tmp_path / "runs")[0] == 0
    code, answer = invoke("finetune", "--resume", the_run(tmp_path / "runs", "extract"))
    assert code == 4 and "transferctl extract --resume" in answer["error"]


# -- what must be as it was ----------------------------------------------------------------------------


@pytest.fixture
def stopped(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    assert stopped_after(7, Terminated(), monkeypatch, "finetune", spec, "--runs-dir", tmp_path / "runs") == 143
    return the_run(tmp_path / "runs")


def test_another_setting_is_refused_with_the_difference_unless_it_is_allowed_by_name(
    stopped: Path, spec: Path, invoke: Invoke
) -> None:
    before = (stopped / "spec.yaml").read_bytes()
    code, answer = invoke("finetune", "--resume", stopped, "--set", "optimizer.lr=0.01", "--set", "epochs=4")
    assert code == 4
    for text in ("optimizer.lr: 0.001 in the run, 0.01 now", "epochs: 3 in the run, 4 now", "--allow optimizer.lr"):
        assert text in answer["error"]
    assert (stopped / "spec.yaml").read_bytes() == before
    code, answer = invoke("finetune", spec, "--resume", stopped, "--set", "epochs=4", "--allow", "epochs")
    assert code == 0 and answer["last"]["epoch"] == 4
    assert "epochs: 4" in (stopped / "spec.yaml").read_text()


def test_allowed_data_and_weights_may_lie_elsewhere(stopped: Path, tmp_path: Path, invoke: Invoke) -> None:
    shutil.copytree(tmp_path / "train", tmp_path / "moved")
    arguments = ["finetune", "--resume", stopped, "--set", f"target.train={tmp_path / 'moved'}"]
    code, answer = invoke(*arguments)
    assert code == 4 and "target.train.path: " in answer["error"]
    assert invoke(*arguments, "--allow", "data")[0] == 0


def test_a_run_that_started_from_another_is_resumed_by_its_own_spec_too(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is that of the run it starts from, whatever the spec says of it or leaves out."""
    _, first = invoke("extract", spec, "--runs-dir", tmp_path / "runs", "--set", "head.hidden=[5]")
    arguments = ["finetune", spec, "--set", f"from={first['run']}", "--set", "head_first=null"]
    assert stopped_after(7, Terminated(), monkeypatch, *arguments, "--runs-dir", tmp_path / "runs") == 143
    code, _ = invoke(*arguments, "--resume", the_run(tmp_path / "runs"))
    assert code == 0


def test_a_mistyped_allow_is_an_error(stopped: Path, invoke: Invoke) -> None:
    code, answer = invoke("finetune", "--resume", stopped, "--set", "epochs=4", "--allow", "epoch")
    assert code == 2 and "--allow epoch: is no setting" in answer["error"]


def _one_more(folder: Path) -> None:
    shutil.copy(folder / "train" / "ants" / "0.png", folder / "train" / "ants" / "99.png")


def _one_renamed(folder: Path) -> None:
    (folder / "train" / "ants" / "0.png").rename(folder / "train" / "ants" / "00.png")


def _one_changed(folder: Path) -> None:
    Image.new("RGB", (40, 48), "red").save(folder / "train" / "ants" / "0.png")


def _one_touched(folder: Path) -> None:
    os.utime(folder / "train" / "ants" / "0.png", (1, 1))


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (_one_more, "target.train, samples of ants: 12 in the run, 13 now"),
        (_one_renamed, "target.train: its samples have other names or labels"),
        (_one_changed, "bytes"),
        (_one_touched, "target.train: some of its files have been written since"),
    ],
)
def test_other_data_is_refused_with_the_difference_unless_it_is_allowed_by_name(
    change: Callable[[Path], None], difference: str, stopped: Path, tmp_path: Path, invoke: Invoke
) -> None:
    change(tmp_path)
    code, answer = invoke("finetune", "--resume", stopped)
    assert code == 4 and difference in answer["error"] and "--allow data" in answer["error"]
    assert invoke("finetune", "--resume", stopped, "--allow", "data")[0] == 0


def test_other_starting_weights_are_refused(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(0)
    weights = resnet18(num_classes=2).state_dict()
    save_file(weights, tmp_path / "w.safetensors")
    arguments = ["finetune", spec, "--runs-dir", tmp_path / "runs", "--set", "backbone.weights=w.safetensors"]
    assert stopped_after(3, Terminated(), monkeypatch, *arguments) == 143
    weights["conv1.weight"][0, 0, 0, 0] += 1e-3
    save_file(weights, tmp_path / "w.safetensors")
    code, answer = invoke("finetune", "--resume", the_run(tmp_path / "runs"))
    assert code == 4 and "weights that it starts from" in answer["error"] and "--allow weights" in answer["error"]


# -- refused without a trace ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["optimizer={name: sgd, lr: 0.01}", "--allow", "optimizer"], "was trained with another optimizer"),
        (["ema=null", "--allow", "ema"], "with or without ema"),
        (["batch_size=16", "--allow", "batch_size"], "an epoch had 5 steps and has 3 now"),
        (["batch_size=4", "--allow", "batch_size"], "an epoch had 5 steps and has 9 now"),
        (
            ["epochs=1", "frozen=layer2", "--allow", "epochs", "--allow", "frozen"],
            "has come to epoch 2, and epochs is 1",
        ),
        (["frozen=layer3", "--allow", "frozen"], "its optimizer trained backbone.net.layer2.0.conv1.weight"),
    ],
)
def test_what_is_allowed_but_cannot_go_on_is_told_and_the_run_stays_as_it_was(
    settings: list[str], said: str, stopped: Path, invoke: Invoke
) -> None:
    before = [(stopped / name).read_bytes() for name in ("spec.yaml", "summary.json", "environment.json")]
    code, answer = invoke("finetune", "--resume", stopped, *_flags(settings))
    assert code == 4 and said in answer["error"], answer
    assert [(stopped / name).read_bytes() for name in ("spec.yaml", "summary.json", "environment.json")] == before
    assert invoke("finetune", "--resume", stopped)[0] == 0


def _flags(settings: list[str]) -> list[str]:
    flags: list[str] = []
    for text in settings:
        flags += ["--set", text] if "=" in text else [text]
    return flags


def test_a_finished_run_takes_no_other_settings(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    assert invoke("extract", spec, "--runs-dir", tmp_path / "runs")[0] == 0
    run = the_run(tmp_path / "runs", "extract")
    code, answer = invoke("extract", "--resume", run, "--set", "epochs=9", "--allow", "epochs")
    assert code == 4 and "is finished, with other settings: epochs: 3 in the run, 9 now" in answer["error"]
    assert invoke("extract", "--resume", run, "--set", "workers=1")[0] == 0


def test_without_environment_json_nothing_can_be_compared_which_must_be_allowed(stopped: Path, invoke: Invoke) -> None:
    (stopped / "environment.json").unlink()
    code, answer = invoke("finetune", "--resume", stopped)
    assert code == 4 and "--allow data --allow weights" in answer["error"]
    assert invoke("finetune", "--resume", stopped, "--allow", "data", "--allow", "weights")[0] == 0


@pytest.mark.parametrize(
    "lie", [{"data": []}, {"data": {"target.train": 5}}, {"files": [1]}, {"files": {"target.train": {"bytes": "x"}}},
            {"files": {"target.train": 7}}, {"earlier": 5}, {"packages": 3}]
)  # fmt: skip
def test_an_environment_that_lies_is_no_bug(lie: dict[str, Any], stopped: Path, invoke: Invoke) -> None:
    values = json.loads((stopped / "environment.json").read_text())
    (stopped / "environment.json").write_text(json.dumps(values | lie))
    code, answer = invoke("finetune", "--resume", stopped)
    assert code == (0 if {"earlier", "packages"} & set(lie) else 4), answer


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", ".summary.json.tmp", "lock"])
def test_a_link_in_a_run_folder_is_not_written_through(
    name: str, stopped: Path, tmp_path: Path, invoke: Invoke
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (stopped / name).unlink(missing_ok=True)
    (stopped / name).symlink_to(victim)
    assert invoke("finetune", "--resume", stopped)[0] in (0, 5)
    assert victim.read_text() == "precious"


def test_a_link_in_place_of_the_checkpoints_is_not_written_through(
    stopped: Path, tmp_path: Path, invoke: Invoke
) -> None:
    (stopped / "checkpoints").rename(tmp_path / "elsewhere")
    (stopped / "checkpoints").symlink_to(tmp_path / "elsewhere")
    before = sorted(path.name for path in (tmp_path / "elsewhere").iterdir())
    code, answer = invoke("finetune", "--resume", stopped)
    assert code == 4 and "is a link, which is not written through" in answer["error"]
    assert sorted(path.name for path in (tmp_path / "elsewhere").iterdir()) == before


@pytest.mark.parametrize(
    "lie",
    [
        {"best": {"step": 4}}, {"parts": 0}, {"parts": -3}, {"step": -5}, {"step": 10**15}, {"epochs": -1},
        {"metrics_bytes": -1}, {"losses": {"loss": "x"}}, {"best": None}, {"steps_per_epoch": 0}, {"more": 1},
    ],
)  # fmt: skip
def test_a_position_that_lies_is_told(lie: dict[str, Any], stopped: Path, invoke: Invoke) -> None:
    manifest = stopped / "checkpoints" / "step-000007-unscored" / "manifest.json"
    values = json.loads(manifest.read_text())
    values["training"] |= lie
    manifest.write_text(json.dumps(values))
    code, answer = invoke("finetune", "--resume", stopped)
    assert code == 4 and "manifest.json: does not describe a training" in answer["error"]
    assert manifest.exists()


def test_metrics_that_are_shorter_than_they_were_are_said_and_not_filled_up(stopped: Path) -> None:
    metrics = stopped / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-7])
    result = CliRunner().invoke(app, ["finetune", "--resume", str(stopped)])
    assert result.exit_code == 0 and "metrics.jsonl is shorter than it was" in result.stderr
    for line in (stopped / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_a_finished_run_keeps_what_links_name_alone(stopped: Path, invoke: Invoke) -> None:
    assert invoke("finetune", "--resume", stopped)[0] == 0
    folder = stopped / "checkpoints"
    assert {path.name for path in folder.glob("step-*")} == {
        (folder / link).resolve().name for link in ("best", "last", "start")
    }


# -- one writer ----------------------------------------------------------------------------------------


def test_a_run_that_another_process_writes_is_left_alone_with_its_owner_named(stopped: Path, invoke: Invoke) -> None:
    holding = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom pathlib import Path\nfrom transferctl import lock\n"
         f"with lock.locked(Path({str(stopped)!r})):\n print('held', flush=True)\n sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holding.stdout and holding.stdout.readline() == "held\n"
    code, answer = invoke("finetune", "--resume", stopped)
    assert code == 7 and f"process {holding.pid} on " in answer["error"]
    holding.kill()
    holding.communicate()
    assert not lock.is_held(stopped)
    result = CliRunner().invoke(app, ["finetune", "--resume", str(stopped)])
    assert result.exit_code == 0 and f"left behind by process {holding.pid}" in result.stderr
    assert not (stopped / "lock").exists()


def test_without_locks_of_the_system_the_named_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on some network file systems."""

    def no_locks(*arguments: object) -> None:
        raise OSError(lock.NO_LOCKS_HERE[0], "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here, owner = lock.socket.gethostname(), tmp_path / "lock"
    for pid, host, is_free in ((ended.pid, here, True), (1, here, False), (ended.pid, "elsewhere", False)):
        owner.write_text(json.dumps({"pid": pid, "host": host}))
        assert lock.is_held(tmp_path) is not is_free


# -- penalties, optimizers ------------------------------------------------------------------------------


@pytest.mark.parametrize("penalty", ["ewc", "cotuning"])
def test_what_a_penalty_has_computed_of_the_start_is_not_computed_again(
    penalty: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file
    from torchvision.models import resnet18

    torch.manual_seed(0)
    save_file(resnet18(num_classes=2).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "names.json").write_text('["cats", "dogs"]')
    arguments = ["finetune", spec, "--set", "backbone.weights={path: w.safetensors, classes: names.json}"]
    arguments += ["--set", f"penalties={{{penalty}: 0.01}}", "--runs-dir"]
    assert stopped_after(6, Terminated(), monkeypatch, *arguments, tmp_path / "runs") == 143
    run = the_run(tmp_path / "runs")
    assert (run / "checkpoints" / "start" / "references.safetensors").is_file()
    with monkeypatch.context() as patch:
        patch.setattr(ewc, "_fisher", None)
        patch.setattr(cotuning, "_calibrated_relation", None)
        assert invoke("finetune", "--resume", run)[0] == 0
    assert invoke(*arguments, tmp_path / "whole")[0] == 0
    assert outcome(run) == outcome(the_run(tmp_path / "whole"))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "{name: sgd, momentum: 0, lr: 0.01}"])
def test_the_state_of_every_optimizer_is_kept(
    optimizer: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["finetune", spec, "--set", f"optimizer={optimizer}", "--set", "head_first=null", "--runs-dir"]
    assert stopped_after(8, Terminated(), monkeypatch, *arguments, tmp_path / "runs") == 143
    run = the_run(tmp_path / "runs")
    assert invoke("finetune", "--resume", run)[0] == invoke(*arguments, tmp_path / "whole")[0] == 0
    assert outcome(run) == outcome(the_run(tmp_path / "whole"))


# -- the same again -------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["finetune", "extract", "pretrain"])
def test_a_finished_runs_own_spec_run_again_gives_the_same_bits(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ["--set", "pretrain={epochs: 2, batch_size: 4}", "--runs-dir"]
    assert invoke(verb, spec, *settings, tmp_path / "once")[0] == 0
    first = the_run(tmp_path / "once", verb)
    assert invoke(verb, first / "spec.yaml", "--runs-dir", tmp_path / "again")[0] == 0
    assert outcome(the_run(tmp_path / "again", verb)) == outcome(first)
    environment = json.loads((first / "environment.json").read_text())
    for key in ("packages", "processor", "threads", "device", "seed", "data", "files", "weights", "commit", "command"):
        assert key in environment


def test_a_stage_0_that_was_stopped_is_gone_on_with_by_whoever_needs_it(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--set", "backbone.weights=source", "--set", "pretrain={epochs: 2, batch_size: 4}", "--runs-dir"]
    assert stopped_after(3, Terminated(), monkeypatch, "extract", spec, *settings, tmp_path / "runs") == 143
    stopped = the_run(tmp_path / "runs", "pretrain")
    result = CliRunner().invoke(app, ["extract", str(spec), *settings[:-1], "--runs-dir", str(tmp_path / "runs")])
    assert result.exit_code == 0 and f"stage 0: {stopped} is identical and was stopped" in result.stderr
    assert json.loads((stopped / "summary.json").read_text())["status"] == "finished"
    assert invoke("extract", spec, *settings, tmp_path / "whole")[0] == 0
    assert outcome(stopped) == outcome(the_run(tmp_path / "whole", "pretrain"))
