"""Trackers hear of a run, and whatever goes wrong with them, the run is as it would be without."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from transferctl import runs, trackerpipe, tracking, yamlfile
from transferctl.cli import app
from transferctl.display import Display
from transferctl.errors import CheckpointError, SpecError, Terminated
from transferctl.resuming import Resumed
from transferctl.tracking import Trackers

Invoke = Callable[..., tuple[int, dict[str, Any]]]
PACKAGE = Path(tracking.__file__).parent.parent
PARAMETERS = {"optimizer.lr": 0.1, "name": "ants: <b>"}
FAKE = """
import os, sys, time
from types import SimpleNamespace
Settings = dict
def nothing(*a, **k): pass
class Run:
    id, url = "fake", None
    config = summary = SimpleNamespace(update=nothing)
    define_metric = log = finish = nothing
def init(**k): return Run()
"""


def needs(*libraries: str) -> pytest.MarkDecorator:
    """A test with the real libraries, which are extras."""
    missing = [name for name in libraries if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: pip install 'transferctl[…]'")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries start within a second, unless other tests have the cores."""
    monkeypatch.setattr(trackerpipe, "PATIENCE_S", 60.0)


@pytest.fixture
def fake_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """A library of that name whose `code` runs after the sound parts: it may replace them."""

    def write(code: str) -> None:
        folder = tmp_path / "fake"
        folder.mkdir()
        (folder / "wandb.py").write_text(FAKE + textwrap.dedent(code))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    return write


def told(**settings: dict[str, Any]) -> Trackers:
    return Trackers(settings, PARAMETERS)


def start(folder: Path, trackers: Trackers, resumed: Resumed | None = None) -> Any:
    return runs.start(folder, "extract", "pets", "name: pets\n", Display(), resumed, trackers)


def train(run: runs.Run, *steps: int) -> None:
    for step in steps:
        run.log_metrics(step=step, epoch=step, split="val", accuracy=step / 10, loss=float("nan"))


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, round(e.value, 5)) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=str(tmp_path / "mlruns"))


def only_run(client: Any) -> Any:
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert len(found) == 1
    return found[0]


# -- what they hear ------------------------------------------------------------------------------------


@needs("tensorboard")
def test_tensorboard_has_every_line_of_metrics_with_its_step(tmp_path: Path) -> None:
    with start(tmp_path, told(tensorboard={})) as run:
        train(run, 1, 2, 3)
        run.log_metrics(split="test", accuracy=0.5)
    found = scalars(run.path / "tensorboard")
    assert found["val/accuracy"] == [(1, 0.1), (2, 0.2), (3, 0.3)]
    assert found["test/accuracy"] == [(3, 0.5)]
    assert "val/loss" not in found  # no number
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard")).Reload()
    (text,) = events.Tensors("spec")[0].tensor_proto.string_val
    assert text.decode() == '    optimizer.lr: 0.1\n    name: "ants: <b>"'
    assert 'status: "finished"' in events.Tensors("summary")[0].tensor_proto.string_val[0].decode()


@needs("mlflow")
def test_mlflow_has_parameters_metrics_and_how_the_run_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = mlflow_store(tmp_path, monkeypatch)
    settings = {"uri": str(tmp_path / "mlruns"), "experiment": "pets"}
    with pytest.raises(Terminated), start(tmp_path, told(mlflow=settings)) as run:
        train(run, 1, 2)
        run.summary["best"] = {"epoch": 2, "val": {"accuracy": 0.2, "confusion": [[1, 2], [3, 4]]}}
        raise Terminated
    found = only_run(client)
    assert client.get_experiment(found.info.experiment_id).name == "pets"
    assert found.data.params == {"optimizer.lr": "0.1", "name": "ants: <b>"}
    history = client.get_metric_history(found.info.run_id, "val/accuracy")
    assert [(m.step, m.value) for m in history] == [(1, 0.1), (2, 0.2)]
    assert found.info.status == "KILLED" and found.data.tags["summary.status"] == "interrupted"
    assert found.data.metrics["summary/best.val.accuracy"] == 0.2
    assert found.data.tags["transferctl.run"] == str(run.path)


