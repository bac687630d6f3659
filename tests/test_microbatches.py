"""A step in parts has the gradients of the step; memory that runs out halves them, said each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import TRAIN, VAL, fit, tiny_model
from torch import Tensor
from typer.testing import CliRunner

from transferctl import microbatches, scoring, training
from transferctl.cli import app
from transferctl.contracts import Batch, Mixed
from transferctl.device import Compute
from transferctl.model import BatchNorm, TransferModel
from transferctl.objective import DomainLoss, Objective
from transferctl.penalties import l2sp
from transferctl.spec import json_schema
from transferctl.tasks import classification
from transferctl.trainsettings import HeadTrainingSettings

Invoke = Callable[..., tuple[int, dict[str, Any]]]
CPU = Compute(torch.device("cpu"), False, "")


def _batch(n_source: int, n_target: int, *, mixed: bool = False) -> Batch:
    random = torch.Generator().manual_seed(3)
    n = n_source + n_target
    images = torch.randint(0, 256, (n, 3, 6, 6), generator=random, dtype=torch.uint8)
    labels = torch.randint(0, 3, (n,), generator=random)
    blend = Mixed(labels.flip(0), torch.rand(n, generator=random)) if mixed else None
    return Batch(images, labels, n_source, tuple(f"{i}.png" for i in range(n)), mixed=blend)


def _model() -> TransferModel:
    model = tiny_model()
    model.add_new_head("source", ["u", "v", "w"], hidden=(), dropout=0.0, seed=1)
    model.freeze("none", BatchNorm())
    return model.train()


def _gradients(model: TransferModel, batch: Batch, parts: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Class weights on one domain, smoothing on the other, λ = 0.3."""
    domains = {"source": DomainLoss(class_weights=torch.tensor([0.5, 1.0, 2.0])), "target": DomainLoss(0.1)}
    start = type("Start", (), {"original": type("Original", (), {"model": tiny_model()})})
    penalties = {"l2sp": l2sp.build(l2sp.Settings(weight=0.2), start)}
    objective = Objective(classification, 0.3, penalties, None, domains)
    weights = dict(model.named_parameters())
    how = (model, weights, objective, model.features_of, CPU, 0, batch, 1, 0, parts)
    terms = training._gradients(*how, log_cosine=False)
    return {name: p.grad.double() for name, p in weights.items() if p.grad is not None}, terms


@pytest.mark.parametrize("parts", [2, 3, 4, 7, 16])
@pytest.mark.parametrize(("n_source", "n_target"), [(6, 10), (0, 9), (9, 0), (2, 13)])
@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_and_terms_of_the_parts_add_up_to_those_of_the_step(
    parts: int, n_source: int, n_target: int, mixed: bool
) -> None:
    """Also where a part has samples of one domain alone, of whose parts each counts by its own number."""
    model, batch = _model(), _batch(n_source, n_target, mixed=mixed)
    whole, terms = _gradients(model, batch, 1)
    summed, terms_of_parts = _gradients(model, batch, parts)
    assert terms_of_parts == pytest.approx(terms, rel=1e-5)
    assert summed.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-4, atol=1e-7)


def test_every_sample_is_in_one_part_with_its_own_name_and_label() -> None:
    batch = _batch(5, 8)
    found = [part for part, _ in microbatches.of(batch, 4)]
    assert sorted(name for part in found for name in part.names) == sorted(batch.names)
    for part in found:
        assert [batch.names.index(name) < 5 for name in part.names] == [
            i < part.n_source for i in range(len(part.labels))
        ]
        assert part.labels.tolist() == [int(batch.labels[batch.names.index(name)]) for name in part.names]


class _Scarce:
    """A network in a machine that has memory for so many images at once."""

    def __init__(self, model: TransferModel, most: int, error: BaseException):
        self.model, self.most, self.error, self.tried = model, most, error, list[int]()

    def __call__(self, batch: Batch) -> Any:
        features = self.model.features_of(batch)  # BatchNorm has seen the images before memory runs out
        self.tried.append(len(batch.labels))
        if len(batch.labels) > self.most:
            raise self.error
        return features


def _out_of_memory(kind: str) -> BaseException:
    cpu = "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to …"
    return {
        "cpu": RuntimeError(cpu),
        "onednn": RuntimeError("could not create a primitive"),
        "cuda": torch.cuda.OutOfMemoryError("CUDA out of memory."),
        "python": MemoryError(),
    }[kind]


