"""Whether a network of timm sees the whole image: where patches do not divide it, timm mostly leaves out its border."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from transferctl.backbones._timm_stages import Seen, pooled


def left_out(net: nn.Module, seen: Seen, images: Tensor) -> int | None:
    """The size of patches that leave out the last rows and columns of images: [1, 3, S, S]; None if there are none.

    Sizes alone do not tell: some networks pad (DaViT), of others patches overlap (PVTv2). So where a size does not
    divide the image, its border is changed, and the network must see that. net: in eval mode, with its classifiers;
    seen: of it and these images. On the meta device nothing can be seen, and nothing is told."""
    if images.is_meta:
        return None
    size = images.shape[-1]
    unseen = (patch for patch in sorted(set(_patch_sizes(net))) if size % patch and not _sees(net, seen, images, patch))
    return next(unseen, None)


def nearest(size: int, patch: int) -> tuple[int, ...]:
    """The sizes next to this one that hold whole patches."""
    below = size // patch * patch
    return (below, below + patch) if below else (patch,)


def _patch_sizes(net: Any) -> Iterator[int]:
    """What cuts images: modules that say so, and convolutions on colours whose steps are as wide as they are."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3 and module.kernel_size == module.stride:
            yield from module.stride
        stated = getattr(module, "patch_size", None)
        if isinstance(stated, int | tuple):
            yield from (stated,) if isinstance(stated, int) else (one for one in stated if isinstance(one, int))


@torch.no_grad()
def _sees(net: Any, seen: Seen, images: Tensor, patch: int) -> bool:
    """Whether what the network gives depends on the rows and columns beyond the last whole patch."""
    whole = images.shape[-1] // patch * patch
    changed = images.clone()
    changed[..., whole:, :] = 1 - 2 * changed[..., whole:, :]
    changed[..., :whole, whole:] = 1 - 2 * changed[..., :whole, whole:]
    return not torch.equal(pooled(net, net.forward_features(changed)), seen.pooled)