@needs("wandb")
def test_wandb_works_offline(tmp_path: Path) -> None:
    with start(tmp_path, told(wandb={"mode": "offline", "project": "pets"})) as run:
        train(run, 1, 2)
    (kept,) = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert all(word in kept.read_bytes() for word in (b"val/accuracy", b"optimizer.lr", b"pets"))
    assert "off for the rest" not in (run.path / "log.txt").read_text()


@needs("mlflow", "tensorboard", "wandb")
def test_a_resumed_run_goes_on_in_the_same_tracker_run_and_says_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow_store(tmp_path, monkeypatch)
    trackers = told(mlflow={"uri": str(tmp_path / "mlruns"), "experiment": "pets"}, tensorboard={})
    with pytest.raises(Terminated), start(tmp_path, trackers) as run:
        train(run, 1)
        size = run.metrics_bytes()
        train(run, 2)
        raise Terminated
    with start(tmp_path, trackers, Resumed(run.path)) as again:
        again.rewind_metrics(size)
        train(again, 2, 3)
    found = only_run(client)
    history = client.get_metric_history(found.info.run_id, "val/accuracy")
    assert [m.step for m in history] == [1, 2, 3] and found.info.status == "FINISHED"
    assert [step for step, _ in scalars(run.path / "tensorboard")["val/accuracy"]] == [1, 2, 3]


def test_a_tracker_that_was_off_hears_at_a_resume_of_what_it_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: Any
) -> None:
    heard, ends = tmp_path / "heard", tmp_path / "ends"
    fake_wandb(f"""
        def log(self, values):
            if values["step"] == 3 and os.path.exists({str(ends)!r}):
                os._exit(7)
            open({str(heard)!r}, "a").write(f"{{values['step']}} ")
        Run.log = log
    """)
    ends.touch()
    with pytest.raises(Terminated), start(tmp_path, told(wandb={})) as run:
        train(run, 1, 2, 3, 4)
        raise Terminated
    assert heard.read_text() == "1 2 "
    ends.unlink()
    with pytest.raises(Terminated), start(tmp_path, told(wandb={}), Resumed(run.path)) as again:
        size = again.metrics_bytes()
        train(again, 5)
        raise Terminated
    with start(tmp_path, told(wandb={}), Resumed(run.path)) as again:
        again.rewind_metrics(size)
        train(again, 5, 6)
    assert heard.read_text() == "1 2 3 4 5 6 "


@needs("tensorboard")
def test_a_tracker_that_is_added_at_a_resume_hears_of_what_was_before(tmp_path: Path) -> None:
    with pytest.raises(Terminated), start(tmp_path, told()) as run:
        train(run, 1)
        size = run.metrics_bytes()
        train(run, 2)
        raise Terminated
    with start(tmp_path, told(tensorboard={}), Resumed(run.path)) as again:
        again.rewind_metrics(size)
        train(again, 2, 3)
    assert [step for step, _ in scalars(run.path / "tensorboard")["val/accuracy"]] == [1, 2, 3]


def test_a_run_that_may_not_be_resumed_is_not_told(tmp_path: Path) -> None:
    with pytest.raises(Terminated), start(tmp_path, told()) as run:
        raise Terminated
    with pytest.raises(CheckpointError), start(tmp_path, told(tensorboard={}), Resumed(run.path)):
        raise CheckpointError("other data")
    assert not (run.path / "tensorboard").exists()


# -- what goes wrong -----------------------------------------------------------------------------------

BROKEN = {
    "raises as it starts": ("def init(**k): raise ValueError('no\\nkey')", "ValueError: no key"),
    "raises at a line": ("def log(*a): raise OSError('gone')\nRun.log = log", "OSError: gone"),
    "ends the process": ("def init(**k): os._exit(7)", "its process ended (7)"),
    "hangs as it starts": ("def init(**k): time.sleep(60)", "was not done 1 s after"),
    "hangs at the end": ("def finish(*a, **k): time.sleep(60)\nRun.finish = finish", "was not done 1 s after"),
    "does not stop": ("import signal, threading\nthreading.Thread(target=time.sleep, args=(60,)).start()", "was not"),
}


