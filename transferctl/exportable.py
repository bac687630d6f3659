"""What is exported: the network from pixels to probabilities, and the card that says how to use it.

A format is a file in exporters/, by whose name people ask for it. It offers

    FILE, SCRIPT        the names of the model's file, and of the script that shows how to use it without transferctl
    LIBRARIES           what must be installed to write the format and to check it; EXTRA: of ours, that brings them
    unfit(exportable)   why this model has no such form; "" where it has
    write(exportable, folder)   writes FILE, and gives what the card is to say of it
    predictor(folder, card)     the network, loaded anew from FILE: a `Predictor`
    script()            the text of SCRIPT
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from transferctl.model import TransferModel

if TYPE_CHECKING:
    from torch.export import ExportedProgram

CARD = "model.json"  # the file, and the key by which a model's own file has the same text
INPUT, OUTPUTS = "images", ("logits", "probabilities")
Predictor = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # uint8 [N, 3, H, W] -> logits, probabilities [N, C]


@dataclass(frozen=True)
class Exportable:
    """A restored model with the domain whose head is exported, fp32, on the CPU, in eval mode. temperature: T of
    softmax(logits / T). card: what model.json says, of all formats; `text` is the card as JSON."""

    model: TransferModel
    domain: str
    temperature: float
    card: Mapping[str, Any]
    text: str

    @cached_property
    def program(self) -> ExportedProgram:
        """The network as torch.export has it, for any number of images. It names no file of this machine, as the
        traces would that tell where each operation comes from."""
        crop = self.model.preprocessing.crop
        examples = torch.zeros(2, 3, crop, crop, dtype=torch.uint8)
        network = Classifier(self.model, self.domain, self.temperature).eval()
        program = torch.export.export(network, (examples,), dynamic_shapes={INPUT: {0: torch.export.Dim("N", min=1)}})
        for module in program.graph_module.modules():
            for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
                node.meta.pop("stack_trace", None)
        return program


class Classifier(nn.Module):
    """images: uint8 [N, 3, H, W], cropped -> logits [N, C] and probabilities [N, C] = softmax(logits / T)."""

    pixel_mean: Tensor  # an operation of the graph may be called mean
    pixel_std: Tensor

    def __init__(self, model: TransferModel, domain: str, temperature: float):
        super().__init__()
        self.backbone, self.head, self.temperature = model.backbone, model.heads[domain], temperature
        for name in ("mean", "std"):
            values = torch.tensor(getattr(model.preprocessing, name), dtype=torch.float32)
            self.register_buffer(f"pixel_{name}", values.view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        normalised = (images.to(torch.float32) / 255 - self.pixel_mean) / self.pixel_std
        logits = self.head(self.backbone(normalised))
        return logits, torch.softmax(logits / self.temperature, dim=1)


def in_batches(run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Predictor:
    """A predictor of a network of torch's."""

    def predict(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            logits, probabilities = run(torch.from_numpy(images))
        return logits.numpy(), probabilities.numpy()

    return predict
