"""Every command, key, file and name that the pages give exists: parsed, resolved or looked up, page by page."""

from __future__ import annotations

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mcjepa.cluster.site import Site
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.recipe import Recipe, describe_keys
from mcjepa.pipeline.recipe.validation import json_schema, validate
from tests.docs.commands import CommandError, check, commands_in, expand
from tests.docs.pages import REPOSITORY, RUN_MARK, Block, anchors, blocks, links, name_of, page_paths, spans

PAGES = {name_of(path): path.read_text(encoding="utf-8") for path in page_paths()}
ROOMS = ("model", "data_prep", "pipeline", "evals", "cluster")
PARTS = ("prep", "model", "train", "eval", "tracking", "sweep")
SHELL = ("", "sh", "bash", "console")
DOTTED = re.compile(r"[a-z_]\w*(\.[a-z_]\w*)+(\.[A-Z]\w*)?")
FILE = re.compile(rf"(?:{'|'.join((*ROOMS, 'docs', 'configs', 'tests', 'benchmarks', 'mcjepa'))})/[\w./*-]+")
PAGE_NAME = re.compile(r"(?<![\w/.-])[\w-]+\.md(?![\w/])")
FILE_ENDINGS = (".md", ".py", ".json", ".yaml", ".jsonl", ".safetensors")
WRITTEN_BY_US = ("README.md",)
"""Names of pages that the product writes too."""
SOURCES = {path.name for folder in (*ROOMS, "benchmarks", "tests") for path in (REPOSITORY / folder).rglob("*.py")}
SOURCES |= {path.name for path in REPOSITORY.glob("*.py")}
FRAGMENTS = {"filters": "prep.datasets.NAME", "corpora": "prep.datasets.NAME"}
"""Where a block of YAML belongs whose keys are no recipe's own."""


@pytest.mark.parametrize("page", PAGES)
def test_commands_to_paste_are_what_the_command_line_takes(page: str) -> None:
    wrong = []
    for block in blocks(page, PAGES[page]):
        if block.language in SHELL:
            wrong += _refused(block.place, block.text, whole=True)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_named_in_the_text_exist(page: str) -> None:
    wrong = []
    for span in spans(page, PAGES[page]):
        wrong += _refused(span.place, span.text, whole=False)
    assert wrong == []


def _refused(place: str, text: str, whole: bool) -> list[str]:
    wrong = []
    for argv in commands_in(text):
        for words in expand(argv):
            try:
                check(words, whole)
            except CommandError as error:
                wrong.append(f"{place}: {error}")
    return wrong


@functools.cache
def _keys() -> frozenset[str]:
    """All keys of a recipe; those of mappings with names of the user's own stand below NAME, of lists below []."""
    return frozenset(re.split(r" = |  ", line)[0] for line in describe_keys(json_schema(Recipe)))


def _is_key(dotted: str) -> bool:
    return dotted in _keys() or any(key.startswith(f"{dotted}.") for key in _keys())


def _is_name(dotted: str) -> bool:
    """Whether it is a module of the package, or a top-level name of one."""
    parts = dotted.removeprefix("mcjepa.").split(".")
    for count in range(len(parts), 0, -1):
        folder = REPOSITORY.joinpath(*parts[:count])
        for file in (folder.with_suffix(".py"), folder / "__init__.py"):
            if file.is_file():
                return count == len(parts) or (count == len(parts) - 1 and parts[-1] in _names_of(file))
        if folder.is_dir() and count == len(parts):
            return True
    return False


