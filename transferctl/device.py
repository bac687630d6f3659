"""Which device and precision: chosen once, and said with the reason."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transferctl.errors import ResourceError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Compute:
    """device: where the model lives; bf16: whether the backbone computes in bfloat16 (heads, losses and weights stay
    fp32)."""

    device: torch.device
    bf16: bool
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {'bf16' if self.bf16 else 'fp32'} ({self.reason})"


def choose(device: str, precision: str) -> Compute:
    """Raises ResourceError for a device that this machine does not have."""
    import torch

    _keep_freed_memory()
    if device == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        chosen, reason = torch.device(kind), f"auto: {'the first GPU' if kind != 'cpu' else 'no GPU found'}"
    else:
        chosen, reason = torch.device(device), "as the spec says"
        _refuse_absent(chosen)
    if chosen.type == "cuda":
        _repeat_on_cuda()
        _round_on_cuda(in_tf32=precision != "fp32")
    if precision != "auto":
        return Compute(chosen, precision == "bf16", reason)
    bf16 = _computes_in_bf16(chosen)
    return Compute(chosen, bf16, f"{reason}; {_HARDWARE[bf16]}")


_HARDWARE = {True: "it computes in bf16", False: "bf16 is not known to be faster on it"}


def _computes_in_bf16(device: torch.device) -> bool:
    """Tensor cores from Ampere on; CPUs with AVX512-BF16 or AMX tiles. Others emulate it, slowly."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _refuse_absent(device: torch.device) -> None:
    import torch

    if device.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("device: cuda: this machine has no usable CUDA GPU; write device: cpu or auto")
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise ResourceError(f"device: {device}: there are {torch.cuda.device_count()} GPUs, counted from 0")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ResourceError("device: mps: this machine has no Metal GPU; write device: cpu or auto")


def _repeat_on_cuda() -> None:
    """The same bits again, as far as CUDA has kernels that give them (https://docs.pytorch.org/docs/stable/notes/
    randomness.html). cuBLAS reads its variable when it is first used."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.deterministic = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    for what in ("does not have a deterministic implementation", "defaults to a non-deterministic algorithm"):
        warnings.filterwarnings("ignore", message=f".*{what}")


def _round_on_cuda(in_tf32: bool) -> None:
    """torch computes fp32 convolutions in TF32 (10 bits of 23) unless told otherwise: who asks for fp32 gets it. On an
    H200, fine-tuning of layer4 ended 2.7 and 3.7 % of the weights' norm away from where it did on a CPU in TF32, within
    1 % in fp32."""
    import torch

    torch.backends.cudnn.conv.fp32_precision = "tf32" if in_tf32 else "ieee"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "ieee"


def _keep_freed_memory() -> None:
    """Activations of one step serve the next: glibc hands large blocks back to the system, which clears their pages
    anew each time. Training ResNet-50 at 224 pixels takes a third longer so. MALLOC_… variables of glibc prevail."""
    import ctypes

    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def release_memory(device: torch.device) -> None:
    """After memory has run out: what nothing refers to any more goes back to the system, for whoever asks it next."""
    import ctypes

    import torch

    gc.collect()  # the traceback of what failed holds its activations, in cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
