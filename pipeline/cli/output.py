"""What a person sees of a running stage: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY_S = 10.0


class StageProgress:
    """Progress of one stage, on standard error; a context manager.

    Args:
        title: name of the stage.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last_line = 0.0
        self._started = time.perf_counter()

    def __enter__(self) -> StageProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.fields[stage]:<8}"),
                TextColumn("{task.description:<22}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """Shows that `done` of `total` of a phase are done; on a terminal at once, else every few seconds."""
        if self._bar:
            if phase not in self._tasks:
                self._tasks[phase] = self._bar.add_task(phase, total=total, stage=self._title, detail=detail)
            self._bar.update(self._tasks[phase], completed=done, total=total, detail=detail)
            return
        now = time.perf_counter()
        if done < total and now - self._last_line < LINE_EVERY_S:
            return
        if done == total and phase in self._tasks:
            return
        if done == total:
            self._tasks[phase] = True
        self._last_line = now
        spent = f"[{now - self._started:5.0f} s]"
        print(f"{spent} {self._title:<6} {phase} {done}/{total} {detail}".rstrip(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)
