"""torch.export's format: the graph and its weights, for torch alone."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from transferctl import exportscript
from transferctl.exportable import CARD, Exportable, Predictor, in_batches

FILE, SCRIPT = "model.pt2", "use_pt2.py"
LIBRARIES, EXTRA = ("torch",), ""


def unfit(exportable: Exportable) -> str:
    return ""


def write(exportable: Exportable, folder: Path) -> dict[str, Any]:
    """In memory first: where the disk is full, torch's own writer aborts the process."""
    content = io.BytesIO()
    torch.export.save(exportable.program, content, extra_files={CARD: exportable.text})
    (folder / FILE).write_bytes(content.getbuffer())
    return {}


def predictor(folder: Path, card: Mapping[str, Any]) -> Predictor:
    return in_batches(torch.export.load(folder / FILE).module())


def script() -> str:
    loads = f'''
embedded = {{"{CARD}": ""}}
network = torch.export.load(here / "{FILE}", extra_files=embedded).module()
model = json.loads(embedded["{CARD}"])
'''
    runs = """
    with torch.inference_mode():
        logits, probabilities = network(torch.from_numpy(pixels))
"""
    return exportscript.script(SCRIPT, "torch", "import torch", loads, runs)
