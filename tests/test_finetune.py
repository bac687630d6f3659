"""Joint fine-tuning: what λ means, what is thawed when, heads first, and what was forgotten."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from typer.testing import CliRunner

from transferctl import training
from transferctl.backbones import torchvision as plugin
from transferctl.cli import app
from transferctl.contracts import Batch
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.loaders import Stream
from transferctl.model import BatchNorm, TransferModel
from transferctl.objective import Losses, Objective, gradient_cosine
from transferctl.preprocess import Preprocessing
from transferctl.tasks import classification
from transferctl.trainsettings import HeadTrainingSettings, SgdSettings

Invoke = Callable[..., tuple[int, dict[str, Any]]]
CPU = Compute(torch.device("cpu"), False, "")


def a_model() -> TransferModel:
    torch.manual_seed(0)
    backbone, _ = plugin.build("resnet18", image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(32, 32), "classification")
    model.add_new_head("source", ["a", "b", "c"], hidden=(), dropout=0.0, seed=0)
    model.add_new_head("target", ["x", "y"], hidden=(), dropout=0.0, seed=0)
    return model


def some_batches(n_source: int, n_target: int, steps: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    n = n_source + n_target
    labels = torch.tensor([i % 3 for i in range(n_source)] + [i % 2 for i in range(n_target)])
    images = [torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8) for _ in range(steps)]
    return [Batch(batch, labels, n_source) for batch in images]


def fitted(batches: list[Batch], *, target_weight: float, lr: float, **freezing: Any) -> TransferModel:
    """A model trained on the batches, two of them an epoch, with momentum and a constant rate."""
    model = a_model()
    stream = Stream((batch for batch in batches), 2, 2 * len(batches[0].labels))
    settings = HeadTrainingSettings(epochs=len(batches) // 2, optimizer=SgdSettings(lr=lr), schedule=CONSTANT)
    validation = lambda: iter([Batch(batches[0].inputs[-2:], torch.tensor([0, 1]))])  # noqa: E731
    training.fit(
        model, Objective(classification, target_weight), settings, stream, validation, model.features_of, CPU, Display(),
        seed=0, **({"frozen": {1: "none"}, "batchnorm": BatchNorm()} | freezing),
    )  # fmt: skip
    return model


CONSTANT = HeadTrainingSettings.model_validate({"schedule": "constant"}).schedule


def by_hand(batches: list[Batch], domain: str, lr: float) -> TransferModel:
    """Plain PyTorch on one domain's rows alone, in its own forward pass."""
    model = a_model()
    model.freeze("none", BatchNorm())
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for batch in batches:
        rows = batch.source if domain == "source" else batch.target
        logits = model.heads[domain](model.features(batch.inputs[rows]))
        optimizer.zero_grad()
        F.cross_entropy(logits, batch.labels[rows]).backward()
        optimizer.step()
    return model


def assert_same(one: TransferModel, other: TransferModel, domain: str, scale: float) -> None:
    start = a_model().state_dict()
    for name, tensor in one.state_dict().items():
        if name.startswith(("backbone", f"heads.{domain}")) and tensor.is_floating_point():
            moved = (other.state_dict()[name] - start[name]).abs().max()
            torch.testing.assert_close(tensor, other.state_dict()[name], atol=float(moved) * scale + 1e-7, rtol=0)


def test_lambda_zero_trains_like_source_only() -> None:
    batches = some_batches(6, 4)
    joint = fitted(batches, target_weight=0.0, lr=0.01)
    assert_same(joint, by_hand(batches, "source", 0.01), "source", 1e-3)
    assert torch.equal(joint.heads["target"].layers[1].weight, a_model().heads["target"].layers[1].weight)


def test_a_huge_lambda_trains_like_target_only() -> None:
    """λ scales the gradient, so the rate is divided by it."""
    batches = some_batches(6, 4)
    joint = fitted(batches, target_weight=1e5, lr=0.01 / 1e5)
    assert_same(joint, by_hand(batches, "target", 0.01), "target", 1e-2)


