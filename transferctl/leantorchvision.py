"""torchvision without torch's compiler front end, which one of its detection operators imports for one function: 0.9 s
of every start, for nothing that runs here. To be imported before torchvision.

While torchvision is imported, a stand-in answers for `torch._dynamo.utils`; its one function imports the real module
when it is called.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

_COMPILER = "torch._dynamo.utils"


def _is_compile_supported(device_type: str) -> bool:
    supported: bool = importlib.import_module(_COMPILER).is_compile_supported(device_type)
    return supported


def _import() -> ModuleType:
    if _COMPILER in sys.modules or "torchvision" in sys.modules:
        return importlib.import_module("torchvision")
    stand_in = ModuleType(_COMPILER)
    stand_in.is_compile_supported = _is_compile_supported  # type: ignore[attr-defined]
    sys.modules[_COMPILER] = stand_in
    try:
        return importlib.import_module("torchvision")
    except ImportError:  # this torchvision needs other parts of that module
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    finally:
        if sys.modules.get(_COMPILER) is stand_in:
            del sys.modules[_COMPILER]
    return importlib.import_module("torchvision")


torchvision = _import()
