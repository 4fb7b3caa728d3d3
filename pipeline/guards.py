"""Guards of a step: a non-finite loss on any rank is skipped by all and written down; too many in a row end the run.

Signals ask for a stop; all ranks agree on it at the end of a step.
"""

from __future__ import annotations

import json
import logging
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

from torch import Tensor

from data_prep.storage import atomic_write
from pipeline.errors import RunError

log = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Turns stop signals into a flag; a second SIGINT interrupts at once. A context manager."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


class BadStepGuard:
    """Counts steps with a non-finite loss in a row and keeps a record of each."""

    def __init__(self, folder: Path, rank: int, most_in_a_row: int) -> None:
        self._folder, self._rank, self._most = folder, rank, most_in_a_row
        self._in_a_row = 0
        self.total = 0

    def passed(self) -> None:
        """A good step."""
        self._in_a_row = 0

    def failed(self, step: int, keys: Mapping[str, Sequence[str]], terms: Mapping[str, Tensor]) -> None:
        """A skipped step: writes its sample keys and terms.

        Raises:
            RunError: it is one too many in a row.
        """
        self._in_a_row += 1
        self.total += 1
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{step:09d}-rank-{self._rank:05d}.json"
        values = {name: repr(float(value)) for name, value in terms.items()}
        record = {
            "step": step,
            "rank": self._rank,
            "samples": {k: list(v) for k, v in keys.items()},
            "terms": values,
        }
        atomic_write(path, json.dumps(record, indent=1).encode())
        log.warning("step %d skipped: the loss is not finite on a rank; its samples are in %s", step, path)
        if self._in_a_row >= self._most:
            raise RunError(
                f"{self._in_a_row} steps in a row had a non-finite loss (the last is step {step}), expected fewer than "
                f"train.max_bad_steps={self._most}; look at {self._folder}, lower the learning rates, and rerun: "
                "it continues from the last checkpoint"
            )
