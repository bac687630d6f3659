"""State dicts from files: nothing in them is run; checked key by key, loaded whole or not at all."""

from __future__ import annotations

import mmap
import pickle
import re
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from transferctl import jsontext
from transferctl.errors import CheckpointError, is_out_of_memory
from transferctl.sizes import in_words
from transferctl.wording import counted, one_line, shown

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model", "encoder")
_FIX = "copy or download it again"
PUBLISHED = r"DEFAULT|IMAGENET\w+"  # how libraries call their weights


class Read(NamedTuple):
    """state: tensors by name; changes: what was done to the file's content to get them, in words."""

    state: dict[str, Tensor]
    changes: tuple[str, ...]


def read(path: Path) -> Read:
    """A state dict from .safetensors, or from .pth/.pt through torch.load(weights_only=True).

    Unwraps {"state_dict": …} and a common "module." prefix, as training scripts leave them.
    Raises CheckpointError, also for numbers that are not finite.
    """
    if not path.exists():
        published = path.name.upper()
        hint = f"did you mean {published}? Otherwise " if re.fullmatch(PUBLISHED, published) else ""
        raise CheckpointError(
            f"{path}: no such weights; {hint}write a published name (DEFAULT), a file, a run folder, source or none"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: is neither a file nor a run folder (it has no summary.json); name one of these")
    if path.suffix not in (".safetensors", ".pth", ".pt"):
        raise CheckpointError(f"{path}: weights end in .safetensors, .pth or .pt")
    return read_content(path)


def read_content(path: Path) -> Read:
    """As `read`, of a file that is there, whatever its name ends in: hubs have their own ways (pytorch_model.bin)."""
    content = _content(path)
    found = _state_dict(content, path)
    _refuse_more_than_held(found.state, path)
    if broken := [name for name, tensor in found.state.items() if not is_finite(tensor)]:
        raise CheckpointError(
            f"{path}: NaN or infinity in {counted(len(broken), 'tensor')} ({shown(broken)}); nothing can be learnt "
            "from such weights; use a file from before training diverged"
        )
    return found


def _content(path: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    try:
        if path.stat().st_size == 0:
            raise CheckpointError(f"{path}: is empty (0 bytes); {_FIX}")
        if path.suffix == ".safetensors":
            return load_file(path)
        _refuse_bomb(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is no torch file; nothing in it was run. Save it again as a "
            "plain state dict, best with safetensors"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or one_line(error)}") from None
    except Exception as error:  # torch's unpickler raises IndexError, KeyError, … on what is no torch file
        if _is_lack_of_memory(error, path):
            raise  # not the file's fault
        reason = ": ".join(filter(None, [type(error).__name__, one_line(error)]))
        raise CheckpointError(
            f"{path}: is no file that torch.save or safetensors wrote, or is damaged ({reason}); {_FIX}"
        ) from None


def _refuse_bomb(path: Path) -> None:
    """torch.save compresses nothing, so that a file's parts are no larger than it; nor does it write bytearrays, which
    the unpickler would make of any size that it is told. Raises CheckpointError, and what zipfile does."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if content.find(b"bytearray") >= 0:
                raise pickle.UnpicklingError
        return
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        unpacked = sum(part.file_size for part in parts)
        if unpacked > path.stat().st_size:
            raise CheckpointError(f"{path}: unpacks to {in_words(unpacked)}, more than it has; save it with torch.save")
        if any(b"bytearray" in archive.read(part) for part in parts if part.filename.endswith(".pkl")):
            raise pickle.UnpicklingError


def _is_lack_of_memory(error: Exception, path: Path) -> bool:
    """Unless the file asks for more than it holds."""
    asked = re.search(r"tried to allocate (\d+) bytes", str(error))
    if asked and int(asked[1]) > path.stat().st_size:
        return False
    return is_out_of_memory(error)


def _refuse_more_than_held(state: Mapping[str, Tensor], path: Path) -> None:
    """A view of few numbers that says it is of many (by strides of 0) takes their memory as soon as it is looked at."""
    size = path.stat().st_size
    large = [name for name, tensor in state.items() if tensor.numel() * tensor.element_size() > size]
    if large:
        raise CheckpointError(
            f"{path}: {shown(large)} would take more than the {in_words(size)} that the file has; save it again with "
            "tensor.contiguous()"
        )


def _state_dict(values: Any, path: Path) -> Read:
    changes = []
    wrappers = [name for name in WRAPPERS if isinstance(values, Mapping) and isinstance(values.get(name), Mapping)]
    if wrappers:
        values = values[wrappers[0]]
        changes.append(f"taken from its entry `{wrappers[0]}`")
    if not isinstance(values, Mapping) or not values or not all(map(_is_dense, values.values())):
        raise CheckpointError(f"{path}: is not a state dict (names and dense tensors)")
    state = {str(name): tensor for name, tensor in values.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
        changes.append("prefix `module.` removed")
    return Read(state, tuple(changes))


def _is_dense(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_meta


def is_finite(tensor: Tensor) -> bool:
    """In single precision, which is what the network computes in. What torch cannot convert to it fits no network."""
    return not _is_plain_float(tensor) or bool(tensor.float().isfinite().all())


def _is_plain_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and "float4" not in str(tensor.dtype)


def load_whole(module: nn.Module, state: Mapping[str, Tensor], label: str) -> None:
    """Load every tensor of `module` from `state`, exactly. Raises CheckpointError listing what differs."""
    own = module.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {_shape(state[name])}, not {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    numbers = [
        f"{name} is {str(state[name].dtype).removeprefix('torch.')}"
        for name in own
        if name in state and own[name].is_floating_point() and not _is_plain_float(state[name])
    ]
    parts = [
        _counted("missing", missing),
        _counted("unexpected", unexpected),
        _counted("of another shape", shapes),
        _counted("of no floating-point numbers", numbers),
    ]
    if any(parts):
        raise CheckpointError(
            f"{label}: {'; '.join(filter(None, parts))}. Nothing was loaded; name weights of this network"
        )
    versioned = OrderedDict(state)  # mnasnet refuses a state without version numbers, which safetensors drops
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    module.load_state_dict(versioned, strict=False)  # strict but for num_batches_tracked, checked above


def _counted(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what} ({shown(names)})" if names else ""


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def read_classes(path: Path) -> list[tuple[str, ...]]:
    """A classes file, in output order: for each class its names (the id first, if it has one).

    JSON: ["ant", …] or [{"id": "n02219486", "name": "ant"}, …]. Text: a name a line.
    Raises CheckpointError, also where two classes have the same first name.
    """
    try:
        text = jsontext.read_text(path)
        entries = (
            jsontext.loads(text) if path.suffix == ".json" else list(filter(None, map(str.strip, text.splitlines())))
        )
        if not isinstance(entries, list) or not entries:
            raise TypeError("no list")
        classes = [(entry,) if isinstance(entry, str) else _names_of(entry) for entry in entries]
        if not all(name.strip() for names in classes for name in names):
            raise ValueError("an empty name")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the classes: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise CheckpointError(
            f'{path}: is no list of classes; JSON: ["ant", …] or [{{"id": …, "name": …}}, …]; text: one a line'
        ) from None
    first_names = Counter(names[0] for names in classes)
    if repeated := [name for name, count in first_names.items() if count > 1]:
        raise CheckpointError(f"{path}: several classes are called {shown(repeated)}; tell them apart, best by ids")
    return classes


def _names_of(entry: dict[str, Any]) -> tuple[str, ...]:
    names = tuple(entry[key] for key in ("id", "name") if key in entry)
    if not names or not all(isinstance(name, str) for name in names):
        raise KeyError("name")
    return names
