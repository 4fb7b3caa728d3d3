"""What a job asks for against what Slurm tells of its partitions."""

from __future__ import annotations

from typing import Any

import pytest

from mcjepa.cluster.preflight.scheduler import SlurmFacts, read_partitions, scheduler_findings
from mcjepa.cluster.site import Resources, Site, needed

SHOWN = (
    "PartitionName=gpu AllowGroups=ALL AllowQos=normal,long Default=YES MaxNodes=2 MaxTime=1-00:00:00 State=UP\n"
    "PartitionName=cpu AllowGroups=ALL AllowQos=ALL Default=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP\n"
)
NODES = "gpu|3|16|64000|gpu:a100:4(S:0-1),nvme:1\ngpu|1|64|512000+|gpu:h100:8\ncpu|10|8|16000|(null)\n"
SLURM = SlurmFacts("22.05.8", 100, frozenset({"normal"}), read_partitions(SHOWN, NODES))


def problems(elements: int = 1, slurm: SlurmFacts | None = SLURM, **asked: Any) -> dict[str, str]:
    """Topic and text of what is not ok."""
    need = needed(Site(kind="slurm", default=Resources(**asked)), "train")
    return {f.topic: str(f) for f in scheduler_findings(need, elements, slurm) if f.severity != "ok"}


def test_what_the_cluster_has_is_ok_and_an_old_version_is_said() -> None:
    assert problems(nodes=2, gpus="a100:4", cpus_per_task=4, memory_gb=60, time_min=1440) == {}
    assert problems(nodes=1, gpus=8, cpus_per_task=8, memory_gb=500) == {}
    assert problems(partition="cpu", nodes=10, time_min=10**6, memory_per_cpu_gb=1.5, cpus_per_task=8) == {}
    need = needed(Site(kind="slurm"), "train")
    assert "no --export=NIL" in str(scheduler_findings(need, 1, SLURM)[-1])


@pytest.mark.parametrize(
    ("asked", "topic", "text"),
    [
        ({"time_min": 1441}, "time limit", "at most 1440 min"),
        ({"nodes": 3}, "nodes", "at most 2 for one job"),
        ({"partition": "cpu", "nodes": 64}, "nodes", "at most 10"),
        ({"memory_gb": 600}, "node", "0 of partition gpu have it"),
        ({"nodes": 2, "memory_gb": 100}, "node", "1 of partition gpu have it"),
        ({"memory_per_cpu_gb": 3, "cpus_per_task": 8, "partition": "cpu"}, "node", "8 processors, 16000 MB"),
        ({"cpus_per_task": 65}, "node", "65 processors"),
        ({"gpus": 9}, "node", "9 GPU(s)"),
        ({"gpus": "v100:1"}, "node", "4 a100 GPU(s)"),
        ({"gpus": 1, "partition": "cpu"}, "node", "1 GPU(s) on each"),
        ({"qos": "long"}, "qos", "one of yours: normal"),
        ({"qos": "urgent", "partition": "gpu"}, "qos", "urgent"),
        ({"partition": "gup"}, "partition", "one of cpu, gpu"),
        ({"elements": 101}, "sweep", "at most 100 (MaxArraySize)"),
    ],
)
def test_what_the_cluster_can_never_start_is_refused(asked: dict[str, Any], topic: str, text: str) -> None:
    found = problems(**asked)
    assert list(found) == [topic] and text in found[topic]


def test_of_several_partitions_one_has_to_fit() -> None:
    assert problems(partition="gpu,cpu", time_min=2000) == {}
    assert "qos" in problems(partition="gpu", qos="urgent", slurm=SlurmFacts("23.11", None, None, SLURM.partitions))


def test_without_slurm_it_is_said_that_nothing_was_checked() -> None:
    assert "could not be asked" in problems(slurm=None)["partition"]
