"""Tables of frozen activations: computed once, found again by content, the same as images give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from transferctl import features
from transferctl.backbones import torchvision as plugin
from transferctl.cache.cache import Cache
from transferctl.contracts import Batch
from transferctl.data import Split
from transferctl.datasets import folder
from transferctl.device import Compute
from transferctl.display import Display
from transferctl.features import FeatureTable
from transferctl.frozen import FrozenStages
from transferctl.images import ImageFiles
from transferctl.inputs import Inputs
from transferctl.loaders import Views
from transferctl.model import TransferModel
from transferctl.preprocess import Preprocessing
from transferctl.tasks import classification
from transferctl.trainsettings import AugmentSettings

Folder = Callable[..., Path]
Decoded = list[str]


def stages_of(count: int, *, bf16: bool = False) -> FrozenStages:
    torch.manual_seed(0)
    backbone, _ = plugin.build("resnet18", image_size=32)
    model = TransferModel("torchvision", backbone, Preprocessing(36, 32), "classification")
    return FrozenStages(model, count, Compute(torch.device("cpu"), bf16, ""), Display(as_json=True))


def split_of(root: Path) -> Split:
    dataset = folder.load(folder.Settings(path=root), "train", 0)
    return Split("train", dataset, np.arange(len(dataset)), np.asarray(dataset.labels))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 10**9, pytest.fail)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> Decoded:
    """The names of the images that are decoded, as they are."""
    names: Decoded = []
    read = ImageFiles.read_hashed

    def watched(self: ImageFiles, index: int, *how: Any) -> Any:
        names.append(Path(self.name(index)).name)
        return read(self, index, *how)

    monkeypatch.setattr(ImageFiles, "read_hashed", watched)
    return names


def table_of(stages: FrozenStages, split: Split, cache: Cache, views: Views | None = None) -> FeatureTable:
    table = features.find(stages, split, cache, views)
    features.complete(table, classification, Display(as_json=True), workers=0)
    return table


def inputs(table: FeatureTable) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in features.evaluation_batches(table, 3)])


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_table_holds_what_the_stages_make_of_each_image(
    count: int, bf16: bool, image_folder: Folder, cache: Cache
) -> None:
    split, stages = split_of(image_folder("train", ants=3, bees=4)), stages_of(count, bf16=bf16)
    plain = Inputs(classification, Preprocessing(36, 32), 0, Compute(torch.device("cpu"), bf16, ""), stages)
    (batch,) = plain.scoring_batches(split)
    table = table_of(stages, split, cache)
    read = table.batch(np.array([5, 0, 5]))
    assert (read.after, read.inputs.dtype) == (count, stages.dtype)
    assert read.labels.tolist() == [1, 0, 1] and [Path(name).name for name in read.names] == ["2.png", "0.png", "2.png"]
    torch.testing.assert_close(read.inputs, batch.inputs[[5, 0, 5]], rtol=1e-6 if not bf16 else 1e-2, atol=1e-6)


def test_the_second_time_nothing_is_decoded(image_folder: Folder, cache: Cache, decoded: Decoded) -> None:
    split = split_of(image_folder("train", ants=3, bees=4))
    first = inputs(table_of(stages_of(6), split, cache))
    assert len(decoded) == 7
    decoded.clear()
    assert torch.equal(inputs(table_of(stages_of(6), split, cache)), first)
    assert decoded == []
    assert torch.equal(inputs(table_of(stages_of(6), split.rows(np.array([4, 1])), cache)), first[[4, 1]])
    assert decoded == [], "another split of the same images finds them too"


def test_one_changed_pixel_is_computed_again_and_alone(image_folder: Folder, cache: Cache, decoded: Decoded) -> None:
    root = image_folder("train", ants=3, bees=4)
    first = inputs(table_of(stages_of(2), split_of(root), cache))
    with Image.open(root / "bees" / "1.png") as image:
        image.putpixel((20, 20), (255, 0, 0))
        image.save(root / "bees" / "1.png")
    decoded.clear()
    again = inputs(table_of(stages_of(2), split_of(root), cache))
    assert decoded == ["1.png"]
    changed = [not torch.equal(a, b) for a, b in zip(first, again, strict=True)]
    assert changed == [False] * 4 + [True] + [False] * 2


def test_a_copy_under_another_name_is_found(image_folder: Folder, cache: Cache, decoded: Decoded) -> None:
    root = image_folder("train", ants=2, bees=2)
    table_of(stages_of(2), split_of(root), cache)
    decoded.clear()
    root.rename(root.with_name("moved"))
    (root.with_name("moved") / "ants" / "0.png").rename(root.with_name("moved") / "bees" / "other.png")
    table_of(stages_of(2), split_of(root.with_name("moved")), cache)
    assert decoded == []


def test_other_stages_are_not_found(image_folder: Folder, cache: Cache, decoded: Decoded) -> None:
    split = split_of(image_folder("train", ants=2, bees=2))
    for stages in (stages_of(2), stages_of(3), stages_of(2, bf16=True)):
        decoded.clear()
        table_of(stages, split, cache)
        assert len(decoded) == 4


def test_a_file_that_changes_after_it_was_hashed_is_kept_under_what_was_read(
    image_folder: Folder, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder("train", ants=2, bees=2)
    before = split_of(root)
    changed = root / "ants" / "0.png"
    old = changed.read_bytes()
    hashed = features.hashes.digests

    def then_change(*how: Any, **more: Any) -> np.ndarray:
        found = hashed(*how, **more)
        changed.write_bytes((root / "bees" / "0.png").read_bytes())
        return found

    monkeypatch.setattr(features.hashes, "digests", then_change)
    table = table_of(stages_of(2), before, cache)
    monkeypatch.undo()
    assert torch.equal(*table.batch(np.array([0, 2])).inputs), "the rows are of what was there when it was read"
    changed.write_bytes(old)
    fresh = inputs(table_of(stages_of(2), split_of(root), Cache(None, 10**9, pytest.fail)))
    assert torch.equal(inputs(table_of(stages_of(2), split_of(root), cache)), fresh), "the old content did not get it"


def test_a_changed_file_leaves_its_former_equal_to_be_computed(
    image_folder: Folder, cache: Cache, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first of two equal images is computed for both; changed since it was hashed, it is not the other's row."""
    root = image_folder("train", ants=3, bees=2)
    changed, equal = root / "ants" / "0.png", root / "ants" / "1.png"
    old = changed.read_bytes()
    equal.write_bytes(old)
    split, hashed = split_of(root), features.hashes.digests

    def then_change(*how: Any, **more: Any) -> np.ndarray:
        found = hashed(*how, **more)
        changed.write_bytes((root / "bees" / "0.png").read_bytes())
        return found

    monkeypatch.setattr(features.hashes, "digests", then_change)
    read = inputs(table_of(stages_of(2), split, cache))
    monkeypatch.undo()
    fresh = inputs(table_of(stages_of(2), split_of(root), Cache(None, 10**9, pytest.fail)))
    assert torch.equal(read, fresh)
    assert "train: 0 of 4 from the cache, 1 duplicate" in capsys.readouterr().err


