"""State dicts from files: nothing in them is run; checked key by key, loaded whole or not at all."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transferctl.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor, nn

WRAPPERS = ("state_dict", "model_state_dict", "model")


def read(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from .pth/.pt through torch.load(weights_only=True).

    Unwraps {"state_dict": …} and a common "module." prefix, as training scripts leave them.
    Raises CheckpointError.
    """
    import torch
    from safetensors.torch import load_file

    if not path.exists():
        raise CheckpointError(
            f"{path}: no such weights; write a published name (DEFAULT), a file, a run folder, source or none"
        )
    if not path.is_file():
        raise CheckpointError(f"{path}: is neither a file nor a run folder (it has no summary.json)")
    try:
        if path.suffix == ".safetensors":
            values: Any = load_file(path)
        elif path.suffix in (".pth", ".pt"):
            values = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise CheckpointError(f"{path}: weights end in .safetensors, .pth or .pt")
    except CheckpointError:
        raise
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: holds more than tensors, or is no torch file; nothing in it was run. Save it again as a "
            "plain state dict, best with safetensors"
        ) from None
    except Exception as error:  # torch's unpickler raises IndexError, KeyError, … on what is no torch file
        raise CheckpointError(f"{path}: cannot be read as weights: {_one_line(error)}") from None
    return _state_dict(values, path)


def _state_dict(values: Any, path: Path) -> dict[str, Tensor]:
    import torch

    if isinstance(values, Mapping):
        values = next((values[w] for w in WRAPPERS if isinstance(values.get(w), Mapping)), values)
    if not isinstance(values, Mapping) or not values or not all(isinstance(v, torch.Tensor) for v in values.values()):
        raise CheckpointError(f"{path}: is not a state dict (names and tensors)")
    state = {str(name): tensor for name, tensor in values.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


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
    parts = [
        _counted("missing", missing),
        _counted("unexpected", unexpected),
        _counted("of another shape", shapes),
    ]
    if any(parts):
        raise CheckpointError(f"{label}: {'; '.join(filter(None, parts))}. Nothing was loaded")
    versioned = OrderedDict(state)  # mnasnet refuses a state without version numbers, which safetensors drops
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    module.load_state_dict(versioned, strict=False)  # strict but for num_batches_tracked, checked above


def _counted(what: str, names: Sequence[str], most: int = 3) -> str:
    if not names:
        return ""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} {what} ({', '.join(names[:most])}{more})"


def _shape(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a scalar"


def read_classes(path: Path) -> list[tuple[str, ...]]:
    """A classes file, in output order: for each class its names (the id first, if it has one).

    JSON: ["ant", …] or [{"id": "n02219486", "name": "ant"}, …]. Text: a name a line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return [(line.strip(),) for line in text.splitlines() if line.strip()]
        entries = json.loads(text)
        classes = [(entry,) if isinstance(entry, str) else _names_of(entry) for entry in entries]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot read the classes: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(
            f'{path}: is no list of classes; JSON: ["ant", …] or [{{"id": …, "name": …}}, …]; text: one a line'
        ) from None
    return classes


def _names_of(entry: dict[str, Any]) -> tuple[str, ...]:
    names = tuple(entry[key] for key in ("id", "name") if key in entry)
    if not names or not all(isinstance(name, str) for name in names):
        raise KeyError("name")
    return names


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200]
