"""The shape of `mcjepa plan` and `mcjepa drill`."""

from __future__ import annotations

from mcjepa.pipeline.cli.parsing import Commands, add_recipe_arguments, command

DRILLS = {
    "preempt": "a stop signal with a grace time, as at a time limit or a pre-emption",
    "node-loss": "kill -9 of one rank of two, as when a node is lost",
    "storage": "a run folder that cannot be written when a checkpoint is due, and can again later",
}


def add_plan(commands: Commands) -> None:
    """`mcjepa plan`."""
    parser = command(
        commands,
        "plan",
        "what a training run needs and what is wrong with it, before it is queued",
        "mcjepa plan paper --nodes 2 --ranks 16 --step-s 0.4 --memory-gib 80",
        "mcjepa.pipeline.cli.plan:run_plan",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--site", metavar="SITE", help="a site file, or a shipped one; else this machine")
    parser.add_argument("--nodes", type=int, metavar="N", default=0, help="nodes of the job (else the site's, or 1)")
    parser.add_argument("--ranks", type=int, metavar="N", default=0, help="ranks in all (else nodes x tasks a node)")
    parser.add_argument("--gpus-per-node", type=int, metavar="N", help="GPUs a node (else the site's, or what is here)")
    parser.add_argument(
        "--memory-gib", type=float, metavar="G", help="memory of a GPU, or of a node without GPUs (else what is here)"
    )
    parser.add_argument("--step-s", type=float, metavar="S", help="seconds a step, where they are known")
    parser.add_argument(
        "--measure", type=int, metavar="STEPS", nargs="?", const=4, help="take some real steps here for their time (4)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def add_drill(commands: Commands) -> None:
    """`mcjepa drill` and its kinds."""
    drill = commands.add_parser(
        "drill",
        help="rehearse an interruption of a recipe's run on this machine",
        description="Trains a few steps of a recipe undisturbed and disturbed and compares losses and samples.",
    )
    kinds = drill.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, purpose in DRILLS.items():
        parser = command(
            kinds,
            kind,
            purpose,
            f"mcjepa drill {kind} quickstart --out /tmp/drill",
            "mcjepa.pipeline.cli.drill:run_drill",
        )
        add_recipe_arguments(parser)
        parser.add_argument("--out", metavar="DIR", default="", help="a new folder for its runs (else a temporary one)")
        parser.add_argument("--steps", type=int, metavar="N", default=8, help="steps of each run (%(default)s)")
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
