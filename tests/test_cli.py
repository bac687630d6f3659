"""What scripts rely on: exit codes, one JSON object, no traceback, a lean start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from transferctl import __version__, cli, signals
from transferctl.cli import app
from transferctl.errors import OutOfTime

VERBS = [
    "check",
    "pretrain",
    "extract",
    "finetune",
    "sweep",
    "rank",
    "eval",
    "predict",
    "report",
    "export",
    "init",
    "runs",
    "compare",
    "advise",
    "schema",
]
DIGITS = "{dataset: digits, classes: [0, 1], per_class: 4}"
NO_WEIGHTS = "{name: resnet18, weights: none}"


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """The commands install their own handler; the test process keeps the one it had."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGPIPE)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def spec_file(tmp_path: Path) -> Callable[..., Path]:
    def write(*, backbone: str = NO_WEIGHTS, train: object = DIGITS, val: object = 0.5, extra: str = "") -> Path:
        path = tmp_path / "spec.yaml"
        path.write_text(
            f"backbone: {backbone}\ntarget: {{train: {train}, val: {val}}}\n"
            f"preprocess: {{resize: 32, crop: 32}}\nworkers: 0\nepochs: 1\n{extra}"
        )
        return path

    return write


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def failure(code: int, *arguments: object) -> str:
    """The message of a failing command, which is the same with and without --json."""
    plain, as_json = run(*arguments), run(*arguments, "--json")
    answer: dict[str, Any] = json.loads(as_json.stdout)
    assert len(as_json.stdout.splitlines()) == 1
    assert (plain.exit_code, as_json.exit_code, answer["exit_code"]) == (code, code, code), plain.output
    assert answer["status"] == "failed"
    assert "Traceback" not in plain.output + as_json.output
    for line in answer["error"].splitlines():
        assert f"error: {line}" in plain.stderr
    return str(answer["error"])


# -- help and start -----------------------------------------------------------------------------------


