"""What a job asks of those who run its tasks: `local_job.run_locally` and `ray_job.run_tasks`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar


class Named(Protocol):
    """Work of one task: all that is asked of it is a name for messages."""

    @property
    def name(self) -> str:
        """Name of the shard or part that the task makes."""


Item = TypeVar("Item", bound=Named)
Result = TypeVar("Result")


class RunTasks(Protocol):
    """Runs a job's tasks, a bounded number of them at a time."""

    def __call__(
        self,
        function: Callable[[Any, Item], Result],
        work: object,
        items: Iterable[Item],
        *,
        on_result: Callable[[Result], None],
    ) -> None:
        """Call `function(work, item)` for every item, and `on_result` as each returns.

        Args:
            function: A function of a module, which the workers import.
            work: What is the same for all items; small, sent with each.
            items: Taken one by one as there is room: never all in memory.
            on_result: Called here, in the order of completion.

        Raises:
            DataError: one that a task raised.
        """
