"""`rank`: which backbone, on the target's training data; nothing is fine-tuned, what fails is a row."""

from __future__ import annotations

import gc
import json
import os
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import models
from typer.testing import CliRunner

from transferctl import assessment, crossvalidation, loaders, pipeline, plugins, rank, yamlfile
from transferctl.cli import app
from transferctl.decodedonce import DecodedOnce
from transferctl.display import Display
from transferctl.errors import CheckpointError
from transferctl.evidence import Evidence, Undefined
from transferctl.preprocess import Preprocessing

SPEC = """
name: tiny
backbone: {name: resnet18, weights: none}
candidates: ['mobilenet_v3_small:none', 'squeezenet1_1:none']
preprocess: {resize: 32, crop: 32}
target: {train: {dataset: digits, classes: [0, 1, 2], per_class: 12}, val: 0.25}
workers: 0
"""
QUICK = 1e-3  # seconds: how long speed is measured


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transferctl.costs.MEASURED_S", QUICK)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    (tmp_path / "digits.yaml").write_text(SPEC)
    return tmp_path / "digits.yaml"


@pytest.fixture
def ranked(digits: Path, tmp_path: Path, call: Any) -> Callable[..., dict[str, Any]]:
    """ranked("resnet18:none", …): the summary for these backbones, or those of the spec."""

    def run(*backbones: str, settings: tuple[str, ...] = (), spec: Path = digits) -> dict[str, Any]:
        words = [word for text in backbones for word in ("--backbone", text)]
        words += [word for text in settings for word in ("--set", text)]
        return call("rank", spec, *words, "--runs-dir", tmp_path / "runs")

    return run


def by_label(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["backbone"]: row for row in answer["backbones"]}


def save_resnet18(path: Path, seed: int = 0, outputs: int = 7, change: Callable[[Any], None] | None = None) -> Path:
    torch.manual_seed(seed)
    net = models.resnet18(num_classes=outputs)
    if change:
        with torch.no_grad():
            change(net)
    torch.save(net.state_dict(), path)
    return path


# -- what is found ------------------------------------------------------------------------------------


def test_each_backbone_has_its_accuracies_scores_costs_and_place(ranked: Any) -> None:
    answer = ranked()
    assert (answer["n"], answer["classes"], answer["folds"], answer["failed"]) == (27, 3, 5, {})
    rows = answer["backbones"]
    assert sorted(by_label(answer)) == ["mobilenet_v3_small:none", "resnet18:none", "squeezenet1_1:none"]
    assert [row["accuracy"] for row in rows] == sorted((row["accuracy"] for row in rows), reverse=True)
    for row in rows:
        assert row["accuracy_low"] < row["accuracy"] <= row["accuracy_high"] <= 1 and row["knn_n"] == 27
        assert 1 <= row["rank"][0] <= row["rank"][1] <= 3
        assert row["images_per_s"] > 0 and row["gflop"] > 0 and row["crop"] == 32
        assert set(row["scores"]) == set(plugins.names("scores"))
        assert row["cache_bytes"] == 27 * 4 * row["feature_dim"]
    assert by_label(answer)["resnet18:none"]["parameters"] == 11_176_512  # torchvision's 11,689,512 less fc's 513,000
    assert answer["advice"]["text"] and answer["accuracy"] == rows[0]["accuracy"]


def test_the_run_folder_has_all_of_it_and_its_spec_ranks_the_same_again(ranked: Any) -> None:
    answer = ranked("squeezenet1_1:none", "resnet18:none")
    run = Path(answer["run"])
    names = {"spec.yaml", "environment.json", "classes.json", "summary.json", "log.txt", "metrics.jsonl", "rank.svg"}
    assert names <= {path.name for path in run.iterdir()} and "-rank-tiny" in run.name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["backbone"] for line in lines] == ["squeezenet1_1:none", "resnet18:none"]
    again = ranked(spec=run / "spec.yaml")
    assert {label: row["accuracy"] for label, row in by_label(again).items()} == {
        label: row["accuracy"] for label, row in by_label(answer).items()
    }
    assert "Backbones by a linear probe" in (run / "log.txt").read_text()
    assert "squeezenet1_1:none" in (run / "rank.svg").read_text()


