"""Processes and processors: children that never outlive their parent, interrupts that are not lost, workers that keep
to one processor."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LOG = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """Make this process be killed when its parent ends, and leave Ctrl-C to the parent.

    On Linux by prctl(PR_SET_PDEATHSIG); elsewhere only the interrupt signal is ignored, and the child
    ends when its pipe closes.

    Args:
        parent_pid: The process that started this one; if it is gone already, this one ends at once.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:
            os._exit(1)


@contextlib.contextmanager
def interruption_kept(instead: Callable[[int, Any], None] | None = None) -> Iterator[None]:
    """Raise KeyboardInterrupt at the end where one came: while they load, libraries catch anything.

    Args:
        instead: What is done when it comes; None: it is raised then, too.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    seen: list[int] = []
    do = instead or before

    def note(number: int, frame: Any) -> None:
        seen.append(number)
        do(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:
        raise KeyboardInterrupt


def usable_cores() -> int:
    """Cores this process may run on (its affinity, not the machine's count)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


@contextlib.contextmanager
def one_processor() -> Iterator[int | None]:
    """Keep this thread, and what it starts meanwhile, on one processor that nobody else has in this way.

    Which is taken is known by a lock on a file of its number, which the system gives back when the process ends,
    however it ends.

    Yields:
        Number of the processor; None where all are taken or it cannot be known: nothing changes then.
    """
    with contextlib.ExitStack() as stack:
        number = _take_processor(stack)
        if number is not None:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, {number})
        yield number


def _take_processor(stack: contextlib.ExitStack) -> int | None:
    """A processor that is locked until the stack ends."""
    folder = Path(tempfile.gettempdir()) / f"mcjepa-processors-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        return next((n for n in _processors() if _lock(folder / str(n), stack)), None)
    except OSError as error:
        LOG.warning("workers are not kept to a processor each: %s (%s)", error.strerror, folder)
        return None


def _processors() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_setaffinity") else []


def _lock(path: Path, stack: contextlib.ExitStack) -> bool:
    """Lock a file until the stack ends; False where another has it."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    stack.callback(os.close, descriptor)
    return True