def test_every_verb_is_tested_here():
    assert sorted(VERBS) == sorted(
        name for name, command in get_command(app).commands.items() if not hasattr(command, "commands")
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_an_example(verb):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert f"Example: transferctl {verb}" in " ".join(result.output.split())


def test_version_is_the_packages():
    result = run("--version")
    assert (result.exit_code, result.stdout) == (0, f"transferctl {__version__}\n")


def heavy_modules_after(snippet: str) -> str:
    code = (
        f"import contextlib, io, sys\n{snippet}\n"
        "print(sorted({'torch', 'torchvision', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_help_loads_nothing_heavy():
    snippet = "from transferctl.cli import app\ntry: app(['--help'])\nexcept SystemExit: pass"
    assert heavy_modules_after(snippet) == "[]"


def test_a_spec_is_judged_without_torch(spec_file):
    path = spec_file(extra="epochz: 3\n")
    snippet = f"from transferctl.cli import app\ntry: app(['extract', {str(path)!r}])\nexcept SystemExit as e: assert e.code == 2"
    assert heavy_modules_after(snippet) == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extrakt"], "No such command 'extrakt'. Did you mean 'extract', 'export'?; see transferctl --help"),
        (["check"], "Missing argument 'SPEC'; see transferctl check --help"),
        (["extract"], "name the SPEC, or a run to go on with by --resume RUN; see transferctl extract --help"),
        (["extract", "x.yaml", "--allow", "data"], "--allow: is for --resume RUN"),
        (["eval", "run", "--fail"], "--fail"),
    ],
)
def test_wrong_usage_exits_2_in_one_line_and_one_json_object(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr(sys, "argv", ["transferctl", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    answer = json.loads(captured.out)
    assert (ended.value.code, answer["exit_code"], answer["status"]) == (2, 2, "failed")
    assert message in answer["error"]
    assert captured.err.endswith(f"error: {answer['error']}\n")


@pytest.mark.parametrize(
    ("words", "offered"), [("transferctl ext", "extract"), ("transferctl finetune --fr", "--from")]
)
def test_a_shell_completes_verbs_and_options(words, offered):
    asked = {"_TRANSFERCTL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    command = [sys.executable, "-c", "from transferctl.cli import main; main()"]
    done = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [offered]


# -- 2: the spec --------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["check", "pretrain", "extract", "finetune"])
def test_spec_fault_exits_2_with_file_and_line(spec_file, verb):
    path = spec_file(extra="epochz: 3\n")
    assert failure(2, verb, path) == f"{path}:6: epochz: is not a setting; did you mean epochs?"


def test_faulty_set_exits_2_naming_the_flag(spec_file):
    assert failure(2, "check", spec_file(), "--set", "seed=x").startswith("--set seed=x: seed: must be")


def test_bytes_that_are_no_text_do_not_break_the_message(spec_file):
    assert "\\udcff" in failure(2, "check", spec_file(), "--set", "name=\udcff")


def test_unknown_backbone_exits_2_with_the_nearest(spec_file):
    path = spec_file(backbone="{name: resnet81, weights: none}")
    message = failure(2, "check", path)
    assert message.startswith(f"{path}:1: backbone.name: ")
    assert "did you mean resnet" in message


@pytest.mark.parametrize("flag", ["--split", "--checkpoint"])
def test_eval_names_the_choices(tmp_path, flag):
    assert failure(2, "eval", tmp_path, flag, "wrong").startswith(f"{flag} wrong: must be one of")


# -- 3: data ------------------------------------------------------------------------------------------


def test_missing_folder_exits_3(spec_file, tmp_path):
    assert failure(3, "check", spec_file(train="nowhere")).startswith(f"{tmp_path / 'nowhere'}: no such folder")


def test_empty_folder_exits_3(spec_file, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "has no class folders" in failure(3, "check", spec_file(train="empty"))


def test_single_class_exits_3(spec_file, image_folder):
    assert "class" in failure(3, "check", spec_file(train=image_folder("one", ants=4)))


def test_class_only_in_val_exits_3_by_name(spec_file, image_folder):
    train, val = image_folder("train", ants=2, bees=2), image_folder("val", ants=2, wasps=2)
    assert "wasps" in failure(3, "check", spec_file(train=train, val=val))


# -- 4: weights ---------------------------------------------------------------------------------------


def test_weights_of_another_architecture_exit_4(spec_file, tmp_path):
    from safetensors.torch import save_file
    from torchvision.models import squeezenet1_1

    save_file(squeezenet1_1(weights=None).state_dict(), tmp_path / "other.safetensors")
    path = spec_file(backbone="{name: resnet18, weights: other.safetensors}")
    assert str(tmp_path / "other.safetensors") in failure(4, "check", path)


@pytest.mark.parametrize("name", ["text.pth", "text.safetensors", "text.txt", "missing.pth"])
def test_a_file_that_is_no_weights_exits_4(spec_file, tmp_path, name):
    if not name.startswith("missing"):
        (tmp_path / name).write_text("these are no weights\n")
    path = spec_file(backbone=f"{{name: resnet18, weights: {name}}}")
    assert failure(4, "check", path).startswith(str(tmp_path / name))


def test_eval_of_a_folder_that_is_no_run_exits_4(tmp_path):
    assert str(tmp_path) in failure(4, "eval", tmp_path)


# -- 5: resources -------------------------------------------------------------------------------------


def test_absent_gpu_exits_5(spec_file):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA GPU")
    assert "no usable CUDA GPU" in failure(5, "check", spec_file(extra="device: cuda\n"))


def test_runs_dir_that_is_a_file_exits_5(spec_file, tmp_path):
    (tmp_path / "occupied").write_text("")
    message = failure(5, "extract", spec_file(), "--runs-dir", tmp_path / "occupied")
    assert str(tmp_path / "occupied") in message


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which not even root may write")
def test_no_permission_for_runs_exits_5_with_the_fix(spec_file):
    message = failure(5, "extract", spec_file(), "--runs-dir", "/sys/transferctl-runs")
    assert message.startswith("/sys/transferctl-runs: cannot write: ")
    assert message.endswith("or choose another folder with --runs-dir")


def test_no_space_for_runs_exits_5_and_says_so(spec_file, tmp_path):
    """A real file system of 8 MiB: the spec and the log fit, a checkpoint of 45 MB does not, which is seen before the
    training."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small file system")
    try:
        result = run("extract", spec_file(), "--runs-dir", small, "--json")
        (summary,) = (json.loads(path.read_text()) for path in small.glob("*/summary.json"))
        assert not list(small.glob("*/checkpoints/*"))
    finally:
        subprocess.run(["umount", small], check=True)
    answer = json.loads(result.stdout)
    assert "checkpoints of 44.8 MB each may take" in answer["error"] and "free; free some space" in answer["error"]
    assert (result.exit_code, summary["status"], summary["exit_code"]) == (5, "failed", 5)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_stdout_that_takes_no_more_exits_5_without_traceback(spec_file, flags):
    command = [sys.executable, "-m", "transferctl", "check", spec_file(), *flags]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].endswith("error: stdout: cannot write: No space left on device")
    assert "Traceback" not in done.stderr


def test_a_closed_pipe_exits_5_without_traceback(spec_file):
    process = subprocess.Popen([sys.executable, "-m", "transferctl", "check", spec_file()], stdout=-1, stderr=-1)
    process.stdout.close()
    with process.stderr:
        said = process.stderr.read().decode()
    assert process.wait() == 5
    assert "stdout: cannot write: Broken pipe" in said and "Traceback" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_stderr_that_takes_no_more_exits_5(spec_file):
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "transferctl", "check", spec_file()]
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 5


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_stream_that_is_closed_from_the_start_stops_nothing(spec_file, closed):
    command = ["bash", "-c", f'exec "$0" "$@" {closed}>&-', sys.executable, "-m", "transferctl", "check", spec_file()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert ("check: training can start" in done.stdout) == (closed == "2")


def test_a_locale_without_greek_gets_escapes(spec_file):
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "transferctl", "check", spec_file()]
    done = subprocess.run(command, env=os.environ | ascii_only, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert r"min over \u03b8 of L_T" in done.stdout


# -- signals ------------------------------------------------------------------------------------------


@pytest.fixture
def heeds_sigint():
    """SIGINT as on a terminal, for this process and those that it starts: in the background of a shell script it is
    ignored, and whoever starts the tests from there would see them wait in vain."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_that_comes_where_an_exception_would_be_lost_is_raised_after_it(heeds_sigint):
    done = False
    with pytest.raises(KeyboardInterrupt), signals.held():
        signal.raise_signal(signal.SIGINT)
        done = True
    assert done and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_goes_before_a_signal_that_came_with_it_which_is_raised_next(heeds_sigint):
    """A step that failed half-way must not look like one that was made whole."""
    with signals.handled():
        with pytest.raises(ZeroDivisionError), signals.held():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError
        with pytest.raises(KeyboardInterrupt), signals.held():
            pass
        with signals.held():
            pass


def test_what_has_so_many_seconds_is_ended_after_them_and_not_in_the_middle_of_a_step():
    started, whole = time.monotonic(), 0
    with pytest.raises(OutOfTime), signals.ending_after(0.3):
        while time.monotonic() < started + 30:
            with signals.held():
                time.sleep(0.02)
                whole += 1
            assert time.monotonic() < started + 5
    assert whole >= 5 and 0.3 <= time.monotonic() - started < 5
    with signals.ending_after(0.1):
        pass
    time.sleep(0.15)  # what ended in time is not ended later


def test_an_interrupt_goes_before_the_end_of_the_time(heeds_sigint):
    with signals.handled(), pytest.raises(KeyboardInterrupt), signals.ending_after(0.1), signals.held():
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_process_group_ends_with_its_code_and_no_traceback(
    image_folder, tmp_path, signum, code, heeds_sigint
):
    """As a terminal or a CI runner sends it: to the workers too."""
    train = image_folder("train", a=40, b=40)
    (tmp_path / "spec.yaml").write_text(
        f"backbone: {NO_WEIGHTS}\ntarget: {{train: {train}, val: 0.5}}\nepochs: 1000\nworkers: 2\n"
        "preprocess: {resize: 32, crop: 32}\n"
    )
    command = [sys.executable, "-m", "transferctl", "finetune", tmp_path / "spec.yaml", "--runs-dir", tmp_path / "runs"]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoints/last")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert "Traceback" not in said
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/*/summary.json"))
    assert (summary["status"], summary["exit_code"]) == ("interrupted", code)


def test_a_killed_worker_exits_5_with_advice(image_folder, tmp_path):
    train = image_folder("train", a=40, b=40)
    (tmp_path / "spec.yaml").write_text(
        f"backbone: {NO_WEIGHTS}\ntarget: {{train: {train}, val: 0.5}}\nepochs: 1000\nworkers: 2\n"
        "preprocess: {resize: 32, crop: 32}\n"
    )
    command = [sys.executable, "-m", "transferctl", "finetune", tmp_path / "spec.yaml", "--runs-dir", tmp_path / "runs"]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoints/last")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5, said
    assert "a process that reads images was killed" in said and "workers: 0" in said
    assert "Traceback" not in said


# -- 0 ------------------------------------------------------------------------------------------------


def test_check_passes_and_answers_one_json_object(spec_file):
    result = run("check", spec_file(), "--json")
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    assert set(json.loads(result.stdout)["classes"]) == {"0", "1"}
