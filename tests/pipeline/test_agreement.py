"""Ranks that begin with another recipe or other code than the first are refused, by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_recipe import write_small_recipe

import mcjepa
from mcjepa.cluster.rendezvous import free_port

PACKAGE = Path(mcjepa.__file__).parent

pytestmark = pytest.mark.slow


def start(rank: int, port: int, recipe: Path, *words: str, package: Path | None = None) -> subprocess.Popen[str]:
    """One of two ranks, with the command line of its own; `package` is the folder that its code comes from."""
    variables = {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        **{"MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "DS_ACCELERATOR": "cpu"},
        **({"PYTHONPATH": str(package)} if package else {}),
    }
    words = ("-m", "mcjepa", "train", str(recipe), *words)
    return subprocess.Popen(
        [sys.executable, "-P", *words], env=variables, cwd=recipe.parent, stderr=subprocess.PIPE, text=True
    )


def errors_of(ranks: list[subprocess.Popen[str]]) -> list[str]:
    """The line that each of them ends with; all must end with exit code 2."""
    try:
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [2, 2], said
    return [next(line for line in text.splitlines() if line.startswith("mcjepa: ")) for text in said]


def test_another_rate_on_one_rank_is_refused_by_its_key(tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    port = free_port(1)
    lines = errors_of([start(0, port, recipe), start(1, port, recipe, "train.optimizer.encoder_lr=0.5")])
    assert lines[0] == lines[1]
    assert "rank 1 on " in lines[0] and "train.optimizer.encoder_lr is 0.5 there" in lines[0]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_other_code_on_one_rank_is_refused_with_both_named(tmp_path: Path) -> None:
    recipe = write_small_recipe(tmp_path)
    other = tmp_path / "other" / "mcjepa"
    shutil.copytree(PACKAGE, other, ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "model" / "warp.py").open("a", encoding="utf-8") as file:
        file.write("\n# another version\n")
    port = free_port(2)
    lines = errors_of([start(0, port, recipe), start(1, port, recipe, package=other.parent)])
    assert lines[0] == lines[1] and lines[0].count("(code ") == 2
    assert "expected the same code on all ranks" in lines[0]
