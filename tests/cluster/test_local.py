"""Commands on this machine: exit codes, ranks, and nothing left behind after an interruption."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from mcjepa.cluster.local import Interrupted, run_command, run_ranks
from tests.processes import wait_until_ended


def script(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return [sys.executable, str(path)]


def test_the_exit_code_comes_back(tmp_path: Path) -> None:
    assert run_command(script(tmp_path / "three.py", "raise SystemExit(3)")) == 3
    assert run_command(script(tmp_path / "zero.py", "")) == 0


def test_variables_reach_the_command(tmp_path: Path) -> None:
    code = f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(os.environ['WORD'])"
    assert run_command(script(tmp_path / "s.py", code), environment={"WORD": "x"}) == 0
    assert (tmp_path / "seen").read_text() == "x"


def test_ranks_get_a_world_of_one_port(tmp_path: Path) -> None:
    code = (
        "import os\n"
        "names = ('WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')\n"
        f"open({str(tmp_path)!r} + '/rank' + os.environ['RANK'], 'w').write(' '.join(os.environ[n] for n in names))\n"
    )
    assert run_ranks(script(tmp_path / "s.py", code), 2) == 0
    worlds = [(tmp_path / f"rank{rank}").read_text().split() for rank in range(2)]
    assert [world[2] for world in worlds] == ["0", "1"]
    assert worlds[0][4] == worlds[1][4] and worlds[0][:2] == ["2", "2"] and worlds[0][3] == "127.0.0.1"


def test_one_dead_rank_ends_the_others(tmp_path: Path) -> None:
    code = "import os, time\nif os.environ['RANK'] == '1': raise SystemExit(5)\ntime.sleep(60)\n"
    started = time.monotonic()
    assert run_ranks(script(tmp_path / "s.py", code), 2) == 5
    assert time.monotonic() - started < 20


def test_an_interrupt_ends_a_deaf_tree_with_a_grandchild_in_a_session_of_its_own(tmp_path: Path) -> None:
    code = (
        "import os, signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')\n"
        "time.sleep(60)\n"
    )
    words = script(tmp_path / "deaf.py", code)

    def interrupt() -> None:
        while not (tmp_path / "pids").is_file() or not (tmp_path / "pids").read_text():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted):
        run_command(words, grace_s=0.5)
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    # Killed, that is: on a busy machine a process takes a moment to be gone.
    assert wait_until_ended([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], within_s=10) == []


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_schedulers_signal_lets_ranks_finish_within_their_grace(tmp_path: Path, number: int) -> None:
    code = (
        "import os, signal, sys, time\n"
        f"place = {str(tmp_path)!r} + '/' + os.environ['RANK']\n"
        "def stop(*_):\n"
        "    time.sleep(0.5)\n"
        "    open(place + '-saved', 'w').close()\n"
        "    sys.exit(130)\n"
        "signal.signal(signal.SIGINT, stop)\n"
        "open(place + '-ready', 'w').close()\n"
        "time.sleep(60)\n"
    )

    def send_when_ready() -> None:
        while len(list(tmp_path.glob("*-ready"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=send_when_ready, daemon=True).start()
    with pytest.raises(Interrupted):
        run_ranks(script(tmp_path / "s.py", code), 2, grace_s=30)
    assert len(list(tmp_path.glob("*-saved"))) == 2