@pytest.mark.parametrize("kind", ["cpu", "onednn", "cuda", "python"])
def test_a_step_that_does_not_fit_is_halved_and_said_and_later_steps_begin_with_that(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, scarce = tiny_model(), tiny_model()
    settings = HeadTrainingSettings(epochs=2, on_oom="halve", optimizer={"lr": 0.05})
    frozen_norm = {"batchnorm": BatchNorm()}
    expected = fit(plain, settings, **frozen_norm)
    network = _Scarce(scarce, 2, _out_of_memory(kind))
    found = fit(scarce, settings, forward=network, **frozen_norm)
    assert network.tried[:5] == [5, 2, 3, 1, 1]  # five images; then two, of which one has three; then four
    said = capsys.readouterr().err
    assert said.count("out of memory: from here on each step is made in 2 micro-batches") == 1
    assert said.count("out of memory: from here on each step is made in 4 micro-batches") == 1
    assert found.last["val"]["loss"] == pytest.approx(expected.last["val"]["loss"], rel=1e-4)
    for ours, theirs in zip(scarce.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


def test_what_batchnorm_saw_in_an_attempt_that_failed_is_taken_back() -> None:
    """Statistics of the batch differ in parts; but an attempt without memory must leave no trace."""
    settings = HeadTrainingSettings(epochs=1, on_oom="halve")
    one, other = tiny_model(), tiny_model()
    fit(one, settings, forward=_Scarce(one, 3, MemoryError()))
    batches = [part for batch in TRAIN for part, _ in microbatches.of(batch, 2)]
    other.freeze("none", BatchNorm(thawed="train"))
    other.train()
    for part in batches:
        other.features_of(part)
    norm = {name: buffer for name, buffer in one.named_buffers() if "num_batches" in name}
    assert norm == {name: buffer for name, buffer in other.named_buffers() if "num_batches" in name} != {}


def test_without_being_asked_nothing_is_halved_and_the_error_says_what_to_write(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, spec: Path, invoke: Invoke
) -> None:
    monkeypatch.setattr(TransferModel, "features_of", lambda *_: (_ for _ in ()).throw(_out_of_memory("cuda")))
    code, answer = invoke("finetune", spec, "--runs-dir", tmp_path / "runs")
    assert code == 5 and "the GPU is out of memory; write on_oom: halve" in answer["error"]


def test_one_image_that_does_not_fit_is_exit_5_however_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Path, invoke: Invoke
) -> None:
    monkeypatch.setattr(TransferModel, "features_of", lambda *_: (_ for _ in ()).throw(_out_of_memory("cpu")))
    code, answer = invoke("finetune", spec, "--runs-dir", tmp_path / "runs", "--set", "on_oom=halve")
    assert code == 5 and "out of memory, 2 at a time; lower preprocess.crop" in answer["error"]


def test_batch_size_auto_is_the_default_batch_that_may_be_halved() -> None:
    settings = HeadTrainingSettings.model_validate({"batch_size": "auto"})
    assert (settings.batch_size, settings.on_oom) == (32, "halve")
    assert {"const": "auto"} in json_schema()["properties"]["batch_size"]["anyOf"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["batch_size=auto", "on_oom=stop"], "is auto, which halves micro-batches, but on_oom is not"),
        (["on_oom=halve", "source={train: train, gradient_cosine: true}"], "needs the gradients of whole steps"),
    ],
)
def test_contradictions_are_spec_errors(settings: list[str], message: str, spec: Path) -> None:
    words = [word for text in settings for word in ("--set", text)]
    result = CliRunner().invoke(app, ["finetune", str(spec), *words])
    assert result.exit_code == 2 and message in result.stderr


def test_scoring_halves_what_does_not_fit_and_scores_the_same() -> None:
    model, said = tiny_model(), list[str]()
    expected = scoring.measure(model, classification, VAL, model.features_of, CPU, "target", pytest.fail)
    scarce = _Scarce(model, 2, _out_of_memory("cpu"))
    found = scoring.measure(model, classification, VAL, scarce, CPU, "target", said.append)
    assert found["confusion"] == expected["confusion"] and found["loss"] == pytest.approx(expected["loss"])
    assert "5 images do not fit at once, and are scored 3 at a time" in said[0]
