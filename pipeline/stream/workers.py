"""The life of the loader's worker processes: how they start, which signals they leave alone, how they end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import cv2

from mcjepa.pipeline.freed_memory import keep_freed_memory

_PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal a process gets when the thread that made it ends."""
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C and Slurm reach whole process groups: workers leave these to the parent."""


@contextlib.contextmanager
def interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C and Slurm's signals waiting while workers are made: none of them sees one before it ignores it."""
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def start_worker(_number: int, *, in_main_thread: bool) -> None:
    """Prepare a worker: it leaves signals to the parent and dies with it, keeps memory, and OpenCV starts no threads.

    The kernel tells of the death of the thread that forked, so it is asked to only where that is the parent's
    main thread; elsewhere torch's own watch ends the worker within some seconds.
    """
    for number in _FOR_THE_PARENT:
        signal.signal(number, signal.SIG_IGN)
    if in_main_thread and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    cv2.setNumThreads(0)
    keep_freed_memory()


def end_workers(steps: Any) -> None:
    """SIGTERM, which torch's workers answer by leaving with success."""
    for worker in steps._workers:
        if worker.is_alive():
            os.kill(worker.pid, signal.SIGTERM)
