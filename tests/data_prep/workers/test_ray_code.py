"""A Ray cluster with a node of other code, or of other libraries for the job, is refused at the start by name."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
from importlib.metadata import version
from pathlib import Path

import pytest

from mcjepa.data_prep.code import code_name
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.process import interruption_kept
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.workers import ray_session
from mcjepa.data_prep.workers.ray_job import _call_on_one_processor, _Here
from mcjepa.data_prep.workers.ray_session import PRIVATE, QUIET, libraries_here, running_ray

REPOSITORY = Path(__file__).resolve().parents[3]
ROOMS = ("cluster", "configs", "data_prep", "evals", "model", "pipeline")

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig
from mcjepa.data_prep.process import interruption_kept
from mcjepa.data_prep.workers.ray_session import running_ray
import ray
datasets = tuple(DatasetConfig(kind="image", corpora=(CorpusConfig(reader=reader),)) for reader in sys.argv[2:])
cluster = Cluster()
cluster.add_node(num_cpus=1, object_store_memory=100 << 20, node_ip_address="127.0.0.1")
if sys.argv[1]:
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20, env_vars={"PYTHONPATH": sys.argv[1]})
else:
    cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
try:
    with running_ray(cluster.address, 0, datasets):
        print("accepted")
except DataError as error:
    print(error)
finally:
    cluster.shutdown()
"""


def _join(other: str, *readers: str) -> str:
    environment = {**os.environ, **QUIET, **PRIVATE, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    answer = subprocess.run(
        [sys.executable, "-c", CLUSTER, other, *readers],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
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


@pytest.mark.slow
def test_a_node_with_another_library_is_refused_where_the_job_uses_it(tmp_path: Path) -> None:
    found = tmp_path / "pillow-99.0.dist-info"
    found.mkdir()
    (found / "METADATA").write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 99.0\n")
    assert _join(str(tmp_path), "videos") == "accepted"
    refusal = _join(str(tmp_path), "videos", "images")
    assert "other libraries than this process (pillow 99.0 (" in refusal and f", here {version('pillow')} (" in refusal
    assert "decoder" not in refusal and "encoder" not in refusal


def test_a_task_does_not_run_where_libraries_are_others() -> None:
    """Of nodes that join later: they were not there to be asked."""
    datasets = (DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images"),)),)
    libraries = libraries_here(datasets)
    assert {"decoder", "encoder", "pillow", "simplejpeg"} <= set(libraries)
    with pytest.raises(DataError, match=r"decoder decord2 .*, here decord2 0\.1"):
        _call_on_one_processor(_Here(code_name(), datasets, {**libraries, "decoder": "decord2 0.1"}), max, 1, 2)


def test_an_interruption_that_a_library_swallows_is_raised_in_the_end() -> None:
    with pytest.raises(KeyboardInterrupt), interruption_kept(), contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(("scheme", "cause"), [("", "Connection refused"), ("ray://", "Connection refused")])
def test_a_cluster_that_nobody_runs_is_named_soon(scheme: str, cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself Ray tries for minutes, and then speaks of paths and permissions."""
    monkeypatch.setattr(ray_session, "JOIN_LIMIT_S", 0.1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        address = f"{scheme}127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DataError) as caught, running_ray(address, 0):
            pass
    words = str(caught.value)
    assert f"no Ray cluster can be joined at {address} (" in words and cause in words
    assert "correct prep.ray_address or RAY_ADDRESS" in words and "permission" not in words


def test_a_cluster_that_starts_late_is_waited_for() -> None:
    with socket.socket() as late:
        late.bind(("127.0.0.1", 0))
        timer = threading.Timer(0.3, late.listen)
        timer.start()
        ray_session._wait_for_answer(f"[127.0.0.1]:{late.getsockname()[1]}")
        timer.join()
    ray_session._wait_for_answer("auto")
