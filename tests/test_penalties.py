"""Every penalty of the folder keeps the contract; each is its paper's formula, against an independent computation."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, rel_entr, softmax
from torch import Tensor, nn
from typer.testing import CliRunner

from transferctl import plugins
from transferctl.cli import app
from transferctl.contracts import Batch, Features, Mixed, PenaltyStart, StepContext
from transferctl.device import Compute
from transferctl.model import BatchNorm, Original, TransferModel
from transferctl.penalties import bss, cotuning, delta, ewc, lwf
from transferctl.preprocess import Preprocessing
from transferctl.spec import PenaltiesSettings
from transferctl.tasks import classification

PENALTIES = {module.__name__.rsplit(".", 1)[1]: module for module in plugins.modules("penalties")}
ZERO_AT_THE_START = {"ewc", "lwf", "delta"}
EVERY = pytest.mark.parametrize("module", PENALTIES.values(), ids=PENALTIES.keys())
FP32 = Compute(torch.device("cpu"), False, "")
BF16 = Compute(torch.device("cpu"), True, "")
N_SOURCE, N_TARGET = 3, 8


class Backbone(nn.Module):
    """Images of 3×4×4 -> maps [N, D, 2, 2] -> pooled [N, D]."""

    name = "tiny"

    def __init__(self, feature_dim: int = 4):
        super().__init__()
        self.feature_dim = feature_dim
        self.net = nn.Sequential(nn.Conv2d(3, feature_dim, 2, stride=2), nn.BatchNorm2d(feature_dim), nn.Tanh())

    def forward(self, images: Tensor, after: int = 0) -> Features:
        assert not after
        maps = self.net(images)
        return Features(maps.mean((2, 3)), maps)


class Flat(nn.Module):
    """An image of 3×1×1 is its own features: what its source head computes is multinomial logistic regression."""

    name, feature_dim = "flat", 3

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Identity()

    def forward(self, images: Tensor, after: int = 0) -> Features:
        assert not after
        return Features(images.flatten(1))


def transfer_model(backbone: nn.Module | None = None) -> TransferModel:
    torch.manual_seed(0)
    model = TransferModel("torchvision", backbone or Backbone(), Preprocessing(4, 4), "classification")
    model.add_new_head("source", ["a", "b", "c", "d", "e"], hidden=(), dropout=0.0, seed=0)
    model.add_new_head("target", ["x", "y", "z"], hidden=(), dropout=0.0, seed=0)
    model.freeze("none", BatchNorm())
    return model.train()


def images(n: int, seed: int, size: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, size, size), generator=generator, dtype=torch.uint8)


DATA = {
    "source": Batch(images(10, 1), torch.arange(10) % 5, 10),
    "source_val": Batch(images(30, 2), torch.arange(30) % 5, 30),
    "target": Batch(images(9, 3), torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])),
}
STEP = Batch(images(N_SOURCE + N_TARGET, 4), torch.tensor([4, 3, 2, 0, 1, 2, 0, 1, 2, 2, 0]), N_SOURCE)


def start_of(
    model: TransferModel,
    compute: Compute = FP32,
    data: dict[str, Batch] = DATA,
    note: Callable[[str], None] = lambda text: None,
) -> PenaltyStart:
    """Data in two batches each, so that what only looks at the first is found out."""

    def batches(name: str, most: int | None) -> Iterator[Batch]:
        if name in data:
            whole = data[name]
            n = min(len(whole.labels), most or len(whole.labels))
            for rows in (slice(0, n // 2), slice(n // 2, n)):
                yield Batch(whole.inputs[rows], whole.labels[rows])

    return PenaltyStart(model, Original(model, compute), batches, 0, note)


def context_of(model: TransferModel, start: PenaltyStart, batch: Batch = STEP) -> StepContext:
    return StepContext(model, model.features(batch.inputs), batch, start.original)


def moved(model: TransferModel) -> TransferModel:
    """As after some training."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def built(module: ModuleType, start: PenaltyStart, **settings: Any) -> Any:
    return module.build(module.Settings(weight=1.0, **settings), start)


# -- what every penalty of the folder keeps


