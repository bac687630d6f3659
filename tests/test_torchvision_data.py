"""torchvision's data sets, its real classes over small files in its own formats on disk. Nothing is fetched."""

from __future__ import annotations

import hashlib
import inspect
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from transferctl import data, loaders, plugins, yamlfile
from transferctl.contracts import BadSample
from transferctl.data import Split
from transferctl.datasets import torchvision as plugin
from transferctl.datasets.torchvision import Settings, TorchvisionData
from transferctl.errors import DataError, SpecError
from transferctl.images import decode
from transferctl.preprocess import Preprocessing

Patch = pytest.MonkeyPatch
Folder = Callable[..., Path]

LEAVES_FILES_OPEN = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # torchvision does
CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def _settings(name: str, root: Path, **more: Any) -> Settings:
    return Settings(dataset="torchvision", name=name, root=str(root), **more)


def _load(name: str, root: Path, role: str = "train", **more: Any) -> TorchvisionData:
    return plugin.load(_settings(name, root, **more), role, 0)


def _labels(loaded: TorchvisionData) -> list[str]:
    return [loaded.class_names[label] for label in loaded.labels]


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def _write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _image(path: Path, colour: Any = (10, 200, 30), mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Path:
    """A plain image; its format is its name's, but alpha and 16 bits are PNG, whatever the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain_format = {".ppm": "PPM", ".png": "PNG"}.get(path.suffix, "JPEG")
    Image.new(mode, size, colour).save(path, "PNG" if mode in ("RGBA", "I;16") else plain_format)
    return path


def _idx(path: Path, values: np.ndarray) -> None:
    """LeCun's idx format: two zero bytes, the type, the rank, the sizes and the values, all big-endian."""
    kind = {"uint8": 0x08, "int32": 0x0C}[values.dtype.name]
    head = bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    _write(path, head + values.astype(values.dtype.newbyteorder(">")).tobytes())


# -- small data sets on disk ----------------------------------------------------------------------------


def _cifar_pixels(labels: list[int]) -> np.ndarray:
    """[n, 3072]: red planes, then green, then blue; red carries the label."""
    planes = np.zeros((len(labels), 3, 1024), np.uint8)
    planes[:, 0] = np.array(labels, np.uint8)[:, None] * 20
    planes[:, 1] = 7
    return planes.reshape(len(labels), 3072)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: Patch) -> Path:
    """CIFAR10: five training batches of airplanes, birds and cats, and a test batch of one bird."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    batches = {f"data_batch_{i}": [0, 2, 3, 2] for i in range(1, 6)} | {"test_batch": [2]}
    sums = {}
    for name, labels in batches.items():
        content = pickle.dumps({"data": _cifar_pixels(labels), "labels": labels})
        sums[name] = _md5(_write(folder / name, content))
    meta = _write(folder / "batches.meta", pickle.dumps({"label_names": CIFAR_NAMES}))
    monkeypatch.setattr(datasets.CIFAR10, "train_list", [[name, sums[name]] for name in batches if "data" in name])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": _md5(meta)})
    return tmp_path / "data"


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    for part, labels in (("train", [3, 1, 3, 1]), ("t10k", [1])):
        pixels = np.array(labels, np.uint8)[:, None, None] * np.full((28, 28), 50, np.uint8)
        _idx(tmp_path / "MNIST/raw" / f"{part}-images-idx3-ubyte", pixels)
        _idx(tmp_path / "MNIST/raw" / f"{part}-labels-idx1-ubyte", np.array(labels, np.uint8))
    return tmp_path


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    """DTD: as listed, training holds one texture of each kind, validation only a dotted one."""
    root = tmp_path / "dtd" / "dtd"
    for name in ("banded/b_1.jpg", "dotted/d_1.jpg", "dotted/d_2.jpg"):
        _image(root / "images" / name)
    _write(root / "labels/train1.txt", "dotted/d_1.jpg\nbanded/b_1.jpg\n")
    _write(root / "labels/val1.txt", "dotted/d_2.jpg\n")
    _write(root / "labels/test1.txt", "banded/b_1.jpg\n")
    return tmp_path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    root = tmp_path / "oxford-iiit-pet"
    _write(root / "annotations/trainval.txt", "Abyssinian_1 1 1 1\nbasset_hound_7 2 2 1\n")
    _write(root / "annotations/test.txt", "basset_hound_8 2 2 1\nAbyssinian_2 1 1 1\n")
    for name in ("Abyssinian_1", "Abyssinian_2", "basset_hound_7", "basset_hound_8"):
        _image(root / "images" / f"{name}.jpg")
    return tmp_path


@pytest.fixture
def flowers(tmp_path: Path, monkeypatch: Patch) -> Path:
    root = tmp_path / "flowers-102"
    root.mkdir()
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 2, 1, 102]], np.uint8)})
    ids = {"trnid": [[1, 2]], "valid": [[3, 2]], "tstid": [[4, 1]]}
    savemat(root / "setid.mat", {key: np.array(value, np.uint16) for key, value in ids.items()})
    files = {"label": "imagelabels.mat", "setid": "setid.mat"}
    sums = {key: (name, _md5(root / name)) for key, name in files.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", datasets.Flowers102._file_dict | sums)
    for i in range(1, 5):
        _image(root / "jpg" / f"image_{i:05d}.jpg")
    return tmp_path


@pytest.fixture
def svhn(tmp_path: Path, monkeypatch: Patch) -> Path:
    """SVHN: pixels [32, 32, 3, n], and the digit 0 written as 10."""
    lists = {}
    for part, digits in (("train", [10, 4]), ("test", [4, 10])):
        file = tmp_path / f"{part}_32x32.mat"
        pixels = np.full((32, 32, 3, 2), 90, np.uint8)
        savemat(file, {"X": pixels, "y": np.array(digits, np.uint8)[:, None]})
        lists[part] = ["", file.name, _md5(file)]
    monkeypatch.setattr(datasets.SVHN, "split_list", datasets.SVHN.split_list | lists)
    return tmp_path


@pytest.fixture
def eurosat(tmp_path: Path) -> Path:
    for name in ("Forest/Forest_1.jpg", "River/River_1.jpg", "River/River_2.jpg"):
        _image(tmp_path / "eurosat/2750" / name)
    return tmp_path


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    """StanfordCars: labels are uint8 in a .mat file, counted from 1."""
    kinds = [("fname", "O"), ("class", "u1")]
    rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=kinds)
    (tmp_path / "stanford_cars/devkit").mkdir(parents=True)
    savemat(tmp_path / "stanford_cars/devkit/cars_train_annos.mat", {"annotations": rows})
    names = np.array(["Acura", "BMW"], object)
    savemat(tmp_path / "stanford_cars/devkit/cars_meta.mat", {"class_names": names})
    for name in ("1.jpg", "2.jpg"):
        _image(tmp_path / "stanford_cars/cars_train" / name)
    return tmp_path


# -- labels and their names -----------------------------------------------------------------------------


def test_cifar_labels_are_named_by_its_list_and_only_those_that_occur(cifar: Path) -> None:
    loaded = _load("CIFAR10", cifar)
    assert loaded.class_names == ("airplane", "bird", "cat")
    assert _labels(loaded) == ["airplane", "bird", "cat", "bird"] * 5
    assert loaded.notes == ()


def test_cifar_pixels_are_those_of_the_batch(cifar: Path) -> None:
    image = _load("CIFAR10", cifar).read(2)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    assert set(image.get_flattened_data()) == {(60, 7, 0)}


def test_mnist_is_read_as_rgb_from_idx_files(mnist: Path) -> None:
    loaded = _load("MNIST", mnist)
    assert _labels(loaded) == ["3 - three", "1 - one"] * 2
    image = loaded.read(0)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (28, 28), (150, 150, 150))


def test_the_labels_of_a_split_are_those_of_its_list(dtd: Path) -> None:
    assert _labels(_load("DTD", dtd)) == ["dotted", "banded"]
    assert _labels(_load("DTD", dtd, "val")) == ["dotted"]
    assert _labels(_load("DTD", dtd, "test")) == ["banded"]


def test_flowers_go_by_name_through_mat_files(flowers: Path) -> None:
    assert _labels(_load("Flowers102", flowers)) == ["pink primrose", "hard-leaved pocket orchid"]
    assert _labels(_load("Flowers102", flowers, "val")) == ["pink primrose", "hard-leaved pocket orchid"]
    assert _labels(_load("Flowers102", flowers, "test")) == ["blackberry lily", "pink primrose"]


def test_svhn_has_digits_for_names(svhn: Path) -> None:
    loaded = _load("SVHN", svhn)
    assert _labels(loaded) == ["0", "4"]
    assert loaded.read(0).getpixel((0, 0)) == (90, 90, 90)


def test_numpy_labels_in_pairs_with_the_file_are_classes(cars: Path) -> None:
    assert _labels(_load("StanfordCars", cars)) == ["BMW", "Acura"]


def test_gtsrb_reads_ppm_files_and_names_classes_by_number(tmp_path: Path) -> None:
    for sign in ("00000", "00001"):
        _image(tmp_path / "gtsrb/GTSRB/Training" / sign / "00000_00000.ppm")
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n00000.ppm;6;4;0;0;5;3;16\n"
    _write(tmp_path / "gtsrb/GT-final_test.csv", table)
    _image(tmp_path / "gtsrb/GTSRB/Final_Test/Images/00000.ppm", (1, 2, 3))
    assert _labels(_load("GTSRB", tmp_path)) == ["0", "1"]
    assert _labels(_load("GTSRB", tmp_path, "test")) == ["16"]
    assert _load("GTSRB", tmp_path, "test").read(0).getpixel((0, 0)) == (1, 2, 3)


def test_of_several_names_of_a_class_the_first_is_taken(tmp_path: Path) -> None:
    for wnid in ("n01440764", "n03888257"):
        _image(tmp_path / "imagenette2/train" / wnid / "1.jpeg")
    assert _load("Imagenette", tmp_path).class_names == ("parachute", "tench")


def test_different_classes_of_equal_name_stay_apart(tmp_path: Path) -> None:
    """ImageNet has two classes crane, a bird and a machine, and its meta.bin names them by WordNet id."""
    names = {"n02012849": ("crane",), "n03126707": ("crane",), "n02206856": ("bee",)}
    torch.save((names, []), tmp_path / "meta.bin")
    for wnid in names:
        _image(tmp_path / "train" / wnid / "1.JPEG")
    loaded = _load("ImageNet", tmp_path)
    assert loaded.class_names == ("bee", "crane #0", "crane #2")
    assert _labels(loaded) == ["crane #0", "bee", "crane #2"]
    assert any("told apart by number: crane" in note for note in loaded.notes)


def test_faces_are_named_by_class_to_idx(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = tmp_path / "lfw-py"
    _image(folder / "lfw_funneled/Ann_Bee/Ann_Bee_0001.jpg")
    _write(folder / "lfw-names.txt", "Al_Ant\t1\nAnn_Bee\t1\n")
    _write(folder / "peopleDevTrain.txt", "2\nAnn_Bee\t1\nAl_Ant\t1\n")
    archive = _write(folder / "lfw-funneled.tgz", "")
    sums = {name: _md5(folder / name) for name in ("lfw-names.txt", "peopleDevTrain.txt")}
    monkeypatch.setattr(datasets.LFWPeople, "checksums", datasets.LFWPeople.checksums | sums)
    monkeypatch.setattr(
        datasets.LFWPeople, "file_dict", {"funneled": ("lfw_funneled", "lfw-funneled.tgz", _md5(archive))}
    )
    loaded = _load("LFWPeople", tmp_path)
    assert _labels(loaded) == ["Ann_Bee", "Al_Ant"]
    assert loaded.name(0).endswith("Ann_Bee_0001.jpg")


def test_labels_of_several_columns_are_taken_from_the_samples(tmp_path: Path) -> None:
    """QMNIST's targets are [N, 8]; the class is what its samples give."""
    _idx(tmp_path / "QMNIST/raw/qmnist-train-images-idx3-ubyte", np.zeros((2, 28, 28), np.uint8))
    columns = np.array([[5, 0, 0, 0, 0, 0, 0, 0], [9, 0, 1, 1, 1, 1, 1, 1]], np.int32)
    _idx(tmp_path / "QMNIST/raw/qmnist-train-labels-idx2-int", columns)
    assert _labels(_load("QMNIST", tmp_path)) == ["5 - five", "9 - nine"]


