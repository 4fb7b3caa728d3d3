"""What holds in every process of the command line before anything is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from small_recipe import write_small_recipe

pytestmark = pytest.mark.slow

SCRIPT = Path(sys.executable).with_name("mcjepa")


def waiting(words: list[str], folder: Path, **variables: str) -> list[tuple[str, str]]:
    """How threads wait in the processes of a command and how often they look first, as their own libgomp says."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "verbose", **variables}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    policies, counts = (re.findall(rf"{name} = '(\w+)'", done.stderr) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"))
    return list(zip(policies, counts, strict=True))


@pytest.mark.parametrize("entry", [[sys.executable, "-m", "mcjepa"], [str(SCRIPT)]], ids=["module", "script"])
def test_threads_of_all_ranks_wait_asleep_after_a_moment(entry: list[str], tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    words = [*entry, "train", str(recipe), "--ranks", "2", "train.steps=1", "train.checkpoint.every_steps=1"]
    found = waiting(words, tmp_path)
    assert len(found) >= 2 and set(found) == {("PASSIVE", "4000")}


def test_a_policy_of_ones_own_stays(tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    words = [sys.executable, "-m", "mcjepa", "train", str(recipe), "train.steps=1"]
    assert {policy for policy, _ in waiting(words, tmp_path, OMP_WAIT_POLICY="ACTIVE")} == {"ACTIVE"}
    assert set(waiting(words, tmp_path, GOMP_SPINCOUNT="5")) == {("PASSIVE", "5")}
