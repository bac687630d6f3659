"""The converged linear probe: multinomial logistic regression on frozen features, by L-BFGS.

    min over W, b of  J = 1/n Σ w_i ℓ(z_i·W + b, t_i) + α/2 ‖W‖²,    z = (x − μ) / σ

ℓ: cross-entropy; t: the label, smoothed as `label_smoothing` says; w: the weight of the sample's class; μ, σ: mean and
standard deviation of the training features; the bias is not penalised. J is convex, so there is nothing to tune but α,
which cross-validation chooses on training data.

Shapes: n samples in chunks of m, D features, C classes, K problems that differ in the samples they leave out (the folds
of a cross-validation), whose sum is minimised as one: a pass over the features serves all K, and as they are alike,
L-BFGS needs no more steps than for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from transferctl.contracts import Batch
from transferctl.errors import DivergedError

TOLERANCE = 1e-6  # of the largest component of ∇J, where J has converged
MOST_ITERATIONS = 2000
HISTORY = 10  # pairs of steps and gradient changes that L-BFGS keeps
CHUNK = 1024  # samples: their [m, K·C] logits stay in the processor's cache
ONE_THREAD_PRODUCTS = 10**8  # multiplications a pass, below which threads do not pay


@dataclass(frozen=True)
class Samples:
    """Labelled features, and how their mean loss is taken.

    passes(m): the samples in order, in Batches of at most m, float32 [m, D] and int64 [m]. labels: int64 [n]. device:
    where products are taken. class_weights: [C], or all samples count the same.
    """

    passes: Callable[[int], Iterable[Batch]]
    labels: np.ndarray
    classes: int
    device: torch.device
    label_smoothing: float = 0.0
    class_weights: Tensor | None = None

    def chunks(self, dtype: torch.dtype, centre: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, features less `centre` [m, D], labels [m], on the device."""
        start = 0
        for batch in self.passes(CHUNK):
            rows = slice(start, start + len(batch.labels))
            yield rows, batch.inputs.to(self.device) - centre.to(dtype), batch.labels.to(self.device)
            start = rows.stop


@dataclass(frozen=True)
class Probe:
    """A linear head on features as they come. weight: float64 [C, D]; bias: float64 [C].

    loss: the mean over training data; objective: J; gradient: the largest component of ∇J in W and b; iterations: of
    L-BFGS; passes: over the features.
    """

    weight: Tensor
    bias: Tensor
    regularisation: float
    loss: float
    objective: float
    gradient: float
    tolerance: float
    iterations: int
    passes: int

    @property
    def converged(self) -> bool:
        return self.gradient <= self.tolerance


def fit(samples: Samples, regularisation: float, tolerance: float = TOLERANCE) -> Probe:
    """The head that minimises J, in float64. Whether it converged stands in the result."""
    problem = Problem(samples, np.ones((len(samples.labels), 1), dtype=bool), torch.float64)
    found = problem.minimise(regularisation, problem.zeros(), tolerance)
    weight, bias = problem.folded(found.parameters)
    loss = found.value - regularisation / 2 * float(found.parameters[:-1].square().sum())
    return Probe(
        weight[:, 0].T.contiguous(), bias[0], regularisation, loss, found.value, found.gradient, tolerance,
        found.iterations, found.passes,
    )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """parameters: float64 [D + 1, K, C], of standardised features, the bias last; ended: by itself, not for want of
    iterations."""

    parameters: Tensor
    value: float
    gradient: float
    iterations: int
    passes: int
    ended: bool