def test_control_characters_in_names_are_escaped(tmp_path: Path) -> None:
    _image(tmp_path / "a\x1b[2J" / "1.png")
    loaded = _load("ImageFolder", tmp_path)
    assert loaded.class_names == (r"a\x1b[2J",)
    assert loaded.name(0) == rf"{tmp_path}/a\x1b[2J/1.png"


def test_made_up_data_says_that_its_root_is_not_read(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(datasets.FakeData.__init__, "__defaults__", (6, (3, 8, 8), 3, None, None, 0))
    loaded = _load("FakeData", tmp_path)
    assert len(loaded) == 6
    assert set(loaded.class_names) <= {"0", "1", "2"}
    assert loaded.read(0).size == (8, 8)
    assert any("made up" in note for note in loaded.notes)


# -- which split ----------------------------------------------------------------------------------------


def test_a_fraction_of_cifars_training_data_is_held_out_for_validation(cifar: Path) -> None:
    settings = _settings("CIFAR10", cifar)
    domain = data.load_domain(settings, 0.2, settings, 0, domain="target")
    assert domain.classes == ("airplane", "bird", "cat")
    assert (len(domain.train), len(domain.val)) == (16, 4)
    assert domain.test is not None
    assert domain.test.labels.tolist() == [1]
    assert {split.sample_name(0).rpartition("/")[0] for split in domain.splits()} == {"CIFAR10/train", "CIFAR10/test"}


def test_test_data_never_stands_in_for_validation_data(cifar: Path, pets: Path) -> None:
    with pytest.raises(SpecError) as caught:
        _load("CIFAR10", cifar, "val")
    assert "torchvision's CIFAR10 has only train and test" in str(caught.value)
    assert "hold out a fraction of train (val: 0.2), or write split: test explicitly" in str(caught.value)
    with pytest.raises(SpecError, match="OxfordIIITPet has only trainval and test; hold out"):
        _load("OxfordIIITPet", pets, "val")


def test_whoever_asks_for_test_data_to_validate_on_gets_it(cifar: Path) -> None:
    loaded = _load("CIFAR10", cifar, "val", split="test")
    assert (_labels(loaded), loaded.name(0)) == (["bird"], "CIFAR10/test/0")


def test_validation_data_never_stands_in_for_test_data(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Imagenette has only train and val; write split: val explicitly"):
        _load("Imagenette", tmp_path, "test")


@pytest.mark.parametrize("role", ["val", "test"])
def test_data_that_is_not_split_is_not_its_own_validation_or_test_data(eurosat: Path, role: str) -> None:
    assert len(_load("EuroSAT", eurosat)) == 3
    with pytest.raises(SpecError, match="EuroSAT is not split, so this would be its training data again"):
        _load("EuroSAT", eurosat, role)
    assert len(_load("EuroSAT", eurosat, role, split="all")) == 3


def test_the_root_of_an_image_folder_is_the_split(image_folder: Folder) -> None:
    train, val = image_folder("train", a=2, b=2), image_folder("val", b=1)
    domain = data.load_domain(_settings("ImageFolder", train), _settings("ImageFolder", val), None, 0, domain="target")
    assert domain.val.labels.tolist() == [1]
    assert domain.val.sample_name(0) == str(val / "b" / "0.png")


def test_pets_train_on_trainval_and_say_so(pets: Path) -> None:
    loaded = _load("OxfordIIITPet", pets)
    assert _labels(loaded) == ["Abyssinian", "Basset Hound"]
    assert loaded.notes == ("is torchvision's split trainval",)
    assert _load("OxfordIIITPet", pets, split="trainval").notes == ()
    assert _labels(_load("OxfordIIITPet", pets, "test")) == ["Basset Hound", "Abyssinian"]


def test_val_is_valid_where_torchvision_calls_it_so(tmp_path: Path) -> None:
    _image(tmp_path / "country211/valid/AD/1.jpg")
    loaded = _load("Country211", tmp_path, "val")
    assert _labels(loaded) == ["AD"]
    assert loaded.notes == ("is torchvision's split valid",)


@pytest.mark.parametrize(
    ("role", "more", "version"),
    [
        ("train", {}, "2021_train"),
        ("val", {}, "2021_valid"),
        ("train", {"split": "2021_train_mini"}, "2021_train_mini"),
    ],
)
def test_the_versions_of_inaturalist_are_its_splits(
    tmp_path: Path, role: str, more: dict[str, Any], version: str
) -> None:
    category = "00000_Animalia_Annelida_Clitellata_Haplotaxida_Lumbricidae_Lumbricus_terrestris"
    _image(tmp_path / version / category / "1.jpg")
    assert _labels(_load("INaturalist", tmp_path, role, **more)) == [category]


def test_emnists_variants_have_a_part_for_training_and_one_for_testing(tmp_path: Path) -> None:
    for part, labels in (("train", [7, 8]), ("test", [9])):
        stem = tmp_path / "EMNIST/raw" / f"emnist-digits-{part}"
        _idx(Path(f"{stem}-images-idx3-ubyte"), np.zeros((len(labels), 28, 28), np.uint8))
        _idx(Path(f"{stem}-labels-idx1-ubyte"), np.array(labels, np.uint8))
    assert _labels(_load("EMNIST", tmp_path, split="digits")) == ["7", "8"]
    test = _load("EMNIST", tmp_path, "test", split="digits")
    assert (_labels(test), test.name(0)) == (["9"], "EMNIST/digits/test/0")
    with pytest.raises(SpecError, match="EMNIST needs one of byclass, bymerge, balanced, letters, digits, mnist"):
        _load("EMNIST", tmp_path)
    with pytest.raises(SpecError, match=r"EMNIST has no validation data; hold out a fraction of train \(val: 0.2\)$"):
        _load("EMNIST", tmp_path, "val", split="digits")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR10", "CIFAR10 has the splits train, test, not 'extra'"),
        ("Flowers102", "Flowers102 has the splits train, val, test, not 'extra'"),
        ("OxfordIIITPet", "OxfordIIITPet has the splits trainval, test, not 'extra'"),
        ("EuroSAT", "EuroSAT is not split and has no 'extra'"),
        ("ImageFolder", "ImageFolder is not split and has no 'extra'"),
    ],
)
def test_an_unknown_split_is_an_error_that_lists_them(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _load(name, tmp_path, split="extra")
    assert caught.value.problems[0].key == "split"
    assert message in str(caught.value)


def test_every_split_of_torchvision_is_listed_without_its_files(tmp_path: Path) -> None:
    """The list is read off an error message of torchvision's; should it be reworded, this says so."""
    not_before_their_files = {"CelebA", "PCAM"}  # these look for files, or h5py, first; neither is needed here
    kinds = {
        name: kind
        for name, kind in vars(datasets).items()
        if inspect.isclass(kind)
        and issubclass(kind, datasets.VisionDataset)
        and name not in not_before_their_files | {"Kinetics"}  # videos, with settings of its own
    }
    split = {name: kind for name, kind in kinds.items() if "split" in plugin._parameters(kind)}
    assert len(split) > 20
    for name, kind in split.items():
        assert len(plugin._listed(kind, "split", _settings(name, tmp_path))) > 1, name


# -- errors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10", "has no data set 'cifar10'; did you mean CIFAR10?"),
        ("FLOWERS", "did you mean Flowers102?"),
        ("Zzz", "known: CIFAR10, CIFAR100"),
        ("Zzz", "LFWPeople, MNIST"),
        ("VisionDataset", "has no data set 'VisionDataset'"),
        ("LSUN", "torchvision's LSUN unpickles a file of the working folder without checking it"),
        ("DatasetFolder", "name ImageFolder"),
        ("CocoDetection", "CocoDetection needs annFile too, which no spec can give"),
        ("UCF101", "UCF101 needs annotation_path, frames_per_clip too"),
    ],
)
def test_a_name_that_cannot_be_had_is_an_error_with_the_way_on(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        _load(name, tmp_path)
    assert caught.value.problems[0].key == "name"
    assert message in str(caught.value)


def test_the_error_stands_at_its_line_of_the_spec(tmp_path: Path) -> None:
    spec = "backbone: resnet18\ntarget:\n  train: {dataset: torchvision,\n    name: CIFAR1, root: data}\n"
    file = yamlfile.load(_write(tmp_path / "spec.yaml", spec))
    with pytest.raises(SpecError) as caught:
        data.load_domain(file.spec.target.train, 0.2, None, 0, domain="target")
    located = str(file.locate(caught.value))
    assert located.startswith(f"{tmp_path}/spec.yaml:4: target.train.name: torchvision has no data set 'CIFAR1'")


def test_root_is_looked_for_beside_the_spec(cifar: Path, tmp_path: Path) -> None:
    spec = "backbone: resnet18\ntarget:\n  train: {dataset: torchvision, name: CIFAR10, root: data}\n  val: 0.2\n"
    target = yamlfile.load(_write(tmp_path / "spec.yaml", spec)).spec.target
    assert isinstance(target.train, Settings)
    assert target.train.root == cifar
    assert isinstance(target.val, float)
    assert len(data.load_domain(target.train, target.val, None, 0, domain="target").train) == 16


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "Flowers102", "EuroSAT", "SVHN", "Caltech101"])
def test_missing_files_are_one_error_with_the_folder_and_the_fix(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        _load(name, tmp_path)
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path}: torchvision's {name}: Dataset not found")
    assert lines[0].endswith(f"; put its files into {tmp_path}, or write download: true")
    assert "download=True" not in lines[0]


