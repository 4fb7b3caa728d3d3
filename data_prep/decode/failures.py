"""Why an input gives no samples."""

from __future__ import annotations


class DecodeFailure(RuntimeError):
    """The input cannot be decoded: it is quarantined with this reason."""


class Unwanted(RuntimeError):
    """The input is readable but gives no sample by the dataset's rules: it is filtered, with this reason."""


def require_megapixels(width: int, height: int, max_megapixels: float) -> None:
    """Refuse a picture by the size that its header claims, before anything is decoded.

    Raises:
        DecodeFailure: it has more pixels than allowed.
    """
    megapixels = width * height / 1e6
    if megapixels > max_megapixels:
        raise DecodeFailure(f"{width}x{height} px are {megapixels:.1f} megapixels; at most {max_megapixels:g} allowed")
