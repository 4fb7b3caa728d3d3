"""The shape of `mcjepa launch`."""

from __future__ import annotations

import argparse

from mcjepa.pipeline.cli.parsing import Commands, add_recipe_arguments, command

PURPOSES = {
    "prep": ("build and publish the recipe's datasets; on several nodes by a Ray cluster made of them", "--nodes 4"),
    "train": (
        "train the recipe's run, or all runs of its sweep; signals, dead ranks and nodes only interrupt it",
        "--nodes 2",
    ),
    "eval": ("evaluate the newest weights of the recipe's run", ""),
}


def add_launch(commands: Commands) -> None:
    """`mcjepa launch` and its verbs."""
    launch = commands.add_parser(
        "launch",
        help="prep, train or eval in the background, on Slurm and on Ray clusters",
        description="Runs stages where a site file says: on Slurm, in the background of this machine, or here.",
    )
    verbs = launch.add_subparsers(dest="verb", metavar="VERB", required=True)
    for stage in PURPOSES:
        _add_stage(verbs, stage)
    _add_resume(verbs)
    _add_watching(verbs)
    _add_progress(verbs)


def _add_stage(verbs: Commands, stage: str) -> None:
    purpose, nodes = PURPOSES[stage]
    example = f"mcjepa launch {stage} paper --site my-cluster.yaml {nodes} --dry-run".replace("  ", " ")
    parser = command(verbs, stage, purpose, example, "mcjepa.pipeline.cli.launch:launch_stage")
    add_recipe_arguments(parser)
    parser.add_argument(
        "--site", metavar="SITE", required=True, help="a site file, or a shipped one: local, debug, slurm"
    )
    if stage != "eval":
        parser.add_argument("--nodes", type=int, metavar="N", default=0, help="nodes of the job (else the site's)")
    parser.add_argument("--dry-run", action="store_true", help="print the job's script and submit nothing")
    if stage == "train":
        parser.add_argument(
            "--with-eval",
            nargs="?",
            choices=("ok", "any", "follow"),
            const="ok",
            default="",
            metavar="ok|any|follow",
            help="then evaluate its newest weights, where it succeeded (ok) or however it ended (any); or all of its "
            "weights meanwhile (follow)",
        )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_resume(verbs: Commands) -> None:
    parser = command(
        verbs,
        "resume",
        "submit again what was launched before, as it was: a run goes on from its newest checkpoint",
        "mcjepa launch resume outputs/paper/run",
        "mcjepa.pipeline.cli.launch:launch_resume",
    )
    _add_target(parser)


def _add_watching(verbs: Commands) -> None:
    parser = command(
        verbs,
        "status",
        "print the state of jobs, how often they were started, and how far the run is",
        "mcjepa launch status outputs/paper/run",
        "mcjepa.pipeline.cli.launch_jobs:launch_status",
    )
    _add_target(parser)
    parser = command(
        verbs,
        "logs",
        "print what ranks wrote",
        "mcjepa launch logs outputs/paper/run --rank 3 --lines 50",
        "mcjepa.pipeline.cli.launch_jobs:launch_logs",
    )
    _add_target(parser)
    parser.add_argument("--rank", type=int, metavar="N", help="of this rank only")
    parser.add_argument(
        "--lines", type=int, metavar="N", default=20, help="last lines of each file; 0: all (%(default)s)"
    )
    parser = command(
        verbs,
        "cancel",
        "end jobs and what waits for them; a run can be resumed",
        "mcjepa launch cancel outputs/paper/run",
        "mcjepa.pipeline.cli.launch_jobs:launch_cancel",
    )
    _add_target(parser)


def _add_progress(verbs: Commands) -> None:
    parser = command(
        verbs,
        "progress",
        "print the step of a run's newest complete checkpoint, -1 without one",
        "mcjepa launch progress outputs/paper/run",
        "mcjepa.pipeline.cli.launch_jobs:launch_progress",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder or s3 prefix")


def _add_target(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN|RECIPE", help="a run folder, a folder of jobs, or the recipe")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="override of a recipe key, a.b=c")
    parser.add_argument("--stage", choices=("prep", "train", "eval"), help="of a recipe: this stage only")
    parser.add_argument("--site", metavar="SITE", help="of a recipe: the site, where its file names a folder of jobs")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