class Problem:
    """Σ over K of J, each over its own samples. trained: bool [n, K], the samples of each; products of features are
    taken in `dtype`, sums over chunks in float64."""

    def __init__(self, samples: Samples, trained: np.ndarray, dtype: torch.dtype):
        self.samples, self.dtype, self.device = samples, dtype, samples.device
        self.trained = torch.from_numpy(trained).to(self.device)
        weights = torch.ones(samples.classes) if samples.class_weights is None else samples.class_weights
        self.class_weights = weights.to(self.device, torch.float64)
        self._moments()

    def _moments(self) -> None:
        """centre [D]: the mean of all; mean, std [K, D]: of each problem's samples, less the centre."""
        nothing = torch.zeros(1, dtype=torch.float64, device=self.device)
        n = len(self.samples.labels)
        self.centre = torch.stack([x.sum(0) for _, x, _ in self.samples.chunks(torch.float64, nothing)]).sum(0) / n
        kept = self.trained.double() / self.trained.sum(0)
        self.mean, square = torch.zeros(2, kept.shape[1], len(self.centre), dtype=torch.float64, device=self.device)
        if not self.centre.isfinite().all():
            raise DivergedError(
                "features of training images are not finite: the weights are damaged, or their training diverged"
            )
        for rows, x, _ in self.samples.chunks(torch.float64, self.centre):
            self.mean += kept[rows].T @ x
            square += kept[rows].T @ x.square()
        std = (square - self.mean.square()).clamp(min=0).sqrt()
        constant = std <= 1e-6 * self.centre.abs()  # nothing but what float32 rounds
        self.std = torch.where(constant | (std == 0), 1.0, std)

    def zeros(self) -> Tensor:
        return torch.zeros(len(self.centre) + 1, len(self.mean), self.samples.classes, dtype=torch.float64)

    def folded(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """The same functions of features as they come: weight [D, K, C], bias [K, C]. parameters: as in `Found`."""
        weight, offset = self._of_centred(parameters.to(self.device))
        return weight.cpu(), (offset - (self.centre[:, None, None] * weight).sum(0)).cpu()

    def _of_centred(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        """z·W + b as a function of x − centre."""
        weight = parameters[:-1] / self.std.T[:, :, None]
        return weight, parameters[-1] - (self.mean.T[:, :, None] * weight).sum(0)

    def _passed(self, parameters: Tensor) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Rows, centred features, labels and log-probabilities [m, K, C], chunk by chunk."""
        weight, offset = self._of_centred(parameters.to(self.device))
        weight, offset = weight.flatten(1).to(self.dtype), offset.flatten().to(self.dtype)
        for rows, x, labels in self.samples.chunks(self.dtype, self.centre):
            logits = torch.addmm(offset, x, weight)
            yield rows, x, labels, logits.view(len(x), -1, self.samples.classes).log_softmax(2)

    def value_and_gradient(self, parameters: Tensor, regularisation: float) -> tuple[float, Tensor]:
        """J and ∇J, at parameters as `Found` has them."""
        smoothing, classes = self.samples.label_smoothing, self.samples.classes
        shares = self.trained.double() / self.trained.sum(0)  # 1/n of each problem, 0 for what it leaves out
        value, gradient = 0.0, torch.zeros_like(parameters, device=self.device)
        for rows, x, labels, log_p in self._passed(parameters):
            share = shares[rows] * self.class_weights[labels][:, None]
            label = labels[:, None, None].expand(*share.shape, 1)
            fitting = (1 - smoothing) * log_p.gather(2, label)[..., 0] + smoothing * log_p.mean(2)
            value -= float((share * fitting).sum())
            residual = log_p.exp_().sub_(smoothing / classes)  # p − t
            residual.scatter_add_(2, label, torch.full_like(share, smoothing - 1, dtype=self.dtype)[..., None])
            residual = residual.mul_(share.to(self.dtype)[..., None]).flatten(1)
            gradient[:-1] += (x.T @ residual).view_as(gradient[:-1])
            gradient[-1] += residual.sum(0, dtype=torch.float64).view_as(gradient[-1])
        weight = parameters[:-1].to(self.device)
        gradient[:-1] -= self.mean.T[:, :, None] * gradient[-1]  # from x − centre to z
        gradient[:-1] /= self.std.T[:, :, None]
        gradient[:-1] += regularisation * weight
        return value + regularisation / 2 * float(weight.square().sum()), gradient.cpu()

    def minimise(self, regularisation: float, start: Tensor, tolerance: float, least_gain: float = 0.0) -> Found:
        """From `start` until the largest component of the gradient is within the tolerance, a step lowers J by no more
        than `least_gain` of it, or precision ends. scipy's L-BFGS needs up to 17 % fewer passes than torch's."""
        from scipy import optimize  # takes a fifth of a second, which other solvers need not wait for

        def of_flat(flat: np.ndarray) -> tuple[float, np.ndarray]:
            value, gradient = self.value_and_gradient(torch.from_numpy(flat).view_as(start), regularisation)
            return value, gradient.numpy().ravel()

        limits = {"maxiter": MOST_ITERATIONS, "maxfun": 2 * MOST_ITERATIONS}
        with _threads_for(len(self.samples.labels) * start.numel()):
            found = optimize.minimize(
                of_flat, start.numpy().ravel(), jac=True, method="L-BFGS-B",
                options=limits | {"maxcor": HISTORY, "gtol": tolerance, "ftol": least_gain},
            )  # fmt: skip
        return Found(
            torch.from_numpy(found.x).view_as(start), float(found.fun), float(np.abs(found.jac).max()),
            int(found.nit), int(found.nfev), ended=found.status != 1,
        )  # fmt: skip

    def held_out(self, parameters: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Mean loss (not smoothed) [K] on the samples that each problem leaves out; and what is predicted of each
        sample, int64 [n], by the problem that leaves it out, of which there is one (−1: none)."""
        left_out = (~self.trained).double()
        losses = torch.zeros(left_out.shape[1], dtype=torch.float64, device=self.device)
        predicted = torch.full((len(left_out),), -1, device=self.device)
        for rows, _, labels, log_p in self._passed(parameters):
            label = labels[:, None, None].expand(*log_p.shape[:2], 1)
            loss = -log_p.gather(2, label)[..., 0].double() * self.class_weights[labels][:, None]
            losses += (left_out[rows] * loss).sum(0)
            by_each, left = log_p.argmax(2), ~self.trained[rows]
            found = by_each.gather(1, left.int().argmax(1, keepdim=True))[:, 0]
            predicted[rows] = torch.where(left.any(1), found, predicted[rows])
        return (losses / left_out.sum(0)).cpu().numpy(), predicted.cpu().numpy()


@contextmanager
def _threads_for(products: int) -> Iterator[None]:
    """products: multiplications a pass. Threads that wait for each other in many short ones take the longer the busier
    the cores are: 8 s instead of 0.1 beside other work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if products < ONE_THREAD_PRODUCTS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
