"""How easily one finds one's way in this code: sizes of folders, circles, crumbs, files entered by one step and score.

    python -m benchmarks.house [--static] [--list]

A file is entered when one of its functions runs: by the fourth step of a small training (loading in the same process),
by one probe score. Rooms are the folders at any depth and the files beside folders; a circle is a group of files, or of
rooms, each of which imports the others in the end (imports inside of functions count, those for types only do not). A
crumb is a file of under 80 lines with at most one importer. The last line is JSON; `ratio` is the largest of the
figures over its bar.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("model", "data_prep", "pipeline", "evals", "cluster")
BARS = {"largest_folder": 16, "circles": 0, "crumbs": 20, "step_files": 40, "probe_files": 40}
CRUMB_LINES = 80
ENTERED = """
import json, sys
entered = set()
def look(frame, event, _):
    if event == "call" and frame.f_code.co_flags & 1:  # CO_OPTIMIZED: a function; not the body of a module or class
        entered.add(frame.f_code.co_filename)
def within(owner, name, first, last):
    inner, count = getattr(owner, name), [0]
    def outer(*words, **named):
        count[0] += 1
        if count[0] == first: sys.setprofile(look)
        if count[0] == last: sys.setprofile(None)
        return inner(*words, **named)
    setattr(owner, name, outer)
"""


def modules() -> dict[str, Path]:
    """Import name -> file of every module of the five rooms."""
    found = {}
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(("mcjepa", *parts)).removesuffix(".__init__")] = path
    return found


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        yield from _imported(node)


def file_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports."""

    def module_of(name: str) -> str:
        while name and name not in files:
            name = name.rpartition(".")[0]
        return name

    return {
        module: {module_of(name) for name in _imported(ast.parse(path.read_text(encoding="utf-8")))} - {"", module}
        for module, path in files.items()
    }


def room_graph(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """The same between rooms: what lies in one folder of the five, at any depth, or one file beside those folders."""
    rooms: dict[str, set[str]] = {}
    for module, others in graph.items():
        rooms.setdefault(_room_of(module), set()).update(map(_room_of, others))
    return {room: others - {room} for room, others in rooms.items()}


def _room_of(module: str) -> str:
    return ".".join(module.split(".")[:3])


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups that import each other in the end (strongly connected components of more than one)."""
    reach: dict[str, set[str]] = {}
    for start in graph:
        seen, queue = set(), [start]
        while queue:
            for other in graph.get(queue.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    queue.append(other)
        reach[start] = seen
    groups = {tuple(sorted(o for o in reach[n] if n in reach.get(o, ()))) for n in graph if n in reach[n]}
    return [list(group) for group in sorted(groups)]


def crumbs(files: dict[str, Path], graph: dict[str, set[str]]) -> list[str]:
    """Files of under 80 lines with at most one importer."""
    importers = Counter(other for others in graph.values() for other in others)
    return [
        module
        for module, path in files.items()
        if path.name != "__init__.py" and importers[module] <= 1 and _lines(path) < CRUMB_LINES
    ]


def _lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def entered_by(program: str) -> list[str]:
    """Files of the five rooms that a program enters, where it says so by `within`."""
    code = f"{ENTERED}\n{program}\nprint(json.dumps(sorted(entered)))"
    answer = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    if answer.returncode:
        raise SystemExit(f"the program failed:\n{answer.stderr[-2000:]}")
    names = json.loads(answer.stdout.splitlines()[-1])
    inside = {Path(name).resolve() for name in names if name.startswith(str(REPOSITORY))}
    return sorted(str(path.relative_to(REPOSITORY)) for path in inside if path.parts[len(REPOSITORY.parts)] in ROOMS)


def step_files(folder: Path) -> list[str]:
    """What the fourth step of a training enters, from asking for its batch to asking for the next."""
    return entered_by(f"""
from pathlib import Path
from tests.pipeline.small_recipe import write_small_recipe
from mcjepa.pipeline.cli.main import main
from mcjepa.pipeline.stream.loader import StepLoader
EVERY = "train.steps=8", "train.log_every=8", "train.checkpoint.every_steps=8", "train.stream.workers=0"
recipe = write_small_recipe(Path({str(folder)!r}))
within(StepLoader, "__next__", 4, 5)
assert main(["train", str(recipe), *EVERY]) == 0
""")


def probe_files(folder: Path) -> list[str]:
    """What one score of the segmentation probe enters, from its settings to its file of scores.

    The command around it, which reads the line, records the score and writes a page beside it, is not counted.
    """
    return entered_by(f"""
import mcjepa.evals.run as run
from pathlib import Path
from tests.evals.probe.test_probe_command import QUICK, write_camvid
from mcjepa.model.config import EncoderConfig, ModelConfig
from mcjepa.model.mcjepa import MCJEPA
from mcjepa.model.pretrained import save
from mcjepa.pipeline.cli import main as command
folder = Path({str(folder)!r})
model = MCJEPA(ModelConfig(encoder=EncoderConfig(size="nano")))
save(model.state_dict(), model.config, folder / "weights")
root = write_camvid(folder)
score = run.run_evaluation
def scored(*words, **named):
    sys.setprofile(look)
    try:
        return score(*words, **named)
    finally:
        sys.setprofile(None)
run.run_evaluation = scored
words = ["--data", str(root), "--set", "camvid", "--out", str(folder / "out"), "--threads", "1", *QUICK]
assert command.main(["eval", "probe", str(folder / "weights"), *words]) == 0
""")


def main() -> None:
    """Count, and say where the counts come from."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--static", action="store_true", help="only what needs no run")
    parser.add_argument("--list", action="store_true", help="name the files behind the counts")
    arguments = parser.parse_args()
    files = modules()
    graph = file_graph(files)
    folders = Counter(str(p.parent.relative_to(REPOSITORY)) for p in files.values() if p.name != "__init__.py")
    named = {
        "circles": [" - ".join(group) for group in (*circles(graph), *circles(room_graph(graph)))],
        "crumbs": crumbs(files, graph),
    }
    if not arguments.static:
        with tempfile.TemporaryDirectory() as folder:
            named["step_files"] = step_files(Path(folder) / "step")
            named["probe_files"] = probe_files(Path(folder) / "probe")
    if arguments.list:
        for title, names in named.items():
            print(f"{title}:", *names, sep="\n  ")
    place, largest = folders.most_common(1)[0]
    found = {"largest_folder": largest, **{title: len(names) for title, names in named.items()}}
    ratio = max(found[name] / max(bar, 1) for name, bar in BARS.items() if name in found)
    size = {"files": len(files), "lines": sum(map(_lines, files.values())), "where": place}
    print(json.dumps({"benchmark": "house", "ratio": round(ratio, 2), **found, "bars": BARS, **size}))


if __name__ == "__main__":
    main()
