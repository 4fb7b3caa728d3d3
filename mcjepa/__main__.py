"""`mcjepa` and `python -m mcjepa`: the command line, of which no process imports anything from the current folder.

`-m` puts the current folder at the front of the module path, where a user's `queue.py` would shadow the standard
library's. It goes before anything else is imported; PYTHONSAFEPATH keeps it away from all descendants.
"""

import os
import sys


def _leave_current_folder() -> None:
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was removed meanwhile
        here = ""
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", here):
        del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"


_leave_current_folder()


def main() -> int:
    """Runs the command line of this process and returns its exit code."""
    from mcjepa.pipeline.cli.main import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
