"""Processes that read images: as those of training, they leave stop signals to the parent and end with it."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from mcjepa.data_prep.errors import DataError
from mcjepa.pipeline.stream.workers import close_workers, forking, start_worker


def read_batches(
    samples: Dataset[Any],
    batches: Iterable[Sequence[int]],
    collate: Callable[[list[Any]], Any],
    workers: int,
    setting: str,
) -> Generator[Any, None, None]:
    """Batches of samples, in order; the processes end with the iterator.

    Args:
        samples: by number.
        batches: the numbers of each batch.
        collate: what makes a batch of the samples.
        workers: processes that read ahead; 0 = this one reads.
        setting: name of that number, such as finetune.workers.

    Raises:
        DataError: a process ended.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    loader: DataLoader[Any] = DataLoader(
        samples,
        batch_sampler=batches,  # type: ignore[arg-type]  # torch asks for lists
        num_workers=workers,
        collate_fn=collate,
        worker_init_fn=partial(start_worker, in_main_thread=in_main_thread) if workers else None,
        generator=torch.Generator(),  # it draws a seed that nothing uses: from here, so that the global one stays
    )
    with _explained_worker_loss(setting):
        with forking():
            steps = iter(loader)
        if not workers:
            yield from steps
            return
        close = partial(close_workers, steps)
        atexit.register(close)  # torch would wait for ever for workers that ignore its SIGTERM
        try:
            yield from steps
        finally:
            atexit.unregister(close)
            close()


@contextmanager
def _explained_worker_loss(setting: str) -> Iterator[None]:
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
