"""Rounds of a training that meets it all: kill -9, damaged newest checkpoint, full disk, second writer, MLflow away.

    python -m tests.rounds.train_drill ROUNDS [SEED [FOLDER]]

A run of two ranks (CPU, fp32) lies on a small tmpfs, or every other round on a real S3 server with its scratch folder
on that tmpfs. Its first two starts are disturbed at random moments and killed; then the same command is given until it
has finished. In the end there must be one run, here and in MLflow, with the losses and weights of an undisturbed run in
every bit. Processes are forked from one that has imported everything: a start of the command line costs a second and
not ten. The last line is JSON: rounds, how often each disturbance met its moment, and what went wrong by seed. Logs are
kept where a folder is named.
"""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from mcjepa.cluster.rendezvous import free_port
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.cli.main import main as command_line
from mcjepa.pipeline.run.folder import METRICS, read_metrics
from tests.rounds.drill_checks import find_problems
from tests.rounds.train_kills import make_recipe
from tests.servers.mlflow_server import MlflowServer
from tests.servers.seaweed import BUCKET, running_seaweed

STEPS, SAVE_EVERY, RANKS = 16, 2, 2
FIRST_SAVES, SECOND_SAVES = 4, 3
"""A start is killed before so many of its saves."""
DISK_MIB = 48
LIMIT_S = 240.0
MOST_STARTS = 6
IMPORTED = [
    "torch._inductor.compile_fx", "deepspeed.runtime.zero.muon.muon_optimizer", "mlflow.tracking", "boto3",
    "mcjepa.pipeline.train", "mcjepa.pipeline.cli.train",
    "mcjepa.pipeline.stages.training", "mcjepa.pipeline.tracking.mlflow", "mcjepa.data_prep.storage.s3",
    "tests.rounds.drill_checks",
]  # fmt: skip
SETTINGS = {"OMP_NUM_THREADS": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
FORKS = multiprocessing.get_context("forkserver")


def run_command(words: list[str], log: str, variables: dict[str, str]) -> None:
    """`mcjepa` in a forked process that writes to a log."""
    os.environ.update(variables)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(descriptor, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(command_line(words))


class Start:
    """One start of the command, as many processes as ranks."""

    def __init__(self, words: list[str], log: Path, ranks: int = RANKS) -> None:
        self.log, self._processes = log, list[BaseProcess]()
        world = {
            "WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port(random.randrange(99))),
        }
        for rank in range(ranks):
            variables = {**world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            variables |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
            process = FORKS.Process(target=run_command, args=(words, str(log), variables))
            process.start()
            self._processes.append(process)

    def said(self) -> str:
        """Its output so far."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def steps(self) -> bool:
        """Whether it trains."""
        return "train  steps" in self.said()

    def saves(self) -> int:
        """Checkpoints that it has saved, or could not."""
        return len(set(re.findall(r"checkpoint of step (\d+)", self.said())))

    def send(self, number: int) -> int:
        """Sends a signal to all that live; how many."""
        alive = [p for p in self._processes if p.is_alive()]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)
        return len(alive)

    def kill(self, rank: int) -> bool:
        """Kill -9 of a rank; whether it lived."""
        alive = self._processes[rank].is_alive()
        self._processes[rank].kill()
        return alive

    def wait_for(self, come: Callable[[], bool]) -> None:
        """Returns when something has come, or the command has ended."""
        deadline = time.monotonic() + LIMIT_S
        while not come() and any(p.is_alive() for p in self._processes) and time.monotonic() < deadline:
            time.sleep(0.02)

    def wait(self) -> int:
        """The exit code of rank 0, or of the first rank that failed."""
        deadline = time.monotonic() + LIMIT_S
        for process in self._processes:
            process.join(max(deadline - time.monotonic(), 0.1))
            if process.is_alive():
                self.send(signal.SIGKILL)
                process.join()
        codes = [p.exitcode or 0 for p in self._processes]
        return next((code for code in codes if code), 0)


class SmallDisk:
    """A tmpfs, filled up and freed at will."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "none", str(folder)], check=True)
        self._ballast = folder / "ballast"
        self._freeing: threading.Timer | None = None

    def fill(self, for_s: float) -> None:
        """Leaves no page free for so long."""
        with self._ballast.open("ab", buffering=0) as file:
            size = 1 << 20
            while size >= 4096:
                try:
                    if file.write(b"\0" * size) < size:
                        size //= 2
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        self._freeing = threading.Timer(for_s, self._ballast.unlink)
        self._freeing.start()

    def settle(self) -> None:
        """Waits until there is room."""
        if self._freeing:
            self._freeing.join()


class Round:
    """One run and what happens to it; everything random comes from the seed.

    Args:
        seed: odd ones keep the run on S3.
        recipe: of the run.
        folder: for what is not on the small disk.
        mlflow: the server, running.
        step_s: how long a step takes here, which the pauses go by.
    """

    def __init__(self, seed: int, recipe: Path, folder: Path, mlflow: MlflowServer, step_s: float) -> None:
        self._rng, self.seed, self._recipe, self._folder = random.Random(seed), seed, recipe, folder
        self.mlflow, self._step_s = mlflow, step_s
        folder.mkdir(parents=True)
        self._disk_folder = folder / "disk"
        self._disk = SmallDisk(self._disk_folder)
        self.remote = seed % 2 == 1
        self.location = f"s3://{BUCKET}/drill-{os.getpid()}-{seed}" if self.remote else str(self._disk_folder / "run")
        self.experiment = f"round-{seed}"
        self.path = self._disk_folder / "run"
        self.met: Counter[str] = Counter()
        self.problems: list[str] = []
        self._starts = 0
        self._damage_due = True
        self._mlflow_away = ""

    def run(self) -> None:
        """All of it."""
        kinds = ["full", "second", "mlflow"]
        self._rng.shuffle(kinds)
        first = self._rng.randint(1, 2)
        for events, saves in ((kinds[:first], FIRST_SAVES), (kinds[first:], SECOND_SAVES)):
            if self._disturbed_start(events, saves) == 0:
                break  # it was over before the kill
            self._damage()
        code = 1
        while code and self._starts < MOST_STARTS:
            if self._rng.random() < 0.7:
                self.bring_mlflow_back()
            code = self._explained(start := self._start(), killed=False)
        if code:
            self.problems.append(f"not finished after {self._starts} starts: {start.said()[-1500:]}")

    def words(self, scratch: Path) -> list[str]:
        """The command line."""
        return [
            "train", str(self._recipe), f"train.run={self.location}", f"tracking.uri={self.mlflow.uri}",
            f"tracking.experiment={self.experiment}", "tracking.close_s=2",
            *([f"train.checkpoint.scratch={scratch}"] if self.remote else []),
        ]  # fmt: skip

    def _start(self) -> Start:
        self._starts += 1
        if self.remote and self._rng.random() < 0.5:  # another machine
            self.path = self._disk_folder / f"scratch-{self._starts}"
        return Start(self.words(self.path), self._folder / f"start-{self._starts}.log")

    def _disturbed_start(self, events: list[str], saves: int) -> int:
        """Starts it, lets the events and then a kill happen, each a while after some save; its exit code."""
        start, rng = self._start(), self._rng
        acts = {"full": self._fill, "second": self._second, "mlflow": self._lose_mlflow}
        for after, event in zip(
            sorted(rng.choices(range(-1, saves), k=len(events) + 1)), [*events, "kill"], strict=True
        ):
            if after >= 0:  # else while it begins
                start.wait_for(lambda after=after: start.steps() and start.saves() >= after)
            time.sleep(rng.uniform(0, 1.0) * self._step_s * SAVE_EVERY)
            if event in acts:
                acts[event](start)
        killed = start.kill(rng.randrange(RANKS))
        self.met["kill"] += killed
        return self._explained(start, killed)

    def _explained(self, start: Start, killed: bool) -> int:
        """Waits; an end that nothing accounts for is a problem."""
        code = start.wait()
        self._disk.settle()
        said = start.said()
        if "Traceback" in said:
            self.problems.append(f"start {self._starts}: {said[said.index('Traceback') :][-1500:]}")
        if code and not killed and "o space left" not in said:
            self.problems.append(f"start {self._starts} ended with {code}: {said[-800:]}")
        return code

    def _fill(self, start: Start) -> None:
        self._disk.fill(self._rng.uniform(0.5, 4.0) * SAVE_EVERY * self._step_s)
        self.met["full disk"] += 1

    def _second(self, start: Start) -> None:
        """Another process group wants the same run while this one stands still."""
        start.wait_for(start.steps)
        if start.send(signal.SIGSTOP) < RANKS:
            start.send(signal.SIGCONT)
            return
        second = Start(self.words(self._folder / "second"), self._folder / f"second-{self._starts}.log", ranks=1)
        code = second.wait()
        start.send(signal.SIGCONT)
        self.met["second writer"] += 1
        if code != 3 or "is being written by process" not in second.said():
            self.problems.append(f"a second writer was not refused ({code}): {second.said()[-800:]}")

    def _lose_mlflow(self, start: Start) -> None:
        """Most often it hangs, which costs less here than to start it again, and is harder on exact records."""
        self._mlflow_away = "killed" if self._rng.random() < 0.2 else "hangs"
        self.mlflow.kill() if self._mlflow_away == "killed" else self.mlflow.send(signal.SIGSTOP)
        self.met["mlflow away"] += 1

    def bring_mlflow_back(self) -> None:
        """Starts or wakes the server, unless it runs."""
        if self._mlflow_away == "killed":
            self.mlflow.start(wait=False)
        elif self._mlflow_away:
            self.mlflow.send(signal.SIGCONT)
        self._mlflow_away = ""

    def _damage(self) -> None:
        """Damages the newest checkpoint that counts, once a round, where another one is there."""
        store = open_store(self.location)
        manifests = [key for key in store.list("checkpoints/step-") if key.endswith("/manifest.json")]
        if not self._damage_due or len(manifests) < 2:
            return
        self._damage_due = False
        files = [key for key in store.list(max(manifests).removesuffix("manifest.json")) if "/parts/" not in key]
        key = self._rng.choice(files)
        content = bytearray(store.read(key))
        kind = self._rng.choice(["bit", "cut", "absent"])
        if kind == "absent" and not key.endswith("manifest.json"):
            store.remove(key)
        elif kind == "bit" and not key.endswith("manifest.json"):
            content[self._rng.randrange(len(content))] ^= 1
            store.write(key, bytes(content))
        else:
            store.write(key, bytes(content[: len(content) // 2]))
        self.met["damage"] += 1

    def left(self) -> int:
        """Checkpoints that stepped aside."""
        keys = open_store(self.location).list("checkpoints/damaged-")
        return len({key.split("/")[1] for key in keys})


def undisturbed(root: Path) -> tuple[Path, Path, float]:
    """Recipe, run folder and seconds a step of a run that nothing happens to."""
    steps = {"steps": STEPS, "checkpoint": {"every_steps": SAVE_EVERY}}
    recipe, run = make_recipe(root, **steps), root / "whole"
    start = Start(["train", str(recipe), f"train.run={run}", "tracking.close_s=60"], root / "whole.log")
    if start.wait() != 0:
        raise SystemExit(start.said())
    return recipe, run, sum(r["seconds_per_step"] for r in read_metrics(run / METRICS)) / STEPS


def rounds(first: int, count: int, root: Path) -> Iterator[Round]:
    """Rounds of consecutive seeds; each ends with its checks."""
    recipe, whole, step_s = undisturbed(root)
    mlflow = MlflowServer(root / "mlflow")
    mlflow.start()
    try:
        for seed in range(first, first + count):
            found = Round(seed, recipe, root / f"round-{seed}", mlflow, step_s)
            found.run()
            found.bring_mlflow_back()
            mlflow.wait()
            found.problems = found.problems or find_problems(found, whole, STEPS)
            yield found
            subprocess.run(["umount", str(found.path.parent)], check=True)
    finally:
        mlflow.kill()


def main() -> None:
    """Runs the rounds and prints; in a mount namespace of its own, so that nothing stays mounted."""
    if "MCJEPA_DRILL_NAMESPACE" not in os.environ:
        words = ["unshare", "-m", sys.executable, "-m", "tests.rounds.train_drill", *sys.argv[1:]]
        os.execvpe("unshare", words, {**os.environ, **SETTINGS, "MCJEPA_DRILL_NAMESPACE": "1"})
    FORKS.set_forkserver_preload(IMPORTED)
    count, first, kept = [*sys.argv[1:], *["0", ""][len(sys.argv) - 2 :]]
    met: Counter[str] = Counter()
    bad: dict[int, list[str]] = {}
    with tempfile.TemporaryDirectory(prefix="drill-") as temporary, running_seaweed() as server:
        os.environ.update(server.variables)
        began = time.monotonic()
        for shown in rounds(int(first), int(count), Path(kept or temporary)):
            met += shown.met
            if shown.problems:
                bad[shown.seed] = shown.problems
            place, took = "s3" if shown.remote else "folder", time.monotonic() - began
            print(shown.seed, f"{place} {took:.0f} s", dict(shown.met), shown.problems or "clean", flush=True)
            began = time.monotonic()
    print(json.dumps({"rounds": int(count), "met": met, "bad": bad}))


if __name__ == "__main__":
    main()
