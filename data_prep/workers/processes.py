"""Runs tasks in processes of this machine that live for one call and end with it, however it ends.

For work of many small steps in Python, which threads would do one at a time; `local_job` has threads for work that lies
in children anyway.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any

from mcjepa.data_prep.code import isolated_children
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.process import end_with_parent
from mcjepa.data_prep.workers.tasks import Item, Result


def run_in_processes(
    function: Callable[[Any, Item], Result],
    work: object,
    items: Iterable[Item],
    *,
    workers: int,
    on_result: Callable[[Result], None],
) -> None:
    """Like `RunTasks`, by up to `workers` processes.

    Raises:
        DataError: one that a task raised; or a process was ended from outside.
        RuntimeError: a task raised another error, whose traceback is the message.
    """
    stream = iter(items)
    busy: dict[Connection, str] = {}

    def hand_out(pipe: Connection) -> None:
        if (item := next(stream, None)) is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `_received` says it
                pipe.send((function, work, item))
            busy[pipe] = item.name

    with contextlib.ExitStack() as stack:
        for pipe in [_start(stack) for _ in range(workers)]:
            hand_out(pipe)
        while busy:
            ready = wait(list(busy))
            for pipe in [pipe for pipe in busy if pipe in ready]:
                result = _received(pipe, busy.pop(pipe))
                hand_out(pipe)
                on_result(result)


def _start(stack: contextlib.ExitStack) -> Connection:
    """A process that is killed when the stack ends."""
    # spawn: forking a process in which threads run can hang
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, os.getpid()), daemon=True)
    with isolated_children():
        process.start()
    theirs.close()
    stack.callback(process.join)
    stack.callback(process.kill)
    return ours


def _serve(pipe: Connection, parent_pid: int) -> None:
    """What a process does: task after task."""
    end_with_parent(parent_pid)
    while True:
        try:
            function, work, item = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send((function(work, item), None))
        except DataError as error:
            pipe.send((None, DataError(str(error))))
        except Exception:  # in words: not every error can be sent
            pipe.send((None, RuntimeError(f"{item.name}: {traceback.format_exc()}")))


def _received(pipe: Connection, name: str) -> Any:
    """The result of a task; its error is raised here."""
    try:
        result, error = pipe.recv()
    except (EOFError, ConnectionResetError) as ended:
        raise DataError(
            f"the process that worked at {name} was ended from outside; expected it to finish; look for lack of memory "
            "(`dmesg`), lower prep.workers, then run again"
        ) from ended
    if error is not None:
        raise error
    return result
