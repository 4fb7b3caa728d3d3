"""Options that commands share, as data: what `ArgumentParser.add_argument` is given."""

from __future__ import annotations

from typing import Any, NamedTuple


class Option(NamedTuple):
    """An option or a positional word: the arguments of `ArgumentParser.add_argument`."""

    names: tuple[str, ...]
    settings: dict[str, Any]


def option(*names: str, **settings: Any) -> Option:
    """An option, or a positional word."""
    return Option(names, settings)


def number(name: str, metavar: str, text: str, default: int | None = 0) -> Option:
    """An option that takes a whole number."""
    return option(name, type=int, metavar=metavar, default=default, help=text)


def real(name: str, metavar: str, text: str, default: float | None = None) -> Option:
    """An option that takes a number."""
    return option(name, type=float, metavar=metavar, default=default, help=text)


def flag(name: str, text: str) -> Option:
    """An option without a value."""
    return option(name, action="store_true", help=text)


def settings_of(part: str) -> Option:
    """key=value words that set keys of a part of the recipe."""
    return option("overrides", metavar="key=value", nargs="*", help=f"set a key of {part}")


OVERRIDES = option("overrides", metavar="key=value", nargs="*", help="override a key of the recipe, a.b=c")
RECIPE = (option("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe"), OVERRIDES)
JSON = flag("--json", "print the result as JSON")
WEIGHTS_HELP = "a weights folder: model.safetensors and config.json"
WEIGHTS = option("weights", metavar="WEIGHTS", help=WEIGHTS_HELP)
OPTIONAL_WEIGHTS = option("weights", metavar="WEIGHTS", nargs="?", help=f"{WEIGHTS_HELP}; none with --estimates")
DATA = option("--data", metavar="ROOT", required=True, help="the folder that the data set's archive unpacks to")
SET = option("--set", metavar="NAME", required=True, help="name of the data set")
DEVICE = option("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs (%(default)s)")
RESULTS = (
    option("--out", metavar="DIR", default="outputs/eval", help="folder of the results (%(default)s)"),
    option("--tracking", metavar="URI", help="also record in MLflow: a server, or sqlite:///FILE"),
    option("--experiment", metavar="NAME", default="mcjepa", help="MLflow experiment (%(default)s)"),
    JSON,
)
SITE = option("--site", metavar="SITE", required=True, help="a site file, or a shipped site: local, debug, slurm")
NODES = number("--nodes", "N", "number of nodes (default: the site's)")
DRY_RUN = flag("--dry-run", "print the job's script and submit nothing")
LAUNCHED = (
    option("run", metavar="RUN|RECIPE", help="a run folder, a folder of jobs, or a recipe"),
    OVERRIDES,
    option("--stage", choices=("prep", "train", "eval"), help="with a recipe: only this stage"),
    option("--site", metavar="SITE", help="with a recipe: the site, where its file names a folder for jobs"),
    JSON,
)
DRILL = (
    *RECIPE,
    option("--out", metavar="DIR", default="", help="a new folder for the runs (default: a temporary one)"),
    number("--steps", "N", "steps of each run (%(default)s)", 8),
    JSON,
)
