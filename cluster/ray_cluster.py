"""A Ray cluster made of the nodes of a job, one worker a node, and gone with it.

Rank 0 starts the head, the others join it; when all are there, rank 0 runs the command with RAY_ADDRESS set. Ray runs
in the foreground (`ray start --block`) in a process group of its own, with ports of its own, a short folder below /tmp
and a token of its own (RAY_AUTH_TOKEN, chosen by the job's script), and is never stopped by `ray stop`, which would
end every Ray of the machine.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.local import death_signal, end_processes
from mcjepa.cluster.rendezvous import free_port, own_address
from mcjepa.cluster.site import RayConfig

STARTED = "Ray runtime started"
"""What `ray start` prints when the node has joined."""
STOP_S = 3.0
POLL_S = 0.2
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_USAGE_STATS_REPORT_URL": "http://127.0.0.1:9/",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class RayMember:
    """This node among those of the job."""

    rank: int
    nodes: int
    head: str
    """Host name of rank 0."""
    port: int
    """That all join at."""
    job: str
    seed: int
    """The job's number, for ports."""
    interface: str = ""


class RayNode:
    """Ray of this node; a context manager.

    Args:
        place: where we are.
        config: of the site.
        cpus: processors that it offers.
        marks: folder that all nodes reach; each node puts a file there when it has joined.
    """

    def __init__(self, place: RayMember, config: RayConfig, cpus: int, marks: Path) -> None:
        self._place, self._config, self._cpus, self._marks = place, config, cpus, marks
        self._folder = Path(f"/tmp/mcjepa-ray-{place.job}-{place.rank}")  # sockets below it: at most 107 characters
        self._process: subprocess.Popen[bytes] | None = None
        self.address = f"{own_address(place.interface) if place.rank == 0 else place.head}:{place.port}"

    def __enter__(self) -> RayNode:
        shutil.rmtree(self._folder, ignore_errors=True)  # of a start that was killed on this node
        self._folder.mkdir(mode=0o700)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._words(),
                env={**os.environ, **QUIET},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=death_signal(signal.SIGTERM),  # on which it ends all of its processes
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process:
            end_processes([self._process], STOP_S, signal.SIGTERM)
        self._mark(self._place.rank).unlink(missing_ok=True)
        shutil.rmtree(self._folder, ignore_errors=True)

    def wait_joined(self, stopped: Callable[[], bool]) -> None:
        """Waits until this node has joined and, on rank 0, until all have.

        Raises:
            LaunchError: not within the site's `ray.start_s`.
        """
        deadline = time.monotonic() + self._config.start_s
        while not stopped():
            if STARTED in self._output():
                self._mark(self._place.rank).touch()
                missing = [rank for rank in range(self._place.nodes) if not self._mark(rank).exists()]
                if self._place.rank or not missing:
                    return
            if not self.alive() or time.monotonic() > deadline:
                raise LaunchError(
                    f"Ray of node {self._place.rank} of {self._place.nodes} on {socket.gethostname()} "
                    f"{'has ended' if not self.alive() else f'was not complete after {self._config.start_s:g} s'}, "
                    f"expected all to join {self.address}; it said: {self._output()[-600:]!r}"
                )
            time.sleep(POLL_S)

    def alive(self) -> bool:
        """Whether Ray still runs here."""
        return self._process is not None and self._process.poll() is None

    @property
    def _log(self) -> Path:
        return self._folder / "start.log"

    def _output(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._log.read_text(encoding="utf-8", errors="replace")
        return ""

    def _mark(self, rank: int) -> Path:
        return self._marks / f"{self._place.job}.ray-{rank}"

    def _words(self) -> Sequence[str]:
        place = self._place
        ports = (free_port(place.seed + 101 * (place.rank + 1) + number) for number in range(3))
        common = [
            str(Path(sys.executable).with_name("ray")), "start", "--block",
            f"--node-ip-address={own_address(place.interface)}", f"--num-cpus={self._cpus}", "--num-gpus=0",
            f"--object-store-memory={self._config.object_store_mb << 20}", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={next(ports)}", f"--dashboard-agent-grpc-port={next(ports)}",
            "--min-worker-port=0", "--max-worker-port=0",
        ]  # fmt: skip
        if place.rank:
            return [*common, f"--address={self.address}"]
        head = [f"--port={place.port}", f"--ray-client-server-port={next(ports)}", "--include-dashboard=false"]
        return [*common, "--head", *head, f"--temp-dir={self._folder}/ray"]