def test_the_cosine_between_the_gradients_is_that_of_two_separate_passes() -> None:
    model, (batch,) = a_model(), some_batches(5, 4, steps=1)
    model.freeze("layer2", BatchNorm())
    model.train()
    losses = Objective(classification)(model, model.features(batch.inputs), batch)
    cosine = gradient_cosine(losses, model.backbone)
    flat = []
    for domain, rows in (("source", batch.source), ("target", batch.target)):
        model.zero_grad()
        loss = F.cross_entropy(model.heads[domain](model.features(batch.inputs)[rows]), batch.labels[rows])
        loss.backward()
        flat.append(torch.cat([p.grad.flatten() for p in model.backbone.parameters() if p.grad is not None]))
    assert cosine is not None
    assert cosine.item() == pytest.approx(float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm()), abs=1e-5)
    losses.total.backward()  # the graph is still there for the step itself
    assert gradient_cosine(Losses(losses.total, None, losses.target, {}), model.backbone) is None


# -- thawing ------------------------------------------------------------------------------------------


def test_a_stage_moves_from_the_epoch_that_thaws_it_and_not_before() -> None:
    """Momentum of an earlier stage must not move a frozen one, nor running statistics."""
    batches = some_batches(0, 6, steps=6)
    schedule = {1: "all", 2: "layer3", 3: "none"}
    start = a_model().state_dict()
    for epochs, moving in ((1, set()), (2, {"layer4"}), (3, {"layer1", "layer4", "conv1", "bn1"})):
        model = fitted(batches[: 2 * epochs], target_weight=1.0, lr=0.01, frozen=schedule, batchnorm=BatchNorm("train"))
        moved = {
            name.split(".")[2]
            for name, tensor in model.state_dict().items()
            if name.startswith("backbone") and not torch.equal(tensor, start[name])
        }
        assert moved >= moving and bool(moved) == bool(moving)
        assert epochs == 3 or "layer1" not in moved


