"""Which code runs: its version and digest, and how a process that we start finds the very same code.

A process of ours never imports from the current folder, where anything may lie: `queue.py`, `numpy.py`, another
checkout of this project.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import site
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = import_module(__name__.partition(".")[0])
ROOMS = ("cluster", "configs", "data_prep", "evals", "model", "pipeline")
ISOLATION = ("PYTHONPATH", "PYTHONSAFEPATH")


@functools.cache
def code_digest() -> str:
    """sha256 (hex) over the names and bytes of all .py files of the package, sorted by name.

    The same for a checkout, an editable install and a wheel of the same code.
    """
    files = {path.name: path for path in Path(str(PACKAGE.__file__)).parent.glob("*.py")}
    for base in map(Path, PACKAGE.__path__):  # the second one is there where an archive has lost the rooms' links
        for room in ROOMS:
            files |= {path.relative_to(base).as_posix(): path for path in (base / room).rglob("*.py")}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        content = path.read_bytes()
        digest.update(f"{name}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


@functools.cache
def code_name() -> str:
    """The code in words: version and the start of its digest, e.g. `mcjepa 0.1.0 (code 3fa9c0d1e2f3)`."""
    try:
        number = version("mcjepa")
    except PackageNotFoundError:
        number = "not installed"
    return f"mcjepa {number} (code {code_digest()[:12]})"


def search_path() -> str:
    """A PYTHONPATH by which another process finds this very package, without the current folder and the like."""
    kept = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(entry)]
    root = str(Path(str(PACKAGE.__file__)).resolve().parent.parent)
    installed = root in map(os.path.realpath, [*site.getsitepackages(), site.getusersitepackages()])
    return os.pathsep.join(dict.fromkeys(kept if installed else [root, *kept]))


def isolated_environment() -> dict[str, str]:
    """The environment for a Python process of ours: it, and what it starts, passes over the current folder."""
    return {**os.environ, "PYTHONPATH": search_path(), "PYTHONSAFEPATH": "1"}


@contextlib.contextmanager
def isolated_children() -> Iterator[None]:
    """Give what libraries start meanwhile the environment of `isolated_environment`."""
    before = {name: os.environ.get(name) for name in ISOLATION}
    wanted = isolated_environment()
    os.environ.update({name: wanted[name] for name in ISOLATION})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
