"""The leading stages that nothing trains: a fixed function of an image, computed fast, without a graph, and once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from transferctl import compiling, fusion, images
from transferctl.cache.store import Product
from transferctl.contracts import Batch
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.model import BatchNorm, TransferModel
from transferctl.preprocess import PIXELS_VERSION, Preprocessing, normalise

CHUNK_PIXELS = 16 * 224 * 224  # measured on a CPU: ResNet-50 runs 178 images/s in sixteens, 95 in sixty-fours
LEAST_CHUNKS = 50  # below that, finding out whether compiling pays would cost more than it could save
LARGEST_ERROR = {torch.float32: 1e-3, torch.bfloat16: 0.1}  # ‖a − b‖/‖b‖; rounding alone makes 1e-6 and a hundredth


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
        if compile_ == "always" and compute.device.type != "cpu":
            display.note(f"compile: always has no effect on {compute.device.type}: frozen stages are compiled for CPUs")
        self.is_whole = count == len(stages)
        self._dtype = torch.bfloat16 if compute.bf16 else torch.float32
        self._plain = _Stages(model.backbone, count - self.is_whole)
        self._net, self.is_fused = self._fastest(self._plain)
        self._compiled: compiling.Network | None = None
        self._size = max(CHUNK_PIXELS // model.preprocessing.crop**2, 1)  # images that run at once, on a CPU
        self._is_decided = compute.device.type != "cpu"
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

    @property
    def chunk(self) -> int:
        """Images that a CPU computes at once."""
        return self._size

    def __call__(self, inputs: Tensor) -> Tensor:
        """Images, uint8 (or mixed, float) [N, 3, H, W] -> activations [N, …]: fp32 with all stages, else in the
        precision of the backbone."""
        size = self._size if self._compute.device.type == "cpu" else len(inputs)
        # Not in inference mode, whoever calls: torch.compile would compile anew for it, and without its constants.
        with torch.inference_mode(False), torch.no_grad(), self._autocast():
            return torch.cat([self._activations(part) for part in torch.split(inputs, size)])

    def prepare(self, n_images: int, batch_size: int) -> None:
        """Compile the stages if so many images, still to be computed in such batches, make up for it; say so. What was
        compiled, or cannot be with profit, is not tried again."""
        size = min(self._size, batch_size)
        asked_for = self._compile == "always" or (self._compile == "auto" and n_images > LEAST_CHUNKS * size)
        if self._is_decided or not asked_for:
            return
        with torch.inference_mode(False), torch.no_grad(), self._autocast():
            example = self._noise(size)
            network, why, self._is_decided = compiling.decide(
                self._compile, n_images, self._plain, self._net, example, LARGEST_ERROR[self._dtype]
            )
        if network is not None:
            self._compiled, self._size = network, size
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
        arithmetic += " AMX" if self._compute.bf16 and torch.cpu._is_amx_tile_supported() else ""
        if self._compute.device.type == "cuda":
            rounding = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
            arithmetic = f"{torch.cuda.get_device_name(self._compute.device)} {rounding}"
        identity = {
            "library": self._model.library,
            "backbone": self._model.backbone.name,
            "weights": self._model.backbone.fingerprint(self.count),
            "stages": self.count,
            "preprocessing": self._model.preprocessing.as_dict(),
            "decoder": images.versions(),
            "pixels": PIXELS_VERSION,
            "torch": torch.__version__,
            "torchvision": metadata.version("torchvision"),
            "arithmetic": [arithmetic, str(self._dtype), self.is_fused],
            "activations": [list(self.shape), str(self.dtype)],
        }
        what = "features" if self.is_whole else f"after {self.last}"
        sizes = f"{self._model.preprocessing.resize}→{self._model.preprocessing.crop} px"
        weights = str(identity["weights"])[:8]
        title = f"{self._model.backbone.name} {weights} {what}, {sizes}, {str(self._dtype)[6:]}"
        return Product(identity, self.row_bytes, title)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._compute.device.type, torch.bfloat16, enabled=self._compute.bf16)

    def _noise(self, n: int) -> Tensor:
        """As normalised images come: [n, 3, H, W]."""
        side = self.preprocessing.crop
        noise = torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0)).to(self._compute.device)
        return noise.contiguous(memory_format=torch.channels_last)

    def _activations(self, images: Tensor) -> Tensor:
        x: Tensor = normalise(images, self._model.preprocessing)
        if self._compute.bf16 or self._compiled is not None:
            x = x.contiguous(memory_format=torch.channels_last)
        x = self._run(x)
        if not self.is_whole:
            return x.to(self._dtype)
        with torch.autocast(self._compute.device.type, enabled=False):
            pool = self._model.backbone.stages()[-1]
            pooled: Tensor = pool.forward(x.float())
            return pooled.float()

    def _run(self, x: Tensor) -> Tensor:
        """Compiled is one size; what nearly has it is filled up, as rows do not depend on each other."""
        lack = self._size - len(x)
        if self._compiled is None or lack > len(x):
            return self._net(x)  # type: ignore[no-any-return]
        if lack:
            x = torch.cat([x, x[:lack]]).contiguous(memory_format=torch.channels_last)
        return self._compiled(x)[: self._size - lack]

    def _fastest(self, plain: nn.Module) -> tuple[nn.Module, bool]:
        """The fused network where it computes what the plain one does, which two images show."""
        self._model.eval()
        with torch.no_grad(), self._autocast():
            try:
                network = fusion.fused(plain, self._dtype, self._compute.device.type == "cpu")
                error = compiling.relative_error(network, plain, self._noise(2))
                reason = "" if error <= LARGEST_ERROR[self._dtype] else f"it would be off by {error:.1%}"
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