def test_the_best_epoch_is_restored_whole_where_stages_thaw_later(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    """The last epochs, of a wild rate, are not the best; what they thawed must go back as well."""
    settings = ("--set", "frozen={1: all, 3: none}", "--set", "schedule={name: constant}", "--set", "epochs=4",
                "--set", "optimizer.stage_lr={layer4: 3.0, layer1: 3.0}")  # fmt: skip
    code, answer = invoke("finetune", spec, *settings, "--runs-dir", tmp_path / "runs")
    assert code == 0 and answer["best"]["epoch"] <= 2, "the test wants an early best"
    best, start = (
        load_file(Path(answer["run"]) / "checkpoints" / which / "model.safetensors") for which in ("best", "start")
    )
    assert all(torch.equal(best[name], start[name]) for name in best if name.startswith("backbone."))
    code, scored = invoke("eval", answer["run"], "--runs-dir", tmp_path / "runs")
    assert scored["accuracy"] == answer["best"]["val"]["accuracy"]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{0: all}", "a schedule's keys are epochs, counted from 1; these are 0"),
        ("{2: none}", "a schedule begins with epoch 1, and its epochs are in order"),
        ("{1: all, 3: none, 2: layer1}", "a schedule begins with epoch 1, and its epochs are in order"),
        ("{1: all, 9: none}", "thaws at epoch 9, but epochs is 3"),
        ("{1: all, 2: layr3}", "did you mean layer3"),
    ],
)
def test_a_thawing_schedule_that_cannot_be_is_told(
    written: str, message: str, spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    code, answer = invoke("finetune", spec, "--set", f"frozen={written}", "--runs-dir", tmp_path / "runs")
    assert code == 2
    assert message in answer["error"]
    assert not (tmp_path / "runs").exists()


# -- through the command line -------------------------------------------------------------------------

DIGITS = (
    "source={{train: {{dataset: digits, classes: [{0}], per_class: 12}}, val: {{dataset: digits, classes: [{0}]}}{1}}}"
)


def source(classes: str = "0, 1", more: str = "") -> tuple[str, str]:
    return "--set", DIGITS.format(classes, more)


@pytest.fixture
def stage0(spec: Path, tmp_path: Path, invoke: Invoke) -> tuple[str, str]:
    """A network that knows the digits 0 and 1: the setting that starts from it."""
    settings = ("--set", "pretrain={epochs: 2, augment: none, optimizer: adam}", "--runs-dir", tmp_path / "stage0")
    code, answer = invoke("pretrain", spec, *source(), *settings)
    assert code == 0
    return "--set", f"backbone.weights={answer['run']}"


def lines_of(answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, (Path(answer["run"]) / "metrics.jsonl").read_text().splitlines())


def test_what_was_forgotten_is_measured_before_and_after(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    code, answer = invoke("finetune", spec, *stage0, *source(), "--runs-dir", tmp_path / "runs")
    assert code == 0
    report = answer["source"]
    change = report["after"]["accuracy"] - report["before"]["accuracy"]
    assert report["accuracy_change"] == pytest.approx(change, abs=1e-12)
    assert report["loss_change"] == pytest.approx(report["after"]["loss"] - report["before"]["loss"], abs=1e-9)
    assert report["accuracy_change_low"] <= change <= report["accuracy_change_high"]
    logged = [line for line in lines_of(answer) if line["split"] == "source_val"]
    assert [line["accuracy"] for line in logged] == [report[when]["accuracy"] for when in ("before", "after")]
    _, pretrained = invoke("eval", stage0[1].removeprefix("backbone.weights="), "--runs-dir", tmp_path / "evals")
    assert report["before"]["accuracy"] == pytest.approx(pretrained["accuracy"])


def test_the_report_of_what_was_forgotten_is_shown(stage0: tuple[str, str], spec: Path, tmp_path: Path) -> None:
    arguments = ["finetune", str(spec), *stage0, *source(), "--runs-dir", str(tmp_path / "runs")]
    shown = CliRunner().invoke(app, arguments).stdout
    assert "before" in shown and "after" in shown and "points" in shown


def test_without_rehearsal_the_source_is_measured_and_does_not_train(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """The same bits as without source at all, source head included."""
    settings = (*stage0, "--runs-dir", tmp_path / "runs")
    _, plain = invoke("finetune", spec, *settings)
    code, measured = invoke("finetune", spec, *settings, *source(more=", rehearsal: false"))
    assert code == 0 and "source" not in plain and "accuracy_change" in measured["source"]
    one, other = (load_file(Path(a["run"]) / "checkpoints/best/model.safetensors") for a in (plain, measured))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any("loss_source" in line for line in lines_of(measured))


def test_lambda_without_rehearsal_and_rehearsal_without_a_known_head_are_errors(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    off = source(more=", rehearsal: false")
    code, answer = invoke("finetune", spec, *off, "--set", "lambda=2", "--runs-dir", tmp_path / "runs")
    assert code == 2 and "lambda: weighs L_T against L_S, which source.rehearsal: false takes out" in answer["error"]
    code, answer = invoke("finetune", spec, *off, "--runs-dir", tmp_path / "runs")
    assert code == 2 and "source.rehearsal: is false, so nothing would train the new source head" in answer["error"]


def test_a_source_without_validation_data_trains_and_measures_nothing(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    none = ("--set", "source={train: {dataset: digits, classes: [0, 1], per_class: 12}, val: none}")
    code, answer = invoke("finetune", spec, *stage0, *none, "--runs-dir", tmp_path / "runs")
    assert code == 0 and "source" not in answer
    assert all("loss_source" in line for line in lines_of(answer) if line["split"] == "train")
    code, answer = invoke("pretrain", spec, *none, "--runs-dir", tmp_path / "runs")
    assert code == 2 and "source.val: is none, and pretraining selects its best epoch by it" in answer["error"]


def test_source_classes_that_the_head_does_not_have_are_an_error(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    code, answer = invoke("finetune", spec, *stage0, *source("1, 7"), "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert "source.train: the pretrained head has no class 7" in answer["error"]


def test_the_gradients_cosine_is_logged_on_request(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    asked = source(more=", gradient_cosine: true")
    _, answer = invoke("finetune", spec, *stage0, *asked, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    (line,) = [line for line in lines_of(answer) if line["split"] == "train"]
    assert -1 <= line["cosine"] <= 1
    _, without = invoke("finetune", spec, *stage0, *source(), "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    one, other = (load_file(Path(a["run"]) / "checkpoints/best/model.safetensors") for a in (answer, without))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_heads_first_are_those_that_extract_trains(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = (*stage0, "--runs-dir", tmp_path / "runs", "--set", "optimizer.lr=0.03")
    _, extracted = invoke("extract", spec, *settings, "--set", "epochs=7")
    first = "head_first={epochs: 7, batch_size: 8, optimizer: {lr: 0.03}}"
    code, tuned = invoke("finetune", spec, *settings, "--set", first, "--set", "epochs=1")
    assert code == 0
    best, start = (
        load_file(Path(answer["run"]) / "checkpoints" / which / "model.safetensors")
        for answer, which in ((extracted, "best"), (tuned, "start"))
    )
    assert all(torch.equal(best[name], start[name]) for name in best)
    assert tuned["head_first"]["target"]["val"]["accuracy"] == extracted["best"]["val"]["accuracy"]
    assert tuned["last"]["epoch"] == 1


def test_a_new_source_head_is_trained_first_too_and_its_forgetting_measured_from_there(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ("--set", "head_first={epochs: 20, optimizer: adam}", "--runs-dir", tmp_path / "runs")
    code, answer = invoke("finetune", spec, *source(), *settings)
    assert code == 0
    assert set(answer["head_first"]) == {"source", "target"}
    assert answer["source"]["before"]["accuracy"] == answer["head_first"]["source"]["val"]["accuracy"]


def test_heads_of_a_run_that_it_goes_on_from_are_not_trained_again(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    settings = ("--set", "optimizer.lr=1e-4", "--runs-dir", tmp_path / "runs")
    _, extracted = invoke("extract", spec, *settings)
    code, tuned = invoke("finetune", spec, "--from", extracted["run"], "--set", "head_first={}", *settings)
    assert code == 0 and tuned["head_first"] == {}


def test_the_last_epoch_is_kept_on_request(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    """Where nothing moves all epochs score the same, and the earliest is the best."""
    settings = ("--set", "optimizer.lr=1e-30", "--set", "batchnorm=frozen")
    kept = {}
    for keep in ("best", "last"):
        runs = tmp_path / keep
        _, answer = invoke("finetune", spec, *settings, "--set", f"keep={keep}", "--runs-dir", runs)
        kept[keep] = answer["best"]["epoch"]
        _, scored = invoke("eval", answer["run"], "--runs-dir", runs)
        assert scored["accuracy"] == answer["best"]["val"]["accuracy"]
    assert kept == {"best": 1, "last": 3}


def test_early_stopping_where_the_last_epoch_is_kept_is_an_error(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    both = ("--set", "keep=last", "--set", "early_stopping=2")
    code, answer = invoke("finetune", spec, *both, "--runs-dir", tmp_path / "runs")
    assert code == 2
    assert answer["error"] == (
        "--set early_stopping=2: early_stopping: waits for a better epoch, but keep is last; remove one"
    )


def test_source_images_are_augmented_only_on_request(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    loss = classification.loss
    monkeypatch.setattr(
        classification,
        "loss",
        lambda head, features, targets, **how: (
            seen.append(features.pooled[0].detach()) or loss(head, features, targets, **how)
        ),
    )
    settings = ("--set", "epochs=1", "--set", "frozen=all", "--set", "augment=none", "--runs-dir", tmp_path / "runs")
    rows = []
    for more in ("", ", augment: none", ", augment: {crop_scale: [0.1, 0.2]}"):
        seen.clear()
        code, _ = invoke("finetune", spec, *stage0, *source(more=more), *settings)
        assert code == 0
        rows.append(torch.stack(seen))
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_patience_begins_once_everything_is_thawed(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    """At a rate at which nothing moves, the first epoch is the best; yet what thaws at epoch 4 must have its chance."""
    settings = ("--set", "optimizer.lr=1e-30", "--set", "batchnorm=frozen", "--set", "epochs=9")
    patient = ("--set", "early_stopping=2", "--set", "frozen={1: all, 4: layer3}", "--runs-dir", tmp_path / "runs")
    _, answer = invoke("finetune", spec, *settings, *patient)
    assert (answer["best"]["epoch"], answer["last"]["epoch"]) == (1, 5)


def test_settings_of_a_loss_that_is_not_in_the_objective_are_said(
    stage0: tuple[str, str], spec: Path, tmp_path: Path
) -> None:
    off = source(more=", rehearsal: false, label_smoothing: 0.1, batch_size: 4")
    arguments = ["finetune", str(spec), *stage0, *off, "--set", "epochs=1", "--runs-dir", str(tmp_path / "runs")]
    shown = CliRunner().invoke(app, arguments).stderr
    assert "finetune does not use: source.batch_size, source.label_smoothing" in shown


# -- what must be said or refused ---------------------------------------------------------------------


def test_a_new_source_head_that_heads_first_trains_needs_no_rehearsal(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ("--set", "head_first={epochs: 2}", "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    code, answer = invoke("finetune", spec, *source(more=", rehearsal: false"), *settings)
    assert code == 0
    best, start = (
        load_file(Path(answer["run"]) / "checkpoints" / which / "model.safetensors") for which in ("best", "start")
    )
    names = [name for name in best if name.startswith("heads.source.")]
    assert names and all(torch.equal(best[name], start[name]) for name in names)
    assert answer["source"]["before"]["accuracy"] == answer["head_first"]["source"]["val"]["accuracy"]
    assert "confusion" not in answer["head_first"]["source"]["val"]


def test_a_source_hold_out_of_another_seed_than_the_run_it_starts_from_is_refused(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    """`before` would be scored on images that stage 0 was trained on."""
    held_out = ("--set", "source={train: {dataset: digits, classes: [0, 1], per_class: 12}, val: 0.25}")
    runs = ("--runs-dir", tmp_path / "runs")
    _, first = invoke("pretrain", spec, *held_out, *runs, "--set", "pretrain={epochs: 1, augment: none}")
    start = ("--set", f"backbone.weights={first['run']}", "--set", "epochs=1", "--set", "optimizer.lr=1e-4")
    code, answer = invoke("finetune", spec, *held_out, *start, *runs, "--set", "seed=1")
    assert code == 3
    assert f"source.val: is not what {first['run']} held out" in answer["error"]
    code, answer = invoke("finetune", spec, *held_out, *start, *runs)
    assert code == 0
    again = ("--from", answer["run"], "--set", "epochs=1", "--set", "optimizer.lr=1e-4")
    code, _ = invoke("finetune", spec, *held_out, *again, *runs)
    assert code == 0


def test_augmentation_of_a_source_that_is_not_rehearsed_changes_nothing(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = (*stage0, "--set", "augment={mixup: 0.4}", "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    states = []
    for more in ("", ", augment: {mixup: 0.2, cutmix: 1.0}"):
        _, answer = invoke("finetune", spec, *settings, *source(more=f", rehearsal: false{more}"))
        states.append(load_file(Path(answer["run"]) / "checkpoints/best/model.safetensors"))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def said(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stderr


def test_heads_that_are_not_trained_first_are_said(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    settings = ("--set", "head_first={epochs: 1}", "--set", "epochs=1", "--set", "optimizer.lr=1e-4",
                "--runs-dir", tmp_path / "runs")  # fmt: skip
    none = ("--set", "source={train: {dataset: digits, classes: [0, 1], per_class: 12}, val: none}")
    text = said("finetune", spec, *none, *settings)
    assert "head first: the source head is not trained first, as it has no validation data" in text
    assert "source.val is none: what is forgotten is not measured" in text
    _, run = invoke("extract", spec, "--runs-dir", tmp_path / "runs")
    assert "head first: nothing to train" in said("finetune", spec, "--from", run["run"], *settings)


@pytest.mark.parametrize("verb", ["check", "finetune"])
def test_rates_of_stages_that_do_not_train_and_settings_of_a_loss_that_is_off_are_said(
    verb: str, stage0: tuple[str, str], spec: Path, tmp_path: Path
) -> None:
    idle = ("--set", "frozen=layer3", "--set", "optimizer.stage_lr={layer1: 0.3, source_head: 0.1}")
    off = source(more=", rehearsal: false, gradient_cosine: true")
    runs = () if verb == "check" else ("--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    text = said(verb, spec, *stage0, *off, *idle, *runs)
    assert "optimizer.stage_lr.layer1 has no effect: nothing of it trains" in text
    assert "optimizer.stage_lr.source_head has no effect" in text
    assert "finetune does not use: source.gradient_cosine" in text


@pytest.mark.parametrize("key", ["optimizer", "head_first.optimizer", "pretrain.optimizer"])
def test_a_rate_of_no_stage_is_told_at_its_own_key_before_anything_runs(
    key: str, spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    wrong = ("--set", f"{key}.stage_lr.layr4=0.1")
    for verb, runs in (("check", ()), ("finetune", ("--runs-dir", tmp_path / "runs"))):
        code, answer = invoke(verb, spec, *wrong, *runs)
        assert code == 2
        assert f"{key}.stage_lr.layr4: the model has no stage 'layr4'; did you mean layer4?" in answer["error"]
    assert not (tmp_path / "runs").exists()


def test_a_schedule_that_thaws_batchnorm_for_batches_of_one_is_refused_at_once(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    settings = ("--set", "batch_size=1", "--set", "frozen={1: all, 3: none}", "--set", "batchnorm=train")
    code, answer = invoke("finetune", spec, *settings, "--runs-dir", tmp_path / "runs")
    assert code == 2 and "batch_size: is 1" in answer["error"]
    assert not list((tmp_path / "runs").glob("*/checkpoints/last"))


def test_a_classes_file_that_names_none_of_the_source_folders_is_an_error(
    stage0: tuple[str, str], spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    state = load_file(Path(stage0[1].removeprefix("backbone.weights=")) / "checkpoints/best/model.safetensors")
    net = {name.removeprefix("backbone."): t for name, t in state.items() if name.startswith("backbone.")}
    head = {"fc.weight": state["heads.source.layers.1.weight"], "fc.bias": state["heads.source.layers.1.bias"]}
    torch.save(net | head, tmp_path / "net.pth")
    (tmp_path / "classes.txt").write_text("zero\none\n")
    weights = ("--set", "backbone.weights={path: net.pth, classes: classes.txt}")
    code, answer = invoke("finetune", spec, *weights, *source(), "--runs-dir", tmp_path / "runs")
    assert code == 3
    assert f"source.train: none of its classes (0, 1) is in {tmp_path}/classes.txt" in answer["error"]


def test_validation_data_that_is_the_training_data_is_said(spec: Path, tmp_path: Path) -> None:
    text = said("check", spec, "--set", "source={train: train, val: train}", "--set", "target.val=train")
    assert "source.val: has the very samples of source.train; its score flatters" in text
    assert "target.val: has the very samples of target.train; its score flatters" in text


def test_check_takes_penalties_that_look_back_at_a_stage_0_that_is_yet_to_be(
    spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    chosen = ("--set", "backbone.weights=source", "--set", "penalties={l2sp: 0.1, lwf: 1}")
    code, plan = invoke("check", spec, *source(more=", rehearsal: false"), *chosen)
    assert code == 0
    assert plan["objective"] == "min over θ of L_T + 0.1·Ω_l2sp + 1·Ω_lwf"


def test_the_json_of_a_run_that_failed_is_its_summary(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    settings = ("--set", "optimizer.lr=1e6", "--set", "frozen={1: all, 2: none}", "--runs-dir", tmp_path / "runs")
    code, answer = invoke("finetune", spec, *settings)
    assert code == 6
    summary = json.loads((Path(answer["run"]) / "summary.json").read_text())
    assert answer == summary
    assert summary["status"] == "failed" and summary["best"]["epoch"] == 1


def test_penalties_look_at_what_will_train_not_at_what_heads_first_has_frozen(
    stage0: tuple[str, str], spec: Path, tmp_path: Path
) -> None:
    settings = ("--set", "head_first={epochs: 1}", "--set", "frozen={1: all, 2: none}", "--set", "epochs=2")
    ewc = ("--set", "penalties.ewc={weight: 0.001, samples: 3}", "--runs-dir", tmp_path / "runs")
    text = said("finetune", spec, *stage0, *source(more=", rehearsal: false"), *settings, *ewc)
    assert "penalties.ewc" in text and "that trains, 0," not in text


def test_the_classes_of_weights_that_are_not_used_are_no_ones_fault(spec: Path, tmp_path: Path, invoke: Invoke) -> None:
    """With --from the head is the run's; that none of its classes is the source's makes a new one, as ever."""
    runs = ("--runs-dir", tmp_path / "runs")
    _, extracted = invoke("extract", spec, *runs)
    (tmp_path / "classes.txt").write_text("zero\none\n")
    unused = ("--set", "backbone.weights={path: net.pth, classes: classes.txt}", "--set", "optimizer.lr=1e-4")
    code, _ = invoke("finetune", spec, "--from", extracted["run"], *unused, *source(), *runs, "--set", "epochs=1")
    assert code == 0
