"""Workers keep to one processor each, and give it back however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mcjepa.data_prep.process import one_processor
from mcjepa.data_prep.workers.ray_job import run_tasks
from mcjepa.data_prep.workers.ray_session import running_ray


@pytest.fixture
def apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Locks of this test's own: other jobs on this machine hold processors too."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_processor_is_held_and_given_back(apart: None) -> None:
    before = os.sched_getaffinity(0)
    with one_processor() as number:
        assert os.sched_getaffinity(0) == {number}
        child = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], capture_output=True, text=True
        )
        assert child.stdout.strip() == f"{{{number}}}"
    assert os.sched_getaffinity(0) == before


def test_no_two_hold_the_same_and_who_comes_late_is_left_free(apart: None) -> None:
    before = os.sched_getaffinity(0)
    with ExitStack() as stack:
        numbers = []
        for _ in before:
            numbers.append(stack.enter_context(one_processor()))
            os.sched_setaffinity(0, before)  # as another process would come
        assert set(numbers) == before
        assert stack.enter_context(one_processor()) is None
        assert os.sched_getaffinity(0) == before
    with one_processor() as number:
        assert number == min(before)


def test_a_killed_holder_gives_its_processor_back(apart: None, tmp_path: Path) -> None:
    code = (
        "import time\nfrom mcjepa.data_prep.process import one_processor\n"
        "with one_processor() as n:\n    print(n, flush=True)\n    time.sleep(60)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert holder.stdout is not None
    taken = int(holder.stdout.readline())
    with one_processor() as other:
        assert other != taken
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with one_processor() as number:
        assert number == taken


def test_an_unusable_folder_of_locks_changes_nothing(
    apart: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"mcjepa-processors-{os.getuid()}").write_text("a file in the way")
    before = os.sched_getaffinity(0)
    with one_processor() as number:
        assert number is None and os.sched_getaffinity(0) == before
    assert "not kept to a processor" in caplog.text


@dataclass(frozen=True)
class _Task:
    name: str


def affinity_of_worker(_: object, task: _Task) -> tuple[int, frozenset[int]]:
    time.sleep(0.5)  # so that both workers are at work
    return os.getpid(), frozenset(os.sched_getaffinity(0))


@pytest.mark.slow
def test_ray_workers_keep_to_processors_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", f"{repository}{os.pathsep}{Path(__file__).parent}")  # to find this module
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # locks of its own
    found: list[tuple[int, frozenset[int]]] = []
    with running_ray("", 2):
        run_tasks(affinity_of_worker, None, [_Task(str(n)) for n in range(6)], workers=2, on_result=found.append)
    held = {pid: processors for pid, processors in found if len(processors) == 1}
    assert len(held) == len(set(held.values())) >= 1
