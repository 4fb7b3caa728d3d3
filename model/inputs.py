"""What the model accepts as images, and what it says about others.

Shapes and types are always checked: they cost nothing. Pixels are looked at on CPUs and in evaluation; in training
on an accelerator that would make the host wait for the device in every step, and the run's guard of non-finite losses
finds the same there. A trainer of many ranks asks `all_finite` before the model sees a batch, because an error on one
rank would leave the others waiting in a sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Far above what an augmentation overshoots by, far below 255.
MAX_PIXEL = 16.0


class InputError(ValueError):
    """Images that the model cannot use: what was found, what was expected, what to do."""


def all_finite(*images: Tensor | None) -> Tensor:
    """Whether every pixel of every stack is a finite number; absent stacks count as sound.

    Args:
        images: stacks of any shape, on one device, or None.

    Returns:
        Scalar bool on the images' device, from which nothing is read here: the caller chooses when to wait for it.
    """
    # In fp32 the sum of pixels in [0, 1] of any batch is finite, and one pass without a mask of the images' size.
    sums = [x.detach().sum(dtype=torch.float32) for x in images if x is not None]
    return torch.stack(sums).isfinite().all() if sums else torch.ones((), dtype=torch.bool)


def require_images(images: Tensor, name: str, *, training: bool, may_be_none: bool = False) -> None:
    """Checks one stack of images.

    Args:
        images: what the model was given, expected (B, 3, H, W), floating point, RGB in [0, 1].
        name: what the caller calls it, for the message.
        training: whether the model trains; its pixels are then looked at on CPUs only.
        may_be_none: whether a batch of no images is one.

    Raises:
        InputError: it is something else.
    """
    shape = tuple(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        advice = "move the channels to dimension 1" if shape[-1:] == (3,) else "stack RGB images to one batch"
        raise InputError(f"{name} has shape {shape}, expected (B, 3, H, W); {advice}")
    if 0 in shape[1:] or (shape[0] == 0 and not may_be_none):
        raise InputError(f"{name} has shape {shape}, expected at least one image of one pixel; leave empty batches out")
    if not images.is_floating_point():
        raise InputError(f"{name} is {images.dtype}, expected floating point RGB in [0, 1]; use images.float() / 255")
    if (training and images.device.type != "cpu") or torch.compiler.is_compiling() or not len(images):
        return
    if not bool(all_finite(images)):
        bad = [i for i, image in enumerate(images) if not bool(all_finite(image))]
        raise InputError(
            f"{name} has NaN or infinite pixels in images {bad[:8]} of {len(images)}, expected finite RGB in [0, 1]; "
            "leave these images out and look at how they were decoded or augmented"
        )
    largest = images.detach().amax().item()
    if largest > MAX_PIXEL:
        raise InputError(f"{name} has pixels up to {largest:g}, expected RGB in [0, 1]; divide by 255")


def require_alike(
    first: Tensor, second: Tensor, names: tuple[str, str], *, training: bool, may_be_none: bool = False
) -> None:
    """Checks two stacks of which image i of one belongs to image i of the other, as `require_images` each.

    Raises:
        InputError: either is no stack of images, or they differ in shape, type or device.
    """
    for images, name in zip((first, second), names, strict=True):
        require_images(images, name, training=training, may_be_none=may_be_none)
    for kind, a, b in (
        ("shapes", tuple(first.shape), tuple(second.shape)),
        ("types", first.dtype, second.dtype),
        ("devices", first.device, second.device),
    ):
        if a != b:
            raise InputError(f"{names[0]} and {names[1]} have {kind} {a} and {b}, expected the same; pair them up anew")


def require_sides(images: Tensor, name: str, least_px: int, setting: str) -> None:
    """Checks that images are no smaller than one cell of the deepest level that a loss decodes.

    Raises:
        InputError: a side is shorter.
    """
    height, width = images.shape[-2:]
    if min(height, width) < least_px:
        raise InputError(
            f"{name} are {height} x {width} px, expected sides of at least {least_px} px, one cell of {setting}; "
            f"use larger crops or a smaller {setting}"
        )
