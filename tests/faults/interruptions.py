"""Interrupt a job on a private Ray at random moments: nothing of ours is alive 10 s later, no folder is left.

    python -m tests.faults.interruptions ROUNDS [SEED]

Every third round kills the driver (-9), the others interrupt it (Ctrl-C); then the same job is run to its end. The last
line is JSON: rounds, and those that left something or ended as another dataset.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.manifest import read_manifest
from tests.faults.kill_rounds import make_corpus

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 10.0
JOB_LIMIT_S = 300.0


def left_behind(mark: str) -> list[int]:
    """Processes whose first environment has the mark, but zombies."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            alive = (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            if alive and mark.encode() in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def run_round(seed: int, corpus: Path, folder: Path) -> tuple[list[str], str]:
    """Problems, and the id of the dataset in the end."""
    rng = random.Random(seed)
    mark = f"MCJEPA_ROUND={os.getpid()}-{seed}"
    temporary = Path(tempfile.mkdtemp(prefix=f"r{seed}-", dir="/tmp"))
    environment = {**os.environ, "MCJEPA_ROUND": mark.partition("=")[2], "TMPDIR": str(temporary)}
    environment = {name: value for name, value in environment.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.faults.prep_driver", "", str(corpus), str(folder)]
    job = subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(rng.uniform(0.5, 12.0))
    job.send_signal(signal.SIGKILL if seed % 3 == 0 else signal.SIGINT)
    ended = time.monotonic()
    job.wait(JOB_LIMIT_S)
    left: list[int] = left_behind(mark)
    while left and time.monotonic() - ended < LIMIT_S:
        time.sleep(0.1)
        left = left_behind(mark)
    problems = [f"alive after {LIMIT_S:.0f} s: {left}"] if left else []
    problems += [f"left the folder {path}" for path in temporary.glob("mcjepa-*") if (path / "lock").exists()]
    again = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=JOB_LIMIT_S
    )
    if again.returncode:
        return [*problems, f"the rerun ended with {again.returncode}: {again.stderr[-300:]}"], ""
    location = str(folder / "clips")
    return [*problems, *audit_dataset(location).problems], read_manifest(location).dataset_id


def main() -> None:
    """Run the rounds and print."""
    rounds, first = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    bad: dict[int, list[str]] = {}
    identities: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        corpus = make_corpus(Path(folder) / "corpus")
        for seed in range(first, first + rounds):
            problems, identity = run_round(seed, corpus, Path(folder) / f"out-{seed}")
            identities.add(identity)
            if problems:
                bad[seed] = problems
            print(seed, problems or "clean", flush=True)
    print(json.dumps({"rounds": rounds, "bad": bad, "datasets": len(identities)}))


if __name__ == "__main__":
    main()
