"""Site files, folders of jobs, and errors of launching."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

from mcjepa.cluster.errors import LaunchError
from mcjepa.cluster.job import RECORD
from mcjepa.cluster.site import STAGES, Site, Stage
from mcjepa.data_prep.errors import nearest_name
from mcjepa.pipeline.errors import UsageError
from mcjepa.pipeline.recipe.files import read_recipe
from mcjepa.pipeline.recipe.recipe import Recipe, load_recipe
from mcjepa.pipeline.recipe.validation import validate
from mcjepa.pipeline.run.folder import JOBS

JOBS_FOLDER = "jobs"


@contextlib.contextmanager
def launch_errors() -> Iterator[None]:
    """Errors of `cluster`, which knows no other room, as those of a user."""
    try:
        yield
    except LaunchError as error:
        raise UsageError(str(error)) from error


def load_site(name: str) -> Site:
    """A site file: a path, or one that ships with the package.

    Raises:
        UsageError: there is none, or something in it is wrong; the message names the key and the nearest valid one.
    """
    shipped = Path(str(resources.files("mcjepa.configs"))) / "site"
    path = Path(name) if Path(name).is_file() else shipped / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file() or not (Path(name).is_file() or re.fullmatch(r"[\w-]+(\.yaml)?", name)):
        advice = nearest_name(name, sorted(p.stem for p in shipped.glob("*.yaml")))
        raise UsageError(f"no site {name!r}, expected a YAML file or a shipped site: {advice}")
    return validate(Site, read_recipe(path), f"site {path}")


def jobs_folder(recipe: Recipe, stage: Stage, site: Site | None) -> Path:
    """Where the jobs of a stage have their files.

    Raises:
        UsageError: neither the run nor the recipe's `out` is a folder, and the site names none.
    """
    if site is not None and site.jobs:
        return Path(site.jobs).expanduser().absolute() / recipe.name / stage
    if stage == "train" and recipe.train and "://" not in recipe.train.run:
        return Path(recipe.train.run).expanduser().absolute() / JOBS
    if "://" in recipe.out:
        raise UsageError(
            f"out is {recipe.out}, expected a folder for scripts and logs of jobs; name one that all nodes reach as "
            "`jobs` in the site file"
        )
    return Path(recipe.out) / JOBS_FOLDER / stage


def launched_folders(target: str, overrides: Sequence[str], stage: str | None, site: str | None) -> list[Path]:
    """Folders of jobs that a target means: those of a run, a folder itself, or those of a recipe's stages.

    Raises:
        UsageError: nothing was launched.
    """
    path = Path(target).absolute()
    if path.is_dir():
        found = [folder for folder in (path, path / JOBS) if (folder / RECORD).is_file()]
        expected = f"{path / JOBS / RECORD}"
    else:
        recipe, _ = load_recipe(target, overrides)
        known = load_site(site) if site else None
        folders = [jobs_folder(recipe, each, known) for each in STAGES if stage in (None, each)]
        found = [folder for folder in folders if (folder / RECORD).is_file()]
        expected = f"a record in {' or '.join(map(str, folders))}"
    if not found:
        raise UsageError(
            f"nothing was launched for {target}: expected {expected}; `mcjepa launch train RECIPE --site SITE` comes "
            "before (name --site where its file has a folder of `jobs`)"
        )
    return found
