"""A run is claimed before anything of it is touched: one process group writes it, and all of its nodes see the folder.

    RUN/writers/000003.json      the lease: rank 0's machine and process, its last sign of life

Two jobs on one run would remove each other's checkpoints and write every record twice; a folder that only rank 0's node
has would be noticed at the first checkpoint, hours later.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store
from mcjepa.data_prep.storage.lease import Writer, newest_lease, sole_writer
from mcjepa.pipeline.errors import RunError
from mcjepa.pipeline.world import World, broadcast_from_rank0, gather_all

VISIBLE_WITHIN_S = 20.0
"""A network file system may show a new file that much later on another node."""


class RunClaim:
    """The right to write a run, held by rank 0 for all."""

    def __init__(self, store: Store, world: World, writer: Writer | None) -> None:
        self._store, self._world, self._writer = store, world, writer
        self.taken_over = writer.taken_over if writer else threading.Event()
        """Set where this rank knows that another process group has the run now."""

    def check(self) -> None:
        """Ends all ranks together when the run has been taken over; all call it.

        Raises:
            RunError: it has.
        """
        lost = broadcast_from_rank0(self._writer.successor() if self._writer else "", self._world)
        if lost:
            raise RunError(f"{self._store.location}: {lost}; expected one writer; leave the run to that one")


@contextlib.contextmanager
def claimed(store: Store, world: World) -> Iterator[RunClaim]:
    """Holds a run; every rank enters it at the same time.

    Raises:
        DataError: another process trains the run, or some rank does not see the folder that rank 0 writes to.
    """
    with contextlib.ExitStack() as stack:
        writer, problem = None, ""
        if world.rank == 0:
            try:
                writer = stack.enter_context(sole_writer(store, patient=True))
            except (DataError, OSError) as error:  # told to all: the other ranks are waiting
                problem = str(error)
        token, problem = broadcast_from_rank0((writer.token if writer else "", problem), world)
        if problem:
            raise DataError(problem)
        _require_shared(store, world, token)
        yield RunClaim(store, world, writer)


def _require_shared(store: Store, world: World, token: str) -> None:
    """Every rank must find rank 0's lease in what it takes for the run."""
    blind = "" if world.rank == 0 or _sees(store, token) else socket.gethostname()
    findings = gather_all((socket.gethostname(), blind), world)
    hosts = list(dict.fromkeys(host for _, host in findings if host))
    if hosts:
        raise DataError(
            f"{store.location} on {', '.join(hosts)} is not what rank 0 on {findings[0][0]} writes to, expected one "
            "folder that all nodes share; set train.run to a folder on a shared file system, or to s3://BUCKET/PREFIX"
        )


def _sees(store: Store, token: str) -> bool:
    deadline = time.monotonic() + VISIBLE_WITHIN_S
    while True:
        with contextlib.suppress(DataError, OSError):
            lease = newest_lease(store)
            if lease and lease.token == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
