"""Interrupt a job on a private Ray at random moments: nothing of ours is alive 10 s later, no folder is left.

    python -m tests.rounds.interruptions ROUNDS [SEED]

Every third round kills the driver (-9), the others interrupt it (Ctrl-C); then the same job is run to its end. A line a
round: its seed, the seconds since the machine's start (as dmesg counts), what the driver was at, how it ended and how
long after, and what was wrong. The last line is JSON: rounds, and those that left something, crashed, or ended as
another dataset.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.job import Stage
from mcjepa.data_prep.workers.guardian import PREFIX
from tests.rounds.kill_rounds import make_corpus

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 10.0
JOB_LIMIT_S = 300.0
LINES = 30
"""More than a driver writes: events of its stages, a shard each."""
STAGES = get_args(Stage)
TOO_BUSY = "Ray did not start in"
LAST_WORDS = ("KeyboardInterrupt", TOO_BUSY)
"""Last words of a driver that ended as it should."""


def left_behind(mark: str, folder: Path) -> list[str]:
    """Processes that work below the folder or whose first environment has the mark, but zombies.

    Their numbers, states, parents and command lines. Titles of Ray's processes may be written over the mark.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            here = str(folder) in os.readlink(entry / "cwd") or mark.encode() in (entry / "environ").read_bytes()
            if here and state != "Z":
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"{entry.name} {state} child of {parent}: {command[:160].strip()}")
        except OSError:
            continue
    return found


def wait_for_moment(rng: random.Random, said: Path, job: subprocess.Popen[bytes]) -> None:
    """Wait until the driver has written a random number of lines, and a random time more: long ones for its start."""
    early = rng.random() < 0.4
    lines, longest_s = (rng.randrange(4), 8.0) if early else (rng.randrange(LINES), 1.0)
    while said.read_bytes().count(b"\n") < lines and job.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, longest_s))


def run_again(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the job to its end; once more where the machine is too busy for Ray's own limit of its start."""
    for _ in range(3):
        again = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=JOB_LIMIT_S
        )
        if TOO_BUSY not in again.stderr:
            break
    return again


def run_round(seed: int, corpus: Path, folder: Path) -> tuple[list[str], str, str]:
    """Problems; the id of the dataset in the end; what the driver was at, and how it ended."""
    rng = random.Random(seed)
    mark = f"MCJEPA_ROUND={os.getpid()}-{seed}"
    temporary = Path(tempfile.mkdtemp(prefix=f"r{seed}-", dir="/tmp"))
    environment = {**os.environ, "MCJEPA_ROUND": mark.partition("=")[2], "TMPDIR": str(temporary)}
    environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.rounds.prep_driver", "private", str(corpus), str(folder)]
    said = temporary / "said"
    number = signal.SIGKILL if seed % 3 == 0 else signal.SIGINT
    with said.open("wb") as out:
        job = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=out, stderr=subprocess.STDOUT)
        wait_for_moment(rng, said, job)
        job.send_signal(number)  # nothing, if it has ended
        ended = time.monotonic()
        job.wait(JOB_LIMIT_S)
        took_s = time.monotonic() - ended
    left = left_behind(mark, temporary)
    while left and time.monotonic() - ended < LIMIT_S:
        time.sleep(0.1)
        left = left_behind(mark, temporary)
    lines = said.read_text(errors="replace").splitlines()
    stage = next((line for line in reversed(lines) if line.startswith(STAGES)), "before its first word")
    problems = [f"alive after {LIMIT_S:.0f} s: {left}"] if left else []
    folders = [path for path in temporary.glob(f"{PREFIX}*") if path.name != f"{PREFIX}processors-{os.getuid()}"]
    problems += [f"left the folder {path}: {os.listdir(path)}" for path in folders]
    if job.returncode not in (0, -number) and not any(word in line for line in lines[-1:] for word in LAST_WORDS):
        problems.append(f"the driver crashed ({job.returncode}): {' | '.join(lines[-8:])}")
    how = f"{stage}; ended {job.returncode} after {took_s:.1f} s"
    again = run_again(command, environment)
    if again.returncode:
        return [*problems, f"the rerun ended with {again.returncode}: {again.stderr[-300:]}"], "", how
    shutil.rmtree(temporary)
    location = str(folder / "clips")
    return [*problems, *audit_dataset(location).problems], read_manifest(location).dataset_id, how


def main() -> None:
    """Run the rounds and print."""
    rounds, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    bad: dict[int, list[str]] = {}
    identities: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        for seed in range(first, first + rounds):
            problems, identity, how = run_round(seed, corpus, Path(folder) / f"out-{seed}")
            identities.add(identity)
            if problems:
                bad[seed] = problems
            print(seed, f"{time.monotonic():.0f} s", how, problems or "clean", flush=True)
    print(json.dumps({"rounds": rounds, "bad": bad, "datasets": len(identities)}))


if __name__ == "__main__":
    main()
