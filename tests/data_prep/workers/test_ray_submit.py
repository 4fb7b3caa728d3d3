"""A preparation job sent to a standing Ray cluster by its job API, and one that joins it by its address."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.workers.ray_session import PRIVATE, QUIET
from mcjepa.data_prep.workers.ray_submit import submit_prep

REPOSITORY = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
START_LIMIT_S = 90


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """A Ray head with its job server on the loopback interface; gives the variables to reach it."""
    port, dashboard = free_port(), free_port()
    folder = tempfile.mkdtemp(prefix="mcj-", dir="/tmp")
    environment = {
        **os.environ,
        **QUIET,
        **PRIVATE,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    words = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
    words += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}"]
    head = subprocess.Popen(
        [*words, "--object-store-memory=104857600"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for(dashboard, head)
        yield {
            **environment,
            "JOB_SERVER": f"http://127.0.0.1:{dashboard}",
            "CLUSTER": f"127.0.0.1:{port}",
        }
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(port: int, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        assert head.poll() is None, "ray start ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError(f"no job server after {START_LIMIT_S} s")


def write_recipe(tmp_path: Path, videos: Path) -> Path:
    recipe = {
        "name": "sent",
        "out": str(tmp_path / "out"),
        "prep": {
            "root": str(tmp_path / "datasets"),
            "datasets": {
                "clips": {
                    "kind": "clip",
                    "short_side": 32,
                    "inputs_per_shard": 1,
                    "corpora": [{"reader": "videos", "path": str(videos)}],
                }
            },
        },
        "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    }
    path = tmp_path / "sent.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.slow
@pytest.mark.alone
def test_a_submitted_job_and_one_that_joins_give_the_same_dataset(cluster, videos: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, videos)
    command = [str(BIN / "mcjepa"), "prep", "run", str(path)]
    sent = subprocess.run(
        [*command, "--submit", cluster["JOB_SERVER"]], env=cluster, capture_output=True, text=True, timeout=200
    )
    assert sent.returncode == 0, sent.stdout + sent.stderr
    assert audit_dataset(str(tmp_path / "datasets" / "clips")).ok
    joined = subprocess.run(
        [*command, f"prep.root={tmp_path}/again", f"prep.ray_address={cluster['CLUSTER']}"],
        env=cluster,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert joined.returncode == 0, joined.stderr
    first, second = (audit_dataset(str(tmp_path / name / "clips")) for name in ("datasets", "again"))
    assert second.ok and first.dataset_id == second.dataset_id
    assert first.dataset_id in sent.stdout


def test_an_address_where_nobody_answers_is_one_clear_error() -> None:
    with pytest.raises(DataError, match=r"no Ray job server answers at http://127\.0\.0\.1:9 "):
        submit_prep("http://127.0.0.1:9", "name: x", print)
    with pytest.raises(DataError, match=r"no Ray job server answers at nonsense .*expected the address of a dashboard"):
        submit_prep("nonsense", "name: x", print)
