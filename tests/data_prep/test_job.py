"""The whole job on a real Ray: generate, plan, shards, publish, rerun, refuse, interrupt, resume."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import webdataset

from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.dataset.manifest import read_manifest
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.job import PrepReport, ProgressEvent, run_prep
from mcjepa.data_prep.plan.forecast import plan_prep
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, MovingPhotosConfig, PrepConfig
from mcjepa.data_prep.workers.ray_session import running_ray
from tests.processes import descendants, wait_until_ended


def recipe(root: Path, videos: Path, images: Path, **changes: object) -> PrepConfig:
    moving = MovingPhotosConfig(
        out=str(root / "photos"), sequences=2, heldout_sequences=1, frames=3, size=64, tiles=2, tile_px=48
    )
    clips = (
        CorpusConfig(reader="moving-photos", path=str(root / "photos")),
        CorpusConfig(reader="videos", path=str(videos)),
    )
    settings = {"short_side": 32, "clip_stride": 1, "inputs_per_shard": 2, "timeout_s": 20.0, **changes}
    return PrepConfig(
        root=str(root / "datasets"),
        moving_photos=moving,
        datasets={
            "clips": DatasetConfig(kind="clip", corpora=clips, **settings),  # type: ignore[arg-type]
            "images": DatasetConfig(
                kind="image", corpora=(CorpusConfig(reader="images", path=str(images)),), short_side=32
            ),
        },
        workers=2,
    )


@pytest.fixture(scope="module")
def ray_running() -> Iterator[None]:
    """One Ray for the tests of this file: starting one takes some seconds."""
    with running_ray("", 2):
        yield


def test_the_job_makes_publishes_and_reports_every_dataset(
    ray_running, videos, images, add_bad_videos, tmp_path
) -> None:
    add_bad_videos(videos)
    events: list[ProgressEvent] = []
    report = run_prep(recipe(tmp_path, videos, images), on_event=events.append)
    clips, pictures = report.datasets
    assert (clips.totals.inputs, clips.totals.ok, clips.totals.quarantined) == (9, 5, 4)
    assert report.quarantined == 4 and {r.outcome for r in clips.rejected} == {"quarantined"}
    assert clips.totals.samples == 2 * 2 + 5 + 8 + 11 and pictures.totals.samples == 5
    for dataset in report.datasets:
        assert audit_dataset(dataset.location).ok
        assert read_manifest(dataset.location).dataset_id == dataset.dataset_id
        urls = [str(p) for p in sorted(Path(dataset.location, "shards").glob("*.tar"))]
        assert len(list(webdataset.WebDataset(urls, shardshuffle=False))) == dataset.totals.samples
    assert {e.stage for e in events} == {"generate", "plan", "start", "shards", "publish"}
    shards = [e for e in events if e.stage == "shards" and e.dataset == "clips"]
    assert [e.done for e in shards] == list(range(6)) and shards[-1].samples == clips.totals.samples
    assert not (Path(clips.location) / ".scratch").exists()


@pytest.mark.slow
def test_running_again_does_nothing_and_gives_the_same_ids(ray_running, videos, images, tmp_path) -> None:
    config = recipe(tmp_path, videos, images)
    assert [p.state for p in _plans_after_generating(config)] == ["new", "new"]
    first = run_prep(config)
    assert [p.state for p in plan_prep(config)] == ["published", "published"]
    started = time.monotonic()
    again = run_prep(config)
    assert time.monotonic() - started < 3
    assert [d.dataset_id for d in again.datasets] == [d.dataset_id for d in first.datasets]
    assert [d.reused_shards for d in again.datasets] == [3, 1]
    with pytest.raises(DataError, match="short_side: 32 -> 48"):
        run_prep(recipe(tmp_path, videos, images, short_side=48))
    assert plan_prep(recipe(tmp_path, videos, images, short_side=48))[0].state == "other plan"


def _plans_after_generating(config: PrepConfig) -> tuple:
    run_prep(replace(config, datasets={}))
    return plan_prep(config)


def test_a_private_ray_listens_on_the_loopback_interface_only(ray_running) -> None:
    listening = set()
    for process in (psutil.Process(), *descendants(os.getpid())):
        with contextlib.suppress(psutil.NoSuchProcess):  # short-lived ones end meanwhile
            if process.name().startswith("slurm"):  # of other tests of this session, on every address
                continue
            connections = process.net_connections("inet")
            listening |= {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"} and listening


@pytest.mark.slow
def test_one_worker_and_two_of_ray_and_processes_give_the_same_dataset(ray_running, videos, images, tmp_path) -> None:
    reports: list[PrepReport] = []
    for workers, by in ((1, "ray"), (2, "ray"), (2, "processes")):
        root = tmp_path / f"{by}-{workers}"
        root.mkdir()
        reports.append(run_prep(replace(recipe(root, videos, images), workers=workers, workers_by=by)))
    first, second, local = ([d.dataset_id for d in r.datasets] for r in reports)
    assert first == second == local


@pytest.mark.slow
def test_a_shard_that_cannot_be_stored_is_one_clear_error(ray_running, videos, images, tmp_path) -> None:
    config = recipe(tmp_path, videos, images)
    (tmp_path / "datasets" / "clips").mkdir(parents=True)
    (tmp_path / "datasets" / "clips" / "shards").write_text("in the way")
    with pytest.raises(DataError, match="writable folder"):
        run_prep(config)


def test_a_recipe_without_datasets_is_refused_at_once(tmp_path: Path) -> None:
    told: list[ProgressEvent] = []
    with pytest.raises(DataError, match=r"prep\.datasets is empty; expected at least one dataset .*in the recipe"):
        run_prep(PrepConfig(root=str(tmp_path / "d")), on_event=told.append)
    assert not told and not (tmp_path / "d").exists()


def test_missing_inputs_are_refused_before_anything_is_written(videos, images, tmp_path) -> None:
    config = replace(recipe(tmp_path, tmp_path / "absent", images), moving_photos=None)
    with pytest.raises(DataError, match="does not exist"):
        run_prep(config)
    assert not list((tmp_path / "datasets").rglob("*.json"))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_shard_made(videos, images, tmp_path) -> None:
    killed: list[int] = []

    def kill_one(event: ProgressEvent) -> None:
        if event.stage == "shards" and event.done == 1 and not killed:
            workers = descendants(os.getpid(), "ray::make_shard")
            killed.append(workers[0].pid)
            workers[0].kill()

    config = replace(recipe(tmp_path, videos, images, inputs_per_shard=1), workers_by="ray")
    report = run_prep(config, on_event=kill_one)
    assert killed and report.datasets[0].totals.ok == 5
    assert audit_dataset(report.datasets[0].location).ok


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["start", "shards"])
def test_ctrl_c_leaves_no_process_and_a_rerun_completes(videos, images, tmp_path, moment: str) -> None:
    write_mp4(videos / "long-00.mp4", np.random.default_rng(0).integers(0, 255, (200, 96, 96, 3), np.uint8), 25, 20)
    for number in range(1, 40):  # more work than is done before the interruption
        shutil.copy(videos / "long-00.mp4", videos / f"long-{number:02d}.mp4")
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, signal\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from test_job import recipe\n"
        "from mcjepa.data_prep.job import run_prep\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"    config = recipe(*map(Path, {[str(tmp_path), str(videos), str(images)]!r}), timeout_s=90.0)\n"
        "    config = replace(config, workers_by='ray')\n"
        "    run_prep(config, on_event=lambda e: print(e.stage, e.done, e.total, flush=True))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    job = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, env=environment, text=True)
    wanted = "start 0" if moment == "start" else "shards 2"
    assert job.stdout is not None
    assert any(line.startswith(wanted) for line in job.stdout)
    time.sleep(0.5)
    family = descendants(job.pid)
    started = time.monotonic()
    job.send_signal(signal.SIGINT)
    job.wait(30)
    assert job.returncode != 0
    assert wait_until_ended(family, within_s=max(0.1, 10 - (time.monotonic() - started))) == []
    report = run_prep(recipe(tmp_path, videos, images))
    assert report.datasets[0].totals.ok == 45 and report.quarantined == 0
    assert moment == "start" or report.datasets[0].reused_shards >= 2
    assert audit_dataset(report.datasets[0].location).ok
