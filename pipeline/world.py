"""This process among all of a run: its rank, its memory allocator, and what all ranks agree on.

Three ways of starting are known: the variables of torchrun and the deepspeed launcher (RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT), those of Slurm's `srun` (SLURM_PROCID, SLURM_LOCALID, SLURM_NTASKS, SLURM_NODELIST), and
none: a world of one process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import os
import re
import socket
import time
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from mcjepa.pipeline.errors import UsageError

FIRST_PORT, PORTS = 20_000, 10_000
"""Ports that Slurm jobs meet at: below those that systems give to clients."""
_GLOO_THREAD, _GLOO_LOOK_S, _GLOO_REST_S = "pt_gloo_runloop", 0.005, 5.0
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
Fact = TypeVar("Fact")


@dataclass(frozen=True)
class World:
    """This process among all."""

    rank: int
    size: int
    local_rank: int
    device: torch.device


def first_host(nodelist: str) -> str:
    """First host of a Slurm node list.

    >>> first_host("gpu[003-007,12],login1"), first_host("n1,n2"), first_host("rack2-[09,11]-ib")
    ('gpu003', 'n1', 'rack2-09-ib')
    """
    first = re.split(r",(?![^\[]*\])", nodelist.strip())[0]
    return re.sub(r"\[([^\]\-,]+)[^\]]*\]", r"\1", first)


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What torchrun would have set, out of the variables of `srun`; empty where this is no task of a Slurm step.

    In a batch script itself, outside of `srun`, SLURM_NTASKS counts tasks that nobody has started: it is one process.

    Raises:
        UsageError: a variable that `srun` sets is absent.
    """
    step = environment.get("SLURM_STEP_ID", "")
    if "SLURM_PROCID" not in environment or ("SLURM_JOB_ID" in environment and not step.isdigit()):
        return {}
    tasks = environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS")
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    missing = [name for name, value in (("SLURM_NTASKS", tasks), ("SLURM_NODELIST", hosts)) if not value]
    missing += [name for name in ("SLURM_LOCALID",) if name not in environment]
    if missing or not tasks:
        raise UsageError(
            f"SLURM_PROCID is set but {', '.join(missing)} is not, expected all that srun sets; start with srun, or "
            "set RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
        )
    job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or 0)
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": tasks,
        "MASTER_ADDR": first_host(hosts),
        "MASTER_PORT": str(FIRST_PORT + (job * 31 + int(step or 0)) % PORTS),
    }


