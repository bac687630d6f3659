"""The converged linear probe: against scikit-learn, scipy and finite differences; then through the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from transferctl import checkpoint, crossvalidation, data, heads, loaders, probe, yamlfile
from transferctl.contracts import Batch, Features
from transferctl.crossvalidation import Score
from transferctl.errors import DataError, DivergedError
from transferctl.model import restore
from transferctl.probe import Problem, Samples
from transferctl.tasks import classification

Data = tuple[np.ndarray, np.ndarray]


def _data(n: int = 150, features: int = 9, classes: int = 4, seed: int = 0) -> Data:
    """Classes that overlap, of unequal sizes, on features of unequal means and scales."""
    random = np.random.default_rng(seed)
    y = np.sort(random.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(classes + 1))))
    x = random.normal(size=(classes, features))[y] + 1.5 * random.normal(size=(n, features))
    order = random.permutation(n)
    return (x * np.logspace(-2, 2, features) + np.linspace(-50, 300, features)).astype(np.float32)[order], y[order]


def _samples(data: Data, *, chunk: int = 64, **settings: Any) -> Samples:
    """In chunks, so that sums go over several."""
    x, y = map(torch.from_numpy, data)

    def passes(most: int) -> Any:
        size = min(chunk, most)
        return (Batch(x[i : i + size], y[i : i + size]) for i in range(0, len(y), size))

    return Samples(passes, data[1], int(data[1].max()) + 1, torch.device("cpu"), **settings)


def _scikit(data: Data, alpha: float, **settings: Any) -> Any:
    """The same objective: scikit-learn sums the loss where ours is a mean."""
    model = LogisticRegression(C=1 / (len(data[1]) * alpha), tol=1e-9, max_iter=20_000, **settings)
    return make_pipeline(StandardScaler(), model).fit(data[0].astype(np.float64), data[1])


def _log_p(found: probe.Probe, x: np.ndarray) -> torch.Tensor:
    return (torch.from_numpy(x).double() @ found.weight.T + found.bias).log_softmax(1)


def _standardised(found: probe.Probe, x: np.ndarray) -> np.ndarray:
    """The weights of standardised features [C, D]."""
    return found.weight.numpy() * x.std(0, dtype=np.float64)


# -- the minimum ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [3.0, 0.1, 0.003])
@pytest.mark.parametrize("classes", [3, 5])
def test_it_is_scikit_learns_logistic_regression(alpha: float, classes: int) -> None:
    data = _data(classes=classes)
    found, theirs = probe.fit(_samples(data), alpha, tolerance=1e-8), _scikit(data, alpha)
    assert found.converged
    assert _standardised(found, data[0]) == pytest.approx(theirs[-1].coef_, abs=1e-5)
    assert _log_p(found, data[0]).exp().numpy() == pytest.approx(theirs.predict_proba(data[0].astype(float)), abs=1e-6)


def test_of_two_classes_it_is_scikit_learns_with_half_the_regularisation() -> None:
    """Of two classes scikit-learn has one row w, here w/2 and −w/2: ‖W‖² is half of ‖w‖²."""
    data = _data(classes=2)
    found, theirs = probe.fit(_samples(data), 0.1, tolerance=1e-8), _scikit(data, 0.05)
    assert _log_p(found, data[0]).exp().numpy() == pytest.approx(theirs.predict_proba(data[0].astype(float)), abs=1e-6)


def test_class_weights_are_scikit_learns() -> None:
    data = _data()
    weights = len(data[1]) / (4 * np.bincount(data[1]))
    weighted = probe.fit(_samples(data, class_weights=torch.from_numpy(weights)), 0.05, tolerance=1e-8)
    theirs = _scikit(data, 0.05, class_weight="balanced")
    assert _standardised(weighted, data[0]) == pytest.approx(theirs[-1].coef_, abs=1e-5)
    plain = probe.fit(_samples(data), 0.05, tolerance=1e-8)
    assert np.abs(_standardised(plain, data[0]) - theirs[-1].coef_).max() > 0.01


@pytest.mark.parametrize("weighted", [False, True])
def test_with_label_smoothing_it_minimises_the_tasks_own_loss(weighted: bool) -> None:
    """Against scipy's BFGS on the loss that the other solver steps down, written for standardised features."""
    x, y = _data(n=60, features=4, classes=3)
    weights = torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64) if weighted else None
    found = probe.fit(_samples((x, y), label_smoothing=0.2, class_weights=weights), 0.02, tolerance=1e-8)
    z = torch.from_numpy((x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64))

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.from_numpy(flat).requires_grad_()
        w, b = parameters[:12].view(3, 4), parameters[12:]
        nll = -(z @ w.T + b).log_softmax(1)
        smoothed = 0.8 * nll[torch.arange(60), torch.from_numpy(y)] + 0.2 * nll.mean(1)
        value = (smoothed * (1 if weights is None else weights[y])).mean() + 0.01 * w.square().sum()
        return value.item(), torch.autograd.grad(value, parameters)[0].numpy()

    theirs = optimize.minimize(objective, np.zeros(15), jac=True, method="BFGS", options={"gtol": 1e-8})
    assert found.objective == pytest.approx(theirs.fun, abs=1e-10)
    assert _standardised(found, x).ravel() == pytest.approx(theirs.x[:12], abs=1e-5)
    head = classification.head(4, 3)
    heads._put(found, head)
    loss = classification.loss(
        head, Features(torch.from_numpy(x)), torch.from_numpy(y), label_smoothing=0.2,
        class_weights=None if weights is None else weights.float(),
    )  # fmt: skip
    assert found.loss == pytest.approx(float(loss.detach()), abs=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_gradient_is_that_of_finite_differences_for_every_fold(smoothing: float) -> None:
    data = _data(n=40, features=3, classes=3)
    weights = torch.tensor([0.5, 1.0, 2.0])
    trained = crossvalidation.folds(data[1], 2, seed=0)[:, None] != np.arange(2)
    problem = Problem(_samples(data, label_smoothing=smoothing, class_weights=weights), trained, torch.float64)
    at = torch.from_numpy(np.random.default_rng(1).normal(size=(4, 2, 3)))
    numeric = torch.empty_like(at)
    for i in range(at.numel()):
        step = torch.zeros(at.numel(), dtype=torch.float64)
        step[i] = 1e-5
        up, down = (problem.value_and_gradient(at + s * step.view_as(at), 0.3)[0] for s in (1, -1))
        numeric.view(-1)[i] = (up - down) / 2e-5
    assert problem.value_and_gradient(at, 0.3)[1].numpy() == pytest.approx(numeric.numpy(), abs=1e-8)


def test_scales_offsets_order_and_chunks_of_the_features_do_not_matter() -> None:
    """Powers of two are exact in float32."""
    x, y = _data()
    found = probe.fit(_samples((x, y)), 0.05, tolerance=1e-8)
    log_p = _log_p(found, x).numpy()
    scales = 2.0 ** np.random.default_rng(0).integers(-8, 8, x.shape[1]).astype(np.float32)
    scaled = probe.fit(_samples((x * scales, y)), 0.05, tolerance=1e-8)
    assert _log_p(scaled, x * scales).numpy() == pytest.approx(log_p, abs=1e-6)
    order = np.random.default_rng(1).permutation(len(y))
    shuffled = probe.fit(_samples((x[order], y[order]), chunk=7), 0.05, tolerance=1e-8)
    assert _log_p(shuffled, x).numpy() == pytest.approx(log_p, abs=1e-6)


def test_features_that_are_no_numbers_are_divergence_not_a_head() -> None:
    x, y = _data()
    x[7, 3] = np.nan
    with pytest.raises(DivergedError, match="features of training images are not finite"):
        probe.fit(_samples((x, y)), 0.1)


def test_small_problems_are_solved_by_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, before = set[int](), torch.get_num_threads()
    evaluate = Problem.value_and_gradient

    def watched(self: Problem, *how: Any) -> Any:
        seen.add(torch.get_num_threads())
        return evaluate(self, *how)

    monkeypatch.setattr(Problem, "value_and_gradient", watched)
    torch.set_num_threads(2)
    try:
        probe.fit(_samples(_data()), 0.1)
        assert seen == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_feature_that_does_not_vary_has_no_weight() -> None:
    x, y = _data()
    constant = np.full((len(y), 1), 0.1, dtype=np.float32)
    found, without = (probe.fit(_samples((f, y)), 0.05) for f in (np.hstack([x, constant]), x))
    assert (found.weight[:, -1] == 0).all()
    assert found.objective == pytest.approx(without.objective, abs=1e-9)


def test_a_gradient_above_its_tolerance_is_not_called_converged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MOST_ITERATIONS", 3)
    found = probe.fit(_samples(_data()), 1e-4)
    assert found.gradient > found.tolerance and not found.converged and found.iterations == 3


# -- cross-validation ----------------------------------------------------------------------------------


def test_cross_validation_is_scikit_learns_on_the_same_folds() -> None:
    """Standardised by the other folds alone, as a pipeline has it."""
    data = _data()
    fold_of = crossvalidation.folds(data[1], 4, seed=3)
    curve = crossvalidation.cross_validate(_samples(data), fold_of, (1.0, 0.1, 0.05), least_gain=0)
    assert [score.regularisation for score in curve] == [1.0, 0.1, 0.05]
    for score in curve:
        for k in range(4):  # one by one: C depends on a fold's own size
            split = PredefinedSplit(np.where(fold_of == k, 0, -1))
            c = 1 / (np.sum(fold_of != k) * score.regularisation)
            model = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-8, max_iter=5000))
            scores = [
                cross_val_score(model, data[0].astype(float), data[1], cv=split, scoring=scoring)[0]
                for scoring in ("neg_log_loss", "accuracy")
            ]
            right = (score.predicted == data[1])[fold_of == k].mean()
            assert [-score.losses[k], right] == pytest.approx(scores, abs=1e-3)
        assert score.accuracy == (score.predicted == data[1]).mean()


