"""Kill -9 of a process of a preparation job at a random time, on two Ray nodes; then the job must come out the same.

A round starts the job as a process of its own (`python -m tests.rounds.prep_driver`), kills one victim some time
after some shard, and starts the job again if it did not finish. Victims: a decode child, a Ray worker, the
second node's raylet, the driver.
"""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.workers.ray_session import PRIVATE, QUIET
from tests.processes import command_line

VICTIMS = ("decoder", "worker", "raylet", "driver")
REPOSITORY = Path(__file__).resolve().parents[2]
VIDEOS = 20
ATTEMPTS = 4
JOB_LIMIT_S = 120.0


@dataclass(frozen=True)
class Round:
    """What a round has shown."""

    seed: int
    victim: str
    after_shards: int
    delay_s: float
    killed: bool
    """False: the job was faster than the delay."""
    starts: int
    """How often the driver was started."""
    dataset_id: str
    problems: tuple[str, ...]


def make_corpus(folder: Path, videos: int = VIDEOS, frames: int = 60) -> Path:
    """Small moving textures, and two files that are no videos."""
    import numpy as np

    folder.mkdir(parents=True)
    for number in range(videos):
        noise = np.random.default_rng(number).integers(0, 255, (128, 128 + 2 * frames, 3), np.uint8)
        clip = np.stack([noise[:, 2 * t : 2 * t + 128] for t in range(frames)])
        write_mp4(folder / f"{number:03d}.mp4", clip, 25, 28)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video\n" * 99)
    return folder


def dataset(corpus: Path) -> DatasetConfig:
    """One input a shard, so that there are many moments to be killed at."""
    return DatasetConfig(
        kind="clip",
        corpora=(CorpusConfig(reader="videos", path=str(corpus)),),
        short_side=96,
        clip_stride=1,
        inputs_per_shard=1,
    )


class TwoNodes:
    """A Ray of two nodes with one processor each on the loopback interface; a context manager."""

    def __enter__(self) -> TwoNodes:
        """Start both."""
        os.environ.update(QUIET | PRIVATE, RAY_AUTH_TOKEN=os.environ.get("RAY_AUTH_TOKEN", secrets.token_hex(32)))
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100 << 20}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._second: Any = None
        self.mend()
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop both."""
        self._cluster.shutdown()

    @property
    def address(self) -> str:
        """For `prep.ray_address`."""
        return str(self._cluster.address)

    @property
    def second_raylet(self) -> int:
        """Process id of the second node's raylet."""
        return int(self._second.all_processes["raylet"][0].process.pid)

    def mend(self) -> None:
        """Start the second node again when its raylet is gone."""
        if self._second is not None:
            if psutil.pid_exists(self.second_raylet) and not _is_zombie(self.second_raylet):
                return
            self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._cluster.add_node(num_cpus=1, object_store_memory=100 << 20)

    def processes(self) -> list[psutil.Process]:
        """Everything that both raylets have started."""
        nodes = [n for n in (self._cluster.head_node, self._second) if n]
        found: list[psutil.Process] = []
        for node in nodes:
            pid = node.all_processes["raylet"][0].process.pid
            if psutil.pid_exists(pid):
                found += psutil.Process(pid).children(recursive=True)
        return found


def run_round(seed: int, nodes: TwoNodes, corpus: Path, root: Path) -> Round:
    """One job with one kill; everything random comes from the seed."""
    rng = random.Random(seed)
    victim, shards, delay = VICTIMS[seed % len(VICTIMS)], rng.randint(0, VIDEOS - 5), rng.uniform(0.0, 0.5)
    job = start_job(nodes.address, corpus, root)
    killed = False
    for line in job.stdout or ():
        if line.startswith(f"shards {shards} "):
            break
    time.sleep(delay)
    if job.poll() is None:
        killed = _kill(victim, job, nodes, rng)
    starts = 1
    code = _finish(job)
    while code != 0 and starts < ATTEMPTS:
        nodes.mend()
        job = start_job(nodes.address, corpus, root)
        starts += 1
        code = _finish(job)
    nodes.mend()
    location = str(root / "clips")
    problems = () if code == 0 else (f"the job ended with code {code}",)
    if not problems:
        problems = audit_dataset(location).problems
    identity = read_manifest(location).dataset_id if code == 0 else ""
    return Round(seed, victim, shards, delay, killed, starts, identity, problems)


def start_job(address: str, corpus: Path, root: Path) -> subprocess.Popen[str]:
    """The job as a process of its own; its standard output has a line an event."""
    command = [sys.executable, "-m", "tests.rounds.prep_driver", address, str(corpus), str(root)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def _finish(job: subprocess.Popen[str]) -> int:
    try:
        job.communicate(timeout=JOB_LIMIT_S)
    except subprocess.TimeoutExpired:
        job.kill()
        job.communicate()
    return job.returncode


def _kill(victim: str, job: subprocess.Popen[str], nodes: TwoNodes, rng: random.Random) -> bool:
    if victim == "driver":
        job.kill()
        return True
    if victim == "raylet":
        os.kill(nodes.second_raylet, 9)
        return True
    mark = "mcjepa.data_prep.decode.child" if victim == "decoder" else "ray::make_shard"
    chosen = [p for p in nodes.processes() if mark in command_line(p)]
    if not chosen:
        return False
    try:
        rng.choice(chosen).kill()
    except psutil.NoSuchProcess:
        return False
    return True


def _is_zombie(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
