"""The loader's processes and stores: clean ends, interrupts, hung reads, shards in a bucket."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from small_datasets import assert_equal_steps, open_loader, publish, take

from pipeline.loader import StepLoader
from pipeline.stream_config import SourceConfig, StreamConfig, ViewAugmentConfig


def worker_processes(loader: StepLoader) -> list[int]:
    return [worker.pid for worker in loader._steps._workers]


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def test_closing_ends_busy_workers_within_two_seconds(small_stream: StreamConfig) -> None:
    slow = ViewAugmentConfig(size=1000, blur=(1, 1), blur_sigma_px=(2, 2))  # a step takes tens of seconds
    busy = replace(small_stream, workers=2, view_batch=512, augment=replace(small_stream.augment, view=slow))
    loader = iter(open_loader(busy))
    pids = worker_processes(loader)
    time.sleep(0.3)
    assert not any(gone(pid) for pid in pids)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 2
    assert all(gone(pid) for pid in pids)
    loader.close()
    with pytest.raises(RuntimeError, match="the loader is closed"):
        next(loader)


def test_a_worker_that_hangs_in_a_read_is_ended_all_the_same(small_stream: StreamConfig, own_images: Path) -> None:
    for shard in (own_images / "shards").glob("*.tar"):
        shard.unlink()
        os.mkfifo(shard)  # opening it waits for a writer that never comes
    views = (SourceConfig(location=str(own_images)),)
    loader = iter(open_loader(replace(small_stream, pair_batch=0, views=views, workers=2)))
    pids = worker_processes(loader)
    time.sleep(0.3)
    start = time.monotonic()
    loader.close()
    assert time.monotonic() - start < 2
    assert all(gone(pid) for pid in pids)


def test_workers_leave_ctrl_c_and_slurms_signals_to_the_parent(small_stream: StreamConfig) -> None:
    loader = open_loader(replace(small_stream, workers=2))
    next(loader)
    for pid in worker_processes(loader):
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    assert [batch.step for batch in take(loader, 8)] == list(range(1, 9))


def test_workers_die_with_a_killed_parent(small_stream: StreamConfig, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    location = small_stream.views[0].location
    script.write_text(
        "import time\n"
        "from pipeline.loader import build_loader\n"
        "from pipeline.stream_config import *\n"
        f"views = (SourceConfig(location={location!r}),)\n"
        "config = StreamConfig(views=views, pair_batch=0, view_batch=8, workers=2)\n"
        "loader = iter(build_loader(config, rank=0, world_size=1, start_step=0, seed=0))\n"
        "next(loader)\n"
        "print(*[worker.pid for worker in loader._steps._workers], flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[2]
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    assert len(pids) == 2
    assert wait_until(lambda: all(gone(pid) for pid in pids), 2)


def test_shards_in_a_bucket_give_the_same_steps(small_stream: StreamConfig, s3: str) -> None:
    publish(s3, "image", [20, 17])
    remote = replace(small_stream, views=(SourceConfig(location=s3),))
    assert_equal_steps(take(open_loader(remote), 5), take(open_loader(small_stream), 5))
    assert_equal_steps(take(open_loader(replace(remote, workers=1)), 2), take(open_loader(small_stream), 2))