def is_world_started(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started this process as a rank; the only task of a Slurm step may start ranks itself.

    Such a task is also the shell of `salloc` or `srun --pty`.
    """
    return "RANK" in environment or slurm_variables(environment).get("WORLD_SIZE", "1") != "1"


def adopt_world(environment: MutableMapping[str, str]) -> None:
    """Fills in RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT where they are absent.

    Raises:
        UsageError: they are incomplete.
    """
    if "RANK" not in environment:
        for name, value in slurm_variables(environment).items():
            environment.setdefault(name, value)
    size = environment.get("WORLD_SIZE", "1")
    if size != "1":
        missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise UsageError(f"WORLD_SIZE is {size} but {', '.join(missing)} is not set; start with torchrun")
        if "LOCAL_RANK" not in environment and torch.cuda.is_available():
            raise UsageError(f"WORLD_SIZE is {size} but LOCAL_RANK is not set, expected this process's GPU; set it")
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in defaults.items():
        environment.setdefault(name, value)
    if "MASTER_PORT" not in environment:
        environment["MASTER_PORT"] = str(_free_port())


def ranks_here(world_size: int) -> int:
    """Ranks that share this machine, as launchers tell; the whole world where they do not."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(name, "").isdigit():
            return max(int(os.environ[name]), 1)
    return world_size


def own_cores(world_size: int) -> int:
    """Processors of this rank: its share of those that this process may use, or those that Slurm has given its task.

    Where Slurm binds tasks (task/affinity, cgroups), a process sees those of its own task, and not the node's.
    """
    usable = len(os.sched_getaffinity(0))
    share = usable // ranks_here(world_size)
    told, step = os.environ.get("SLURM_CPUS_PER_TASK", ""), os.environ.get("SLURM_STEP_ID", "")
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS") or os.environ.get("SLURM_NTASKS")
    if told.isdigit() and step.isdigit() and tasks == str(world_size):  # else several ranks may share a task
        share = max(share, min(int(told), usable))
    return max(share, 1)


def gpu_index(local_rank: int, ranks: int, visible: int, environment: Mapping[str, str]) -> int:
    """Which of the GPUs that this process sees is its own.

    Where it sees as many as there are ranks on the node, that of its number. Where it sees fewer, something has bound
    GPUs to tasks: Slurm then tells how many the step has on this node (SLURM_GPUS_ON_NODE), others set
    CUDA_VISIBLE_DEVICES for each process.

    Args:
        local_rank: of this process.
        ranks: on this node.
        visible: GPUs that torch sees here, 1 or more.
        environment: of this process.

    Raises:
        UsageError: there are more ranks than GPUs.

    >>> gpu_index(3, 8, 8, {}), gpu_index(3, 8, 1, {"SLURM_GPUS_ON_NODE": "8"})
    (3, 0)
    """
    told = environment.get("SLURM_GPUS_ON_NODE", "")
    bound = int(told) if told.isdigit() else ranks if environment.get("CUDA_VISIBLE_DEVICES", "").isdigit() else 0
    if max(visible, bound) < ranks:
        raise UsageError(
            f"{ranks} ranks on {socket.gethostname()}, which has {max(visible, bound)} GPU(s) for them, expected one "
            "for each; start fewer ranks (tasks_per_node of the site, --ranks), or ask for more GPUs"
        )
    return local_rank % visible


def check_gpus(wanted: str, visible: int) -> None:
    """Refuses to compute on the CPU where GPUs were asked for.

    Args:
        wanted: GPUs a node that the site asks for (MCJEPA_GPUS); empty: none.
        visible: GPUs that torch sees here.

    Raises:
        UsageError: it sees none.
    """
    if not wanted.isdigit() or int(wanted) == 0 or visible:
        return
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    built = f"ROCm {torch.version.hip}" if torch.version.hip else built
    raise UsageError(
        f"torch sees no GPU on {socket.gethostname()}, expected {wanted}, which the site asks for; {_driver()}, torch "
        f"{torch.__version__} is built for {built}, CUDA_VISIBLE_DEVICES is "
        f"{os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}; install a build for that driver, have the node mended, "
        "or set gpus: 0 in the site file"
    )


def _driver() -> str:
    """The GPU driver that is loaded here, in words."""
    for name, path in (("NVIDIA", "/proc/driver/nvidia/version"), ("AMD", "/sys/module/amdgpu/version")):
        with contextlib.suppress(OSError):
            text = Path(path).read_text(encoding="utf-8").splitlines()[0]
            version = re.search(r"\d+\.[\d.]+", text)
            return f"the {name} driver is {version.group(0) if version else text}"
    return "no GPU driver is loaded"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def disable_malloc_trim() -> None:
    """Asks the C library to keep freed memory, in this process and those forked from it; does nothing without glibc.

    Images and the temporaries of small steps are above the limit from which glibc maps and unmaps every block by
    itself: faulting its pages in again costs a third of a small step on CPUs, and as much of decoding in loaders.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def broadcast_from_rank0(fact: Fact, world: World) -> Fact:
    """Rank 0's fact on every rank; for small facts, between steps."""
    if world.size == 1:
        return fact
    facts: list[Any] = [fact]
    dist.broadcast_object_list(facts, src=0, device=world.device)
    told: Fact = facts[0]
    return told


def gather_all(fact: Fact, world: World) -> list[Fact]:
    """Every rank's fact, by rank, on every rank."""
    if world.size == 1:
        return [fact]
    facts: list[Any] = [None] * world.size
    dist.all_gather_object(facts, fact)
    return facts


def rest_at_exit() -> None:
    """Has this process let gloo's threads come to rest when it ends; for each that joins a process group, once or more.

    A thread of gloo that lets go of the tensors of the last collective asks for Python's lock. If the interpreter is
    being taken down by then, Python ends that thread within a destructor of C++, which aborts the process with
    "terminate called without an active exception", after all of its work is done. Leaving the group does not join the
    threads, since DeepSpeed's parameters hold it.
    """
    atexit.unregister(_let_gloo_rest)
    atexit.register(_let_gloo_rest)


def _let_gloo_rest() -> None:
    """Returns once gloo's threads sleep and have slept between two looks, or after some seconds."""
    end, before = time.monotonic() + _GLOO_REST_S, None
    while (seen := _gloo_threads()) and time.monotonic() < end:
        if seen == before and all(state.startswith("S") for state, *_ in seen.values()):
            return
        before = seen
        time.sleep(_GLOO_LOOK_S)  # without Python's lock: whoever waits for it comes on


def _gloo_threads() -> dict[str, list[str]]:
    """State, and switches of its processor so far, of each thread of gloo that runs collectives, by number."""
    threads = {}
    for task in Path("/proc/self/task").glob("*"):
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text().strip() == _GLOO_THREAD:
                told = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
                threads[task.name] = [
                    told[name].strip() for name in ("State", "voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")
                ]
    return threads
