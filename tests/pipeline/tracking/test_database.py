"""New tracking databases are copies of an empty one that MLflow has made."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from mcjepa.pipeline.tracking.database import make_database
from mcjepa.pipeline.tracking.mlflow import create_run, open_client

SEEDS = ("alembic_version", "workspaces", "experiments")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mcjepa"


def make(path: Path, *others: str) -> None:
    """A database with a row in the tables that a new one has them in, and in others."""
    with closing(sqlite3.connect(path)) as database:
        for name in ("runs", *SEEDS):
            database.execute(f"CREATE TABLE {name} (value TEXT)")
        for name in (*SEEDS, *others):
            database.execute(f"INSERT INTO {name} VALUES ('first')")
        database.commit()


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as database:
        return sorted(database.execute("SELECT name, coalesce(sql, '') FROM sqlite_master").fetchall())


def rows(path: Path, table: str) -> list[str]:
    with closing(sqlite3.connect(path)) as database:
        return [str(value[0]) for value in database.execute(f"SELECT * FROM {table}").fetchall()]


def test_the_next_file_is_a_copy_without_the_first_ones_experiment(tmp_path: Path) -> None:
    first, second = tmp_path / "a.db", tmp_path / "b" / "mlflow.db"
    made = []
    for path in (first, second, second):
        make_database(path, lambda path=path: (make(path), made.append(path)))  # type: ignore[misc]
    assert made == [first] and schema(second) == schema(first) and second.stat().st_mode == first.stat().st_mode
    assert rows(second, "workspaces") == ["first"] and rows(second, "experiments") == []
    assert rows(first, "experiments") == ["first"] and [p.name for p in second.parent.iterdir()] == ["mlflow.db"]


def test_a_file_that_was_used_meanwhile_is_not_kept(tmp_path: Path, cache: Path) -> None:
    make_database(tmp_path / "a.db", lambda: make(tmp_path / "a.db", "runs"))
    assert list(cache.iterdir()) == []


@pytest.mark.slow
def test_mlflow_takes_the_copy_as_its_own_and_as_quickly_as_it_can(tmp_path: Path, cache: Path) -> None:
    spent = []
    for name in ("a", "b"):
        uri, used = f"sqlite:///{tmp_path}/{name}/mlflow.db", time.process_time()
        client = open_client(uri)
        run = create_run(client, "experiment", "", name, {"tag": name})
        client.log_metric(run, "loss", 1.0)
        spent.append(time.process_time() - used)
        assert [e.name for e in client.search_experiments()] == ["experiment", "Default"]
        assert client.get_run(run).data.tags["tag"] == name
    assert len(list(cache.iterdir())) == 1 and schema(tmp_path / "b/mlflow.db") == schema(tmp_path / "a/mlflow.db")
    assert spent[1] < 0.5 * spent[0]
