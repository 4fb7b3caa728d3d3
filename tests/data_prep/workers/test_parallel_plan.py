"""A corpus planned by several workers has the plan of one process, of every kind and order; nothing of it stays."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.layout import MANIFEST_NAME, PLAN_INPUTS_NAME, PLAN_NAME
from mcjepa.data_prep.plan import stretches
from mcjepa.data_prep.plan.files import begin_plan, read_plan, read_plan_inputs
from mcjepa.data_prep.plan.listing import list_inputs
from mcjepa.data_prep.plan.plan import PlannedInput, PlanSummary
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, DuplicateFilter, FiltersConfig, PrepConfig
from mcjepa.data_prep.storage import Store, open_store
from mcjepa.data_prep.workers import parallel_plan
from mcjepa.data_prep.workers.parallel_plan import plan_dataset
from mcjepa.data_prep.workers.ray_session import running_ray
from tests.processes import descendants, wait_until_ended

NAMES = ("a", "a-b", "a b", "é", "b.x", "Z", "b")


def scatter(root: Path, suffixes: tuple[str, ...], count: int = 90) -> Path:
    """Files with names that sort differently as text and by folders, some of other kinds, hidden or dangling links."""
    draw = random.Random(7)
    for number in range(count):
        folder = root.joinpath(*(draw.choice(NAMES) for _ in range(draw.randint(0, 3))))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{draw.choice(NAMES)}{number}{draw.choice(suffixes)}").write_bytes(bytes(number))
    (root / ".hidden.jpg").write_bytes(b"x")
    (root / "a" / "nowhere.jpg").symlink_to(root / "absent")
    return root


def scatter_tars(root: Path) -> Path:
    """Tars of samples in folders, one of them damaged and one packed."""
    for number in range(12):
        place = root / NAMES[number % 5] / f"{number}.tar"
        place.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(place, "w") as tar:
            for name, data in (("x.jpg", b"1" * number), ("x.cls", b"7"), ("y.png", b"22"), ("notes.txt", b"")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, BytesIO(data))
    (root / "a" / "cut.tar").write_bytes((root / "a" / "0.tar").read_bytes()[:700])
    (root / "b.tar.gz").write_bytes(b"packed")
    return root


@pytest.fixture
def corpora(tmp_path: Path) -> dict[str, tuple[CorpusConfig, ...]]:
    """Corpora of every reader of any files, and several of them in one dataset, repeated."""
    images = str(scatter(tmp_path / "images", (".jpg", ".PNG", ".txt")))
    videos = str(scatter(tmp_path / "videos", (".mp4", ".srt")))
    tars = str(scatter_tars(tmp_path / "tars"))
    flat = tmp_path / "flat"
    flat.mkdir()
    for number in range(30):
        (flat / f"{number}.jpg").write_bytes(bytes(number))
    one = {
        "images": CorpusConfig(reader="images", path=images, members=("jpg",)),
        "imagefolder": CorpusConfig(reader="imagefolder", path=images, labels=True),
        "imagenet": CorpusConfig(reader="imagenet", path=str(tmp_path), split="images"),
        "videos": CorpusConfig(reader="videos", path=videos, labels=True),
        "flat": CorpusConfig(reader="images", path=str(flat)),
        "tars": CorpusConfig(reader="tars", path=tars),
        "webdataset": CorpusConfig(reader="webdataset", path=tars, labels=True),
        "frame-folders": CorpusConfig(reader="frame-folders", path=images),
    }
    together = (replace(one["images"], repeat=2), one["frame-folders"], one["webdataset"])
    return {**{name: (corpus,) for name, corpus in one.items()}, "together": together}


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than ten inputs are many, and a range of places holds a few lines."""
    monkeypatch.setattr(parallel_plan, "SMALL_INPUTS", 10)
    monkeypatch.setattr(stretches, "RANGE_BYTES", 2000)


def dataset(corpora: tuple[CorpusConfig, ...], order: str = "shuffled") -> DatasetConfig:
    filters = FiltersConfig(duplicates=DuplicateFilter(mode="drop"))
    return DatasetConfig(kind="image", corpora=corpora, order=order, order_seed=3, filters=filters)  # type: ignore[arg-type]


def plan_of(config: DatasetConfig, root: Path, **job: object) -> tuple[PlanSummary, list[PlannedInput], Store]:
    store = open_store(str(root))
    prep = PrepConfig(root=str(root.parent), datasets={root.name: config}, workers=2, **job)  # type: ignore[arg-type]
    summary = plan_dataset(prep, config, store, lambda listed: None)
    return summary, list(read_plan_inputs(store)), store


