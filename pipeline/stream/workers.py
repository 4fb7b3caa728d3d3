"""What works beside the training loop: the loader's worker processes, and the thread that feeds an accelerator.

The thread copies the next step to the accelerator while the present one trains, through pinned memory. It waits for
the loader, so the training loop never does while a step is ready; the copies and the widening to floats run on a CUDA
stream of their own, and the training stream waits for their end on the device only.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

import cv2
import torch
from torch.utils.data._utils.signal_handling import _remove_worker_pids

from mcjepa.pipeline.stream.batches import StepBatch
from mcjepa.pipeline.world import disable_malloc_trim

_PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal a process gets when the thread that made it ends."""
_FOR_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Ctrl-C, Slurm, systemd and containers' managers reach whole process groups: workers leave these to the parent, which
may need them for its last step and save."""
_CLOSE_GRACE_S = 1.0
"""How long workers may finish the sample in hand before they are ended."""


MOST_FOR_GPU, MOST_FOR_CPU = 8, 2
"""Loading processes of a rank where the recipe does not say how many. To load the paper's step takes a rank 0.175
seconds of a core, so a GPU that trains it in 0.03 s needs 6; ranks on CPUs need the cores themselves."""


def default_workers(cores: int, ranks: int, *, on_gpu: bool) -> int:
    """Loading processes of each rank that leave its share of the cores one for itself.

    Args:
        cores: that this machine's ranks may use.
        ranks: on this machine.
        on_gpu: whether they train on GPUs, and so must be fed by at least one process.

    >>> default_workers(96, 8, on_gpu=True), default_workers(32, 8, on_gpu=True), default_workers(2, 1, on_gpu=True)
    (8, 3, 1)
    >>> default_workers(8, 2, on_gpu=False), default_workers(2, 1, on_gpu=False), default_workers(2, 2, on_gpu=False)
    (2, 1, 0)
    """
    free = cores // ranks - 1
    return max(min(free, MOST_FOR_GPU), 1) if on_gpu else max(min(free, MOST_FOR_CPU), 0)


@contextlib.contextmanager
def forking() -> Iterator[None]:
    """What holds while workers are made.

    Ctrl-C and Slurm's signals wait: none of them sees one before it ignores it. Objects that are there already are left
    out of their garbage collection, which would write to the pages of each and so copy them: 25 MiB a worker.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _FOR_THE_PARENT)
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
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
    disable_malloc_trim()


def close_workers(steps: Any) -> None:
    """Ends the workers of a loader's iterator: by themselves, or after a grace time by SIGKILL; twice is fine."""
    if steps._shutdown:
        return  # while Python ends, a second timer would never start
    _forget_workers(steps)
    ending = threading.Timer(_CLOSE_GRACE_S, _end_workers, args=(steps,))
    ending.start()
    steps._shutdown_workers()  # joins each worker for five seconds at most, hence the timer
    ending.cancel()


def _forget_workers(steps: Any) -> None:
    """Has torch take the end of these workers for no failure from now on."""
    if steps._worker_pids_set:
        steps._worker_pids_set = False
        _remove_worker_pids(id(steps))


def _end_workers(steps: Any) -> None:
    """SIGKILL: they leave all others to the parent, and have nothing to tidy up."""
    for worker in steps._workers:
        if worker.is_alive():
            worker.kill()


def close_at_exit(loader: Any) -> Callable[[], None]:
    """Closes a loader that is open when Python ends: torch would wait for workers that ignore its SIGTERM.

    Returns:
        What undoes it.
    """
    close = partial(_close, weakref.ref(loader))
    atexit.register(close)
    return partial(atexit.unregister, close)


def _close(loader: weakref.ref[Any]) -> None:
    if (still_there := loader()) is not None:
        still_there.close()


_LOOK_S = 0.2
"""How often a thread that waits looks whether the feed was closed."""


class RawStep(Protocol):
    """A step in host memory."""

    def to_device(self, device: torch.device) -> StepBatch:
        """Its batches on a device; raises what went wrong in a worker."""


class DeviceFeed(Iterator[StepBatch]):
    """Steps on a CUDA device, in order; one waits there while another is trained on."""

    def __init__(self, steps: Iterator[RawStep], device: torch.device) -> None:
        """Start to copy.

        Args:
            steps: the loader's, in pinned memory.
            device: a CUDA device.
        """
        self._steps, self._device = steps, device
        self._ready: queue.Queue[tuple[StepBatch, Any] | Exception] = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._stream = torch.cuda.Stream(device)
        threading.Thread(target=self._copy, name="device-feed", daemon=True).start()

    def __next__(self) -> StepBatch:
        found = self._ready.get()
        if isinstance(found, Exception):
            self._closed.set()
            raise found
        batch, copied = found
        training = torch.cuda.current_stream(self._device)
        training.wait_event(copied)
        for part in (batch.pairs, batch.views):
            for images in part.as_dict().values() if part else ():
                images.record_stream(training)  # its memory is not reused before the training stream is done with it
        return batch

    def close(self) -> None:
        """Let the thread end."""
        self._closed.set()

    def _copy(self) -> None:
        while not self._closed.is_set():
            try:
                raw = next(self._steps)
                with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                    batch = raw.to_device(self._device)
                    copied = torch.cuda.Event()
                    copied.record(self._stream)
            except Exception as error:  # handed to the training loop, which raises it
                self._put(error)
                return
            self._put((batch, copied))

    def _put(self, found: tuple[StepBatch, Any] | Exception) -> None:
        while not self._closed.is_set():
            try:
                self._ready.put(found, timeout=_LOOK_S)
                return
            except queue.Full:
                continue
