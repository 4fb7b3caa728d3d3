"""The command line's shape: every command with its help, its example and its handler.

Nothing heavy is imported here: a command names its handler, which is imported when it runs.
"""

from __future__ import annotations

import argparse

from mcjepa.pipeline.cli.eval_parser import add_eval
from mcjepa.pipeline.cli.infer_parser import add_infer
from mcjepa.pipeline.cli.launch_parser import add_launch
from mcjepa.pipeline.cli.parsing import Commands, add_recipe_arguments, command
from mcjepa.pipeline.cli.plan_parser import add_drill, add_plan

DESCRIPTION = """\
MC-JEPA, from raw video and images to scores: build shards, train the joint model of motion and content, evaluate.

  mcjepa quickstart                          the whole way on this machine, in minutes
  mcjepa prep run RECIPE                     corpora -> WebDataset shards, by Ray
  mcjepa train RECIPE                        shards -> checkpoints, by DeepSpeed
  mcjepa eval all RECIPE                     weights -> scores, pictures and a report
  mcjepa infer WEIGHTS INPUT... --out DIR    weights -> flow and features of your own frames and videos

A recipe is a YAML file or the name of a shipped one (quickstart, sample, paper, ablations/no-vc, …);
key=value overrides any key of it.
"""
LATER = {
    "explain": "the lineage of a run",
    "diff": "what differs between two runs",
}


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="mcjepa", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("-v", "--verbose", action="store_true", help="more detail, and tracebacks of errors")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    _add_quickstart(commands)
    _add_prep(commands)
    _add_train(commands)
    add_eval(commands)
    add_infer(commands)
    _add_export(commands)
    add_launch(commands)
    _add_recipe(commands)
    add_plan(commands)
    add_drill(commands)
    _add_tracking(commands)
    for name, purpose in LATER.items():
        later = commands.add_parser(name, help=f"{purpose} (not in this release)", add_help=False)
        later.add_argument("arguments", nargs=argparse.REMAINDER)
        later.set_defaults(handler="")
    return parser


def _add_quickstart(commands: Commands) -> None:
    parser = command(
        commands,
        "quickstart",
        "the whole way on this machine: shards, training, scores, a report",
        "mcjepa quickstart --out /tmp/first-run",
        "mcjepa.pipeline.cli.quickstart:quickstart",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="outputs/quickstart", help="folder of all results (%(default)s)"
    )
    parser.add_argument("--videos", metavar="DIR", help="your own videos instead of the packaged clips")
    parser.add_argument("--images", metavar="DIR", help="your own photos instead of the packaged ones")
    parser.add_argument("--recipe", metavar="RECIPE", default="quickstart", help="another recipe of the same shape")
    parser.add_argument("--json", action="store_true", help="print summary.json at the end")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of a recipe key, a.b=c")


def _add_prep(commands: Commands) -> None:
    prep = commands.add_parser(
        "prep", help="corpora to published datasets", description="Corpora to published datasets."
    )
    verbs = prep.add_subparsers(dest="verb", metavar="VERB", required=True)
    purposes = {
        "plan": "print what would be built, how long it will take, and what is there already",
        "run": "build and publish the recipe's datasets; a rerun continues",
        "status": "print how far a running or dead job is",
        "audit": "prove that every input is accounted for and every shard is intact",
        "requeue": "try quarantined inputs again and publish what they give as a new revision",
        "card": "write a page about each published dataset: samples, counts, histograms, quarantine",
    }
    for verb, purpose in purposes.items():
        parser = command(
            verbs, verb, purpose, f"mcjepa prep {verb} quickstart", f"mcjepa.pipeline.cli.prep:prep_{verb}"
        )
        add_recipe_arguments(parser)
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
        if verb == "plan":
            parser.add_argument("--no-probe", action="store_true", help="do not cut a few inputs to estimate the time")
        if verb == "run":
            parser.add_argument(
                "--submit", metavar="URL", help="run as a job of the Ray cluster whose dashboard is there"
            )
        if verb == "requeue":
            parser.add_argument(
                "--reason", metavar="WORDS", default="", help="only inputs whose reason contains these words"
            )


def _add_train(commands: Commands) -> None:
    parser = command(
        commands,
        "train",
        "train the joint model, or continue the run in its folder",
        "mcjepa train quickstart --ranks 2 train.steps=200",
        "mcjepa.pipeline.cli.train:run_training",
    )
    add_recipe_arguments(parser)
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        default=1,
        help="start N processes on this machine; 0: one a GPU, or one a core without GPUs, as the lanes allow",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_export(commands: Commands) -> None:
    parser = command(
        commands,
        "export",
        "write a checkpoint's weights as a folder: model.safetensors and config.json",
        "mcjepa export outputs/quickstart/run --out weights --layout hub",
        "mcjepa.pipeline.cli.export:run_export",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a run, one of its checkpoints, or a weights folder")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to write")
    parser.add_argument(
        "--layout", choices=("mcjepa", "hub"), default="mcjepa", help="hub: with a README.md that model hubs read"
    )
    parser.add_argument("--only", choices=("encoder",), help="leave flow estimator and expander out")
    parser.add_argument(
        "--license",
        metavar="ID",
        default="other",
        help="licence of these weights, named in the README.md (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_recipe(commands: Commands) -> None:
    parser = command(
        commands,
        "recipe",
        "print a recipe with everything resolved, or every key with its meaning",
        "mcjepa recipe quickstart train.steps=200",
        "mcjepa.pipeline.recipe.recipe:print_recipe",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--keys", action="store_true", help="print every key with its type, default and meaning")


def _add_tracking(commands: Commands) -> None:
    tracking = commands.add_parser("tracking", help="records on their way to MLflow", description="Records of runs.")
    verbs = tracking.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = command(
        verbs,
        "sync",
        "deliver to MLflow what a run could not while it was away",
        "mcjepa tracking sync outputs/quickstart/run",
        "mcjepa.pipeline.cli.tracking:tracking_sync",
    )
    parser.add_argument("run", metavar="RUN|RECIPE", help="a run folder, or the recipe it was trained from")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of a recipe key, a.b=c")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
