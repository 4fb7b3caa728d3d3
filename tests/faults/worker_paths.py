"""A task that tells where its worker looks for modules."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """Work without content."""

    name: str


def search_path_of_worker(work: object, item: Item) -> list[str]:
    """The worker's sys.path, its empty entries as they are meant."""
    return [entry or os.getcwd() for entry in sys.path]