@EVERY
def test_a_bare_weight_will_do_for_settings(module: ModuleType) -> None:
    name = module.__name__.rsplit(".", 1)[1]
    chosen = PenaltiesSettings.model_validate({name: 0.25}).chosen()
    assert chosen[name] == module.Settings(weight=0.25)
    assert built(module, start_of(transfer_model())).weight == 1.0


@EVERY
def test_its_needs_are_known_words_and_its_docstring_has_formula_and_paper(module: ModuleType) -> None:
    assert set(module.NEEDS) <= {"pretrained weights", "source data", "source head"}
    first, _, rest = module.__doc__.partition("\n")
    assert re.match(r".+: .+, .*[Σ‖²(].*\.$", first) and len(first) <= 120
    assert re.search(r"\b(PNAS|ICML|ICLR|TPAMI|NeurIPS) 20\d\d\b", rest)


@EVERY
@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
def test_its_value_is_a_finite_fp32_scalar_with_a_gradient_to_what_is_thawed(
    module: ModuleType, compute: Compute
) -> None:
    model = transfer_model()
    start = start_of(model, compute)
    penalty = built(module, start)
    moved(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=compute.bf16):
        features = model.features(STEP.inputs)
    value = penalty(StepContext(model, features, STEP, start.original))
    assert value.shape == () and value.dtype is torch.float32 and value.isfinite() and value > 0
    value.backward()
    gradient = model.backbone.net[0].weight.grad
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    assert all(p.grad is None for p in start.original.model.parameters())


@EVERY
def test_it_is_zero_at_the_start_where_it_looks_back(module: ModuleType) -> None:
    name = module.__name__.rsplit(".", 1)[1]
    model = transfer_model()
    start = start_of(model)
    settings = {"head_ratio": 0.0} if name == "l2sp" else {}  # the new head's decay is there from the first step
    value = built(module, start, **settings)(context_of(model, start))
    assert (value.item() == 0) == (name in ZERO_AT_THE_START | {"l2sp"})


@EVERY
def test_a_batch_with_every_image_twice_has_the_same_value(module: ModuleType) -> None:
    """D = 4 here: of fewer than D images the doubled matrix would have new singular values, all 0, and BSS takes the
    smallest."""
    model = transfer_model()
    start = start_of(model)
    penalty = built(module, start)
    moved(model)
    twice = Batch(STEP.inputs.repeat_interleave(2, 0), STEP.labels.repeat_interleave(2), 2 * N_SOURCE)
    one, two = (penalty(context_of(model, start, batch)) for batch in (STEP, twice))
    torch.testing.assert_close(one, two)


@EVERY
def test_source_images_in_the_batch_do_not_change_it(module: ModuleType) -> None:
    model = transfer_model()
    start = start_of(model)
    penalty = built(module, start)
    moved(model)
    alone = Batch(STEP.inputs[STEP.target], STEP.labels[STEP.target])
    torch.testing.assert_close(penalty(context_of(model, start)), penalty(context_of(model, start, alone)))


@EVERY
def test_the_objective_can_be_differentiated_with_the_backbone_frozen(module: ModuleType) -> None:
    model = transfer_model()
    start = start_of(model)
    penalty = built(module, start)
    moved(model).freeze("all", BatchNorm())
    context = context_of(model, start)
    loss = classification.loss(model.heads["target"], context.features[STEP.target], STEP.labels[STEP.target])
    (loss + penalty(context)).backward()
    assert model.heads["target"].layers[1].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in model.backbone.parameters())


@EVERY
def test_its_gradient_is_that_of_finite_differences(module: ModuleType) -> None:
    model = transfer_model()
    start = start_of(model)
    penalty = built(module, start)
    weight = moved(model).backbone.net[0].weight
    penalty(context_of(model, start)).backward()
    values = []
    for step in (1e-2, -1e-2):
        with torch.no_grad():
            weight[1, 2, 0, 1] += step
            values.append(penalty(context_of(model, start)).item())
            weight[1, 2, 0, 1] -= step
    assert weight.grad[1, 2, 0, 1].item() == pytest.approx((values[0] - values[1]) / 2e-2, rel=1e-2, abs=1e-4)


# -- EWC


