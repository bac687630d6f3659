"""The loop: the running mean is what is validated and kept, training stops when told, smoothed losses, no NaN kept."""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from transferctl import checkpoint, heads, runs, scoring, training
from transferctl.contracts import Batch, Features, Stage
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.loaders import Stream
from transferctl.model import BatchNorm, TransferModel
from transferctl.objective import DomainLoss, Objective
from transferctl.penalties import l2sp
from transferctl.preprocess import Preprocessing
from transferctl.savesettings import Every
from transferctl.saving import Saver
from transferctl.tasks import classification
from transferctl.training import Fitted
from transferctl.trainsettings import HeadTrainingSettings

Invoke = Callable[..., tuple[int, dict[str, Any]]]
CPU = Compute(torch.device("cpu"), False, "")
SOURCE = "source={train: {dataset: digits, classes: [0, 1], per_class: 8}, val: {dataset: digits, classes: [0, 1]}}"


class TinyBackbone(nn.Module):
    """A convolution and a BatchNorm, a stage each."""

    name, feature_dim = "tiny", 4

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3, bias=False), norm=nn.BatchNorm2d(4)))

    def stages(self) -> list[Stage]:
        return [Stage(name, (name,), getattr(self.net, name)) for name in ("conv", "norm")]

    def forward(self, images: Tensor, after: int = 0) -> Features:
        assert not after
        return Features(self.net(images).relu().mean((2, 3)))


def tiny_model() -> TransferModel:
    torch.manual_seed(0)
    model = TransferModel("torchvision", TinyBackbone(), Preprocessing(6, 6), "classification")
    model.add_new_head("target", ["x", "y", "z"], hidden=(), dropout=0.0, seed=0)
    return model


def _batches(n: int, seed: int) -> list[Batch]:
    """Of five images each, darker or lighter by class."""
    random = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(n):
        labels = torch.randint(0, 3, (5,), generator=random)
        images = torch.randint(0, 100, (5, 3, 6, 6), generator=random) + 70 * labels[:, None, None, None]
        batches.append(Batch(images.to(torch.uint8), labels, names=tuple("abcde")))
    return batches


TRAIN, VAL = _batches(4, 1), _batches(3, 2)


def fit(model: TransferModel, settings: HeadTrainingSettings, **how: Any) -> Fitted:
    batches = (batch for _ in range(settings.epochs) for batch in TRAIN)
    objective = Objective(classification, domains={"target": DomainLoss(settings.label_smoothing)})
    how = {"frozen": {1: "none"}, "batchnorm": BatchNorm(thawed="train"), **how}
    stream = Stream(batches, len(TRAIN), 5 * len(TRAIN))
    return training.fit(
        model,
        objective,
        settings,
        stream,
        lambda: iter(VAL),
        how.pop("forward", model.features_of),
        CPU,
        Display(as_json=True),
        seed=0,
        **how,
    )


# -- EMA ----------------------------------------------------------------------------------------------


