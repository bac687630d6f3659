"""ONNX: the graph and its weights, for onnxruntime and what else reads that format."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from transferctl import exportscript
from transferctl.exportable import CARD, INPUT, OUTPUTS, Exportable, Predictor

FILE, SCRIPT = "model.onnx", "use_onnx.py"
LIBRARIES, EXTRA = ("onnx", "onnxscript", "onnxruntime"), "onnx"


def unfit(exportable: Exportable) -> str:
    return ""


def write(exportable: Exportable, folder: Path) -> dict[str, Any]:
    """Weights of more than 2 GB, which no file of this format may hold, go into model.onnx.data beside it."""
    import onnx

    with _quietly():
        program = torch.onnx.export(
            exportable.program, (), dynamo=True, verbose=False, input_names=[INPUT], output_names=list(OUTPUTS)
        )
        assert program is not None
        program.model.metadata_props[CARD] = exportable.text
        program.save(folder / FILE)
        onnx.checker.check_model(folder / FILE)
    return {"opset": program.model.opset_imports[""]}


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The converter prints its progress and logs what it has not optimised."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def predictor(folder: Path, card: Mapping[str, Any]) -> Predictor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(folder / FILE, options, providers=["CPUExecutionProvider"])

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        logits, probabilities = session.run(list(OUTPUTS), {INPUT: images})
        return logits, probabilities

    return predict


def script() -> str:
    loads = f'''
session = onnxruntime.InferenceSession(here / "{FILE}", providers=["CPUExecutionProvider"])
model = json.loads(session.get_modelmeta().custom_metadata_map["{CARD}"])
'''
    runs = f'    logits, probabilities = session.run(None, {{"{INPUT}": pixels}})'
    return exportscript.script(SCRIPT, "onnxruntime", "import onnxruntime", loads, runs)