def logistic_start(labels: Tensor) -> PenaltyStart:
    """Three kinds of images in turn, one for each of these labels."""
    inputs = images(3, 6, size=1)[torch.arange(len(labels)) % 3]
    return start_of(transfer_model(Flat()), data={"source": Batch(inputs, labels)})


def logistic_terms(start: PenaltyStart) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [N, 3], p [N, 5], one-hot labels [N, 5] of multinomial logistic regression."""
    (first, second) = start.batches("source", None)
    pixels, labels = (
        torch.cat(both).numpy() for both in zip(*((b.inputs, b.labels) for b in (first, second)), strict=True)
    )
    given = start.model.preprocessing
    x = (pixels.reshape(-1, 3) / 255 - np.array(given.mean)) / np.array(given.std)
    layer = start.model.heads["source"].layers[1]
    logits = x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return x, softmax(logits, axis=1), np.eye(5)[labels]


def fisher_of(start: PenaltyStart, **settings: Any) -> np.ndarray:
    """What EWC multiplies the squared drift of the source head's weights [5, 3] by: measured, one weight at a time."""
    penalty = built(ewc, start, **settings)
    weight = start.model.heads["source"].layers[1].weight
    context = StepContext(
        start.model, Features(torch.zeros(1, 3)), Batch(torch.zeros(1), torch.zeros(1)), start.original
    )
    found = np.empty(weight.shape)
    with torch.no_grad():
        for c, d in np.ndindex(*weight.shape):
            before = weight[c, d].item()
            weight[c, d] += 2.0
            found[c, d] = 2 * penalty(context).item() / 2.0**2
            weight[c, d] = before
    return found


def test_ewcs_empirical_fisher_of_logistic_regression_is_its_closed_form() -> None:
    """∂(−log p_y)/∂W = (p − y)·xᵀ."""
    start = logistic_start(torch.arange(12) % 5)
    x, p, y = logistic_terms(start)
    expected = np.einsum("nc,nd->cd", (p - y) ** 2, x**2) / len(x)
    np.testing.assert_allclose(fisher_of(start, fisher="empirical"), expected, rtol=1e-4)


def test_ewcs_true_fisher_of_logistic_regression_is_the_mean_over_the_models_own_labels() -> None:
    """E over y ~ p of (p_c − y_c)² is p_c·(1 − p_c). Six hundred draws; the data's labels give others."""
    start = logistic_start(torch.full((600,), 4))
    x, p, y = logistic_terms(start)
    expected = np.einsum("nc,nd->cd", p * (1 - p), x**2) / len(x)
    spread = np.einsum("nc,nd->cd", p * (1 - p) * (1 - 2 * p) ** 2, x**4) ** 0.5 / len(x)  # of Bernoulli draws
    found = fisher_of(start)
    assert (np.abs(found - expected) <= 4 * spread + 1e-6).all()
    empirical = np.einsum("nc,nd->cd", (p - y) ** 2, x**2) / len(x)
    assert (np.abs(found - empirical) > 8 * spread).any()


def test_ewc_is_the_formula_with_per_image_gradients_by_hand() -> None:
    model = transfer_model()
    start = start_of(model)
    penalty = built(ewc, start, samples=6, fisher="empirical")
    before = transfer_model()
    weights = [*before.backbone.parameters(), *before.heads["source"].parameters()]
    squares = [torch.zeros_like(w) for w in weights]
    before.eval()
    for i in range(6):
        before.zero_grad()
        logits = before.heads["source"](before.features(DATA["source"].inputs[i : i + 1]))
        (-logits.log_softmax(1)[0, DATA["source"].labels[i]]).backward()
        squares = [square + w.grad**2 for square, w in zip(squares, weights, strict=True)]
    after = [*moved(model).backbone.parameters(), *model.heads["source"].parameters()]
    drifts = [(now - then) ** 2 for now, then in zip(after, weights, strict=True)]
    expected = sum((f / 6 * d).sum() for f, d in zip(squares, drifts, strict=True)) / 2
    torch.testing.assert_close(penalty(context_of(model, start)), expected, rtol=1e-4, atol=0)
    model.backbone.net[0].requires_grad_(False)
    without = expected - sum((f / 6 * d).sum() for f, d in zip(squares[:2], drifts[:2], strict=True)) / 2
    torch.testing.assert_close(penalty(context_of(model, start)), without, rtol=1e-4, atol=0)


