"""A row of filters, the last of which writes where the image is wanted: into its place of a batch, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Filter = Callable[..., np.ndarray]
"""`filter(image, out=None)`: HxWx3 uint8 to a new one, or to `out` where that is given and anything is done at all."""


def apply_filters(image: np.ndarray, filters: Sequence[Filter], out: np.ndarray | None) -> np.ndarray:
    """The image after all filters, in turn.

    Args:
        image: HxWx3 uint8; not changed.
        filters: what is done to it.
        out: where the result belongs, of its shape; None for an array of its own.

    Returns:
        `out`, or without one the result, which may be a view of `image`.
    """
    last = len(filters) - 1
    for number, apply in enumerate(filters):
        image = apply(image, out=out if number == last else None)
    if out is None or image is out:
        return image
    np.copyto(out, image)  # the last one had nothing to do
    return out
