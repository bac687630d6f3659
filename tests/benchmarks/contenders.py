"""What transferctl is measured against: each a script that a good engineer would write, run in a process of its own.

    python tests/benchmarks/contenders.py CONTENDER --train DIR --val DIR --weights W.pth --arch resnet50 --frozen layer3 …

plain     (a) the loop of PyTorch's "Transfer Learning for Computer Vision" tutorial: eager fp32, the backbone in every
          epoch, a training and a validation phase, `requires_grad = False` on what is frozen, ImageFolder, two loader
          workers, the best model saved. Three departures: BatchNorm of frozen stages stays in eval mode, so that the
          loop computes the same model as transferctl (this is also a little faster than the tutorial's train mode);
          the crop's scale and the schedule (a cosine) are transferctl's; the batch is larger than the tutorial's 4.
tuned     (b) the same, in channels_last and bf16 autocast, with persistent workers that hand over uint8 images,
          normalised by the batch, and fused SGD.
one-pass  (b) for frozen backbones: features computed once, in channels_last and bf16 under inference_mode, then the same
          head, optimizer, epochs and batches on them.
sklearn   (c) features computed once by torchvision's model in fp32, then scikit-learn's standardised LogisticRegression.

Prints one JSON object: accuracy on validation data after the last epoch, and for each phase the images it saw, its
seconds, and both without the first SKIPPED batches of each pass (`steady`), in which kernels are made and workers start.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, models
from torchvision.transforms import v2

SKIPPED = 2
STAGES = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contender", choices=["plain", "tuned", "one-pass", "sklearn"])
    for name in ("train", "val", "weights"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--frozen", required=True, help="all, none, or the last frozen stage")
    parser.add_argument("--augment", action="store_true")
    for name in ("resize", "crop", "epochs", "batch-size", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--lr", type=float, required=True)
    job = parser.parse_args()
    torch.manual_seed(job.seed)
    run = {"plain": loop, "tuned": loop, "one-pass": one_pass, "sklearn": probe}[job.contender]
    accuracy, phases = run(job)
    print(json.dumps({"accuracy": accuracy, "phases": {name: asdict(phase) for name, phase in phases.items()}}))


@dataclass
class Phase:
    """What a phase took. Seconds run from batch to batch, so waiting for data is in them."""

    images: int = 0
    seconds: float = 0.0
    steady_images: int = 0
    steady_seconds: float = 0.0
    passes: list[float] = field(default_factory=list)

    def over(self, loader: DataLoader[Any]) -> Iterator[list[Tensor]]:
        began = before = perf_counter()
        for step, batch in enumerate(loader):
            yield batch
            now, n = perf_counter(), len(batch[1])
            self.images += n
            if step >= SKIPPED:
                self.steady_images += n
                self.steady_seconds += now - before
            before = now
        self.passes.append(before - began)
        self.seconds += before - began


def loop(job: argparse.Namespace) -> tuple[float, dict[str, Phase]]:
    """The tutorial's train_model; `tuned` differs where it says so."""
    tuned = job.contender == "tuned"
    device = _device()
    loaders = {
        "train": _loader(job.train, _transform(job, augment=job.augment, as_bytes=tuned), job.batch_size, True, tuned),
        "val": _loader(job.val, _transform(job, augment=False, as_bytes=tuned), job.batch_size, False, tuned),
    }
    model = _model(job).to(device)
    if tuned:
        model = model.to(memory_format=torch.channels_last)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=job.lr, momentum=0.9, fused=True if tuned else None)
    steps = job.epochs * len(loaders["train"])
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    criterion = nn.CrossEntropyLoss()
    phases, accuracy, best = {"train": Phase(), "val": Phase()}, 0.0, -1.0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(job.epochs):
            for name in ("train", "val"):
                training, correct = name == "train", 0
                model.train(training)
                _keep_frozen_in_eval(model)
                running_loss = 0.0
                for inputs, labels in phases[name].over(loaders[name]):
                    inputs, labels = _moved(inputs, device, tuned), labels.to(device, non_blocking=True)
                    optimizer.zero_grad()
                    with torch.set_grad_enabled(training), torch.autocast(device.type, torch.bfloat16, enabled=tuned):
                        outputs = model(inputs)
                        loss = criterion(outputs, labels)
                    if training:
                        loss.backward()
                        optimizer.step()
                        schedule.step()
                    running_loss += loss.item() * len(labels)
                    correct += int((outputs.argmax(1) == labels).sum())
            accuracy = correct / len(loaders["val"].dataset)  # type: ignore[arg-type]
            if accuracy > best:
                best = accuracy
                torch.save(model.state_dict(), Path(folder) / "best.pt")
    return accuracy, phases