@pytest.mark.parametrize("frozen", [False, True])
def test_ewc_says_the_largest_entry_of_its_fisher_information_that_can_move(frozen: bool) -> None:
    """Which bounds lr·weight; an entry of a frozen weight bounds nothing."""
    model = transfer_model()
    model.backbone.net[0].requires_grad_(not frozen)
    notes: list[str] = []
    built(ewc, replace(start_of(model), note=notes.append), samples=6, fisher="empirical")
    network = transfer_model().eval()
    trained = [w for name, w in network.backbone.named_parameters() if not (frozen and name.startswith("net.0."))]
    squares = [torch.zeros_like(w) for w in trained]
    for i in range(6):
        logits = network.heads["source"](network.features(DATA["source"].inputs[i : i + 1]))
        gradients = torch.autograd.grad(-logits.log_softmax(1)[0, DATA["source"].labels[i]], trained)
        squares = [square + g**2 / 6 for square, g in zip(squares, gradients, strict=True)]
    (said,) = notes
    assert "(empirical) is a mean over 6 source training images" in said
    largest = float(re.search(r"that trains, ([\d.e-]+),", said)[1])
    assert largest == pytest.approx(max(float(square.max()) for square in squares), rel=5e-3)


def test_ewcs_labels_are_drawn_by_the_seed() -> None:
    model = transfer_model()
    starts = [replace(start_of(model), seed=seed) for seed in (1, 1, 2)]
    penalties = [built(ewc, start) for start in starts]
    moved(model)
    first, same, other = (penalty(context_of(model, starts[0])).item() for penalty in penalties)
    assert first == same != other


# -- LwF, DELTA, BSS


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_lwf_is_t_squared_times_the_kl_divergence_on_target_rows(temperature: float) -> None:
    model = transfer_model()
    start = start_of(model)
    penalty = built(lwf, start, temperature=temperature)
    z0, z = (_target_logits(network) for network in (start.original.model, moved(model)))
    divergence = rel_entr(softmax(z0 / temperature, axis=1), softmax(z / temperature, axis=1)).sum(1).mean()
    assert penalty(context_of(model, start)).item() == pytest.approx(temperature**2 * divergence, rel=1e-4)


def _target_logits(model: TransferModel) -> np.ndarray:
    """Of the source head, on the step's target images: [N, C_s]."""
    with torch.no_grad():
        logits: np.ndarray = model.heads["source"](model.features(STEP.inputs[N_SOURCE:])).double().numpy()
    return logits


@pytest.mark.parametrize("has_maps", [True, False], ids=["maps", "pooled"])
def test_delta_is_the_mean_squared_drift_of_the_last_maps(has_maps: bool) -> None:
    model = transfer_model()
    start = start_of(model)
    penalty = built(delta, start)
    moved(model)
    context = context_of(model, start)
    now, then = (network.features(STEP.inputs[N_SOURCE:]) for network in (model, start.original.model))
    if has_maps:
        drift = (now.maps - then.maps).detach().numpy()
    else:
        drift = (now.pooled - then.pooled).detach().numpy()
        context = replace(context, features=Features(context.features.pooled))
        context.__dict__["original_target_features"] = Features(then.pooled)
    assert drift.shape == ((N_TARGET, 4, 2, 2) if has_maps else (N_TARGET, 4))
    assert penalty(context).item() == pytest.approx((drift**2).sum() / drift.size, rel=1e-5)


@pytest.mark.parametrize("k", [1, 2, 4, 9])
def test_bss_is_the_smallest_eigenvalues_of_the_second_moments(k: int) -> None:
    """Of four, all where k is more."""
    model = transfer_model()
    start = start_of(model)
    context = context_of(model, start)
    pooled = context.features.pooled[N_SOURCE:].detach().double().numpy()
    eigenvalues = np.linalg.eigvalsh(pooled.T @ pooled / N_TARGET)  # ascending
    assert built(bss, start, k=k)(context).item() == pytest.approx(eigenvalues[:k].sum(), rel=1e-4)