def test_the_probe_is_as_good_as_scikit_learns_on_the_same_features_and_folds(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any
) -> None:
    """Standardised by the other folds, as many α, each by its own inner choice: within two of 27 samples."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    seen: dict[str, Any] = {}
    kept = crossvalidation.cross_validate

    def listening(samples: Any, fold_of: np.ndarray, **settings: Any) -> Any:
        seen.update(
            x=torch.cat([batch.inputs for batch in samples.passes(64)]).numpy(), y=samples.labels, folds=fold_of
        )
        return kept(samples, fold_of, **settings)

    monkeypatch.setattr(crossvalidation, "cross_validate", listening)
    answer = call("rank", digits, "--backbone", "resnet18:none", "--runs-dir", tmp_path)
    x, y, folds = seen["x"], seen["y"], seen["folds"]
    best = 0.0
    for c in (1e-3, 1e-2, 1e-1, 1.0, 10.0):
        right = np.zeros(len(y), bool)
        for fold in range(folds.max() + 1):
            model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
            right[folds == fold] = (
                model.fit(x[folds != fold], y[folds != fold]).predict(x[folds == fold]) == y[folds == fold]
            )
        best = max(best, float(right.mean()))
    assert answer["accuracy"] == pytest.approx(best, abs=2.01 / 27)


def test_a_source_head_gives_what_needs_one_and_its_lack_is_said(ranked: Any, tmp_path: Path) -> None:
    file = save_resnet18(tmp_path / "w.pth")
    rows = by_label(ranked(f"resnet18:{file}", "resnet18:none"))
    assert rows["w.pth"]["scores"]["leep"] < 0 and rows["w.pth"]["scores"]["nce"] <= 0 and not rows["w.pth"]["empty"]
    assert rows["resnet18:none"]["scores"]["leep"] is None
    assert rows["resnet18:none"]["empty"] == dict.fromkeys(("leep", "nce"), "random weights have no head")


def test_leep_is_of_the_heads_own_probabilities(ranked: Any, tmp_path: Path) -> None:
    """A head whose outputs do not depend on the image tells nothing: LEEP is −H(Y), here −ln 3."""

    def constant(net: Any) -> None:
        net.fc.weight.zero_()

    row = ranked(f"resnet18:{save_resnet18(tmp_path / 'w.pth', change=constant)}")["backbones"][0]
    assert row["scores"]["leep"] == pytest.approx(-np.log(3), abs=1e-6)


def test_a_head_on_maps_leaves_those_columns_empty(ranked: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.save(models.squeezenet1_1(num_classes=5).state_dict(), tmp_path / "s.pth")
    row = ranked(f"squeezenet1_1:{tmp_path / 's.pth'}")["backbones"][0]
    assert row["scores"]["leep"] is None and "feature maps" in row["empty"]["leep"]
    assert row["scores"]["logme"] is not None


@pytest.fixture
def one_score(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Evidence], float]], None]:
    """one_score(function): the only score there is."""

    def put(score: Callable[[Evidence], float]) -> None:
        names, load = plugins.names, plugins.load
        plugin = SimpleNamespace(LABEL="Fake", NEEDS_SOURCE_HEAD=False, score=score)
        monkeypatch.setattr(plugins, "names", lambda folder: ["fake"] if folder == "scores" else names(folder))
        monkeypatch.setattr(plugins, "load", lambda folder, name: plugin if folder == "scores" else load(folder, name))

    return put


def test_a_score_sees_the_training_samples_in_order(ranked: Any, one_score: Any) -> None:
    def score(evidence: Evidence) -> float:
        labels = torch.cat([batch.labels for batch in evidence.features.passes(10)])
        assert (labels.numpy() == evidence.features.labels).all()
        return float(len(labels))

    one_score(score)
    assert ranked("resnet18:none")["backbones"][0]["scores"] == {"fake": 27}


@pytest.mark.parametrize("value", ["undefined", "nan"])
def test_a_score_that_is_not_defined_is_an_empty_cell_with_its_reason(ranked: Any, one_score: Any, value: str) -> None:
    def score(evidence: Evidence) -> float:
        if value == "undefined":
            raise Undefined("the moon is full")
        return float("nan")

    one_score(score)
    row = ranked("resnet18:none")["backbones"][0]
    assert row["scores"] == {"fake": None}
    assert row["empty"]["fake"] == ("the moon is full" if value == "undefined" else "it is nan")


# -- faults -------------------------------------------------------------------------------------------


def test_what_cannot_be_loaded_is_told_with_its_reason_and_the_rest_are_ranked(ranked: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    misfit = save_resnet18(tmp_path / "r18.pth")
    answer = ranked(
        "resnet18:none", "resnet81", f"resnet18:{tmp_path}/broken.pth", f"resnet34:{misfit}", "vgg11:nope.pth"
    )
    assert list(by_label(answer)) == ["resnet18:none"]
    reasons = answer["failed"]
    assert "did you mean" in reasons["resnet81"] and "do not fit resnet34" in reasons["r18.pth"]
    assert "no torch file" in reasons["broken.pth"] and "no such weights" in reasons["nope.pth"]


def test_a_long_reason_is_whole_in_json_and_shortened_for_people(
    digits: Path, tmp_path: Path, ranked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, reason = pipeline.load_backbone, " ".join(f"cause-{i}," for i in range(500)) + " as found; do this"

    def failing(spec: Any) -> Any:
        if spec.backbone.name == "vgg11":
            raise CheckpointError(reason)
        return load(spec)

    monkeypatch.setattr(pipeline, "load_backbone", failing)
    answer = ranked("vgg11:none", "resnet18:none")
    kept = json.loads((Path(answer["run"]) / "summary.json").read_text())
    assert answer["failed"] == kept["failed"] == {"vgg11:none": reason}
    text = shown(80, "rank", digits, "--backbone", "vgg11:none", "--backbone", "resnet18:none", "--runs-dir", tmp_path)
    (line,) = [line for line in text.splitlines() if line.startswith("not ranked")]
    assert len(line) < 1100 and line.endswith("…; do this")


def test_a_library_that_is_not_there_is_told_by_its_name(ranked: Any) -> None:
    answer = ranked("resnet18:none", "foo/resnet18")
    assert list(by_label(answer)) == ["resnet18:none"]
    reason = "there is no library foo (there are timm, torchvision), and no file or run folder foo/resnet18"
    assert answer["failed"] == {"foo/resnet18": f"backbone.name: {reason}"}


def test_features_that_are_no_numbers_are_a_fault_of_that_backbone(ranked: Any, tmp_path: Path) -> None:
    def overflow(net: Any) -> None:
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            layer[0].bn2.weight.fill_(1e30)

    file = save_resnet18(tmp_path / "huge.pth", change=overflow)
    answer = ranked(f"resnet18:{file}", "resnet18:none")
    assert list(by_label(answer)) == ["resnet18:none"] and "not finite" in answer["failed"]["huge.pth"]


def test_memory_that_does_not_suffice_is_a_fault_of_that_backbone(ranked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    load = pipeline.load_backbone

    def hungry(spec: Any) -> Any:
        if spec.backbone.name == "vgg11":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory")
        return load(spec)

    monkeypatch.setattr(pipeline, "load_backbone", hungry)
    answer = ranked("vgg11:none", "resnet18:none")
    assert list(by_label(answer)) == ["resnet18:none"] and "memory" in answer["failed"]["vgg11:none"]


def test_a_bug_is_not_taken_for_a_fault_of_a_backbone(
    digits: Path, tmp_path: Path, monkeypatch: Any, invoke: Any
) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "load_backbone", faulty)
    assert invoke("rank", digits, "--runs-dir", tmp_path)[0] == 1


def test_debug_shows_where_a_bug_is(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty_loading(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(pipeline, "load_backbone", faulty_loading)
    told = CliRunner().invoke(app, ["rank", str(digits), "--runs-dir", str(tmp_path), "--debug"]).stderr
    assert "Traceback" in told and "in faulty_loading" in told


def test_where_none_can_be_ranked_it_exits_4_and_names_each(digits: Path, tmp_path: Path, invoke: Any) -> None:
    code, answer = invoke(
        "rank", digits, "--backbone", "resnet81", "--backbone", "vgg11:no.pth", "--runs-dir", tmp_path
    )
    assert (code, answer["status"]) == (4, "failed")
    assert (
        "resnet81: " in answer["error"]
        and "no.pth: " in answer["error"]
        and set(answer["failed"]) == {"resnet81", "no.pth"}
    )


def test_one_sample_of_a_class_is_told_before_anything_is_loaded(
    tmp_path: Path, image_folder: Any, invoke: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_folder("train", ants=4, bees=1)
    image_folder("val", ants=1, bees=1)
    (tmp_path / "s.yaml").write_text("backbone: {name: resnet18, weights: none}\ntarget: {train: train, val: val}\n")
    monkeypatch.setattr(pipeline, "load_backbone", lambda spec: pytest.fail("loaded"))
    code, answer = invoke("rank", tmp_path / "s.yaml", "--runs-dir", tmp_path / "runs")
    assert code == 3 and "one sample of bees" in answer["error"] and not (tmp_path / "runs").exists()


def test_an_image_that_cannot_be_read_stops_it_as_elsewhere_or_is_skipped(
    spec: Path, tmp_path: Path, invoke: Any
) -> None:
    for name in ("0.png", "1.png"):
        (tmp_path / "train" / "ants" / name).write_bytes(b"no image")
    words = ("rank", spec, "--backbone", "resnet18:none", "--runs-dir", tmp_path / "runs")
    code, answer = invoke(*words)
    assert code == 3 and "2 unreadable samples" in answer["error"]
    code, answer = invoke(*words, "--set", "on_bad_sample=skip")
    assert (code, answer["n"], answer["skipped"]) == (0, 34, 2)


def test_images_that_are_copies_of_others_are_counted_and_told(spec: Path, tmp_path: Path) -> None:
    ants = tmp_path / "train" / "ants"
    for i in (1, 2):
        (ants / f"copy-{i}.png").write_bytes((ants / "0.png").read_bytes())
    words = ("rank", spec, "--backbone", "resnet18:none", "--runs-dir", tmp_path / "runs")
    text = shown(100, *words)
    assert "2 images of 38 are copies of another" in text and "flatter" in text
    (ants / "copy-1.png").unlink()
    (ants / "copy-2.png").unlink()
    assert "of another" not in shown(100, *words)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_validation_and_test_data_are_not_looked_at(spec: Path, tmp_path: Path, invoke: Any, policy: str) -> None:
    """Not an image of them can be read, and the test folder is not there."""
    for path in (tmp_path / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    code, answer = invoke(
        "rank",
        spec,
        "--set",
        "target.test=nowhere",
        "--set",
        f"on_bad_sample={policy}",
        "--runs-dir",
        tmp_path / "runs",
    )
    assert (code, answer["n"], answer["skipped"]) == (0, 36, 0)
    environment = json.loads((Path(answer["run"]) / "environment.json").read_text())
    assert list(environment["data"]) == ["target.train"]


def test_an_interrupted_ranking_keeps_what_it_found(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Any
) -> None:
    load = pipeline.load_backbone

    def pressed(spec: Any) -> Any:
        if spec.backbone.name == "squeezenet1_1":
            raise KeyboardInterrupt
        return load(spec)

    monkeypatch.setattr(pipeline, "load_backbone", pressed)
    code, answer = invoke("rank", digits, "--runs-dir", tmp_path)
    assert (code, answer["status"]) == (130, "interrupted")
    assert list(by_label(answer)) == ["resnet18:none", "mobilenet_v3_small:none"]
    assert json.loads((Path(answer["run"]) / "summary.json").read_text())["backbones"] == answer["backbones"]


# -- how it goes about it -----------------------------------------------------------------------------


def test_one_backbone_is_held_at_a_time(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As each is loaded, nothing is left of those before it: neither networks nor features."""
    load, compute = pipeline.load_backbone, assessment.features.compute
    alive: list[weakref.ref[Any]] = []
    left: list[int] = []

    def counting(spec: Any) -> Any:
        gc.collect()
        left.append(sum(reference() is not None for reference in alive))
        start = load(spec)
        alive.append(weakref.ref(start.backbone))
        return start

    def tables(*arguments: Any, **settings: Any) -> Any:
        table = compute(*arguments, **settings)
        alive.extend([weakref.ref(table), weakref.ref(table.rows), weakref.ref(table.stages)])
        return table

    monkeypatch.setattr(pipeline, "load_backbone", counting)
    monkeypatch.setattr(assessment.features, "compute", tables)
    file = save_resnet18(tmp_path / "w.pth")
    texts = ["resnet18:none", "mobilenet_v3_small:none", f"resnet18:{file}", f"resnet34:{file}", "squeezenet1_1:none"]
    summary = rank.run(yamlfile.load(digits).spec, texts, tmp_path / "runs", Display(as_json=True))
    assert len(summary["backbones"]) == 4 and left == [0] * 5 and len(alive) == 4 * 4


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each pass decodes, from now on."""
    passes, view_batches = list[int](), loaders.view_batches

    def counting(split: Any, rows: np.ndarray, *others: Any, **settings: Any) -> Iterator[Any]:
        passes.append(len(rows))
        return view_batches(split, rows, *others, **settings)

    monkeypatch.setattr(loaders, "view_batches", counting)
    return passes


def test_features_are_those_of_extract_from_the_same_cache(
    digits: Path, ranked: Any, call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    call("extract", digits, *words)
    computed = []
    fill = assessment.features._fill
    monkeypatch.setattr(assessment.features, "_fill", lambda *a: (computed.append(a[0].split.name), fill(*a))[1])
    ranked("resnet18:none")
    assert computed == []
    ranked("mobilenet_v3_small:none")
    assert computed == ["train"]


def test_images_are_decoded_once_for_backbones_that_see_the_same_pixels(
    ranked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = decoded(monkeypatch)
    ranked("resnet18:none", "mobilenet_v3_small:none", "squeezenet1_1:none")
    alone = sum(passes)
    passes.clear()
    ranked("resnet34:none")
    assert alone == 27 and sum(passes) == 27


def test_pixels_are_kept_within_a_limit_and_are_the_same(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = yamlfile.load(digits).spec
    train = pipeline.load_training(spec, Display(as_json=True)).train
    task, rows = pipeline.task_of(spec), np.arange(len(train))
    passes = decoded(monkeypatch)

    def pixels(decode: Any, side: int) -> torch.Tensor:
        wanted = Preprocessing(side, side)
        return torch.cat([batch.inputs for batch in decode(train, rows, None, task, wanted, batch_size=10, workers=0)])

    plain = {side: pixels(loaders.view_batches, side) for side in (8, 16)}
    passes.clear()
    kept = DecodedOnce(limit=27 * 3 * 16 * 16)
    for side, counted in ((8, 27), (8, 0), (16, 27), (16, 0), (8, 27), (16, 27), (20, 27), (20, 27)):
        before = sum(passes)
        found = pixels(kept, side)
        assert sum(passes) - before == counted, (side, passes)
        assert side == 20 or torch.equal(found, plain[side])


def test_the_same_weights_under_two_names_are_told(ranked: Any, tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        save_resnet18(tmp_path / name)
    answer = ranked(f"resnet18:{tmp_path}/*.pth")
    rows = by_label(answer)
    assert answer["advice"]["text"].endswith("a.pth, b.pth compute the same features, and count as one")
    assert "cannot tell" not in answer["advice"]["text"]
    assert rows["b.pth"]["same_as"] == "a.pth" and rows["a.pth"]["same_as"] is None
    assert rows["a.pth"]["accuracy"] == rows["b.pth"]["accuracy"]


def test_weights_that_learnt_from_these_images_are_marked_and_not_advised(
    spec: Path, tmp_path: Path, call: Any
) -> None:
    runs = ("--runs-dir", tmp_path / "runs")
    tuned = call("finetune", spec, "--set", "epochs=1", *runs)["run"]
    onwards = call("extract", spec, "--set", "epochs=1", "--set", f"backbone.weights={tuned}", *runs)["run"]
    plain = call("extract", spec, "--set", "epochs=1", *runs)["run"]
    answer = call("rank", spec, "--backbone", tuned, "--backbone", onwards, "--backbone", plain, *runs)
    rows = {row["weights"]: row for row in answer["backbones"]}
    assert [rows[run]["learnt_from_these"] for run in (tuned, onwards, plain)] == [True, True, False]
    assert all("learnt these very labels" in row["empty"]["leep"] for row in rows.values())
    assert answer["advice"]["backbone"] in (rows[plain]["backbone"], None)


def test_the_head_of_what_was_made_of_a_run_has_learnt_too_and_so_it_has_from_a_part_of_the_data(
    digits: Path, tmp_path: Path, call: Any
) -> None:
    """Interpolated weights and an exported file, on fewer images of each class, and on another class of the same data
    beside one that taught; not on classes that are all others."""
    runs = ("--runs-dir", tmp_path / "runs")
    tuned = call("finetune", digits, "--set", "epochs=1", *runs)["run"]
    between = call("eval", tuned, "--interpolate", "0.5", *runs)["run"]
    call("export", tuned, "--format", "torchvision")
    made = [tuned, between, f"{tuned}/export/model.pth"]
    words = [word for text in made for word in ("--backbone", text)]
    for settings in (("target.train.per_class=6",), ("target.train.classes=[2, 5]",)):
        answer = call("rank", digits, *words, *(w for text in settings for w in ("--set", text)), *runs)
        assert len(answer["backbones"]) == 3 and all(row["learnt_from_these"] for row in answer["backbones"])
        assert all("learnt these very labels" in row["empty"]["leep"] for row in answer["backbones"])
        assert answer["advice"]["backbone"] is None
    answer = call("rank", digits, *words, "--set", "target.train.classes=[5, 6]", *runs)
    assert not any(row["learnt_from_these"] or row["empty"] for row in answer["backbones"])


def test_a_backbone_that_is_pretrained_on_source_is_trained_first(tmp_path: Path, call: Any) -> None:
    (tmp_path / "s.yaml").write_text(
        SPEC.replace("{name: resnet18, weights: none}", "{name: resnet18, weights: source}").replace("workers: 0", "")
        + "source: {train: {dataset: digits, classes: [3, 4], per_class: 8}}\npretrain: {epochs: 1}\n"
    )
    answer = call("rank", tmp_path / "s.yaml", "--runs-dir", tmp_path / "runs")
    row = by_label(answer)["resnet18:source"]
    assert "-pretrain-" in row["origin"] and row["scores"]["leep"] is not None and row["weights"] == "source"
    assert not row["learnt_from_these"]  # of the same data, but of other classes


# -- what people see ----------------------------------------------------------------------------------


def shown(width: int, *words: object) -> str:
    os.environ.pop("COLUMNS", None)
    result = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": str(width)})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_tables_fit_80_columns_and_rows_have_letters_there(digits: Path, tmp_path: Path) -> None:
    text = shown(80, "rank", digits, "--backbone", "mobilenet_v3_small:none", "--backbone", "resnet18:none",
                 "--backbone", "resnet81", "--runs-dir", tmp_path)  # fmt: skip
    tables = text.split("in brackets")[0].splitlines()
    assert max(map(len, tables)) <= 80
    assert sum(line.strip().startswith("A ") for line in tables) == 3 and "mobilenet_v3_small:none" in text
    assert "not ranked: resnet81: " in text and "random weights have no head" in text
    assert text.splitlines()[-2].startswith("advice: ") and text.splitlines()[-1].startswith(str(tmp_path))


def test_long_names_stand_apart_so_that_accuracies_stay_a_table(digits: Path, tmp_path: Path) -> None:
    name = "resnet18-trained-for-a-hundred-epochs-on-other-digits.pth"
    file = save_resnet18(tmp_path / name)
    text = shown(80, "rank", digits, "--backbone", f"resnet18:{file}", "--backbone", "resnet18:none",
                 "--runs-dir", tmp_path)  # fmt: skip
    lines = text.split("in brackets")[0].splitlines()
    assert max(map(len, lines)) <= 80 and not any(line.lstrip().startswith("k-NN, % ") for line in lines)
    assert any(line.split()[0] in "AB" and line.split()[1:] == [name] for line in lines if line.strip())


def test_a_wide_terminal_has_accuracies_and_costs_in_one_table(digits: Path, tmp_path: Path) -> None:
    text = shown(160, "rank", digits, "--backbone", "resnet18:none", "--runs-dir", tmp_path)
    (header,) = [line for line in text.splitlines() if "probe, %" in line]
    assert "GFLOP" in header and "to the first" in header


def test_what_it_does_not_use_is_said_and_nobody_else_uses_candidates(digits: Path, tmp_path: Path) -> None:
    words = ("--set", "epochs=3", "--set", "frozen=layer3", "--runs-dir", tmp_path, "--backbone", "squeezenet1_1:none")
    told = CliRunner().invoke(app, [*map(str, ("rank", digits, *words))]).stderr
    assert "rank (nothing is fine-tuned) does not use: " in told and "frozen" in told and "epochs" in told
    assert "validation and test data are not looked at" in told
    for verb in ("extract", "finetune"):
        command = (verb, digits, "--set", "epochs=1", "--runs-dir", tmp_path)
        told = CliRunner().invoke(app, [*map(str, command)]).stderr
        assert "candidates" in next(line for line in told.splitlines() if "does not use" in line)


def test_a_ranking_is_listed_and_other_verbs_say_that_it_holds_no_model(
    ranked: Any, call: Any, invoke: Any, digits: Path, tmp_path: Path
) -> None:
    run = ranked("resnet18:none")["run"]
    (row,) = call("runs", tmp_path / "runs", "--verb", "rank")["runs"]
    assert (row["state"], row["split"], row["verb"]) == ("finished", "probe", "rank") and "accuracy" in row["metrics"]
    for words in (("report", run), ("compare", run, run), ("eval", run), ("finetune", digits, "--from", run)):
        code, answer = invoke(*words, *(("--runs-dir", tmp_path) if words[0] in ("eval", "finetune") else ()))
        assert code == 4 and "ranks backbones" in answer["error"], words
    answer = invoke("rank", digits, "--backbone", run, "--backbone", "resnet18:none", "--runs-dir", tmp_path)[1]
    assert "ranks backbones" in answer["failed"]["rank-tiny"]


# -- real photographs ---------------------------------------------------------------------------------


@pytest.mark.real
def test_pretrained_weights_are_ranked_above_random_ones_on_photographs(
    tmp_path: Path, real_data: Path, call: Any
) -> None:
    (tmp_path / "ants-bees.yaml").write_text(f"""
backbone: {{name: resnet18, weights: {real_data}/resnet18-tinyimagenet.pth}}
candidates: [{real_data}/resnet18-tinyimagenet-early.pth, 'resnet18:none']
preprocess: {{resize: 72, crop: 64}}
target: {{train: {{path: {real_data}/ants-bees/train, exclude: [imageNotFound.gif]}}, val: {real_data}/ants-bees/val}}
""")
    answer = call("rank", tmp_path / "ants-bees.yaml", "--runs-dir", tmp_path)
    rows = by_label(answer)
    trained, random = rows["resnet18-tinyimagenet.pth"], rows["resnet18:none"]
    assert trained["accuracy_low"] > random["accuracy_high"] and random["rank"] == [3, 3]
    assert trained["knn_accuracy"] > random["knn_accuracy"] and trained["scores"]["logme"] > random["scores"]["logme"]
    assert answer["advice"]["backbone"] != "resnet18:none"
