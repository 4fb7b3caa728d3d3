"""The whole job while S3 fails: the same dataset as undisturbed, with nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mcjepa.data_prep.corpora.moving_photos.generate import write_mp4
from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.job import PrepReport, ProgressEvent, run_prep
from mcjepa.data_prep.settings import PrepConfig
from mcjepa.data_prep.storage import open_store
from tests.data_prep.conftest import clip_settings, smooth_frames
from tests.faults.proxy import FaultProxy
from tests.servers.seaweed import SeaweedServer

VIDEOS = 24


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """A folder of short videos."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(VIDEOS):
        write_mp4(folder / f"{number:02d}.mp4", smooth_frames(number, 6, 64, 96), 10, 20)
    return folder


def prepare(root: str, clips: Path | str, on_event: Callable[[ProgressEvent], None] | None = None) -> PrepReport:
    config = PrepConfig(root=root, datasets={"clips": clip_settings(clips, inputs_per_shard=1)}, workers=2)
    return run_prep(config, on_event=on_event)


def copy_to(location: str, folder: Path) -> str:
    """Put the files of a folder into a store; returns its location."""
    store = open_store(location)
    for path in folder.iterdir():
        store.write(path.name, path.read_bytes())
    return location


@pytest.mark.slow
def test_a_job_from_a_failing_s3_to_it_gives_the_same_dataset_as_on_a_disk(
    clips: Path, s3: str, s3_server: SeaweedServer, proxy: FaultProxy, tmp_path: Path
) -> None:
    undisturbed = prepare(str(tmp_path / "local"), clips).datasets[0]
    assert undisturbed.totals.shards == VIDEOS
    restarts = []

    def crash_once(event: ProgressEvent) -> None:
        if event.stage == "shards" and event.done >= 3 and not restarts:
            s3_server.kill()
            restarts.append(event.done)
            s3_server.start()  # takes some seconds, in which the workers go on

    proxy.fail_at_random(seed=3, errors=0.05, cuts=0.05)
    disturbed = prepare(f"{s3}/root", copy_to(f"{s3}/videos", clips), crash_once).datasets[0]
    assert audit_dataset(f"{s3}/root/clips").ok
    assert disturbed.dataset_id == undisturbed.dataset_id and disturbed.totals == undisturbed.totals
    counts = proxy.counts
    assert restarts and counts["error before"] + counts["error after"] >= 3, counts
    assert counts["cut request"] + counts["cut response"] >= 3, counts