def plan_of_one(config: DatasetConfig, root: Path) -> tuple[PlanSummary, list[PlannedInput]]:
    store = open_store(str(root))
    census = parallel_plan.Census()
    return begin_plan(store, config, list_inputs(config, census), census=census), list(read_plan_inputs(store))


def files_of(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.usefixtures("small_limits")
def test_the_plan_is_that_of_one_process_for_every_reader_and_order(
    corpora: dict[str, tuple[CorpusConfig, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the functions that workers run, in this process: starting real ones for each would take minutes."""

    def run(function: Callable, work: object, items: object, *, workers: int, on_result: Callable) -> None:  # type: ignore[type-arg]
        made = [function(work, item) for item in items]  # type: ignore[attr-defined]
        for result in reversed(made):  # in any order
            on_result(result)

    monkeypatch.setattr(parallel_plan, "run_in_processes", run)
    for name, several in corpora.items():
        cut = stretches.cut_corpora(dataset(several), 16)
        few = {"frame-folders": 1, "flat": 2}
        assert len(cut) == few[name] if name in few else len(cut) > 8, name
        for order in ("shuffled", "listed"):
            config = dataset(several, order)
            expected = plan_of_one(config, tmp_path / "one" / name / order)
            summary, inputs, _ = plan_of(config, tmp_path / "several" / name / order)
            assert (summary, inputs) == expected, (name, order)
            assert files_of(tmp_path / "several" / name / order) == {PLAN_NAME, PLAN_INPUTS_NAME}


@pytest.mark.usefixtures("small_limits")
def test_processes_plan_and_compare_with_a_plan_that_is_there(
    corpora: dict[str, tuple[CorpusConfig, ...]], tmp_path: Path
) -> None:
    config = dataset(corpora["together"])
    expected = plan_of_one(config, tmp_path / "one")
    summary, inputs, store = plan_of(config, tmp_path / "several")
    assert (summary, inputs) == expected
    written = (tmp_path / "several" / PLAN_INPUTS_NAME).stat().st_mtime_ns
    assert plan_of(config, tmp_path / "several")[0] == summary == read_plan(store)
    assert (tmp_path / "several" / PLAN_INPUTS_NAME).stat().st_mtime_ns == written
    assert files_of(tmp_path / "several") == {PLAN_NAME, PLAN_INPUTS_NAME}
    assert descendants(os.getpid(), "spawn_main") == []


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("address", ["", "127.0.0.1:1"])
def test_a_published_dataset_is_planned_without_a_touch(
    corpora: dict[str, tuple[CorpusConfig, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """It has no lease: runs side by side would share a folder in it, or find it read-only; no cluster is asked."""
    config, root, temporary = dataset(corpora["images"]), tmp_path / "published", tmp_path / "temporary"
    expected, _ = plan_of_one(config, root)
    (root / MANIFEST_NAME).write_text("{}")
    shutil.rmtree(root / ".scratch")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    before = root.stat().st_mtime_ns
    assert plan_of(config, root, ray_address=address)[0] == expected
    assert root.stat().st_mtime_ns == before
    assert list(temporary.iterdir()) == []


@pytest.mark.usefixtures("small_limits")
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_ray_plans_through_the_dataset_s_store(corpora: dict[str, tuple[CorpusConfig, ...]], tmp_path: Path) -> None:
    config = dataset(corpora["together"])
    with running_ray("", 2):
        summary, inputs, _ = plan_of(config, tmp_path / "several")
    assert (summary, inputs) == plan_of_one(config, tmp_path / "one")
    assert files_of(tmp_path / "several") == {PLAN_NAME, PLAN_INPUTS_NAME}


@pytest.mark.usefixtures("small_limits")
def test_what_tasks_in_flight_still_write_is_cleared_too(
    corpora: dict[str, tuple[CorpusConfig, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "plan"

    @contextlib.contextmanager
    def running(_address: str, _workers: int) -> Iterator[None]:
        """Ray, whose tasks write until it is left."""
        try:
            yield
        finally:
            open_store(str(root / "planning")).write("000000.digest", b"late")

    def run(*_: object, **__: object) -> None:
        raise DataError("a task failed")

    monkeypatch.setattr(parallel_plan, "running_ray", running)
    monkeypatch.setattr(parallel_plan, "run_tasks", run)
    with pytest.raises(DataError, match="a task failed"):
        plan_of(dataset(corpora["images"]), root, ray_address="cluster:1")
    assert files_of(root) == set()


@pytest.mark.usefixtures("small_limits")
def test_relative_locations_hold_in_workers_that_run_elsewhere(
    corpora: dict[str, tuple[CorpusConfig, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(function: Callable, work: object, items: object, *, workers: int, on_result: Callable) -> None:  # type: ignore[type-arg]
        for item in list(items):  # type: ignore[call-overload]
            with contextlib.chdir(tmp_path / "tars"):
                result = function(work, item)
            on_result(result)

    monkeypatch.setattr(parallel_plan, "run_in_processes", run)
    monkeypatch.chdir(tmp_path)
    config = dataset(tuple(replace(corpus, path=Path(corpus.path).name) for corpus in corpora["together"]))
    assert plan_of(config, Path("several"))[:2] == plan_of_one(dataset(corpora["together"]), tmp_path / "one")


def test_an_exchange_is_cleared_however_its_location_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "a b%20c#1?" / "planning"
    neighbour = tmp_path / "a b%20c"
    neighbour.mkdir()
    for location in (str(folder), folder.as_uri(), folder.as_uri().replace("%23", "#").replace("%3F", "?")):
        with parallel_plan._exchange(location) as exchange:
            exchange.write("000000.digest", b"1")
            assert files_of(folder) == {"000000.digest"}
        assert not folder.exists() and neighbour.exists()


@pytest.mark.usefixtures("small_limits")
def test_a_corpus_in_which_no_worker_finds_anything_is_refused_as_by_one(tmp_path: Path) -> None:
    many, none = scatter(tmp_path / "many", (".jpg",)), scatter(tmp_path / "none", (".txt",))
    corpora = tuple(CorpusConfig(reader="images", path=str(root)) for root in (many, none))
    with pytest.raises(DataError, match=r"none has no file ending in .*it has 90 \.txt.*expected at least one"):
        (tmp_path / "none" / "a" / "nowhere.jpg").unlink()
        plan_of(dataset(corpora), tmp_path / "plan")
    assert files_of(tmp_path / "plan") == set()


def test_what_one_process_plans_alone_starts_no_other(
    corpora: dict[str, tuple[CorpusConfig, ...]], tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was asked for")

    monkeypatch.setattr(parallel_plan, "run_in_processes", refuse)
    plan_of(dataset(corpora["images"]), tmp_path / "small")
    monkeypatch.setattr(parallel_plan, "SMALL_INPUTS", 10)
    caplog.set_level("INFO")
    plan_of(dataset(corpora["frame-folders"]), tmp_path / "whole")
    assert "one process plans" in caplog.text and "frame-folders needs the corpus whole" in caplog.text


PLANNING = """
import sys
from mcjepa.data_prep.settings import CorpusConfig, DatasetConfig, PrepConfig
from mcjepa.data_prep.storage import open_store
from mcjepa.data_prep.workers import parallel_plan
parallel_plan.SMALL_INPUTS = 10
corpus, root = sys.argv[1:]
config = DatasetConfig(kind="image", corpora=(CorpusConfig(reader="images", path=corpus, repeat=400),))
job = PrepConfig(root=root, datasets={"d": config}, workers=2)
if __name__ == "__main__":
    def tell(listed):
        print(listed, flush=True)
    parallel_plan.plan_dataset(job, config, open_store(root + "/d"), tell)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_planning_that_is_ended_leaves_no_process_and_the_next_one_clears_up(
    tmp_path: Path, number: signal.Signals
) -> None:
    corpus, program = scatter(tmp_path / "images", (".jpg",)), tmp_path / "program.py"
    program.write_text(PLANNING)
    words = [sys.executable, str(program), str(corpus), str(tmp_path)]
    planning = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert planning.stdout
    for line in planning.stdout:
        if int(line) > 90:  # workers have listed a stretch
            break
    children = descendants(planning.pid)
    assert len(children) >= 2
    planning.send_signal(number)
    planning.wait(20)
    planning.stdout.close()
    time.sleep(0.1)
    assert wait_until_ended(children, 10) == []
    left = files_of(tmp_path / "d")
    assert not {PLAN_NAME, PLAN_INPUTS_NAME} & left
    if number == signal.SIGINT:
        assert left == set()
    with parallel_plan._exchange(str(tmp_path / "d" / ".scratch" / parallel_plan.EXCHANGE)):
        assert not any("planning" in name for name in files_of(tmp_path / "d"))