def test_bss_of_features_that_are_no_numbers_is_no_number() -> None:
    """So that the loop says which step diverged."""
    model = transfer_model()
    start = start_of(model)
    features = Features(torch.full((N_SOURCE + N_TARGET, 4), float("nan"), requires_grad=True))
    assert built(bss, start)(StepContext(model, features, STEP, start.original)).isnan()


# -- Co-Tuning


def test_cotuning_fits_the_temperature_that_minimises_the_cross_entropy() -> None:
    random = np.random.default_rng(0)
    logits, labels = 5 * random.normal(size=(200, 4)), random.integers(4, size=200)
    logits[np.arange(200), labels] += 4
    loss = lambda t: -log_softmax(logits / t, axis=1)[np.arange(200), labels].mean()  # noqa: E731
    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    halves = [(torch.from_numpy(logits[rows]), torch.from_numpy(labels[rows])) for rows in (slice(70), slice(70, 200))]
    assert cotuning.fitted_temperature(halves) == pytest.approx(best, rel=1e-4)
    assert 1 < best < 20


@pytest.mark.parametrize("calibrated", [True, False])
def test_cotuning_is_the_cross_entropy_against_the_classes_mean_source_probabilities(calibrated: bool) -> None:
    model = transfer_model()
    notes: list[str] = []
    with torch.no_grad():
        val = model.heads["source"](model.features(DATA["source_val"].inputs)).double().numpy()
    of_labels = np.where(np.arange(30) % 3, val.argmax(1), 0)  # two thirds right and more
    validation = {"source_val": replace(DATA["source_val"], labels=torch.from_numpy(of_labels))}
    data = DATA | validation if calibrated else {"target": DATA["target"]}
    start = start_of(model, data=data, note=notes.append)
    penalty = built(cotuning, start)
    (said,) = notes
    assert ("not calibrated" in said) != calibrated
    with torch.no_grad():
        z0 = model.heads["source"](model.features(DATA["target"].inputs)).double().numpy()
    temperature = 1.0
    if calibrated:
        loss = lambda t: -log_softmax(val / t, axis=1)[np.arange(30), of_labels].mean()  # noqa: E731
        temperature = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
        assert 0.06 < temperature < 0.9
    p, y_t = softmax(z0 / temperature, axis=1), DATA["target"].labels.numpy()
    relation = np.stack([p[y_t == label].mean(0) for label in range(3)])
    z = _target_logits(moved(model))
    labels = STEP.labels[STEP.target].numpy()
    expected = -(relation[labels] * log_softmax(z, axis=1)).sum(1).mean()
    assert penalty(context_of(model, start)).item() == pytest.approx(expected, rel=1e-4)

    partners = np.roll(labels, 1)
    share = np.linspace(0.1, 0.9, N_TARGET)
    mixed = Mixed(
        torch.cat([STEP.labels[STEP.source], torch.from_numpy(partners)]),
        torch.cat([torch.ones(N_SOURCE), torch.from_numpy(share).float()]),
    )
    wanted = share[:, None] * relation[labels] + (1 - share[:, None]) * relation[partners]
    expected = -(wanted * log_softmax(z, axis=1)).sum(1).mean()
    assert penalty(context_of(model, start, replace(STEP, mixed=mixed))).item() == pytest.approx(expected, rel=1e-4)


# -- through the command line

