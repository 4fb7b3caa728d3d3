"""A newcomer's path: `launch all RECIPE --site debug`, then `--site local`; `--site slurm` is in test_slurm_stages."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mcjepa.cluster.status import log_files, read_status
from tests.cluster.launch_recipe import launch, losses, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.timeout(600)]
STEPS = 4


@pytest.mark.parametrize("site", ["debug", "local"])
def test_three_words_bring_a_report_where_they_said(site: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, str(tmp_path / "shards"), STEPS)
    said = launch("all", str(recipe), "--site", site, within_s=300)
    report = tmp_path / "out" / "report.html"
    if site == "local":  # in the background: three jobs, each behind the one before
        assert said.splitlines()[-1] == f"the report will be {report}"
        jobs = tmp_path / "out" / "jobs" / "eval"
        deadline = time.monotonic() + 300
        while read_status(jobs)[0].active:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert read_status(jobs)[0].state == "COMPLETED", [path.read_text()[-2000:] for path in log_files(jobs)]
    else:
        assert said.splitlines()[-1] == f"the report is {report}"
    assert report.is_file() and sorted(losses(tmp_path / "out" / "run")) == list(range(1, STEPS + 1))
