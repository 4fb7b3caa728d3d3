"""A window of the torch profiler by the recipe's `train.profile`.

RUN/profile/step-000000100-rank-00000.json.gz     trace for chrome://tracing or ui.perfetto.dev
RUN/profile/step-000000100-rank-00000.txt         operations by time
RUN/profile/step-000000100-rank-00000.pickle      CUDA memory history, for pytorch.org/memory_viz
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from mcjepa.pipeline.settings.monitor import ProfileConfig

log = logging.getLogger(__name__)
ROWS = 40
MEMORY_EVENTS = 100_000


class ProfileWindow:
    """Profiles `steps` steps from `start_step` on; told of the beginning of every step and of the end of the run."""

    def __init__(self, config: ProfileConfig, run: Path, rank: int, device: torch.device) -> None:
        self._wanted = config.start_step >= 0 and rank in config.ranks
        self._first, self._last = config.start_step, config.start_step + config.steps
        self._place = run / "profile" / f"step-{max(config.start_step, 0):09d}-rank-{rank:05d}"
        self._cuda = device.type == "cuda"
        self._profiler: Any = None

    def begin(self, step: int) -> None:
        """Called before step `step` reads its batch."""
        if self._profiler is None and self._wanted and self._first <= step < self._last:
            self._start()
        elif self._profiler is not None and step >= self._last:
            self.end()

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])]
        if self._cuda:
            torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self._profiler = profile(activities=kinds, record_shapes=True, profile_memory=True)
        self._profiler.__enter__()

    def end(self) -> None:
        """Ends the window and writes its files; nothing where none is open."""
        if self._profiler is None:
            return
        profiler, self._profiler, self._wanted = self._profiler, None, False
        profiler.__exit__(None, None, None)
        self._place.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(f"{self._place}.json.gz")
        order = "self_cuda_time_total" if self._cuda else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=order, row_limit=ROWS)
        self._place.with_suffix(".txt").write_text(table, encoding="utf-8")
        if self._cuda:
            torch.cuda.memory._dump_snapshot(f"{self._place}.pickle")
            torch.cuda.memory._record_memory_history(enabled=None)
        log.info("profile of steps %d to %d: %s.json.gz", self._first, self._last - 1, self._place)
