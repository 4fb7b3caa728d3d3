"""From masks to labels on the feature grid and back, and the size at which frames are encoded.

Legend: O labels (background first), h w cells, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mcjepa.evals.vos.settings import VosConfig


def encoded_size(size: tuple[int, int], config: VosConfig) -> tuple[int, int]:
    """(H, W) to encode frames of that size at: the short side as asked, the long one rounded down (DINO's rule).

    >>> encoded_size((480, 854), VosConfig()), encoded_size((480, 854), VosConfig(short_side=0))
    ((480, 832), (480, 854))
    """
    short, multiple = config.short_side, config.side_multiple_px
    if short == 0:
        return size
    long_side = max(int(max(size) * short / min(size)) // multiple * multiple, short)
    return (long_side, short) if size[0] > size[1] else (short, long_side)


def first_labels(mask_HW: NDArray, objects: int, grid: tuple[int, int], bilinear: bool) -> Tensor:
    """A mask of object ids on the feature grid, (objects + 1, h, w) float, which sum to 1 over the labels.

    Args:
        mask_HW: object ids 0..objects.
        objects: number of objects.
        grid: (h, w).
        bilinear: soft labels between cell centres [D: CRW]; else the nearest pixel's label [D: DINO, VFS].
    """
    ids = torch.from_numpy(mask_HW.astype("int64"))
    if not bilinear:
        ids = F.interpolate(ids[None, None].float(), grid, mode="nearest-exact")[0, 0].long()
    one_hot = F.one_hot(ids, objects + 1).permute(2, 0, 1).float()
    if bilinear:
        one_hot = F.interpolate(one_hot[None], grid, mode="bilinear", align_corners=False)[0]
    return one_hot


def labels_to_mask(
    labels_Ohw: Tensor, cell_px: int, frame: tuple[int, int], size: tuple[int, int], stretch: bool = True
) -> NDArray:
    """Object ids of every pixel from soft labels.

    Args:
        labels_Ohw: soft labels; cells beyond the frame (padding) must be cut off already.
        cell_px: stride of the grid.
        frame: (H, W) of the frame that was encoded.
        size: (H, W) of the mask to return; nearest neighbours from the encoded frame's size.
        stretch: bring each label's map to [0, 1] by its minimum and maximum first.

    Returns:
        (H, W) uint8.
    """
    enlarged = F.interpolate(labels_Ohw[None], scale_factor=cell_px, mode="bilinear", align_corners=False)[0]
    enlarged = enlarged[:, : frame[0], : frame[1]]
    if stretch:
        low = enlarged.amin((1, 2), keepdim=True)
        span = enlarged.amax((1, 2), keepdim=True) - low
        # A channel that is 0 everywhere (its object is lost) stays 0, as in the source.
        enlarged = torch.where(span > 0, (enlarged - low) / span.clamp_min(1e-12), enlarged)
    mask = enlarged.argmax(0).float()[None, None]
    return F.interpolate(mask, size, mode="nearest-exact")[0, 0].to(torch.uint8).numpy()
