"""What a job asks for against what Slurm's partitions have: time, nodes, processors, memory, GPUs, QOS, arrays."""

from __future__ import annotations

import getpass
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.preflight.findings import Finding
from mcjepa.cluster.site import Need
from mcjepa.cluster.slurm import run

NIL_SINCE = (23, 2)
"""Slurm's first version with `--export=NIL`."""


@dataclass(frozen=True)
class NodeGroup:
    """Nodes of a partition that are alike."""

    nodes: int
    cpus: int
    memory_mb: int
    gpus: Mapping[str, int] = field(default_factory=dict)
    """By type; of no type: under the empty name."""

    def __str__(self) -> str:
        gpus = [f"{count} {kind + ' ' if kind else ''}GPU(s)" for kind, count in self.gpus.items()]
        return ", ".join([f"{self.cpus} processors", f"{self.memory_mb} MB", *gpus])


@dataclass(frozen=True)
class Partition:
    """Limits of a partition; None: none."""

    time_min: int | None
    most_nodes: int | None
    """Of one job."""
    qos: frozenset[str] | None
    """That may be used in it."""
    is_default: bool
    groups: tuple[NodeGroup, ...]


@dataclass(frozen=True)
class SlurmFacts:
    """What a cluster tells of itself."""

    version: str
    most_elements: int | None
    """Of an array."""
    qos: frozenset[str] | None
    """Of ours; None where there is no accounting."""
    partitions: Mapping[str, Partition]


def read_slurm() -> SlurmFacts | None:
    """Asks sinfo, scontrol and sacctmgr; None where there is no Slurm or it does not answer."""
    if not shutil.which("sinfo"):
        return None
    try:
        config = dict(
            [part.strip() for part in line.split("=", 1)]
            for line in run("scontrol", "show", "config").splitlines()
            if "=" in line
        )
        partitions = run("scontrol", "show", "partition", "--oneliner")
        nodes = run("sinfo", "-h", "-e", "-o", "%R|%D|%c|%m|%G")
    except LaunchError:
        return None
    ours = run("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=qos", quiet=True)
    qos = frozenset(name for line in ours.split() for name in line.split(",") if name)
    return SlurmFacts(
        version=config.get("SLURM_VERSION", ""),
        most_elements=int(config["MaxArraySize"]) if config.get("MaxArraySize", "").isdigit() else None,
        qos=qos or None,
        partitions=read_partitions(partitions, nodes),
    )


def read_partitions(partitions: str, nodes: str) -> dict[str, Partition]:
    """Partitions by name.

    Args:
        partitions: lines of `scontrol show partition --oneliner`.
        nodes: lines `partition|nodes|processors|memory in MB|generic resources` of `sinfo -e`.
    """
    groups: dict[str, list[NodeGroup]] = {}
    for row in (line.split("|") for line in nodes.splitlines() if line.count("|") == 4):
        count, cpus, memory = (int(re.sub(r"\D", "", text) or 0) for text in row[1:4])
        groups.setdefault(row[0], []).append(NodeGroup(count, cpus, memory, gpus_of(row[4])))
    found = {}
    for line in partitions.splitlines():
        told = dict(part.split("=", 1) for part in line.split() if "=" in part)
        allowed = told.get("AllowQos", "ALL")
        if name := told.get("PartitionName"):
            found[name] = Partition(
                time_min=minutes(told.get("MaxTime", "")),
                most_nodes=int(told["MaxNodes"]) if told.get("MaxNodes", "").isdigit() else None,
                qos=None if allowed == "ALL" else frozenset(allowed.split(",")),
                is_default=told.get("Default") == "YES",
                groups=tuple(groups.get(name, ())),
            )
    return found


