"""torch.export's format: the graph and its weights, for torch alone."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
    with _of_buffers_nothing_said():
        torch.export.save(exportable.program, content, extra_files={CARD: exportable.text})
    (folder / FILE).write_bytes(content.getbuffer())
    return {}


def predictor(folder: Path, card: Mapping[str, Any]) -> Predictor:
    with _of_buffers_nothing_said():
        return in_batches(torch.export.load(folder / FILE).module())


@contextmanager
def _of_buffers_nothing_said() -> Iterator[None]:
    """torch up to 2.11 warns of a buffer of its own, which it does not write to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield


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
