"""Meters of a run: means over a window of steps, written as one JSON line a record and handed to the tracker."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor


class Meters:
    """Collects values of every step and averages them at a record.

    Tensors stay on their device until the record is made, so collecting does not wait for an accelerator.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}
        self._started = time.perf_counter()
        self._waited_s = 0.0
        self._steps = 0
        self._samples: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor | float]) -> None:
        """Adds one step's values to the window."""
        for name, value in values.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def step_done(self, waited_s: float, samples: Mapping[str, int] | None = None) -> None:
        """Counts a step, the seconds it waited for data, and the samples of all ranks in it by their kind."""
        self._steps += 1
        self._waited_s += waited_s
        for kind, count in (samples or {}).items():
            self._samples[kind] = self._samples.get(kind, 0) + count

    def record(self, parts_s: Mapping[str, float] | None = None) -> dict[str, float]:
        """Means of the window; starts a new one.

        Args:
            parts_s: seconds of the window by part of the step (`StepClock.window`).

        Returns:
            Mean of every value, `seconds_per_step`, `data_wait_share`, `KIND_per_s` of every kind of samples, and
            `seconds_PART` a step of every part.
        """
        now = time.perf_counter()
        spent = max(now - self._started, 1e-9)
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        means["seconds_per_step"] = spent / max(self._steps, 1)
        means["data_wait_share"] = self._waited_s / spent
        means.update({f"{kind}_per_s": count / spent for kind, count in self._samples.items()})
        means.update({f"seconds_{part}": s / max(self._steps, 1) for part, s in (parts_s or {}).items()})
        self.__init__()  # type: ignore[misc]
        return means


def append_record(path: Path, step: int, values: Mapping[str, float]) -> None:
    """Appends {"step": …, name: value …} to a jsonl file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def read_records(path: Path) -> list[dict[str, float]]:
    """Records of a jsonl file, the last one of every step, in order of the steps; a torn last line is left out."""
    records: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[int(record["step"])] = record
    return [records[step] for step in sorted(records)]