def _by_hand(model: TransferModel, frozen: str, epochs: int, decay: float) -> Iterator[AveragedModel]:
    """A plain loop with torch's own optimizer and average; the average after each epoch."""

    def mean(averaged: Tensor, live: Tensor, updates: Tensor) -> Tensor:
        now = min(decay, int(updates) / (9 + int(updates)))
        return now * averaged + (1 - now) * live

    model.freeze(frozen, BatchNorm(thawed="train"))
    averaged = AveragedModel(model, avg_fn=mean, use_buffers=True)
    averaged.update_parameters(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(epochs):
        model.train()
        for batch in TRAIN:
            optimizer.zero_grad()
            F.cross_entropy(model.heads["target"](model.features(batch.inputs)), batch.labels).backward()
            optimizer.step()
            averaged.update_parameters(model)
        yield copy.deepcopy(averaged)


def _validation_loss(model: TransferModel, labels: Tensor) -> float:
    with torch.no_grad():
        logits = torch.cat([model.heads["target"](model.eval().features(batch.inputs)) for batch in VAL])
    return float(log_loss(labels, logits.double().softmax(1), labels=[0, 1, 2]))


@pytest.mark.parametrize("frozen", ["none", "conv"])
def test_what_is_validated_saved_and_returned_is_the_running_mean(frozen: str, tmp_path: Path) -> None:
    settings = HeadTrainingSettings(epochs=3, ema=0.6, optimizer={"lr": 0.1, "momentum": 0.9}, schedule="constant")
    model, labels = tiny_model(), torch.cat([batch.labels for batch in VAL])
    means = [mean.module for mean in _by_hand(tiny_model(), frozen, 3, 0.6)]
    with runs.start(tmp_path, "finetune", "x", "", Display(as_json=True)) as run:
        saver = Saver(run, Every(epochs=1), Display(as_json=True))
        fitted = fit(model, settings, run=run, saver=saver, frozen={1: frozen})
    expected = [_validation_loss(mean, labels) for mean in means]
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if line["split"] == "val"] == pytest.approx(expected, rel=1e-5)
    best, last = means[fitted.best["epoch"] - 1].state_dict(), means[-1].state_dict()
    for which, wanted in (("best", best), ("last", last)):
        for name, tensor in checkpoint.load(run.path, which).state.items():
            if "num_batches" not in name:
                own = wanted[name.replace("backbone.", "backbone.net.")]
                torch.testing.assert_close(
                    tensor, own, msg=lambda text, name=name, which=which: f"{which} {name} {text}"
                )
    for name, tensor in fitted.best_state.items():
        if "num_batches" not in name:
            torch.testing.assert_close(tensor, best[name])
    for name, tensor in model.named_parameters():
        torch.testing.assert_close(tensor, last[name])
    unmoved = torch.equal(tiny_model().backbone.net.conv.weight, model.backbone.net.conv.weight)
    assert unmoved == (frozen == "conv")


def test_without_ema_the_last_weights_are_what_is_left() -> None:
    settings = HeadTrainingSettings(epochs=2, optimizer={"lr": 0.1, "momentum": 0.9}, schedule="constant")
    model, by_hand = tiny_model(), tiny_model()
    fit(model, settings)
    list(_by_hand(by_hand, "none", 2, 0.5))
    for (name, ours), (_, theirs) in zip(model.named_parameters(), by_hand.named_parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text, name=name: f"{name}: {text}")


def test_a_head_on_features_is_left_with_its_running_mean() -> None:
    """`extract` saves it after the training, not in it."""
    random = torch.Generator().manual_seed(0)
    table: Any = _Table(torch.randn(12, 4, generator=random), torch.arange(12) % 3)
    model = tiny_model()
    settings = HeadTrainingSettings(epochs=1, ema=0.9, batch_size=6, optimizer={"lr": 1.0})
    fitted = heads.fit(
        model,
        classification,
        settings,
        "target",
        DomainLoss(),
        table,
        table,
        CPU,
        Display(as_json=True),
        seed=0,
        run=None,
    )
    head = model.heads["target"]
    assert fitted.best["val"]["loss"] == pytest.approx(
        F.cross_entropy(head(Features(table.pooled)).double(), table.labels).item(), rel=1e-6
    )
    for name, tensor in head.state_dict().items():
        assert torch.equal(tensor, fitted.best_state[f"heads.target.{name}"])


class _Table:
    """Features in memory, after both of TinyBackbone's stages."""

    def __init__(self, pooled: Tensor, labels: Tensor):
        self.pooled, self.labels, self.split = pooled, labels, SimpleNamespace(labels=labels.numpy(), balanced=False)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: np.ndarray, domain: str = "target") -> Batch:
        return self.unnamed(positions)

    def unnamed(self, positions: np.ndarray) -> Batch:
        return Batch(self.pooled[positions], self.labels[positions], after=2)


