"""Where in an image the evidence for a class lies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from transferctl.contracts import Features
from transferctl.data import Split
from transferctl.model import TransferModel
from transferctl.preprocess import evaluation_image, normalise, short_side_needed

FEWEST_PLACES = 3  # a side: a map of fewer shows nothing, so an earlier stage is looked at
HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float64)  # inferno


@dataclass(frozen=True)
class Evidence:
    """maps: float [n, k, H, W], each from 0 to 1, for the k classes asked of each image; method: how they were made,
    and of what."""

    maps: np.ndarray
    method: str


@dataclass(frozen=True)
class _Place:
    """What is looked at: the output of the first `after` stages. layout: tokens are [N, 1 + patches, D]; maps [N, D, H,
    W] or, with channels last, [N, H, W, D]."""

    after: int
    name: str
    layout: Literal["tokens", "channels first", "channels last"]


def image_of(split: Split, position: int, model: TransferModel) -> Image.Image:
    """What the network sees of a sample. Raises BadSample."""
    at_least = short_side_needed(model.preprocessing, None)
    image = split.dataset.read(int(split.indices[position]), at_least=at_least)
    return Image.fromarray(evaluation_image(image, model.preprocessing).permute(1, 2, 0).numpy())


def evidence(model: TransferModel, domain: str, images: list[Image.Image], classes: np.ndarray) -> Evidence | None:
    """classes: int [n, k], whose evidence in which image. None where no stage has a map.

    Grad-CAM (Selvaraju et al., ICCV 2017): the last maps, each weighted by the mean gradient of the class's logit in
    it, summed, what speaks against the class left out. Of a vision transformer, which has tokens: gradient × activation
    before its last block, where the class token still looks at the patches.
    """
    device = next(model.parameters()).device
    inputs = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).to(device)
    model = model.float().requires_grad_(False).eval()
    place = _place(model, inputs)
    if place is None:
        return None
    activations = _after(model, inputs, place.after)
    found = [_of_class(model, domain, activations, column.to(device), place) for column in torch.as_tensor(classes).T]
    maps = torch.stack(found, dim=1)
    maps = maps / maps.amax((1, 2, 3), keepdim=True).clamp(min=1e-12)  # one scale an image, so that classes compare
    how = "Gradient × activation of the tokens before" if place.layout == "tokens" else "Grad-CAM on the output of"
    return Evidence(maps.cpu().numpy(), f"{how} {place.name}, {maps.shape[2]}×{maps.shape[3]} places")


def _place(model: TransferModel, inputs: Tensor) -> _Place | None:
    """The last stage whose output has enough places, seen on one image."""
    stages = model.backbone.stages()[:-1]
    outputs = [_after(model, inputs[:1], count) for count in range(1, len(stages) + 1)]
    with torch.no_grad():
        maps = model.backbone(outputs[-1].clone(), len(stages)).maps
    if maps is None:
        is_tokens = len(stages) > 1 and outputs[-2].ndim == 3
        if not is_tokens or not _is_square(outputs[-2].shape[1] - model.backbone.prefix_tokens):
            return None
        return _Place(len(stages) - 1, stages[-1].name, "tokens")
    layout: Literal["channels first", "channels last"]
    layout = "channels first" if maps.shape == outputs[-1].shape else "channels last"
    for fewest in (FEWEST_PLACES, 2):
        for after in range(len(stages), 0, -1):
            shape = outputs[after - 1].shape
            sides = shape[2:] if layout == "channels first" else shape[1:3]
            if len(shape) == 4 and min(sides) >= fewest:
                return _Place(after, stages[after - 1].name, layout)
    return None


def _is_square(places: int) -> bool:
    return places > 0 and math.isqrt(places) ** 2 == places


def _after(model: TransferModel, inputs: Tensor, count: int) -> Tensor:
    x = normalise(inputs, model.preprocessing).contiguous()
    with torch.no_grad():
        for stage in model.backbone.stages()[:count]:
            x = stage.forward(x)
    return x


def _of_class(model: TransferModel, domain: str, activations: Tensor, classes: Tensor, place: _Place) -> Tensor:
    """[n, H, W] ≥ 0. activations: of the place, [n, …]; classes: int64 [n]."""
    activations = activations.detach().clone().requires_grad_()
    with torch.enable_grad():
        inner = activations.clone()  # the next stage may write into what it is given
        features: Features = model.backbone(inner, place.after)
        logits = model.heads[domain](features.in_fp32())
        chosen = logits.gather(1, classes[:, None].long()).sum()
        (gradient,) = torch.autograd.grad(chosen, activations)
    if place.layout == "tokens":
        relevance = (gradient * activations).sum(2)[:, model.backbone.prefix_tokens :].clamp(min=0).detach()
        side = round(relevance.shape[1] ** 0.5)
        return relevance.reshape(len(relevance), side, side)
    if place.layout == "channels last":
        gradient, activations = gradient.permute(0, 3, 1, 2), activations.permute(0, 3, 1, 2)
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * activations).sum(1).clamp(min=0).detach()


def overlaid(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """heat: float [H, W], 0 to 1. What has no evidence stays as it is, only dimmer."""
    smooth = Image.fromarray((heat * 255).astype(np.uint8), "L").resize(image.size, Image.Resampling.BICUBIC)
    strength = np.asarray(smooth, dtype=np.float64)[..., None] / 255
    places = strength[..., 0] * (len(HEAT) - 1)
    low = np.minimum(places.astype(int), len(HEAT) - 2)
    colours = HEAT[low] + (HEAT[low + 1] - HEAT[low]) * (places - low)[..., None]
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * 0.75
    cover = 0.15 + 0.6 * strength
    return Image.fromarray(np.clip((1 - cover) * grey + cover * colours, 0, 255).astype(np.uint8))
