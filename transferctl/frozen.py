"""The leading stages that nothing trains: a fixed function of an image, computed fast, without a graph, and once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from transferctl import compiling, fusion, images
from transferctl.cache.store import Product
from transferctl.contracts import Batch
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.model import BatchNorm, TransferModel
from transferctl.preprocess import Preprocessing, normalise

CHUNK_PIXELS = 16 * 224 * 224  # measured on a CPU: ResNet-50 runs 178 images/s in sixteens, 95 in sixty-fours
LEAST_CHUNKS = 50  # below that, finding out whether compiling pays would cost more than it could save
LARGEST_ERROR = 0.1  # of fused against plain, ‖a − b‖/‖b‖; bf16 rounding alone makes a hundredth


def leading(model: TransferModel, frozen: Iterable[str | Sequence[str]], batchnorm: BatchNorm) -> int:
    """How many leading stages no epoch changes, neither by gradients nor by BatchNorm's statistics. frozen: what each
    epoch freezes. Leaves the model frozen as in the last of them."""
    counts = []
    for what in frozen:
        model.freeze(what, batchnorm)
        changing = model.changing()
        fixed = [not any(map(stage.owns, changing)) for stage in model.backbone.stages()]
        counts.append(fixed.index(False) if False in fixed else len(fixed))
    return min(counts)


def leading_of(model: TransferModel, frozen: Iterable[str | Sequence[str]], batchnorm: BatchNorm) -> int:
    """As `leading`, less the last stage, which pools: heads and penalties may look at the maps."""
    return min(leading(model, frozen, batchnorm), len(model.backbone.stages()) - 1)


class FrozenStages:
    """The first `count` stages of a model's backbone. With all of them the activations are `Features.pooled`: the last
    stage, which pools, then runs in fp32."""

    def __init__(
        self, model: TransferModel, count: int, compute: Compute, display: Display, *, compile_: str = "never"
    ):
        """compile_: whether `prepare` may compile them: auto, always or never."""
        stages = model.backbone.stages()
        assert 0 < count <= len(stages)
        self.count, self.last = count, stages[count - 1].name
        self._model, self._compute, self._display, self._compile = model, compute, display, compile_
        self.is_whole = count == len(stages)
        self._dtype = torch.bfloat16 if compute.bf16 else torch.float32
        self._plain = _Stages(model.backbone, count - self.is_whole)
        self._net, self.is_fused = self._fastest(self._plain)
        self._compiled: tuple[torch.Size, compiling.Network] | None = None
        with torch.no_grad():
            blank = torch.zeros(1, 3, model.preprocessing.crop, model.preprocessing.crop, dtype=torch.uint8)
            shown = self(blank.to(compute.device))
        self.shape, self.dtype = tuple(shown.shape[1:]), shown.dtype

    @property
    def preprocessing(self) -> Preprocessing:
        return self._model.preprocessing

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __call__(self, inputs: Tensor) -> Tensor:
        """Images, uint8 (or mixed, float) [N, 3, H, W] -> activations [N, …]: fp32 with all stages, else in the
        precision of the backbone."""
        size = len(inputs)
        if self._compute.device.type == "cpu":
            size = max(CHUNK_PIXELS // math.prod(inputs.shape[2:]), 1)
        with torch.no_grad(), torch.autocast(self._compute.device.type, torch.bfloat16, enabled=self._compute.bf16):
            return torch.cat([self._activations(part) for part in torch.split(inputs, size)])

    def prepare(self, n_images: int) -> None:
        """Compile the stages if so many images, which are still to be computed, make up for it; say so."""
        side = self.preprocessing.crop
        size = max(CHUNK_PIXELS // side**2, 1)
        asked_for = self._compile == "always" or (self._compile == "auto" and n_images > LEAST_CHUNKS * size)
        if self._compiled or not asked_for or self._compute.device.type != "cpu":
            return
        example = torch.zeros(size, 3, side, side).contiguous(memory_format=torch.channels_last)
        with torch.no_grad(), torch.autocast(self._compute.device.type, torch.bfloat16, enabled=self._compute.bf16):
            network, why = compiling.decide(self._compile, n_images, self._plain, self._net, example)
        if network:
            self._compiled = example.shape, network
        if why:
            self._display.note(f"frozen stages: {why}")

    def of(self, batch: Batch) -> Batch:
        """The batch with activations in place of its images."""
        moved = batch.to(self._compute.device)
        return replace(moved, inputs=self(moved.inputs), after=self.count)

    @cached_property
    def product(self) -> Product:
        """What the activations of an image depend on, besides the image. Compiled or not, the arithmetic is the same
        but for the order of roundings, as between batch sizes."""
        arithmetic = f"{self._compute.device.type} {torch.backends.cpu.get_cpu_capability()}"
        if self._compute.device.type == "cuda":
            arithmetic = torch.cuda.get_device_name(self._compute.device)
        identity = {
            "library": self._model.library,
            "backbone": self._model.backbone.name,
            "weights": self._model.backbone.fingerprint(self.count),
            "stages": self.count,
            "preprocessing": self._model.preprocessing.as_dict(),
            "decoder": images.versions(),
            "torch": torch.__version__,
            "arithmetic": [arithmetic, str(self._dtype), self.is_fused],
            "activations": [list(self.shape), str(self.dtype)],
        }
        what = "features" if self.is_whole else f"after {self.last}"
        title = f"{self._model.backbone.name} {what}, {self._model.preprocessing.crop} px, {str(self._dtype)[6:]}"
        return Product(identity, self.row_bytes, title)

    def _activations(self, images: Tensor) -> Tensor:
        x: Tensor = normalise(images, self._model.preprocessing)
        if self._compute.bf16:
            x = x.contiguous(memory_format=torch.channels_last)
        is_usual = self._compiled is not None and self._compiled[0] == x.shape
        x = self._compiled[1](x) if self._compiled and is_usual else self._net(x)
        if not self.is_whole:
            return x.to(self._dtype)
        with torch.autocast(self._compute.device.type, enabled=False):
            pool = self._model.backbone.stages()[-1]
            pooled: Tensor = pool.forward(x.float())
            return pooled.float()

    def _fastest(self, plain: nn.Module) -> tuple[nn.Module, bool]:
        """The fused network where it computes what the plain one does, which two images show."""
        on_cpu = self._compute.device.type == "cpu"
        side = self._model.preprocessing.crop
        noise = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self._compute.device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        self._model.eval()
        with torch.no_grad(), torch.autocast(self._compute.device.type, torch.bfloat16, enabled=self._compute.bf16):
            try:
                network = fusion.fused(plain, self._dtype, on_cpu)
                wanted = plain(noise).float()
                error = float((network(noise).float() - wanted).norm() / wanted.norm().clamp_min(1e-12))
                reason = "" if error <= LARGEST_ERROR else f"it would be off by {error:.1%}"
            except Exception as problem:  # what torch.fx cannot follow, or oneDNN does not take, runs as it is
                reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:120]}"
        if reason:
            self._display.note(f"the frozen stages run unfused ({reason})")
        return (plain, False) if reason else (network, True)


class _Stages(nn.Module):
    def __init__(self, backbone: Any, count: int):
        super().__init__()
        self.backbone, self._count = backbone, count

    def forward(self, x: Tensor) -> Tensor:
        for stage in self.backbone.stages()[: self._count]:
            x = stage.forward(x)
        return x
