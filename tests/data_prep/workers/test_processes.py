"""Tasks in processes of this machine: results, errors and ends of processes are told once, in their words."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from multiprocessing.connection import Connection

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage.s3_errors import ConditionFailed
from mcjepa.data_prep.workers import processes
from mcjepa.data_prep.workers.processes import run_in_processes


class Item(str):
    """Work that is its own name."""

    @property
    def name(self) -> str:
        return str(self)


class Mistake(Exception):
    """An error that no pipe can send."""

    def __init__(self, number: int, held: object) -> None:
        super().__init__(f"mistake {number}")
        self.held = held


def end_or_double(_work: object, item: Item) -> str:
    if item == "end":
        os.kill(os.getpid(), signal.SIGKILL)
    if item == "refuse":
        raise DataError("found this; expected that; do so")
    if item == "conflict":
        raise ConditionFailed("found another; expected none; look", repeated=True)
    if item == "mistake":
        raise Mistake(1, lambda: None)
    return 2 * item


def test_an_error_and_the_end_of_a_worker_are_told_once() -> None:
    seen: list[str] = []
    run_in_processes(end_or_double, None, map(Item, "abcde"), workers=2, on_result=seen.append)
    assert sorted(seen) == ["aa", "bb", "cc", "dd", "ee"]
    with pytest.raises(DataError, match="found this"):
        run_in_processes(end_or_double, None, [Item("refuse"), Item("b")], workers=2, on_result=seen.append)
    with pytest.raises(DataError, match="worked at end was ended from outside"):
        run_in_processes(end_or_double, None, [Item("end"), Item("b")], workers=2, on_result=seen.append)


def test_every_error_of_a_task_is_told_in_its_words() -> None:
    with pytest.raises(DataError, match="found another; expected none"):
        run_in_processes(end_or_double, None, [Item("conflict")], workers=1, on_result=print)
    with pytest.raises(RuntimeError, match=r"(?s)mistake: Traceback.* in end_or_double.*Mistake: mistake 1"):
        run_in_processes(end_or_double, None, [Item("mistake")], workers=1, on_result=print)


def test_a_process_that_ends_before_it_has_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    start = processes._start

    def start_and_end(stack: contextlib.ExitStack) -> Connection:
        pipe = start(stack)
        for child in multiprocessing.active_children():
            child.kill()
            child.join()
        return pipe

    monkeypatch.setattr(processes, "_start", start_and_end)
    with pytest.raises(DataError, match="worked at a was ended from outside"):
        run_in_processes(end_or_double, None, [Item("a")], workers=1, on_result=print)
