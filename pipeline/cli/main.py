"""Parses the command line and turns errors into one clear line and an exit code.

Nothing heavy is imported here: each command names its handler, which is imported when it runs.
Exit codes: 0 ok, 2 usage, 3 data rejected or run failed, 4 partial (something is quarantined), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

OK, USAGE, REJECTED, PARTIAL, INTERRUPTED = 0, 2, 3, 4, 130

DESCRIPTION = """\
MC-JEPA, from raw video and images to scores: build shards, train the joint model of motion and content, evaluate.

  mcjepa quickstart                          the whole way on this machine, in minutes
  mcjepa prep run RECIPE                     corpora -> WebDataset shards, by Ray
  mcjepa train RECIPE                        shards -> checkpoints, by DeepSpeed
  mcjepa eval all RECIPE                     weights -> scores, pictures and a report

A recipe is a YAML file or the name of a shipped one (quickstart, sample, paper, ablations/no-vc, …);
key=value overrides any key of it.
"""
LATER = {
    "infer": "flow and features of your own frames and videos",
    "launch": "prep, train or eval on Slurm and Ray clusters",
    "plan": "memory, time and bytes of a recipe on a site",
    "explain": "the lineage of a run",
    "diff": "what differs between two runs",
    "drill": "a rehearsal of preemption, node loss and storage failure",
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
    _add_eval(commands)
    _add_export(commands)
    _add_recipe(commands)
    _add_tracking(commands)
    for name, purpose in LATER.items():
        later = commands.add_parser(name, help=f"{purpose} (not in this release)", add_help=False)
        later.add_argument("arguments", nargs=argparse.REMAINDER)
        later.set_defaults(handler="")
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    purpose: str,
    example: str,
    handler: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=purpose,
        description=purpose[0].upper() + purpose[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(handler=handler)
    return parser


def _add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, or the name of a shipped recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of a recipe key, a.b=c")


def _add_quickstart(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "quickstart",
        "the whole way on this machine: shards, training, scores, a report",
        "mcjepa quickstart --out /tmp/first-run",
        "pipeline.cli.quickstart:quickstart",
    )
    parser.add_argument(
        "--out", metavar="DIR", default="outputs/quickstart", help="folder of all results (%(default)s)"
    )
    parser.add_argument("--videos", metavar="DIR", help="your own videos instead of the packaged clips")
    parser.add_argument("--images", metavar="DIR", help="your own photos instead of the packaged ones")
    parser.add_argument("--recipe", metavar="RECIPE", default="quickstart", help="another recipe of the same shape")
    parser.add_argument("--json", action="store_true", help="print summary.json at the end")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of a recipe key, a.b=c")


def _add_prep(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
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
        parser = _command(verbs, verb, purpose, f"mcjepa prep {verb} quickstart", f"pipeline.cli.prep:prep_{verb}")
        _add_recipe_arguments(parser)
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


def _add_train(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "train",
        "train the joint model, or continue the run in its folder",
        "mcjepa train quickstart --ranks 2 train.steps=200",
        "pipeline.cli.train:run_training",
    )
    _add_recipe_arguments(parser)
    parser.add_argument(
        "--ranks",
        type=int,
        metavar="N",
        default=1,
        help="start N processes on this machine; 0: one a GPU, or one a core without GPUs, as the lanes allow",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_eval(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    evaluate = commands.add_parser("eval", help="weights to scores", description="Weights to scores.")
    verbs = evaluate.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = _command(
        verbs,
        "all",
        "run every benchmark of a recipe on its run's newest weights, and write the report",
        "mcjepa eval all quickstart",
        "pipeline.cli.evaluate:evaluate_all",
    )
    _add_recipe_arguments(parser)
    parser.add_argument("--weights", metavar="DIR", help="a weights folder instead of the run's newest")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    examples = {
        "flow": "mcjepa eval flow RUN/weights/step-000001200 --data MPI-Sintel-complete --set sintel-clean",
        "probe": "mcjepa eval probe RUN/weights/step-000001200 --data CamVid --set camvid",
        "vos": "mcjepa eval vos RUN/weights/step-000001200 --data DAVIS --set davis",
    }
    purposes = {
        "flow": "optical flow against ground truth",
        "probe": "linear segmentation probe on frozen features",
        "vos": "video object segmentation by label propagation",
    }
    for verb, purpose in purposes.items():
        single = _command(verbs, verb, purpose, examples[verb], "pipeline.cli.evaluate:evaluate_one")
        single.add_argument("weights", metavar="WEIGHTS", help="a weights folder: model.safetensors and config.json")
        single.add_argument("--data", metavar="ROOT", required=True, help="folder the data set's archive unpacks to")
        single.add_argument("--set", metavar="NAME", required=True, help="name of the data set")
        single.add_argument("--out", metavar="DIR", default="outputs/eval", help="folder of the results (%(default)s)")
        single.add_argument("--json", action="store_true", help="print the scores as JSON")
        single.add_argument("overrides", metavar="key=value", nargs="*", help=f"setting of eval.{verb}, as steps=500")


def _add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "export",
        "write a checkpoint's weights as a folder: model.safetensors and config.json",
        "mcjepa export outputs/quickstart/run --out weights --layout hub",
        "pipeline.cli.export:run_export",
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


def _add_recipe(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = _command(
        commands,
        "recipe",
        "print a recipe with everything resolved, or every key with its meaning",
        "mcjepa recipe quickstart train.steps=200",
        "pipeline.cli.recipe:print_recipe",
    )
    _add_recipe_arguments(parser)
    parser.add_argument("--keys", action="store_true", help="print every key with its type, default and meaning")


def _add_tracking(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tracking = commands.add_parser("tracking", help="records on their way to MLflow", description="Records of runs.")
    verbs = tracking.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = _command(
        verbs,
        "sync",
        "deliver to MLflow what a run could not while it was away",
        "mcjepa tracking sync outputs/quickstart/run",
        "pipeline.cli.tracking:tracking_sync",
    )
    parser.add_argument("run", metavar="RUN|RECIPE", help="a run folder, or the recipe it was trained from")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of a recipe key, a.b=c")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and hasattr(arguments, "overrides") and all("=" in word and not word.startswith("-") for word in rest):
        arguments.overrides, rest = (
            [*arguments.overrides, *rest],
            [],
        )  # argparse stops collecting at an option
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if arguments.version:
        from importlib.metadata import version

        print(f"mcjepa {version('mcjepa')}")
        return OK
    if arguments.command is None:
        parser.print_help()
        return USAGE
    if not arguments.handler:
        print(f"mcjepa {arguments.command}: not in this release; see docs/roadmap.md", file=sys.stderr)
        return USAGE
    _start_logging(arguments.verbose)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    from data_prep.errors import DataError
    from pipeline.errors import RunError, UsageError

    module, function = arguments.handler.split(":")
    try:
        code: int = getattr(importlib.import_module(module), function)(arguments)
        return code
    except KeyboardInterrupt:
        print("\nmcjepa: interrupted; the same command continues where it stopped", file=sys.stderr)
        return INTERRUPTED
    except (UsageError, DataError, RunError, OSError) as error:
        if arguments.verbose:
            logging.getLogger(__name__).exception("%s", error)
        print(f"mcjepa: {_one_line(error)}", file=sys.stderr)
        return USAGE if isinstance(error, UsageError) else REJECTED


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        place = f" at {error.filename}" if error.filename else ""
        advice = "; free some space and rerun" if error.errno == 28 else "; check the path and its permissions"
        return f"{error.strerror or error}{place}{advice}"
    return " ".join(str(error).split())


def _start_logging(verbose: bool) -> None:
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    level = logging.DEBUG if verbose else logging.INFO if rank == "0" else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format=f"%(levelname)s [{rank}] %(message)s", stream=sys.stderr)
    for room in ("model", "data_prep", "pipeline", "evals", "cluster"):
        logging.getLogger(room).setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
