"""Exit codes of `mcjepa`, once for all of its commands; docs/runbook.md has the table for users."""

from __future__ import annotations

OK = 0
USAGE = 2
REJECTED = 3
PARTIAL = 4
INTERRUPTED = 130
PIPE_CLOSED = 141

MEANINGS = {
    OK: "done",
    USAGE: "a command line, recipe or site file that cannot be run as it is; nothing was started, or a spike ended it",
    REJECTED: "data was rejected, a check failed, or a run ended before its end",
    PARTIAL: "done but for some inputs, scores or records, which are named",
    INTERRUPTED: "stopped by a signal; the same command continues",
    PIPE_CLOSED: "whoever read the output has left, as `head` does",
}
