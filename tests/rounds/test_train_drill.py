"""Two rounds of the drill, on a folder and on S3: one run, nothing lost, whatever happened to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.rounds.train_kills import REPOSITORY
from tests.servers.seaweed import SeaweedNotRunnable, find_weed


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_that_meets_everything_is_one_run_without_loss_in_a_folder_and_on_s3() -> None:
    """`python -m tests.rounds.train_drill 30` runs thirty."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small disk in a namespace")
    try:
        find_weed()
    except SeaweedNotRunnable as error:
        if os.environ.get("MCJEPA_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(f"no S3 server: {error}")
    words = [sys.executable, "-m", "tests.rounds.train_drill", "2"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    shown = json.loads(done.stdout.splitlines()[-1])
    assert shown["bad"] == {} and {"kill", "full disk", "mlflow away"} <= set(shown["met"]), done.stdout
