"""Writing PFM, which the product only reads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mcjepa.data_prep.errors import DataError

FloatArray = npt.NDArray[np.float32]


def encode_pfm(values: FloatArray) -> bytes:
    """The content of a little-endian PFM file of (H, W) or (H, W, 3); flow (H, W, 2) gets a third channel of zeros.

    Raises:
        DataError: another shape.
    """
    if values.ndim == 3 and values.shape[2] == 2:
        values = np.dstack([values, np.zeros_like(values[..., :1])])
    if values.ndim != 2 and (values.ndim != 3 or values.shape[2] != 3):
        raise DataError(f"values of shape {values.shape}; expected (H, W), (H, W, 2) or (H, W, 3) for a PFM file")
    kind = "PF" if values.ndim == 3 else "Pf"
    header = f"{kind}\n{values.shape[1]} {values.shape[0]}\n-1.0\n".encode()
    return header + np.ascontiguousarray(values[::-1], "<f4").tobytes()
