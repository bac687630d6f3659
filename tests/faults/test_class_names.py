"""Class names that are no words go through training and evaluation as they are, and lead nowhere."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sound import SPEC, images

NAMES = ["..", "../../up", "/etc/passwd", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", 'say "b", c', "%s{0}\\n"]


def test_odd_class_names_come_back_exactly_and_make_no_path(
    tmp_path: Path, call: Callable[..., dict[str, Any]]
) -> None:
    images(tmp_path / "data", *(str(i) for i in range(len(NAMES))))
    with (tmp_path / "m.csv").open("w", newline="") as file:
        rows = [(f"data/{i}/{j}.png", name) for i, name in enumerate(NAMES) for j in range(4)]
        csv.writer(file).writerows([("path", "label"), *rows])
    (tmp_path / "spec.yaml").write_text(f"{SPEC}target: {{train: m.csv, val: 0.5}}\nepochs: 1\n")
    before = {path for path in tmp_path.rglob("*") if "runs" not in path.parts}
    run = Path(call("extract", tmp_path / "spec.yaml", "--runs-dir", tmp_path / "runs")["run"])
    scored = Path(call("eval", run, "--runs-dir", tmp_path / "runs")["run"])
    for folder in (run, scored):
        with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            assert {row["label"] for row in csv.DictReader(file)} == set(NAMES)
        assert json.loads((folder / "classes.json").read_text())["target"] == sorted(NAMES)
        assert all(c.isprintable() or c in "\n\t" for c in (folder / "log.txt").read_text(encoding="utf-8"))
    assert {path for path in tmp_path.rglob("*") if "runs" not in path.parts} == before
    assert {path.parent for path in (run, scored)} == {tmp_path / "runs"}
