"""Names that look wrong are said; names that hold another by chance are not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from transferctl import names
from transferctl.data import Split


def called_after(file: str, own: str, *classes: str) -> list[str]:
    """The other classes that a file of class `own` is called after."""
    dataset: Any = SimpleNamespace(name=lambda i: f"data/of ants and bees/{file}")
    known = [own, *classes]
    split = Split("train", dataset, np.zeros(1, np.int32), np.zeros(1, np.int32))
    return [other for _, _, other in names.Foreign(split, known)]


@pytest.mark.parametrize(
    ("file", "own", "other"),
    [
        ("bee_012.jpg", "ants", "bees"),
        ("Bees-on-a-flower.JPG", "ants", "bee"),
        ("IMG 3 golden_retrievers.png", "poodle", "Golden Retriever"),
        ("horses.jpg", "cow", "horse"),
        ("foxes (2).jpg", "cow", "fox"),
        ("pony3.jpg", "cow", "ponies"),
        ("été.jpg", "hiver", "Été"),
    ],
)
def test_a_file_called_after_another_class_is_named(file: str, own: str, other: str) -> None:
    assert called_after(file, own, other) == [other]


@pytest.mark.parametrize(
    ("file", "own", "other"),
    [
        ("elephant_3.jpg", "elephant", "ant"),
        ("plant.jpg", "tree", "ant"),
        ("ant_with_bee.jpg", "ants", "bees"),  # its own class's name is there too
        ("a_1.jpg", "b", "a"),
        ("no_7.jpg", "yes", "no"),
        ("photo_3.jpg", "7", "3"),
        ("n01443537_12.JPEG", "n02124075", "n01443537"),
        ("bee_7.jpg", "bee eater", "bee"),  # a part of its own class's name
        ("retriever.jpg", "poodle", "golden retriever"),
        ("care.jpg", "bus", "car"),
        ("x.jpg", "png", "jpg"),  # the extension is no word of the name
    ],
)
def test_a_name_that_holds_another_by_chance_is_not(file: str, own: str, other: str) -> None:
    assert called_after(file, own, other) == []


def test_a_word_that_is_in_many_names_says_nothing_of_them() -> None:
    files = [f"{'photo' if i % 2 else 'bee'}_{i}.jpg" for i in range(60)]
    dataset: Any = SimpleNamespace(name=files.__getitem__)
    labels = np.array([0] * 58 + [1, 1], dtype=np.int32)
    labels[0] = 2
    split = Split("train", dataset, np.arange(60, dtype=np.int32), labels)
    found = list(names.Foreign(split, ["bees", "photo", "ants"]))
    assert found == [("bee_0.jpg", "ants", "bees"), ("bee_58.jpg", "photo", "bees")]


def test_a_file_of_a_class_that_training_data_lacks_is_not_said_again() -> None:
    dataset: Any = SimpleNamespace(name=lambda i: "bee_1.jpg")
    split = Split("val", dataset, np.zeros(1, np.int32), np.array([-1], dtype=np.int32))
    assert list(names.Foreign(split, ["ants", "bees"])) == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ants", "ants"),
        ("cat", "cats"),
        ("golden retriever", "golden_retriever"),
        ("golden-retriever", "GoldenRetriever"),
        ("berry", "berries"),
        ("dalmatian", "dalmation"),
        ("labrador retriever", "labrador retreiver"),
        ("accordion", "acordion"),
        ("rottweiler", "rottweilerr"),
    ],
)
def test_classes_that_look_like_the_same_twice_are_said(one: str, other: str) -> None:
    assert names.alike([one, "zebra", other]) == [(one, other)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("A", "a"),
        ("1", "01"),
        ("cat", "car"),
        ("tern", "fern"),
        ("typical", "atypical"),
        ("grade a", "grade b"),
        ("boeing 737", "boeing 747"),
        ("model12", "model13"),
        ("left lung", "right lung"),
        ("hornet", "cornet"),
        ("n01443537", "n01443538"),
    ],
)
def test_classes_whose_names_resemble_each_other_rightly_are_not(one: str, other: str) -> None:
    assert names.alike([one, "zebra", other]) == []