def gpus_of(resources: str) -> dict[str, int]:
    """GPUs in a node's generic resources.

    >>> gpus_of("gpu:a100:8(S:0-1),gpu:4,nvme:1"), gpus_of("(null)")
    ({'a100': 8, '': 4}, {})
    """
    found: dict[str, int] = {}
    for kind, count in re.findall(r"(?:^|,)gpu(?::([^:,()]+))?:(\d+)", resources):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def minutes(text: str) -> int | None:
    """Minutes of Slurm's [days-]hours:minutes:seconds; None where there is no limit.

    >>> minutes("00:30:00"), minutes("2-01:00:00"), minutes("UNLIMITED")
    (30, 2940, None)
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return None
    days, hours, mins, _ = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + mins


def scheduler_findings(need: Need, elements: int, slurm: SlurmFacts | None) -> list[Finding]:
    """Whether the cluster can ever start the job.

    Args:
        need: what it asks for.
        elements: of its array; 1: no array.
        slurm: None: it could not be asked.
    """
    words = f"partition {need.partition or '(the default)'}, {need.nodes} node(s), {need.time_min} min"
    if slurm is None:
        return [
            Finding(
                "partition", "warning", f"{words}; Slurm could not be asked (sinfo, scontrol), so it is not checked",
                "", "run this where jobs are submitted",
            )
        ]  # fmt: skip
    asked = (
        (need.partition or "").split(",")
        if need.partition
        else [n for n, p in slurm.partitions.items() if p.is_default]
    )
    unknown = [name for name in asked if name not in slurm.partitions]
    if unknown or not asked:
        found = f"{words}; the cluster does not have {', '.join(unknown) or 'a default partition'}"
        known = ", ".join(sorted(slurm.partitions))
        return [Finding("partition", "error", found, f"one of {known}", "correct `partition` in the site file")]
    problems = {name: list(_problems(need, name, slurm.partitions[name])) for name in asked}
    findings = [Finding("partition", "ok", words)]
    if all(problems.values()):  # of several, the job starts in one that it fits
        findings += [problem for found in problems.values() for problem in found]
    if need.qos and slurm.qos is not None and need.qos not in slurm.qos:
        expected = f"one of yours: {', '.join(sorted(slurm.qos))}"
        findings.append(Finding("qos", "error", f"qos {need.qos}", expected, "correct `qos` in the site file"))
    if slurm.most_elements is not None and elements > slurm.most_elements:
        found, expected = f"a sweep of {elements} runs", f"at most {slurm.most_elements} (MaxArraySize)"
        findings.append(Finding("sweep", "error", found, expected, "split it into several recipes"))
    return [*findings, _version_finding(slurm.version)]


def _problems(need: Need, name: str, partition: Partition) -> Iterable[Finding]:
    count = sum(group.nodes for group in partition.groups)
    most = min(count, partition.most_nodes or count)
    if partition.time_min is not None and need.time_min > partition.time_min:
        yield Finding(
            "time limit", "error", f"{need.time_min} min on partition {name}", f"at most {partition.time_min} min",
            "lower `time_min` in the site file: a training job that reaches it is queued again",
        )  # fmt: skip
    if need.nodes > most:
        found = f"{need.nodes} nodes of partition {name}"
        limit = f"at most {most}" + (" for one job" if most < count else "")
        yield Finding("nodes", "error", found, limit, "lower `nodes` or --nodes")
    fitting = sum(group.nodes for group in partition.groups if _fits(need, group))
    if fitting < min(need.nodes, most):
        have = "; ".join(sorted({f"{group.nodes} with {group}" for group in partition.groups}))
        yield Finding(
            "node", "error", f"{_words(need)} on each of {need.nodes} node(s); {fitting} of partition {name} have it",
            f"what its nodes have: {have}", "correct the stage's resources in the site file",
        )  # fmt: skip
    if need.qos and partition.qos is not None and need.qos not in partition.qos:
        expected = f"one of {', '.join(sorted(partition.qos))}"
        yield Finding("qos", "error", f"qos {need.qos} on partition {name}", expected, "correct `qos` in the site file")


def _fits(need: Need, group: NodeGroup) -> bool:
    gpus = group.gpus.get(need.gpu_type, 0) if need.gpu_type else sum(group.gpus.values())
    memory = (need.node_memory_gb or 0) * 1024
    return gpus >= need.gpus_per_node and group.cpus >= _cpus(need) and group.memory_mb >= memory


def _cpus(need: Need) -> int:
    return need.tasks_per_node * need.cpus_per_task


def _words(need: Need) -> str:
    memory = {f"{need.node_memory_gb * 1024:.0f} MB"} if need.node_memory_gb else ()
    kind = f"{need.gpu_type} " if need.gpu_type else ""
    gpus = {f"{need.gpus_per_node} {kind}GPU(s)"} if need.gpus_per_node else ()
    return ", ".join([f"{_cpus(need)} processors", *memory, *gpus])


def _version_finding(version: str) -> Finding:
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    found = f"version {version or 'unknown'}"
    if numbers and numbers < NIL_SINCE:
        found += "; it has no --export=NIL and reads your login files on the node: the script drops what they set"
    return Finding("slurm", "ok", found)