def _names_of(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


@pytest.mark.parametrize("page", PAGES)
def test_recipe_keys_and_python_names_in_the_text_exist(page: str) -> None:
    wrong = []
    for span in spans(page, PAGES[page]):
        name = re.split(r"=|: ", span.text)[0].removesuffix(".*").removesuffix("()")
        in_recipe = name.split(".")[0] in PARTS and "TERM" not in name
        if not re.fullmatch(DOTTED, name) or name.endswith(FILE_ENDINGS):
            continue
        if (in_recipe or name.split(".")[0] in ROOMS) and not (_is_key(name) or _is_name(name)):
            wrong.append(f"{span.place}: {name} is neither a key of a recipe nor a name of the package")
    assert wrong == []


def test_the_tables_of_recipe_keys_hold_keys() -> None:
    """In recipes.md the first column of a table of fields or keys; a row may name several, shortened."""
    wrong, rows = [], 0
    every, table = "".join(f".{key}.\n" for key in _keys()), ""
    for line in PAGES["docs/recipes.md"].split("\n"):
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells:
            table = ""
        elif not table:
            table = cells[0]
        elif table.startswith(("field", "key")) and not cells[0].startswith("---"):
            rows += 1
            for name in re.findall(r"`([^`]*)`", cells[0]):
                end = re.escape(f".{name.replace('[]', '.[]')}.").replace("TERM", r"\w+")
                if not re.search(end, every):
                    wrong.append(f"{name} in {line[:60]}")
    assert wrong == [] and rows > 20


@pytest.mark.parametrize("page", PAGES)
def test_yaml_in_the_pages_is_a_recipe_or_a_site(page: str) -> None:
    wrong = []
    for block in blocks(page, PAGES[page]):
        if block.language == "yaml":
            try:
                _check_yaml(block)
            except UsageError as error:
                wrong.append(f"{block.place}: {error}")
    assert wrong == []


def _check_yaml(block: Block) -> None:
    content: Any = yaml.safe_load(block.text)
    if set(content) <= set(FRAGMENTS):
        for key in reversed(FRAGMENTS[next(iter(content))].split(".")):
            content = {key: content}
        content["prep"]["root"] = "datasets"
        content["prep"]["datasets"]["NAME"] = {
            "kind": "clip",
            "corpora": [{"reader": "videos", "path": "videos"}],
            "short_side": 128,
            **content["prep"]["datasets"]["NAME"],
        }
    if "kind" in content:
        validate(Site, content, block.place)
    else:
        validate(Recipe, {"name": "documented", "out": "outputs", **content}, block.place)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    wrong = []
    folder = (REPOSITORY / page).parent
    for line, target in links(PAGES[page]):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = (folder / path).resolve() if path else REPOSITORY / page
        if not file.exists():
            wrong.append(f"{page}:{line}: no {target}")
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            wrong.append(f"{page}:{line}: {path or page} has no heading for #{anchor}")
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_the_text_exist(page: str) -> None:
    wrong = []
    for span in spans(page, PAGES[page]):
        for named in FILE.findall(span.text):
            if span.text.startswith(named) and not _matches(named.rstrip(".")):
                wrong.append(f"{span.place}: no {named}")
        if re.fullmatch(r"\w+\.py", span.text) and span.text not in SOURCES:
            wrong.append(f"{span.place}: no {span.text}")
    plain = re.sub(r"\]\([^)]*\)", "]", PAGES[page])
    known = {Path(name).name for name in PAGES} | {*WRITTEN_BY_US}
    wrong += [f"{page}: no page {name}" for name in PAGE_NAME.findall(plain) if name not in known]
    assert wrong == []


def test_rows_of_the_kinds_of_files_name_tests_that_exist() -> None:
    text = PAGES["docs/kinds.md"]
    rows = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| kind |")]
    tests = "".join(
        path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests" / "data_prep").rglob("test_*.py")
    )
    assert len(rows) > 30
    assert [row for row in rows if not re.search(r"\| (`.*test_.*`|the same) \|$", row)] == []
    assert [name for name in re.findall(r"`(test_\w+)`", text) if f"def {name}(" not in tests] == []


def _matches(named: str) -> bool:
    """Whether a path or pattern names something; measurements lie in folders of the rooms' names."""
    if (REPOSITORY / named).exists() or any(REPOSITORY.glob(named)):
        return True
    return named.startswith("benchmarks/") and any((REPOSITORY / "benchmarks").glob(f"*/{Path(named).name}"))


@pytest.mark.parametrize("page", PAGES)
def test_python_in_the_pages_is_valid_and_imports_what_exists(page: str) -> None:
    wrong = []
    for block in blocks(page, PAGES[page]):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mcjepa"):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mcjepa":
                names = [f"mcjepa.{node.attr}"]
            else:
                continue
            wrong += [f"{block.place}: no {name}" for name in names if not (_is_name(name) or _is_public(name))]
    assert wrong == []


def _is_public(name: str) -> bool:
    import mcjepa

    return name.removeprefix("mcjepa.") in mcjepa.__all__


RUNNABLE = [block for page, text in PAGES.items() for block in blocks(page, text) if block.mark == RUN_MARK]


def test_some_blocks_are_run() -> None:
    assert len(RUNNABLE) >= 5


@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: block.place)
def test_blocks_marked_runnable_run(block: Block, workplace: Path) -> None:
    """As a reader has them: in a folder with what the quickstart leaves, the environment's programs first on PATH."""
    program = ["bash", "-euo", "pipefail", "-c"] if block.language in SHELL else [sys.executable, "-c"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [*program, block.text], cwd=workplace, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, f"{block.place} ends with {done.returncode}:\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of random weights of the quickstart's model."""
    from mcjepa.model.mcjepa import MCJEPA
    from mcjepa.model.pretrained import save
    from mcjepa.pipeline.recipe.recipe import load_recipe

    folder = tmp_path_factory.mktemp("weights") / "step"
    config = load_recipe("quickstart", [])[0].model
    save(MCJEPA(config).state_dict(), config, folder)
    return folder


@pytest.fixture
def workplace(weights: Path, tmp_path: Path) -> Path:
    """A folder with the results that the pages' blocks name."""
    shutil.copytree(weights, tmp_path / "outputs/quickstart/run/weights/step-000000700")
    return tmp_path