@pytest.mark.parametrize(("code", "said"), BROKEN.values(), ids=BROKEN)
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    code: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: Any
) -> None:
    fake_wandb(code)
    monkeypatch.setattr(trackerpipe, "PATIENCE_S", 1.0)
    with start(tmp_path, told(wandb={})) as run:
        train(run, *range(1, 20))
        began = time.monotonic()
    assert time.monotonic() - began < 3
    assert run.summary["status"] == "finished" and len((run.path / "metrics.jsonl").read_text().splitlines()) == 19
    log = (run.path / "log.txt").read_text()
    assert log.count("wandb is off for the rest of this run") == 1 and said in log


def test_a_tracker_that_takes_nothing_is_given_up_before_the_backlog_takes_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fake_wandb: Any
) -> None:
    fake_wandb("def init(**k): time.sleep(60)")
    monkeypatch.setattr(trackerpipe, "BACKLOG", 10_000)
    with start(tmp_path, told(wandb={})) as run:
        began = time.monotonic()
        train(run, *range(3000))  # 64 KiB are the pipe's
        assert time.monotonic() - began < 2
        assert "takes nothing any more" in (run.path / "log.txt").read_text()


def test_a_tracker_that_cannot_be_started_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackerpipe.sys, "executable", str(tmp_path / "nowhere"))
    with start(tmp_path, told(tensorboard={})) as run:
        train(run, 1)
    assert "tensorboard is off for the rest of this run: cannot be started" in (run.path / "log.txt").read_text()


def test_a_link_in_a_run_folder_leads_no_tracker_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(Terminated), start(tmp_path, told()) as run:
        raise Terminated
    (tmp_path / "elsewhere").mkdir()
    (run.path / "tensorboard").symlink_to(tmp_path / "elsewhere")
    with start(tmp_path, told(tensorboard={}), Resumed(run.path)) as again:
        train(again, 1)
    assert not list((tmp_path / "elsewhere").iterdir())
    assert "tensorboard is off" in (run.path / "log.txt").read_text()


def test_a_killed_run_is_told_at_once_even_while_a_worker_of_it_lives(tmp_path: Path, fake_wandb: Any) -> None:
    ended = tmp_path / "ended"
    fake_wandb(f"def finish(*a, **k): open({str(ended)!r}, 'w').write(str(k))\nRun.finish = finish")
    code = f"""
import os, signal, time
from pathlib import Path
from transferctl import runs
from transferctl.display import Display
from transferctl.tracking import Trackers
with runs.start(Path({str(tmp_path)!r}), "extract", "pets", "", Display(), None, Trackers({{"wandb": {{}}}})) as run:
    run.log_metrics(step=1, split="val", accuracy=0.5)
    if os.fork() == 0:
        time.sleep(8)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)
"""
    env = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{PACKAGE}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, stderr=subprocess.DEVNULL, check=False)
    assert done.returncode == -signal.SIGKILL
    give_up = time.monotonic() + 7
    while not (ended.exists() and ended.read_text()) and time.monotonic() < give_up:
        time.sleep(0.05)
    assert ended.read_text() == "{'exit_code': 137}"


def test_what_a_tracker_prints_reaches_neither_stdout_nor_stderr(tmp_path: Path, spec: Path, fake_wandb: Any) -> None:
    fake_wandb(
        "print('chatter'); print('chatter', file=sys.stderr); os.write(1, b'chatter')\nassert not sys.stdin.read()"
    )
    command = [sys.executable, "-m", "transferctl", "extract", str(spec), "--set", "trackers=wandb", "--json"]
    env = os.environ | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{PACKAGE}"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["status"] == "finished" and "chatter" not in done.stderr and "off for" not in done.stderr
    assert (tmp_path / answer["run"] / "wandb" / "log.txt").read_text().count("chatter") == 3


# -- the run itself ------------------------------------------------------------------------------------


