"""torchvision's own image classification data sets, by class name: CIFAR10, Flowers102, OxfordIIITPet …

A split is never guessed: where torchvision has none for validation, this is an error, not its test data.

What is trusted: CIFAR's files are pickles, and torchvision unpickles them only after their MD5 sums agree.
LSUN unpickles a cache that it finds in the working folder, whatever its content, and is refused. The other
classification data sets are read by parsers (images, .mat, idx, text, torch.load of weights only). Archives are
unpacked through tarfile's data filter, so that no member lands outside of its folder.
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
import tarfile
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field

from transferctl.contracts import BadSample
from transferctl.errors import DataError, SpecError
from transferctl.images import FORMATS, decode, read_bytes, upright_rgb
from transferctl.settings import DataSettings, InputPath, Text
from transferctl.wording import one_line, printable, shown

_one_at_a_time = threading.Lock()

# torchvision's names of the part for each role, the first that a data set has; "all" where it is not split
SPLITS = {
    "train": ("train", "trainval", "train-standard", "2021_train", "all"),
    "val": ("val", "valid", "2021_valid"),
    "test": ("test",),
}
REFUSED = {
    "DatasetFolder": "needs code to read its files; name ImageFolder",
    "LSUN": "unpickles a file of the working folder without checking it; export its images to folders",
    "LSUNClass": "unpickles a file of the working folder without checking it; export its images to folders",
}


class Settings(DataSettings):
    dataset: Literal["torchvision"] = Field(description="A data set of torchvision.")
    name: Text = Field(description="Its class: CIFAR10, Flowers102, OxfordIIITPet, Food101 …")
    root: InputPath = Field(description="The folder that torchvision keeps it in.")
    split: Text | None = Field(
        None,
        description="torchvision's own name of the split (all: the whole of a data set that is not split); default: "
        "train, val or test, by where this stands.",
    )
    download: bool = Field(False, description="Let torchvision fetch it (it checks all hashes but FGVCAircraft's).")


def load(settings: Settings, role: str, seed: int) -> TorchvisionData:
    """Open the data set. Raises SpecError for what torchvision lacks or cannot do, DataError for its files."""
    kind = _kind(settings.name)
    parameters = _parameters(kind)
    _refuse_unfit(parameters, settings)
    split, chosen = _split(kind, parameters, settings, role)
    offered = {"root": str(settings.root), "download": settings.download, "loader": _read_image, **chosen}
    arguments = {name: value for name, value in offered.items() if name in parameters}
    try:
        with _members_stay_inside():
            data = kind(**arguments)
    except MemoryError:
        raise
    except Exception as error:  # torchvision's constructors raise whatever their parsers do
        raise _unreadable(error, "download" in parameters, settings) from None
    notes = [] if settings.split or split in (role, "all") else [f"is torchvision's split {split}"]
    notes += [] if "root" in parameters else [f"{settings.name} is made up, not read from {settings.root}"]
    return TorchvisionData(data, f"{settings.name}/{split}", f"{settings.root}: torchvision's {settings.name}", notes)


@contextmanager
def _members_stay_inside() -> Iterator[None]:
    """Archives that torchvision unpacks may not write outside of their folder. Python's tarfile lets them before 3.14,
    and FGVCAircraft's archive is unpacked whatever is in it."""
    with _one_at_a_time:
        before = getattr(tarfile.TarFile, "extraction_filter", None)
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
        try:
            yield
        finally:
            tarfile.TarFile.extraction_filter = before


def _kind(name: str) -> Any:
    from torchvision import datasets

    base = datasets.VisionDataset
    kinds = {key: kind for key, kind in vars(datasets).items() if inspect.isclass(kind) and issubclass(kind, base)}
    del kinds["VisionDataset"]
    if name in REFUSED:
        raise SpecError.at("name", f"torchvision's {name} {REFUSED[name]}")
    if name not in kinds:
        lower = {key.lower(): key for key in kinds}
        near = difflib.get_close_matches(name.lower(), lower, 1, 0.5)
        known = ", ".join(sorted(set(kinds) - set(REFUSED)))
        hint = f"; did you mean {lower[near[0]]}?" if near else f"; known: {known}"
        raise SpecError.at("name", f"torchvision has no data set {name!r}{hint}")
    return kinds[name]


