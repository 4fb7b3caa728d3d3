"""Jobs in the background of this machine: submitit's controller processes, known by their process id and folder."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import psutil


def controller(job: str, folder: Path) -> psutil.Process | None:
    """The running controller of a job; None when it has ended (process ids are used again, so its words are read)."""
    with contextlib.suppress(psutil.Error, ValueError):
        process = psutil.Process(int(job))
        words = process.cmdline()
        if process.status() != psutil.STATUS_ZOMBIE and "submitit.local._local" in words and str(folder) in words:
            return process
    return None


def stop(job: str, folder: Path, within_s: float) -> bool:
    """Asks a job to save and end, and waits; whether it runs no more.

    The controller passes SIGTERM on to the job, which stops its ranks within their grace.
    """
    process = controller(job, folder)
    if process is None:
        return True
    with contextlib.suppress(psutil.NoSuchProcess):
        process.terminate()
    deadline = time.monotonic() + within_s
    while controller(job, folder) and time.monotonic() < deadline:  # a zombie has ended, whoever its parent is
        time.sleep(0.1)
    return controller(job, folder) is None
