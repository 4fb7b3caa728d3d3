"""Runs command lines on this machine so that nothing of them outlives an interruption.

Each command gets a process group of its own. On SIGINT or SIGTERM the group is asked to stop, and killed when it has
not after a grace time; descendants that left the group (a Ray raylet starts new sessions) are ended through the
process tree. Started by design in the foreground: output goes straight to the terminal.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from mcjepa.cluster.rendezvous import free_port

GRACE_S = 7.0
INTERRUPTED = 130
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals by which a terminal or a scheduler asks for a stop; each is passed on as SIGINT."""
POLL_S = 0.1
_PR_SET_PDEATHSIG = 1
"""Linux prctl(2): the signal a process gets when the thread that made it ends."""


class Interrupted(KeyboardInterrupt):
    """The command was stopped by a signal to us."""


def run_command(argv: Sequence[str], *, environment: Mapping[str, str] | None = None, grace_s: float = GRACE_S) -> int:
    """Runs a command to its end.

    Args:
        argv: program and arguments; no shell.
        environment: variables laid over ours.
        grace_s: seconds between asking the command to stop and killing it, after a stop signal to us.

    Returns:
        Its exit status.

    Raises:
        Interrupted: we got a stop signal; every process of the command has ended.
    """
    return run_together([(list(argv), dict(environment or {}))], grace_s=grace_s)


def run_ranks(
    argv: Sequence[str],
    ranks: int,
    *,
    environment: Mapping[str, str] | None = None,
    grace_s: float = GRACE_S,
    logs: Callable[[int], Path] | None = None,
) -> int:
    """Runs a command as `ranks` processes of one world on this machine, with torchrun's variables.

    Args:
        argv: program and arguments of each.
        ranks: how many.
        environment: variables laid over ours in all of them.
        grace_s: seconds that they have to stop by themselves after a stop signal to us.
        logs: file of a rank that its output is added to; None: it goes where ours goes.

    Returns:
        0, or the first exit status that is not 0; the other ranks are then stopped.

    Raises:
        Interrupted: we got a stop signal; every process has ended.
    """
    world = {
        **(environment or {}),
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port(os.getpid(), "127.0.0.1")),
    }
    commands = [
        (list(argv), {**world, "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)})
        for rank in range(ranks)
    ]
    return run_together(commands, grace_s=grace_s, logs=logs)


def death_signal(number: int = signal.SIGKILL) -> Callable[[], None]:
    """For `preexec_fn`: the new process gets this signal when the thread that makes it ends, however it ends."""
    return partial(set_death_signal, number, os.getpid())


def set_death_signal(number: int, parent: int) -> None:
    """Makes this process get a signal when its parent ends; it ends at once where that has happened already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)


def run_together(
    commands: Sequence[tuple[list[str], dict[str, str]]],
    *,
    grace_s: float = GRACE_S,
    logs: Callable[[int], Path] | None = None,
) -> int:
    """Runs commands (arguments, variables) side by side until all have ended or one has failed; see `run_ranks`.

    Returns:
        0, or the first exit status that is not 0; the others are then stopped, within the usual grace
        unless it is that of an interruption (130).

    Raises:
        Interrupted: we got a stop signal; every process has ended.
    """
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        received.append(number)

    previous = {number: signal.signal(number, note) for number in STOPS}
    children: list[subprocess.Popen[bytes]] = []
    try:
        for number, (argv, variables) in enumerate(commands):
            children.append(_start(argv, variables, logs(number) if logs else None))
        while not received:
            codes = [child.poll() for child in children]
            failed = next((code for code in codes if code), None)
            if failed is not None:
                if failed < 0:
                    _say_killed(codes.index(failed), len(codes), failed, logs)
                if failed != INTERRUPTED:  # one that was asked to stop: the others stop with it, and may be saving
                    grace_s = min(grace_s, GRACE_S)
                return failed
            if all(code == 0 for code in codes):
                return 0
            time.sleep(POLL_S)
        raise Interrupted(f"stopped by {signal.Signals(received[0]).name}")
    finally:
        _stop(children, grace_s)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _say_killed(number: int, count: int, code: int, logs: Callable[[int], Path] | None) -> None:
    """One line on a process that a signal has ended from outside, and the last line that it wrote to its log."""
    name = signal.Signals(-code).name
    who = f"rank {number} of {count}" if count > 1 else "the process"
    cause = "; out of memory is the usual cause" if -code == signal.SIGKILL else ""
    last = last_line(logs(number)) if logs else ""
    written = f"; its last line: {last}" if last else ""
    print(f"mcjepa: {who} on {socket.gethostname()} was ended by {name}{cause}{written}", file=sys.stderr, flush=True)


def last_line(path: Path, most_bytes: int = 4096) -> str:
    """The last line of a log that is not empty; empty where there is none."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - most_bytes, 0))
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""
    return ""


def _start(argv: Sequence[str], variables: Mapping[str, str], log: Path | None) -> subprocess.Popen[bytes]:
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(log.open("ab")) if log else None
        return subprocess.Popen(
            argv,
            env={**os.environ, **variables},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            preexec_fn=death_signal(),
        )


def _stop(children: Sequence[subprocess.Popen[bytes]], grace_s: float) -> None:
    """Asks the trees of the children that still run to end, then kills what is left of them."""
    end_processes([child for child in children if child.poll() is None], grace_s, signal.SIGINT)


def end_processes(running: Sequence[subprocess.Popen[bytes]], grace_s: float, number: int) -> None:
    """Sends a signal to the groups of processes of ours, then kills what is left of their trees after the grace."""
    family: set[psutil.Process] = set()
    for child in running:
        family |= _family(child.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and any(child.poll() is None for child in running):
        for child in running:
            family |= _family(child.pid)
        time.sleep(POLL_S)
    for child in running:
        family |= _family(child.pid)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for child in running:
        child.wait()


def _family(pid: int) -> set[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()
