"""Where the sets of an evaluation are found: their readers by name, and their folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mcjepa.data_prep.errors import DataError


def set_reader(readers: Mapping[str, Callable[..., Any]], name: str, field: str) -> Callable[..., Any]:
    """The reader of a set.

    Raises:
        DataError: there is no such set; `field` is the setting that names it.
    """
    if name not in readers:
        raise DataError(f"{field} names the set {name!r}; expected one of {sorted(readers)}; change the recipe")
    return readers[name]


def set_folder(root: str, name: str) -> Path:
    """The folder of a set.

    Raises:
        DataError: there is none.
    """
    if not root or not Path(root).is_dir():
        raise DataError(
            f"no folder {root!r} for the set {name}; expected the one its archive unpacks to; pass its path as root"
        )
    return Path(root)
