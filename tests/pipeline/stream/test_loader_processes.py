"""The loader's processes and stores: clean ends, interrupts, hung reads, shards in a bucket."""

from __future__ import annotations

import json
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

from mcjepa.pipeline.settings.stream import SourceConfig, StreamConfig, ViewAugmentConfig
from mcjepa.pipeline.stream.loader import StepLoader


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
    assert not [left for pid in pids for left in Path("/dev/shm").glob(f"torch_{pid}_*")]  # gigabytes, until a reboot
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


def test_workers_leave_stop_signals_to_the_parent(small_stream: StreamConfig) -> None:
    loader = open_loader(replace(small_stream, workers=2))
    next(loader)
    for pid in worker_processes(loader):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(pid, number)
    assert [batch.step for batch in take(loader, 8)] == list(range(1, 9))


def test_workers_die_with_a_killed_parent(small_stream: StreamConfig, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    location = small_stream.views[0].location
    script.write_text(
        "import time\n"
        "from mcjepa.pipeline.stream.loader import build_loader\n"
        "from mcjepa.pipeline.settings.stream import *\n"
        f"views = (SourceConfig(location={location!r}),)\n"
        "config = StreamConfig(views=views, pair_batch=0, view_batch=8, workers=2)\n"
        "loader = iter(build_loader(config, rank=0, world_size=1, start_step=0, seed=0))\n"
        "next(loader)\n"
        "print(*[worker.pid for worker in loader._steps._workers], flush=True)\n"
        "time.sleep(60)\n"
    )
    root = Path(__file__).resolve().parents[3]
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


OPEN_AT_EXIT = """
import sys
from mcjepa.pipeline.stream.loader import build_loader
from mcjepa.pipeline.settings.stream import *
config = StreamConfig(views=(SourceConfig(location=sys.argv[1]),), pair_batch=0, view_batch=8, workers=2)
loader = iter(build_loader(config, rank=0, world_size=1, start_step=0, seed=0))
next(loader)
"""


def test_a_program_that_never_closes_its_loader_ends(small_stream: StreamConfig) -> None:
    root = Path(__file__).resolve().parents[3]
    command = [sys.executable, "-c", OPEN_AT_EXIT, small_stream.views[0].location]
    subprocess.run(command, check=True, timeout=60, env={**os.environ, "PYTHONPATH": str(root)})


RANK_SCRIPT = """
import json, sys
from mcjepa.pipeline.stream.loader import build_loader
from mcjepa.pipeline.settings.stream import *
clips, images, rank, world, start, count = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
config = StreamConfig(
    pairs=(SourceConfig(location=clips),), views=(SourceConfig(location=images),), pair_batch=4, view_batch=8,
    augment=AugmentConfig(pair=PairAugmentConfig(crop=(24, 32)), view=ViewAugmentConfig(size=16)), window=8, workers=1,
)
with build_loader(config, rank=rank, world_size=world, start_step=start, seed=11) as loader:
    batches = [next(loader) for _ in range(count)]
print(json.dumps([[b.pairs.keys, b.views.keys, float(b.views.view0.double().sum())] for b in batches]))
"""


def read_by_processes(config: StreamConfig, world: int, start: int, count: int) -> list[list[list[str]]]:
    """The global order of some steps, put together from what `world` processes read at the same time."""
    root = Path(__file__).resolve().parents[3]
    words = [sys.executable, "-c", RANK_SCRIPT, config.pairs[0].location, config.views[0].location]
    ranks = [
        subprocess.Popen(
            [*words, *map(str, (rank, world, start, count))],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        for rank in range(world)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0]) for process in ranks]
    steps = []
    for parts in zip(*answers, strict=True):
        streams = [[key for keys in zip(*(part[s] for part in parts), strict=True) for key in keys] for s in (0, 1)]
        steps.append([*streams, round(sum(part[2] for part in parts), 6)])
    return steps


@pytest.mark.slow
def test_real_ranks_that_stop_and_go_on_as_two_and_one_read_the_uninterrupted_order(
    small_stream: StreamConfig,
) -> None:
    whole = read_by_processes(small_stream, 1, 0, 9)
    parts = [*read_by_processes(small_stream, 1, 0, 2), *read_by_processes(small_stream, 2, 2, 5)]
    assert [*parts, *read_by_processes(small_stream, 1, 7, 2)] == whole
    assert read_by_processes(small_stream, 2, 0, 4) == whole[:4]


def test_shards_in_a_bucket_give_the_same_steps(small_stream: StreamConfig, s3: str) -> None:
    publish(s3, "image", [20, 17])
    remote = replace(small_stream, views=(SourceConfig(location=s3),))
    assert_equal_steps(take(open_loader(remote), 5), take(open_loader(small_stream), 5))
    assert_equal_steps(take(open_loader(replace(remote, workers=1)), 2), take(open_loader(small_stream), 2))
