"""A tracking location that is a SQLite file: opened without MLflow, and made without its migrations.

MLflow makes a new file by all the migrations of its history, 4.6 s of a processor. So the first one that is made is
kept without its content, in the user's cache folder by MLflow's version, and the next new files are copies of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mcjepa.pipeline.errors import UsageError

log = logging.getLogger(__name__)
SQLITE = "sqlite:///"
BUSY_S = 30.0
"""How long another process may keep a file to itself."""
SEEDED = frozenset({"alembic_version", "workspaces"})
"""Tables that MLflow's migrations fill."""
DEFAULT = "experiments"
"""The table of the one row that its first use adds, with a path of that place and moment."""


def is_file(uri: str) -> bool:
    """Whether a tracking location is a database file."""
    return uri.startswith(SQLITE)


def file_of(uri: str) -> Path:
    """The file of a location that is one."""
    return Path(uri.removeprefix(SQLITE))


def check_file(uri: str) -> None:
    """Opens a database file for writing, as MLflow will; does nothing for a server.

    Raises:
        UsageError: its folder cannot be made, or it cannot be written or is no database.
    """
    if not is_file(uri):
        return
    path = file_of(uri)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with tempfile.TemporaryFile(dir=path.parent):  # it can be made
                return
        with contextlib.closing(sqlite3.connect(path, timeout=BUSY_S)) as database:
            database.execute("BEGIN IMMEDIATE")
            database.rollback()
    except (OSError, sqlite3.Error) as error:
        raise UsageError(unusable(uri, f"{type(error).__name__}: {error}")) from error


def unusable(uri: str, reason: str) -> str:
    """The words for a tracking location that cannot be used."""
    return f"MLflow at {uri} cannot be used ({reason}); check tracking.uri"


def make_database(path: Path, migrate: Callable[[], object]) -> None:
    """Makes a new file as a copy of the one that is kept, or by MLflow, and keeps what it made.

    Args:
        path: of the file; nothing is done where it exists.
        migrate: lets MLflow make it.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = _kept()
    if kept.is_file():
        with contextlib.suppress(OSError):  # MLflow then makes it
            _copy(kept, path)
            return
    migrate()
    with contextlib.suppress(OSError, sqlite3.Error):  # a cache folder that cannot be written costs time alone
        _keep(path, kept)


def _kept() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "mcjepa", f"mlflow-{metadata.version('mlflow')}.db")


def _copy(kept: Path, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        shutil.copyfile(kept, partial)  # with the rights of any new file, unlike those of a temporary one
        with contextlib.suppress(FileExistsError):  # another process was faster
            os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _keep(path: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        partial = Path(folder, kept.name)
        with (
            contextlib.closing(sqlite3.connect(path, timeout=BUSY_S)) as made,
            contextlib.closing(sqlite3.connect(partial)) as copy,
        ):
            made.backup(copy)
            copy.execute(f"DELETE FROM {DEFAULT}")
            tables = [name for (name,) in copy.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            filled = {name for name in tables if copy.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()}
            copy.commit()
        if filled == SEEDED:  # else another process has used it meanwhile, or MLflow has changed
            os.replace(partial, kept)
