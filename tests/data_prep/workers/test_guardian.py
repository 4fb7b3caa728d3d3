"""What a private Ray leaves is ended and removed: after kill -9, by the next run, and where Ray itself hangs."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mcjepa.data_prep.workers import guardian as guardian_module
from mcjepa.data_prep.workers.guardian import EMPTY, LOCK_NAME, PREFIX, VARIABLE, Guardian, clear_abandoned
from tests.processes import wait_until_ended

LIMIT_S = 10.0
SLEEPER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]

DRIVER = """
import os, subprocess, sys, time
from mcjepa.data_prep.workers import guardian as guardian_module
from mcjepa.data_prep.workers.guardian import VARIABLE, Guardian
guardian = Guardian(sys.argv[1])
folder = guardian.folder
environment = {**os.environ, VARIABLE: folder}
sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
away = subprocess.Popen(sleeper, env=environment, start_new_session=True)
print(away.pid, folder, flush=True)
time.sleep(600)
"""

HANGING = """
import os, signal, sys, time
from pathlib import Path
from mcjepa.data_prep.workers import ray_session
from mcjepa.data_prep.workers import guardian as guardian_module
from mcjepa.data_prep.workers.guardian import _processes_of
class Wrong(Exception): pass
try:
    with ray_session.running_ray("", 1):
        folder = ray_session._OWN[0]
        stopped = [pid for pid in _processes_of(folder) if Path(f"/proc/{pid}/comm").read_text() == "gcs_server\\n"]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        raise Wrong
except Wrong:
    pass
print(len(stopped), folder, time.monotonic() - began)
"""

LEAVING = """
import os, signal, threading
from mcjepa.data_prep.workers import ray_session
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    with ray_session.running_ray("", 1):
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
except KeyboardInterrupt:
    print("interrupted")
"""


def wait_until_gone(path: str) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not Path(path).exists()


def test_a_killed_driver_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    pid, folder = driver.stdout.readline().split()
    away = psutil.Process(int(pid))
    driver.kill()
    driver.wait()
    assert wait_until_ended([away], within_s=LIMIT_S) == []
    assert wait_until_gone(folder)


def test_an_orderly_end_clears_once_and_may_be_asked_for_twice(tmp_path: Path) -> None:
    guardian = Guardian(str(tmp_path))
    folder = Path(guardian.folder)
    assert (folder / LOCK_NAME).exists() and folder.parent == tmp_path
    guardian.end()
    assert not folder.exists()
    (folder / "session_of_a_late_writer").mkdir(parents=True)
    guardian.end()
    assert not folder.exists()


def test_a_process_that_has_lost_its_words_is_known_by_its_folder(tmp_path: Path) -> None:
    """The titles of Ray's agents are written over their command lines and parts of their environments."""
    guardian = Guardian(str(tmp_path))
    (Path(guardian.folder) / EMPTY).mkdir()
    ours = subprocess.Popen(SLEEPER, cwd=Path(guardian.folder) / EMPTY)
    users = subprocess.Popen(SLEEPER, cwd=guardian.folder)  # somebody who looks at it
    guardian.end()
    assert ours.wait(LIMIT_S) == -signal.SIGKILL
    assert users.poll() is None
    users.kill()
    users.wait()


def test_a_driver_that_is_gone_before_its_guardian_stands_leaves_no_folder(tmp_path: Path) -> None:
    command = [sys.executable, "-I", guardian_module.__file__, str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    assert process.wait(LIMIT_S) == 0
    assert list(tmp_path.iterdir()) == []


def test_the_next_run_clears_what_is_dead_and_ours_only(tmp_path: Path) -> None:
    dead, used, foreign, unlocked, young = (
        tmp_path / name for name in (f"{PREFIX}dead", f"{PREFIX}used", "another", f"{PREFIX}unlocked", f"{PREFIX}young")
    )
    for path in (dead, used, foreign):
        path.mkdir()
        (path / LOCK_NAME).touch()
    (unlocked / "session_1").mkdir(parents=True)  # written after its guardian had gone
    young.mkdir()
    left = subprocess.Popen(SLEEPER, env={**os.environ, VARIABLE: str(dead)})
    others = [subprocess.Popen(SLEEPER, env={**os.environ, VARIABLE: name}) for name in (str(used), f"{dead}-2", "")]
    with (used / LOCK_NAME).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while any(b"sleep(600)" not in Path(f"/proc/{p.pid}/cmdline").read_bytes() for p in (left, *others)):
            time.sleep(0.01)  # not yet the new program
        clear_abandoned(str(tmp_path))
        assert left.wait(LIMIT_S) == -signal.SIGKILL
        assert [path.exists() for path in (dead, unlocked, used, foreign, young)] == [False] * 2 + [True] * 3
        assert [p.poll() for p in others] == [None] * 3
    for process in others:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_ray_that_hangs_is_ended_all_the_same() -> None:
    """Its own shutdown asks the stopped process for leave, and would wait for ever."""
    answer = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=240)
    assert answer.returncode == 0, answer.stderr[-2000:]
    stopped, folder, took_s = answer.stdout.split()
    assert int(stopped) >= 1 and not Path(folder).exists()
    assert float(took_s) < 30


@pytest.mark.slow
def test_an_interruption_while_ray_is_left_is_an_interruption() -> None:
    """Raised within Ray's own shutdown it would kill Ray's processes under it, which ends the driver without a word."""
    answer = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True, timeout=240)
    assert (answer.returncode, answer.stdout) == (0, "interrupted\n"), answer.stderr[-2000:]
