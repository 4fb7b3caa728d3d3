"""The doors between the rooms: which folder may import which, and what a cold start may import."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("model", "data_prep", "pipeline", "evals", "cluster", "configs")
OPEN = tuple(f"pipeline/{name}/" for name in ("cli", "recipe", "launch", "lineage", "stages"))
"""Parts of the pipeline that join rooms: commands, settings of all rooms, jobs, lineage, and whole stages."""
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
        "mcjepa.data_prep.card",  # evals/report only: see tests/evals/test_evals_structure.py
        "mcjepa.data_prep.corpora",
        "mcjepa.data_prep.storage",
        "mcjepa.data_prep.errors",
        "mcjepa.data_prep.decode",  # evals/infer/inputs.py only: see tests/evals/test_evals_structure.py
        "mcjepa.pipeline.tracking",
        "mcjepa.pipeline.pictures",
        "mcjepa.pipeline.errors",
        "mcjepa.pipeline.stream.workers",  # evals/reading.py only: see tests/evals/test_evals_structure.py
    ),
    "cluster": (),
}
INNER_DOORS = {
    "errors": (),
    "exits": (),
    "pictures": (),
    "settings": (),
    "world": ("errors",),
    "stream": ("errors", "settings", "world"),
    "engine": ("errors", "settings", "stream.seeding", "world"),
    "step": ("engine", "errors", "settings", "stream"),
    "run": ("errors", "pictures", "settings", "stream", "world"),
    "monitor": (
        "engine.parameters",
        "errors",
        "exits",
        "run.folder",
        "run.lines",
        "settings",
        "step",
        "stream",
        "world",
    ),
    "checkpoint": ("engine", "errors", "run", "settings", "world"),
    "tracking": ("errors", "run", "settings", "world"),
    "recipe": ("errors", "run.folder", "settings"),
    "agreement": ("errors", "run", "world"),
    "train": (
        "agreement",
        "checkpoint",
        "engine",
        "errors",
        "monitor",
        "run",
        "settings",
        "step",
        "stream",
        "tracking",
        "world",
    ),
    "replay": ("checkpoint", "engine", "errors", "monitor", "run", "settings", "step", "stream", "train", "world"),
    "export": ("checkpoint", "errors", "recipe", "run"),
    "lineage": ("errors", "run", "tracking"),
    "launch": ("errors", "exits", "recipe", "run", "settings", "step", "stream", "tracking"),
    "stages": ("checkpoint", "errors", "exits", "launch", "recipe", "run", "settings", "tracking", "train", "world"),
    "cli": ("errors", "exits", "export", "launch", "lineage", "recipe", "replay", "run", "stages", "tracking", "world"),
}
"""Which parts of the pipeline each of its parts may import; `pipeline/*/__init__.py` says what they are for."""
SETTINGS = ("mcjepa.data_prep.settings", "mcjepa.model.config", *(f"mcjepa.evals{part}.settings" for part in (
    "", ".classification", ".finetune", ".flow", ".infer", ".probe", ".vos",
)))  # fmt: skip
CHANGES_A_STEP = {"backward", "step", "zero_grad", "load_state_dict", "manual_seed", "set_rng_state", "requires_grad_"}
MODEL_MAY_USE = {"torch", "numpy", "safetensors"}
ADAPTERS = {
    "ray": {f"data_prep/workers/ray_{name}.py" for name in ("job", "session", "submit")},
    "mlflow": {"pipeline/tracking/mlflow.py"},
    "deepspeed": {"pipeline/engine/imports.py"},
    "submitit": {"cluster/submit.py", "cluster/task.py"},
    "boto3": {"data_prep/storage/s3_client.py"},
    "botocore": {"data_prep/storage/s3_client.py", "data_prep/storage/s3_errors.py"},
}


@functools.cache
def _sources(room: str) -> list[tuple[str, ast.Module]]:
    paths = sorted((REPOSITORY / room).rglob("*.py"))
    return [(p.relative_to(REPOSITORY).as_posix(), ast.parse(p.read_text(encoding="utf-8"))) for p in paths]


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from _running(node)


def _imports(tree: ast.AST, types_too: bool = True) -> Iterator[str]:
    for node in ast.walk(tree) if types_too else _running(tree):
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
        if not path.startswith(OPEN)
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
        if not path.startswith("pipeline/cli/")
        and any(_within(name, ("mcjepa.pipeline.cli",)) for name in _imports(tree))
    ]
    assert wrong == []


@pytest.mark.parametrize("part", sorted(path.stem for path in (REPOSITORY / "pipeline").glob("[a-z]*")))
def test_a_part_of_the_pipeline_imports_only_through_its_doors(part: str) -> None:
    allowed = tuple(f"mcjepa.pipeline.{name}" for name in (part, *INNER_DOORS[part]))
    wrong = [
        f"{path}: {name}"
        for path, tree in _sources("pipeline")
        if path.startswith((f"pipeline/{part}/", f"pipeline/{part}.py"))
        for name in _imports(tree, types_too=False)
        if _within(name, ("mcjepa.pipeline",)) and not _within(name, allowed)
    ]
    assert wrong == []


def test_the_pipelines_settings_import_nothing_of_ours() -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in _sources("pipeline")
        if path.startswith("pipeline/settings/")
        for name in _imports(tree)
        if _within(name, (PACKAGE,)) and not _within(name, ("mcjepa.pipeline.settings",))
    ]
    assert wrong == []


def test_recipes_alone_see_the_settings_of_all_rooms() -> None:
    """The model's configuration aside, which whoever builds a model needs."""
    other = tuple(name for name in SETTINGS if name != "mcjepa.model.config")
    seen = {name for _, tree in _sources("pipeline/recipe") for name in _imports(tree)}
    assert all(any(_within(name, (each,)) for name in seen) for each in SETTINGS)
    wrong = [
        f"{path}: {name}"
        for path, tree in _sources("pipeline")
        if not path.startswith("pipeline/recipe/")
        for name in _imports(tree, types_too=False)
        if _within(name, other) and name.endswith("Config")
    ]
    assert wrong == []