@pytest.mark.parametrize("verb", ["extract", "finetune", "pretrain"])
def test_eval_of_a_run_with_ema_has_the_score_that_selected_it(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke
) -> None:
    prefix = "pretrain." if verb == "pretrain" else ""
    settings = [f"{prefix}epochs=2", f"{prefix}ema=0.7", "source={train: train, val: val}", "device=cpu"]
    words = [word for text in settings for word in ("--set", text)]
    code, trained = invoke(verb, spec, *words, "--runs-dir", tmp_path / "runs")
    assert code == 0, trained
    if verb == "pretrain":
        words = ["--set", f"backbone.weights={trained['run']}", "--set", "epochs=1", "--set", "optimizer.lr=1e-9"]
        words += ["--set", "device=cpu"]
        code, kept = invoke("finetune", spec, *words, "--set", "frozen=all", "--set", "source={train: train, val: val}",
                            "--runs-dir", tmp_path / "runs")  # fmt: skip
        assert kept["source"]["before"]["loss"] == pytest.approx(trained["best"]["val"]["loss"], rel=1e-6)
    else:
        code, scored = invoke("eval", trained["run"], "--runs-dir", tmp_path / "runs")
        assert scored["loss"] == pytest.approx(trained["best"]["val"]["loss"], rel=1e-6)
    assert code == 0


# -- early stopping -----------------------------------------------------------------------------------


def _scores(monkeypatch: pytest.MonkeyPatch, *accuracies: float) -> None:
    """What validation finds, epoch by epoch."""
    waiting, measure = iter(accuracies), scoring.measure

    def found(*of: Any, **how: Any) -> dict[str, Any]:
        return measure(*of, **how) | {"accuracy": next(waiting), "loss": 1.0}

    monkeypatch.setattr(training, "measure", found)


@pytest.mark.parametrize(
    ("patience", "accuracies", "best", "last"),
    [
        (1, (0.1, 0.2, 0.2), 2, 3),  # the same score is not better
        (2, (0.5, 0.4, 0.6, 0.5, 0.1), 3, 5),
        (3, (0.5, 0.4, 0.3, 0.5), 1, 4),
        (9, (0.5, 0.4, 0.3, 0.2, 0.1, 0.0), 1, 6),
    ],
)
def test_training_stops_after_exactly_that_many_epochs_without_a_better_one(
    patience: int, accuracies: tuple[float, ...], best: int, last: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scores(monkeypatch, *accuracies)
    fitted = fit(tiny_model(), HeadTrainingSettings(epochs=6, early_stopping=patience))
    assert (fitted.best["epoch"], fitted.last["epoch"], fitted.last["step"]) == (best, last, last * len(TRAIN))


def test_a_stop_in_the_last_planned_epoch_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for epochs, said in ((3, 0), (4, 1)):
        _scores(monkeypatch, 0.5, 0.4, 0.3)
        fit(tiny_model(), HeadTrainingSettings(epochs=epochs, early_stopping=2))
        assert capsys.readouterr().err.count("stopped early") == said


@pytest.mark.parametrize("verb", ["finetune", "extract"])
def test_a_run_that_stops_early_says_so_keeps_its_best_and_leaves_no_process(
    verb: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scores(monkeypatch, 0.9, 0.8, 0.7)
    score_best, processes = scoring.score_best, list[Any]()
    after = lambda *of: (processes.extend(multiprocessing.active_children()), score_best(*of))[1]  # noqa: E731
    monkeypatch.setattr(scoring, "score_best", after)
    settings = ["epochs=50", "early_stopping=1", "workers=2", "schedule=cosine", "optimizer.lr=0.01"]
    words = [word for text in settings for word in ("--set", text)]
    code, answer = invoke(verb, spec, *words, "--runs-dir", tmp_path / "runs")
    assert (code, answer["best"]["epoch"], answer["last"]["epoch"]) == (0, 1, 2)
    assert processes == [], "alive after the training"
    folder = Path(answer["run"])
    assert "stopped early, after epoch 2: no better one since epoch 1" in (folder / "log.txt").read_text()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if line["split"] == "train"]
    steps = answer["last"]["step"] // 2  # an epoch; the rate of its last step is logged, in a schedule of 50 epochs
    progress = [(steps * epoch - 1) / (50 * steps) for epoch in (1, 2)]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * part)) / 2 for part in progress])
    for which, epoch in (("best", 1), ("last", 2)):
        assert json.loads((folder / "checkpoints" / which / "manifest.json").read_text())["epoch"] == epoch


