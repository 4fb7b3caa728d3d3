"""The doors between the rooms: which folder may import which, and what a cold start may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("model", "data_prep", "pipeline", "evals", "cluster", "configs")
CLI = "pipeline/cli/"
PACKAGE = "mcjepa"
ALLOWED_ROOMS = {
    "model": (),
    "data_prep": (),
    "pipeline": (
        "mcjepa.model",
        "mcjepa.data_prep.dataset.manifest",
        "mcjepa.data_prep.layout",
        "mcjepa.data_prep.code",
        "mcjepa.data_prep.storage",
        "mcjepa.data_prep.errors",
    ),
    "evals": (
        "mcjepa.model",
        "mcjepa.data_prep.corpora",
        "mcjepa.data_prep.storage",
        "mcjepa.data_prep.errors",
        "mcjepa.data_prep.decode",  # evals/infer/inputs.py only: see tests/evals/test_evals_structure.py
        "mcjepa.pipeline.tracking",
        "mcjepa.pipeline.pictures",
        "mcjepa.pipeline.errors",
    ),
    "cluster": (),
}
MODEL_MAY_USE = {"torch", "numpy", "safetensors"}
ADAPTERS = {
    "ray": {"data_prep/workers/ray_job.py", "data_prep/workers/ray_submit.py"},
    "mlflow": {"pipeline/tracking/mlflow.py"},
    "deepspeed": {"pipeline/engine/engine.py"},
    "submitit": {"cluster/submit.py", "cluster/task.py"},
    "boto3": {"data_prep/storage/s3_client.py"},
    "botocore": {"data_prep/storage/s3_client.py", "data_prep/storage/s3_errors.py"},
}


def _sources(room: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((REPOSITORY / room).rglob("*.py")):
        yield path.relative_to(REPOSITORY).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(name: str, allowed: tuple[str, ...]) -> bool:
    return any(name == door or name.startswith(f"{door}.") for door in allowed)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_through_its_doors(room: str) -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in _sources(room)
        if not path.startswith(CLI)
        for name in _imports(tree)
        if _within(name, (PACKAGE,)) and not _within(name, (f"{PACKAGE}.{room}", *ALLOWED_ROOMS[room]))
    ]
    assert wrong == []


def test_a_room_is_imported_by_way_of_the_package_only() -> None:
    """A bare `import model` would load a second copy of a module, or a user's own `model.py`."""
    wrong = [
        f"{path}: {name}"
        for folder in (*ROOMS, PACKAGE, "tests", "benchmarks")
        for path, tree in _sources(folder)
        for name in _imports(tree)
        if name.split(".")[0] in ROOMS
    ]
    assert wrong == []


def test_only_the_command_line_imports_the_command_line() -> None:
    wrong = [
        path
        for room in ROOMS
        for path, tree in _sources(room)
        if not path.startswith(CLI) and any(_within(name, ("mcjepa.pipeline.cli",)) for name in _imports(tree))
    ]
    assert wrong == []


def test_the_model_needs_torch_numpy_and_safetensors_only() -> None:
    standard = set(sys.stdlib_module_names)
    wrong = [
        f"{path}: {name}"
        for path, tree in _sources("model")
        for name in _imports(tree)
        if name.split(".")[0] not in standard | MODEL_MAY_USE and not _within(name, (f"{PACKAGE}.model",))
    ]
    assert wrong == []


@pytest.mark.parametrize("package", sorted(ADAPTERS))
def test_an_engine_is_imported_in_its_adapter_only(package: str) -> None:
    users = {
        path
        for room in ROOMS
        for path, tree in _sources(room)
        if any(name.split(".")[0] == package for name in _imports(tree))
    }
    assert users <= ADAPTERS[package]


def test_configurations_import_nothing_heavy() -> None:
    code = (
        "import sys, mcjepa.pipeline.recipe.recipe\n"
        "print([m for m in ('torch', 'ray', 'mlflow', 'cv2', 'deepspeed') if m in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_help_imports_nothing_beyond_the_standard_library() -> None:
    """What keeps `mcjepa --help` quick; its time is measured in benchmarks/pipeline/help.py."""
    code = (
        "import sys\n"
        "before = set(sys.modules)\n"
        "from mcjepa.pipeline.cli.main import build_parser\n"
        "build_parser().format_help()\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(added - set(sys.stdlib_module_names)))"
    )
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "['mcjepa']"


def test_no_file_names_a_path_of_a_workplace() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    marks = ("/" + "work/", "/" + "farm/", ".lib" + "rary")
    wrong = [
        name
        for name in listed.stdout.splitlines()
        if (REPOSITORY / name).is_file() and (REPOSITORY / name).suffix in {".py", ".md", ".toml", ".yaml", ".sh", ""}
        if any(mark in (REPOSITORY / name).read_text(encoding="utf-8", errors="replace") for mark in marks)
    ]
    assert wrong == []
