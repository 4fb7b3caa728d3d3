"""Where the tasks of a job meet, and the ports that they meet at."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from mcjepa.cluster.errors import LaunchError

FIRST_PORT, PORTS, STRIDE = 20_000, 10_000, 37
"""Ports below those that systems give to clients; jobs with neighbouring ids begin to look `STRIDE` apart."""


def free_port(seed: int, host: str = "") -> int:
    """A port of this machine that nobody listens on, looked for from a place that depends on the job.

    Args:
        seed: the job's number: two jobs that look at the same moment look at different ports.
        host: address to listen on; empty: all.

    Raises:
        LaunchError: none is free.
    """
    for number in range(PORTS):
        port = FIRST_PORT + (seed * STRIDE + number) % PORTS
        with socket.socket() as probe:
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise LaunchError(
        f"no port between {FIRST_PORT} and {FIRST_PORT + PORTS} is free on {socket.gethostname()}; end what holds them"
    )


def torch_variables(slurm: Mapping[str, str]) -> dict[str, str]:
    """What torch.distributed reads, out of what Slurm gives a task and the script has chosen.

    Args:
        slurm: environment of a task: SLURM_PROCID, SLURM_LOCALID, SLURM_NTASKS, and from the script MASTER_ADDR and
            MASTER_PORT.
    """
    nodes = int(slurm.get("SLURM_NNODES", "1"))
    tasks = int(slurm["SLURM_NTASKS"])
    return {
        "RANK": slurm["SLURM_PROCID"],
        "LOCAL_RANK": slurm["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "MASTER_ADDR": slurm["MASTER_ADDR"],
        "MASTER_PORT": slurm["MASTER_PORT"],
    }


def own_address(interface: str = "") -> str:
    """Address of this machine that others reach: of the interface, else of its host name.

    Raises:
        LaunchError: no such interface, or it has no address.
    """
    if not interface:
        return socket.gethostbyname(socket.gethostname())
    import psutil

    addresses = psutil.net_if_addrs()
    found = [a.address for a in addresses.get(interface, []) if a.family == socket.AF_INET]
    if not found:
        raise LaunchError(
            f"no IPv4 address on interface {interface!r} of {socket.gethostname()}, expected one of "
            f"{', '.join(sorted(addresses))}; correct `interface` in the site file"
        )
    return found[0]