def _parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """The constructor's, and its parent's where **kwargs passes them on: so EMNIST hides train and download."""
    found: dict[str, inspect.Parameter] = {}
    for ancestor in kind.__mro__:
        if "__init__" in vars(ancestor):
            own = dict(inspect.signature(ancestor.__init__).parameters)
            passes_on = own.pop("kwargs", None)
            found = {**own, **found}
            if not passes_on:
                break
    del found["self"]
    return found


def _refuse_unfit(parameters: dict[str, inspect.Parameter], settings: Settings) -> None:
    given = {"root", "loader", "split"}
    missing = [name for name, p in parameters.items() if p.default is p.empty and name not in given]
    if missing:
        message = f"torchvision's {settings.name} needs {shown(missing)} too, which no spec can give; write a manifest"
        raise SpecError.at("name", message)
    if settings.download and "download" not in parameters:
        raise SpecError.at("download", f"torchvision cannot fetch {settings.name}; put its files into {settings.root}")
    if "root" in parameters and not settings.download and not settings.root.is_dir():
        fix = "name the folder that holds its files" + _or_download("download" in parameters)
        raise DataError(f"{settings.root}: no such folder, and torchvision's {settings.name} is to be in it; {fix}")


def _or_download(possible: bool) -> str:
    return ", or write download: true" if possible else ""


def _split(
    kind: Any, parameters: dict[str, inspect.Parameter], settings: Settings, role: str
) -> tuple[str, dict[str, Any]]:
    """The split's name, and the arguments that choose it: train=True, split="test", version="2021_train" or none."""
    parameter = next((name for name in ("split", "version") if name in parameters), None)
    listed = _listed(kind, parameter, settings) if parameter else ()
    if parameter and "train" in parameters:  # EMNIST: six variants, each with a part to train and one to test on
        if settings.split not in listed:
            raise SpecError.at("split", f"torchvision's {settings.name} needs one of {', '.join(listed)}")
        if role == "val":
            hold_out = "hold out a fraction of train (val: 0.2)"
            raise SpecError.at("split", f"torchvision's {settings.name} has no validation data; {hold_out}")
        return f"{settings.split}/{role}", {parameter: settings.split, "train": role == "train"}
    if parameter and not listed:  # it fails before it looks at its split; its constructor is about to say how
        return settings.split or role, {parameter: settings.split or role}
    splits = listed or (("train", "test") if "train" in parameters else ("all",))
    if settings.split is not None and settings.split not in splits:
        has = f"has the splits {', '.join(splits)}, not" if splits != ("all",) else "is not split and has no"
        raise SpecError.at("split", f"torchvision's {settings.name} {has} {settings.split!r}")
    whole = settings.name == "ImageFolder"  # its root names the part
    split = settings.split or ("all" if whole else _by_role(splits, settings.name, role))
    return split, {parameter: split} if parameter else {"train": split == "train"}


def _listed(kind: Any, parameter: str, settings: Settings) -> tuple[str, ...]:
    """torchvision keeps the names of splits inside its constructors; given a wrong one, they list them."""
    try:
        kind(**{"root": str(settings.root), parameter: "?"})
    except Exception as error:
        return tuple(re.findall(r"'([^']+)'", str(error).partition("Valid values are")[2]))
    return ()


def _by_role(splits: tuple[str, ...], name: str, role: str) -> str:
    """The split for this role. Never another one: test data is read once, at the end; val selects the model."""
    for split in SPLITS[role]:
        if split in splits:
            return split
    if splits == ("all",):
        has, explicit = "is not split, so this would be its training data again", "write split: all"
    else:
        has, explicit = f"has only {' and '.join(splits)}", f"write split: {splits[-1]} explicitly"
    hold_out = "hold out a fraction of train (val: 0.2), or " if role == "val" else ""
    raise SpecError.at("split", f"torchvision's {name} {has}; {hold_out}{explicit}")


def _read_image(path: Any) -> Image.Image:
    """In place of torchvision's own loader, which clips 16-bit greys, drops alpha and leaves images lying."""
    return decode(read_bytes(str(path)), (*FORMATS, "PPM"))


