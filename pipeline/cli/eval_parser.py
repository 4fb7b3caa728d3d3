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
        "segmentation probe on frozen features: a linear head or nearest neighbours",
        "mcjepa eval probe RUN/weights/step-000001200 --data CamVid --set camvid 'seeds=[0,1,2]'",
        "pipeline.cli.eval_probe:evaluate_probe",
    )
    _add_benchmark_arguments(parser, "probe")
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        help="named settings: vicregl-voc, vicregl-ade20k, vicregl-cityscapes, cached, knn (default: the set's own)",
    )
    parser.add_argument("--head", choices=("linear", "knn"), help="knn = nearest training cells, nothing is trained")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="CPU threads of torch (0: its own choice)")


def _add_vos(verbs: Commands) -> None:
    parser = command(
        verbs,
        "vos",
        "video object segmentation by label propagation",
        "mcjepa eval vos RUN/weights/step-000001200 --data DAVIS --set davis",
        "pipeline.cli.eval_vos:evaluate_vos",
    )
    _add_benchmark_arguments(parser, "vos")


def _add_benchmark_arguments(parser: argparse.ArgumentParser, kind: str) -> None:
    parser.add_argument("weights", metavar="WEIGHTS", help="a weights folder: model.safetensors and config.json")
    parser.add_argument("--data", metavar="ROOT", required=True, help="folder the data set's archive unpacks to")
    parser.add_argument("--set", metavar="NAME", required=True, help="name of the data set")
    parser.add_argument("--out", metavar="DIR", default="outputs/eval", help="folder of the results (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print the scores as JSON")
    parser.add_argument("overrides", metavar="key=value", nargs="*", help=f"setting of eval.{kind}, as name=value")