def test_files_that_are_looked_for_before_the_split_are_the_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="CelebA: Dataset not found or corrupted; put its files into"):
        _load("CelebA", tmp_path, "val")


def test_a_missing_root_is_an_error_and_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder.*Caltech101.*or write download: true"):
        _load("Caltech101", tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_download_is_advised_only_where_torchvision_can(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        _load("FER2013", tmp_path)
    assert "download: true" not in str(caught.value)
    with pytest.raises(SpecError, match="cannot fetch ImageFolder; put its files into") as refused:
        _load("ImageFolder", tmp_path, download=True)
    assert refused.value.problems[0].key == "download"


def test_a_missing_library_is_named_and_files_are_not_blamed(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match=r"pip install h5py$"):
        _load("PCAM", tmp_path)


@pytest.mark.parametrize("name", ["MNIST", "QMNIST", "EMNIST"])
def test_download_reaches_torchvision(tmp_path: Path, monkeypatch: Patch, name: str) -> None:
    def download(self: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(getattr(datasets, name), "download", download)
    more = {"split": "digits"} if name == "EMNIST" else {}
    with pytest.raises(DataError) as caught:
        _load(name, tmp_path, download=True, **more)
    assert str(caught.value) == f"{tmp_path}: torchvision's {name}: no network here"


def test_a_damaged_idx_file_is_an_error_not_a_traceback(mnist: Path) -> None:
    _write(mnist / "MNIST/raw/train-images-idx3-ubyte", b"\0\0\x08\x09" + b"\0" * 40)
    with pytest.raises(DataError, match="torchvision's MNIST: AssertionError; put its files"):
        _load("MNIST", mnist)


def test_too_little_memory_is_no_fault_of_the_data(mnist: Path, monkeypatch: Patch) -> None:
    def load(self: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(datasets.MNIST, "_load_data", load)
    with pytest.raises(MemoryError):
        _load("MNIST", mnist)


def test_files_that_disagree_on_the_classes_are_an_error(cars: Path) -> None:
    rows = np.array([("1.jpg", 9), ("2.jpg", 1)], dtype=[("fname", "O"), ("class", "u1")])
    savemat(cars / "stanford_cars/devkit/cars_train_annos.mat", {"annotations": rows})
    with pytest.raises(DataError, match="do not agree: label 8, but names of 2 classes"):
        _load("StanfordCars", cars)


@LEAVES_FILES_OPEN
def test_attributes_are_no_classes(tmp_path: Path, monkeypatch: Patch) -> None:
    folder = tmp_path / "celeba"
    files = {
        "list_eval_partition.txt": "1.jpg 0\n2.jpg 0\n",
        "identity_CelebA.txt": "1.jpg 5\n2.jpg 6\n",
        "list_bbox_celeba.txt": "2\nimage_id x y w h\n1.jpg 0 0 2 2\n2.jpg 0 0 2 2\n",
        "list_landmarks_align_celeba.txt": "2\na b\n1.jpg 1 2\n2.jpg 1 2\n",
        "list_attr_celeba.txt": "2\nSmiling Bald\n1.jpg 1 -1\n2.jpg -1 1\n",
    }
    listed = [("", _md5(_write(folder / name, text)), name) for name, text in files.items()]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)
    for name in ("1.jpg", "2.jpg"):
        _image(folder / "img_align_celeba" / name)
    with pytest.raises(
        DataError, match=r"^\S+: torchvision's CelebA: is not for classification \(a label is of type Tensor\)"
    ):
        _load("CelebA", tmp_path)
    (folder / "img_align_celeba/1.jpg").unlink()
    with pytest.raises(DataError, match=r"torchvision's CelebA: a sample cannot be read: .*No such file"):
        _load("CelebA", tmp_path)


def test_boxes_are_no_classes(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    _write(root / "ImageSets/Main/train.txt", "1\n")
    _write(root / "Annotations/1.xml", "<annotation><object><name>cat</name></object></annotation>")
    _image(root / "JPEGImages/1.jpg")
    with pytest.raises(DataError, match=r"VOCDetection: is not for classification \(a label is of type str\)"):
        _load("VOCDetection", tmp_path)


@LEAVES_FILES_OPEN
def test_a_caption_is_no_class(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(datasets.SBU, "md5_checksum", _md5(_write(tmp_path / "SBUCaptionedPhotoDataset.tar.gz", "")))
    _write(tmp_path / "dataset/SBU_captioned_photo_dataset_urls.txt", "http://x/1.jpg\n")
    _write(tmp_path / "dataset/SBU_captioned_photo_dataset_captions.txt", "a cat\n")
    _image(tmp_path / "dataset/1.jpg")
    with pytest.raises(DataError, match=r"SBU: is not for classification \(a label is of type str\)"):
        _load("SBU", tmp_path)


def test_a_split_without_labels_is_an_error(tmp_path: Path) -> None:
    """CLEVR's test labels are not published: torchvision gives None."""
    _image(tmp_path / "clevr/CLEVR_v1.0/images/test/1.png")
    _image(tmp_path / "clevr/CLEVR_v1.0/images/train/1.png")
    scenes = {"scenes": [{"image_filename": "1.png", "objects": [0, 0]}]}
    _write(tmp_path / "clevr/CLEVR_v1.0/scenes/CLEVR_train_scenes.json", json.dumps(scenes))
    assert _labels(_load("CLEVRClassification", tmp_path)) == ["2"]
    with pytest.raises(DataError, match="CLEVRClassification: this split has samples without a label"):
        _load("CLEVRClassification", tmp_path, "test")


def test_the_label_minus_one_means_none(tmp_path: Path, monkeypatch: Patch) -> None:
    files = {"train_X.bin": 3 * 96 * 96, "train_y.bin": 1, "unlabeled_X.bin": 3 * 96 * 96}
    files |= {"test_X.bin": 3 * 96 * 96, "test_y.bin": 1}
    sums = [[name, _md5(_write(tmp_path / "stl10_binary" / name, b"\1" * size))] for name, size in files.items()]
    monkeypatch.setattr(datasets.STL10, "train_list", sums[:3])
    monkeypatch.setattr(datasets.STL10, "test_list", sums[3:])
    _write(tmp_path / "stl10_binary/class_names.txt", "airplane\nbird\n")
    assert _labels(_load("STL10", tmp_path)) == ["airplane"]
    for split in ("unlabeled", "train+unlabeled"):
        with pytest.raises(DataError, match="without a label"):
            _load("STL10", tmp_path, split=split)


# -- reading --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["16 bits", "alpha", "rotated"])
def test_image_files_are_read_as_everywhere_else(tmp_path: Path, what: str) -> None:
    """torchvision's own loader clips 16-bit greys at 255, drops alpha and leaves images lying."""
    path = tmp_path / "a" / "1.png"
    if what == "16 bits":
        _image(path, 0x8080, "I;16")
        expected, size = (128, 128, 128), (6, 4)
    elif what == "alpha":
        _image(path, (0, 0, 0, 0), "RGBA")
        expected, size = (255, 255, 255), (6, 4)
    else:
        path.parent.mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (6, 4), (9, 9, 9)).save(path, exif=exif)
        expected, size = (9, 9, 9), (4, 6)
    image = _load("ImageFolder", tmp_path).read(0)
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", size, expected)
    assert image.tobytes() == decode(path.read_bytes()).tobytes()


def test_what_torchvision_opens_itself_is_treated_alike(tmp_path: Path) -> None:
    """Caltech101 opens its files itself and hands out whatever mode they have."""
    _image(tmp_path / "caltech101/101_ObjectCategories/ant/image_0001.jpg", (0, 0, 0, 0), "RGBA")
    (tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()
    loaded = _load("Caltech101", tmp_path)
    assert loaded.class_names == ("ant",)
    assert loaded.read(0).getpixel((0, 0)) == (255, 255, 255)


def test_portable_pixmaps_in_an_image_folder_are_read(tmp_path: Path) -> None:
    _image(tmp_path / "a/1.ppm", (1, 2, 3))
    assert _load("ImageFolder", tmp_path).read(0).getpixel((0, 0)) == (1, 2, 3)


def test_an_unreadable_sample_says_why_and_is_called_by_its_path(image_folder: Folder) -> None:
    root = image_folder("train", a=2)
    _write(root / "a/0.png", b"no image")
    loaded = _load("ImageFolder", root)
    assert loaded.name(0) == str(root / "a/0.png")
    with pytest.raises(BadSample, match=r"is not a readable image \(JPEG, .*PPM\)"):
        loaded.read(0)
    loaded.read(1)


def test_a_missing_image_is_a_bad_sample_not_a_traceback(pets: Path, dtd: Path) -> None:
    (pets / "oxford-iiit-pet/images/Abyssinian_1.jpg").unlink()
    with pytest.raises(BadSample, match=r"cannot be read: .*No such file"):
        _load("OxfordIIITPet", pets).read(0)
    (dtd / "dtd/dtd/images/dotted/d_1.jpg").unlink()
    with pytest.raises(BadSample, match="is missing"):
        _load("DTD", dtd).read(0)


def test_an_image_too_large_is_a_bad_sample(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("transferctl.images.MAX_PIXELS", 23)
    _image(tmp_path / "caltech101/101_ObjectCategories/ant/image_0001.jpg")
    (tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()
    with pytest.raises(BadSample, match="is 6×4 pixels, more than the 23 that are read"):
        _load("Caltech101", tmp_path).read(0)


def test_warnings_of_pils_about_large_images_are_not_passed_on(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    _image(tmp_path / "caltech101/101_ObjectCategories/ant/image_0001.jpg")
    (tmp_path / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()
    assert _load("Caltech101", tmp_path).read(0).size == (6, 4)


def test_equal_images_have_equal_hashes_and_only_these(cifar: Path) -> None:
    loaded, test = _load("CIFAR10", cifar), _load("CIFAR10", cifar, "test")
    assert loaded.content_hash(1) == loaded.content_hash(3) == test.content_hash(0)
    assert loaded.content_hash(0) != loaded.content_hash(1)


def test_the_hash_knows_an_image_from_its_reshaped_twin(tmp_path: Path) -> None:
    _image(tmp_path / "a/1.png", (5, 5, 5), size=(6, 4))
    _image(tmp_path / "a/2.png", (5, 5, 5), size=(4, 6))
    loaded = _load("ImageFolder", tmp_path)
    assert loaded.content_hash(0) != loaded.content_hash(1)


def _root_of(name: str, request: pytest.FixtureRequest) -> Path:
    fixtures = {"OxfordIIITPet": "pets", "Flowers102": "flowers", "StanfordCars": "cars"}
    return request.getfixturevalue(fixtures.get(name, name.lower()))


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "StanfordCars", "DTD", "EuroSAT"])
def test_labels_that_a_data_set_keeps_are_not_read_sample_by_sample(
    name: str, request: pytest.FixtureRequest, monkeypatch: Patch
) -> None:
    root = _root_of(name, request)
    kind = getattr(datasets, name)
    holder = next(ancestor for ancestor in kind.__mro__ if "__getitem__" in vars(ancestor))
    with monkeypatch.context() as watched:
        watched.setattr(holder, "__getitem__", lambda self, index: pytest.fail("read a sample"))
        assert len(_load(name, root).class_names) == 2
        with pytest.raises(pytest.fail.Exception):
            _load(name, root).read(0)


@pytest.mark.parametrize("name", ["DTD", "OxfordIIITPet", "Flowers102", "EuroSAT", "StanfordCars", "Omniglot"])
def test_listing_opens_no_image(name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Patch) -> None:
    if name == "Omniglot":  # keeps no list of labels, but has a loader to leave out
        for character in ("character01", "character02"):
            _image(tmp_path / "omniglot-py/images_background/Greek" / character / "1.png")
        archive = _write(tmp_path / "omniglot-py/images_background.zip", "")
        monkeypatch.setattr(datasets.Omniglot, "zips_md5", {"images_background": _md5(archive)})
        root = tmp_path
    else:
        root = _root_of(name, request)
    opened: list[str] = []

    def note_opening(path: Any, *args: Any, **more: Any) -> None:
        opened.append(str(path))
        raise OSError("opened")

    with monkeypatch.context() as watched:
        watched.setattr(plugin, "_read_image", note_opening)
        watched.setattr(Image, "open", note_opening)
        loaded = _load(name, root)
    assert len(loaded.class_names) == 2
    assert opened == []
    if name == "Omniglot":
        assert loaded.class_names == ("Greek/character01", "Greek/character02")
    with monkeypatch.context() as watched:
        watched.setattr(Image, "open", note_opening)
        with pytest.raises(BadSample, match="opened"):
            _load(name, root).read(0)
    assert opened


@pytest.mark.parametrize("name", ["MNIST", "DTD"])
def test_worker_processes_read_the_same(name: str, request: pytest.FixtureRequest) -> None:
    loaded = _load(name, request.getfixturevalue(name.lower()))
    split = Split("train", loaded, np.arange(len(loaded)), loaded.labels.astype(np.int64))
    task = plugins.load("tasks", "classification")

    def read(workers: int) -> list[torch.Tensor]:
        batches = loaders.evaluation_batches(split, task, Preprocessing(4, 4), batch_size=2, workers=workers)
        return [batch.inputs for batch in batches]

    assert torch.equal(torch.cat(read(0)), torch.cat(read(2)))
    again = pickle.loads(pickle.dumps(loaded))  # where processes are not forked
    assert again.read(1).tobytes() == loaded.read(1).tobytes()


# -- trust ----------------------------------------------------------------------------------------------


class _Canary:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("role", ["train", "test"])
def test_a_cifar_file_of_another_content_is_never_unpickled(cifar: Path, tmp_path: Path, file: str, role: str) -> None:
    canary = tmp_path / "unpickled"
    _write(cifar / "cifar-10-batches-py" / file, pickle.dumps(_Canary(canary)))
    with pytest.raises(DataError, match="not found or corrupted"):
        _load("CIFAR10", cifar, role)
    assert not canary.exists()
    pickle.loads(pickle.dumps(_Canary(canary)))
    assert canary.exists()


def test_torchs_files_of_mnist_are_read_as_weights_only(mnist: Path, tmp_path: Path) -> None:
    canary = tmp_path / "unpickled"
    for name in ("training.pt", "test.pt"):
        _write(mnist / "MNIST/processed" / name, b"")
        torch.save(_Canary(canary), mnist / "MNIST/processed" / name)
    with pytest.raises(DataError, match="torchvision's MNIST: Weights only load failed"):
        _load("MNIST", mnist)
    assert not canary.exists()


def test_only_known_modules_of_torchvision_unpickle() -> None:
    """A new release may bring another data set that unpickles: look at it, then name it here or refuse it."""
    folder = Path(datasets.__file__).parent
    found = {path.name for path in folder.glob("*.py") if "pickle.load" in path.read_text()}
    assert found == {"cifar.py", "lsun.py"}
    unsafe = [line for path in folder.glob("*.py") for line in path.read_text().splitlines() if "torch.load(" in line]
    assert all("weights_only=True" in line for line in unsafe)
    assert {"LSUN", "LSUNClass"} <= set(plugin.REFUSED)
