"""timm's published weights: where they are, what they were trained on, what their outputs are called."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from transferctl import weights
from transferctl.errors import CheckpointError
from transferctl.preprocess import Preprocessing
from transferctl.wording import one_line

_PATIENCE_S = 10.0


@dataclass(frozen=True)
class Published:
    """state: the state dict; names: of each output of its head, all its names (id, name); empty: not known."""

    state: dict[str, Tensor]
    names: list[tuple[str, ...]]
    origin: str


def fetch(cfg: Any, name: str) -> Published:
    """From Hugging Face's hub into its cache, or, for what is not there, from where it was published into $TORCH_HOME;
    checked against the SHA-256 that these give. Raises CheckpointError."""
    file = _from_hub(cfg.hf_hub_id, _files(cfg), name) if cfg.hf_hub_id else _from_url(cfg.url, name)
    return Published(weights.read_content(file).state, class_names(cfg), f"timm {name}")


def preprocessing(cfg: Any) -> Preprocessing:
    """timm resizes the short side to the crop over crop_pct, rounded down."""
    crop = min(cfg.input_size[1:])
    interpolation = cfg.interpolation if cfg.interpolation in ("bilinear", "bicubic") else "bicubic"
    return Preprocessing(math.floor(crop / cfg.crop_pct), crop, tuple(cfg.mean), tuple(cfg.std), interpolation)


def class_names(cfg: Any) -> list[tuple[str, ...]]:
    """(WordNet id, name) of ImageNet's classes, of whichever of its versions has so many."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    if cfg.label_names:
        described = cfg.label_descriptions or {}
        return [(name, described[name]) if name in described else (name,) for name in cfg.label_names]
    subset = infer_imagenet_subset({"num_classes": cfg.num_classes})
    if subset is None:
        return []
    info = ImageNetInfo(subset)
    return list(zip(info.label_names(), info.label_descriptions(), strict=True))


def is_projection(cfg: Any, outputs: int) -> bool:
    """Whether the last layer of an image tower maps to a space shared with text (CLIP, Radford et al., ICML 2021; the
    Perception Encoder): its outputs are no classes."""
    of_pairs = re.search(r"clip|_pe_core_", f"{cfg.architecture}.{cfg.tag}")
    return bool(of_pairs) and outputs == cfg.num_classes and not class_names(cfg)


# -- files --------------------------------------------------------------------------------------------


def _files(cfg: Any) -> tuple[str, ...]:
    """What a repository may have them in, safetensors first."""
    named = cfg.hf_hub_filename or "pytorch_model.bin"
    safe = {"pytorch_model.bin": "model.safetensors"}.get(named, f"{named.rpartition('.')[0]}.safetensors")
    return tuple(dict.fromkeys((safe, named)))


def _from_hub(identity: str, files: tuple[str, ...], name: str) -> Path:
    """The hub's cache calls large files by their SHA-256; the name that people see is a link to that."""
    import huggingface_hub as hub

    repository, _, revision = identity.partition("@")
    where = {"repo_id": repository, "revision": revision or None}
    cached = [hub.try_to_load_from_cache(filename=file, **where) for file in files]
    found = next((path for path in cached if isinstance(path, str)), None)
    try:
        with _quietly():
            path = Path(found or _downloaded(hub, where, files))
    except Exception as error:  # of whichever client the hub's library has
        reason = one_line(error, 160)
        raise CheckpointError(
            f"{name}'s weights are not in {hub.constants.HF_HUB_CACHE} and cannot be fetched ({reason}). Fetch "
            f"{files[0]} of huggingface.co/{repository} elsewhere and name the file as backbone.weights, or set "
            "HF_HOME to a folder whose hub/ holds that repository"
        ) from None
    if re.fullmatch(r"[0-9a-f]{64}", digest := path.resolve().name):
        _refuse_other(path, digest)
    return path


def _downloaded(hub: Any, where: dict[str, Any], files: tuple[str, ...]) -> str:
    """Where the first of these files that the repository has lies now. Without a network the question whether it has it
    fails at once, where a download would be tried for half a minute."""
    for file in files:
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(filename=file, **where), timeout=_PATIENCE_S)
        except hub.errors.EntryNotFoundError:
            if file == files[-1]:
                raise
            continue
        break
    return str(hub.hf_hub_download(filename=file, **where))


def _from_url(url: str, name: str) -> Path:
    """The name of the file ends in the first digits of its SHA-256 (torch.hub's rule), or says nothing of it."""
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    expected = re.search(r"-([0-9a-f]{8,})\.", file.name)
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(file), expected[1] if expected else None, progress=False)
    except OSError as error:
        raise CheckpointError(
            f"{file}: {name}'s weights are not here and cannot be fetched ({getattr(error, 'reason', None) or error}). "
            f"Put the file from {url} there, or set TORCH_HOME to the folder whose hub/checkpoints holds it"
        ) from None
    except RuntimeError as error:  # torch.hub's hash check
        raise CheckpointError(f"{file}: {one_line(error)}; the download was broken, try again") from None
    if expected:
        _refuse_other(file, expected[1])
    return file


def _refuse_other(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(expected):
        raise CheckpointError(
            f"{file}: its SHA-256 starts with {digest[:8]}, not {expected[:8]}; the file is broken or not what it "
            "claims: remove it"
        )


@contextmanager
def _quietly() -> Iterator[None]:
    """The hub's library prints bars and warnings of its own."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    level, were_off = logging.get_verbosity(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    disable_progress_bars()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if not were_off:
            enable_progress_bars()
