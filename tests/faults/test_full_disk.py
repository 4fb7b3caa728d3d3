"""A disk that is full during a save, a real one: a small tmpfs in a mount namespace of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mcjepa.pipeline.run.folder import read_metrics
from tests.rounds.train_kills import REPOSITORY, STEPS, TrainingRun, make_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = """
set -u
mount -t tmpfs -o size={size} none {disk}
{train}
echo "code $?"
find {disk}/run -name manifest.json -o -name 'step-*' | sort
echo "end of list"
mount -o remount,size=256m {disk}
{train}
echo "code $?"
cp {disk}/run/logs/metrics.jsonl {out}
"""


@pytest.mark.parametrize("background", [False, True])
def test_a_full_disk_costs_the_save_but_not_the_checkpoint_before(tmp_path: Path, background: bool) -> None:
    """Of saves in the background those in between fail while the training goes on, and the last one ends it."""
    (disk := tmp_path / "disk").mkdir()
    probe = ["unshare", "-m", "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)]
    if subprocess.run(probe, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small disk in a namespace")
    whole = TrainingRun(make_recipe(tmp_path), str(tmp_path / "whole"), tmp_path / "files")
    assert whole.finish(ranks=1) == 0, whole.log.read_text()
    newest = f"step-{STEPS:09d}"
    pages = sum(
        -(-path.stat().st_size // 4096) + 1
        for folder in ("checkpoints", "weights")
        for path in (whole.path / folder / newest).iterdir()
    )
    words = [sys.executable, "-m", "mcjepa", "train", str(whole.recipe)]
    words += [f"train.run={disk}/run", f"tracking.uri=sqlite:///{tmp_path}/full.db"]
    words += [f"train.checkpoint.background={str(background).lower()}"]
    train = " ".join(map(shlex.quote, words))
    out = tmp_path / "metrics.jsonl"
    script = SCRIPT.format(size=f"{int(1.6 * pages * 4 + 64)}k", disk=disk, train=train, out=out)
    done = subprocess.run(["unshare", "-m", "bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.split("code ")[1].startswith("3"), done.stdout + done.stderr
    listing = done.stdout.split("code 3")[1].split("end of list")[0].split()
    kept = [line.split("/run/")[1] for line in listing]
    assert kept == [
        "checkpoints/step-000000003",
        "checkpoints/step-000000003/manifest.json",
        "weights/step-000000003",
    ]
    assert "was not saved and its files are removed" in done.stderr and "No space left" in done.stderr
    assert done.stderr.count("the one of step 3 counts") == 1 and "Traceback" not in done.stderr
    assert done.stdout.rstrip().endswith("code 0"), done.stdout + done.stderr
    assert {int(r["step"]): r["loss"] for r in read_metrics(out)} == whole.losses()