def test_the_heads_own_training_and_stage_0_stop_early_too(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scores(monkeypatch, 0.9, 0.8, 0.1)  # two of the head, then one of fine-tuning
    settings = ("--set", "head_first={epochs: 9, early_stopping: 1}", "--set", "epochs=1", "--runs-dir", tmp_path / "r")
    code, answer = invoke("finetune", spec, *settings)
    assert (code, answer["head_first"]["target"]["epoch"], answer["last"]["val"]["accuracy"]) == (0, 1, 0.1)
    _scores(monkeypatch, 0.9, 0.8)
    settings = ("--set", "pretrain={epochs: 9, early_stopping: 1}", "--set", SOURCE, "--runs-dir", tmp_path / "r")
    code, answer = invoke("pretrain", spec, *settings)
    assert (code, answer["last"]["epoch"]) == (0, 2)


# -- label smoothing ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "expected"),
    [
        ("finetune", {("target", True): 0.1, ("source", True): 0.2}),
        ("finetune with head_first", {("target", True): 0.1, ("source", True): 0.2, ("target", False): 0.4,
                                      ("source", False): 0.4}),
        ("extract", {("target", False): 0.1}),
        ("pretrain", {("source", True): 0.3}),
    ],
)  # fmt: skip
def test_each_loss_has_the_label_smoothing_of_its_own_setting(
    verb: str, expected: dict, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Σ over classes of the smoothed label times −log p, by hand, from the logits that the loss was given."""
    found: dict[tuple[str, bool], list[tuple[float, np.ndarray, np.ndarray]]] = {}
    loss = classification.loss

    def watched(head: nn.Module, features: Features, targets: Tensor, **how: Any) -> Tensor:
        value = loss(head, features, targets, **how)
        logits = head(features).detach().double()
        domain = "target" if logits.shape[1] == 3 else "source"
        which = (domain, not features.pooled.is_leaf)  # on images, or on features that were computed before
        found.setdefault(which, []).append((value.item(), logits.log_softmax(1).cpu().numpy(), targets.cpu().numpy()))
        return value

    monkeypatch.setattr(classification, "loss", watched)
    settings = [SOURCE, "epochs=1", "label_smoothing=0.1", "source.label_smoothing=0.2"]
    settings += ["pretrain={epochs: 1, label_smoothing: 0.3}", "head_first.label_smoothing=0.4", "head_first.epochs=1"]
    settings = [text for text in settings if "head_first" in verb or not text.startswith("head_first")]
    words = [word for text in settings for word in ("--set", text)]
    code, answer = invoke(verb.split(maxsplit=1)[0], spec, *words, "--runs-dir", tmp_path / "runs")
    assert code == 0, answer
    assert found.keys() == expected.keys()
    for which, smoothing in expected.items():
        for value, log_p, labels in found[which]:
            classes = log_p.shape[1]
            smoothed = (1 - smoothing) * np.eye(classes)[labels] + smoothing / classes
            assert value == pytest.approx(-(smoothed * log_p).sum(1).mean(), rel=1e-5)


def test_validation_metrics_are_not_smoothed() -> None:
    model = tiny_model()
    settings = HeadTrainingSettings(epochs=1, label_smoothing=0.5, optimizer={"lr": 0.5})
    fitted = fit(model, settings)
    labels = torch.cat([batch.labels for batch in VAL])
    assert fitted.last["val"]["loss"] == pytest.approx(_validation_loss(model, labels), rel=1e-6)


# -- losses that are no number ------------------------------------------------------------------------


def _broken_from(call: int, value: float, original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The original, whose value is no number from a call on, counted from 1."""
    calls = iter(range(1, 10_000))
    return lambda *args, **named: original(*args, **named) * (value if next(calls) >= call else 1.0)


@pytest.mark.parametrize(
    ("broken", "value", "said"),
    [
        ("target", float("nan"), "loss_target is nan on {train}"),
        ("source", float("inf"), "loss_source is inf on digits"),
        ("penalty", float("nan"), "penalty_l2sp is nan on {train}"),
        ("both", float("nan"), "loss_target is nan on {train}"),
    ],
)
def test_a_term_that_is_no_number_ends_training_with_its_name_its_step_and_its_samples(
    broken: str, value: float, said: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, start = invoke("extract", spec, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    loss, breaking = classification.loss, _broken_from(3, value, classification.loss)

    def breaks(head: nn.Module, *rest: Any, **named: Any) -> Tensor:
        domain = "target" if head.layers[-1].out_features == 3 else "source"
        return (breaking if domain == broken else loss)(head, *rest, **named)

    if broken == "penalty":
        monkeypatch.setattr(l2sp.L2SP, "__call__", _broken_from(3, value, l2sp.L2SP.__call__))
    else:
        monkeypatch.setattr(classification, "loss", _broken_from(5, value, loss) if broken == "both" else breaks)
    settings = ["--set", SOURCE, "--set", "penalties.l2sp=0.001", "--runs-dir", tmp_path / "runs"]
    code, answer = invoke("finetune", spec, "--from", start["run"], *settings)
    assert (code, answer["exit_code"], answer["status"]) == (6, 6, "failed")
    assert answer["error"].startswith("epoch 1, step 3: ")
    assert said.format(train=tmp_path / "train") in answer["error"]
    assert broken != "both" or "loss_source is nan on digits" in answer["error"]
    assert "and " in answer["error"] and "more; lower optimizer.lr" in answer["error"]
    assert not list((tmp_path / "runs").glob("*-finetune-*/checkpoints/best"))


def test_what_was_best_before_a_loss_became_nan_stays_as_it_was(
    spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("--set", "schedule=constant", "--set", "epochs=2")
    invoke("finetune", spec, *settings, "--set", "epochs=1", "--runs-dir", tmp_path / "whole")
    monkeypatch.setattr(classification, "loss", _broken_from(7, float("nan"), classification.loss))
    code, answer = invoke("finetune", spec, *settings, "--runs-dir", tmp_path / "broken")
    assert code == 6
    assert "epoch 2, step 7: loss_target is nan" in answer["error"]
    paths = [next((tmp_path / at).glob("*/checkpoints/best/model.safetensors")) for at in ("whole", "broken")]
    whole, kept = map(load_file, paths)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(("broken", "said"), [("target", "loss_target at "), ("source", "loss_source at ")])
def test_a_gradient_that_is_no_number_is_named_before_it_reaches_a_weight(
    broken: str, said: str, spec: Path, tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """√x at 0: the value is a number, its derivative is none."""
    loss, calls = classification.loss, iter(range(1, 10_000))

    def rooted(head: nn.Module, features: Features, *rest: Any, **named: Any) -> Tensor:
        value = loss(head, features, *rest, **named)
        is_it = (head.layers[-1].out_features == 3) == (broken == "target")
        return value + ((0 * features.pooled.sum()).sqrt() if is_it and next(calls) >= 3 else 0)

    _, start = invoke("extract", spec, "--set", "epochs=1", "--runs-dir", tmp_path / "runs")
    monkeypatch.setattr(classification, "loss", rooted)
    settings = ["--set", SOURCE, "--set", "checkpoint=1 steps", "--runs-dir", tmp_path / "runs"]
    code, answer = invoke("finetune", spec, "--from", start["run"], *settings)
    assert code == 6 and answer["error"].startswith("epoch 1, step 3: the gradient of " + said)
    assert "backbone.net.conv1.weight" in answer["error"]
    assert (".png" if broken == "target" else "digits") in answer["error"]
    (run,) = (tmp_path / "runs").glob("*-finetune-*")
    assert not (run / "checkpoints" / "best").exists()
    saved = load_file(run / "checkpoints" / "step-000002-unscored" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