def test_the_stream_knows_no_process_group() -> None:
    wrong = [
        f"{path}: {name}"
        for path, tree in _sources("pipeline/stream")
        for name in _imports(tree)
        if _within(name, ("torch.distributed", "deepspeed"))
    ]
    assert wrong == []


def test_the_monitor_never_changes_a_step() -> None:
    called = {
        (path, node.func.attr)
        for path, tree in _sources("pipeline/monitor")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert [call for call in sorted(called) if call[1] in CHANGES_A_STEP] == []


def _module_graph() -> dict[str, set[str]]:
    """Which of our modules each of them imports, wherever in it, types aside."""
    files = {}
    for path, tree in (each for room in ROOMS for each in _sources(room)):
        files[f"{PACKAGE}.{path.removesuffix('.py').removesuffix('/__init__').replace('/', '.')}"] = tree

    def module_of(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    graph = {m: {module_of(name) for name in _imports(tree, types_too=False)} for m, tree in files.items()}
    return {module: found - {module, ""} for module, found in graph.items()}


def _circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach one another."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    reached = {node: reach(node) for node in graph}
    groups = {frozenset(n for n in reached[node] if node in reached[n]) for node in graph if node in reached[node]}
    return [set(group) for group in sorted(groups, key=sorted)]


def test_circles_are_found() -> None:
    assert _circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]


def test_no_circle_between_files() -> None:
    assert _circles(_module_graph()) == []


def test_no_circle_between_parts_of_rooms() -> None:
    """A part is a folder of a room, with all that is below it, or a file beside such folders."""
    graph: dict[str, set[str]] = {}
    for module, found in _module_graph().items():
        part = ".".join(module.split(".")[:3])
        graph.setdefault(part, set()).update({".".join(name.split(".")[:3]) for name in found} - {part})
    assert _circles(graph) == []


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