def _unreadable(error: Exception, can_download: bool, settings: Settings) -> DataError:
    cause = re.sub(r"\.? *You can (use|set) download=True to download it\.?", "", one_line(error))
    needs_library = isinstance(error, ImportError) or isinstance(error.__context__, ImportError)
    fix = f"; put its files into {settings.root}{_or_download(can_download)}"
    advice = "" if settings.download or needs_library else fix
    return DataError(f"{settings.root}: torchvision's {settings.name}: {cause}{advice}")


class TorchvisionData:
    """Labels come from the data set's own list where it has one, so that listing decodes nothing."""

    def __init__(self, data: Any, label: str, origin: str, notes: list[str]):
        """label: what samples without a file are called by; origin: how errors begin. Raises DataError."""
        self._data = data
        self._label = label
        self._files = _files(data)
        self.reads_files = self._files is not None
        targets = _targets(data, origin)
        names, equal = _class_names(data, targets, origin)
        used = sorted({names[target] for target in targets})
        positions = {name: i for i, name in enumerate(used)}
        self.labels = np.array([positions[names[target]] for target in targets], dtype=np.int32)
        self.class_names = tuple(used)
        self.notes = (*notes, *([f"classes of equal name are told apart by number: {shown(equal)}"] if equal else []))

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        return f"{self._label}/{index}" if self._files is None else printable(str(_file(self._files[index])))

    def read(self, index: int, at_least: int = 0) -> Image.Image:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PIL warns of large images and odd EXIF
                with self._data[index][0] as image:  # some are open files still
                    return upright_rgb(image)
        except BadSample:
            raise
        except Exception as error:  # torchvision's readers raise whatever their decoders do
            raise BadSample(f"cannot be read: {one_line(error)}") from None

    def read_hashed(self, index: int, at_least: int = 0) -> tuple[Image.Image, bytes]:
        image = self.read(index)
        return image, hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()

    def content_hash(self, index: int) -> str:
        return self.read_hashed(index)[1].hex()


def _files(data: Any) -> Any:
    """The data set's list of files, one a sample; None where it has none."""
    for attribute in ("_image_files", "_images", "samples", "_samples", "imgs", "data"):
        values = getattr(data, attribute, None)
        if isinstance(values, list) and len(values) == len(data) > 0 and isinstance(_file(values[0]), str | Path):
            return values
    return None


def _file(entry: Any) -> Any:
    return entry[0] if isinstance(entry, tuple) else entry


def _targets(data: Any, origin: str) -> list[int]:
    """A label a sample: the data set's own list, or what each sample says. Raises DataError."""
    for attribute in ("targets", "labels", "_labels", "y"):
        values = getattr(data, attribute, None)
        if values is not None and len(values) == len(data) and getattr(values, "ndim", 1) == 1:
            return [_class(value, origin) for value in values]
    pairs = getattr(data, "_samples", None)
    if pairs is not None and len(pairs) == len(data):
        return [_class(pair[1], origin) for pair in pairs]
    reader = vars(data).get("loader")
    if reader:
        data.loader = lambda path: None  # only the labels are wanted
    try:
        return [_class(data[i][1], origin) for i in range(len(data))]
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{origin}: a sample cannot be read: {one_line(error)}") from None
    finally:
        if reader:
            data.loader = reader


def _class(target: Any, origin: str) -> int:
    value = target.item() if getattr(target, "ndim", None) == 0 else target
    if value is not None and not isinstance(value, int):
        raise DataError(f"{origin}: is not for classification (a label is of type {type(value).__name__})")
    if value is None or value < 0:
        raise DataError(f"{origin}: this split has samples without a label; name another one with split")
    return value


def _class_names(data: Any, targets: list[int], origin: str) -> tuple[dict[int, str], list[str]]:
    """Number -> name, by the data set's list, and the names that several classes had: these get their number.
    Of synonyms the first is taken, as in the class names of torchvision's weights."""
    listed = [getattr(data, key, None) for key in ("classes", "categories", "all_categories", "_characters")]
    listing = next((names for names in listed if names), None) or list(getattr(data, "class_to_idx", ()))
    if not listing:
        return {target: str(target) for target in targets}, []
    if targets and max(targets) >= len(listing):
        raise DataError(f"{origin}: its files do not agree: label {max(targets)}, but names of {len(listing)} classes")
    names = [printable(name if isinstance(name, str) else name[0]) for name in listing]
    equal = [name for name, count in Counter(names).items() if count > 1]
    return {i: f"{name} #{i}" if name in equal else name for i, name in enumerate(names)}, equal
