"""What others' tools read of the repository: package, citation, container, workflows, hooks and issue forms."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import REPOSITORY

ADDRESS = "https://example.org/group/mcjepa"
RELATIVE_LINK = re.compile(r"\]\((?!\w+:|#)[^)]*\)")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _yaml(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


def _run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        if os.environ.get("MCJEPA_REQUIRE_SERVICES") == "1":
            raise FileNotFoundError(f"{program} is not in the environment; pip install 'mcjepa[test]'")
        pytest.skip(f"{program} is not installed: pip install 'mcjepa[test]'")
    return subprocess.run([found, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_the_container_file_has_no_findings() -> None:
    done = _run("hadolint", "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_both_containers_get_the_files_that_an_installation_needs() -> None:
    """Apptainer has no linter: that it builds and runs was tried by hand (docs/cluster.md)."""
    definition = (REPOSITORY / "cluster" / "apptainer.def").read_text(encoding="utf-8")
    copied = re.findall(r"^    (\S+) /opt/mcjepa/$", definition, re.MULTILINE)
    lines = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert set(copied) == {line[1:] for line in lines if line.startswith("!")} | {"install.sh"}
    assert [name for name in copied if not (REPOSITORY / name).exists()] == []


def test_the_workflows_have_no_findings() -> None:
    """Security and correctness by zizmor, the language's form by its schema below."""
    done = _run("zizmor", "--offline", "--no-progress", "--persona=pedantic", ".github")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("schema", "pattern"),
    [
        ("vendor.github-workflows", ".github/workflows/*.yml"),
        ("custom.github-workflows-require-timeout", ".github/workflows/*.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/[!c]*.yml"),
        ("vendor.github-issue-config", ".github/ISSUE_TEMPLATE/config.yml"),
        ("vendor.citation-file-format", "CITATION.cff"),
    ],
)
def test_files_for_others_follow_their_schema(schema: str, pattern: str) -> None:
    command = pytest.importorskip("check_jsonschema.cli.main_command", reason="pip install 'mcjepa[test]'")
    from click.testing import CliRunner

    files = [str(path) for path in sorted(REPOSITORY.glob(pattern))]
    assert files
    done = CliRunner().invoke(command.main, ["--builtin-schema", schema, *files])
    assert done.exit_code == 0, done.output


def test_the_linter_of_the_container_finds_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN pip install torch\n", encoding="utf-8")
    assert _run("hadolint", str(tmp_path / "Dockerfile")).returncode != 0


def _build(kind: str, folder: Path, repository: str) -> Path:
    """A source archive or the package's metadata by setuptools as pip would call it, from a copy of the checkout."""
    source = folder / "source"
    kept_out = shutil.ignore_patterns(".git", ".venv", "build", "*.egg-info", "__pycache__", "outputs", ".*_cache")
    shutil.copytree(REPOSITORY, source, symlinks=True, ignore=kept_out)
    code = f"import setuptools.build_meta as backend; print(backend.{kind}({str(folder)!r}))"
    environment = {**os.environ, "MCJEPA_REPOSITORY": repository}
    done = subprocess.run([sys.executable, "-c", code], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.strip().split("\n")[-1]


def _metadata(folder: Path, repository: str) -> Message:
    built = _build("prepare_metadata_for_build_wheel", folder, repository)
    return Parser().parsestr((built / "METADATA").read_text(encoding="utf-8"))


def test_the_page_of_a_package_index_has_absolute_links(tmp_path: Path) -> None:
    found = _metadata(tmp_path, ADDRESS)
    page = str(found.get_payload())
    version = PROJECT["version"]
    assert RELATIVE_LINK.findall(page) == []
    assert f"]({ADDRESS}/blob/v{version}/docs/quickstart.md)" in page
    assert f"]({ADDRESS}/raw/v{version}/docs/nano.png)" in page
    assert f"Repository, {ADDRESS}" in found.get_all("Project-URL", [])


def test_without_an_address_the_page_has_no_dead_link(tmp_path: Path) -> None:
    found = _metadata(tmp_path, "")
    page = str(found.get_payload())
    assert RELATIVE_LINK.findall(page) == []
    assert "docs/quickstart.md" in page and "mcjepa prep audit quickstart" in page
    assert found.get_all("Project-URL") == ["Paper, https://arxiv.org/abs/2307.12698"]
    assert found["Author"] == "mcjepa developers"
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= set(
        found.get_all("Classifier", [])
    )


def test_the_source_archive_has_the_documents(tmp_path: Path) -> None:
    archive = _build("build_sdist", tmp_path, "")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    pages = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "docs").rglob("*.*") if path.is_file()}
    assert pages and pages <= names
    assert {
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "README.md",
        "mkdocs.yml",
        "setup.py",
        "mcjepa/model/warp.py",
    } <= names
    assert not any(name.startswith(("tests/", "outputs/", ".venv/")) for name in names)


def test_citation_and_changes_know_the_version() -> None:
    citation = _yaml("CITATION.cff")
    changes = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert citation["version"] == PROJECT["version"]
    assert citation["preferred-citation"]["url"].endswith("2307.12698")
    assert PROJECT["version"] in changes and "## [Unreleased]" in changes


def test_the_container_copies_what_the_installation_needs() -> None:
    """The context is a list of what is let in: a new part of the package must be added there."""
    let_in = {
        line[1:] for line in (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").split("\n") if line[:1] == "!"
    }
    rooms = {path.name for path in (REPOSITORY / "mcjepa").iterdir() if path.is_symlink()}
    assert rooms | {"mcjepa", "pyproject.toml", "setup.py", "README.md", "LICENSE", "requirements.lock"} == let_in
    assert all((REPOSITORY / name).exists() for name in let_in)


def test_the_workflow_calls_the_checks_of_the_repository() -> None:
    jobs = _yaml(".github/workflows/ci.yml")["jobs"]
    steps = [step for step in jobs["checks"]["steps"] if "run" in step]
    supported = [name.rsplit(" ", 1)[1] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert [step["run"] for step in steps] == [".ci/run"]
    assert jobs["checks"]["strategy"]["matrix"]["python"] == supported
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)


def test_hooks_are_local_and_their_programs_are_installed_by_make() -> None:
    config = _yaml(".pre-commit-config.yaml")
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}
    assert all(hook["language"] == "system" and hook["entry"].startswith(".venv/bin/") for hook in hooks)


def test_the_lock_pins_what_make_installs() -> None:
    """Extras of one's own choice (torchcodec, heif) are not in it: `make` installs none of them."""

    def plain(name: str) -> str:
        return re.split(r"[\[<>=!~ ;]", name)[0].lower().replace("_", "-")

    lock = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8").split("\n")
    pinned = {plain(line) for line in lock}
    optional = PROJECT["optional-dependencies"]
    installed = ("samples", "notebook", "test", "dev", "docs")
    needs = [*PROJECT["dependencies"], *(need for extra in installed for need in optional[extra])]
    assert sorted({plain(need) for need in needs} - pinned - {"mcjepa"}) == []
