"""One process group writes a run, and every rank must see the folder that rank 0 writes to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mcjepa.data_prep.errors import DataError
from mcjepa.data_prep.storage import Store, open_store
from mcjepa.data_prep.storage import lease as leases
from mcjepa.pipeline.errors import RunError
from mcjepa.pipeline.run import claim
from mcjepa.pipeline.run.claim import claimed
from mcjepa.pipeline.run.folder import RunFolder
from mcjepa.pipeline.world import World
from tests.data_prep.storage.test_lease import put_lease

ALONE = World(0, 1, 0, torch.device("cpu"))


class TwoRanks:
    """`broadcast_from_rank0` and `gather_all` among two threads."""

    def __init__(self) -> None:
        self._barrier, self._facts = threading.Barrier(2, timeout=30), [None, None]

    def gather(self, fact: Any, world: World) -> list[Any]:
        self._facts[world.rank] = fact
        self._barrier.wait()
        facts = list(self._facts)
        self._barrier.wait()
        return facts

    def broadcast(self, fact: Any, world: World) -> Any:
        return self.gather(fact, world)[0]


def test_a_second_training_is_refused_by_process_and_host_on_folder_and_s3(tmp_path: Path, s3: str) -> None:
    for store in (open_store(str(tmp_path / "run")), open_store(s3)):
        with claimed(store, ALONE) as held:
            with pytest.raises(DataError, match=r"is being written by process \d+ on .*; expected one writer"):
                claimed(store, ALONE).__enter__()
            held.check()
        with claimed(store, ALONE):
            pass


def test_ranks_without_the_folder_of_rank_0_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = TwoRanks()
    monkeypatch.setattr(claim, "gather_all", ranks.gather)
    monkeypatch.setattr(claim, "broadcast_from_rank0", ranks.broadcast)
    monkeypatch.setattr(claim, "VISIBLE_WITHIN_S", 0.3)

    def outcome(store: Store, rank: int, found: list[str]) -> Callable[[], None]:
        def enter() -> None:
            try:
                with claimed(store, World(rank, 2, rank, torch.device("cpu"))):
                    found.append("trains")
            except DataError as error:
                found.append(str(error))

        return enter

    for folders, expected in ((("a", "a"), "trains"), (("a", "b"), "expected one folder that all nodes share")):
        found: list[str] = []
        entering = [
            threading.Thread(target=outcome(open_store(str(tmp_path / folder)), rank, found))
            for rank, folder in enumerate(folders)
        ]
        for thread in entering:
            thread.start()
        for thread in entering:
            thread.join()
        assert len(found) == 2 and all(expected in each for each in found), found


def test_a_run_that_was_taken_over_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_S", 0.05)
    store = open_store(str(tmp_path))
    with claimed(store, ALONE) as held:
        put_lease(store, number=7)
        waited = threading.Event()
        for _ in range(100):
            if held.taken_over.is_set():
                break
            waited.wait(0.05)
        with pytest.raises(RunError, match="process 4 on node7 took over"):
            held.check()


def test_a_lease_does_not_travel_with_the_files_of_a_run_on_s3(tmp_path: Path, s3: str) -> None:
    folder = RunFolder(s3, str(tmp_path / "one"))
    (folder.path / "spool" / "writers").mkdir(parents=True)
    (folder.path / "spool" / "writers" / "000001.json").write_text("of this machine")
    with claimed(folder.store, ALONE):
        folder.copy()
        other = RunFolder(s3, str(tmp_path / "other"))
        other.fetch()
        assert not list(other.path.rglob("*.json"))
        other.copy()
        assert list(folder.store.list("")) == ["writers/000001.json"]
