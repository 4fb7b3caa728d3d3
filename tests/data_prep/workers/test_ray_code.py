"""A Ray cluster with a node that runs other code is refused at the start, with both codes named."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mcjepa.data_prep.code import code_name
from mcjepa.data_prep.workers.ray_job import PRIVATE, QUIET, _interruption_kept

REPOSITORY = Path(__file__).resolve().parents[3]
ROOMS = ("cluster", "configs", "data_prep", "evals", "model", "pipeline")

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.workers.ray_job import running_ray
import ray
cluster = Cluster()
cluster.add_node(num_cpus=1, object_store_memory=100 << 20, node_ip_address="127.0.0.1")
if sys.argv[1]:
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20, env_vars={"PYTHONPATH": sys.argv[1]})
else:
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
try:
    with running_ray(cluster.address, 0):
        print("accepted")
except DataError as error:
    print(error)
finally:
    cluster.shutdown()
"""


def _join(other: str) -> str:
    environment = {**os.environ, **QUIET, **PRIVATE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    answer = subprocess.run(
        [sys.executable, "-c", CLUSTER, other], env=environment, cwd=REPOSITORY, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    return answer.stdout.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_node_with_other_code_is_refused_and_named(tmp_path: Path) -> None:
    package = tmp_path / "mcjepa"
    package.mkdir()
    for path in (REPOSITORY / "mcjepa").glob("*.py"):
        shutil.copy(path, package)
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, package / room)
    assert _join("") == "accepted"
    (package / "model" / "added.py").write_text("ADDED = 1\n")
    refusal = _join(str(tmp_path))
    assert f"this job {code_name()}" in refusal and refusal.count("(code ") == 2
    (package / "data_prep" / "code.py").unlink()
    assert "runs no mcjepa of this kind" in _join(str(tmp_path))


def test_an_interruption_that_a_library_swallows_is_raised_in_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), _interruption_kept(), contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)
