"""Where a rank is in its step and how long each part took: read by the meters and by the watchdog.

Parts of a step: data, forward, backward, update, agreement (all ranks on whether it counted); beside them meters,
record, checkpoint, pictures, and closing behind the last step. One part is current at any time.
On an accelerator a part ends when its work is queued; the host waits for it in `update` (ZeRO 1 to 3) and `agreement`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

CLOSING = "closing"
"""The end of a run, which waits for uploads and records by limits of its own: the watchdog leaves it alone."""


@dataclass(frozen=True)
class Activity:
    """What a rank does at a moment."""

    step: int
    part: str
    since_s: float
    """`time.monotonic` at its start."""


class StepClock:
    """Notes the current part. Written by the training thread, read by any."""

    def __init__(self) -> None:
        self.now = Activity(0, "start", time.monotonic())
        self._spent_s: dict[str, float] = {}

    def enter(self, part: str, step: int | None = None) -> None:
        """Ends the current part and starts another, of the same step unless one is given."""
        at, before = time.monotonic(), self.now
        self._spent_s[before.part] = self._spent_s.get(before.part, 0.0) + at - before.since_s
        self.now = Activity(before.step if step is None else step, part, at)

    def window(self) -> dict[str, float]:
        """Seconds of every part since the last call, the current one left out."""
        spent, self._spent_s = self._spent_s, {}
        return spent
