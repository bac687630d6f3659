"""Images and weights for speed.py: made once, from the real photographs and the real small images alone.

    python tests/benchmarks/material.py weights OUT.pth DATA       (a ResNet-50; speed.py calls it)

Images: seeded random crops of the photographs of ants and bees, saved as JPEG (quality 90), sized as photographs on
the web are (long side 450 to 560 pixels). A crop keeps its photograph's class; training and validation crops come from
different photographs. Weights: ImageNet's are not at hand, so a ResNet-50 starts from torchvision's seeded
initialisation, is trained for some epochs on 4,000 images of 200 classes at 64 pixels (a minute or two), and its
BatchNorm statistics are then taken from photographs at 224 pixels. Its features are sane, not good.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

LONG_SIDE = 560  # of a photograph before it is cropped, pixels
CROPPED = (0.8, 1.0)  # a crop's sides, as parts of the photograph's
NOT_A_PHOTOGRAPH = "imageNotFound.gif"
WEIGHTS_EPOCHS = 3


def images(photographs: Path, out: Path, per_class: int, *, short_side: int | None = None) -> Path:
    """A folder of `per_class` crops of each class, unless it is there. short_side: what crops are shrunk to, pixels."""
    done = out / ".done"  # a hidden file: not an image to anyone
    if done.exists():
        return out
    work = [
        (path, out / folder.name / f"{number:05d}.jpg", number)
        for folder in sorted(path for path in photographs.iterdir() if path.is_dir())
        for number, path in enumerate(_in_turn(folder, per_class))
    ]
    for folder in {target.parent for _, target, _ in work}:
        folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda item: _crop(*item, short_side=short_side), work))
    done.touch()
    return out


def part(whole: Path, n: int) -> Path:
    """A folder of hard links to the first n images of `whole`, as many of each class."""
    out = whole.parent / f"{whole.name}-{n}"
    classes = sorted(path for path in whole.iterdir() if path.is_dir())
    for folder in classes:
        (out / folder.name).mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir())[: n // len(classes)]:
            if not (link := out / folder.name / path.name).exists():
                link.hardlink_to(path)
    return out


def weights(path: Path, data: Path) -> Path:
    """The ResNet-50's state dict, made in a process of its own unless it is there."""
    if not path.exists():
        print(f"training a ResNet-50 for {WEIGHTS_EPOCHS} epochs on 64-pixel images: {path}", file=sys.stderr)
        subprocess.run([sys.executable, __file__, "weights", path, data], check=True)
    return path


def _in_turn(folder: Path, n: int) -> Iterator[Path]:
    paths = sorted(path for path in folder.iterdir() if path.name != NOT_A_PHOTOGRAPH)
    return (paths[number % len(paths)] for number in range(n))


def _crop(photograph: Path, out: Path, number: int, *, short_side: int | None) -> None:
    from PIL import Image

    draw = random.Random(f"{photograph.name} {number}")
    with Image.open(photograph) as opened:
        image = opened.convert("RGB")
    scale = LONG_SIDE / max(image.size)
    width, height = (round(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    part = draw.uniform(*CROPPED)
    wide, high = round(width * part), round(height * part)
    left, top = draw.randint(0, width - wide), draw.randint(0, height - high)
    image = image.crop((left, top, left + wide, top + high))
    if short_side:
        shrunk = short_side / min(image.size)
        image = image.resize((round(wide * shrunk), round(high * shrunk)), Image.Resampling.LANCZOS)
    image.save(out, quality=90)


def _train_weights(path: Path, data: Path) -> None:
    """One-cycle SGD in bf16 over the small images, mirrored at random; the file appears when it is whole."""
    import torch
    from torch.nn import functional
    from torchvision.models import resnet50

    torch.manual_seed(0)
    images, labels = _tensors(data / "tiny-imagenet-mini" / "train", 64)
    model = resnet50(num_classes=int(labels.max()) + 1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    steps = len(labels) // 64
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=WEIGHTS_EPOCHS * steps)
    for epoch in range(WEIGHTS_EPOCHS):
        for rows in torch.randperm(len(labels))[: 64 * steps].split(64):  # type: ignore[no-untyped-call]
            batch = images[rows].flip(-1) if torch.rand(()) < 0.5 else images[rows]
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(_normalised(batch))
            loss = functional.cross_entropy(logits.float(), labels[rows], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        print(f"  epoch {epoch + 1}/{WEIGHTS_EPOCHS}: loss {loss.item():.3f}", file=sys.stderr)
    _calibrate(model, data)
    aside = path.with_suffix(".part")
    torch.save({name: t.contiguous() for name, t in model.state_dict().items()}, aside)
    aside.rename(path)


def _calibrate(model: nn.Module, data: Path) -> None:
    """BatchNorm statistics: means over photographs at 224 pixels."""
    import torch

    photographs, _ = _tensors(data / "ants-bees" / "train", 224)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the running mean of all batches
    model.train()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for batch in photographs[torch.randperm(len(photographs))].split(61):  # type: ignore[no-untyped-call]
            model(_normalised(batch))


def _tensors(folder: Path, side: int) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, side, side] and int64 [N]: the middle of every image of a folder of classes."""
    import torch
    from PIL import Image, ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    found, labels = [], []
    for label, own in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(path for path in own.iterdir() if path.name != NOT_A_PHOTOGRAPH):
            with Image.open(path) as image:
                found.append(pil_to_tensor(ImageOps.fit(image.convert("RGB"), (side, side))))
                labels.append(label)
    return torch.stack(found), torch.tensor(labels)


def _normalised(batch: Tensor) -> Tensor:
    import torch

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return ((batch.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    _train_weights(Path(sys.argv[2]), Path(sys.argv[3]))
