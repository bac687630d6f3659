"""Which device and precision: chosen once, and said with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from transferctl.errors import ResourceError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Compute:
    """device: where the model lives; bf16: whether the backbone runs under bfloat16 autocast."""

    device: torch.device
    bf16: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {'bf16' if self.bf16 else 'fp32'} ({self.reason})"


def choose(device: str, precision: str) -> Compute:
    """Raises ResourceError for a device that this machine does not have."""
    import torch

    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        chosen, reason = torch.device(kind), f"auto: {'the first GPU' if kind != 'cpu' else 'no GPU found'}"
    else:
        chosen, reason = torch.device(device), "as the spec says"
        _refuse_absent(chosen)
    if precision != "auto":
        return Compute(chosen, precision == "bf16", reason)
    bf16 = chosen.type == "cuda" and torch.cuda.get_device_capability(chosen) >= (8, 0)
    return Compute(chosen, bf16, reason)


def _refuse_absent(device: torch.device) -> None:
    import torch

    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device: cuda: this machine has no usable CUDA GPU; write device: cpu or auto")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ResourceError(f"device: {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device: mps: this machine has no Metal GPU; write device: cpu or auto")
