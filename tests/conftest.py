"""Fixtures of all rooms: where the real sample data is, and switches that keep every test on this machine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ.update(
    RAY_USAGE_STATS_ENABLED="0",
    RAY_USAGE_STATS_REPORT_URL="http://127.0.0.1:9/",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    AWS_EC2_METADATA_DISABLED="true",
    DS_ACCELERATOR=os.environ.get("DS_ACCELERATOR", "cpu"),
)


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
