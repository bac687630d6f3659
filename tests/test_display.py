"""What people and scripts see: plain lines with a time, bars on a terminal, JSON alone on stdout."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from transferctl import display
from transferctl.display import Display

STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


def test_off_a_terminal_progress_is_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    clock = iter([0.0, 4.0, 11.0, 12.0, 30.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    with Display().progress("training", 100) as progress:
        for _ in range(4):
            progress.advance(10, "loss 0.5")
    first, second = capsys.readouterr().err.splitlines()
    assert re.fullmatch(rf"{STAMP} training: 20/100 images, 2/s, 44 s left loss 0.5", first)
    assert re.fullmatch(rf"{STAMP} training: 40/100 images, 1/s, 45 s left loss 0.5", second)


def test_quietly_hides_results_and_notes_but_neither_warnings_nor_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(display, "PLAIN_INTERVAL_S", 0.0)
    shown = Display()
    with shown.log_to(tmp_path / "log.txt"), shown.quietly(), shown.progress("training", 2) as progress:
        shown.note("chosen")
        shown.result("runs/1")
        shown.warn("odd")
        progress.advance(1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert [line.split(" ", 2)[2][:8] for line in captured.err.splitlines()] == ["warning:", "training"]
    assert "chosen" in (tmp_path / "log.txt").read_text() and "runs/1" in (tmp_path / "log.txt").read_text()


def test_epochs_of_milliseconds_are_shown_once_a_second_and_all_in_the_log(
    monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    clock = iter([10.0, 10.2, 11.1, 11.2])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    shown = Display()
    with shown.log_to(tmp_path / "log.txt"):
        for epoch in (1, 2, 3, 4):
            shown.epoch(f"epoch {epoch}", last=epoch == 4)
    lines = capsys.readouterr().err.splitlines()
    assert [line[-1] for line in lines] == ["1", "3", "4"]
    assert len((tmp_path / "log.txt").read_text().splitlines()) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_that_takes_nothing_is_an_error_that_can_still_be_told(capsys: Any) -> None:
    shown = Display()
    shown.note("said before the log was there")
    with pytest.raises(OSError, match="No space left"), shown.log_to(Path("/dev/full")):
        pass
    shown.error("the disk is full")
    assert capsys.readouterr().err.endswith("error: the disk is full\n")


def test_results_go_to_stdout_and_all_else_to_stderr(capsys: Any) -> None:
    shown = Display()
    shown.note("chosen")
    shown.warn("odd")
    shown.table("Classes", ["class", "n"], [["ants", 1234]])
    shown.result("runs/1")
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == "runs/1"
    assert "ants    1,234" in captured.out
    assert [re.sub(STAMP, "", line).strip() for line in captured.err.splitlines()] == ["chosen", "warning: odd"]


def test_with_json_stdout_has_the_object_alone(capsys: Any) -> None:
    shown = Display(as_json=True)
    shown.table("Classes", ["class", "n"], [["ants", 1]])
    shown.result("runs/1")
    shown.json({"a": 1})
    assert capsys.readouterr().out == '{"a": 1}\n'


def test_a_name_moves_no_cursor_and_begins_no_line_of_its_own(capsys: Any, tmp_path: Path) -> None:
    name = "a\x1b[2J\u202eb\r\x0b\u2028c"
    shown = Display()
    with shown.log_to(tmp_path / "log.txt"):
        for say in (shown.note, shown.warn, shown.error, shown.result):
            say(name)
        shown.note("one\ntwo")
        shown.table(name, [name], [[name]])
    captured = capsys.readouterr()
    for text in (captured.out, captured.err, (tmp_path / "log.txt").read_text(encoding="utf-8")):
        assert r"a\x1b[2J\u202eb\r\x0b\u2028c" in text
        assert all(character.isprintable() for character in text.replace("\n", "").replace("\t", ""))
    assert r"one\ntwo" in captured.err
    assert len(captured.err.splitlines()) == 4


def test_markup_in_a_class_name_is_shown_not_obeyed(capsys: Any) -> None:
    Display().table("T", ["class"], [["[red]ants[/red]"]])
    assert "[red]ants[/red]" in capsys.readouterr().out


def test_remarks_are_wrapped_on_a_terminal_alone(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(["twelve bytes"] * 12)
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "40"}
    program = f"from transferctl.display import Display; Display().remark({words!r})"
    subprocess.run(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, check=True
    )
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(theirs)
    os.close(ours)
    assert len(lines) > 3 and max(map(len, lines)) <= 40 and " ".join(map(str.strip, lines)) == words
    monkeypatch.setenv("COLUMNS", "40")
    with (quiet := Display()).log_to(tmp_path / "log.txt"):
        quiet.remark(words)
    assert capsys.readouterr().out == (tmp_path / "log.txt").read_text() == f"{words}\n"


def test_a_terminal_gets_a_bar_with_rate_and_losses_and_the_run_folder_last(spec: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "transferctl", "finetune", spec, "--runs-dir", tmp_path / "runs"]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux: the other side is closed
            break
        if not part:
            break
        said += part
    assert process.wait() == 0, said
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())
    assert re.search(r"training .*108/108 [\d,]+ images/s epoch 3/3 loss \d\.\d{4} 0:00:00", text)
    assert text.strip().splitlines()[-1] == str(next((tmp_path / "runs").iterdir()))
    assert not re.search(rf"^{STAMP}", text, re.MULTILINE)
