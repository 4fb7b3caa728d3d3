"""Reading in processes of torch's DataLoader: what their loss means to a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mcjepa.data_prep.errors import DataError


@contextmanager
def explained_worker_loss(setting: str) -> Iterator[None]:
    """Turns the end of a reading process (no memory, no room in /dev/shm) into a `DataError` that says what to do.

    Args:
        setting: name of the number of processes, such as finetune.workers.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"a process that reads images ended ({' '.join(str(error).split())}); expected memory and room in /dev/shm "
            f"for all of them; lower {setting}, or take 0"
        ) from error
