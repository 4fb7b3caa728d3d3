"""`mcjepa` and `python -m mcjepa`: the command line, and what its processes need settled before anything is imported.

No process imports anything from the current folder: `-m` puts it at the front of the module path, where a user's
`queue.py` would shadow the standard library's. PYTHONSAFEPATH keeps it away from all descendants.

Threads of torch wait asleep and not in a busy loop. Where cores are shared, a thread that spins at a barrier takes the
core from the one that it waits for: a step of two threads beside another job took twenty times as long as one of a
single thread. For some 0.1 ms they do look, as long as from one operation of a small step to the next: 4,000 times,
since one look with its pause takes 26 ns (100,000 took 2.6 ms, and a clip inferred beside other jobs twelve times its
processor time). libgomp reads both variables when torch is loaded, once.
"""

import os
import sys


def _settle() -> None:
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed meanwhile
        here = ""
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", here):
        del sys.path[0]
    _open_closed_streams()
    os.environ["PYTHONSAFEPATH"] = "1"
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")


def _open_closed_streams() -> None:
    """Standard streams that were closed (`>&-`) lead nowhere: else the next file opened would get their numbers, and
    what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), "w" if number else "r"))


_settle()


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    try:
        from mcjepa.pipeline.cli.main import main as run

        return run()
    except KeyboardInterrupt:  # before the command had begun
        from mcjepa.pipeline.exits import INTERRUPTED

        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