def test_what_is_cached_needs_no_room(image_folder: Folder, tmp_path: Path, decoded: Decoded) -> None:
    """Not even while another run holds the entry, so that nothing could be removed."""
    split, stages = split_of(image_folder("train", ants=2, bees=2)), stages_of(2)
    table_of(stages, split, Cache(tmp_path / "c", 10**9, pytest.fail))
    decoded.clear()
    small = Cache(tmp_path / "c", 100, pytest.fail)
    with small.rows(stages.product, np.zeros((0, 32), np.uint8)):
        source = Inputs(classification, Preprocessing(36, 32), 0, Compute(torch.device("cpu"), False, ""), stages)
        source.compute_ahead(split, "target.val", small, Display(as_json=True), views=None)
    assert len(source.tables) == 1 and decoded == []


def _views(seed: int = 0, **augment: Any) -> Views:
    settings = AugmentSettings(views=3, **augment)
    return Views(settings, 3, seed, is_source=False)


def _epochs(split: Split, stages: FrozenStages, views: Views, cache: Cache | None) -> list[Batch]:
    """Four epochs of training batches, from a table if there is a cache."""
    source = Inputs(classification, Preprocessing(36, 32), 0, Compute(torch.device("cpu"), False, ""), stages)
    if cache:
        source.compute_ahead(split, "target.train", cache, Display(as_json=True), views=views)
        assert source.tables
    return list(source.training_stream(split, None, {"target": views.augment}, batch_size=4, epochs=4, seed=0).batches)


@pytest.mark.parametrize("balanced", [False, True])
def test_views_are_the_augmented_images_of_the_first_epochs_in_turn(
    balanced: bool, image_folder: Folder, cache: Cache
) -> None:
    split = split_of(image_folder("train", ants=2, bees=6))
    split = Split(split.name, split.dataset, split.indices, split.labels, balanced=balanced)
    plain, cached = (_epochs(split, stages_of(2), _views(), where) for where in (None, cache))
    assert len(plain) == len(cached) == 8
    for one, other in zip(plain, cached, strict=True):
        assert one.names == other.names and one.after == other.after == 2
        torch.testing.assert_close(one.inputs, other.inputs, rtol=1e-5, atol=1e-5)
    seen: dict[str, set[bytes]] = {}
    for batch in cached:
        for name, row in zip(batch.names, batch.inputs, strict=True):
            seen.setdefault(name, set()).add(row.contiguous().numpy().tobytes())
    assert max(map(len, seen.values())) == 3, "an image has three versions, however often it comes"


def test_views_are_found_by_everything_that_makes_them(image_folder: Folder, cache: Cache, decoded: Decoded) -> None:
    split = split_of(image_folder("train", ants=2, bees=2))
    table_of(stages_of(2), split, cache, _views())
    assert len(decoded) == 12
    decoded.clear()
    table_of(stages_of(2), split, cache, _views())
    assert decoded == []
    for other in (_views(seed=1), _views(flip=False), _views(crop_scale=(0.5, 1.0))):
        decoded.clear()
        table_of(stages_of(2), split, cache, other)
        assert len(decoded) == 12
    decoded.clear()
    table_of(stages_of(2), split, cache)
    assert len(decoded) == 4, "a view is not the image"


def test_where_the_cache_has_no_room_the_stages_run_each_time(
    image_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    split, stages = split_of(image_folder("train", ants=2, bees=2)), stages_of(2)
    source = Inputs(classification, Preprocessing(36, 32), 0, Compute(torch.device("cpu"), False, ""), stages)
    source.compute_ahead(
        split, "target.val", Cache(tmp_path / "c", 100, pytest.fail), Display(as_json=True), views=None
    )
    assert not source.tables and not (tmp_path / "c").exists()
    assert "target.val: its activations after layer1 take 4 × 16.4 kB" in " ".join(capsys.readouterr().err.split())
    (batch,) = source.scoring_batches(split)
    assert batch.after == 2
