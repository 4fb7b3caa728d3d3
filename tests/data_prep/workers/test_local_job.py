"""Small jobs without Ray: the same dataset, Ray never loaded, and nothing that outlives an interruption or a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mcjepa.data_prep.dataset.audit import audit_dataset
from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.job import ProgressEvent, run_prep
from mcjepa.data_prep.requeue import requeue
from mcjepa.data_prep.settings import (
    CorpusConfig,
    DatasetConfig,
    DuplicateFilter,
    FiltersConfig,
    LeakageFilter,
    PrepConfig,
)
from mcjepa.data_prep.workers.local_job import SMALL_MIB, _goes_to_ray
from tests.processes import command_line, descendants, wait_until_ended
from tests.rounds.kill_rounds import REPOSITORY, dataset, make_corpus

JOB = "tests.rounds.prep_driver"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "videos", videos=12, frames=90)


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Id of the dataset that one undisturbed thread makes."""
    root = tmp_path_factory.mktemp("whole")
    config = PrepConfig(root=str(root), datasets={"clips": dataset(corpus)}, workers=1, workers_by="processes")
    return run_prep(config).datasets[0].dataset_id


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def start(corpus: Path, root: Path) -> subprocess.Popen[str]:
    """The job as a process of its own, which has made two shards."""
    command = [sys.executable, "-m", JOB, "", str(corpus), str(root)]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    job = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, env=environment, text=True)
    assert job.stdout is not None and any(line.startswith("shards 2 ") for line in job.stdout)
    return job


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_its_driver_and_a_rerun_completes(
    corpus: Path, whole: str, tmp_path: Path, number: signal.Signals, no_cluster: None
) -> None:
    job = start(corpus, tmp_path)
    family = descendants(job.pid)
    assert any("mcjepa.data_prep.decode.child" in command_line(p) for p in family)
    assert not any("ray" in command_line(p) for p in family)
    job.send_signal(number)
    job.communicate(timeout=30)
    assert job.returncode != 0 and wait_until_ended(family, within_s=10) == []
    assert not (tmp_path / "clips" / "manifest.json").exists()
    report = run_prep(PrepConfig(root=str(tmp_path), datasets={"clips": dataset(corpus)}, workers=2)).datasets[0]
    assert report.dataset_id == whole and report.reused_shards >= 2 and audit_dataset(report.location).ok
    assert not (tmp_path / "clips" / ".scratch").exists()


def test_killed_decode_children_cost_nothing(corpus: Path, whole: str, tmp_path: Path, no_cluster: None) -> None:
    killed: list[int] = []

    def kill_one(event: ProgressEvent) -> None:
        if event.stage == "shards" and event.done == 1:
            for child in descendants(os.getpid(), "mcjepa.data_prep.decode.child"):
                killed.append(child.pid)
                child.kill()

    config = PrepConfig(root=str(tmp_path), datasets={"clips": dataset(corpus)}, workers=2)
    report = run_prep(config, on_event=kill_one).datasets[0]
    assert killed and report.dataset_id == whole


