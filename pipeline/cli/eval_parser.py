"""The shape of `mcjepa eval`."""

from __future__ import annotations

import argparse

from pipeline.cli.parsing import Commands, add_recipe_arguments, command


def add_eval(commands: Commands) -> None:
    """`mcjepa eval` and its verbs."""
    evaluate = commands.add_parser("eval", help="weights to scores", description="Weights to scores.")
    verbs = evaluate.add_subparsers(dest="verb", metavar="VERB", required=True)
    parser = command(
        verbs,
        "all",
        "run every benchmark of a recipe on its run's newest weights, and write the report",
        "mcjepa eval all quickstart",
        "pipeline.cli.evaluate:evaluate_all",
    )
    add_recipe_arguments(parser)
    parser.add_argument("--weights", metavar="DIR", help="a weights folder instead of the run's newest")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    _add_flow(verbs)
    _add_probe(verbs)
    _add_vos(verbs)


def _add_flow(verbs: Commands) -> None:
    parser = command(
        verbs,
        "flow",
        "optical flow against ground truth",
        "mcjepa eval flow RUN/weights/step-000001200 --data MPI-Sintel-complete --set sintel-clean",
        "pipeline.cli.eval_flow:evaluate_flow",
    )
    _add_benchmark_arguments(parser, "flow")


def _add_probe(verbs: Commands) -> None:
    parser = command(
        verbs,
        "probe",
        "linear segmentation probe on frozen features",
        "mcjepa eval probe RUN/weights/step-000001200 --data CamVid --set camvid",
        "pipeline.cli.eval_probe:evaluate_probe",
    )
    _add_benchmark_arguments(parser, "probe")


def _add_vos(verbs: Commands) -> None:
    parser = command(
        verbs,
        "vos",
        "video object segmentation by label propagation, or of masks that are there already",
        "mcjepa eval vos RUN/weights/step-000001200 --data DAVIS --set davis2017 --preset crw\n"
        "  mcjepa eval vos --estimates results/osvos --data DAVIS --set davis2016",
        "pipeline.cli.eval_vos:evaluate_vos",
    )
    parser.add_argument("weights", metavar="WEIGHTS", nargs="?", help="a weights folder; none with --estimates")
    parser.add_argument("--data", metavar="ROOT", required=True, help="folder the data set's archive unpacks to")
    parser.add_argument(
        "--set", metavar="NAME", required=True, help="davis2016, davis2017, davis2017-test-dev or moving-photos"
    )
    parser.add_argument(
        "--preset", metavar="NAME", default="dino", help="protocol: dino, crw or vfs (%(default)s); key=value over it"
    )
    parser.add_argument("--estimates", metavar="DIR", help="score DIR/SEQUENCE/FRAME.png, palette or grey, instead")
    parser.add_argument("--masks", action="store_true", help="write the predicted masks as DAVIS' palette PNGs")
    parser.add_argument("--overlays", action="store_true", help="write each sequence tinted by its masks, as mp4")
    parser.add_argument("--out", metavar="DIR", default="outputs/eval", help="folder of the results (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="setting of eval.vos, as name=value")


def _add_benchmark_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="a weights folder: model.safetensors and config.json")
    parser.add_argument("--data", metavar="ROOT", required=True, help="folder the data set's archive unpacks to")
    parser.add_argument("--set", metavar="NAME", required=True, help="name of the data set")
    parser.add_argument("--out", metavar="DIR", default="outputs/eval", help="folder of the results (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"setting of eval.{kind}, as name=value")
