"""What looks alike is found, whatever was done to it, and what does not is not: hashes, search, pairs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from transferctl import copies, nearduplicates, perceptual, scratch
from transferctl.audit import SAMPLE, Looked
from transferctl.copies import Pair
from transferctl.data import Split
from transferctl.loaders import Unreadable
from transferctl.nearduplicates import RADIUS, WHOLE_RADIUS, differing


def photograph(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """Smooth blobs with fine noise, as photographs have most of their energy in low frequencies."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    noise = random.normal(0, 4, (height, width, 3))
    return Image.fromarray((np.asarray(coarse) * 0.7 + noise + 30).clip(0, 255).astype(np.uint8))


def as_jpeg(image: Image.Image) -> Image.Image:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=40)
    return Image.open(data).convert("RGB")


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "encoded anew": as_jpeg,
    "half as large": lambda image: image.resize((image.width // 2, image.height // 2)),
    "larger than is looked at": lambda image: image.resize((image.width * 6, image.height * 6)),
    "cropped by 1 %": lambda image: image.crop((1, 1, image.width - 1, image.height - 1)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
}


def bits_between(one: Image.Image, other: Image.Image) -> list[int]:
    return [int(bits) for bits in differing(perceptual.hash_of(one) ^ perceptual.hash_of(other))]


# -- the hash


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_copy_has_nearly_the_same_hash(change: Callable[[Image.Image], Image.Image]) -> None:
    for seed in range(10):
        bits = bits_between(photograph(seed), change(photograph(seed)))
        assert bits[0] <= RADIUS and sum(bits) <= WHOLE_RADIUS


def test_hashes_of_different_images_differ_as_coins_do() -> None:
    hashes = np.array([perceptual.hash_of(photograph(seed)) for seed in range(60)])
    low = [int(differing(one[0] ^ other[0])) for i, one in enumerate(hashes) for other in hashes[:i]]
    assert min(low) > RADIUS and 28 < np.mean(low) < 34


def test_the_bits_are_signs_of_scipys_cosine_transform() -> None:
    from scipy.fft import dctn

    image = photograph(3, 32, 32)
    signs = dctn(np.asarray(image.convert("L"), dtype=np.float64))[:16, :16] > 0
    word = int(perceptual.hash_of(image)[0])
    assert [bool(word >> i & 1) for i in range(64)] == signs[:8, :8].ravel().tolist()
    assert sum(int(bits) for bits in differing(perceptual.hash_of(image))) == np.count_nonzero(signs)


@pytest.mark.parametrize("image", [
    Image.new("RGB", (200, 100), "navy"),
    Image.fromarray(np.random.default_rng(0).integers(120, 124, (300, 300, 3), dtype=np.uint8)),
    photograph(0, 15, 40),
])  # fmt: skip
def test_what_is_flat_or_small_has_no_hash(image: Image.Image) -> None:
    assert not perceptual.hash_of(image).any()


# -- the search


def random_hashes(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, (n, 4), dtype=np.uint64)


def near_copies(words: np.ndarray, seed: int = 1) -> np.ndarray:
    """The same but for up to RADIUS bits of the first word, all counts of them."""
    random, changed = np.random.default_rng(seed), words.copy()
    for i, row in enumerate(changed):
        for bit in random.choice(64, i % (RADIUS + 1), replace=False):
            row[0] ^= np.uint64(1 << int(bit))
    return changed


def all_pairs(words: np.ndarray, splits: np.ndarray) -> dict[int, tuple[int, int]]:
    """Of each position the nearest earlier one of another split and its distance, looking at all pairs."""
    found: dict[int, tuple[int, int]] = {}
    for later in range(len(words)):
        bits = [[int(a ^ b).bit_count() for a, b in zip(words[later], other, strict=True)] for other in words[:later]]
        near = [
            (sum(of), i) for i, of in enumerate(bits)
            if splits[i] != splits[later] and of[0] <= RADIUS and sum(of) <= WHOLE_RADIUS
        ]  # fmt: skip
        if near:
            found[later] = min(near)
    return found


def nearest(words: np.ndarray, splits: np.ndarray, labels: np.ndarray | None = None) -> nearduplicates.Near:
    labels = np.zeros(len(words), np.int32) if labels is None else labels
    return nearduplicates.search(words, splits, labels, np.arange(len(words), dtype=np.int32))


@pytest.mark.parametrize("bits_set", [0.5, 0.25, 0.1])
def test_the_search_finds_what_looking_at_all_pairs_finds(bits_set: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where hashes crowd together: with few bits set, many are within the radius."""
    monkeypatch.setattr(scratch, "PIECE", 50)
    random = np.random.default_rng(0)
    words = np.packbits(random.random((200, 256)) < bits_set, axis=1).view(np.uint64)
    words = np.concatenate([words, near_copies(words[:60])])
    splits = random.integers(0, 3, len(words)).astype(np.uint8)
    found = {later: (bits, first) for later, first, bits in nearduplicates.pairs(nearest(words, splits).across)}
    expected = all_pairs(words, splits)
    assert len(expected) > 30
    assert found == expected


@pytest.mark.parametrize("n", [2_000, 30_000])
def test_every_planted_pair_is_found_among_many(n: int) -> None:
    words = random_hashes(n)
    words[-300:] = near_copies(words[:300])
    splits = (np.arange(n) >= n // 2).astype(np.uint8)
    near = nearest(words, splits)
    found = {later: first for later, first, _ in nearduplicates.pairs(near.across)}
    assert found == {n - 300 + i: i for i in range(300)} and near.cut == 0


def test_pairs_come_nearest_first() -> None:
    words = random_hashes(400)
    words[200:] = near_copies(words[:200])
    bits = [bits for _, _, bits in nearduplicates.pairs(nearest(words, np.repeat([0, 1], 200)).across)]
    assert bits == sorted(bits) and bits[0] == 0 and bits[-1] == RADIUS


def test_hashes_that_all_are_alike_take_no_quadratic_time_and_are_said_once_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """20,000 with the same first word are 200 million pairs; a window of each is compared, and that is said."""
    compared = 0

    def counted(words: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(words)
        return differing(words)

    monkeypatch.setattr(nearduplicates, "differing", counted)
    monkeypatch.setattr(nearduplicates, "COMPARISONS", 0)
    monkeypatch.setattr(nearduplicates, "combinations", lambda bands, k: [tuple(bands[:k])])
    words = np.ones((20_000, 4), np.uint64)
    near = nearest(words, np.repeat([0, 1], 10_000).astype(np.uint8))
    found = list(nearduplicates.pairs(near.across))
    assert 9_000 < len(found) <= 10_000 and near.cut > 19_000
    assert compared <= 2 * nearduplicates.WINDOW * 20_000


def test_after_twice_the_effort_of_chance_hashes_that_all_are_alike_are_hardly_compared(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nearduplicates, "EFFORT", 0)
    words = np.ones((500, 4), np.uint64)
    near = nearest(words, np.repeat([0, 1], 250).astype(np.uint8))
    assert 230 < len(list(nearduplicates.pairs(near.across))) <= 250 and near.cut > 490


def test_nothing_is_near_where_nothing_is_compared() -> None:
    near = nearest(np.zeros((0, 4), np.uint64), np.zeros(0, np.uint8))
    assert not list(nearduplicates.pairs(near.across)) and near.cut == 0


# -- what is made of it


def audits_of(*splits: tuple[str, np.ndarray, list[int], list[bytes]], broken: tuple[int, ...] = ()) -> list[Looked]:
    """Each split: name, hashes, labels, contents. The positions `broken` of the first cannot be read."""
    made = []
    for name, words, labels, contents in splits:
        dataset: Any = SimpleNamespace(name=lambda i, name=name: f"{name}/{i}")
        samples = np.zeros(len(words), SAMPLE)
        samples["hash"], samples["mode"] = words, b"RGB"
        samples["digest"] = [np.frombuffer(content.ljust(32, b"."), np.uint8) for content in contents]
        unreadable = {i: Unreadable(str(i), "") for i in (broken if not made else ())}
        samples[list(unreadable)] = np.zeros(1, SAMPLE)
        split = Split(name, dataset, np.arange(len(words), dtype=np.int32), np.array(labels, dtype=np.int32))
        made.append(Looked(split, unreadable, samples["digest"], samples))
    return made


def contents(name: str, n: int) -> list[bytes]:
    return [f"{name}{i}".encode() for i in range(n)]


def test_identical_pairs_are_not_said_again_as_near_ones() -> None:
    words = random_hashes(4)
    val = near_copies(words)
    found = copies.find(
        audits_of(
            ("train", words, [0, 0, 1, 1], contents("t", 4)),
            ("val", val, [0, 0, 1, 1], [b"t0", b"v1", b"v2", b"v3"]),
        ),
        ["ants", "bees"],
    )
    assert list(found.identical) == [Pair(("train/0", "val/0"), ("ants", "ants"))]
    assert list(found.near) == [
        Pair((f"train/{i}", f"val/{i}"), (name, name), bits) for i, name, bits in ((1, "ants", 1), (2, "bees", 2), (3, "bees", 3))
    ]  # fmt: skip
    assert list(found.conflicts) == []


def test_one_image_under_two_labels_of_the_training_split_is_a_conflict() -> None:
    words = np.repeat(random_hashes(3), 2, axis=0)
    train = ("train", words, [0, 1, 0, 1, 1, 1], [b"same", b"same", b"a", b"b", b"c", b"d"])
    val = ("val", random_hashes(2, seed=5), [0, 1], contents("v", 2))
    found = copies.find(audits_of(train, val), ["ants", "bees"])
    assert list(found.conflicts) == [
        Pair(("train/0", "train/1"), ("ants", "bees")),
        Pair(("train/2", "train/3"), ("ants", "bees"), 0),
    ]
    assert not [*found.identical, *found.near]


def test_what_is_flat_or_unreadable_is_near_nothing() -> None:
    words = np.zeros((4, 4), np.uint64)
    train, val = ("train", words, [0, 1, 0, 1], contents("t", 4)), ("val", words, [0, 1, 0, 1], contents("v", 4))
    found = copies.find(audits_of(train, val, broken=(1, 2)), ["ants", "bees"])
    assert not [*found.identical, *found.near, *found.conflicts]
    assert found.flat == 6


# -- the command


def test_check_names_changed_copies_of_training_images_in_validation_data(
    spec: Path, tmp_path: Path, invoke: Any
) -> None:
    for folder in ("train", "val"):
        shutil.rmtree(tmp_path / folder)
        for label, name in enumerate(("ants", "bees", "wasps")):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(6):
                photograph(100 * label + i + 10 * (folder == "val")).save(tmp_path / folder / name / f"{i}.png")
    for i, change in enumerate(CHANGES.values()):
        change(photograph(100 + i)).save(tmp_path / "val" / "bees" / f"copy-{i}.jpg", quality=85)
    shutil.copy(tmp_path / "train" / "bees" / "3.png", tmp_path / "train" / "wasps" / "wrong.png")
    code, answer = invoke("check", spec)
    assert code == 0
    pairs = {(Path(one).name, Path(other).name) for one, other, _ in answer["near_duplicates_across_splits"]}
    assert pairs == {(f"{i}.png", f"copy-{i}.jpg") for i in range(len(CHANGES))}
    assert (answer["near_duplicate_pairs"], answer["duplicate_pairs"]) == (len(CHANGES), 0)
    (conflict,) = answer["label_conflicts"]
    assert conflict["classes"] == ["bees", "wasps"] and conflict["bits"] is None
    assert [Path(name).name for name in conflict["samples"]] == ["3.png", "wrong.png"]


@pytest.mark.real
def test_changed_copies_of_real_photographs_are_found_and_nothing_else(
    call: Any, tmp_path: Path, real_data: Path
) -> None:
    """Every fifth validation image of ants and bees is a changed copy of a training image; the others are not."""
    photos = real_data / "ants-bees"
    planted = {}
    for name in ("ants", "bees"):
        shutil.copytree(photos / "val" / name, tmp_path / "val" / name)
        originals = sorted((photos / "train" / name).glob("*.jpg"))[::5]
        for i, path in enumerate(originals):
            change = list(CHANGES.values())[i % len(CHANGES)]
            copied = change(Image.open(path).convert("RGB"))
            copied.save(tmp_path / "val" / name / f"copy-{path.name}", quality=85)
            planted[f"copy-{path.name}"] = path.name
    (tmp_path / "spec.yaml").write_text(f"""
backbone: {{name: resnet18, weights: none}}
preprocess: {{resize: 72, crop: 64}}
target: {{train: {{path: {photos}/train, exclude: [imageNotFound.gif]}}, val: val}}
""")
    answer = call("check", tmp_path / "spec.yaml")
    found = {Path(other).name: Path(one).name for one, other, _ in answer["near_duplicates_across_splits"]}
    assert found == planted
