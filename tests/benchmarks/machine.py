"""The yardsticks of speed.py, as one JSON object: the matrix-product peak and each job's arithmetic an image.

    python tests/benchmarks/machine.py ARCH CROP

peak: FLOP/s of bf16 products of square matrices, the best of several sizes and repeats, on the device that a training
would use. flops: by what is frozen, the FLOPs of a training image (forward, and backward where it is needed), counted by
torch.utils.flop_counter on a model without data; `val`: of the forward pass alone. A multiplication and an addition
are two.
"""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from time import perf_counter

import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

SIZES = (1024, 2048, 3072, 4096)
SECONDS = 1.0  # each size runs for
FROZEN = ("all", "layer3", "none")
STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")


def main() -> None:
    arch, crop = sys.argv[1], int(sys.argv[2])
    peaks = {size: _product_rate(size) for size in SIZES}
    found = {
        "peak": max(peaks.values()),
        "peaks": peaks,
        "flops": {"val": _flops(arch, crop, None)} | {frozen: _flops(arch, crop, frozen) for frozen in FROZEN},
        "processor": _processor(),
        "cores": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    print(json.dumps(found))


def _product_rate(size: int) -> float:
    """FLOP/s, the best of the products of SECONDS."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    best, until = float("inf"), perf_counter() + SECONDS
    while perf_counter() < until:
        start = perf_counter()
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, perf_counter() - start)
    return 2 * size**3 / best


def _flops(arch: str, crop: int, frozen: str | None) -> float:
    """Of one image; None: a forward pass without gradients."""
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
        images = torch.empty(2, 3, crop, crop)
    stages = {None: STAGES, "all": STAGES, "layer3": STAGES[:-1], "none": ()}[frozen]
    for name in stages:
        model.get_submodule(name).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        if frozen is None:
            with torch.no_grad():
                model(images)
        else:
            model(images).sum().backward()
    return float(counter.get_total_flops()) / len(images)


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


if __name__ == "__main__":
    main()