def test_ray_is_neither_loaded_nor_needed_and_the_log_says_so(corpus: Path, whole: str, tmp_path: Path) -> None:
    code = (
        "import logging, sys\n"
        "sys.modules['ray'] = None\n"  # importing it fails
        "logging.basicConfig(level=logging.INFO)\n"
        "from mcjepa.data_prep.job import run_prep\n"
        "from mcjepa.data_prep.settings import PrepConfig\n"
        "from tests.rounds.kill_rounds import dataset\n"
        "from pathlib import Path\n"
        "config = PrepConfig(root=sys.argv[2], datasets={'clips': dataset(Path(sys.argv[1]))}, workers=2)\n"
        "print(run_prep(config).datasets[0].dataset_id)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    command = [sys.executable, "-c", code, str(corpus), str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == whole, done.stderr
    lines = [line for line in done.stderr.splitlines() if "without Ray" in line]
    assert len(lines) == 1 and "2 at a time" in lines[0] and "prep.workers_by" in lines[0]


def test_a_silent_decoder_costs_its_input_only(tmp_path: Path, no_cluster: None) -> None:
    config = replace(dataset(make_corpus(tmp_path / "one", videos=1)), timeout_s=0.001)
    with pytest.raises(DataError, match=r"000\.mp4: the decoder was silent for 0\.001 s .* was killed"):
        run_prep(PrepConfig(root=str(tmp_path / "d"), datasets={"clips": config}, workers=2))


def test_what_a_task_raises_ends_the_job_and_its_children(corpus: Path, tmp_path: Path, no_cluster: None) -> None:
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "shards").write_text("in the way")
    with pytest.raises(DataError, match="writable folder"):
        run_prep(PrepConfig(root=str(tmp_path), datasets={"clips": dataset(corpus)}, workers=2))
    assert not descendants(os.getpid(), "mcjepa.data_prep.decode.child")


def test_repeated_inputs_and_a_requeue_go_the_same_way(
    tmp_path: Path, no_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # whoever imports it fails
    corpus = make_corpus(tmp_path / "videos", videos=2, frames=6)
    (corpus / "copy.mp4").write_bytes((corpus / "000.mp4").read_bytes())
    clips = replace(dataset(corpus), filters=FiltersConfig(duplicates=DuplicateFilter(mode="drop")))
    config = PrepConfig(root=str(tmp_path / "d"), datasets={"clips": clips}, workers=2, workers_by="processes")
    totals = run_prep(config).datasets[0].totals
    assert (totals.ok, totals.filtered, totals.quarantined) == (2, 1, 2)
    (corpus / "text.mp4").write_bytes((corpus / "001.mp4").read_bytes())
    make_corpus(tmp_path / "more", videos=3, frames=6)
    (corpus / "zero.mp4").write_bytes((tmp_path / "more" / "002.mp4").read_bytes())
    report = requeue(config)[0]
    assert (report.retried, report.saved, report.samples) == (2, 2, 5)
    assert audit_dataset(report.location).ok


def _recipe(**changes: object) -> PrepConfig:
    clips = DatasetConfig(kind="clip", corpora=(CorpusConfig(reader="videos", path="/data/videos"),))
    settings: dict[str, object] = {"root": "/data/sets", "datasets": {"clips": clips}, **changes}
    return PrepConfig(**settings)  # type: ignore[arg-type]


GUARDED = DatasetConfig(
    kind="clip",
    corpora=(CorpusConfig(reader="videos", path="/data/videos"),),
    filters=FiltersConfig(leakage=LeakageFilter(mode="drop", sets=(CorpusConfig(reader="davis", path="/data/davis"),))),
)
REMOTE = DatasetConfig(kind="clip", corpora=(CorpusConfig(reader="videos", path="s3://raw/videos"),))


@pytest.mark.parametrize(
    ("changes", "size_mib", "by_ray"),
    [
        ({}, SMALL_MIB, False),
        ({}, SMALL_MIB + 1, True),
        ({"workers_by": "processes"}, 9000, False),
        ({"workers_by": "ray"}, 0, True),
        ({"ray_address": "127.0.0.1:6379"}, 0, True),
        ({"root": "s3://bucket/sets"}, 0, True),
        ({"datasets": {"clips": REMOTE}}, 0, True),
        ({"datasets": {"clips": GUARDED}}, 0, True),
    ],
)
def test_ray_is_for_large_jobs_and_named_clusters(changes: dict[str, object], size_mib: float, by_ray: bool) -> None:
    config = _recipe(**changes)
    assert _goes_to_ray(config, config.ray_address, size_mib) == by_ray


def test_processes_of_a_cluster_are_refused() -> None:
    with pytest.raises(ValueError, match=r"workers_by=processes with a ray_address; expected one of the two"):
        _recipe(workers_by="processes", ray_address="127.0.0.1:6379")
