"""The first spec of a folder of images: each choice with its reason and what was found.

It serves `extract` and `finetune --from` alike. The rules of thumb are those of configs/*.yaml, which have what was
measured; for `finetune` also: on ants-bees (configs/ants-bees-extract.yaml's weights, seeds 0, 1, 2), from heads with
79.1, 77.8, 75.8 % on test data, layer2 frozen, 10 epochs at 0.001: 80.4, 77.8, 76.5 %; 5 epochs 79.1, 76.5, 75.8; at
0.003 77.8, 79.1, 79.1; layer3 frozen 79.1, 77.1, 75.8.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transferctl import imagefolder
from transferctl.data import Split
from transferctl.errors import DataError
from transferctl.imagefolder import Found
from transferctl.spec import PUBLISHED_NAME
from transferctl.speccomments import comment, quoted, scalar, section
from transferctl.wording import counted, printable, shown

VAL_FRACTION = 0.2
UNEVEN = 10.0  # of the largest class to the smallest, from which on check too advises weights


@dataclass(frozen=True)
class Network:
    """The backbone that is asked for: what its weights ask for, pixels, and its stages, input to output. weights: none,
    a published name, or the path of a file or (is_run) of a run."""

    name: str
    weights: str
    is_run: bool
    resize: int
    crop: int
    stages: tuple[str, ...]

    @property
    def is_local(self) -> bool:
        """Whether its weights are a file or a run."""
        return self.weights != "none" and not PUBLISHED_NAME.fullmatch(self.weights)


def text(found: Found, network: Network, folder: Path, out: Path) -> str:
    """The file's content. folder: as it was named; out: where the spec goes, which paths in it start from. Raises
    DataError for a path that no spec can hold."""
    lines = [*_head(found, folder, out), *_backbone(network), *_data(found, out), *_images(found, network)]
    lines += [*_extract(found), *_finetune(found, network)]
    return "\n".join(lines) + "\n"


def _head(found: Found, folder: Path, out: Path) -> Iterator[str]:
    yield f"# transferctl extract {quoted(out)}"
    yield from comment(
        f"Written by `transferctl init {quoted(folder)}`, for you to change. A setting that is not here has its "
        "default: `transferctl schema` lists all. `transferctl check` says what a change means, and trains nothing."
    )
    yield "#"
    for line in facts(found):
        yield from comment(line)


def facts(found: Found) -> list[str]:
    """What was found, a line each."""
    splits, sizes = found.data.splits(), found.sizes
    total = sum(len(split) for split in splits)
    classes = f"{len(found.data.classes)} classes ({shown(_class_counts(found), 10)})"
    lines = [f"{counted(total, 'image')}, {classes}; {found.layout}"]
    if len(sizes.pixels):
        short = sizes.short
        (low, high), middle = sizes.pixels[sizes.pixels.prod(axis=1).argsort()[[0, -1]]], short[len(short) // 2]
        lines.append(
            f"smallest {low[0]}×{low[1]} pixels, largest {high[0]}×{high[1]}, median short side {middle} "
            f"(of {counted(sizes.looked_at, 'image')} looked at)"
        )
    if sizes.unreadable.count:
        lines.append(f"{counted(sizes.unreadable.count, 'image')} cannot be read: {sizes.unreadable}")
    return lines


def _class_counts(found: Found) -> list[str]:
    totals: dict[str, int] = dict.fromkeys(found.data.classes, 0)
    for split in found.data.splits():
        for name, count in found.counts(split).items():
            totals[name] += count
    return [f"{name} {count:,}" for name, count in totals.items()]


def _backbone(network: Network) -> Iterator[str]:
    yield from section(
        f"The pretrained network: a {network.name}, as the run has it."
        if network.is_run
        else "The pretrained network. resnet18 is small and fast; resnet50 is most often some points better and takes "
        "three times as long. Any classification architecture of torchvision will do, or timm's: timm/NAME."
    )
    weights = network.weights
    if weights == "none":
        why = "No weights: it starts from random ones, which is no transfer; for trying things out."
    elif not network.is_local:
        why = (
            "Its weights were trained on ImageNet; they are downloaded once, then kept. Without a network, or with "
            f"weights of your own, write the file: {{name: {network.name}, weights: my.pth}}."
        )
    else:
        what = "The backbone of a run's best checkpoint" if network.is_run else "Weights from this machine"
        why = f"{what}: nothing is downloaded."
        weights = str(Path(weights).expanduser().absolute())
    yield from comment(why)
    yield f"backbone: {{name: {scalar(network.name)}, weights: {scalar(weights)}}}"


def _data(found: Found, out: Path) -> Iterator[str]:
    splits = {split.name: split for split in found.data.splits()}
    train, val = splits["train"], splits["val"]
    yield from section(
        "What is to be learnt. A class is a folder (or a label of the manifest). Training looks at train alone; val "
        "picks the epoch that is kept; test is scored once, at the end: it is the figure to report."
    )
    yield "target:"
    yield f"  train: {_path(found.paths['train'], out)}  # {counted(len(train), 'image')} to train on"
    margin = f"{counted(len(val), 'image')}: accuracies are told to ±{_margin(len(val))} points"
    if "val" in found.paths:
        yield f"  val: {_path(found.paths['val'], out)}  # {margin}"
    else:
        yield f"  val: {VAL_FRACTION}  # no folder val: a fifth of each class is held out, by seed. {margin}"
    if "test" in splits:
        test = splits["test"]
        held = f"{counted(len(test), 'image')}: accuracies are told to ±{_margin(len(test))} points"
        yield f"  test: {_path(found.paths['test'], out)}  # {held}"
    else:
        yield "  # test: …  # no folder test. The accuracy on val flatters a little, as val picks the epoch"
    yield from _balance(found, train)
    if found.sizes.unreadable.count:
        yield from section(
            f"Of the files looked at, {counted(found.sizes.unreadable.count, 'image')} cannot be read: "
            f"{found.sizes.unreadable}. skip names, counts and leaves out each; the default refuses to train."
        )
        yield "on_bad_sample: skip"


def _margin(n: int) -> str:
    """Half the 95 % interval of an accuracy of one half, points: 1.96·√(0.25/n)."""
    return f"{98 / n**0.5:.0f}" if n < 2500 else f"{98 / n**0.5:.1f}"


def _balance(found: Found, train: Split) -> Iterator[str]:
    counts = {name: count for name, count in found.counts(train).items() if count}
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    ratio = counts[most] / counts[least]
    uneven = f"{most} has {counts[most]:,}, {least} {counts[least]:,} ({ratio:.1f} to 1)"
    uneven = f"each class has {counts[most]:,}" if ratio == 1 else uneven
    if ratio >= UNEVEN:
        yield from comment(f"{uneven}: with weights, each class counts the same in the loss.", "  ")
        yield "  balance: weights"
    else:
        yield from comment(
            f"{uneven}: even enough. From about 10 to 1, write weights: each class counts the same.", "  "
        )
        yield "  balance: none"


def _images(found: Found, network: Network) -> Iterator[str]:
    """Small images are enlarged to twice their size at least, as configs/cifar10-joint.yaml has it."""
    pixels = f"a short side of {network.resize} and a centre of {network.crop} pixels"
    asked = f"{network.name}'s weights ask for {pixels}"
    if network.is_run:
        asked = f"The run's weights were trained at {pixels}"
    elif network.is_local:
        asked = f"A file does not say what size it was trained at; if you know it, write it. The library's own {asked}"
    if not len(found.sizes.pixels):
        return
    short = found.sizes.short
    middle = int(short[len(short) // 2])
    size = max(64, -(-2 * middle // 32) * 32)
    if size >= network.crop:
        small = int((short < network.crop).sum())
        enlarged = f"{small} of {len(short)} images are smaller and are enlarged" if small else "no image is smaller"
        smaller = " {resize: 146, crop: 128} computes a third, and loses fine detail." if network.crop > 200 else ""
        yield from section(f"{asked}, and get it: {enlarged}.{smaller}")
        yield f"# preprocess: {{resize: {network.resize}, crop: {network.crop}}}"
        return
    times = (network.crop / size) ** 2
    yield from section(
        f"Your images have {middle} pixels. {asked}: enlarging them so far adds no detail, and takes {times:.0f} "
        f"times as long as {size}. Yet the weights know things at that size: try it, by removing this line."
    )
    yield f"preprocess: {{resize: {size}, crop: {size}}}"


def _extract(found: Found) -> Iterator[str]:
    train = found.data.train
    fewest = min(count for count in found.counts(train).values() if count)
    yield from section(
        "extract: the backbone stays as it is and computes each image once; on what it gives, a linear head is solved "
        "exactly. Nothing is to be tuned: its regularisation is chosen by cross-validation on train."
    )
    if fewest < 2:
        yield from comment("(Not here: a class has one image, too few for that; 0.1 is middling.)")
        yield "head: {solver: lbfgs, regularisation: 0.1}"
    else:
        yield "head: {solver: lbfgs}"


def _finetune(found: Found, network: Network) -> Iterator[str]:
    n = len(found.data.train)
    frozen = _frozen(n, network.stages)
    thawed = network.stages[network.stages.index(frozen) + 1 :] if frozen in network.stages else network.stages
    many = "few" if n < 5000 else "many" if n >= 50_000 else "some"
    what = "everything learns" if frozen == "none" else f"{shown(thawed, 4)} and the head learn, what is before stays"
    yield from section(
        f"finetune --from the run of extract: {many} images ({n:,}), so {what}. The more images, the more may learn: "
        f"{' → '.join([*_depths(network.stages), 'none'])}."
    )
    yield f"frozen: {scalar(frozen)}"
    epochs, batch_size = (10 if n < 50_000 else 5), (32 if n >= 64 else 8)
    steps = epochs * -(-n // batch_size)
    yield from comment(f"Passes over train: {steps:,} steps in all. The best by val is kept, so more cost time alone.")
    yield f"epochs: {epochs}"
    yield from comment("Images a step. Where that is too much for the memory, auto makes a step in parts.")
    yield f"batch_size: {batch_size}"
    yield from comment(
        "Small steps: the weights are good already. The setting to try first, from 0.0003 to 0.01; "
        "`--set optimizer.lr=0.003` tries one without a change here."
    )
    yield "optimizer: {name: sgd, lr: 0.001}"
    yield from comment(
        "Training images are cropped, to 35 % of their area at least, and mirrored: not where left and right matter."
    )
    yield "augment: {crop_scale: [0.35, 1], flip: true}"


def _depths(stages: tuple[str, ...]) -> list[str]:
    """The last frozen stage for few images, and for some: half of the network, and a quarter."""
    return [stages[len(stages) // 2], stages[len(stages) // 4]]


def _frozen(n: int, stages: tuple[str, ...]) -> str:
    return (*_depths(stages), "none")[(n >= 5000) + (n >= 50_000)]


# -- text -----------------------------------------------------------------------------------------------


def _path(path: Path, out: Path) -> str:
    """As YAML: relative to the spec where that leads down, so that both can be moved together."""
    relative = os.path.relpath(path, out.absolute().parent)
    chosen = path.absolute() if ".." in path.parts or relative.startswith(("..", "~")) else Path(relative)
    try:
        str(chosen).encode()
    except UnicodeEncodeError:
        raise DataError(f"{printable(str(path))}: its name is no text, which no spec can hold; rename it") from None
    value = imagefolder.written(path)
    return scalar(value | {"path": str(chosen)} if isinstance(value, dict) else str(chosen))
