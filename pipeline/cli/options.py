"""Options that commands share, as data: what `ArgumentParser.add_argument` is given."""

from __future__ import annotations

import argparse
import math
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


def count(name: str, metavar: str, text: str, default: int | None = 0) -> Option:
    """An option that takes a whole number, 0 or more."""
    return option(name, type=_natural, metavar=metavar, default=default, help=text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number, 0 or more")
    return int(text)


def seconds(name: str, metavar: str, text: str, default: float) -> Option:
    """An option that takes a time in seconds, 0 or more."""
    return option(name, type=_seconds, metavar=metavar, default=default, help=text)


def _seconds(text: str) -> float:
    value = _as_float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}, expected seconds as a number, 0 or more")
    return value


def real(name: str, metavar: str, text: str, default: float | None = None) -> Option:
    """An option that takes a number."""
    return option(name, type=_finite, metavar=metavar, default=default, help=text)


def _finite(text: str) -> float:
    value = _as_float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r}, expected a number")
    return value


def _as_float(text: str) -> float:
    """NaN where it is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def flag(name: str, text: str) -> Option:
    """An option without a value."""
    return option(name, action="store_true", help=text)


def settings_of(part: str) -> Option:
    """key=value words that set keys of a part of the recipe."""
    return option("overrides", metavar="key=value", nargs="*", default=[], help=f"set a key of {part}")


OVERRIDES = option("overrides", metavar="key=value", nargs="*", default=[], help="override a key of the recipe, a.b=c")
RECIPE = (option("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe"), OVERRIDES)
JSON = flag("--json", "print the result as JSON")
WEIGHTS_HELP = "`nano`, which comes with the package, or a weights folder: model.safetensors and config.json"
WEIGHTS = option("weights", metavar="WEIGHTS", help=WEIGHTS_HELP)
OPTIONAL_WEIGHTS = option("weights", metavar="WEIGHTS", nargs="?", help=f"{WEIGHTS_HELP}; none with --estimates")
DATA = option("--data", metavar="ROOT", required=True, help="the folder that the data set's archive unpacks to")
SET = option("--set", metavar="NAME", required=True, help="name of the data set")
DEVICE = option("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where the model runs (%(default)s)")
THREADS = count("--threads", "N", "CPU threads of torch; 0: torch's own choice (%(default)s)")
RESULTS = (
    option("--out", metavar="DIR", default="outputs/eval", help="folder of the results (%(default)s)"),
    option("--tracking", metavar="URI", help="also record in MLflow: a server, or sqlite:///FILE"),
    option("--experiment", metavar="NAME", default="mcjepa", help="MLflow experiment (%(default)s)"),
    JSON,
)
ARTIFACT = "a run, weights, scores or a dataset, or runs:/ID of MLflow"
TRACKED = option(
    "--tracking", metavar="URI", help="where MLflow is, for runs:/ID (default: the variable MLFLOW_TRACKING_URI)"
)
BESIDE = option(
    "--beside", metavar="DIR", action="append", default=[],
    help="another place where its parents may be: a run, or weights; may be given several times",
)  # fmt: skip
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
    count("--steps", "N", "steps of each run (%(default)s)", 8),
    JSON,
)
PLAN = (
    *RECIPE,
    option("--site", metavar="SITE", help="a site file, or a shipped site (default: this machine)"),
    number("--nodes", "N", "number of nodes (default: the site's, or 1)"),
    number("--ranks", "N", "ranks in all (default: nodes x tasks per node)"),
    number("--gpus-per-node", "N", "GPUs per node (default: the site's, or this machine's)", None),
    real("--memory-gib", "G", "memory of a GPU, or of a node without GPUs (default: this machine's)"),
    real("--step-s", "S", "seconds per step, if known"),
    option(
        "--measure",
        type=int,
        metavar="STEPS",
        nargs="?",
        const=4,
        help="take some real steps here to measure their time (4)",
    ),
    JSON,
)
QUICKSTART = (
    option("--out", metavar="DIR", default="outputs/quickstart", help="folder of all results (%(default)s)"),
    option("--videos", metavar="DIR", help="your own videos in addition to the generated clips"),
    option("--images", metavar="DIR", help="your own photos instead of the packaged ones"),
    option("--recipe", metavar="RECIPE", default="quickstart", help="another recipe with the same parts"),
    flag("--json", "print summary.json at the end"),
    OVERRIDES,
)
INIT = (
    option("--videos", metavar="DIR", required=True, help="folder of your videos, in any folders below it"),
    option("--images", metavar="DIR", required=True, help="folder of your photos, at least four"),
    option("--site", metavar="SITE", help="size it to a site file or a shipped site instead of this machine"),
    real("--minutes", "M", "for all stages here (10), for the training on a site (its time limit); at least 1"),
    option("--out", metavar="FILE", default="own.yaml", help="recipe to write (%(default)s); its name is the file's"),
    JSON,
)
UI = (
    option(
        "target", metavar="RECIPE|OUT", nargs="?", default="quickstart",
        help="a recipe, the folder of its results, or a run folder (%(default)s)",
    ),
    OVERRIDES,
    count("--port", "N", "port of the server that is started; 0: any free one (%(default)s)"),
)  # fmt: skip
KEEP_LOGS = (
    option("run", metavar="RUN", help="a run folder or s3 prefix"),
    option("folder", metavar="FOLDER", help="the folder of jobs"),
    option("job", metavar="JOB", help="id of the job"),
)
INFER = (
    WEIGHTS,
    option(
        "inputs",
        metavar="INPUT",
        nargs="+",
        help="videos, folders of frames, and images; the images are the frames of one clip, in the given order",
    ),
    option("--out", metavar="DIR", required=True, help="folder of the results: DIR/CLIP/…"),
    option(
        "--write",
        metavar="LIST",
        default="flo,colour,video",
        help="some of flo, kitti, colour, video, features (%(default)s)",
    ),
    number("--tile", "PX", "longest side computed at once; 0: no limit (%(default)s)", 1920),
    number("--overlap", "PX", "overlap of neighbouring tiles (%(default)s)", 256),
    number("--batch", "N", "pairs computed at once (%(default)s)", 2),
    number("--stride", "PX", "stride of the features' level (%(default)s)", 8),
    real("--max-flow", "PX", "flow drawn in full colour; 0: the clip's longest (%(default)s)", 0.0),
    number("--max-frames", "N", "first N frames of each input; 0: all (%(default)s)"),
    DEVICE,
    flag("--overwrite", "write existing results again"),
    JSON,
)
EXPORT = (
    option("checkpoint", metavar="CHECKPOINT", help="a run, its checkpoint, a weights folder, or `nano`"),
    option("--out", metavar="DIR", required=True, help="folder to write"),
    option(
        "--layout", choices=("mcjepa", "hub"), default="mcjepa",
        help="hub: with a README.md that model hubs read",
    ),
    option("--only", choices=("encoder",), help="leave out the flow estimator and the expander"),
    option(
        "--license", metavar="ID", default="other",
        help="licence of these weights, named in the README.md (%(default)s)",
    ),
    JSON,
)  # fmt: skip
EVAL_FLOW = (
    OPTIONAL_WEIGHTS,
    option(
        "--data", metavar="ROOT", required=True,
        help="the folder that a set's archive unpacks to, or one that holds such folders",
    ),
    option("--set", metavar="NAMES", required=True, help="flow sets, separated by commas"),
    option(
        "--baselines", metavar="NAMES", nargs="?", const="all",
        help="score classical methods too: zero, dis-ultrafast, dis-fast, dis-medium, farneback; without NAMES "
        "all of them (without the option: zero and dis-medium)",
    ),
    option("--estimates", metavar="DIR", help="score flow files laid out like the ground truth, not WEIGHTS"),
    option(
        "--submission", metavar="FILE.zip",
        help="write and check the archive of sintel-test, kitti2012-test or kitti2015-test; without WEIGHTS "
        "and --estimates: check an existing one",
    ),
    *RESULTS, DEVICE, THREADS,
    settings_of("eval.flow (resize, subset, max_pairs, pictures, workers)"),
)  # fmt: skip
EVAL_VOS = (
    OPTIONAL_WEIGHTS, DATA,
    option(
        "--set", metavar="NAME", required=True,
        help="davis2016, davis2017, davis2017-test-dev or moving-photos",
    ),
    option(
        "--preset", metavar="NAME", default="dino",
        help="protocol: dino, crw or vfs (%(default)s); key=value overrides it",
    ),
    option("--estimates", metavar="DIR", help="score DIR/SEQUENCE/FRAME.png, palette or grey, not WEIGHTS"),
    flag("--masks", "write the predicted masks as palette PNGs, as DAVIS has them"),
    flag("--overlays", "write each sequence tinted by its masks, as mp4"),
    *RESULTS, DEVICE, THREADS,
    settings_of("eval.vos"),
)  # fmt: skip
