"""The processes that read images for evaluations: signals, the end of the parent, an early end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest
from torch.utils.data import Dataset

from mcjepa.data_prep.errors import DataError
from mcjepa.evals.reading import read_batches
from tests.processes import wait_until_ended
from tests.rooms import REPOSITORY

BATCHES = [range(2 * step, 2 * step + 2) for step in range(20)]


class Numbers(Dataset[tuple[int, int]]):
    """Sample n is n and the process that read it."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, number: int) -> tuple[int, int]:
        if number > 30:
            time.sleep(3600)
        return number, os.getpid()


def begin() -> tuple[Iterator[list[tuple[int, int]]], list[psutil.Process]]:
    """Batches with two workers, and the workers."""
    batches = read_batches(Numbers(), BATCHES, list, 2, "classify.workers")
    workers = [psutil.Process(next(batches)[0][1]) for _ in range(2)]
    return batches, workers


def test_workers_leave_stop_signals_to_the_parent() -> None:
    batches, workers = begin()
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            worker.send_signal(number)
    assert [n for _ in range(10) for n, _ in next(batches)] == list(range(4, 24))


def test_workers_end_with_the_iterator_though_they_hang_in_a_read() -> None:
    batches, workers = begin()
    for _ in range(12):
        next(batches)
    del batches
    assert wait_until_ended(workers, 3) == []


def test_a_killed_worker_is_an_error_that_names_the_setting() -> None:
    batches, workers = begin()
    workers[0].kill()
    with pytest.raises(DataError, match=r"lower classify\.workers"):
        list(batches)
    assert wait_until_ended(workers, 3) == []


@pytest.mark.parametrize(
    "end", ["os.kill(os.getpid(), signal.SIGTERM)", "os.kill(os.getpid(), signal.SIGKILL)", "pass"]
)
def test_workers_end_with_a_parent_that_is_stopped_or_leaves_its_batches_open(end: str) -> None:
    script = (
        "import os, signal, sys\n"
        "from tests.evals.test_reading import begin\n"
        "batches, workers = begin()\n"
        "print(*[worker.pid for worker in workers], flush=True)\n"
        "[next(batches) for _ in range(12)]\n"
        f"sys.modules['open'] = batches\n{end}\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, timeout=50)
    left = [psutil.Process(int(pid)) for pid in ran.stdout.split() if psutil.pid_exists(int(pid))]
    assert len(ran.stdout.split()) == 2
    assert wait_until_ended(left, 2) == []
