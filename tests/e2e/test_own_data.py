"""From nothing to own videos and photos trained and scored, by the commands of docs/own-data.md."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.docs.pages import REPOSITORY, blocks
from tests.own_files import write_own_files

MOST_S, MOST_COMMANDS = 600, 4


@pytest.mark.e2e
@pytest.mark.timeout(MOST_S)
def test_the_pages_four_commands_lead_to_a_report_in_ten_minutes(tmp_path: Path) -> None:
    videos, photos = write_own_files(tmp_path)
    page = (REPOSITORY / "docs" / "own-data.md").read_text(encoding="utf-8")
    block = next(block for block in blocks("own-data.md", page) if "mcjepa init" in block.text)
    commands = [shlex.split(line, comments=True) for line in block.text.splitlines() if line.startswith("mcjepa")]
    assert len(commands) <= MOST_COMMANDS
    own = {"~/videos": str(videos), "~/photos": str(photos), "10": "1"}
    started = time.monotonic()
    for command in commands:
        words = [own.get(word, word) for word in command[1:]]
        done = subprocess.run(
            [sys.executable, "-m", "mcjepa", *words],
            cwd=tmp_path, env=dict(os.environ), capture_output=True, text=True, timeout=MOST_S,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    assert time.monotonic() - started < MOST_S
    out = tmp_path / "outputs" / "own"
    summary = json.loads((out / "summary.json").read_text())
    inputs = {name: dataset["inputs"] for name, dataset in summary["datasets"].items()}
    assert inputs == {"clips": 3 + 16, "images": 48}  # own videos and those of the photos; squares of the photos
    assert summary["steps"] >= 20 and summary["quarantined"] == []
    assert all(isinstance(summary[name], float) for name in ("epe", "epe_zero", "probe_miou", "jf"))
    assert (out / "report.html").stat().st_size > 10_000
