"""What a person sees of a running stage: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from mcjepa.pipeline.stages.following import Following

LINE_EVERY_S = 10.0
WHAT_WIDTH, LEAST_WIDTH = 20, 7
"""Characters of a phase with its counts in front of columns, and of a column."""
PACE_S = 1.0
"""From then on a pace says something."""


def print_next(commands: Following, stream: TextIO) -> None:
    """What can be done next: each command on a line of its own, what it is for above it."""
    if commands:
        print("\nnext:", file=stream)
    for command, purpose in commands:
        print(f"  # {purpose}\n  {command}", file=stream)
    stream.flush()


class StageProgress:
    """Progress of one stage, on standard error; a context manager.

    Args:
        title: name of the stage.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._last_line = float("-inf")
        self._began: dict[str, tuple[float, int]] = {}
        self._named: tuple[str, ...] = ()
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

    def update(
        self, phase: str, done: int, total: int, detail: str = "", columns: Mapping[str, str] | None = None
    ) -> None:
        """Shows that `done` of `total` of a phase are done; on a terminal at once, else every few seconds.

        Args:
            phase: part of the stage.
            done: how much of it.
            total: all of it.
            detail: words behind it.
            columns: what is shown below one another, line by line, under their names.
        """
        now = time.perf_counter()
        began = self._began.setdefault(phase, (now, done))
        if self._bar:
            if phase not in self._tasks:
                self._tasks[phase] = self._bar.add_task(phase, total=total, stage=self._title, detail=detail)
            words = ", ".join(filter(None, (detail, *(f"{name} {value}" for name, value in (columns or {}).items()))))
            self._bar.update(self._tasks[phase], completed=done, total=total, detail=words)
            return
        if done < total and now - self._last_line < LINE_EVERY_S:
            return
        if done == total and phase in self._tasks:
            return
        if done == total:
            self._tasks[phase] = True
        self._last_line = now
        self._print_line(f"{phase} {done}/{total} {detail}".rstrip(), columns, _left(began, now, done, total))

    def _print_line(self, what: str, columns: Mapping[str, str] | None, left: str) -> None:
        spent = f"[{time.perf_counter() - self._started:5.0f} s] {self._title:<6}"
        if not columns:
            line = f"{spent} {what}" + (f", {left}" if left else "")
        else:
            widths = {name: max(len(name), LEAST_WIDTH) for name in columns}
            if tuple(columns) != self._named:
                self._named = tuple(columns)
                names = "".join(f"{name:>{widths[name] + 2}}" for name in columns)
                print(" " * (len(spent) + 1 + WHAT_WIDTH) + names, file=sys.stderr)
            line = f"{spent} {what:<{WHAT_WIDTH}}"
            line += "".join(f"{value:>{widths[name] + 2}}" for name, value in columns.items()) + f"  {left}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=sys.stderr, flush=True)


def _left(began: tuple[float, int], now: float, done: int, total: int) -> str:
    """The time that is left by the pace since the first word of a phase, in words; nothing where it is not known."""
    spent, moved = now - began[0], done - began[1]
    if moved <= 0 or spent < PACE_S or done >= total:
        return ""
    left = spent / moved * (total - done)
    if left < 100:
        return f"{left:.0f} s left"
    return f"{left / 60:.0f} min left" if left < 100 * 60 else f"{left / 3600:.1f} h left"
