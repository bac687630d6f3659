"""torchvision comes without the compiler, whose parts work as ever once they are asked for."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from transferctl.leantorchvision import torchvision
assert not [name for name in sys.modules if name.startswith("torch._dynamo")], "the compiler came along"
import torch
boxes = torch.tensor([[0.0, 0, 4, 4]])
print(float(torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), [boxes], 2).sum()))
from torchvision.ops import roi_align
print(roi_align.__globals__["is_compile_supported"]("cpu") if {known} else "")
import torch._dynamo
print(torch._dynamo.utils.is_compile_supported("cpu"))
print(float(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(()))))
"""


def _run(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_torchvision_comes_without_the_compiler_which_then_works_as_ever() -> None:
    script = SCRIPT.replace("{known}", '"is_compile_supported" in roi_align.__globals__')
    roi, *supported, compiled = _run(script)
    assert float(roi) == 4.0 and set(supported) == {"True"} and compiled == "2.0"


def test_a_compiler_that_is_there_already_stays() -> None:
    assert _run(
        "import torch._dynamo.utils as real, sys\n"
        "from transferctl.leantorchvision import torchvision\n"
        "print(sys.modules['torch._dynamo.utils'] is real)"
    ) == ["True"]
