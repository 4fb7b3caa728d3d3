"""Ends what a private Ray leaves, however its driver ends: a process of its own that waits for the driver's end.

    python -I guardian.py PARENT

It makes the Ray's folder below PARENT and prints its path. Its standard input is a pipe that only the driver holds
open: at its end (an orderly one, a crash inside Ray, kill -9) every process that names the folder in its command line
or its first environment, or works in its EMPTY, is killed and the folder is removed: there is no moment at which it
has nobody to remove it.
Until then the guardian holds a lock on `lock` in it, by which a later run knows whose folders are in use. Only the
standard library is loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "mcjepa-"
VARIABLE = "MCJEPA_RAY_FOLDER"
EMPTY = "empty"
"""Folder in the folder, in which all of a Ray's processes are started: a mark that no process loses by itself."""
LOCK_NAME = "lock"
KILL_LIMIT_S, END_LIMIT_S = 8.0, 15.0
CLEAN_LOOKS = 3


class Guardian:
    """The driver's end of it."""

    def __init__(self, parent: str) -> None:
        """Start the process; when this returns there is a `folder` below `parent`, and it has the lock.

        Raises:
            OSError: none can be made there.
        """
        command = [sys.executable, "-I", __file__, parent]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, cwd="/"
        )
        assert self._process.stdout is not None
        self.folder = self._process.stdout.readline().decode().removesuffix("\n")
        if not self.folder:
            raise OSError(f"Ray gets no folder below {parent}; expected to write there; set TMPDIR to another")
        self._ending = threading.Lock()

    def end(self) -> None:
        """Let it do its work now, and wait for it; again: remove what Ray has written since."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._ending:
            self._process.stdin.close()
            self._process.wait(END_LIMIT_S)
            self._process.stdout.close()
            shutil.rmtree(self.folder, ignore_errors=True)


def clear_abandoned(parent: str) -> None:
    """Remove folders of this user's Rays below `parent` whose driver and guardian are both gone."""
    for path in Path(parent).glob(f"{PREFIX}*/"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == os.getuid() and _is_abandoned(path):
                _clear(str(path))


def _is_abandoned(path: Path) -> bool:
    """Whether a folder's guardian has gone; one without a lock was written to after its guardian had removed it."""
    try:
        with (path / LOCK_NAME).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return any(path.glob("session_*")) and not any(_processes_of(str(path)))


def main(parent: str) -> None:
    """Make the folder, wait for the end of the standard input, then clear."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    folder = tempfile.mkdtemp(prefix=PREFIX, dir=parent)
    new = Path(folder, f"{LOCK_NAME}.new")
    with new.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        new.rename(Path(folder, LOCK_NAME))  # it is never there without being held
        with contextlib.suppress(BrokenPipeError):  # the driver may be gone already
            os.write(1, f"{folder}\n".encode())
        while os.read(0, 4096):
            pass
        _clear(folder)


def _clear(folder: str) -> None:
    """Kill what belongs to the folder until nothing does, and remove it.

    A process that is just becoming another program names nothing for a moment: a single look is no proof.
    """
    deadline = time.monotonic() + KILL_LIMIT_S
    clean_looks = 0
    while clean_looks < CLEAN_LOOKS and time.monotonic() < deadline:
        found = list(_processes_of(folder))
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            shutil.rmtree(folder, ignore_errors=True)
        clean_looks = 0 if found or os.path.exists(folder) else clean_looks + 1
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _processes_of(folder: str) -> Iterator[int]:
    """Processes of this user that belong to the folder, but those that are only waited for (Linux; elsewhere none).

    A process of Ray writes its title over its command line and what follows it in memory, of its environment too: in
    some orders of the variables none of them is left that names the folder.
    """
    for entry in Path("/proc").glob("[0-9]*"):
        pid = int(entry.name)
        if pid == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if entry.stat().st_uid == os.getuid() and (_works_in(entry, folder) or _names(entry, folder.encode())):
                yield pid


def _works_in(process: Path, folder: str) -> bool:
    return os.readlink(process / "cwd").removesuffix(" (deleted)") == os.path.join(folder, EMPTY)


def _names(process: Path, mark: bytes) -> bool:
    texts = (b"\0" + (process / name).read_bytes() for name in ("cmdline", "environ"))
    return any(mark + end in text for text in texts for end in (b"/", b"\0"))


if __name__ == "__main__":
    main(sys.argv[1])
