"""Fixtures of all rooms: where the real sample data is, and switches that keep every test on this machine."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mcjepa.data_prep.corpora.samples import packaged_photos, packaged_videos
from mcjepa.data_prep.errors import DataError
from tests.servers.seaweed import BUCKET, SeaweedNotRunnable, SeaweedServer, running_seaweed
from tests.servers.slurm import SlurmCluster, SlurmNotRunnable, running_slurm

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_USAGE_STATS_REPORT_URL="http://127.0.0.1:9/",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    AWS_EC2_METADATA_DISABLED="true",
    DS_ACCELERATOR=os.environ.get("DS_ACCELERATOR", "cpu"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run side by side, a file's stay together, and all that need Slurm: its addresses are there once."""
    for item in items:
        needs = getattr(item, "fixturenames", ())
        item.add_marker(
            pytest.mark.xdist_group(
                "slurm" if any("slurm_cluster" in name for name in needs) else item.nodeid.split("::")[0]
            )
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """A failed command's own words stand in the report: Python's error names its exit status alone."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if isinstance(error, subprocess.CalledProcessError | subprocess.TimeoutExpired):
        for name, written in (("stdout", error.stdout), ("stderr", error.stderr)):
            text = written.decode(errors="replace") if isinstance(written, bytes) else written
            report.sections.append((f"{name} of the command", text or ""))
    return report


def _find_sample_data() -> Path | None:
    folder = Path(os.environ.get("MCJEPA_SAMPLE_DATA", REPOSITORY.parent / "shared" / "data"))
    return folder if (folder / "MANIFEST.tsv").is_file() else None


SAMPLE_DATA = _find_sample_data()


@pytest.fixture(scope="session")
def sample_data() -> Path:
    """The folder of real samples of the data sets; a test that asks for it is skipped where it is absent."""
    if SAMPLE_DATA is None:
        pytest.skip("no sample data: set MCJEPA_SAMPLE_DATA or put it at ../shared/data")
    return SAMPLE_DATA


@pytest.fixture(scope="session")
def photos_of_packages() -> list[Path]:
    """Photos that ship inside packages; without them tests are skipped, or fail as without a server."""
    return _files_of_packages(packaged_photos)


@pytest.fixture(scope="session")
def videos_of_packages() -> list[Path]:
    """The same for videos."""
    return _files_of_packages(packaged_videos)


def _files_of_packages(find: Callable[[], list[Path]]) -> list[Path]:
    try:
        return find()
    except DataError as error:
        if os.environ.get("MCJEPA_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def s3_server() -> Iterator[SeaweedServer]:
    """A real S3 server on the loopback interface with the bucket `tests`.

    Without one its tests are skipped, but fail where MCJEPA_REQUIRE_SERVICES=1 says that it must be there.
    """
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(running_seaweed())
        except SeaweedNotRunnable as error:
            if os.environ.get("MCJEPA_REQUIRE_SERVICES") == "1":
                raise
            pytest.skip(f"no S3 server: {error}")
        yield server


@pytest.fixture
def s3(s3_server: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty S3 location, reached by the standard AWS variables."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where its scratch folder is made
    s3_server.start()  # nothing when it runs: a test that killed it may have failed
    for name, value in s3_server.variables.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/prefix"


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """A real Slurm with two nodes on this machine, without accounting."""
    yield from _started_slurm(nodes=2, gpus=2)


@pytest.fixture(scope="session")
def accounted_slurm_cluster() -> Iterator[SlurmCluster]:
    """A real Slurm with three nodes and a database that keeps jobs."""
    yield from _started_slurm(nodes=3, gpus=2, accounting=True)


def _started_slurm(**kind: Any) -> Iterator[SlurmCluster]:
    """Without Slurm its tests are skipped, but fail where MCJEPA_REQUIRE_SERVICES=1 says that it must be there."""
    with contextlib.ExitStack() as stack:
        try:
            cluster = stack.enter_context(running_slurm(**kind))
        except SlurmNotRunnable as error:
            if os.environ.get("MCJEPA_REQUIRE_SERVICES") == "1":
                raise
            pytest.skip(f"no Slurm: {error}")
        yield cluster


@pytest.fixture(scope="session", params=["accounting", "no accounting"])
def any_slurm_cluster(request: pytest.FixtureRequest) -> SlurmCluster:
    """Each of the two."""
    name = "accounted_slurm_cluster" if request.param == "accounting" else "slurm_cluster"
    cluster: SlurmCluster = request.getfixturevalue(name)
    return cluster


@pytest.fixture
def slurm(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """That Slurm, reached by its usual commands."""
    for name, value in {**slurm_cluster.variables, "PYTHONPATH": str(REPOSITORY)}.items():
        monkeypatch.setenv(name, value)
    return slurm_cluster