def test_each_sample_is_predicted_by_a_probe_that_has_not_seen_it_nor_chosen_its_strength_by_it() -> None:
    x, y = _data(n=90, features=60)
    fold_of = crossvalidation.folds(y, 3, seed=0)
    curve = crossvalidation.cross_validate(_samples((x, y)), fold_of, (3.0, 0.3, 0.03), least_gain=0)
    predicted = crossvalidation.out_of_fold(curve, fold_of)
    for k in range(3):
        kept, rest = fold_of != k, [i for i in range(3) if i != k]
        means = np.array([score.losses[rest].mean() for score in curve])
        error = curve[int(means.argmin())].losses[rest].std(ddof=1) / np.sqrt(2)
        alpha = max(s.regularisation for s, mean in zip(curve, means, strict=True) if mean <= means.min() + error)
        model = make_pipeline(
            StandardScaler(), LogisticRegression(C=1 / (kept.sum() * alpha), tol=1e-8, max_iter=5000)
        ).fit(x[kept], y[kept])
        assert (model.predict(x[~kept]) == predicted[~kept]).mean() > 0.95  # float32 may turn a tie


def test_folds_share_out_each_class_and_follow_the_seed() -> None:
    y = np.random.default_rng(0).choice(4, 103, p=[0.1, 0.2, 0.3, 0.4])
    fold_of = crossvalidation.folds(y, 5, seed=1)
    for members in (np.arange(103), *(np.flatnonzero(y == c) for c in range(4))):
        sizes = np.bincount(fold_of[members], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    assert (crossvalidation.folds(y, 5, seed=1) == fold_of).all()
    assert (crossvalidation.folds(y, 5, seed=2) != fold_of).any()


def test_the_smallest_class_limits_the_folds_and_one_sample_of_a_class_is_an_error() -> None:
    assert crossvalidation.fold_count(np.repeat([0, 1], [9, 30]), ("a", "b"), "target.train", "") == 5
    assert crossvalidation.fold_count(np.repeat([0, 1], [3, 30]), ("a", "b"), "target.train", "") == 3
    with pytest.raises(DataError, match=r"target.train: one sample of b, too few .* or write a number"):
        crossvalidation.fold_count(np.repeat([0, 1], [3, 1]), ("a", "b"), "target.train", "write a number")


def _score(alpha: float, mean: float, spread: float) -> Score:
    return Score(alpha, np.array([mean - spread, mean + spread]), np.zeros(4, dtype=np.int64), 0.5, True)


def test_the_strongest_within_a_standard_error_of_the_best_is_chosen() -> None:
    """Of two folds ± s the standard error is s."""
    curve = [_score(10, 0.71, 0.3), _score(1, 0.59, 0.3), _score(0.1, 0.5, 0.1), _score(0.01, 0.55, 0.3)]
    assert crossvalidation.choose(curve).regularisation == 1
    assert crossvalidation.choose(curve[2:]).regularisation == 0.1


def test_weaker_ones_are_not_tried_once_the_loss_is_a_standard_error_above_the_best() -> None:
    data = _data(n=60, features=40)
    curve = crossvalidation.cross_validate(_samples(data), crossvalidation.folds(data[1], 5, seed=0))
    losses = [float(score.losses.mean()) for score in curve]
    best = int(np.argmin(losses))
    assert len(curve) < len(crossvalidation.GRID) and list(crossvalidation.GRID[: len(curve)]) == [
        score.regularisation for score in curve
    ]
    limits = [losses[best] + curve[best].standard_error] * (len(curve) - 1)
    assert losses[-1] > limits[0] and all(a <= b for a, b in zip(losses[best:-1], limits[best:], strict=True))


# -- the commands --------------------------------------------------------------------------------------

LBFGS = ("--set", "head={solver: lbfgs}")


def _domain(spec: Path) -> tuple[Any, Any]:
    target = yamlfile.load(spec).spec.target
    return target.train, target.val


def _metrics(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("balance", ["none", "weights", "sampling"])
def test_extract_saves_the_head_that_scikit_learn_finds_on_its_features(
    call: Any, spec: Path, tmp_path: Path, balance: str
) -> None:
    settings = (
        "--set",
        "precision=fp32",
        "--set",
        "head={solver: lbfgs, regularisation: 0.05}",
        "--set",
        f"target.balance={balance}",
    )
    answer = call("extract", spec, *settings, "--runs-dir", tmp_path / "runs")
    model = restore(checkpoint.load(Path(answer["run"])))
    domain = data.load_domain(*_domain(spec), None, 0, domain="target")
    batches = list(
        loaders.evaluation_batches(domain.train, classification, model.preprocessing, batch_size=64, workers=0)
    )
    with torch.inference_mode():
        x = np.concatenate([model.eval().features(batch.inputs).pooled.numpy() for batch in batches])
    theirs = _scikit((x, domain.train.labels), 0.05, class_weight=None if balance == "none" else "balanced")
    with torch.inference_mode():
        ours = model.heads["target"](Features(torch.from_numpy(x))).softmax(1).numpy()
    assert ours == pytest.approx(theirs.predict_proba(x.astype(float)), abs=1e-4)
    assert answer["probe"]["converged"] and answer["probe"]["gradient"] <= answer["probe"]["tolerance"]


def test_extract_says_and_keeps_how_regularisation_was_chosen(call: Any, spec: Path, tmp_path: Path) -> None:
    answer = call("extract", spec, *LBFGS, "--runs-dir", tmp_path)
    probed, run = answer["probe"], Path(answer["run"])
    tried = [point["regularisation"] for point in probed["cross_validation"]]
    assert probed["folds"] == 5 and probed["regularisation"] in tried
    log = (run / "log.txt").read_text()
    assert f"head.regularisation: auto = {probed['regularisation']:g}" in log and "5-fold" in log
    assert "does not use: epochs, batch_size, optimizer" in log
    train, val = _metrics(answer["run"])
    assert (train["split"], val["split"]) == ("train", "val")
    assert train["gradient"] == probed["gradient"] and val["accuracy"] == answer["best"]["val"]["accuracy"]
    assert answer["best"]["epoch"] == answer["last"]["epoch"] == probed["iterations"] == train["epoch"]
    again = call("extract", spec, *LBFGS, "--runs-dir", tmp_path)
    assert again["probe"] == probed
    assert call("eval", run, "--runs-dir", tmp_path)["accuracy"] == val["accuracy"]


def test_a_baseline_stands_beside_the_converged_head(call: Any, spec: Path, tmp_path: Path) -> None:
    answer = call("extract", spec, *LBFGS, "--set", "baseline={epochs: 1, repeats: 2}", "--runs-dir", tmp_path)
    assert len(answer["baseline"]["runs"]) == 2
    log = (Path(answer["run"]) / "log.txt").read_text()
    assert "does not use: epochs, optimizer" in log  # but the batch size, from scratch


def test_head_first_trains_the_head_to_convergence(call: Any, spec: Path, tmp_path: Path) -> None:
    settings = ("--set", "head_first={epochs: 7}", "--set", "epochs=1", "--runs-dir", tmp_path)
    answer = call("finetune", spec, *LBFGS, *settings)
    first = answer["head_first"]["target"]
    alone = call("extract", spec, *LBFGS, "--runs-dir", tmp_path)
    assert first["probe"] == alone["probe"] and first["val"]["accuracy"] == alone["best"]["val"]["accuracy"]
    assert "finetune does not use: head_first.epochs" in (Path(answer["run"]) / "log.txt").read_text()


def test_finetune_without_head_first_says_that_it_has_no_use_for_the_solver(
    call: Any, spec: Path, tmp_path: Path
) -> None:
    answer = call("finetune", spec, *LBFGS, "--set", "epochs=1", "--runs-dir", tmp_path)
    assert "finetune does not use: head.solver" in (Path(answer["run"]) / "log.txt").read_text()


@pytest.mark.parametrize(
    ("head", "key", "words"),
    [
        ("{solver: lbfgs, hidden: [8]}", "head.hidden", "is for solver: sgd"),
        ("{solver: lbfgs, dropout: 0.5}", "head.dropout", "is for solver: sgd"),
        ("{regularisation: 0.1}", "head.regularisation", "is for solver: lbfgs"),
        ("{solver: lbfgs, regularisation: 0}", "head.regularisation", "must be greater than 0, not 0"),
        ("{solver: newton}", "head.solver", "must be sgd or lbfgs, not 'newton'"),
    ],
)
def test_a_head_that_lbfgs_cannot_train_is_refused(invoke: Any, spec: Path, head: str, key: str, words: str) -> None:
    code, answer = invoke("extract", spec, "--set", f"head={head}")
    assert code == 2 and f"{key}: {words}" in answer["error"]


@pytest.mark.parametrize("verb", ["check", "extract"])
def test_a_class_of_one_sample_is_told_before_features_are_computed(
    invoke: Any, image_folder: Any, spec: Path, tmp_path: Path, verb: str
) -> None:
    image_folder("few", ants=9, bees=9, wasps=1)
    where = () if verb == "check" else ("--runs-dir", tmp_path / "none")
    code, answer = invoke(verb, spec, *LBFGS, "--set", f"target.train={tmp_path / 'few'}", *where)
    assert code == 3 and "target.train: one sample of wasps" in answer["error"]
    assert not (tmp_path / "none").exists()
    number = ("--set", "head={solver: lbfgs, regularisation: 0.1}")
    code, _ = invoke(verb, spec, *number, "--set", f"target.train={tmp_path / 'few'}", *where)
    assert code == 0


def test_one_that_does_not_converge_is_a_warning_with_the_number(
    call: Any, spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "MOST_ITERATIONS", 2)
    answer = call("extract", spec, *LBFGS, "--runs-dir", tmp_path)
    assert not answer["probe"]["converged"]
    log = (Path(answer["run"]) / "log.txt").read_text()
    assert (
        f"warning: target head: L-BFGS has not converged in 2 iterations; largest gradient {answer['probe']['gradient']:.1e}"
        in log
    )
    assert "warning: cross-validation: not converged in 2 iterations at" in log


@pytest.mark.real
def test_on_cifar10_it_is_at_least_as_good_as_sgd(call: Any, tmp_path: Path, real_data: Path) -> None:
    """Mean over three seeds of 2,000 test images each; half a point is less than their standard deviation."""
    (tmp_path / "cifar10.yaml").write_text(f"""
backbone: {{name: resnet18, weights: {real_data}/resnet18-tinyimagenet.pth}}
preprocess: {{resize: 64, crop: 64}}
target: {{train: {real_data}/cifar10-mini/train, test: {real_data}/cifar10-mini/val}}
epochs: 100
""")
    scores: dict[str, list[float]] = {}
    for solver in ("sgd", "lbfgs"):
        for seed in (0, 1, 2):
            settings = ("--set", f"head.solver={solver}", "--set", f"seed={seed}", "--runs-dir", tmp_path / "runs")
            scores.setdefault(solver, []).append(
                call("extract", tmp_path / "cifar10.yaml", *settings)["test"]["accuracy"]
            )
    assert np.mean(scores["lbfgs"]) >= np.mean(scores["sgd"]) - 0.005, scores
    assert np.mean(scores["lbfgs"]) >= 0.49  # 50.6 % of a probe that saw all 500 images, and whose C the test chose
