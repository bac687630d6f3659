"""torchvision's own network: a plain state dict, to be loaded by its builder, to go on with in any code of torch's."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferctl import exportscript
from transferctl.exportable import CARD, Exportable, Predictor, in_batches
from transferctl.leantorchvision import torchvision

FILE, SCRIPT = "model.pth", "use_torchvision.py"
LIBRARIES, EXTRA = ("torch", "torchvision"), ""


def unfit(exportable: Exportable) -> str:
    if exportable.model.library != "torchvision":
        return f"it is for torchvision's networks, and this is one of {exportable.model.library}; pt2 and onnx hold any"
    try:
        _whole(exportable)
    except ValueError as error:
        return str(error)
    return ""


def _whole(exportable: Exportable) -> tuple[dict[str, Tensor], dict[str, Any]]:
    model, domain = exportable.model, exportable.domain
    found: tuple[dict[str, Tensor], dict[str, Any]] = model.backbone.whole(
        model.heads[domain], len(model.classes[domain])
    )
    return found


def write(exportable: Exportable, folder: Path) -> dict[str, Any]:
    """In memory first, as pt2 does. `arguments`: what torchvision's builder is to be given."""
    state, arguments = _whole(exportable)
    content = io.BytesIO()
    torch.save(state, content)
    (folder / FILE).write_bytes(content.getbuffer())
    return {"arguments": arguments}


def predictor(folder: Path, card: Mapping[str, Any]) -> Predictor:
    """As the script does it: mean, standard deviation and temperature are the card's."""
    net = torchvision.models.get_model(card["architecture"], **card["formats"]["torchvision"]["arguments"])
    net.load_state_dict(torch.load(folder / FILE, weights_only=True))
    net.eval()
    mean, std = (torch.tensor(card["preprocessing"][name]).view(3, 1, 1) for name in ("mean", "std"))

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        logits = net((images / 255 - mean) / std)
        return logits, torch.softmax(logits / card["temperature"], dim=1)

    return in_batches(run)


def script() -> str:
    loads = f'''
model = json.loads((here / "{CARD}").read_text(encoding="utf-8"))
network = torchvision.models.get_model(model["architecture"], **model["formats"]["torchvision"]["arguments"])
network.load_state_dict(torch.load(here / "{FILE}", weights_only=True))
network.eval()
mean, std = (torch.tensor(model["preprocessing"][name]).view(3, 1, 1) for name in ("mean", "std"))
'''
    runs = """
    with torch.inference_mode():
        logits = network((torch.from_numpy(pixels) / 255 - mean) / std)
    probabilities = torch.softmax(logits / model["temperature"], 1)
"""
    return exportscript.script(SCRIPT, "torch, torchvision", "import torch\nimport torchvision", loads, runs)
