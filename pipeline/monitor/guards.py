"""Guards of a run: bad steps and spikes of the loss are written down and counted; signals ask for a stop.

What a bad step is and that all ranks skip it is decided in `pipeline.step`; here it gets its flight record, and too
many in a row end the run. All ranks agree on a stop at the end of a step.

A spike has a robust z-score above the limit, of any term, over a window of good steps:

    z = (x - median) / (1.4826 MAD + 1e-3 |median|)

Median and MAD (median absolute deviation) are not moved by the spikes themselves; 1.4826 MAD is a standard deviation
for normal noise. The second summand keeps a term that hardly moves from raising an alarm over nothing. Only rises
count: the loss may fall as fast as it likes.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from mcjepa.pipeline.errors import RunError, UsageError
from mcjepa.pipeline.monitor.flight_record import finite_samples, numbers, samples_of, write_record
from mcjepa.pipeline.run.lines import PatientFiles
from mcjepa.pipeline.settings.monitor import GuardConfig, SpikeConfig
from mcjepa.pipeline.step.step import StepResult
from mcjepa.pipeline.stream.batches import StepBatch

log = logging.getLogger(__name__)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class StopRequest:
    """Turns stop signals into a flag; a second SIGINT interrupts at once. A context manager."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self.asked_at: float | None = None
        """When the first of them came, by the monotonic clock."""
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal, self.asked_at = number, self.asked_at or time.monotonic()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


@dataclass(frozen=True)
class StepSetting:
    """How a step was to be taken, for its flight record."""

    weights: Mapping[str, float]
    """Weight of every term."""
    rates: Mapping[str, float]
    """Learning rate of every branch."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Seed, world size, ZeRO stage, precision, dataset ids: what does not change during a run."""


class StepGuard:
    """Writes down bad steps and spikes and ends the run where there are too many.

    Args:
        folder: RUN/bad_steps.
        rank: this rank.
        most_in_a_row: bad steps in a row that end the run.
        config: the recipe's guards.
    """

    def __init__(self, folder: Path, rank: int, most_in_a_row: int, config: GuardConfig | None = None) -> None:
        self._folder, self._rank, self._most = folder, rank, most_in_a_row
        self._config = config or GuardConfig()
        self._spikes = SpikeDetector(self._config.spikes)
        self._files = PatientFiles()
        self._in_a_row = 0
        self.total, self.spikes, self.scale_skips = 0, 0, 0
        self.alarm = ""
        """Why this rank wants the run to end before the next update; empty while it does not."""

    def check(self, batch: StepBatch, result: StepResult, setting: StepSetting) -> None:
        """Looks at a step that was taken or skipped.

        Raises:
            RunError: it is one bad step too many in a row.
            UsageError: some rank saw a spike, and the recipe ends the run at one. A launched job must not be started
                again by itself then: with an empty window it would train through the spike.
        """
        self._files.settle()
        if result.alarm:
            raise UsageError(
                f"step {batch.step} was not taken: {self.alarm or 'another rank saw a spike'}; the last checkpoint is "
                "from before it. Lower the learning rates or set train.guards.spikes.action=warn, and rerun"
            )
        if result.bad == "scale":
            self.scale_skips += 1
        elif result.bad:
            self._bad_step(batch, result, setting)
        else:
            self._in_a_row = 0
            self._look_for_spikes(batch, result, setting)

    def _bad_step(self, batch: StepBatch, result: StepResult, setting: StepSetting) -> None:
        self._in_a_row += 1
        self.total += 1
        path = self._record(batch, result, setting, result.bad, {})
        log.warning(
            "step %d skipped on all ranks: the %s is not finite; its samples, terms and seeds are in %s. "
            "Run it again with train.replay=%s", batch.step, result.bad, path, path,
        )  # fmt: skip
        if self._in_a_row >= self._most:
            raise RunError(
                f"{self._in_a_row} steps in a row had a non-finite {result.bad} (the last is step {batch.step}), "
                f"expected fewer than train.max_bad_steps={self._most}; look at {self._folder}, run one again with "
                "train.replay=FILE, lower the learning rates, and rerun: it continues from the last checkpoint"
            )

    def _look_for_spikes(self, batch: StepBatch, result: StepResult, setting: StepSetting) -> None:
        found = self._spikes.look(result.numbers)
        if not found:
            return
        self.spikes += 1
        words = ", ".join(f"{s.name} {s.value:.4g} (z {s.z:.0f}, median {s.median:.4g})" for s in found)
        path = self._record(batch, result, setting, "spike", {s.name: s.z for s in found})
        log.warning("spike in step %d: %s; its samples and seeds are in %s", batch.step, words, path)
        if self._config.spikes.action == "stop":
            self.alarm = f"step {batch.step} had a spike: {words}"

    def _record(
        self, batch: StepBatch, result: StepResult, setting: StepSetting, reason: str, z: Mapping[str, float]
    ) -> Path:
        content = {
            "reason": reason,
            **setting.facts,
            "samples": samples_of(batch),
            "finite_samples": finite_samples(batch),
            "loss": repr(float(result.output.loss.detach())),
            "terms": numbers(result.output.terms),
            "meters": numbers({k: v for k, v in result.meters.items() if k not in result.output.terms}),
            "weights": dict(setting.weights),
            "rates": dict(setting.rates),
            "z": dict(z),
        }
        return write_record(self._folder, batch.step, self._rank, content, result.state, self._files)

    def close(self) -> None:
        """Writes the records that have waited for room, or says that they are lost."""
        if not self._files.settle():
            log.error("the disk is still full: %d records of %s are lost", self._files.waiting, self._folder)


NORMAL_MAD = 1.4826
LEAST_RELATIVE = 1e-3


@dataclass(frozen=True)
class Spike:
    """A term far above its window."""

    name: str
    value: float
    median: float
    z: float


class SpikeDetector:
    """Compares each step's terms with those of the steps before it that had the same ones."""

    def __init__(self, config: SpikeConfig) -> None:
        self._config = config
        self._windows: dict[tuple[str, ...], deque[np.ndarray]] = {}

    def look(self, terms: Mapping[str, float]) -> list[Spike]:
        """The spikes among a good step's terms; adds them to the window.

        Each set of terms has a window of its own: where a term comes or goes, the loss is another sum. Steps of pairs
        and of views may alternate.
        """
        if not self._config.z:
            return []
        names = tuple(sorted(terms))
        values = np.array([terms[name] for name in names])
        window = self._windows.setdefault(names, deque(maxlen=self._config.window))
        found = self._compare(names, values, np.array(window)) if len(window) >= self._config.least else []
        window.append(values)
        return found

    def _compare(self, names: tuple[str, ...], values: np.ndarray, window: np.ndarray) -> list[Spike]:
        median = np.median(window, axis=0)
        spread = NORMAL_MAD * np.median(np.abs(window - median), axis=0) + LEAST_RELATIVE * np.abs(median) + 1e-12
        z = (values - median) / spread
        return [
            Spike(name, float(values[i]), float(median[i]), float(z[i]))
            for i, name in enumerate(names)
            if z[i] > self._config.z
        ]
