"""Which rank a process is, by whoever started it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys

import pytest
import torch

from mcjepa.pipeline.engine.engine import start_world
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.settings.train import EngineConfig
from mcjepa.pipeline.world import adopt_world, check_gpus, first_host, gpu_index, own_cores, slurm_variables

SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_NODELIST": "gpu[003-004],gpu9",
}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[003-007,12],login1", "gpu003"),
        ("rack2-[09,11]-ib", "rack2-09-ib"),
        ("r[1-2]n[05-06]", "r1n05"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_srun_tells_the_rank() -> None:
    found = slurm_variables(SRUN)
    assert (found["RANK"], found["LOCAL_RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("5", "1", "8", "gpu003")
    assert 20_000 <= int(found["MASTER_PORT"]) < 30_000


def test_all_tasks_of_a_step_meet_at_one_port_and_steps_at_different_ones() -> None:
    one, other = (slurm_variables(SRUN | {"SLURM_PROCID": rank})["MASTER_PORT"] for rank in "03")
    assert one == other != slurm_variables(SRUN | {"SLURM_STEP_ID": "1"})["MASTER_PORT"]


def test_a_step_of_fewer_tasks_than_the_job_counts_its_own() -> None:
    assert slurm_variables(SRUN | {"SLURM_STEP_NUM_TASKS": "2"})["WORLD_SIZE"] == "2"


def test_a_batch_script_itself_is_one_process() -> None:
    script = {k: v for k, v in SRUN.items() if k != "SLURM_STEP_ID"}
    assert slurm_variables(script) == {}
    environment = dict(script)
    adopt_world(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("0", "1")


def test_torchruns_variables_come_before_slurms() -> None:
    environment = SRUN | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    adopt_world(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["MASTER_ADDR"]) == ("1", "2", "a")


def test_incomplete_variables_are_refused() -> None:
    with pytest.raises(UsageError, match="SLURM_NODELIST"):
        slurm_variables({k: v for k, v in SRUN.items() if k != "SLURM_NODELIST"})
    with pytest.raises(UsageError, match="RANK, MASTER_ADDR, MASTER_PORT"):
        adopt_world({"WORLD_SIZE": "2"})


def test_without_any_variable_it_is_a_world_of_one_with_a_free_port() -> None:
    environment: dict[str, str] = {}
    adopt_world(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"]) == ("0", "1") and int(environment["MASTER_PORT"])


USABLE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("environment", "world_size", "cores"),
    [
        ({"SLURM_CPUS_PER_TASK": str(USABLE)}, 8, USABLE),  # bound: what is seen is the task's own
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": str(USABLE)}, USABLE, 1),  # not bound: all of the node's are seen
        ({"SLURM_CPUS_PER_TASK": "1", "SLURM_NTASKS": "1"}, 1, USABLE),
        ({"SLURM_CPUS_PER_TASK": str(USABLE), "SLURM_STEP_NUM_TASKS": "1"}, USABLE, 1),  # ranks of one task share it
        ({"SLURM_CPUS_PER_TASK": str(USABLE), "SLURM_STEP_ID": ""}, USABLE, 1),  # started in the batch script itself
        ({"SLURM_STEP_ID": ""}, 2 * USABLE, 1),
    ],
)
def test_a_rank_has_the_cores_of_its_task_or_its_share_of_the_nodes(
    environment: dict[str, str], world_size: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (SRUN | environment).items():
        monkeypatch.setenv(name, value)
    assert own_cores(world_size) == cores


@pytest.mark.parametrize(
    ("local_rank", "ranks", "visible", "environment", "index"),
    [
        (3, 8, 8, {}, 3),
        (0, 1, 1, {"CUDA_VISIBLE_DEVICES": "5"}, 0),
        (3, 4, 1, {"SLURM_GPUS_ON_NODE": "4"}, 0),  # --gpus-per-task=1
        (1, 2, 2, {"SLURM_GPUS_ON_NODE": "4"}, 1),  # --gpus-per-task=2: those of the tasks differ
        (5, 8, 4, {"SLURM_GPUS_ON_NODE": "8"}, 1),  # bound to the near half of the node's
        (1, 2, 1, {"CUDA_VISIBLE_DEVICES": "1"}, 0),  # bound by another launcher
    ],
)
def test_a_rank_takes_its_gpu_by_what_it_sees(
    local_rank: int, ranks: int, visible: int, environment: dict[str, str], index: int
) -> None:
    assert gpu_index(local_rank, ranks, visible, environment) == index


@pytest.mark.parametrize(
    ("visible", "environment"),
    [(1, {}), (1, {"SLURM_GPUS_ON_NODE": "1", "CUDA_VISIBLE_DEVICES": "0"}), (3, {"CUDA_VISIBLE_DEVICES": "0,1,2"})],
)
def test_more_ranks_than_gpus_are_refused(visible: int, environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=rf"4 ranks on \S+, which has {visible} GPU"):
        gpu_index(0, 4, visible, environment)


def test_a_missing_gpu_is_refused_where_the_site_asks_for_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MCJEPA_GPUS", "8")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(
        UsageError, match=rf"no GPU on {socket.gethostname()}, expected 8.*driver.*{re.escape(torch.__version__)}"
    ):
        start_world(EngineConfig())
    check_gpus("8", visible=1)
    check_gpus("", visible=0)
    check_gpus("0", visible=0)


ENDING = """
import ctypes, threading, time, zlib
from mcjepa.pipeline.world import rest_at_exit

def collective():
    ctypes.CDLL(None).prctl(15, b"pt_gloo_runloop")
    started.set()
    zlib.crc32(bytes(1 << 28))  # without Python's lock
    print("let go", flush=True)
    threading.Event().wait()

started = threading.Event()
rest_at_exit()
threading.Thread(target=collective, daemon=True).start()
started.wait()
"""


@pytest.mark.parametrize("rests", [True, False])
def test_a_process_ends_once_threads_of_gloo_have_let_go_of_their_tensors(rests: bool) -> None:
    """A thread that asks for Python's lock later is ended within C++, which aborts the process."""
    program = ENDING if rests else ENDING.replace("\nrest_at_exit()", "")
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    assert ended.stdout == ("let go\n" if rests else "")
