"""Processes by their command lines, and watching them end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable

import psutil


def wait_until_ended(processes: Iterable[psutil.Process], within_s: float) -> list[str]:
    """Waits for processes to end; returns the command lines of those that still run after `within_s`.

    A zombie has ended: it only waits for its parent to look, and in a container the first process may never do so.
    """
    deadline = time.monotonic() + within_s
    running = list(processes)
    while running and time.monotonic() < deadline:
        running = [p for p in running if _runs(p)]
        time.sleep(0.05)
    return [line for p in running if (line := command_line(p))]


def command_line(process: psutil.Process) -> str:
    """Its words with blanks between them, or its name; empty for one that has ended meanwhile."""
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie among them
        return " ".join(process.cmdline()) or process.name()
    return ""


def descendants(pid: int, mark: str = "") -> list[psutil.Process]:
    """All that a process has started, those of Ray and of the decoder among them, with `mark` in their command line."""
    return [p for p in psutil.Process(pid).children(recursive=True) if mark in command_line(p)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
