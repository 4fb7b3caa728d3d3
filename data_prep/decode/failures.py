"""Why an input gives no samples."""

from __future__ import annotations


class DecodeFailure(RuntimeError):
    """The input cannot be decoded: it is quarantined with this reason."""


class Unwanted(RuntimeError):
    """The input is readable but gives no sample by the dataset's rules: it is filtered, with this reason."""
