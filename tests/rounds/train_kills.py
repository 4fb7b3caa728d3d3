"""Kill -9 of a random rank of a training run at a random moment; then the losses must come out the same.

A round trains by the command line on two ranks (CPU, fp32), kills one of them while it computes, while a checkpoint is
being saved, or while one is being uploaded to s3, and gives the same command again until the run is finished. On s3
every start has a new scratch folder, as on another machine.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import open_store
from mcjepa.pipeline.run.folder import read_metrics
from tests.pipeline.small_recipe import write_small_recipe

REPOSITORY = Path(__file__).resolve().parents[2]
MOMENTS = ("step", "save", "upload")
STEPS, SAVE_EVERY, RANKS = 12, 3, 2
START_LIMIT_S = 240.0
ATTEMPTS = 4


@dataclass(frozen=True)
class KillRound:
    """What a round has shown."""

    seed: int
    moment: str
    killed_rank: int
    """-1: the moment never came."""
    starts: int
    losses: Mapping[int, float]
    """Of every step, as the finished run's log has them."""
    problem: str


def make_recipe(root: Path, **train: Any) -> Path:
    """A recipe of a very small model on small datasets."""
    checkpoint = {"every_steps": SAVE_EVERY, **train.pop("checkpoint", {})}
    own = {"steps": STEPS, "checkpoint": checkpoint, "engine": {"zero_stage": 2, "threads": 1}}
    return write_small_recipe(root, **{**own, **train})


class TrainingRun:
    """One run of a recipe, started as often as need be.

    Args:
        recipe: its recipe.
        location: `train.run`, a folder or an s3 prefix.
        folder: local folder for scratch folders and the MLflow file.
        variables: laid over the environment (the S3 server's).
    """

    def __init__(self, recipe: Path, location: str, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self.recipe, self.location, self._folder = recipe, location, folder
        self._variables, self.starts = dict(variables or {}), 0
        self.process: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def path(self) -> Path:
        """Where the run's files are while it runs."""
        return Path(self.location) if "://" not in self.location else self._folder / f"scratch-{self.starts}"

    def start(self, *overrides: str, ranks: int = RANKS) -> None:
        """Starts it as a process."""
        if self.starts and "://" in self.location:
            shutil.rmtree(self.path)
        self.starts += 1
        scratch = [f"train.checkpoint.scratch={self.path}"] if "://" in self.location else []
        settings = [f"train.run={self.location}", f"tracking.uri=sqlite:///{self._folder}/mlflow.db", *scratch]
        words = [sys.executable, "-m", "mcjepa", "train", "--ranks", str(ranks), str(self.recipe)]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"} | self._variables
        self.log = self._folder / f"start-{self.starts}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*words, *settings, *overrides], cwd=REPOSITORY, env=environment, stdout=log, stderr=log, text=True
            )

    def wait(self) -> int:
        """Its exit code; it is killed after the limit."""
        assert self.process
        try:
            return self.process.wait(START_LIMIT_S)
        except subprocess.TimeoutExpired:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.kill()
            return self.process.wait()

    def finish(self, *overrides: str, ranks: int = RANKS) -> int:
        """Starts it and waits."""
        self.start(*overrides, ranks=ranks)
        return self.wait()

    def ranks(self) -> dict[int, psutil.Process]:
        """The processes of its ranks."""
        assert self.process
        found: dict[int, psutil.Process] = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                if (rank := child.environ().get("RANK", "")).isdigit():
                    found[int(rank)] = child
            except psutil.Error:
                continue
        return found

    def steps_logged(self) -> int:
        """Steps in the log so far."""
        return len(read_metrics(self.path / "logs" / "metrics.jsonl"))

    def losses(self) -> dict[int, float]:
        """Loss of every step in the log."""
        return {int(r["step"]): r["loss"] for r in read_metrics(self.path / "logs" / "metrics.jsonl")}

    def wait_for(self, come: Callable[[], bool], poll_s: float) -> bool:
        """Waits for a moment; False where the run ends before it comes."""
        assert self.process
        deadline = time.monotonic() + START_LIMIT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if come():
                return True
            time.sleep(poll_s)
        return False

    def being_saved(self) -> bool:
        """Whether a checkpoint has files and no manifest yet."""
        folders = list((self.path / "checkpoints").glob("step-*"))
        return any(any(folder.iterdir()) and not (folder / "manifest.json").exists() for folder in folders)

    def being_uploaded(self) -> bool:
        """The same in the bucket."""
        try:
            keys = list(open_store(self.location).list("checkpoints/"))
        except DataError:
            return False
        steps = {key.split("/")[1] for key in keys}
        return any(f"checkpoints/{step}/manifest.json" not in keys for step in steps)


def run_round(seed: int, run: TrainingRun, moment: str) -> KillRound:
    """One kill and what it takes to finish; everything random comes from the seed."""
    rng = random.Random(seed)
    run.start()
    after = rng.randrange(STEPS - 2 if moment == "step" else STEPS - 2 * SAVE_EVERY)  # a save must be to come
    come = run.wait_for(lambda: run.steps_logged() >= after, 0.05)
    if moment == "step":
        time.sleep(rng.uniform(0.0, 0.5))
    else:
        come = run.wait_for(run.being_saved if moment == "save" else run.being_uploaded, 0.0005)
    victim = -1
    if come and (ranks := run.ranks()):
        victim = rng.choice(sorted(ranks))
        try:
            ranks[victim].kill()
        except psutil.NoSuchProcess:
            victim = -1
    code = run.wait()
    while code != 0 and run.starts < ATTEMPTS:
        code = run.finish()
    problem = "" if code == 0 else f"exit code {code}: {run.log.read_text()[-2000:]}"
    return KillRound(seed, moment, victim, run.starts, run.losses(), problem)