SPEC = """
name: tiny
backbone: {name: resnet18, weights: none}
preprocess: {resize: 36, crop: 32}
target: {train: {dataset: digits, classes: [2, 3], per_class: 12}, val: {dataset: digits, classes: [2, 3], per_class: 4}}
source:
  train: {dataset: digits, classes: [0, 1], per_class: 12}
  val: {dataset: digits, classes: [0, 1], per_class: 4}
  rehearsal: false
epochs: 8
batch_size: 8
workers: 0
optimizer: {lr: 0.001, momentum: 0}
schedule: constant
pretrain: {epochs: 16, batch_size: 8, label_smoothing: 0.4, optimizer: {lr: 0.005}}
"""
# As steep as these steps bear: a step over a penalty's minimum would say more about rounding than about the penalty.
STRONG = {"l2sp": 200, "ewc": 8000, "lwf": 0.5, "delta": 1, "bss": 2, "cotuning": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a spec whose backbone was pretrained on two digits, to be fine-tuned on two others."""
    root = tmp_path_factory.mktemp("penalties")
    (root / "spec.yaml").write_text(SPEC)
    code, stage0 = _invoke("pretrain", root)
    assert code == 0
    (root / "spec.yaml").write_text(SPEC.replace("weights: none", f"weights: {stage0['run']}"))
    return root


@pytest.fixture(scope="module")
def without(folder: Path) -> dict[str, Tensor]:
    """The weights that fine-tuning without a penalty ends with."""
    return _weights(_invoke("finetune", folder)[1])


def _invoke(verb: str, folder: Path, *settings: str) -> tuple[int, dict[str, Any]]:
    words = [word for setting in settings for word in ("--set", setting)]
    result = CliRunner().invoke(
        app, [verb, str(folder / "spec.yaml"), *words, "--runs-dir", str(folder / "runs"), "--json"]
    )
    assert "Traceback" not in result.output
    return result.exit_code, json.loads(result.stdout)


def _weights(answer: dict[str, Any]) -> dict[str, Tensor]:
    return load_file(Path(answer["run"]) / "checkpoints" / "last" / "model.safetensors")


def _last_value(answer: dict[str, Any], term: str) -> float:
    """The mean of a term over the last epoch's steps."""
    lines = [json.loads(line) for line in (Path(answer["run"]) / "metrics.jsonl").read_text().splitlines()]
    value: float = [line for line in lines if line["split"] == "train"][-1][term]
    return value


@pytest.mark.parametrize("name", PENALTIES)
def test_weight_0_trains_the_same_bits_as_without_it_and_a_large_weight_keeps_it_low(
    name: str, folder: Path, without: dict[str, Tensor]
) -> None:
    code, idle = _invoke("finetune", folder, f"penalties.{name}=0")
    assert code == 0
    assert all(torch.equal(tensor, without[key]) for key, tensor in _weights(idle).items())
    code, strong = _invoke("finetune", folder, f"penalties.{name}={STRONG[name]}")
    assert code == 0
    low, high = (_last_value(answer, f"penalty_{name}") for answer in (strong, idle))
    assert 0 <= low < 0.95 * high
    weighted = _last_value(strong, "loss_target") + STRONG[name] * low
    assert _last_value(strong, "loss") == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("name", [name for name in PENALTIES if name != "bss"])
def test_what_looks_back_needs_weights_to_look_back_at(name: str, folder: Path) -> None:
    code, answer = _invoke("finetune", folder, f"penalties.{name}=1", "backbone.weights=none")
    assert code == 2
    assert f"penalties.{name}: needs pretrained weights, but there are none" in answer["error"]


def test_bss_needs_nothing(folder: Path) -> None:
    code, _ = _invoke("finetune", folder, "penalties.bss=0.1", "backbone.weights=none", "source=~", "epochs=1")
    assert code == 0


def test_ewc_without_source_data_is_refused(folder: Path) -> None:
    code, answer = _invoke("finetune", folder, "penalties.ewc=1", "source=~")
    assert code == 2
    assert "penalties.ewc: needs source data, but there is no `source`; add it" in answer["error"]


def test_cotuning_without_source_data_says_that_it_does_not_calibrate(folder: Path) -> None:
    code, answer = _invoke("finetune", folder, "penalties.cotuning=1", "source=~", "epochs=1")
    assert code == 0
    log = (Path(answer["run"]) / "log.txt").read_text()
    assert "temperature is 1 (not calibrated: there are no source validation images)" in log


def test_ewc_says_how_many_images_its_fisher_information_comes_from(folder: Path) -> None:
    code, answer = _invoke("finetune", folder, "penalties.ewc={weight: 1, fisher: empirical}", "epochs=1")
    assert code == 0
    log = (Path(answer["run"]) / "log.txt").read_text()
    assert "the Fisher information (empirical) is a mean over 24 source training images" in log


def test_diverging_features_end_bss_with_the_step_and_no_traceback(folder: Path) -> None:
    code, answer = _invoke("finetune", folder, "penalties.bss=1", "optimizer.lr=1e6")
    assert code == 6
    assert "step" in answer["error"]
