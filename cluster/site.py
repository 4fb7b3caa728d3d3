"""A site: where stages run. The only place for names of partitions, accounts, endpoints, modules and folders.

A site file is YAML, validated like a recipe:

    kind: slurm
    default: {account: vision, partition: gpu, gpus: "a100:8", cpus_per_task: 12, time_min: 1440}
    prep: {partition: cpu, gpus: 0, cpus_per_task: 64}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from mcjepa.cluster.errors import LaunchError

Stage = Literal["prep", "train", "eval"]
STAGES: tuple[Stage, ...] = ("prep", "train", "eval")
SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL$|ACCESS_KEY|API_KEY|PRIVATE_KEY", re.IGNORECASE)
GpuOption = Literal["gpus-per-node", "gres", "gpus-per-task"]
OWNED_OPTIONS = {
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket", "ntasks-per-gpu"), "gpus"),
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-socket"), "tasks_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu", "mincpus"), "cpus_per_task"),
    **dict.fromkeys(("mem", "mem-per-gpu"), "memory_gb"),
    **{name: name for name in ("partition", "account", "qos", "constraint", "nodes", "exclusive")},
    **{"mem-per-cpu": "memory_per_cpu_gb", "time": "time_min"},
    **dict.fromkeys(
        ("array", "comment", "dependency", "error", "export", "export-file", "get-user-env", "job-name",
         "kill-on-invalid-dep", "no-requeue", "open-mode", "output", "requeue", "signal", "wait", "wrap"), "",
    ),
}  # fmt: skip
"""Options of sbatch that may not be among `options`, and the key that stands for each; empty: ours alone."""
STOPPING_S = 10
"""Of the grace time, what is kept for ending processes and queueing the job again."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks of the scheduler; what is not given here comes from the site's `default`, then from these."""

    partition: str | None = None
    """Slurm partition; none: the cluster's default."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that nodes must have."""
    nodes: int | None = None
    """Nodes of a job; `--nodes` on the command line goes before. Default 1."""
    gpus: int | str | None = None
    """GPUs a node: how many, or of which type, e.g. a100:8. Default 0."""
    gpus_by: GpuOption | None = None
    """Option of sbatch that asks for them. Default gpus-per-node; some clusters take gres or gpus-per-task only."""
    tasks_per_node: int | None = None
    """Ranks per node in training. Default: one per GPU, or one. Preparation has one per node, evaluation one."""
    cpus_per_task: int | None = None
    """Processors of each task. Default 1."""
    memory_gb: float | None = None
    """Memory a node, GB; 0: all of it. Default: what the cluster gives."""
    memory_per_cpu_gb: float | None = None
    """Memory of each processor, GB, where the cluster wants it so; in place of `memory_gb`."""
    time_min: int | None = None
    """Time limit, minutes; a training job that reaches it is saved and queued again. Default 60."""
    exclusive: bool | None = None
    """Whether nodes are not shared with other jobs. Default: they may be."""
    options: dict[str, str | int | bool] | None = None
    """Further options of `sbatch` by their long names, e.g. {reservation: night, mail-type: FAIL}."""

    def __post_init__(self) -> None:
        count_gpus(self.gpus or 0)
        _check_options(self.options or {})
        if self.memory_gb is not None and self.memory_per_cpu_gb is not None:
            raise ValueError("memory_gb and memory_per_cpu_gb are both given, expected one of them; leave one out")
        for name, least in (("nodes", 1), ("tasks_per_node", 1), ("cpus_per_task", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if self.time_min is not None and self.time_min < 1:
            raise ValueError(f"time_min is {self.time_min}, expected at least 1 minute")


def count_gpus(gpus: int | str) -> tuple[str, int]:
    """Type and number of `gpus`; the type is empty where any will do.

    >>> count_gpus("a100:8"), count_gpus("4"), count_gpus(2)
    (('a100', 8), ('', 4), ('', 2))

    Raises:
        ValueError: it is neither a number nor TYPE:NUMBER.
    """
    match = re.fullmatch(r"(?:([A-Za-z][\w.-]*):)?(\d+)", str(gpus))
    if not match:
        raise ValueError(f"gpus is {gpus!r}, expected the GPUs of a node: a number, or TYPE:NUMBER such as a100:8")
    return match.group(1) or "", int(match.group(2))


def _check_options(options: Mapping[str, str | int | bool]) -> None:
    """Refuses options that the launcher sets, by another key of the site or by itself.

    Raises:
        ValueError: there is one.
    """
    for option, value in options.items():
        name = option.lstrip("-")
        key = "gpus" if name == "gres" and "gpu" in str(value) else OWNED_OPTIONS.get(name)
        if option != name:
            raise ValueError(f"options: {option!r} begins with a dash, expected the long name alone; write {name!r}")
        if key == "":
            raise ValueError(f"options: {option} is set by the launcher for every job, expected none; leave it out")
        if key:
            raise ValueError(f"options: {option}={value} would contradict `{key}`, expected it there; set `{key}`")


@dataclass(frozen=True, kw_only=True)
class RestartConfig:
    """When a job that was stopped or failed is started again."""

    without_progress: int = 3
    """Starts in a row that may bring no newer checkpoint (for prep and eval: starts in all) before the job fails."""

    def __post_init__(self) -> None:
        if self.without_progress < 0:
            raise ValueError(f"without_progress is {self.without_progress}, expected 0 or more")


@dataclass(frozen=True, kw_only=True)
class RayConfig:
    """Ray for preparation on several nodes."""

    jobs_url: str = ""
    """Dashboard of a standing Ray cluster: preparation is sent there as a Ray job instead of to Slurm."""
    object_store_mb: int = 200
    """Ray's object store a node, MB; only names and numbers pass through it."""
    start_s: float = 180.0
    """Seconds in which all nodes must have joined."""

    def __post_init__(self) -> None:
        if self.object_store_mb < 80 or self.start_s <= 0:
            raise ValueError("ray: object_store_mb must be at least 80, start_s above 0")


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place to run stages."""

    kind: Literal["local", "debug", "slurm"]
    """`local`: in the background on this machine; `debug`: in this terminal; `slurm`: as jobs."""
    default: Resources = field(default_factory=Resources)
    """What every stage asks for."""
    prep: Resources = field(default_factory=Resources)
    """What preparation asks for beyond the default."""
    train: Resources = field(default_factory=Resources)
    """What training asks for beyond the default."""
    eval: Resources = field(default_factory=Resources)
    """What evaluation asks for beyond the default."""
    grace_s: int = 120
    """Seconds between the scheduler's signal (time limit, pre-emption) and its kill; training saves in them."""
    restarts: RestartConfig = field(default_factory=RestartConfig)
    """When jobs are started again."""
    ray: RayConfig = field(default_factory=RayConfig)
    """Ray for preparation on several nodes."""
    python: str = ""
    """Python on the nodes; empty: the one that runs this."""
    container: tuple[str, ...] = ()
    """Words before Python that enter a container, e.g. [apptainer, exec, --nv, /images/mcjepa.sif]."""
    modules: tuple[str, ...] = ()
    """Environment modules that are loaded."""
    setup: tuple[str, ...] = ()
    """Further lines of the job's script, before anything else runs; secrets are read here, from a file of yours."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of every process. Never secrets: the script is a file that others may read."""
    inherit: tuple[str, ...] = ("HOME", "USER", "LOGNAME", "PATH", "LANG", "PYTHONPATH", "LD_LIBRARY_PATH")
    """Variables of yours that jobs get; no other one reaches them, so no secret does by accident."""
    interface: str = ""
    """Network interface of NCCL, gloo and Ray (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME); empty: they choose."""
    scratch: str = ""
    """Folder on the nodes' own disks for temporary files (TMPDIR), made where it is absent; empty: the nodes'."""
    shard_cache: str = ""
    """Folder on the nodes' own disks for shards read from s3 (train.stream.store.cache_dir); empty: the recipe's."""
    s3_endpoint: str = ""
    """AWS_ENDPOINT_URL; empty: that of the profile."""
    s3_profile: str = ""
    """Name of the profile in your AWS files (AWS_PROFILE); its keys stay there."""
    jobs: str = ""
    """Folder that all nodes reach, for scripts, logs and states of jobs; empty: RUN/logs/jobs for training into a
    folder, else OUT/jobs/STAGE of the recipe."""

    def __post_init__(self) -> None:
        for name in (*self.environment, *self.inherit):
            if not re.fullmatch(r"[A-Za-z_]\w*", name):
                raise ValueError(f"environment: {name!r} is no name of a variable")
            if SECRET_NAME.search(name):
                raise ValueError(
                    f"environment: {name} looks like a secret, expected none in a site file; name a profile in "
                    "s3_profile, or read it from a file of yours in `setup`"
                )
        for key, place in (("scratch", self.scratch), ("shard_cache", self.shard_cache), ("jobs", self.jobs)):
            if "$" in place or (key == "scratch" and place and not place.startswith("/")):
                raise ValueError(
                    f"{key} is {place!r}, expected the whole path of a folder, in which no variable is filled in; "
                    "write it out" + (", or make it and export TMPDIR in `setup`" if key == "scratch" else "")
                )
        if self.grace_s <= STOPPING_S:
            raise ValueError(f"grace_s is {self.grace_s}, expected more than {STOPPING_S} s")

    @property
    def save_s(self) -> int:
        """Seconds that a stage has for saving after a stop signal."""
        return self.grace_s - STOPPING_S


@dataclass(frozen=True)
class Need:
    """Resources with everything filled in."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    nodes: int
    gpus_per_node: int
    gpu_type: str
    """Empty: any."""
    gpus_by: GpuOption
    tasks_per_node: int
    cpus_per_task: int
    memory_gb: float | None
    """A node; 0: all of it."""
    memory_per_cpu_gb: float | None
    time_min: int
    exclusive: bool
    options: dict[str, Any]

    @property
    def tasks(self) -> int:
        """Tasks of the job."""
        return self.nodes * self.tasks_per_node

    @property
    def node_memory_gb(self) -> float | None:
        """Memory that is asked for on each node; None where the cluster decides, 0 where it is all of the node's."""
        if self.memory_per_cpu_gb is None:
            return self.memory_gb
        return self.memory_per_cpu_gb * self.cpus_per_task * self.tasks_per_node


def needed(site: Site, stage: Stage, nodes: int = 0) -> Need:
    """What a stage asks for on a site.

    Args:
        site: the site.
        stage: its entries go before the default's.
        nodes: of the command line, before both; 0: not given.

    Raises:
        LaunchError: GPUs are asked for by the task, and the tasks of a node cannot share them evenly.

    >>> site = Site(kind="slurm", default=Resources(gpus="a100:8", nodes=2), prep=Resources(gpus=0))
    >>> needed(site, "train").tasks, needed(site, "prep", nodes=4).tasks, needed(site, "eval").tasks
    (16, 4, 1)
    """
    own, default = getattr(site, stage), site.default
    found = {
        f.name: getattr(own, f.name) if getattr(own, f.name) is not None else getattr(default, f.name)
        for f in dataclasses.fields(Resources)
    }
    found["options"] = {**(default.options or {}), **(own.options or {})}
    if own.memory_gb is not None or own.memory_per_cpu_gb is not None:  # one takes the place of the other
        found |= {"memory_gb": own.memory_gb, "memory_per_cpu_gb": own.memory_per_cpu_gb}
    usual = {"gpus": 0, "gpus_by": "gpus-per-node", "cpus_per_task": 1, "time_min": 60, "exclusive": False}
    found |= {name: value for name, value in usual.items() if found[name] is None}
    found["gpu_type"], found["gpus_per_node"] = count_gpus(found.pop("gpus"))
    found["nodes"] = 1 if stage == "eval" else nodes or found["nodes"] or 1
    if stage == "train":
        found["tasks_per_node"] = found["tasks_per_node"] or max(found["gpus_per_node"], 1)
    else:
        found["tasks_per_node"] = 1
    if found["gpus_by"] == "gpus-per-task" and found["gpus_per_node"] % found["tasks_per_node"]:
        raise LaunchError(
            f"{found['gpus_per_node']} GPUs a node for {found['tasks_per_node']} tasks with gpus_by: gpus-per-task, "
            "expected a multiple; correct gpus or tasks_per_node in the site file"
        )
    return Need(**found)


def wanted_gpus(stage: Stage, need: Need) -> dict[str, str]:
    """Tells training that it must not compute on CPUs; empty where no GPU is asked for."""
    return {"MCJEPA_GPUS": str(need.gpus_per_node)} if need.gpus_per_node and stage == "train" else {}


def variables(site: Site) -> dict[str, str]:
    """What the site puts into the environment of every process."""
    found = dict(site.environment)
    pairs = {
        "AWS_ENDPOINT_URL": site.s3_endpoint,
        "AWS_PROFILE": site.s3_profile,
        "TMPDIR": site.scratch,
        "NCCL_SOCKET_IFNAME": site.interface,
        "GLOO_SOCKET_IFNAME": site.interface,
    }
    return found | {name: value for name, value in pairs.items() if value}