@needs("mlflow", "tensorboard", "wandb")
def test_weights_and_metrics_are_the_same_bits_with_and_without(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    trackers = f"{{tensorboard: {{}}, mlflow: {{uri: {tmp_path / 'mlruns'}}}, wandb: {{mode: offline}}}}"
    found = set()
    for value in ("none", trackers):
        arguments = ["--set", f"trackers={value}", "--set", "cache=none", "--runs-dir", tmp_path / "runs"]
        code, answer = invoke("extract", spec, *arguments)
        assert code == 0
        run = Path(answer["run"])
        files = (run / "checkpoints" / "best" / "model.safetensors", run / "metrics.jsonl", run / "predictions.csv")
        found.add(tuple(hashlib.sha256(file.read_bytes()).hexdigest() for file in files))
    assert len(found) == 1
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], round(line["accuracy"], 5)) for line in metrics if line["split"] == "val"]
    assert scalars(run / "tensorboard")["val/accuracy"] == expected
    assert "off for the rest" not in (run / "log.txt").read_text()

    code, answer = invoke("eval", run, "--runs-dir", tmp_path / "runs")
    assert code == 0 and not (Path(answer["run"]) / "tensorboard").exists()  # a run of others names trackers too

    code, answer = invoke("extract", "--resume", run, "--set", "trackers=none")  # free
    assert code == 0 and answer["run"] == str(run)


def test_a_missing_library_is_told_before_training_with_its_extra(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for verb in ("check", "extract"):
        code, answer = invoke(verb, spec, "--set", "trackers=[mlflow, wandb]")
        assert code == 2 and not list(tmp_path.glob("runs/*"))
        assert (
            "trackers.mlflow: needs the library mlflow, which is not installed: pip install 'transferctl[mlflow]'"
            in answer["error"]
        )
        assert "trackers.wandb: needs the library wandb" in answer["error"]


@pytest.mark.parametrize(
    ("written", "chosen"),
    [
        ("none", []),
        ("wandb", ["wandb"]),
        ("[tensorboard, mlflow]", ["mlflow", "tensorboard"]),
        ("{wandb: {mode: offline}}", ["wandb"]),
    ],
)
def test_trackers_are_written_as_a_name_a_list_or_a_mapping(written: str, chosen: list[str], spec: Path) -> None:
    file = yamlfile.load(spec, [f"trackers={written}"])
    assert list(file.spec.trackers.chosen()) == chosen
    (spec.parent / "again.yaml").write_text(yamlfile.dump(file.spec))
    assert yamlfile.load(spec.parent / "again.yaml").spec.trackers == file.spec.trackers


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("tensorbord", "there is no tensorbord"),
        ("[wandb, 3]", "there is no 3"),
        ("{tensorbord: {}}", "did you mean trackers.tensorboard"),
        ("{wandb: }", "{} takes its defaults"),
        ("{mlflow: {uri: 'https://me:secret@server'}}", "has a password in it"),
        ("{mlflow: {url: x}}", "did you mean trackers.mlflow.uri"),
    ],
)
def test_a_mistake_in_trackers_is_told(written: str, said: str, spec: Path) -> None:
    with pytest.raises(SpecError) as told:
        yamlfile.load(spec, [f"trackers={written}"])
    assert said in str(told.value)


@needs("mlflow", "tensorboard", "wandb")
def test_without_trackers_none_of_their_libraries_is_imported(spec: Path) -> None:
    code = (
        "import sys\nfrom transferctl import cli, runs, tracking, yamlfile\n"
        f"tracking.refuse_missing(yamlfile.load({str(spec)!r}, ['trackers=[tensorboard, mlflow, wandb]']).spec)\n"
        "print(sorted({'tensorboard', 'mlflow', 'wandb', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@needs("mlflow", "tensorboard", "wandb")
def test_check_says_which_trackers_would_be_told(spec: Path) -> None:
    result = CliRunner().invoke(app, ["check", str(spec), "--set", "trackers=[tensorboard, wandb]"])
    assert result.exit_code == 0 and "tensorboard, wandb" in result.output
