"""Which code runs is known by a digest, and what we start finds that code and nothing of the current folder."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcjepa.data_prep.code import code_digest, isolated_children, isolated_environment, search_path

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ("cluster", "configs", "data_prep", "evals", "model", "pipeline")


def _copy(folder: Path, *, links: bool) -> Path:
    """A copy of the package: as an archive without links has it, or with the rooms inside the package (a wheel)."""
    package = folder / "mcjepa"
    package.mkdir(parents=True)
    for path in (REPOSITORY / "mcjepa").glob("*.py"):
        shutil.copy(path, package)
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, (package if links else folder) / room)
    if not links:
        (folder / "pyproject.toml").touch()
    return folder


def _digest(root: Path) -> str:
    lines = ("import sys", f"sys.path.insert(0, {str(root)!r})", "from mcjepa.data_prep.code import code_digest")
    code = "\n".join((*lines, "print(code_digest())"))
    return subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, cwd=root
    ).stdout.strip()


def test_the_digest_is_that_of_the_code_wherever_it_lies(tmp_path: Path) -> None:
    wheel, archive = _copy(tmp_path / "a", links=True), _copy(tmp_path / "b", links=False)
    assert _digest(wheel) == _digest(archive) == code_digest()
    with (wheel / "mcjepa" / "model" / "warp.py").open("a") as file:
        file.write("# changed\n")
    assert _digest(wheel) != code_digest()


def test_empty_and_relative_entries_of_the_search_path_are_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "lib", ".", str(tmp_path)]))
    assert search_path().split(os.pathsep) == [str(REPOSITORY), str(tmp_path)]


def test_a_process_of_ours_passes_over_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text("raise RuntimeError('trap')")
    monkeypatch.setenv("PYTHONPATH", "")
    code = "import json, queue, sys, mcjepa; print(json.dumps([sys.path, mcjepa.__file__]))"
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=isolated_environment()
    )
    path, package = json.loads(answer.stdout)
    assert str(tmp_path) not in path and "" not in path
    assert Path(package).samefile(REPOSITORY / "mcjepa" / "__init__.py")


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "x")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    with isolated_children():
        assert os.environ["PYTHONSAFEPATH"] == "1"
        assert os.environ["PYTHONPATH"] == str(REPOSITORY)
    assert os.environ["PYTHONPATH"] == "x" and "PYTHONSAFEPATH" not in os.environ