def one_pass(job: argparse.Namespace) -> tuple[float, dict[str, Phase]]:
    """Features once, tuned; then the head alone, in fp32."""
    (features, labels), (val, val_labels), phases = _features(job, tuned=True)
    head = nn.Linear(features.shape[1], int(labels.max()) + 1)
    optimizer = torch.optim.SGD(head.parameters(), lr=job.lr, momentum=0.9)
    steps = job.epochs * math.ceil(len(labels) / job.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    accuracy, began = 0.0, perf_counter()
    for _ in range(job.epochs):
        for rows in torch.randperm(len(labels)).split(job.batch_size):  # type: ignore[no-untyped-call]
            loss = functional.cross_entropy(head(features[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            accuracy = float((head(val).argmax(1) == val_labels).float().mean())
    return accuracy, phases | {"head": _one_phase(job.epochs * len(labels), perf_counter() - began)}


def probe(job: argparse.Namespace) -> tuple[float, dict[str, Phase]]:
    """Features once, in fp32 as torchvision's model gives them; then scikit-learn."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (features, labels), (val, val_labels), phases = _features(job, tuned=False)
    began = perf_counter()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    classifier.fit(features.numpy(), labels.numpy())
    accuracy = float(classifier.score(val.numpy(), val_labels.numpy()))
    return accuracy, phases | {"head": _one_phase(len(labels), perf_counter() - began)}


Table = tuple[Tensor, Tensor]


def _features(job: argparse.Namespace, *, tuned: bool) -> tuple[Table, Table, dict[str, Phase]]:
    """float32 [N, D] and int64 [N], of training and validation data."""
    device = _device()
    model = _model(job)
    model.fc = nn.Identity()
    model.eval().to(device)
    if tuned:
        model.to(memory_format=torch.channels_last)
    phases, tables = {"train": Phase(), "val": Phase()}, []
    for name, phase in phases.items():
        transform = _transform(job, augment=False, as_bytes=tuned)
        loader = _loader(getattr(job, name), transform, job.batch_size, False, tuned)
        found, labels = [], []
        # One autocast for the whole pass would keep no more casts: it caches those of parameters that want gradients.
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=tuned):
            for inputs, own in phase.over(loader):
                found.append(model(_moved(inputs, device, tuned)).float().cpu())
                labels.append(own)
        tables.append((torch.cat(found).clone(), torch.cat(labels)))
    return tables[0], tables[1], phases


def _one_phase(images: int, seconds: float) -> Phase:
    return Phase(images, seconds, images, seconds, [seconds])


def _model(job: argparse.Namespace) -> nn.Module:
    """torchvision's, with the file's weights and a new last layer; what is frozen wants no gradient."""
    state = torch.load(job.weights, weights_only=True)
    model = models.get_model(job.arch, num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    last = STAGES.index("layer4" if job.frozen == "all" else job.frozen) if job.frozen != "none" else -1
    for name in STAGES[: last + 1]:
        model.get_submodule(name).requires_grad_(False)
    model.fc = nn.Linear(model.fc.in_features, len(list(datasets.ImageFolder(str(job.train)).classes)))
    return model  # type: ignore[no-any-return]


def _keep_frozen_in_eval(model: nn.Module) -> None:
    for module in model.children():
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()


def _transform(job: argparse.Namespace, *, augment: bool, as_bytes: bool) -> v2.Transform:
    """The tutorial's; as_bytes: the tensor stays uint8, a quarter of what a worker has to hand over."""
    end = [v2.PILToTensor()]
    if not as_bytes:
        end += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if augment:
        return v2.Compose([v2.RandomResizedCrop(job.crop, (0.35, 1.0)), v2.RandomHorizontalFlip(), *end])
    return v2.Compose([v2.Resize(job.resize), v2.CenterCrop(job.crop), *end])


def _loader(folder: Path, transform: v2.Transform, batch_size: int, shuffle: bool, tuned: bool) -> DataLoader[Any]:
    return DataLoader(
        datasets.ImageFolder(str(folder), transform),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=min(os.cpu_count() or 1, 8),
        persistent_workers=tuned,
        pin_memory=torch.cuda.is_available(),
    )


def _moved(inputs: Tensor, device: torch.device, tuned: bool) -> Tensor:
    """On the device; uint8 images normalised, in channels_last."""
    inputs = inputs.to(device, non_blocking=True)
    if not tuned:
        return inputs
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) * 255 for values in (MEAN, STD))
    return inputs.contiguous(memory_format=torch.channels_last).float().sub_(mean).div_(std)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
